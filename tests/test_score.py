"""Packed scoring against the plain forward, in float64: one prompt at a time, whole logits.

pytest tests/test_score.py
"""

import random

import pytest
import torch

from model import score as module
from model.score import (
    Part,
    common_length,
    completion_logps,
    completion_stats,
    pack_parts,
    plan_forwards,
)
from tests.test_generate import random_model

SIZES = [(9, [1, 1, 1, 1]), (12, [3, 1, 7]), (8, [1]), (30, [2, 20]), (9, [4, 4, 1])]


def random_ids(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(77), k=length)


def random_questions(common: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts that begin alike, and completions of each."""
    beginning = random_ids(0, common)
    prompts = [[*beginning, i, *random_ids(i, size - 1)] for i, (size, _) in enumerate(SIZES)]
    completions = [
        [random_ids(100 * i + k, length) for k, length in enumerate(lengths)]
        for i, (_, lengths) in enumerate(SIZES)
    ]
    return prompts, completions


def plain_stats(model, prompt: list[int], completion: list[int]) -> tuple[list, list]:
    """Log-probability and entropy at each token of a completion."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    return logps[range(len(completion)), completion].tolist(), entropy.tolist()


@pytest.mark.parametrize("tokens", [4096, 40, 1])
@pytest.mark.parametrize("common", [0, 1, 50, 300])
@pytest.mark.parametrize("window", [None, 5])
def test_packed_scores_are_those_of_the_plain_forward(monkeypatch, tokens, common, window):
    """Beside a beginning longer than a masked block (256 rows) and one longer than the window."""
    monkeypatch.setattr(module, "PACKED_TOKENS", tokens)
    positions = {"max_position_embeddings": 512}
    model = random_model(torch.float64, sliding_window=window, **positions)
    prompts, completions = random_questions(common)
    found = list(completion_stats(model, prompts, completions))
    assert [len(some) for some in found] == [len(lengths) for _, lengths in SIZES]
    for prompt, some, stats in zip(prompts, completions, found, strict=True):
        for completion, one in zip(some, stats, strict=True):
            logps, entropy = plain_stats(model, prompt, completion)
            assert one.logps.tolist() == pytest.approx(logps, abs=1e-9)
            assert one.entropy.tolist() == pytest.approx(entropy, abs=1e-9)


def test_a_row_longer_than_a_masked_block_behind_a_read_prompt():
    """A question of 400 tokens with two answers of 30, segment by segment."""
    model = random_model(torch.float64, max_position_embeddings=512)
    beginning = random_ids(0, 40)
    prompts = [[*beginning, 1, *random_ids(1, 399)], [*beginning, 2]]
    completions = [[random_ids(2, 30), random_ids(3, 30)], [[5]]]
    found = list(completion_logps(model, prompts, completions))
    for prompt, some, logps in zip(prompts, completions, found, strict=True):
        plain = [sum(plain_stats(model, prompt, completion)[0]) for completion in some]
        assert logps == pytest.approx(plain, abs=1e-9)


def test_what_all_begin_with_is_read_once(monkeypatch):
    """A forward over 50 tokens, then one over the rest: 4 + 4 x 0, 7 + (2 + 0 + 6), ... tokens."""
    model, rows = random_model(torch.float64, max_position_embeddings=512), []

    def note(module, args, kwargs):
        rows.append(args[0].numel() if args else len(kwargs["batch"].input_ids))

    model.register_forward_pre_hook(note, with_kwargs=True)
    prompts, completions = random_questions(50)
    list(completion_stats(model, prompts, completions))
    own = sum(size + sum(n - 1 for n in lengths) for size, lengths in SIZES)
    assert rows == [50, own]


def test_the_common_beginning_leaves_a_token_to_each():
    assert common_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_length([[1, 2], [1, 2, 4]]) == 1
    assert common_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_length([[1], [1]]) == 0
    assert common_length([[5, 2, 3], [1, 2, 3]]) == 0
    assert common_length([[1, 2, 3]]) == 0, "nobody shares it"


def test_the_layout_by_hand():
    """Two tokens read before. [7 | 8 9 | 6], then [4 5]: single letters and last tokens are out."""
    batch = pack_parts([[1, 2, 7], [1, 2, 4, 5]], [[[8, 9, 3], [6, 3]], [[1], [2]]], common=2)
    assert batch.input_ids.tolist() == [7, 8, 9, 6, 4, 5]
    assert batch.positions.tolist() == [2, 3, 4, 3, 2, 3]
    assert batch.segments == [(0, 3, 0, 0), (3, 4, 0, 1), (4, 6, 4, 4)]
    assert batch.predictors.tolist() == [0, 1, 2, 0, 3, 5, 5]
    assert batch.targets.tolist() == [8, 9, 3, 6, 3, 1, 2]


def test_forwards_are_filled_up_to_their_room(monkeypatch):
    """Room for 10. Prompts of 4 with completions of 3 + 3 tokens take 4 + 2 + 2 = 8 each; one of 4
    with 5 + 5 does not fit: 4 + 4 and again 4 + 4; one of 20 goes alone.
    """
    monkeypatch.setattr(module, "PACKED_TOKENS", 10)
    sizes = [(4, 3, 3), (4, 5, 5), (20, 2, 2), (1, 1, 1), (2, 2, 2)]
    prompts = [[0] * size for size, *_ in sizes]
    completions = [[[0] * n for n in lengths] for _, *lengths in sizes]
    forwards = plan_forwards(prompts, completions, common=0)
    assert forwards == [
        [Part(0, 0, 2)],
        [Part(1, 0, 1)],
        [Part(1, 1, 2)],
        [Part(2, 0, 1)],
        [Part(2, 1, 2)],
        [Part(3, 0, 2), Part(4, 0, 2)],
    ]


@pytest.mark.parametrize("tokens, forwards", [(4096, 1), (30, 3), (1, 5)])
@pytest.mark.parametrize("window", [None, 5])
def test_completions_that_share_their_prompt_have_the_logps_of_the_plain_forward(
    monkeypatch, tokens, forwards, window
):
    """A prompt of 7 tokens and completions of 1, 13, 1, 40 and 6, in float64.

    In room for 30 tokens go 7 + 0 + 12 + 0, then 7 + 39, since one at least is taken, then 7 + 5.
    """
    monkeypatch.setattr(module, "PACKED_TOKENS", tokens)
    model, batches = random_model(torch.float64, sliding_window=window), []
    model.register_forward_pre_hook(lambda *given: batches.append(given), with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    completions = [torch.randint(77, (n,), generator=generator).tolist() for n in (1, 13, 1, 40, 6)]
    prompt = [1, 2, 3, 4, 5, 6, 7]
    (logps,) = completion_logps(model, [prompt], [completions])
    assert len(batches) == forwards
    expected = [sum(plain_stats(model, prompt, completion)[0]) for completion in completions]
    assert logps == pytest.approx(expected, abs=1e-9)
