"""A linear layer, and how it computes where a CPU draws tokens: by oneDNN, its weight in blocks.

F.linear gives float32 to MKL, which is at its best with thousands of rows. A decode step has 8 to
256. There oneDNN takes 0.5 to 0.8 of the time, once a weight lies in the order in which it is read
(`packed_linears`), and rounds a row alike whatever the rows beside it. Its float32 sums have 1.5 to
2 times F.linear's rounding error (the widths of SmolLM2), which a draw does not notice: training,
where it would save a tenth, and scoring go by F.linear. PyTorch has the operators, for its
compiler, without a public name.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever its weights are stored in.

    A trained weight stays in float32 for the optimiser while the products run in bfloat16.
    """

    packed: Tensor | None = None  # the weight in oneDNN's blocks, inside `packed_linears`

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.packed is not None:
            return onednn_linear(x, self.packed, bias)
        return linear(x, self.weight.to(x.dtype), bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear; by oneDNN where a CPU draws tokens."""
    drawing = torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()
    if drawing and x.device.type == "cpu" and onednn_takes(x.dtype):
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: (B, ..., in), weight: (out, in) as it is or in blocks, to the same last bit; no gradient.

    One row alone would go another way than two, and round otherwise.
    """
    alone = x.numel() == x.shape[-1]
    rows = torch.cat([x, x]) if alone else x
    out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return out[:1] if alone else out


@functools.cache
def onednn_takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


@contextmanager
def packed_linears(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the linear layers of a model on a CPU hold their weights in oneDNN's blocks instead.

    dtype: what the model computes in; a weight of another one stays, as does one that is shared
    among ranks or lies below an adapter. The head has both, for what reads its weight as a matrix.
    At the end each weight is what it was, to the last bit. Inside another one for the same model
    there is nothing to do.
    """
    packed: list[Linear] = []
    try:
        for name, layer in model.named_modules():
            if not (isinstance(layer, Linear) and can_pack(layer, dtype)) or name.endswith(".base"):
                continue
            packed.append(layer)
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            if name != "lm_head":
                layer.weight.data = layer.weight.new_empty(0)
        yield
    finally:
        with torch.inference_mode(False):  # whoever leaves; the weights may be trained again
            for layer in reversed(packed):  # the head, the largest, gives its room first
                if not layer.weight.numel():
                    layer.weight.data = layer.packed.to_dense()
                layer.packed = None


def can_pack(layer: Linear, dtype: torch.dtype) -> bool:
    """Whether the weight of a layer is here, whole, and of a dtype that can lie in blocks."""
    weight = layer.weight
    whole = weight.device.type == "cpu" and type(weight.data) is Tensor  # no DTensor
    return whole and layer.packed is None and weight.dtype == dtype and onednn_takes(dtype)
