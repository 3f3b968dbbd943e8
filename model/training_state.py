"""What a run needs to go on: trained parameters, optimiser state and the step.

    checkpoints/step-000100/
        shard-00000-of-00002.safetensors   of each trained parameter and of its optimiser state,
        shard-00001-of-00002.safetensors   the rows that one shard of the model holds
        state.json                         the step, and what the run depends on
        manifest.json                      size and SHA-256 of each of these files

No state of a generator is kept: the order of the data and all draws are pure functions of the seed,
the step and the rank. A folder is written under another name, flushed to the disk, and renamed when
it is whole; what a resumed run reads is checked against the manifest first.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.files import read_json, read_rows, tensor_shapes, write_tensors
from model.parallel import any_rank, gather_json, is_main, owned, shard_place, share

STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each parameter
LARGEST_WORLD = 2**20  # shards of a model, at most
# what may change between the parts of a run: nothing of it changes a number,
FREE = ("resume", "inexact_resume", "out_dir", "reference_cache", "save_every", "keep",
        "eval_every", "sample_prompts", "activation_checkpointing", "keep_every", "plan",
        "world_size")  # fmt: skip
# and what changes the last bits alone, or where dropout strikes, with --inexact_resume
ROUNDING = ("device", "micro_batch_tokens", "head_kernel", "head_workspace_mib", "compile",
            "replicas", "cpu_offload", "number of ranks", "number of threads",
            "version of torch", "kind of device")  # fmt: skip


# ------------------------------------------------------------------------------------------------
# writing


def save_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    identity: dict[str, Any],
    keep: int = 0,
) -> Path:
    """Write checkpoints/step-N of a run folder after `step` optimiser steps; returns its path.

    Every rank has to call: each writes the rows that it holds. identity: what the run depends on.
    keep: of the earlier checkpoints only so many, this one included, stay (0: all), and those that
    go do so when this one is whole. Raises OSError where it cannot be written; earlier checkpoints
    are untouched then.
    """
    target = folder / "checkpoints" / f"step-{step:06d}"
    partial = target.with_name(target.name + ".partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    any_rank(False)  # nobody writes before the folder is there
    place, places, first_replica = shard_place(model)
    written = {}
    if first_replica:
        tensors = {}
        for name, parameter in trained_parameters(model).items():
            tensors[name] = owned(parameter)[0]
            for key, value in optimizer.state[parameter].items():
                tensors[f"{name}/{key}"] = owned(value)[0] if value.dim() else value.reshape(1)
        file = partial / shard_file(place, places)
        write_tensors(tensors, file)
        flush(file)
        written[file.name] = describe(file)
    files = {name: row for part in gather_json(written) for name, row in part.items()}
    if is_main():
        state = {"step": step, "shards": places, "run": identity}
        (partial / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        flush(partial / "state.json")
        files["state.json"] = describe(partial / "state.json")
        (partial / "manifest.json").write_text(json.dumps({"files": files}, indent=2) + "\n")
        flush(partial / "manifest.json")
        flush(partial)
        shutil.rmtree(target, ignore_errors=True)  # a torn one, that the run has come back to
        partial.rename(target)
        flush(target.parent)
        for unfinished in target.parent.glob("step-*.partial"):  # of a run that was killed
            shutil.rmtree(unfinished)
        older = [other for other in checkpoints(folder) if number(other) < step]
        for old in older[keep - 1 :] if keep else []:  # newer ones are torn: they were skipped
            shutil.rmtree(old)
    return target


def describe(file: Path) -> dict[str, Any]:
    """Size and SHA-256."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**24):
            digest.update(block)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run folder, newest first; which are whole is not looked at."""
    found = [p for p in (folder / "checkpoints").glob("step-*") if p.name[5:].isdecimal()]
    return sorted(found, key=number, reverse=True)


def number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


# ------------------------------------------------------------------------------------------------
# reading


def load_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    inexact: bool = False,
) -> int:
    """Restore the newest whole checkpoint of a run folder; returns the steps already done.

    Each rank reads the rows that it holds, on any number of ranks. identity: what the run depends
    on; with `inexact`, what changes the last bits alone may differ. Newer checkpoints, which are
    torn, are removed. A run that ended before its first checkpoint starts again: 0. Raises
    FileNotFoundError where no checkpoint is whole, ValueError where the run is another one or the
    files do not fit the model.
    """
    newest = newest_whole(folder)
    if newest is None and (folder / "metrics.jsonl").exists() and not checkpoints(folder):
        return 0
    if newest is None:
        raise FileNotFoundError(
            f"--resume expects a whole checkpoint in {folder}/checkpoints; none there"
        )
    step, shards, run = read_state(newest / "state.json")
    if differ := refuse_changes(newest, run, identity, inexact):
        what = "dropout and the last bits" if identity.get("lora_dropout") else "the last bits"
        print(f"resuming inexactly, {what} will differ: {differ}")
    files = [newest / shard_file(place, shards) for place in range(shards)]
    shapes = [tensor_shapes(file) for file in files]
    names = trained_parameters(model)
    expected = {*names, *(f"{name}/{key}" for name in names for key in STATE)}
    if odd := sorted(expected.symmetric_difference(shapes[0])):
        raise ValueError(f"{newest}: trained tensor {odd[0]!r} does not fit the model")
    for name, parameter in names.items():
        read_shards(files, shapes, name, parameter)
        for key in STATE[1:]:
            moment = torch.zeros_like(parameter, requires_grad=False)
            read_shards(files, shapes, f"{name}/{key}", moment)
            optimizer.state[parameter][key] = moment
        count = torch.zeros(1)
        read_shards(files[:1], shapes[:1], f"{name}/{STATE[0]}", count)
        optimizer.state[parameter][STATE[0]] = count[0].to(parameter.device)  # fused: beside it
    if is_main():
        for torn in checkpoints(folder):
            if number(torn) > step:  # named and skipped: --keep counts whole ones alone
                shutil.rmtree(torn)
    return step


def refuse_other_run(folder: Path, identity: dict[str, Any], inexact: bool = False) -> None:
    """ValueError where a run folder is not of this run, before anything is computed for it.

    The newest checkpoint says what the run depends on; where there is none, its config.json does.
    """
    newest, now = next(iter(checkpoints(folder)), None), identity
    try:
        if newest is not None:
            then = read_state(newest / "state.json")[2]
        else:
            flags = read_json(folder / "config.json")
            then, now = ({n: some[n] for n in flags.keys() & now} for some in (flags, now))
    except (OSError, ValueError):  # torn, or no run: said where it is to be read
        return
    refuse_changes(newest or folder, then, now, inexact)


def load_trained(checkpoint: Path, model: nn.Module) -> int:
    """Fill the trained parameters of a model from a whole checkpoint; returns its step."""
    step, shards, _ = read_state(checkpoint / "state.json")
    files = [checkpoint / shard_file(place, shards) for place in range(shards)]
    shapes = [tensor_shapes(file) for file in files]
    for name, parameter in trained_parameters(model).items():
        read_shards(files, shapes, name, parameter)
    return step


def read_state(file: Path) -> tuple[int, int, dict[str, Any]]:
    """The step, the number of shards, and what the run depends on."""
    fields = read_json(file)
    step, shards, run = (fields.get(name) for name in ("step", "shards", "run"))
    whole_numbers = type(step) is int and type(shards) is int and step >= 0 < shards
    if not whole_numbers or not isinstance(run, dict) or shards > LARGEST_WORLD:
        raise ValueError(f"{file}: expected a step, a number of shards, and a run")
    return step, shards, run


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are those of its manifest; what is skipped is named."""
    for torn in sorted((folder / "checkpoints").glob("step-*.partial")):
        print(f"{torn} is skipped: it was not finished")
    for checkpoint in checkpoints(folder):
        reason = what_is_broken(checkpoint)
        if reason is None:
            return checkpoint
        print(f"{checkpoint} is skipped: {reason}")
    return None


def what_is_broken(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole; each rank reads its share of the files."""
    try:
        files = read_json(checkpoint / "manifest.json").get("files")
        entries = sorted(files.items())
        wanted = [(checkpoint / Path(name).name, row["bytes"], row["sha256"])
                  for name, row in entries]  # fmt: skip
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"its manifest is broken: {error}"
    broken = None
    for i in share(len(wanted)):
        file, size, digest = wanted[i]
        try:
            if not file.is_file():
                broken = f"{file.name!r} is missing"
            elif file.stat().st_size != size:
                broken = f"{file.name!r} has {file.stat().st_size} bytes, expected {size!r}"
            elif describe(file)["sha256"] != digest:
                broken = f"{file.name!r} is not what was written"
        except OSError as error:
            broken = f"{file.name!r} cannot be read: {error!r}"
    reasons = [reason for reason in gather_json(broken) if reason is not None]
    if not reasons and "state.json" not in dict(entries):
        return "its manifest has no state.json"
    return reasons[0] if reasons else None


def read_shards(
    files: list[Path], shapes: list[dict[str, tuple]], name: str, target: Tensor
) -> None:
    """Fill what this rank holds of `target` from the rows that the files hold one after another."""
    local, rows = owned(target)
    pieces = [shape.get(name, (0,)) for shape in shapes]
    heights, widths = [piece[0] for piece in pieces], {piece[1:] for piece in pieces}
    if sum(heights) != len(target) or widths != {tuple(target.shape[1:])}:
        raise ValueError(f"{files[0].parent}: trained tensor {name!r} does not fit the model")
    begin = 0
    for file, height in zip(files, heights, strict=True):
        start, stop = max(rows.start, begin), min(rows.stop, begin + height)
        if start < stop:
            values = read_rows(file, name, slice(start - begin, stop - begin))
            local[start - rows.start : stop - rows.start] = values
        begin += height


def shard_file(place: int, places: int) -> str:
    return f"shard-{place:05d}-of-{places:05d}.safetensors"


def refuse_changes(where: Path, then: dict[str, Any], now: dict[str, Any], inexact: bool) -> str:
    """ValueError naming each thing that is not what the run began with and would change it; what
    changes the last bits, where that is allowed."""

    def changed(names: set[str]) -> str:
        pairs = [(name, then.get(name), now.get(name)) for name in sorted(names)]
        differ = [(n, a, b) for n, a, b in pairs if json.dumps(a) != json.dumps(b)]
        flag = {n: n if " " in n else f"--{n}" for n, _, _ in differ}
        return "; ".join(f"{flag[n]} was {a!r}, is {b!r}" for n, a, b in differ)

    rest = {*then, *now} - {*FREE, *ROUNDING}
    if text := changed(rest):
        raise ValueError(f"{where} belongs to another run: {text}")
    text = changed(set(ROUNDING))
    if text and not inexact:
        raise ValueError(
            f"{where} would not go on bit for bit: {text}; set it back, or pass --inexact_resume"
        )
    return text


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
