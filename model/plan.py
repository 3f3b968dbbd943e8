"""What one rank of a run will hold, send and compute, before there is a device or a weight.

The sizes of shards and collectives are arithmetic. What a micro-step holds is not: its forward and
backward run on the meta device, where tensors have shapes and no memory, and each storage counts
from the operation that returns it until nothing refers to it. What FSDP2 gathers and reduces is
entered at the moments at which it does so. The parts of a plan are those of one moment, the one at
which they are most together.

Counted are tensors: not what an allocator rounds up or cannot reuse, nor the CUDA context, the
buffers of NCCL and the workspace of cuBLAS. A plan is for blocks that are not compiled.
"""

import copy
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.attention import Segment, attend, attend_sequences, plan_sequences, varlen_fits
from model.logps import CPU_CACHE_BYTES, CPU_CHUNK_ROWS, TokenStats, chunks
from model.lora import adapters_disabled
from model.transformer import PackedBatch, Transformer

PARTS = {
    "weights": "frozen weights, one shard",
    "trained": "trained weights and AdamW's moments, one shard",
    "gradients": "gradients, one shard and what is not yet reduced",
    "gathered": "gathered parameters and all-gather buffers",
    "activations": "activations",
    "workspace": "inside operators: logits, attention's backward",
}
TRAFFIC = {
    "all_gather": "sent by all-gather",
    "reduce_scatter": "sent by reduce-scatter",
    "all_reduce": "sent by all-reduce",
    "host": "from and to the host's memory",
}
FLOAT32 = torch.float32.itemsize  # of trained weights, moments and reduced gradients
HALF = (torch.bfloat16, torch.float16)
PRODUCTS = {  # operators that multiply two matrices, and where these begin
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.addmm_.default: 1,
}


@dataclass(frozen=True)
class Plan:
    """Of the rank that holds and does most."""

    world_size: int
    replicas: int
    peak: dict[str, int]  # bytes on the device by part, at the moment when they are most
    host: int  # bytes of shards in the host's memory
    traffic: dict[str, int]  # bytes per step by kind; what is sent to ranks also comes from ranks
    flop: dict[str, int]  # of a step's matrix products by part; what is made twice counts twice


def plan_run(
    model: Transformer,
    batch: PackedBatch,
    micro_steps: int,
    world_size: int = 1,
    replicas: int = 1,
    cpu_offload: bool = False,
    online_reference: bool = False,
    device_type: str = "cuda",
) -> Plan:
    """A step of `micro_steps` micro-steps on each rank, all like `batch`, the heaviest one.

    model: on the meta device, as it will be trained; it is left as it is. Parameters are sharded
    over world_size / replicas ranks; a rank that is alone shards nothing.
    """
    assert model.embed_tokens.weight.is_meta, "a plan takes no weights"
    assert world_size % replicas == 0, (world_size, replicas)
    assert world_size > 1 or not cpu_offload, "one rank alone offloads nothing"
    model, shards, later = copy.deepcopy(model), world_size // replicas, micro_steps > 1
    frozen, trained = 0, 0  # bytes of a shard
    for parameter in model.parameters():
        elements = shard_elements(parameter, shards)
        frozen += 0 if parameter.requires_grad else elements * parameter.element_size()
        trained += elements * FLOAT32 if parameter.requires_grad else 0
    ledger, sharding = Ledger(), None
    if not cpu_offload:
        ledger.add("weights", frozen)
        ledger.add("trained", 3 * trained)  # a weight and two moments
        ledger.add("gradients", trained if later else 0)  # of the micro-steps before
    if world_size > 1:
        sharding = Sharding(model, ledger, shards, replicas, cpu_offload, later)
    elif later:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    fields = ("input_ids", "positions", "predictors", "targets", "last_rows")
    tensors = {name: getattr(batch, name) for name in fields}
    data = SimpleNamespace(**{name: x.to("meta") for name, x in tensors.items() if x is not None})
    tracker = Tracker(model, data, ledger, device_type)
    data.segments = stand_in_for_attention(model, batch.segments, tracker)
    with tracker:
        if online_reference:
            with torch.no_grad(), adapters_disabled(model):
                model(batch=data)
        loss_input(model(batch=data)).sum().backward()
    if sharding:
        sharding.end()
    traffic = sharding.traffic if sharding else dict.fromkeys(TRAFFIC, 0)
    return Plan(
        world_size,
        replicas,
        ledger.peak,
        frozen + 4 * trained if cpu_offload else 0,
        {kind: micro_steps * size for kind, size in traffic.items()},
        {part: micro_steps * count for part, count in tracker.flop.items()},
    )


def render(plan: Plan) -> str:
    """A plan as a table; a GB is 1e9 bytes."""
    shards = plan.world_size // plan.replicas
    rows = [(PARTS[part], size / 1e9, "GB") for part, size in plan.peak.items()]
    rows.append(("peak on one rank", sum(plan.peak.values()) / 1e9, "GB"))
    rows += [("in the host's memory", plan.host / 1e9, "GB")] if plan.host else []
    rows += [(TRAFFIC[k], size / 1e9, "GB per step") for k, size in plan.traffic.items() if size]
    rows += [(f"products: {p}", count / 1e12, "TFLOP per step") for p, count in plan.flop.items()]
    title = f"one of {plan.world_size} ranks: {shards} shards, {plan.replicas} replicas"
    return "\n".join([title, *(f"  {name:<50}{value:>12.3f} {unit}" for name, value, unit in rows)])


def shard_elements(parameter: Tensor, shards: int) -> int:
    """Elements of the first shard, the largest; FSDP2 pads the others to it."""
    return -(-len(parameter) // shards) * parameter[0].numel()


def loss_input(out: TokenStats | Tensor) -> Tensor:
    """What the loss is made of: log-probabilities, or a reward model's rewards."""
    return out if isinstance(out, Tensor) else out.logps


# ------------------------------------------------------------------------------------------------
# what is held


class Ledger:
    """Bytes by part: now, and at the moment when they were most together."""

    def __init__(self) -> None:
        self.now = dict.fromkeys(PARTS, 0)
        self.peak = dict(self.now)
        self.held: dict[Hashable, tuple[str, int]] = {}

    def add(self, part: str, size: int) -> None:
        self.now[part] += size
        if sum(self.now.values()) > sum(self.peak.values()):
            self.peak = dict(self.now)

    def hold(self, key: Hashable, part: str, size: int) -> None:
        self.held[key] = part, size
        self.add(part, size)

    def release(self, key: Hashable) -> None:
        """Nothing, where nothing is held under the key."""
        if key in self.held:
            part, size = self.held.pop(key)
            self.add(part, -size)


class Tracker(TorchDispatchMode):
    """Enters the storages that operations return, as long as something refers to them."""

    def __init__(self, model: Transformer, batch: Any, ledger: Ledger, device_type: str) -> None:
        super().__init__()
        self.ledger, self.device_type = ledger, device_type
        self.flop = dict.fromkeys(("linear", "attention", "head"), 0)
        # under which key each storage is held; what is there before is not entered
        self.keys: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.enter_gradient)
        gradients = (parameter.grad for parameter in model.parameters())
        for tensor in (*model.parameters(), *gradients, *vars(batch).values()):
            if tensor is not None:
                self.keys[tensor.untyped_storage()] = None

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.keys:
                storage = tensor.untyped_storage()
                self.keys[storage] = key = object()
                self.ledger.hold(key, "activations", storage.nbytes())
                weakref.finalize(storage, self.ledger.release, key)
        if func in PRODUCTS:
            first, second = args[PRODUCTS[func] :][:2]
            self.flop["linear"] += 2 * first.numel() * second.shape[1]
        self.look_inside(func.name(), args)
        return out

    def enter_gradient(self, parameter: nn.Parameter) -> None:
        """What was an activation is a gradient from here on."""
        key = self.keys[parameter.grad.untyped_storage()]
        if key is not None:
            self.ledger.release(key)
            self.ledger.hold(key, "gradients", parameter.grad.nbytes)

    def look_inside(self, name: str, args: tuple) -> None:
        """The head's products, and the most that an operator holds beside what it returns."""
        size = 0
        if name == "preference::token_logps":
            hidden, weight, _, with_gradient, *options = args
            self.flop["head"] += 2 * len(hidden) * weight.numel() * (1 + with_gradient)
            size = head_bytes(hidden, weight, False, *options, self.device_type)
        elif name == "preference::token_logps_backward":
            hidden, weight, _, _, _, with_weight, *options = args
            self.flop["head"] += 2 * len(hidden) * weight.numel() * (2 + with_weight)
            size = head_bytes(hidden, weight, with_weight, *options, self.device_type)
        elif name == "torch_attn::_varlen_attn_backward":
            _, query, key, _, _, _, query_starts, *_ = args
            T, H, E = query.shape  # flash attention 2 sums the query's gradient in float32, padded,
            rows = T + 128 * (len(query_starts) - 1)  # and has one more number for each row
            size = rows * H * (-(-E // 32) * 32 + 1) * FLOAT32
            if key.shape[1] < H:  # gradients of keys and values for each query head
                size += 2 * len(key) * H * E * key.element_size()
        self.ledger.add("workspace", size)
        self.ledger.add("workspace", -size)


def head_bytes(
    hidden: Tensor,
    weight: Tensor,
    with_weight: bool,
    workspace_bytes: int,
    kernel: str,
    device_type: str,
) -> int:
    """What the head's operators hold inside: a chunk's logits, and what is made from them."""
    (C, D), V, cpu = hidden.shape, len(weight), device_type == "cpu"
    dtype = torch.float32 if device_type == "cuda" and hidden.dtype in HALF else hidden.dtype
    thin = hidden.new_empty(min(C, CPU_CHUNK_ROWS) if cpu else C, 0, dtype=dtype)
    _, logits = next(chunks(thin, weight.new_empty(V, 0, dtype=dtype), workspace_bytes))
    size, made = logits.untyped_storage().nbytes(), 0
    if weight.dtype != hidden.dtype:
        size += V * D * hidden.element_size()
    if cpu or kernel == "torch":  # exponentials; and where these are wider, logits and gradient
        rows = max(1, min(len(logits), CPU_CACHE_BYTES // (V * FLOAT32))) if cpu else len(logits)
        made = rows * V * FLOAT32 * (3 if dtype in HALF else 1)
    if with_weight:  # a float32 sum, which may be what is returned, and what is added to it
        size += V * D * (FLOAT32 - weight.element_size())
        made = max(made, V * D * dtype.itemsize)
    return size + made


# ------------------------------------------------------------------------------------------------
# attention


def stand_in_for_attention(
    model: Transformer, segments: list[Segment], tracker: Tracker
) -> list[Segment]:
    """Attention as it runs on the tracker's device; the segments that the model is to be given.

    A query that sees a key takes 4 E operations in each head going forward, and 10 E going back,
    where their score is made again.
    """
    config = model.config
    seen = seen_keys(segments, config.sliding_window) * config.num_attention_heads * config.head_dim
    tracker.flop["attention"] += 10 * seen * len(model.layers)
    on_cuda = tracker.device_type == "cuda"
    varlen = on_cuda and varlen_fits(model.dtype, config.head_dim)
    sequences = plan_sequences(segments, torch.device("meta")) if varlen else None

    def attend_on_device(
        query: Tensor, key: Tensor, value: Tensor, plan: Any, window: int | None
    ) -> Tensor:
        tracker.flop["attention"] += 4 * seen
        if sequences is not None:
            return attend_sequences(query, key, value, sequences, window)
        with FusedAttention():
            return attend(query, key, value, plan, window)

    for layer in model.layers:
        layer.self_attn.attend = attend_on_device
    return [(0, segments[-1][1], 0, 0)] if varlen else segments  # one: its own plan is not read


def seen_keys(segments: list[Segment], window: int | None) -> int:
    """Pairs of a query and a key that it sees."""
    total = 0
    for start, stop, prefix_start, prefix_stop in segments:
        prefix = prefix_stop - prefix_start
        for seen in range(prefix + 1, prefix + stop - start + 1):
            total += seen if window is None else min(seen, window)
    return total


class FusedAttention(TorchFunctionMode):
    """The CPU's fused kernel on the meta device, which would else keep (T, T) matrices."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        mask = kwargs["attn_mask"]
        mask = None if mask is None else mask.to(args[0].dtype)  # it becomes an addend
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(*args, 0.0, kwargs["is_causal"], attn_mask=mask)[0]


# ------------------------------------------------------------------------------------------------
# FSDP2


class Group:
    """Parameters that are gathered together, and bytes of their shard on one rank."""

    def __init__(
        self, parameters: list[nn.Parameter], dtype: torch.dtype, shards: int, cpu_offload: bool
    ) -> None:
        sizes = [(p, shard_elements(p, shards)) for p in parameters]
        self.trained = [p for p in parameters if p.requires_grad]
        self.stored = sum(n * p.element_size() for p, n in sizes)
        self.sent = sum(n * dtype.itemsize for _, n in sizes)
        self.staged = sum(n * dtype.itemsize for p, n in sizes if cpu_offload or p.dtype != dtype)
        self.gradients = sum(n * FLOAT32 for p, n in sizes if p.requires_grad)


class Sharding:
    """The collectives of one micro-step, entered as FSDP2 makes them.

    An all-gather fills a buffer, from which the parameters are copied out. In the forward a buffer
    goes when the next group's is full, and a block's parameters go when it ends. In the backward a
    block's buffer goes when it is copied out, and that of the block before is filled at once. Where
    a block ends, its whole gradients are copied to the reduce-scatter's float32 input, which goes
    when the next block ends. The root stays gathered and ends last; or before the first block,
    which does not know its end where its input has no gradient.
    """

    def __init__(
        self,
        model: Transformer,
        ledger: Ledger,
        shards: int,
        replicas: int,
        cpu_offload: bool,
        later: bool,
    ) -> None:
        self.ledger, self.shards, self.replicas = ledger, shards, replicas
        self.cpu_offload, self.later = cpu_offload, later
        self.traffic = dict.fromkeys(TRAFFIC, 0)
        self.root, self.backward = len(model.layers), False
        self.last: int | None = None  # the group whose buffer the forward has filled last
        blocks = [list(layer.parameters()) for layer in model.layers]
        inside = {parameter for block in blocks for parameter in block}
        blocks.append([p for p in model.parameters() if p not in inside])
        dtype = model.dtype
        self.groups = [Group(block, dtype, shards, cpu_offload) for block in blocks]
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # as it is gathered
        for i, module in enumerate([*model.layers, model]):
            module.register_forward_pre_hook(partial(self.begin_forward, i))
            module.register_forward_hook(partial(self.end_forward, i))

    def fill_buffer(self, i: int) -> None:
        group = self.groups[i]
        self.ledger.add("gathered", group.staged)  # cast, or copied from the host
        if self.shards > 1:
            self.ledger.hold(("buffer", i), "gathered", group.sent * self.shards)
        self.ledger.add("gathered", -group.staged)
        self.traffic["all_gather"] += group.sent * (self.shards - 1)
        self.traffic["host"] += group.stored if self.cpu_offload else 0

    def copy_out(self, i: int) -> None:
        self.ledger.hold(("gathered", i), "gathered", self.groups[i].sent * self.shards)

    def begin_forward(self, i: int, module: nn.Module, args: tuple) -> None:
        if self.backward or ("gathered", i) in self.ledger.held:
            return  # a block that is recomputed, or the root after the reference's forward
        self.fill_buffer(i)
        self.ledger.release(("buffer", self.last))
        self.last = i
        self.copy_out(i)
        if i == 0 and args[0].requires_grad:
            args[0].register_hook(lambda grad: self.end_backward(0))

    def end_forward(self, i: int, module: nn.Module, args: tuple, out: Any) -> None:
        if self.backward:
            return
        if i == self.root:
            self.ledger.release(("buffer", self.last))
            self.last, out = None, loss_input(out)
        else:
            self.ledger.release(("gathered", i))
        if out.requires_grad:
            out.register_hook(lambda grad: self.begin_backward(i))

    def begin_backward(self, i: int) -> None:
        self.backward = True
        if i < self.root:
            if i + 1 < self.root:
                self.end_backward(i + 1)
            self.copy_out(i)
            self.ledger.release(("buffer", i))
        if i > 0:
            self.fill_buffer(i - 1)

    def end_backward(self, i: int) -> None:
        if ("gathered", i) not in self.ledger.held:
            return
        self.ledger.release(("gathered", i))
        self.ledger.release("reduce-scatter")
        group = self.groups[i]
        if not group.trained:
            return
        self.ledger.hold("reduce-scatter", "gradients", group.gradients * self.shards)
        for parameter in group.trained:
            parameter.grad = None
        self.ledger.add("gradients", group.gradients)
        # added to what is there, or copied to the host; a replica keeps it until its sum is made
        if (self.later or self.cpu_offload) and self.replicas == 1:
            self.ledger.add("gradients", -group.gradients)
        self.traffic["reduce_scatter"] += group.gradients * (self.shards - 1)
        self.traffic["all_reduce"] += 2 * group.gradients * (self.replicas - 1) // self.replicas
        self.traffic["host"] += group.gradients if self.cpu_offload else 0

    def end(self) -> None:
        """After the backward."""
        self.end_backward(self.root)
        self.end_backward(0)
