"""Token pairs -> packed, prefix-shared batches, and the order of the data.

A pair is laid out as [prompt | chosen | rejected], the prompt once, and pairs follow each other
without padding up to a token budget. The rejected completion takes the positions that follow the
prompt, and sees the prompt and itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.pairs import TokenPair

Segment = tuple[int, int, int, int]  # queries [start, stop) continue the prefix [start, stop)


@dataclass(frozen=True)
class PairBatch:
    """B pairs in one row of T tokens, C of them predicted; of sft all rejected have length 0."""

    input_ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, the rejected completion restarts at the prompt's end
    segments: list[Segment]
    predictors: Tensor  # (C,) int64, the row that predicts each completion token
    targets: Tensor  # (C,) int64
    sequence_id: Tensor  # (C,) int64 in [0, 2B): chosen completions first, then rejected
    lengths: Tensor  # (2B,) float32, completion tokens
    pair_ids: list[int]  # (B,) which pairs of the data these are
    last_rows: Tensor | None = None  # (2B,) int64, the row of each completion's last token

    def __len__(self) -> int:
        return len(self.pair_ids)

    def to(self, device: torch.device | str) -> "PairBatch":
        moved = {
            name: to_device(value, device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return PairBatch(**{**vars(self), **moved})

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """(C,) per completion token -> (2B,) sums per completion."""
        zeros = values.new_zeros(len(self.lengths))
        if values.device.type == "cuda":  # where index_add sums in an order of chance
            return zeros.index_put((self.sequence_id,), values, accumulate=True)
        return zeros.index_add(0, self.sequence_id, values)


def pack_pairs(pairs: list[TokenPair], pair_ids: list[int]) -> PairBatch:
    """Lay out some pairs in one row. Every pair needs a prompt token and a chosen token."""
    B, row, predicted, segments = len(pairs), [], [], []
    positions, predictors, sequence_ids, lengths = [], [], [], np.zeros(2 * B, dtype=np.float32)
    last_rows, offset = np.zeros(2 * B, dtype=np.int64), 0
    for i, pair in enumerate(pairs):
        P, C, R = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
        assert P and C, f"{pair.source}: {P} prompt and {C} chosen tokens"
        row += [pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]
        positions += [np.arange(P + C), np.arange(P, P + R)]

        prompt_end, chosen_end = offset + P, offset + P + C
        segments.append((offset, chosen_end, offset, offset))
        if R:
            segments.append((chosen_end, chosen_end + R, offset, prompt_end))
        # the last prompt token predicts the first token of either completion
        predictors.append(np.arange(prompt_end - 1, chosen_end - 1))
        if R:
            predictors += [[prompt_end - 1], np.arange(chosen_end, chosen_end + R - 1)]
        predicted += [pair.chosen_ids, pair.rejected_ids]
        sequence_ids += [np.full(C, i), np.full(R, B + i)]
        lengths[i], lengths[B + i] = C, R
        last_rows[i], last_rows[B + i] = chosen_end - 1, chosen_end + R - 1
        offset = chosen_end + R
    return PairBatch(
        input_ids=join(row),
        positions=join(positions),
        segments=segments,
        predictors=join(predictors),
        targets=join(predicted),
        sequence_id=join(sequence_ids),
        lengths=torch.from_numpy(lengths),
        pair_ids=pair_ids,
        last_rows=torch.from_numpy(last_rows),
    )


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """A host tensor on the device; for CUDA through pinned memory, so that nobody waits."""
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def join(parts: list) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def pack_step(
    pairs: list[TokenPair], indices: list[int], budget: int, rank: int = 0, ranks: int = 1
) -> list[PairBatch]:
    """A rank's share of the pairs at `indices`, as micro-batches of at most `budget` tokens.

    Every rank gets the same number of micro-batches, some of them idle if need be. A pair longer
    than the budget makes a micro-batch of its own.
    """
    shares = step_bins(pairs, indices, budget, ranks)
    return pack_bins(pairs, shares[rank], max(map(len, shares)))


def step_bins(
    pairs: list[TokenPair], indices: list[int], budget: int, ranks: int
) -> list[list[list[int]]]:
    """For each rank, the micro-batches of its share, as indices of pairs."""
    sizes = {i: num_tokens(pairs[i]) for i in indices}
    return [fill_bins(share, sizes, budget) for share in share_pairs(sizes, ranks)]


def share_pairs(sizes: dict[int, int], ranks: int) -> list[list[int]]:
    """Pairs {index: tokens} dealt out by balanced token counts: longest first, to the least."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in by_size(sizes):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += sizes[i]
    return shares


def fill_bins(indices: list[int], sizes: dict[int, int], budget: int) -> list[list[int]]:
    """Longest first into the first bin with room, so that their number is near its minimum."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in by_size({i: sizes[i] for i in indices}):
        slot = next((b for b, free in enumerate(room) if sizes[i] <= free), len(bins))
        if slot == len(bins):
            bins.append([])
            room.append(budget)
        bins[slot].append(i)
        room[slot] -= sizes[i]
    return bins


def by_size(sizes: dict[int, int]) -> list[int]:
    return sorted(sizes, key=lambda i: (-sizes[i], i))


def pack_bins(pairs: list[TokenPair], bins: list[list[int]], count: int) -> list[PairBatch]:
    """`count` batches: the bins, then idle ones."""
    packed = [pack_pairs([pairs[i] for i in members], members) for members in bins]
    return packed + [idle_batch()] * (count - len(packed))


def idle_batch() -> PairBatch:
    """One token and no pair, for a rank that has to run a forward and has nothing left to do."""
    token, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return PairBatch(
        input_ids=token,
        positions=token,
        segments=[(0, 1, 0, 0)],
        predictors=nothing,
        targets=nothing,
        sequence_id=nothing,
        lengths=torch.zeros(0),
        pair_ids=[],
        last_rows=nothing,
    )


def num_tokens(pair: TokenPair) -> int:
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


# ------------------------------------------------------------------------------------------------
# the order of the data: a pure function of (seed, epoch)


def steps_per_epoch(num_pairs: int, batch_size: int) -> int:
    """The last step of an epoch takes what is left."""
    return -(-num_pairs // batch_size)


def step_indices(step: int, num_pairs: int, batch_size: int, seed: int) -> list[int]:
    """The pairs of a step (counted from 0), whatever runs it and wherever it was resumed."""
    epoch, position = divmod(step, steps_per_epoch(num_pairs, batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(num_pairs)
    return order[position * batch_size : (position + 1) * batch_size].tolist()


def heaviest_batch(
    pairs: list[TokenPair], batch_size: int, budget: int, seed: int, steps: int, ranks: int
) -> tuple[PairBatch, int]:
    """Of the first `steps`: the micro-batch with most tokens, and the most micro-batches that a
    step has."""
    heaviest, tokens, count = [], 0, 0
    for step in range(steps):
        shares = step_bins(pairs, step_indices(step, len(pairs), batch_size, seed), budget, ranks)
        count = max(count, *map(len, shares))
        for members in (bin for share in shares for bin in share):
            if (total := sum(num_tokens(pairs[i]) for i in members)) > tokens:
                heaviest, tokens = members, total
    return pack_pairs([pairs[i] for i in heaviest], heaviest), count


def epoch_batches(
    pairs: list[TokenPair], budget: int, rank: int = 0, ranks: int = 1
) -> Iterator[PairBatch]:
    """A rank's share of all pairs, each once, near-equal lengths together: for evaluation and for
    caching. Every rank gets the same number of batches."""
    sizes = [num_tokens(pair) for pair in pairs]
    bins: list[list[int]] = []
    total = 0
    for i in sorted(range(len(pairs)), key=sizes.__getitem__):
        if not bins or total + sizes[i] > budget:
            bins.append([])
            total = 0
        bins[-1].append(i)
        total += sizes[i]
    for start in range(0, len(bins), ranks):
        dealt = bins[start : start + ranks]
        yield from pack_bins(pairs, dealt[rank : rank + 1], 1)
