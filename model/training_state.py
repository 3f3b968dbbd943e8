"""What a run needs to go on: trained parameters, optimiser state and the step.

`checkpoints/step-N/` holds trained.safetensors, optimizer.safetensors and state.json. The order of
the data is a pure function of the step, so no sampler state exists. A folder is written under
another name and renamed when it is whole.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoint import read_json, read_tensors, write_tensors


def save_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, config: dict
) -> Path:
    """Write checkpoints/step-N of a run folder after `step` optimiser steps; returns its path."""
    target = folder / "checkpoints" / f"step-{step:06d}"
    partial = target.with_name(target.name + ".partial")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir(parents=True)
    names = trained_parameters(model)
    write_tensors(dict(names), partial / "trained.safetensors")
    state = {
        f"{name}/{key}": value if value.dim() else value.reshape(1)
        for name, parameter in names.items()
        for key, value in optimizer.state[parameter].items()
    }
    write_tensors(state, partial / "optimizer.safetensors")
    fields = {"step": step, "config": config}
    (partial / "state.json").write_text(json.dumps(fields, indent=2) + "\n")
    partial.rename(target)
    return target


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: dict
) -> int:
    """Restore the newest checkpoint of a run folder; returns the number of steps already done.

    Raises FileNotFoundError where there is none, ValueError where the run's configuration differs
    or the files do not fit the model.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-??????"))
    if not checkpoints:
        raise FileNotFoundError(
            f"--resume expects a checkpoint in {folder}/checkpoints; none there"
        )
    newest = checkpoints[-1]
    state = read_json(newest / "state.json")
    refuse_changes(newest, state["config"], config)
    names, found = trained_parameters(model), set()
    for name, tensor in read_tensors(newest / "trained.safetensors", None, "cpu"):
        if name not in names or names[name].shape != tensor.shape:
            raise ValueError(f"{newest}: trained tensor {name} does not fit the model")
        names[name].data.copy_(tensor)
        found.add(name)
    if found != names.keys():
        raise ValueError(f"{newest}: no trained tensor {sorted(names.keys() - found)[0]}")
    for name, tensor in read_tensors(newest / "optimizer.safetensors", None, "cpu"):
        parameter, _, key = name.rpartition("/")
        if parameter not in names:
            raise ValueError(f"{newest}: optimiser state of {parameter} does not fit the model")
        value = tensor.reshape(()) if key == "step" else tensor
        optimizer.state[names[parameter]][key] = value.to(names[parameter].device)  # fused: all
    return state["step"]


def refuse_changes(where: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError naming each field of the configuration that is not what the run began with."""
    free = ("resume", "out_dir", "save_every", "eval_every", "sample_prompts", "device",
            "micro_batch_tokens", "activation_checkpointing", "keep_every", "head_kernel",
            "head_workspace_mib", "compile")  # fmt: skip
    changed = [
        f"--{name} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if name not in free and json.dumps(then.get(name)) != json.dumps(now.get(name))
    ]
    if changed:
        raise ValueError(f"{where} belongs to another configuration: {'; '.join(changed)}")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
