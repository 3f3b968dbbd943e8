"""Attention over segments and batches, against its definition in float64.

The definition has one explicit (query, key) mask and whole softmax rows; positions of keys and
queries say who sees whom. pytest tests/test_attention.py
"""

import pytest
import torch
from torch import Tensor

from model import attention
from model.attention import (
    Sequences,
    attend,
    attend_batch,
    attend_rows,
    causal_mask,
    plan_attention,
    plan_blocks,
    plan_sequences,
    varlen_fits,
)

HEADS = [(3, 3), (4, 2), (5, 1)]  # (H, K)
WINDOWS = [None, 1, 4, 8, 200]  # 8: all but one of nine
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def attention_ref(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """query: (Lq, H, E), key and value: (Lk, K, E), seen: (Lq, Lk); out: (Lq, H, E) float64."""
    H, E = query.shape[1:]
    outputs = []
    for head in range(H):
        key_head = head // (H // key.shape[1])
        scores = query[:, head].double() @ key[:, key_head].double().T / E**0.5  # (Lq, Lk)
        scores = scores.masked_fill(~seen, float("-inf"))
        outputs.append(scores.softmax(dim=-1) @ value[:, key_head].double())
    return torch.stack(outputs, dim=1)


def sees(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """A key at most window - 1 positions before the query, and none behind it."""
    distance = query_positions[:, None] - key_positions[None]
    return (distance >= 0) & (distance < (10**9 if window is None else window))


def random_qkv(*shape: int, heads: tuple[int, int], E: int = 8, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    H, K = heads
    sizes = ((*shape, H, E), (*shape, K, E), (*shape, K, E))
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


# [prompt 5 | chosen 7 | rejected 3] [prompt and chosen 6 | rejected 1]: rejected completions follow
# the prompt, whose length is where their positions go on
SEGMENTS = [(0, 12, 0, 0), (12, 15, 0, 5), (15, 21, 0, 0), (21, 22, 15, 19)]


def packed_ref(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, before: int = 0
) -> Tensor:
    outputs = []
    for start, stop, prefix_start, prefix_stop in SEGMENTS:
        keys = [*range(prefix_start, prefix_stop), *range(start, stop)]
        keys = [*range(before), *(before + row for row in keys)]
        P, L = before + prefix_stop - prefix_start, stop - start
        seen = sees(torch.arange(P, P + L), torch.arange(P + L), window)
        outputs.append(attention_ref(query[start:stop], key[keys], value[keys], seen))
    return torch.cat(outputs)


@pytest.mark.parametrize("masked_rows", [0, 16, 256])  # by segment; one pair masked; all of it
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("before", [0, 6])  # keys of a prompt that was read before
def test_packed_segments_see_their_prefix_and_their_past(
    heads, window, before, masked_rows, monkeypatch
):
    query, key, value = random_rows(before, heads)
    expected = packed_ref(query, key, value, window, before)
    monkeypatch.setattr(attention, "MASKED_ROWS", masked_rows)
    plan = plan_blocks(SEGMENTS, window, query.device, before)
    blocks = plan.blocks
    assert [block.rows for block in blocks] == ([22] if masked_rows == 256 else [15, 7])
    assert [block.mask is not None for block in blocks] == [masked_rows > 0] * len(blocks)
    out = attend(query, key, value, plan, window)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)

    upstream = random_qkv(22, heads=heads, seed=1)[0]
    gradients = torch.autograd.grad(out, (query, key, value), upstream)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, (query, key, value), upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def random_rows(before: int, heads: tuple[int, int]) -> list[Tensor]:
    """22 queries, and keys and values of as many rows behind those that were read."""
    query, key, value = random_qkv(before + 22, heads=heads)
    return [x.requires_grad_() for x in (query[before:], key, value)]


def varlen_by_definition(query, key, value, query_starts, key_starts, max_q, max_k, *, window_size):
    """What `varlen_attn` documents: each sequence on its own, queries aligned to the last keys,
    a window of so many keys to the left of each query and none to the right."""
    left, right = window_size
    assert right == 0 and query_starts.dtype == key_starts.dtype == torch.int32
    outputs, longest = [], [0, 0]
    for n in range(len(query_starts) - 1):
        q, k = (slice(*x[n : n + 2].tolist()) for x in (query_starts, key_starts))
        Lq, Lk = q.stop - q.start, k.stop - k.start
        window = None if left < 0 else left + 1
        seen = sees(torch.arange(Lk - Lq, Lk), torch.arange(Lk), window)
        outputs.append(attention_ref(query[q], key[k], value[k], seen))
        longest = [max(longest[0], Lq), max(longest[1], Lk)]
    assert longest == [max_q, max_k]
    return torch.cat(outputs)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("before", [0, 6])
def test_sequences_of_one_launch_mean_the_same(heads, window, before, monkeypatch):
    monkeypatch.setattr(attention, "flash_attention", lambda: varlen_by_definition)
    query, key, value = random_rows(before, heads)
    plan = plan_sequences(SEGMENTS, query.device, before)
    out = attend(query, key, value, plan, window)
    expected = packed_ref(query, key, value, window, before)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = random_qkv(22, heads=heads, seed=1)[0]
    ours, theirs = (torch.autograd.grad(o, (query, key, value), upstream) for o in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_without_a_prefix_no_key_is_gathered():
    assert plan_sequences([(0, 3, 0, 0), (3, 5, 3, 3)], torch.device("cpu")).key_rows is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("before", [0, 6])
def test_flash_attention_on_a_gpu(heads, window, before, dtype):
    """Half precision against float64 on the same rounded inputs, values and gradients."""
    query, key, value = random_qkv(before + 22, heads=heads, E=64, dtype=dtype)
    cuda = [x.cuda().requires_grad_() for x in (query[before:], key, value)]
    exact = [x.detach().cpu().double().requires_grad_() for x in cuda]
    plan = plan_attention(SEGMENTS, window, cuda[0], 64, before)
    assert isinstance(plan, Sequences)
    out, expected = attend(*cuda, plan, window), packed_ref(*exact, window, before)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=2e-2)
    upstream = random_qkv(22, heads=heads, E=64, dtype=dtype, seed=1)[0]
    ours = torch.autograd.grad(out, cuda, upstream.cuda())
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.cpu().double(), two, rtol=0, atol=5e-2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_each_row_of_a_batch_is_causal(heads, window, dtype):
    query, key, value = random_qkv(2, 9, heads=heads, dtype=dtype)
    seen = sees(torch.arange(9), torch.arange(9), window)
    expected = torch.stack(
        [attention_ref(*row, seen) for row in zip(query, key, value, strict=True)]
    )
    out = attend_batch(query, key, value, window)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtype", "head_dim", "capability", "fits"),
    [
        (torch.bfloat16, 128, (9, 0), True), (torch.float16, 256, (8, 0), True),
        (torch.bfloat16, 100, (9, 0), False),  # OpenLLaMA 3B: no multiple of 8
        (torch.bfloat16, 264, (9, 0), False), (torch.float32, 128, (9, 0), False),
        (torch.bfloat16, 128, (7, 5), False), (torch.bfloat16, 64, None, True),
    ],
)  # fmt: skip
def test_what_flash_attention_takes(dtype, head_dim, capability, fits, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    device = None if capability is None else torch.device("cuda")
    assert varlen_fits(dtype, head_dim, device) == fits


def test_a_window_that_is_one_too_short_by_hand():
    """Equal scores, so that a query has the mean of what it sees: 0; 0 and 3; 3 and 9."""
    zeros, value = torch.zeros(3, 1, 1), torch.tensor([0.0, 3.0, 9.0]).view(3, 1, 1)
    assert attend_rows(zeros, zeros, value, 2).flatten().tolist() == [0, 1.5, 6]
    assert attend_batch(zeros[None], zeros[None], value[None], 2).flatten().tolist() == [0, 1.5, 6]


def test_causal_mask_by_hand():
    """Two queries at positions 2 and 3 of four, a window of 2."""
    expected = [[False, True, True, False], [False, False, True, True]]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == expected
