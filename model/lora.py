"""LoRA by hand (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / R) B A x, with W frozen.

The reference policy costs no second model: it is the policy with its adapters disabled. That holds
for a fresh adapter (B = 0 at the start), so an existing one is merged into the base before a fresh
one is added.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.linear import linear

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A frozen linear layer beside a trained product of two thin matrices.

    lora_A: (R, in) float32, lora_B: (out, R) float32; both compute in the input's dtype.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        device = base.weight.device
        self.base = base
        self.scale = alpha / rank
        self.dropout = dropout
        self.enabled = True
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if torch.is_inference_mode_enabled() and x.device.type == "cpu":
            # as the base layer draws: a sum by MKL depends, on some CPUs, on the rows beside it
            return self.base(x) + self.scale * linear(linear(x, A), B)
        if self.dropout and self.training:
            low = F.dropout(x, self.dropout) @ A.T  # (..., R)
            return self.base(x) + self.scale * low @ B.T  # (..., out)
        weight, bias = self.base.weight, self.base.bias
        bias = None if bias is None else bias.to(x.dtype)
        return LoRAProduct.apply(x, weight.to(x.dtype), bias, A, B, self.scale)


class LoRAProduct(torch.autograd.Function):
    """x W^T + bias + scale * (x A^T) B^T, with W and the bias frozen.

    x: (..., in), weight: (out, in), bias: (out,) or None, A: (R, in), B: (out, R); out: (..., out)

    Written by hand because autograd would add the two products in a third tensor of the output's
    size, forward and backward; here the thin product lands in the wide one's memory. Kept for the
    backward pass: x, which all layers that read it share, and x A^T.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, scale):
        low = x @ A.T  # (..., R)
        out = F.linear(x, weight, bias)
        out.flatten(0, -2).addmm_(low.flatten(0, -2), B.T, alpha=scale)
        ctx.save_for_backward(x, weight, A, B, low)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, A, B, low = ctx.saved_tensors
        grad_rows = grad_out.flatten(0, -2)  # (T, out)
        grad_low = (grad_rows @ B).mul_(ctx.scale)  # (T, R)
        grad_A = grad_low.T @ x.flatten(0, -2)
        grad_B = (grad_rows.T @ low.flatten(0, -2)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_rows @ weight).addmm_(grad_low, A).view_as(x)
        return grad_x, None, None, grad_A, grad_B, None


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: tuple[str, ...] = TARGETS,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Freeze the model and put a fresh adapter on each linear layer whose name is in `targets`.

    rank: R >= 1. A starts as Kaiming-uniform noise (a = sqrt 5, PEFT's choice), B as zero, so that
    the policy starts as the reference. Raises ValueError for a bad rank or an unknown target.
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ValueError(f"expected --lora_targets out of {' '.join(TARGETS)}, got {unknown or ''}")
    if rank < 1:
        raise ValueError(f"expected --lora_rank 1 or more for an adapter, got {rank}")
    assert not list(lora_layers(model)), "merge the adapter that is there before adding one"
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank, alpha, dropout))
    for parameter, values in initial_adapters(model, seed):
        parameter.data.copy_(values)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """For torch.manual_seed, of whose number a CPU takes the last 32 bits alone."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def initial_adapters(model: nn.Module, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """What the matrices of every adapter start from."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        bound = math.sqrt(1 / layer.base.in_features)  # gain sqrt(1/3) times sqrt(3 / fan_in)
        noise = torch.rand(layer.lora_A.shape, generator=generator)
        yield layer.lora_A, noise * 2 * bound - bound
        yield layer.lora_B, torch.zeros(layer.lora_B.shape)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(dotted name, layer) of every adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the reference policy."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@torch.no_grad()
def merged_weight(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """W + scale * B A, summed in float32 or wider, in W's dtype.

    weight: (out, in), lora_A: (R, in), lora_B: (out, R); or some rows of W and the same of B.
    """
    wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
    return (wide + scale * (lora_B @ lora_A)).to(weight.dtype)
