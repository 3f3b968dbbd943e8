"""The packed layout worked by hand, budgets, and the order of the data.

pytest tests/test_packing.py
"""

import numpy as np
import pytest
import torch

from data.packing import (
    epoch_batches,
    heaviest_batch,
    num_tokens,
    pack_pairs,
    pack_step,
    share_pairs,
    step_indices,
    steps_per_epoch,
)
from data.pairs import TokenPair


def pair(prompt, chosen, rejected, source="made:1") -> TokenPair:
    ids = [np.array(part, dtype=np.int32) for part in (prompt, chosen, rejected)]
    return TokenPair(*ids, source)


def pairs_of_sizes(sizes) -> list[TokenPair]:
    return [pair([1] * p, [2] * c, [3] * r, f"made:{i}") for i, (p, c, r) in enumerate(sizes)]


def test_layout_by_hand():
    """Two pairs: prompt 1 2, chosen 3 4 5, rejected 6; prompt 7, chosen 8, rejected 9 10.

    row        0 1 2 3 4 5   6 7 8 9
    id         1 2 3 4 5 6   7 8 9 10
    position   0 1 2 3 4 2   0 1 1 2
    The chosen tokens at rows 2, 3, 4 are predicted by rows 1, 2, 3, the rejected one at row 5 by
    row 1; in the second pair row 6 predicts both first tokens and row 8 the last.
    """
    batch = pack_pairs([pair([1, 2], [3, 4, 5], [6]), pair([7], [8], [9, 10])], [4, 9])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 1, 2]
    assert batch.segments == [(0, 5, 0, 0), (5, 6, 0, 2), (6, 8, 6, 6), (8, 10, 6, 7)]
    assert batch.predictors.tolist() == [1, 2, 3, 1, 6, 6, 8]
    assert batch.targets.tolist() == [3, 4, 5, 6, 8, 9, 10]
    assert batch.sequence_id.tolist() == [0, 0, 0, 2, 1, 3, 3]
    assert batch.lengths.tolist() == [3, 1, 1, 2]
    assert batch.last_rows.tolist() == [4, 7, 5, 9]
    assert batch.pair_ids == [4, 9] and len(batch) == 2
    sums = batch.sum_by_sequence(torch.tensor([1.0, 2, 3, 4, 5, 6, 7]))
    assert sums.tolist() == [6, 5, 4, 13]


def test_layout_without_a_rejected_completion():
    batch = pack_pairs([pair([1], [2, 3], []), pair([4, 5], [6], [])], [0, 1])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.segments == [(0, 3, 0, 0), (3, 6, 3, 3)]
    assert batch.predictors.tolist() == [0, 1, 4] and batch.targets.tolist() == [2, 3, 6]
    assert batch.sequence_id.tolist() == [0, 0, 1] and batch.lengths.tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("budget", [1, 10, 25, 1000])
def test_micro_batches_hold_each_pair_once_within_the_budget(budget):
    rng = np.random.default_rng(0)
    pairs = pairs_of_sizes(rng.integers(1, 9, size=(40, 3)).tolist())
    indices = rng.permutation(40)[:30].tolist()
    batches = pack_step(pairs, indices, budget)
    assert sorted(i for batch in batches for i in batch.pair_ids) == sorted(indices)
    for batch in batches:
        assert len(batch.input_ids) <= budget or len(batch) == 1
    needed = -(-sum(num_tokens(pairs[i]) for i in indices) // budget)
    assert len(batches) <= max(1, 2 * needed)


def test_first_fit_by_hand():
    """Sizes 3, 9, 4, 6 into 10: 9 | 6 + 4 | 3."""
    pairs = pairs_of_sizes([(1, 1, 1), (3, 3, 3), (1, 2, 1), (2, 2, 2)])
    assert [b.pair_ids for b in pack_step(pairs, [0, 1, 2, 3], 10)] == [[1], [3, 2], [0]]


def test_pairs_of_one_size_are_packed_by_their_numbers():
    equal = pairs_of_sizes([(1, 1, 1)] * 4)
    assert [b.pair_ids for b in pack_step(equal, [3, 0, 2, 1], 7)] == [[0, 1], [2, 3]]


def test_evaluation_sees_each_pair_once():
    rng = np.random.default_rng(1)
    pairs = pairs_of_sizes(rng.integers(1, 30, size=(57, 3)).tolist())
    batches = list(epoch_batches(pairs, 100))
    assert sorted(i for batch in batches for i in batch.pair_ids) == list(range(57))
    assert all(len(batch.input_ids) <= 100 for batch in batches)
    assert list(epoch_batches([], 100)) == []
    equal = pairs_of_sizes([(1, 1, 1)] * 6)  # of 3 tokens: two of them fill 7
    assert [len(batch) for batch in epoch_batches(equal, 7)] == [2, 2, 2]
    assert [len(batch) for batch in epoch_batches(equal, 6)] == [2, 2, 2]  # up to the brim


def test_order_is_a_pure_function_of_seed_and_epoch():
    assert steps_per_epoch(10, 4) == 3
    epochs = [[step_indices(3 * e + s, 10, 4, seed=7) for s in range(3)] for e in range(2)]
    for steps in epochs:
        assert [len(s) for s in steps] == [4, 4, 2]  # the last step takes what is left
        assert sorted(i for indices in steps for i in indices) == list(range(10))
    assert epochs[0] != epochs[1]
    assert step_indices(4, 10, 4, seed=7) == epochs[1][1]  # no state: any step, at any time
    assert step_indices(0, 10, 4, seed=8) != epochs[0][0]
    assert epochs[1][0] == [9, 0, 8, 6]  # whatever the version; and not the next seed's first epoch
    assert step_indices(0, 10, 4, seed=8) == [0, 7, 3, 6]


# ------------------------------------------------------------------------------------------------
# ranks


def test_pairs_are_dealt_by_tokens():
    """Longest first to the least loaded: 9 | 7 | 5, then 4 to the third (5 + 4), 3 to the second
    (7 + 3), 2 to the first (9 + 2)."""
    sizes = {10: 4, 11: 9, 12: 2, 13: 7, 14: 3, 15: 5}
    assert share_pairs(sizes, 3) == [[11, 12], [13, 14], [15, 10]]
    assert share_pairs({3: 5}, 2) == [[3], []] and share_pairs({}, 2) == [[], []]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_a_step(ranks):
    """Each pair on one rank, as many micro-batches on each; one without a pair has one token."""
    generator = np.random.default_rng(1)
    pairs = pairs_of_sizes(generator.integers(1, 20, size=(30, 3)))
    indices = generator.permutation(30)[:7].tolist()
    shares = [pack_step(pairs, indices, 40, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1 and shares[0]
    batches = [batch for share in shares for batch in share]
    assert sorted(i for batch in batches for i in batch.pair_ids) == sorted(indices)
    idle = [batch for batch in batches if not batch.pair_ids]
    assert bool(idle) == (ranks == 8)  # 7 pairs
    for batch in idle:
        assert batch.input_ids.tolist() == [0] and batch.segments == [(0, 1, 0, 0)]
        assert len(batch.targets) == len(batch.lengths) == len(batch) == 0
        assert batch.sum_by_sequence(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_ranks_share_an_epoch(ranks):
    pairs = pairs_of_sizes(np.random.default_rng(2).integers(1, 20, size=(31, 3)))
    shares = [list(epoch_batches(pairs, 60, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sorted(i for batch in batches for i in batch.pair_ids) == list(range(31))
    alone = [batch.pair_ids for batch in epoch_batches(pairs, 60)]
    assert sorted(batch.pair_ids for batch in batches if batch.pair_ids) == sorted(alone)


def test_heaviest_batch_of_an_epoch():
    """Pairs of 3, 6, 9 and 12 tokens: within 11 tokens the longest is alone, and the step that it
    is in has two micro-batches."""
    pairs = pairs_of_sizes([(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)])
    batch, count = heaviest_batch(pairs, 2, 11, seed=0, steps=2, ranks=1)
    assert batch.pair_ids == [3] and count == 2
    assert [step_indices(step, 4, 2, seed=2) for step in (0, 1)] == [[3, 2], [0, 1]]
    _, count = heaviest_batch(pairs, 2, 15, seed=2, steps=2, ranks=1)
    assert count == 2  # 12 | 9, and then 6 + 3 in one
    batch, count = heaviest_batch(pairs, 4, 100, seed=0, steps=9, ranks=1)
    assert len(batch.input_ids) == 30 and count == 1
    batch, count = heaviest_batch(pairs, 4, 100, seed=0, steps=9, ranks=2)
    assert len(batch.input_ids) == 15 and count == 1  # 12 + 3 and 9 + 6
