"""Attention over packed segments: many sequences in one row, without padding.

A packed row holds many completions without padding. A segment `(start, stop, prefix_start,
prefix_stop)` says who sees whom: the queries [start, stop) attend causally to themselves and fully
to the prefix [prefix_start, prefix_stop), which they continue. A prompt with its chosen completion
is one segment without a prefix; the rejected completion is a second one with the prompt as prefix.
Where the row continues a prompt that was read before, every segment sees all of that prompt too.

Two ways with one meaning: on CUDA, in half precision, all segments are the sequences of one launch
of flash attention (`torch.nn.attention.varlen`); elsewhere they are grouped into blocks of rows.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Segment = tuple[int, int, int, int]

MASKED_ROWS = 256  # a masked block has at most so many: beyond, what the mask hides costs too much


@dataclass(frozen=True)
class Block:
    """Neighbouring segments that are computed together, counted from the block's first row."""

    rows: int
    segments: list[Segment]
    mask: Tensor | None  # (rows, before + rows) bool, True where seen; None: segment by segment


@dataclass(frozen=True)
class Sequences:
    """The N segments as sequences of one launch, each with the keys [prefix | segment]."""

    key_rows: Tensor | None  # (S,) int64, the row of each key; None: the rows as they lie
    query_starts: Tensor  # (N + 1,) int32
    key_starts: Tensor  # (N + 1,) int32
    longest_query: int
    longest_keys: int


@dataclass(frozen=True)
class Blocks:
    """The segments in blocks of rows that are computed one after the other."""

    blocks: list[Block]
    before: int  # the first keys, which every row sees


Plan = Blocks | Sequences


def plan_attention(
    segments: list[Segment], window: int | None, like: Tensor, head_dim: int, before: int = 0
) -> Plan:
    """How the queries of a packed row, of the device and dtype of `like`, will be attended.

    segments: they follow each other from row 0; a prefix is the beginning of an earlier segment.
    window: a token sees itself and at most window - 1 tokens before it (None: all); a segment's
    prefix counts as lying directly before it. before: how many keys of a prompt that was read
    before lie in front of the row's own; every segment continues them.
    """
    if like.device.type == "cuda" and varlen_fits(like.dtype, head_dim, like.device):
        return plan_sequences(segments, like.device, before)
    return plan_blocks(segments, window, like.device, before)


def varlen_fits(dtype: torch.dtype, head_dim: int, device: torch.device | None = None) -> bool:
    """Whether flash attention takes it: half precision, heads of 8, 16, ..., 256, sm_80 or newer.

    device: none for a GPU that is not here, and new enough.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    fits = half and head_dim % 8 == 0 and head_dim <= 256
    return fits and (device is None or torch.cuda.get_device_capability(device) >= (8, 0))


def plan_sequences(segments: list[Segment], device: torch.device, before: int = 0) -> Sequences:
    key_rows, query_lengths, key_lengths = [], [], []
    read = torch.arange(before)
    for start, stop, prefix_start, prefix_stop in segments:
        own = torch.arange(start, stop)
        key_rows += [read, before + torch.arange(prefix_start, prefix_stop), before + own]
        query_lengths.append(stop - start)
        key_lengths.append(before + stop - start + prefix_stop - prefix_start)
    shared = query_lengths != key_lengths
    return Sequences(
        send(torch.cat(key_rows), device) if shared else None,
        send(starts(query_lengths), device),
        send(starts(key_lengths), device),
        max(query_lengths),
        max(key_lengths),
    )


def starts(lengths: list[int]) -> Tensor:
    """Where each sequence begins, and where the last one ends: (N + 1,) int32."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def send(values: Tensor, device: torch.device) -> Tensor:
    """To the device, through pinned memory where it is CUDA, so that the host does not wait."""
    values = values.pin_memory() if device.type == "cuda" else values
    return values.to(device, non_blocking=True)


def plan_blocks(
    segments: list[Segment], window: int | None, device: torch.device, before: int = 0
) -> Blocks:
    """Short pairs share one product behind a mask; long ones go segment by segment."""
    blocks: list[list[Segment]] = []
    for group in continued(segments):
        if blocks and group[-1][1] - blocks[-1][0][0] <= MASKED_ROWS:
            blocks[-1] += group
        else:
            blocks.append(list(group))
    return Blocks([make_block(block, window, device, before) for block in blocks], before)


def continued(segments: list[Segment]) -> list[list[Segment]]:
    """Each segment without a prefix together with those that continue it: the pairs."""
    groups: list[list[Segment]] = []
    for segment in segments:
        _, _, prefix_start, prefix_stop = segment
        if prefix_stop > prefix_start:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def make_block(
    segments: list[Segment], window: int | None, device: torch.device, before: int
) -> Block:
    first, last = segments[0][0], segments[-1][1]
    segments = [tuple(max(0, bound - first) for bound in segment) for segment in segments]
    rows = last - first
    if (len(segments) == 1 and not before) or rows > MASKED_ROWS:
        return Block(rows, segments, None)
    seen = torch.zeros(rows, rows, dtype=torch.bool)
    positions = torch.empty(rows, dtype=torch.long)  # counted from the end of what was read before
    for start, stop, prefix_start, prefix_stop in segments:
        seen[start:stop, prefix_start:prefix_stop] = True
        seen[start:stop, start:stop] = causal_mask(stop - start, stop - start, None, seen.device)
        positions[start:stop] = torch.arange(stop - start) + (prefix_stop - prefix_start)
    seen = torch.cat([torch.ones(rows, before, dtype=torch.bool), seen], dim=1)
    if window is not None:
        key_positions = torch.cat([torch.arange(-before, 0), positions])
        seen &= positions[:, None] - key_positions < window
    return Block(rows, segments, send(seen, device))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: int | None) -> Tensor:
    """Causal attention inside each segment of a packed row.

    query: (T, H, E), key and value: (before + T, K, E) with H a multiple of K; plan: of
    `plan_attention`, with the same window. out: (T, H, E)
    """
    if isinstance(plan, Sequences):
        return attend_sequences(query, key, value, plan, window)
    return attend_blocks(query, key, value, plan, window)


def attend_sequences(
    query: Tensor, key: Tensor, value: Tensor, plan: Sequences, window: int | None
) -> Tensor:
    """All segments in one launch; the queries are the last ones of their keys, and causal."""
    if plan.key_rows is not None:  # a prompt's keys are gathered twice at most
        key, value = key.index_select(0, plan.key_rows), value.index_select(0, plan.key_rows)
    return flash_attention()(
        query,
        key,
        value,
        plan.query_starts,
        plan.key_starts,
        plan.longest_query,
        plan.longest_keys,
        window_size=(-1 if window is None else window - 1, 0),
    )


@functools.cache
def flash_attention() -> Callable[..., Tensor]:
    """`varlen_attn` with shared key heads; imported where it is used, as that takes seconds."""
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # from torch 2.12 on
        return functools.partial(varlen_attn, enable_gqa=True)
    return varlen_attn


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, plan: Blocks, window: int | None
) -> Tensor:
    sizes = [block.rows for block in plan.blocks]
    read = key[: plan.before], value[: plan.before]
    own = (rows[plan.before :].split(sizes) for rows in (key, value))
    outputs = []
    for block, *rows in zip(plan.blocks, query.split(sizes), *own, strict=True):
        if block.mask is None:
            outputs.append(attend_segments(*rows, *read, block.segments, window))
        else:
            keys, values = (join(*pair) for pair in zip(read, rows[1:], strict=True))
            outputs.append(attend_rows(rows[0], keys, values, window, block.mask))
    return torch.cat(outputs)


def attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    read_key: Tensor,
    read_value: Tensor,
    segments: list[Segment],
    window: int | None,
) -> Tensor:
    """One product for each segment: (T, H, E), (T, K, E) x 2 -> (T, H, E)."""
    outputs = []
    for start, stop, prefix_start, prefix_stop in segments:
        keys = join(read_key, key[prefix_start:prefix_stop], key[start:stop])
        values = join(read_value, value[prefix_start:prefix_stop], value[start:stop])
        outputs.append(attend_rows(query[start:stop], keys, values, window))
    return torch.cat(outputs)


def join(*parts: Tensor) -> Tensor:
    """The parts after each other; not copied where only one has rows."""
    full = [part for part in parts if len(part)]
    return full[0] if len(full) == 1 else torch.cat(full)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, mask: Tensor | None = None
) -> Tensor:
    """The last Lq of Lk positions attend causally to all Lk, or to what the mask (Lq, Lk) lets.

    query: (Lq, H, E), key and value: (Lk, K, E); out: (Lq, H, E)
    """
    Lq, Lk = query.shape[0], key.shape[0]
    query, key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in (query, key, value))
    plain = mask is None and Lq == Lk and (window is None or Lk <= window)
    if mask is None and not plain:
        mask = causal_mask(Lq, Lk, window, query.device)
    out = scaled_dot_product(query, key, value, mask, is_causal=plain)  # (1, H, Lq, E)
    return out.squeeze(0).transpose(0, 1)


def attend_batch(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Causal attention in each row of a batch: (B, T, H, E), (B, T, K, E) x 2 -> (B, T, H, E)."""
    T = query.shape[1]
    query, key, value = (rows.transpose(1, 2) for rows in (query, key, value))
    plain = window is None or T <= window
    mask = None if plain else causal_mask(T, T, window, query.device)
    return scaled_dot_product(query, key, value, mask, is_causal=plain).transpose(1, 2)


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False
) -> Tensor:
    """(B, H, Lq, E), (B, K, Lk, E) x 2 -> (B, H, Lq, E): each key head serves H / K query heads."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # by copy: the grouped form takes a slow path on CPU
        key = key.repeat_interleave(repeats, dim=1)  # (B, H, Lk, E)
        value = value.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)


def causal_mask(Lq: int, Lk: int, window: int | None, device: torch.device) -> Tensor:
    """(Lq, Lk) bool, True where seen: query i is position Lk - Lq + i."""
    mask = torch.ones(Lq, Lk, dtype=torch.bool, device=device).tril(Lk - Lq)
    if window is not None:
        mask = mask.triu(Lk - Lq - window + 1)
    return mask
