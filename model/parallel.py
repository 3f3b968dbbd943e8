"""Every collective, and all that knows of ranks: FSDP2 under torchrun.

A process that torchrun started is one rank of many; any other is rank 0 of 1, and every function
here is then the identity. The run is the same run on any number of ranks: each rank computes the
losses of its share of a step's pairs, divided by the count over all pairs, and gradients and
metrics are summed.

A sharded parameter is a DTensor that holds a range of its rows on each rank; inside the model's
forward, and only there, it is whole. `owned` and `fill` see the rows, `whole` gathers all.
"""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

store: dist.Store | None = None  # what all ranks can read and write, whatever they are doing
FORGET_EVERY = 1000  # forwards; FSDP2 notes each one until a backward, which sampling never makes

# ------------------------------------------------------------------------------------------------
# ranks


def init_distributed() -> None:
    """Join the other ranks where torchrun started this process; their standard output is closed.

    Rank 0 alone prints; what every rank has to say goes to standard error.
    """
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys()  # some machines set one of the two
    if not started or dist.is_initialized():
        return
    if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    global store
    store, number, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it starts the ranks again: those of before are not to be found
    store = dist.PrefixStore(f"start-{restarts()}", store)
    # a rank may sample for hours while another has no prompt left; one that dies ends the others
    limits = {"store": store, "rank": number, "world_size": size, "timeout": timedelta(days=2)}
    dist.init_process_group(backends(), **limits)
    if rank():
        sys.stdout = open(os.devnull, "w")


def backends() -> str:
    """gloo for tensors of the host and NCCL for those of a GPU; unasked, torch takes NCCL alone."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def end_distributed() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_rank(code: int | None) -> None:
    """End a process that torchrun started, at once; any other goes on.

    Taking the interpreter down can abort on a thread of the process group that is still at work
    ("terminate called without an active exception", torch 2.13, half of all runs on some machines).
    """
    if store is None:
        return
    with suppress(OSError, ValueError):  # whoever read our output may have gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Rank 0 writes the files and talks."""
    return rank() == 0


def note(text: str) -> None:
    """For the reader, not for the pipe."""
    if is_main():
        print(text, file=sys.stderr)


def local_world_size() -> int:
    """Ranks on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this rank on its node."""
    return int(os.environ.get("LOCAL_RANK", 0))


def device_of_rank(device: str) -> str:
    """The GPU of this rank for `cuda`; ValueError where the node has none for it."""
    if not dist.is_initialized() or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise ValueError(f"under torchrun each rank takes a GPU of its own; pass --device cuda, "
                         f"not {device}")  # fmt: skip
    if local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"torchrun started {local_world_size()} processes on a node with "
            f"{torch.cuda.device_count()} GPUs; pass --nproc_per_node gpu, or --device cpu"
        )
    return f"cuda:{local_rank()}"


def says_first(message: str) -> bool:
    """Whether no other rank has said this: what is wrong on all ranks is printed once."""
    if store is None:
        return True
    digest = hashlib.sha256(message.encode(errors="replace")).hexdigest()
    try:
        return store.add(f"said/{digest}", 1) == 1
    except RuntimeError:  # the store has gone with the rank that kept it
        return True


def restarts() -> int:
    """How often torchrun has started this run again, after a rank had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def may_restart() -> bool:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank is not there any more."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


# ------------------------------------------------------------------------------------------------
# collectives: every rank has to call them, in the same order


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, on the device of `values`; in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def max_over_ranks(value: float) -> float:
    largest = torch.tensor(float(value), dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on some rank; nobody goes on before all have asked."""
    return max_over_ranks(flag) > 0


def gather_json(value: Any) -> list[Any]:
    """The values of all ranks, rank by rank, as JSON brings them over."""
    if not dist.is_initialized():
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    longest = int(max_over_ranks(len(text)))
    sent = torch.zeros(longest, dtype=torch.uint8)
    sent[: len(text)] = text
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    return [json.loads(bytes(row.tolist()).rstrip(b"\0")) for row in received]


def same_on_all(settings: Mapping[str, Any]) -> None:
    """ValueError, on every rank, naming what the settings of one rank have otherwise than rank 0's.

    Ranks that were started with other flags, or read other files, would each do their share of
    another thing.
    """
    first, *others = gather_json(dict(settings))
    for number, other in enumerate(others, start=1):
        differ = sorted(k for k in {*first, *other} if first.get(k) != other.get(k))
        if differ:
            said = "; ".join(f"{k} {first.get(k)!r} and {other.get(k)!r}" for k in differ)
            raise ValueError(
                f"ranks 0 and {number} do not run the same: {said}; start every rank with the same "
                "flags, and give them the same files"
            )


def share(count: int) -> range:
    """Which of `count` items this rank takes: every world_size()-th."""
    return range(rank(), count, world_size())


# ------------------------------------------------------------------------------------------------
# sharding


def shard(
    model: nn.Module,
    device: str,
    dtype: torch.dtype,
    replicas: int = 1,
    cpu_offload: bool = False,
) -> None:
    """Share the parameters, gradients and optimiser state of a model among the ranks (FSDP2).

    model: with its blocks in `model.layers`; on the meta device, so that no rank ever holds it
    whole. Each block is gathered when it computes, forward and backward. Embedding, final norm and
    head are one more group, which stays gathered from the forward to the end of the backward: the
    head is gathered once, not for each of its chunks.
    dtype: what is gathered and computed in; gradients are reduced in float32.
    replicas: R > 1 keeps R copies, each shared among world size / R neighbouring ranks: sharding
    inside a node, and across nodes nothing but one sum of the gradients.
    cpu_offload: shards and optimiser state stay in the host's memory.
    """
    if not dist.is_initialized():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    kind = torch.device(device).type
    if cpu_offload and kind == "cpu":
        raise ValueError("--cpu_offload has no meaning with --device cpu")
    if replicas == 1:
        mesh = init_device_mesh(kind, (world_size(),), mesh_dim_names=("shard",))
    else:
        shape = (replicas, world_size() // replicas)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    half = dtype != torch.float32
    options = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype if half else None,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        ),
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    for layer in model.layers:
        fully_shard(layer, reshard_after_forward=True, **options)
    if hasattr(model, "score"):  # a reward model's head computes in float32
        exact = options | {"mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False)}
        fully_shard(model.score, reshard_after_forward=False, **exact)
    fully_shard(model, reshard_after_forward=False, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums: the loss is divided by the count of all ranks
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_sharded(x: Tensor | nn.Module) -> bool:
    if isinstance(x, nn.Module):
        return any(is_sharded(parameter) for parameter in x.parameters())
    return hasattr(x, "device_mesh")  # a DTensor; its import takes most of a second


def owned(parameter: Tensor) -> tuple[Tensor, slice]:
    """What this rank holds of a parameter, and which of its rows these are."""
    if not is_sharded(parameter):
        return parameter.detach(), slice(0, len(parameter))
    mesh = parameter.device_mesh
    local = parameter.detach().to_local()
    size = -(-len(parameter) // mesh.size(-1))  # FSDP2 cuts as torch.chunk does
    start = min(len(parameter), size * mesh.get_local_rank(-1))
    assert len(local) == min(size, len(parameter) - start), (parameter.shape, local.shape, start)
    return local, slice(start, start + len(local))


def fill(parameter: Tensor, values: Tensor) -> None:
    """Write whole values into what this rank holds of a parameter."""
    local, rows = owned(parameter)
    local.copy_(values[rows])


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, without gradient; a collective."""
    x = x.detach()
    return x.full_tensor() if is_sharded(x) else x


def shard_place(model: nn.Module) -> tuple[int, int, bool]:
    """(number of this rank's shard, number of shards, whether it is of the first replica)."""
    meshes = [parameter.device_mesh for parameter in model.parameters() if is_sharded(parameter)]
    if not meshes:
        return 0, 1, True
    assert len(meshes) == len(list(model.parameters())), "call drop_gathered first"
    mesh = meshes[0]
    return mesh.get_local_rank(-1), mesh.size(-1), mesh.ndim == 1 or mesh.get_local_rank(0) == 0


def drop_gathered(model: nn.Module) -> None:
    """Forget what a forward gathered that no backward follows: it hides the shards until then."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()


@contextmanager
def in_lockstep(model: nn.Module) -> Iterator[None]:
    """Inside, ranks may call a sharded model each as often as it likes.

    A sharded model gathers its parameters from all ranks at every call, so a rank that leaves goes
    on calling it with one token that nobody reads, until the last one has left.
    """
    if not is_sharded(model):
        yield
        return
    kind = next(p.device_mesh.device_type for p in model.parameters() if is_sharded(p))
    token = torch.zeros(1, 1, dtype=torch.int64, device=kind)
    # FSDP2 keeps the buffers of its first forward: inference mode's could not be filled outside it
    with torch.inference_mode(False), torch.no_grad():
        model(token)
    drop_gathered(model)
    forwards = itertools.count(1)

    def forget() -> None:
        if next(forwards) % FORGET_EVERY == 0:
            model.reset_iter_state()

    def join(module: nn.Module, args: tuple) -> None:
        any_rank(True)
        forget()

    hook = model.register_forward_pre_hook(join, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    while any_rank(False):
        forget()
        with torch.inference_mode():
            model(token)
    drop_gathered(model)
