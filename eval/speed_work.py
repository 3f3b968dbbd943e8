"""Counted work: the floating-point operations of a preference step's matrix products.

A LoRA step with a frozen base, whatever computes it. With N the weights of all linear layers in the
blocks and N_R = sum of R (in + out) those of their adapters, each row that goes through the blocks
takes

    policy      2 N forward, 2 N backward (the input's gradient; frozen weights have none)
    adapters    2 N_R forward, 4 N_R backward
    reference   2 N, unless it is cached

each pair of a query and a key that it sees, in each of L layers and H heads of size E

    policy      4 E forward (score, value), 8 E backward
    reference   4 E

and each row that meets the head 2 D V for its logits, 2 D V for the gradient of its hidden state
and 2 D V for the reference's logits. Left out: what is made twice (recomputed logits and scores),
what a mask hides, and all that is no matrix product. Model FLOP/s utilisation (MFU) is the counted
work of a step over its seconds and the device's peak rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.transformer import ModelConfig

Lengths = Sequence[tuple[int, int, int]]  # of each pair: prompt, chosen and rejected tokens


@dataclass(frozen=True)
class Layout:
    """How a step's pairs are laid out; the default is ours, every other field costs something."""

    share: bool = True  # the prompt of a pair once, not with each completion
    pad: bool = False  # every row of tokens to the longest; only without sharing
    whole_head: bool = False  # all rows meet the head, not the completions' predictors alone
    cached: bool = False  # the reference's log-probabilities are there before the step


PEER = Layout(share=False, pad=True, whole_head=True)
LAYOUTS = {
    "ours": Layout(),
    "no_packing": Layout(share=False, pad=True),
    "no_sharing": Layout(share=False),
    "whole_head": Layout(whole_head=True),
    "all_off": PEER,
    "cached": Layout(cached=True),
    "bfloat16": Layout(),
    "compiled": Layout(),
    "trl": PEER,
    "trl_cached": replace(PEER, cached=True),
}


@dataclass(frozen=True)
class Rows:
    blocks: int  # go through the blocks, padding included
    real: int  # of them no padding
    head: int  # meet the head
    seen: int  # pairs of query and key, in one head of one layer


def count_rows(lengths: Lengths, layout: Layout) -> Rows:
    """The rows of one step under a layout."""
    assert not (layout.pad and layout.share), "a padded row holds one completion"
    if layout.share:
        blocks = real = sum(p + c + r for p, c, r in lengths)
        seen = sum(causal(p + c) + r * p + causal(r) for p, c, r in lengths)
        twice = len(lengths)  # the last prompt token predicts the first token of either completion
    else:
        sequences = [p + n for p, *completions in lengths for n in completions]
        real, longest = sum(sequences), max(sequences)
        sequences = [longest] * len(sequences) if layout.pad else sequences
        blocks, seen, twice = sum(sequences), sum(map(causal, sequences)), 0
    head = blocks + twice if layout.whole_head else sum(c + r for _, c, r in lengths)
    return Rows(blocks, real, head, seen)


def causal(n: int) -> int:
    """Each of n tokens sees itself and those before it."""
    return n * (n + 1) // 2


def layer_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of the linear layers of one block."""
    D, F, E = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_attention_heads * E, config.num_key_value_heads * E
    return [(D, query), (D, key), (D, key), (query, D), (D, F), (D, F), (F, D)]


def step_flop(config: ModelConfig, rows: Rows, rank: int, cached: bool) -> dict[str, int]:
    """FLOP of one step by part, as the head of this file says."""
    layers, shapes = config.num_hidden_layers, layer_shapes(config)
    weights = layers * sum(i * o for i, o in shapes)
    adapters = layers * rank * sum(i + o for i, o in shapes)
    heads = layers * config.num_attention_heads
    passes = 2 if cached else 3  # policy forward and backward, reference forward
    return {
        "blocks": rows.blocks * passes * 2 * weights,
        "adapters": rows.blocks * 6 * adapters,
        "attention": rows.seen * heads * config.head_dim * (12 if cached else 16),
        "head": rows.head * passes * 2 * config.hidden_size * config.vocab_size,
    }


def total_flop(config: ModelConfig, steps: Sequence[Lengths], rank: int, layout: Layout) -> int:
    """FLOP of some steps together."""
    counted = (step_flop(config, count_rows(s, layout), rank, layout.cached) for s in steps)
    return sum(sum(parts.values()) for parts in counted)


def work_factors(
    config: ModelConfig, steps: Sequence[Lengths], rank: int, peer: Layout
) -> dict[str, float]:
    """What a padded peer's counted work is more than ours, as factors that multiply to the whole.

    Taken away one after the other: the padding, the second copy of the prompt, the rows at the head
    that no loss needs.
    """
    head, cached = peer.whole_head, peer.cached
    stages = [
        peer,
        Layout(share=False, whole_head=head, cached=cached),
        Layout(whole_head=head, cached=cached),
        Layout(cached=cached),
    ]
    work = [total_flop(config, steps, rank, stage) for stage in stages]
    names = ("padding", "sharing", "head")
    return {name: a / b for name, a, b in zip(names, work, work[1:], strict=False)}
