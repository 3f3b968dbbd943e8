"""Log-probabilities of given completions, in packed forwards that share what they have in common.

Tokens with which all prompts begin, such as the exemplars of a few-shot prompt, are read once; so
is each prompt for all of its completions. A row is laid out as

    [prompt | first | second | ... | prompt | first | ...]

without the beginning that all prompts have and without the last token of each completion, which
predicts nothing: the letters of a multiple-choice question add no token to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from model.attention import Segment
from model.cache import PromptKeys
from model.logps import TokenStats
from model.transformer import Transformer

PACKED_TOKENS = 4096  # of one forward, beyond its first completion

Ids = Sequence[int]


@dataclass(frozen=True)
class Part:
    """Some completions of a prompt that are scored in one forward."""

    prompt: int
    first: int
    last: int  # the first that is not among them


@dataclass(frozen=True)
class ScoreBatch:
    """A packed batch of prompts and their completions."""

    input_ids: Tensor  # (T,)
    positions: Tensor  # (T,)
    segments: list[Segment]
    predictors: Tensor  # (C,)
    targets: Tensor  # (C,)


@torch.no_grad()
def completion_stats(
    model: Transformer, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]
) -> Iterator[list[TokenStats]]:
    """For each prompt, the token statistics of each of its completions, on CPU.

    prompts: token ids, at least one each; completions: of each prompt, at least one token each.
    """
    read = read_common(model, prompts)
    found: list[TokenStats] = []
    for parts in plan_forwards(prompts, completions, read.length):
        scores = iter(score_parts(model, prompts, completions, parts, read))
        for part in parts:
            found += [next(scores) for _ in range(part.first, part.last)]
            if part.last == len(completions[part.prompt]):
                yield found
                found = []


def completion_logps(
    model: Transformer, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]
) -> Iterator[list[float]]:
    """For each prompt, the summed log-probability of each of its completions."""
    for found in completion_stats(model, prompts, completions):
        yield [stats.logps.double().sum().item() for stats in found]


# ------------------------------------------------------------------------------------------------
# the steps of it


def read_common(model: Transformer, prompts: Sequence[Ids]) -> PromptKeys:
    """Keys and values of what all prompts begin with; each keeps a token of its own, at least."""
    read = PromptKeys()
    if (length := common_length(prompts)) > 0:
        device = model.norm.weight.device
        model(torch.tensor([list(prompts[0][:length])], device=device), cache=read)
    return read


def common_length(prompts: Sequence[Ids]) -> int:
    """With how many equal tokens all prompts begin; 0 for one prompt alone."""
    if len(prompts) < 2:
        return 0
    columns = zip(*prompts, strict=False)  # up to the shortest prompt
    equal = sum(1 for _ in takewhile(lambda ids: ids.count(ids[0]) == len(ids), columns))
    return min(equal, min(map(len, prompts)) - 1)


def plan_forwards(
    prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], common: int
) -> list[list[Part]]:
    """What is scored in each forward, in order, up to PACKED_TOKENS tokens.

    common: how many tokens of every prompt have been read before. A prompt whose completions do
    not fit is laid out again for the rest of them.
    """
    forwards: list[list[Part]] = [[]]
    used = 0
    for number, (prompt, some) in enumerate(zip(prompts, completions, strict=True)):
        assert len(prompt) > common and some, f"prompt {number}: {len(prompt)} tokens, {len(some)}"
        first, tokens = 0, len(prompt) - common
        for k, completion in enumerate(some):
            assert completion, f"prompt {number}: completion {k} is empty"
            tokens += len(completion) - 1
            if used + tokens > PACKED_TOKENS and (used or k > first):
                if k > first:
                    forwards[-1].append(Part(number, first, k))
                forwards.append([])
                first, used, tokens = k, 0, len(prompt) - common + len(completion) - 1
        forwards[-1].append(Part(number, first, len(some)))
        used += tokens
    return [parts for parts in forwards if parts]


@torch.no_grad()
def score_parts(
    model: Transformer,
    prompts: Sequence[Ids],
    completions: Sequence[Sequence[Ids]],
    parts: Sequence[Part],
    read: PromptKeys,
) -> list[TokenStats]:
    """The token statistics of each completion of the parts, in one forward; on CPU."""
    chosen = [completions[part.prompt][part.first : part.last] for part in parts]
    batch = pack_parts([prompts[part.prompt] for part in parts], chosen, read.length)
    device = model.norm.weight.device
    tensors = {k: v.to(device) for k, v in vars(batch).items() if isinstance(v, Tensor)}
    batch = ScoreBatch(**{**vars(batch), **tensors})
    stats = model(batch=batch, cache=read if read.length else None)
    lengths = [len(completion) for some in chosen for completion in some]
    split = (values.cpu().split(lengths) for values in stats)
    return [TokenStats(*values) for values in zip(*split, strict=True)]


def pack_parts(
    prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], common: int
) -> ScoreBatch:
    """Lay out prompts, without the `common` tokens that were read, and all of their completions."""
    ids, positions, segments, predictors, targets = [], [], [], [], []
    for prompt, some in zip(prompts, completions, strict=True):
        start, P = len(ids), len(prompt)
        end = start + P - common  # of the prompt
        ids += prompt[common:]
        positions += range(common, P)
        for k, completion in enumerate(some):
            begin = len(ids)
            ids += completion[:-1]
            positions += range(P, P + len(completion) - 1)
            predictors += [end - 1, *range(begin, len(ids))]
            targets += completion
            if k == 0:
                segments.append((start, len(ids), start, start))
            elif len(ids) > begin:
                segments.append((begin, len(ids), start, end))
    columns = (torch.tensor(column) for column in (ids, positions, predictors, targets))
    input_ids, positions, predictors, targets = columns
    return ScoreBatch(input_ids, positions, segments, predictors, targets)
