"""What a run needs to go on: trained parameters, optimiser state and the step.

`checkpoints/step-N/` holds state.json and one file for each shard of the model, with the rows that
it holds of each trained parameter and of its optimiser state: shard-00000-of-00001.safetensors
where nothing is sharded. The order of the data is a pure function of the step, so no sampler state
exists. A folder is written under another name and renamed when it is whole.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import read_json, read_rows, tensor_shapes, write_tensors
from model.parallel import any_rank, is_main, owned, shard_place


def save_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, config: dict
) -> Path:
    """Write checkpoints/step-N of a run folder after `step` optimiser steps; returns its path.

    Every rank has to call: each writes the rows that it holds.
    """
    target = folder / "checkpoints" / f"step-{step:06d}"
    partial = target.with_name(target.name + ".partial")
    if is_main():
        for old in (partial, target):
            if old.exists():
                shutil.rmtree(old)
        partial.mkdir(parents=True)
    any_rank(False)  # nobody writes before the folder is there
    place, places, first_replica = shard_place(model)
    if first_replica:
        tensors = {}
        for name, parameter in trained_parameters(model).items():
            tensors[name] = owned(parameter)[0]
            for key, value in optimizer.state[parameter].items():
                tensors[f"{name}/{key}"] = owned(value)[0] if value.dim() else value.reshape(1)
        write_tensors(tensors, partial / shard_file(place, places))
    any_rank(False)  # all have written
    if is_main():
        fields = {"step": step, "shards": places, "config": config}
        (partial / "state.json").write_text(json.dumps(fields, indent=2) + "\n")
        partial.rename(target)
    return target


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: dict
) -> int:
    """Restore the newest checkpoint of a run folder; returns the number of steps already done.

    Each rank reads the rows that it holds, on any number of ranks. Raises FileNotFoundError where
    there is no checkpoint, ValueError where the run's configuration differs or the files do not
    fit the model.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-??????"))
    if not checkpoints:
        raise FileNotFoundError(
            f"--resume expects a checkpoint in {folder}/checkpoints; none there"
        )
    newest = checkpoints[-1]
    state = read_json(newest / "state.json")
    refuse_changes(newest, state["config"], config)
    files = [newest / shard_file(place, state["shards"]) for place in range(state["shards"])]
    shapes = [tensor_shapes(file) for file in files]
    names = trained_parameters(model)
    if (unknown := {name.rpartition("/")[0] or name for name in shapes[0]} - names.keys()) or (
        unknown := names.keys() - shapes[0].keys()
    ):
        raise ValueError(f"{newest}: trained tensor {sorted(unknown)[0]} does not fit the model")
    for name, parameter in names.items():
        read_shards(files, shapes, name, parameter)
    for name in shapes[0]:
        owner, _, key = name.rpartition("/")
        if not owner:
            continue
        parameter = names[owner]
        if key == "step":
            value = read_rows(files[0], name, slice(None)).reshape(()).to(parameter.device)
        else:
            value = torch.zeros_like(parameter, requires_grad=False)
            read_shards(files, shapes, name, value)
        optimizer.state[parameter][key] = value
    return state["step"]


def read_shards(
    files: list[Path], shapes: list[dict[str, tuple]], name: str, target: Tensor
) -> None:
    """Fill what this rank holds of `target` from the rows that the files hold one after another."""
    local, rows = owned(target)
    heights = [shape[name][0] for shape in shapes]
    if sum(heights) != len(target) or shapes[0][name][1:] != tuple(target.shape[1:]):
        raise ValueError(f"{files[0].parent}: trained tensor {name} does not fit the model")
    begin = 0
    for file, height in zip(files, heights, strict=True):
        start, stop = max(rows.start, begin), min(rows.stop, begin + height)
        if start < stop:
            values = read_rows(file, name, slice(start - begin, stop - begin))
            local[start - rows.start : stop - rows.start] = values
        begin += height


def shard_file(place: int, places: int) -> str:
    return f"shard-{place:05d}-of-{places:05d}.safetensors"


def refuse_changes(where: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError naming each field of the configuration that is not what the run began with."""
    free = ("resume", "out_dir", "save_every", "eval_every", "sample_prompts", "device",
            "micro_batch_tokens", "activation_checkpointing", "keep_every", "head_kernel",
            "head_workspace_mib", "compile", "replicas", "cpu_offload")  # fmt: skip
    changed = [
        f"--{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if name not in free and json.dumps(then.get(name)) != json.dumps(now.get(name))
    ]
    if changed:
        raise ValueError(f"{where} belongs to another configuration: {'; '.join(changed)}")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
