"""The steps of one variant of `eval.speed train`, in a process of its own with fresh memory.

    python -m eval.speed_step --variant ours --model DIR --pairs pairs.json --out result.json

Started by eval/speed_train.py. The step is that of train.py (reference, policy, DPO, backward,
clipping, AdamW, a fresh LoRA adapter on every linear layer) on another layout of the same pairs;
trl's is its DPOTrainer's, which is given the same token ids and the same adapter.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.packing import PairBatch, join, pack_pairs
from data.pairs import TokenPair
from eval.speed import begin_peak, matrix_rate, peak_bytes, pin_threads, seconds_of
from eval.speed_logps import bare_products, head_flop
from eval.speed_work import LAYOUTS, Layout
from model.checkpoint import DTYPES, init_model, load_model
from model.config import parse_config
from model.logps import WORKSPACE_BYTES, chunks
from model.lora import add_lora
from model.objective import objective_loss
from model.reference import reference_logps
from model.run import run_main
from model.transformer import Transformer

MAX_GRAD_NORM = 1.0
REPLAYS = 3
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}  # first factor


@dataclass(frozen=True)
class SpeedStepConfig:
    variant: str = "ours"  # one of those that eval/speed_train.py lists
    model: str = "data/tiny"  # folder of a checkpoint
    init: str | None = None  # config.json: random weights instead of --model
    pairs: str = "pairs.json"  # token ids, batch_size pairs for each step
    adapter: str | None = None  # trl: folder of the fresh adapter that ours starts from
    batch_size: int = 4  # pairs per step
    beta: float = 0.1  # of DPO
    learning_rate: float = 1e-4  # constant
    lora_rank: int = 16  # R
    lora_alpha: float = 16.0  # the adapter's product is scaled by lora_alpha / lora_rank
    activation_checkpointing: bool = False  # ours: recompute each block in the backward pass
    dtype: str = "float32"  # of the frozen weights and the activations
    device: str = "cpu"  # cpu, cuda, cuda:1, ...
    threads: int | None = None  # of the products; none: one for each core
    seed: int = 0  # of the adapter
    out: str = "result.json"  # file for the numbers


def main() -> None:
    config = parse_config(SpeedStepConfig)
    Path(config.out).write_text(json.dumps(run_variant(config)) + "\n")


def run_variant(config: SpeedStepConfig) -> dict[str, Any]:
    """seconds and losses of every step, memory, and what the device can do."""
    pin_threads(config.threads)
    steps = group(read_token_pairs(config.pairs), config.batch_size)
    if config.variant.startswith("trl"):
        from eval.speed_trl import run_trl  # needs packages that ours does without

        result = run_trl(config, steps)
    else:
        result = run_ours(config, steps)
    return result | {"matrix_rate": matrix_rate(DTYPES[config.dtype], config.device)}


def group(pairs: list[TokenPair], size: int) -> list[list[TokenPair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def write_token_pairs(pairs: list[TokenPair], path: Path) -> None:
    rows = [[p.prompt_ids.tolist(), p.chosen_ids.tolist(), p.rejected_ids.tolist()] for p in pairs]
    path.write_text(json.dumps(rows) + "\n")


def read_token_pairs(path: str | Path) -> list[TokenPair]:
    rows = json.loads(Path(path).read_text())
    arrays = ([np.array(ids, dtype=np.int32) for ids in row] for row in rows)
    return [TokenPair(*row, f"{path}:{i}") for i, row in enumerate(arrays)]


# ------------------------------------------------------------------------------------------------
# layouts: batches that the same forward takes


def lay_out(pairs: list[TokenPair], layout: Layout) -> PairBatch:
    """The pairs of a step in one packed row, as the layout says."""
    batch = pack_pairs(pairs, list(range(len(pairs)))) if layout.share else unshared(pairs, layout)
    return meet_whole_head(batch) if layout.whole_head else batch


def unshared(pairs: list[TokenPair], layout: Layout) -> PairBatch:
    """Each completion behind its own copy of the prompt; padded on the right if asked for.

    A padded row is a segment of its own: what stands behind a completion is computed, and seen by
    no token of it.
    """
    sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs]
    sequences += [(p.prompt_ids, p.rejected_ids) for p in pairs]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids, positions, segments, predictors, start = [], [], [], [], 0
    for prompt, completion in sequences:
        P, C = len(prompt), len(completion)
        rows = longest if layout.pad else P + C
        ids += [prompt, completion, np.zeros(rows - P - C, dtype=np.int32)]
        positions.append(np.arange(rows))
        segments.append((start, start + rows, start, start))
        predictors.append(np.arange(start + P - 1, start + P + C - 1))
        start += rows
    lengths = [len(completion) for _, completion in sequences]
    return PairBatch(
        input_ids=join(ids),
        positions=join(positions),
        segments=segments,
        predictors=join(predictors),
        targets=join([completion for _, completion in sequences]),
        sequence_id=join([np.full(n, i) for i, n in enumerate(lengths)]),
        lengths=torch.tensor(lengths, dtype=torch.float32),
        pair_ids=list(range(len(pairs))),
    )


def meet_whole_head(batch: PairBatch) -> PairBatch:
    """Every row meets the head; those that predict no completion count for a sequence too many."""
    idle = torch.ones(len(batch.input_ids), dtype=torch.bool)
    idle[batch.predictors] = False
    others = idle.nonzero().flatten()
    waste = len(batch.lengths)
    return replace(
        batch,
        predictors=torch.cat([batch.predictors, others]),
        targets=torch.cat([batch.targets, torch.zeros_like(others)]),
        sequence_id=torch.cat([batch.sequence_id, torch.full_like(others, waste)]),
        lengths=torch.cat([batch.lengths, torch.zeros(1)]),
    )


# ------------------------------------------------------------------------------------------------
# our step


def run_ours(config: SpeedStepConfig, steps: list[list[TokenPair]]) -> dict[str, Any]:
    device, dtype, layout = config.device, DTYPES[config.dtype], LAYOUTS[config.variant]
    model = build_policy(config, dtype, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0, fused=True)
    cached = [None] * len(steps)
    if layout.cached:
        cached = [reference_logps(model, lay_out(s, layout).to(device)) for s in steps]

    def step(pairs: list[TokenPair], reference: Tensor | None) -> Tensor:
        batch = lay_out(pairs, layout).to(device)
        return training_step(model, optimizer, trained, batch, reference, config.beta)

    losses: list[Tensor] = []
    if config.variant == "compiled":
        compile_ahead(model, [lay_out(s, layout).to(device) for s in steps])
    sum(p.detach().sum() for p in model.parameters())  # mapped files are read now, not in a step
    begin, seconds, cpu_seconds = begin_peak(device), [], []
    for pairs, reference in zip(steps, cached, strict=True):
        run = lambda p=pairs, r=reference: losses.append(step(p, r))  # noqa: E731
        started = time.process_time()
        seconds.append(seconds_of(run, device))
        cpu_seconds.append(time.process_time() - started)
    peak = peak_bytes(device)

    with ProductRecorder() as recorder:
        step(steps[-1], cached[-1])
    head_rows = len(lay_out(steps[-1], layout).predictors)
    bare = replay(recorder.products, model, head_rows, layout.cached, dtype, device)
    result = {"seconds": seconds, "cpu_seconds": cpu_seconds, "bare": bare}
    result["losses"] = torch.stack(losses).tolist()
    memory = memory_parts(model, trained, head_rows, dtype, begin, peak)
    return result | {"begin_bytes": begin, "peak_bytes": peak, "memory": memory}


def build_policy(config: SpeedStepConfig, dtype: torch.dtype, device: str) -> Transformer:
    """The frozen base with the fresh adapter that every variant starts from."""
    if config.init is not None:
        model = init_model(config.init, dtype, device, config.seed)
    else:
        model = load_model(config.model, dtype, device)
    add_lora(model, config.lora_rank, config.lora_alpha, seed=config.seed)
    model.checkpoint_activations = config.activation_checkpointing
    return model.train()


def compile_ahead(model: Transformer, batches: list[PairBatch]) -> None:
    """The blocks through torch.compile, for every shape that the steps will have."""
    model.compile_blocks()
    for batch in batches:
        reference_logps(model, batch)
        model(batch=batch).logps.sum().backward()
        model.zero_grad(set_to_none=True)


def training_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    trained: list[Tensor],
    batch: PairBatch,
    reference: Tensor | None,
    beta: float,
) -> Tensor:
    """One optimiser step of train.py's; its loss, before the update."""
    sequences = 2 * len(batch)  # the batch may hold one more, of rows that no loss needs
    if reference is None:
        reference = reference_logps(model, batch)
    logps = batch.sum_by_sequence(model(batch=batch).logps)[:sequences]  # (2B,)
    lengths = batch.lengths[:sequences]
    losses, _ = objective_loss("dpo", logps, reference[:sequences], lengths, beta, beta)
    loss = losses.mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def memory_parts(
    model: Transformer,
    trained: list[Tensor],
    head_rows: int,
    dtype: torch.dtype,
    begin: int | None,
    peak: int | None,
) -> dict[str, int | None]:
    """Bytes by part at the peak: weights, trained state, head workspace, and the rest.

    The trained state is the adapters, their gradients and Adam's two moments. Beside the
    activations, the rest has what the allocator keeps.
    """
    weights = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    adapters = sum(p.nbytes for p in trained)
    head = model.lm_head.weight
    _, logits = next(chunks(head.new_zeros(head_rows, head.shape[1]).to(dtype), head.to(dtype),
                            WORKSPACE_BYTES))  # fmt: skip
    workspace = logits.untyped_storage().nbytes()
    known = {"weights": weights, "trained_state": 4 * adapters, "head_workspace": workspace}
    if begin is None or peak is None:
        return known
    program = begin - weights - adapters
    return known | {"program": program, "activations": peak - program - sum(known.values())}


# ------------------------------------------------------------------------------------------------
# the same products bare

Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # size, stride, dtype


class ProductRecorder(TorchDispatchMode):
    """The operands of every matrix product that runs inside; the head's operator hides its own."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Operand, Operand]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            a, b = args[PRODUCTS[name] : PRODUCTS[name] + 2]
            self.products.append(tuple((tuple(x.shape), x.stride(), x.dtype) for x in (a, b)))
        return function(*args, **(kwargs or {}))


def replay(
    products: list[tuple[Operand, Operand]],
    model: Transformer,
    head_rows: int,
    cached: bool,
    dtype: torch.dtype,
    device: str,
) -> dict[str, float]:
    """seconds (median) and FLOP of the recorded products and the head's, on tensors made before.

    One tensor stands for all operands of its shape, so that the bare products have warmer caches
    than the step: a bound that flatters the bound.
    """
    made: dict[Operand, Tensor] = {}
    calls = []
    flop = 0
    for a, b in products:
        for size, stride, kind in (a, b):
            span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
            if (size, stride, kind) not in made:
                values = torch.randn(span, device=device).to(kind)
                made[size, stride, kind] = values.as_strided(size, stride)
        shape = (*a[0][:-1], b[0][-1])
        out = made.setdefault((shape, (), a[2]), torch.empty(shape, dtype=a[2], device=device))
        calls.append((torch.mm if len(shape) == 2 else torch.bmm, made[a], made[b], out))
        flop += 2 * int(np.prod(shape)) * a[0][-1]
    head = model.lm_head.weight.detach().to(dtype)
    hidden = torch.randn(head_rows, head.shape[1], device=device).to(dtype)
    flop += head_flop(*hidden.shape, len(head), 2 if cached else 3)

    def run() -> None:
        for product, a, b, out in calls:
            product(a, b, out=out)
        bare_products(hidden, head, True)
        if not cached:
            bare_products(hidden, head, False)

    run()
    seconds = [seconds_of(run, device) for _ in range(REPLAYS)]
    return {"seconds": float(np.median(seconds)), "flop": flop}


if __name__ == "__main__":
    run_main(main)
