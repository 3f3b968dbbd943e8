"""Invariants of precision and of gradients, before the first step.

    log-probabilities in the run's dtype -> in float64
    gradient in the run's dtype          -> in float64 -> finite differences of the loss

So the kernels that training runs are held against float64, and float64 against the loss itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.pairs import TokenPair
from eval.audit_terms import Objective
from eval.findings import Finding, error_finding
from eval.invariant_numbers import (
    computing_in,
    losses_of,
    nudged,
    pack,
    packed_logps,
    relative,
)
from model.transformer import Transformer

STEP = 1e-4  # of finite differences, in parts of a parameter's root mean square
GRADIENT_TOLERANCE = 1e-5  # gradients are stored in float32
LOGPS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # against float64
BACKWARD_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.3}  # against float64


def gradient_findings(
    model: Transformer, pairs: Sequence[TokenPair], objective: Objective, device: str
) -> Iterator[Finding]:
    """Log-probabilities and gradients in the run's dtype and in float64, and finite differences.

    The policy is nudged, as the gradient of every lora_A is zero where lora_B is. The reference is
    set to where all margins are zero, so that no loss is flat.
    """
    dtype = model.dtype
    batch, parameters = pack(pairs, device), probed_parameters(model)

    def loss(level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        policy = packed_logps(model, batch)
        policy_coef, reference_coef = objective.coefficients
        level = policy.detach() if level is None else level
        reference = level * (policy_coef / reference_coef)
        return losses_of(objective, policy, reference, batch.lengths)[0].mean(), policy.detach()

    with nudged(model):
        logps, gradients = [], []
        for compute_dtype in (model.compute_dtype, torch.float64):
            with computing_in(model, compute_dtype):
                mean, policy = loss()
                logps.append(policy)
                gradients.append(torch.autograd.grad(mean, parameters))
        with computing_in(model, torch.float64):
            level = logps[1]
            error = difference_error(lambda: loss(level)[0], parameters, gradients[1])
    kind = str(dtype).removeprefix("torch.")
    mend = f"{kind} gives other numbers than float64; pass --dtype float32"
    of = "logps in float64"
    rounding = relative(logps[0], logps[1])
    yield error_finding(f"logps in {kind}", rounding, LOGPS_TOLERANCE[dtype], of, mend)
    mend = (
        "the gradient is not the slope of the loss: a backward pass is wrong; see model/logps.py, "
        "model/lora.py and model/transformer.py, and run pytest"
    )
    of = "finite differences, float64"
    yield error_finding("gradient", error, GRADIENT_TOLERANCE, of, mend)
    rounding = distance(gradients[0], gradients[1])
    mend = f"{kind} gives another gradient than float64; pass --dtype float32"
    of = "the gradient in float64"
    yield error_finding(f"gradient in {kind}", rounding, BACKWARD_TOLERANCE[dtype], of, mend)


def probed_parameters(model: Transformer) -> list[torch.nn.Parameter]:
    """All adapters; where every weight is trained, the head's and those of the outer blocks."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if any(".lora_" in name for name in trained):
        return list(trained.values())
    head = "embed_tokens." if model.config.tie_word_embeddings else "lm_head."
    outer = ("layers.0.", f"layers.{len(model.layers) - 1}.", "norm.", head)
    return [p for name, p in trained.items() if name.startswith(outer)]


@torch.no_grad()
def difference_error(
    loss: Callable[[], Tensor],
    parameters: Sequence[torch.nn.Parameter],
    gradients: Sequence[Tensor],
) -> float:
    """Central differences of the loss along a random direction against the gradient's product.

    All parameters move at once. The error is in parts of the product's standard deviation over
    directions, so that a tensor whose gradient is wrong or missing shows by its share of it. The
    parameters are float32 and do not land where they were sent: what counts is where they were.
    """
    generator = torch.Generator().manual_seed(0)
    kept = [parameter.clone() for parameter in parameters]
    steps = [
        torch.randn(p.shape, generator=generator).to(p.device) * p.square().mean().sqrt() * STEP
        for p in kept
    ]
    values, places = [], []
    for direction in (1, -1):
        for parameter, start, step in zip(parameters, kept, steps, strict=True):
            parameter.copy_(start + direction * step)
        values.append(loss().item())
        places.append([parameter.double() for parameter in parameters])
    for parameter, start in zip(parameters, kept, strict=True):
        parameter.copy_(start)
    products = [g * (a - b) for g, a, b in zip(gradients, *places, strict=True)]
    slope = sum(product.sum().item() for product in products)
    spread = math.sqrt(sum(product.square().sum().item() for product in products))
    return abs(values[0] - values[1] - slope) / spread if spread else math.inf


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """|found - exact| / |exact| over all tensors."""
    apart = sum((a.double() - b.double()).square().sum().item() for a, b in
                zip(found, exact, strict=True))  # fmt: skip
    size = sum(b.double().square().sum().item() for b in exact)
    return math.sqrt(apart / size) if size else math.inf
