"""Attention over segments, batches and the cache, against its definition in float64.

The definition has one explicit (query, key) mask and whole softmax rows; positions of keys and
queries say who sees whom. pytest tests/test_attention.py
"""

import pytest
import torch
from torch import Tensor

from model import attention
from model.attention import (
    KVCache,
    Sequences,
    attend,
    attend_batch,
    attend_new_token,
    causal_mask,
    plan_attention,
    plan_blocks,
    plan_sequences,
)

HEADS = [(3, 3), (4, 2), (5, 1)]  # (H, K)
WINDOWS = [None, 1, 4, 200]
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


def packed_ref(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    outputs = []
    for start, stop, prefix_start, prefix_stop in SEGMENTS:
        keys = [*range(prefix_start, prefix_stop), *range(start, stop)]
        P, L = prefix_stop - prefix_start, stop - start
        seen = sees(torch.arange(P, P + L), torch.arange(P + L), window)
        outputs.append(attention_ref(query[start:stop], key[keys], value[keys], seen))
    return torch.cat(outputs)


@pytest.mark.parametrize("masked_rows", [0, 16, 256])  # by segment; one pair masked; all of it
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
def test_packed_segments_see_their_prefix_and_their_past(heads, window, masked_rows, monkeypatch):
    query, key, value = (x.requires_grad_() for x in random_qkv(22, heads=heads))
    expected = packed_ref(query, key, value, window)
    monkeypatch.setattr(attention, "MASKED_ROWS", masked_rows)
    plan = plan_blocks(SEGMENTS, window, query.device)
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
def test_sequences_of_one_launch_mean_the_same(heads, window, monkeypatch):
    monkeypatch.setattr(attention, "flash_attention", lambda: varlen_by_definition)
    query, key, value = (x.requires_grad_() for x in random_qkv(22, heads=heads))
    plan = plan_sequences(SEGMENTS, query.device)
    out, expected = attend(query, key, value, plan, window), packed_ref(query, key, value, window)
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
def test_flash_attention_on_a_gpu(heads, window, dtype):
    """Half precision against float64 on the same rounded inputs, values and gradients."""
    cuda = [x.cuda().requires_grad_() for x in random_qkv(22, heads=heads, E=64, dtype=dtype)]
    exact = [x.detach().cpu().double().requires_grad_() for x in cuda]
    plan = plan_attention(SEGMENTS, window, cuda[0], 64)
    assert isinstance(plan, Sequences)
    out, expected = attend(*cuda, plan, window), packed_ref(*exact, window)
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


def test_causal_mask_by_hand():
    """Two queries at positions 2 and 3 of four, a window of 2."""
    expected = [[False, True, True, False], [False, False, True, True]]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == expected


# ------------------------------------------------------------------------------------------------
# the cache


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 7, 70])
@pytest.mark.parametrize("heads", HEADS)
def test_cache_goes_on_where_each_sequence_ends(heads, window, dtype):
    """Prompts of 61 and 3 tokens, put into rows 0-1 and 2 of a cache, then five tokens each: over
    the first 64 slots, and a sequence given up on the way."""
    K = heads[1]
    lengths, rows = (61, 3), (slice(0, 2), slice(2, 3))
    sequences = [random_qkv(80, heads=heads, dtype=dtype, seed=s) for s in range(2)]
    cache = KVCache(2, 3, 100, K, 8, dtype, "cpu")
    for length, row, sequence in zip(lengths, rows, sequences, strict=True):
        prompt = KVCache(2, 1, length, K, 8, dtype, "cpu")
        query, key, value = (x[None, :length] for x in sequence)
        out = [prompt.attend(layer, query, key, value, window) for layer in range(2)]
        prompt.advance(length)
        check(out[1][0], sequence, 0, length, window)
        cache.put(row, prompt)
    of_row = [0, 0, 1]
    for step in range(5):
        if step == 2:
            cache.keep([0, 2], 2)
            of_row = [0, 1]
        now = [lengths[s] + step for s in of_row]
        assert cache.lengths.tolist() == now and cache.longest == max(now)
        new = [
            [sequences[s][i][n : n + 1] for s, n in zip(of_row, now, strict=True)] for i in range(3)
        ]
        out = [cache.attend(layer, *map(torch.stack, new), window) for layer in range(2)]
        cache.advance(1)
        for b, (s, n) in enumerate(zip(of_row, now, strict=True)):
            check(out[1][b], sequences[s], n, n + 1, window)


def check(out: Tensor, sequence: list[Tensor], start: int, stop: int, window: int | None) -> None:
    """The queries [start, stop) of a sequence over all its keys so far."""
    query, key, value = sequence
    seen = sees(torch.arange(start, stop), torch.arange(stop), window)
    expected = attention_ref(query[start:stop], key[:stop], value[:stop], seen)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[out.dtype])


def test_cache_keeps_rows_in_place():
    """Rows 0 and 3 of four go on: 3 moves to place 1; a padding row is empty."""
    cache = KVCache(1, 4, 64, 1, 2, torch.float32, "cpu")
    cache.keys += torch.arange(4)[:, None, None, None]
    cache.lengths += torch.tensor([5, 9, 9, 7])
    cache.keep([0, 3], 3)
    assert cache.keys[0, :2, 0, 0, 0].tolist() == [0, 3]
    assert cache.lengths.tolist() == [5, 7, 0] and cache.longest == 7
    with pytest.raises(AssertionError, match="overwritten"):
        cache.keep([1, 0], 2)


def test_a_full_cache_is_our_mistake():
    cache = KVCache(1, 1, 64, 1, 2, torch.float32, "cpu")
    cache.advance(64)
    with pytest.raises(AssertionError, match="64 \\+ 1 tokens in a cache of 64"):
        cache.attend(0, *(torch.zeros(1, 1, 1, 2),) * 3, None)


@pytest.mark.parametrize("heads, E", [((9, 3), 64), ((8, 8), 8), ((8, 2), 128), ((6, 1), 16)])
def test_a_new_token_does_not_feel_its_neighbours(heads, E):
    """Bit for bit the same with 8 or 16 sequences, in any row, however many slots are read."""
    H, K = heads
    generator = torch.Generator().manual_seed(0)
    for length in (3, 64, 150, 300, 513):
        query = torch.randn(16, H, E, generator=generator)
        keys, values = torch.randn(2, 16, K, 704, E, generator=generator)
        lengths = torch.randint(1, 704, (16,), generator=generator)
        lengths[0] = length
        results = []
        for batch, row in ((8, 0), (8, 7), (16, 13)):
            order = torch.arange(batch).roll(row)
            for S in (-(-length // 64) * 64, 576, 704):
                seen = torch.arange(S) < lengths[order, None]
                seen[:, 0] = True
                args = (query[order], keys[order][:, :, :S], values[order][:, :, :S], seen)
                results.append(attend_new_token(*args)[row])
        assert all(torch.equal(result, results[0]) for result in results)
