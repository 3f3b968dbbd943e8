"""The policy before its first step: its shape, its numbers, what of it is trained.

What is trained is float32; what is frozen has the load dtype. The model takes shape on the meta
device, without memory; then each rank makes room for its share, and fills it.
"""

from pathlib import Path

import torch

from model.adapter import fill_head, read_scaled
from model.checkpoint import allocate, empty_model, init_weights, read_weights
from model.lora import TARGETS, add_lora, initial_adapters
from model.parallel import fill, shard
from model.transformer import Transformer


def shape_policy(
    path: str | Path,
    dtype: torch.dtype,
    lora_rank: int,
    lora_alpha: float,
    lora_targets: tuple[str, ...] = TARGETS,
    lora_dropout: float = 0.0,
    reward: bool = False,
) -> Transformer:
    """A policy on the meta device, with all that is set but its numbers.

    path: as of `empty_model`; dtype: of the frozen weights and the activations; lora_rank: 0 trains
    every weight; reward: a reward model, whose head is trained beside the adapters.
    """
    full = lora_rank == 0
    model = empty_model(path, torch.float32 if full else dtype, reward)
    if full:
        model.requires_grad_(True)
        model.compute_dtype = dtype
        return model
    add_lora(model, lora_rank, lora_alpha, lora_targets, lora_dropout)
    if reward:
        model.score.requires_grad_(True)
    return model


def check_merge(adapter: str | Path | None, dtype: torch.dtype) -> None:
    """ValueError for a dtype that would round away an adapter that is to be merged."""
    if adapter and dtype != torch.float32:
        raise ValueError(f"--adapter needs --dtype float32 to be merged exactly, got {dtype}")


def fill_policy(
    model: Transformer,
    folder: str | Path | None,
    adapter: str | Path | None,
    seed: int,
    dtype: torch.dtype,
    device: str,
    replicas: int = 1,
    cpu_offload: bool = False,
) -> None:
    """Share a shaped policy among the ranks and give it its numbers.

    folder: of the weights; None: random ones, drawn by the seed. adapter: folder of an adapter that
    is merged into them; the policy's own begins at zero. Raises ValueError for a dtype that would
    round the merged adapter away.
    """
    check_merge(adapter, dtype)
    merged = read_scaled(model, adapter) if adapter else {}
    shard(model, device, dtype, replicas, cpu_offload)
    allocate(model, "cpu" if cpu_offload else device)
    if folder is None:
        init_weights(model, seed)
    else:
        read_weights(model, folder, merged)
        if adapter:
            fill_head(model, adapter)
    for parameter, values in initial_adapters(model, seed):
        fill(parameter, values)
