"""The fused head: hidden states -> log-probability and entropy of each target token.

Neither the (C, V) logits nor their log-softmax ever exist whole: rows go through one bounded
workspace in chunks. With a frozen head the gradient with respect to the hidden states,

    d logp_y / d hidden = (1[y] - p) @ head_weight,

is made in the forward pass while the logits are at hand, and the backward pass only scales its
rows: two matrix products in all. A trained head recomputes the logits in the backward pass: one
product forward, three backward. `token_logps_ref` is the definition.
"""

from typing import NamedTuple

import torch
from torch import Tensor

WORKSPACE_BYTES = 256 * 2**20  # at most, for one chunk's logits
CHUNK_ROWS = 256  # at most; more rows fall out of the CPU's caches


class TokenStats(NamedTuple):
    """Of each target token, under the policy that predicts it."""

    logps: Tensor  # (C,) float32 (float64 for float64 hidden states)
    entropy: Tensor  # (C,) nats of the whole next-token distribution; carries no gradient


def token_logps_ref(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> TokenStats:
    """The definition, with whole logits.

    hidden: (C, D), head_weight: (V, D), targets: (C,) in [0, V)
    out: logps (C,), entropy (C,)
    """
    logits = accumulate(hidden @ head_weight.to(hidden.dtype).T)  # (C, D) x (D, V) -> (C, V)
    logps = logits.log_softmax(dim=-1)
    entropy = -(logps.exp() * logps).sum(dim=-1)
    return TokenStats(logps.gather(1, targets[:, None]).squeeze(1), entropy.detach())


def token_logps(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, with_gradient: bool | None = None
) -> TokenStats:
    """The same numbers through a bounded workspace.

    hidden: (C, D), head_weight: (V, D), targets: (C,) in [0, V)
    with_gradient: make the hidden states' gradient in the forward pass; None: where autograd
    records and the head is frozen.
    out: logps (C,), entropy (C,)
    """
    C, D = hidden.shape
    V = head_weight.shape[0]
    assert head_weight.shape[1] == D, f"hidden {tuple(hidden.shape)}, head {(V, D)}"
    assert targets.shape == (C,), f"targets {tuple(targets.shape)} for {C} rows"
    if torch.is_grad_enabled() and head_weight.requires_grad:
        return TokenStats(*TrainedHead.apply(hidden, head_weight, targets))
    if with_gradient is None:
        with_gradient = torch.is_grad_enabled() and hidden.requires_grad
    if with_gradient:
        return TokenStats(*FrozenHead.apply(hidden, head_weight, targets))
    logps, entropy, _ = reduce_rows(hidden.detach(), head_weight.detach(), targets, False)
    return TokenStats(logps, entropy)


# ------------------------------------------------------------------------------------------------
# one pass over the rows


def reduce_rows(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """logps (C,), entropy (C,), and d logps / d hidden (C, D) if asked for."""
    C = hidden.shape[0]
    wide = wide_dtype(hidden)
    logps, entropy = hidden.new_empty(C, dtype=wide), hidden.new_empty(C, dtype=wide)
    gradient = torch.empty_like(hidden) if with_gradient else None
    weight = head_weight.to(hidden.dtype)
    for rows in chunks(C, weight.shape[0], wide):
        logits = accumulate(hidden[rows] @ weight.T)  # (R, V)
        logps[rows], entropy[rows], p = reduce_logits(logits, targets[rows])
        if with_gradient:
            torch.mm(target_minus_p(p, targets[rows]).to(hidden.dtype), weight, out=gradient[rows])
    return logps, entropy, gradient


def reduce_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits (R, V), overwritten -> logps (R,), entropy (R,), p (R, V) in the logits' memory."""
    target_logits = logits.gather(1, targets[:, None])  # (R, 1)
    peak = logits.amax(dim=-1, keepdim=True)
    shifted = logits.sub_(peak)
    target_logits -= peak
    p = shifted.exp()
    total = p.sum(dim=-1, keepdim=True)
    log_total = total.log()
    # H = log sum exp(z) - sum p z, with z the shifted logits
    mean_logit = (p * shifted).sum(dim=-1, keepdim=True) / total
    entropy = log_total - mean_logit
    p /= total
    return (target_logits - log_total).squeeze(1), entropy.squeeze(1), p


def target_minus_p(p: Tensor, targets: Tensor) -> Tensor:
    """1[y] - p, (R, V), in place: formed in float32, before any rounding."""
    rows = torch.arange(len(targets), device=p.device)
    p.neg_()
    p[rows, targets] += 1
    return p


def chunks(C: int, V: int, dtype: torch.dtype) -> list[slice]:
    rows = max(1, min(CHUNK_ROWS, WORKSPACE_BYTES // (V * dtype.itemsize)))
    return [slice(start, min(start + rows, C)) for start in range(0, C, rows)]


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype sums are taken in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulate(logits: Tensor) -> Tensor:
    return logits.to(wide_dtype(logits))


# ------------------------------------------------------------------------------------------------
# the two backward passes


class FrozenHead(torch.autograd.Function):
    """The gradient of the hidden states is made forward, unscaled, and scaled by row backward."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head_weight: Tensor, targets: Tensor):
        logps, entropy, gradient = reduce_rows(hidden, head_weight, targets, True)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    def backward(ctx, grad_logps: Tensor, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_logps[:, None]).to(gradient.dtype), None, None


class TrainedHead(torch.autograd.Function):
    """The logits are made again in the backward pass; the weight's gradient sums in float32."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head_weight: Tensor, targets: Tensor):
        logps, entropy, _ = reduce_rows(hidden, head_weight, targets, False)
        ctx.save_for_backward(hidden, head_weight, targets)
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    def backward(ctx, grad_logps: Tensor, _):
        hidden, head_weight, targets = ctx.saved_tensors
        weight = head_weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(head_weight, dtype=wide_dtype(hidden))
        for rows in chunks(len(hidden), len(weight), wide_dtype(hidden)):
            _, _, p = reduce_logits(accumulate(hidden[rows] @ weight.T), targets[rows])
            grad_logits = target_minus_p(p, targets[rows]) * grad_logps[rows, None]  # (R, V)
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            grad_weight += grad_logits.T @ hidden[rows]  # (V, R) x (R, D) -> (V, D)
        return grad_hidden, grad_weight.to(head_weight.dtype), None
