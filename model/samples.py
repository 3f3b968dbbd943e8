"""A samples file: the completions of many prompts, written as they finish, taken up after a kill.

A row for each prompt, `{"index", ..., "completions", "tokens", "logps", "finish_reasons"}`, is
appended as soon as all its completions are there. Beside FILE stands FILE.settings.json with all
that the completions depend on: the same command goes on where it was stopped, and another one is
refused. While ranks write, each has FILE.rank-R; at the end FILE holds all rows, in order.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model import parallel
from model.generate import Completion, generate
from model.reference import completion_logps, hash_weights
from model.run import write_text
from model.sampling import Sampling, completion_seeds
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
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = describe(model, prompts, drawing, reference)
    done = take_up(out, settings, len(prompts))
    missing = [index for index in range(len(prompts)) if index not in done]
    own = [missing[i] for i in parallel.share(len(missing))]
    rows = complete(model, prompts, own, drawing, find_stop, cache_bytes)
    written = 0
    with parallel.in_lockstep(model), part_file(out).open("a", encoding="utf-8") as file:
        try:
            for index, completions in rows:
                row = {"index": index} | dict(records[index] if records else {})
                row |= describe_completions(completions, to_text)
                if reference is not None:
                    ids = [completion.ids for completion in completions]
                    row["reference_logps"] = completion_logps(reference, prompts[index], ids)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                written += 1
        except KeyboardInterrupt:
            if parallel.says_first("samples interrupted"):
                count = f"{len(done) + written} of {len(prompts)} prompts"
                parallel.note(f"\nstopped: {count} are in {out}; the same command goes on")
            raise SystemExit(130) from None
    parallel.any_rank(False)  # all have written
    if parallel.is_main():
        join_parts(out)


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


# ------------------------------------------------------------------------------------------------
# what is there already


def describe(
    model: Transformer,
    prompts: Sequence[list[int]],
    drawing: Drawing,
    reference: Transformer | None,
) -> dict[str, Any]:
    """All that the completions depend on, as JSON."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt).to_bytes(8, "little"))
        digest.update(np.asarray(prompt, dtype=np.int64).tobytes())
    weights = {"weights": hash_weights(model, adapters=True)}
    if reference is not None:
        weights["reference_weights"] = hash_weights(reference)
    settings = asdict(drawing) | weights | {"prompts": digest.hexdigest()}
    return json.loads(json.dumps(settings))


def settings_file(out: Path) -> Path:
    return out.with_name(out.name + ".settings.json")


def part_file(out: Path, rank: int | None = None) -> Path:
    """Where a rank writes: the file itself where there is one rank."""
    if rank is None and parallel.world_size() == 1:
        return out
    return out.with_name(f"{out.name}.rank-{parallel.rank() if rank is None else rank}")


def take_up(out: Path, settings: Mapping[str, Any], prompts: int) -> set[int]:
    """The prompts whose rows are there already, on every rank the same."""
    done: list[int] = []
    if parallel.is_main():
        if out.exists() or settings_file(out).exists():
            check_settings(out, settings)
            done = join_parts(out)
            parallel.note(f"{out}: {len(done)} of {prompts} prompts are there already")
        write_text(settings_file(out), json.dumps(settings, indent=2) + "\n")
    return set(parallel.gather_json(done)[0])


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """ValueError, naming what differs, for a file whose completions were drawn otherwise."""
    file = settings_file(out)
    if not file.exists():
        raise ValueError(f"{out} is there already, without {file.name}; pass another file")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(f"{file}: expected JSON, got something else; pass another file for {out}")
    names = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if names:
        changes = "; ".join(f"{k} {before.get(k)!r}, now {settings.get(k)!r}" for k in names)
        raise ValueError(
            f"{out} holds completions that were drawn otherwise ({changes}); pass another file, "
            "or what was passed then"
        )


def join_parts(out: Path) -> list[int]:
    """Bring the rows of all ranks into one file, in the order of the prompts; out: their indices.

    A row that a kill has cut short is left out.
    """
    parts = sorted(out.parent.glob(f"{out.name}.rank-*"))
    rows: dict[int, str] = {}
    for part in [out, *parts]:
        if not part.exists():
            continue
        with part.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    index, row = read_row(line, f"{part}:{number}")
                    rows[index] = row
    write_text(out, "".join(rows[index] for index in sorted(rows)))
    for part in parts:
        part.unlink()
    return sorted(rows)


def read_row(line: bytes, where: str) -> tuple[int, str]:
    """(index, the line as a text) of a row."""
    try:
        text = line.decode()
        return int(json.loads(text)["index"]), text
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: not a row of a samples file; mend or remove it") from None
