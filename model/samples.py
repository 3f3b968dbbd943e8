"""A samples file: the completions of many prompts, written as they finish, taken up after a kill.

A row for each prompt, `{"index", ..., "completions", "tokens", "logps", "finish_reasons"}`, is
appended as soon as all its completions are there; see `model/resumable.py`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model import parallel
from model.generate import Completion, generate
from model.reference import hash_weights
from model.resumable import write_rows
from model.sampling import Sampling, completion_seeds
from model.score import completion_logps
from model.transformer import Transformer


@dataclass(frozen=True)
class Drawing:
    """What is drawn for each prompt, and when a completion ends."""

    n: int
    max_new_tokens: int
    sampling: Sampling
    seed: int
    stop_ids: Sequence[int]
    stop: tuple[str, ...] = ()  # texts that end a completion


def write_samples(
    model: Transformer,
    prompts: Sequence[list[int]],
    drawing: Drawing,
    out: Path,
    to_text: Callable[[list[int]], str],
    find_stop: Callable[[list[int]], bool] | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
    reference: Transformer | None = None,
    cache_bytes: int = 10**9,
) -> None:
    """Complete every prompt into the file `out`; under torchrun each rank takes its share.

    prompts: token ids; to_text: what a completion's ids say; find_stop: whether ids hold a stop
    text; records: what else stands in the row of each prompt; reference: rows get `reference_logps`
    too. Raises ValueError where `out` holds completions that were drawn otherwise.
    """
    settings = describe(model, prompts, drawing, reference)

    def make(own: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, completions in complete(model, prompts, own, drawing, find_stop, cache_bytes):
            row = dict(records[index]) if records else {}
            row |= describe_completions(completions, to_text)
            if reference is not None:
                ids = [completion.ids for completion in completions]
                (row["reference_logps"],) = completion_logps(reference, [prompts[index]], [ids])
            yield index, row

    write_rows(out, settings, len(prompts), make, model)


def complete(
    model: Transformer,
    prompts: Sequence[list[int]],
    own: Sequence[int],
    drawing: Drawing,
    find_stop: Callable[[list[int]], bool] | None,
    cache_bytes: int,
    show: bool = True,
) -> Iterator[tuple[int, list[Completion]]]:
    """(index of a prompt, its n completions), as prompts finish; a bar shows tokens per second.

    own: the prompts that are completed here; show: whether there is a bar.
    """
    n, finished = drawing.n, 0
    grown: dict[int, list[Completion | None]] = {}
    hide = not (show and own and parallel.is_main())
    with tqdm(unit=" tokens", desc=f"0/{len(own)} prompts", disable=hide) as bar:
        drawn = generate(
            model,
            [prompts[index] for index in own for _ in range(n)],
            [seed for index in own for seed in completion_seeds(drawing.seed, index, n)],
            drawing.max_new_tokens,
            drawing.sampling,
            drawing.stop_ids,
            find_stop,
            lambda rows, _: bar.update(len(rows)),
            cache_bytes,
            lambda i: f"prompt {own[i // n]}, completion {i % n}",
        )
        for i, completion in drawn:
            completions = grown.setdefault(i // n, [None] * n)
            completions[i % n] = completion
            if None not in completions:
                del grown[i // n]
                finished += 1
                bar.set_description_str(f"{finished}/{len(own)} prompts", refresh=False)
                yield own[i // n], completions


def describe_completions(
    completions: Sequence[Completion], to_text: Callable[[list[int]], str]
) -> dict[str, list]:
    return {
        "completions": [to_text(completion.ids) for completion in completions],
        "tokens": [len(completion.ids) for completion in completions],
        "logps": [completion.logps for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
    }


def describe(
    model: Transformer,
    prompts: Sequence[list[int]],
    drawing: Drawing,
    reference: Transformer | None,
) -> dict[str, Any]:
    """All that the completions depend on, as JSON."""
    weights = {"weights": hash_weights(model, adapters=True)}
    if reference is not None:
        weights["reference_weights"] = hash_weights(reference)
    return asdict(drawing) | weights | {"prompts": digest_of_ids(prompts)}


def digest_of_ids(sequences: Iterable[Sequence[int]]) -> str:
    """SHA-256 over sequences of token ids."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()
