"""The fused head: hidden states -> log-probability and entropy of each target token.

Neither the (C, V) logits nor their log-softmax ever exist whole: rows go through one bounded
workspace in chunks. With a frozen head the gradient with respect to the hidden states,

    d logp_y / d hidden = (1[y] - p) @ head_weight,

is made in the forward pass while the logits are at hand, and the backward pass only scales its
rows: two matrix products in all. A trained head, or a gradient through the entropy, makes the
logits again in the backward pass: one product forward, two or three backward. `token_logps_ref` is
the definition.

What stands between the products, from a chunk's logits to its statistics and its gradient, is one
kernel on CUDA (csrc/logps.cu), elsewhere a few torch operations on rows that stay in the cache.
Both take 1 - p_y as the sum of the other tokens' probabilities and not as a difference, so that
log p_y and its gradient keep float32's relative precision where p_y is near 1.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.cuda import Kernels, load_kernels

WORKSPACE_BYTES = 256 * 2**20  # at most, for one chunk's logits
CPU_CHUNK_ROWS = 256  # at most on a CPU; fewer starve its products, more only take memory
CPU_CACHE_BYTES = 2 * 2**20  # of logits that the torch operations take at a time
ROW_ALIGNMENT = 16  # bytes: where each row of the workspace begins
HEAD_KERNELS = ("auto", "cuda", "torch")
KERNEL_SOURCE = Path(__file__).parent / "csrc" / "logps.cu"
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class HeadOptions(NamedTuple):
    """How the head computes; none of it changes what is computed."""

    workspace_bytes: int = WORKSPACE_BYTES  # for one chunk's logits; one row is the least
    kernel: str = "auto"  # cuda, torch, or auto: cuda where it runs


DEFAULTS = HeadOptions()


class TokenStats(NamedTuple):
    """Of each target token, under the policy that predicts it; float64 from float64."""

    logps: Tensor  # (C,) float32
    entropy: Tensor  # (C,) float32, nats of the whole next-token distribution
    hits: Tensor  # (C,) float32, 1 where no token is likelier than the target, else 0


def token_logps_ref(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> TokenStats:
    """The definition, with whole logits.

    hidden: (C, D), head_weight: (V, D), targets: (C,) in [0, V)
    """
    logits = hidden @ head_weight.to(hidden.dtype).T  # (C, D) x (D, V) -> (C, V)
    logits = logits.to(wide_dtype(hidden))
    log_probabilities = logits.log_softmax(dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    logps = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    hits = logps >= log_probabilities.amax(dim=-1)
    return TokenStats(logps, entropy, hits.to(logps.dtype))


def token_logps(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    with_gradient: bool | None = None,
    entropy_gradient: bool = False,
    options: HeadOptions = DEFAULTS,
) -> TokenStats:
    """The same numbers through a bounded workspace.

    hidden: (C, D), head_weight: (V, D), targets: (C,) in [0, V); a target out of range gives NaN.
    with_gradient: make the hidden states' gradient in the forward pass; None: where autograd
    records, the head is frozen and the entropy carries no gradient.
    entropy_gradient: let the entropy carry a gradient, at one matrix product more; else it is a
    statistic.
    """
    C, D = hidden.shape
    V = head_weight.shape[0]
    assert head_weight.shape[1] == D, f"hidden {tuple(hidden.shape)}, head {(V, D)}"
    assert targets.shape == (C,), f"targets {tuple(targets.shape)} for {C} rows"
    assert targets.dtype == torch.int64, f"targets {targets.dtype}, the kernel reads int64"
    assert options.kernel in HEAD_KERNELS, options
    if with_gradient is None:
        recomputed = head_weight.requires_grad or entropy_gradient
        with_gradient = torch.is_grad_enabled() and hidden.requires_grad and not recomputed
    logps, entropy, hits, _ = torch.ops.preference.token_logps(
        hidden, head_weight, targets, with_gradient, *options
    )
    return TokenStats(logps, entropy if entropy_gradient else entropy.detach(), hits.detach())


# ------------------------------------------------------------------------------------------------
# the two operators


@torch.library.custom_op("preference::token_logps", mutates_args=())
def token_logps_op(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    with_gradient: bool,
    workspace_bytes: int,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logps, entropy, hits (C,) and d logps / d hidden (C, D), or (0, D) where not asked for."""
    C, D = hidden.shape
    stats = empty_stats(hidden)
    gradient = hidden.new_empty(C if with_gradient else 0, D)
    weight = head_weight.to(hidden.dtype)
    for rows, logits in chunks(hidden, weight, workspace_bytes):
        grad_logits = gradient_memory(logits, hidden.dtype) if with_gradient else None
        reduce_rows(logits, targets[rows], at(stats, rows), grad_logits, None, None, kernel)
        if with_gradient:
            torch.mm(grad_logits, weight, out=gradient[rows])
    return *stats, gradient


@token_logps_op.register_fake
def _(hidden, head_weight, targets, with_gradient, workspace_bytes, kernel):
    C, D = hidden.shape
    return *empty_stats(hidden), hidden.new_empty(C if with_gradient else 0, D)


@torch.library.custom_op("preference::token_logps_backward", mutates_args=())
def token_logps_backward_op(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor,
    with_weight: bool,
    workspace_bytes: int,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """The gradients (C, D) of the hidden states and (V, D) of the head, or (0, D), recomputed."""
    grad_hidden = torch.empty_like(hidden)
    V, D = head_weight.shape
    grad_weight = hidden.new_zeros(V if with_weight else 0, D, dtype=wide_dtype(hidden))
    stats = empty_stats(hidden)
    weight = head_weight.to(hidden.dtype)
    for rows, logits in chunks(hidden, weight, workspace_bytes):
        grad_logits = gradient_memory(logits, hidden.dtype)
        scales = (grad_logps[rows], grad_entropy[rows])
        reduce_rows(logits, targets[rows], at(stats, rows), grad_logits, *scales, kernel)
        torch.mm(grad_logits, weight, out=grad_hidden[rows])
        if with_weight:
            grad_weight += wide_product(grad_logits.T, hidden[rows])  # (V, R) x (R, D) -> (V, D)
    return grad_hidden, grad_weight.to(head_weight.dtype)


@token_logps_backward_op.register_fake
def _(hidden, head_weight, targets, grad_logps, grad_entropy, with_weight, workspace_bytes, kernel):
    V, D = head_weight.shape
    return torch.empty_like(hidden), head_weight.new_empty(V if with_weight else 0, D)


def save_for_backward(ctx, inputs, output) -> None:
    hidden, head_weight, targets, ctx.with_gradient, *ctx.options = inputs
    saved = (output[3],) if ctx.with_gradient else (hidden, head_weight, targets)
    ctx.save_for_backward(*saved)


def token_logps_backward(ctx, grad_logps, grad_entropy, grad_hits, grad_gradient):
    if ctx.with_gradient:
        (gradient,) = ctx.saved_tensors
        grad_hidden = scale_rows(gradient, grad_logps)
        return grad_hidden, None, None, None, None, None
    hidden, head_weight, targets = ctx.saved_tensors
    with_weight = ctx.needs_input_grad[1]
    grad_hidden, grad_weight = torch.ops.preference.token_logps_backward(
        hidden, head_weight, targets, grad_logps, grad_entropy, with_weight, *ctx.options
    )
    return grad_hidden, grad_weight if with_weight else None, None, None, None, None


token_logps_op.register_autograd(token_logps_backward, setup_context=save_for_backward)


# ------------------------------------------------------------------------------------------------
# chunks and products


def chunks(hidden: Tensor, weight: Tensor, workspace_bytes: int):
    """(rows, their logits (R, V) in the workspace), chunk after chunk."""
    C, V = len(hidden), len(weight)
    dtype = torch.float32 if widens(hidden) else hidden.dtype
    stride = -(-V * dtype.itemsize // ROW_ALIGNMENT) * ROW_ALIGNMENT // dtype.itemsize
    R = max(1, min(C, workspace_bytes // (stride * dtype.itemsize)))
    if hidden.device.type == "cpu":
        R = min(R, CPU_CHUNK_ROWS)
    workspace = hidden.new_empty(R, stride, dtype=dtype)
    for start in range(0, C, R):
        rows = slice(start, min(start + R, C))
        logits = workspace[: rows.stop - start, :V]
        if widens(hidden):
            torch.mm(hidden[rows], weight.T, out_dtype=dtype, out=logits)
        else:
            torch.mm(hidden[rows], weight.T, out=logits)
        yield rows, logits


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with sums, and the result where the device offers it, in `wide_dtype`."""
    return torch.mm(a, b, out_dtype=torch.float32) if widens(a) else a @ b


def widens(x: Tensor) -> bool:
    """Products of half precision come out in float32: PyTorch has that on CUDA alone."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype sums are taken in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def gradient_memory(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, V) of `dtype` in the logits' own memory: a row's gradient begins where its logits do."""
    return logits.view(dtype)[:, : logits.shape[1]]


def empty_stats(hidden: Tensor) -> TokenStats:
    C, dtype = hidden.shape[0], wide_dtype(hidden)  # len() would fix C under torch.compile
    return TokenStats(*(hidden.new_empty(C, dtype=dtype) for _ in range(3)))


def at(stats: TokenStats, rows: slice) -> TokenStats:
    return TokenStats(*(values[rows] for values in stats))


def scale_rows(x: Tensor, scales: Tensor) -> Tensor:
    """x (R, D) with each row times its scale (R,), multiplied in the wider of both dtypes."""
    return torch.mul(x, scales[:, None], out=torch.empty_like(x))


# ------------------------------------------------------------------------------------------------
# from logits to statistics and gradient


def reduce_rows(
    logits: Tensor,
    targets: Tensor,
    stats: TokenStats,
    gradient: Tensor | None,
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
    kernel: str,
) -> None:
    """Fill `stats` and, if given, `gradient`; the logits are overwritten.

    logits: (R, V), targets: (R,); gradient: (R, V), may lie in the logits' memory:

        grad_logps * (1[y] - p) - grad_entropy * p * (log p + entropy)

    with grad_logps (R,) 1 and grad_entropy (R,) 0 where they are None.
    """
    if choose_kernel(logits.device, logits.dtype, kernel):
        out = logits if gradient is None else gradient
        name = f"reduce_rows_{SUFFIXES[logits.dtype]}_{SUFFIXES[out.dtype]}"
        scales = [None if g is None else g.float().contiguous() for g in (grad_logps, grad_entropy)]
        args = [logits, logits.stride(0), targets.contiguous(), logits.shape[1], *stats]
        args += [gradient, out.stride(0), *scales]
        kernels = cuda_kernels(logits.device)
        kernels.launch(name, len(logits), kernels.constants["THREADS"], args)
        return
    R, V = logits.shape
    wide = stats.logps.dtype
    if logits.device.type == "cpu":
        R = max(1, min(R, CPU_CACHE_BYTES // (V * wide.itemsize)))
    scratch = logits.new_empty(R, V, dtype=wide)
    for start in range(0, len(logits), R):
        rows = slice(start, start + R)
        reduce_cached_rows(
            logits[rows].to(wide),
            scratch[: len(logits[rows])],
            targets[rows, None],
            at(stats, rows),
            None if gradient is None else gradient[rows],
            None if grad_logps is None else grad_logps[rows, None],
            None if grad_entropy is None else grad_entropy[rows, None],
        )


def reduce_cached_rows(
    logits: Tensor,
    scratch: Tensor,
    targets: Tensor,
    stats: TokenStats,
    gradient: Tensor | None,
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
) -> None:
    """`reduce_rows` in torch operations; scratch: (R, V), targets and grad_...: (R, 1)."""
    V, nan = logits.shape[1], float("nan")
    invalid = (targets < 0) | (targets >= V)
    y = targets.clamp(0, V - 1)
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))  # (R, V), at most 0
    e = torch.exp(shifted, out=scratch)
    shifted_y, e_y = shifted.gather(1, y), e.gather(1, y)  # (R, 1)
    others = e.scatter_(1, y, 0.0).sum(dim=-1, keepdim=True)  # of e_j over j != y
    others.masked_fill_(invalid, nan)
    total = others + e_y
    logps = torch.where(e_y > others, -torch.log1p(others / e_y), shifted_y - total.log())
    # H = log sum exp(z) - sum p z, with z the shifted logits
    weighted = shifted.mul_(e)  # 0 at y
    mean = (weighted.sum(dim=-1, keepdim=True) + e_y * shifted_y) / total
    entropy = (total.log() - mean).clamp_(min=0)
    hits = (shifted_y >= 0) + 0 * total  # NaN where the others are
    for out, values in zip(stats, (logps, entropy, hits), strict=True):
        out.copy_(values[:, 0])
    if gradient is None:
        return
    grad_y = others / total  # 1 - p_y
    if grad_logps is not None:
        grad_y = grad_logps * grad_y - grad_entropy * (shifted_y - mean) * e_y / total
        # log p_j + H = shifted_j - mean
        e.mul_(grad_logps - grad_entropy * mean).addcmul_(weighted, grad_entropy)
    torch.mul(e, -1 / total, out=gradient)
    gradient.scatter_(1, y, grad_y.to(gradient.dtype))


def choose_kernel(device: torch.device, dtype: torch.dtype, asked: str) -> bool:
    """True for the CUDA kernel; ValueError or RuntimeError where it was asked for in vain."""
    if asked == "torch" or (asked == "auto" and (device.type != "cuda" or dtype not in SUFFIXES)):
        return False
    if device.type != "cuda" or dtype not in SUFFIXES:
        raise ValueError(
            f"--head_kernel cuda expects float32 or half precision on CUDA, got {dtype} on {device}"
        )
    if asked == "cuda":
        cuda_kernels(device)
        return True
    return kernel_builds(device)


@functools.cache
def kernel_builds(device: torch.device) -> bool:
    """Whether the kernel can be had on a device; said once, with the reason where it cannot."""
    try:
        cuda_kernels(device)
    except (RuntimeError, OSError) as error:
        print(f"head: torch operations on {device}, as its CUDA kernel does not build: {error}")
        return False
    print(f"head: its CUDA kernel on {device}")
    return True


def cuda_kernels(device: torch.device) -> Kernels:
    return load_kernels(KERNEL_SOURCE, device.index)
