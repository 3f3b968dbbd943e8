"""LoRA by hand (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / R) B A x, with W frozen.

The reference policy costs no second model: it is the policy with its adapters disabled. That holds
for a fresh adapter (B = 0 at the start), so an existing one is merged into the base before a fresh
one is added.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if not self.enabled:
            return out
        low = F.dropout(x, self.dropout, self.training) @ self.lora_A.to(x.dtype).T  # (..., R)
        return out + low @ (self.scale * self.lora_B).to(x.dtype).T  # (..., out)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + (alpha / R) B A, summed in float32, in W's dtype."""
        weight = self.base.weight
        wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
        return (wide + self.scale * (self.lora_B @ self.lora_A)).to(weight.dtype)


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
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                layer = LoRALinear(child, rank, alpha, dropout)
                bound = math.sqrt(1 / child.in_features)  # gain sqrt(1/3) times sqrt(3 / fan_in)
                noise = torch.rand(layer.lora_A.shape, generator=generator) * 2 * bound - bound
                layer.lora_A.data.copy_(noise)
                setattr(parent, name, layer)


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


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its weight and put the plain layers back."""
    for name, layer in list(lora_layers(model)):
        layer.base.weight.data = layer.merged_weight()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
