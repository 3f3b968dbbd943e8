"""A linear layer by oneDNN against float64, its weights in blocks against themselves.

pytest tests/test_linear.py
"""

import pytest
import torch
import torch.nn.functional as F

from data.packing import pack_pairs
from model.linear import Linear, onednn_linear, onednn_takes, packed_linears
from model.lora import add_lora
from tests.test_generate import random_model
from tests.test_transformer import random_pairs

ids = torch.arange(12)[None]
DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(not onednn_takes(dtype), reason="not by oneDNN"))
    for dtype in (torch.float32, torch.bfloat16)
]


def layer_of(out: int, size: int, dtype: torch.dtype, bias: bool = True) -> Linear:
    generator = torch.Generator().manual_seed(out)
    layer = Linear(size, out, bias=bias).to(dtype).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out, size", [(5, 7), (48, 92), (576, 1536)])
def test_it_is_the_product_in_float64(out, size, dtype):
    """As near as F.linear comes, times 4: the sums run in another order."""
    layer, x = layer_of(out, size, dtype), torch.randn(24, 3, size).to(dtype)
    with torch.inference_mode():
        found = layer(x)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    plain = F.linear(x, layer.weight, layer.bias)
    assert found.dtype == dtype and found.shape == (24, 3, out)
    assert (found - exact).abs().max() <= 4 * (plain - exact).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out, size", [(4, 4), (12, 44), (64, 172), (100, 1536), (2003, 64)])
def test_a_row_rounds_alike_whatever_is_beside_it(out, size, dtype):
    """Alone, among few and many, in blocks and not: the same bits."""
    layer, x = layer_of(out, size, dtype), torch.randn(256, 1, size).to(dtype)
    with torch.inference_mode():
        whole = layer(x)
        with packed_linears(layer, dtype):
            assert layer.packed is not None and torch.equal(layer(x), whole)
            some = [layer(x[:rows]) for rows in (1, 2, 3, 8, 24, 104)]
        some += [layer(x[:rows]) for rows in (1, 2, 3, 8, 24, 104)]
    for rows in some:
        assert torch.equal(rows, whole[: len(rows)])


def test_training_goes_by_f_linear():
    """Outside inference mode there are gradients, and the numbers of F.linear to the bit."""
    layer, x = layer_of(48, 92, torch.float32).requires_grad_(True), torch.randn(20, 92)
    out = layer(x)
    assert torch.equal(out, F.linear(x, layer.weight, layer.bias))
    out.sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], x.sum(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_go_by_f_linear(dtype):
    layer, x = layer_of(48, 92, dtype), torch.randn(20, 92).to(dtype)
    with torch.inference_mode(), packed_linears(layer, dtype):
        assert layer.packed is None
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


# ------------------------------------------------------------------------------------------------
# a model whose weights lie in blocks


def test_weights_come_back_to_the_bit_also_after_an_error():
    model = random_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        with packed_linears(model, torch.float32):
            assert model.layers[0].mlp.up_proj.weight.numel() == 0  # not held twice
            raise KeyboardInterrupt
    assert before.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    model(ids).sum().backward()  # and it can be trained
    assert model.layers[0].mlp.up_proj.weight.grad is not None


def test_one_inside_another_leaves_the_weights_to_the_outer_one():
    model = random_model()
    layer = model.layers[1].self_attn.k_proj
    with packed_linears(model, torch.float32):
        packed = layer.packed
        with packed_linears(model, torch.float32):
            assert layer.packed is packed
        assert layer.packed is packed and not layer.weight.numel()
    assert layer.packed is None and layer.weight.numel()


def test_the_head_is_a_matrix_too():
    """The log-probabilities of given tokens read it as one, tied to the embedding or not."""
    model = random_model(tie_word_embeddings=True)
    with torch.inference_mode():
        expected = model(ids)
    with packed_linears(model, torch.float32), torch.no_grad():
        assert model.lm_head.packed is not None
        assert model.lm_head.weight is model.embed_tokens.weight and model.lm_head.weight.any()
        assert torch.equal(model(ids), expected)
        stats = model(batch=pack_pairs(random_pairs(77, [(4, 3, 2)]), [0]))
    assert torch.isfinite(stats.logps).all()


def test_what_is_computed_in_another_dtype_and_what_lies_below_an_adapter_stays():
    """Their weights are read as matrices: cast to the dtype, and by the adapter's own product."""
    trained, adapted = random_model(), random_model()
    trained.compute_dtype = torch.bfloat16
    add_lora(adapted, 2, 2.0, ("q_proj",))
    for model, dtype in ((trained, torch.bfloat16), (adapted, torch.float32)):
        with torch.inference_mode():
            expected = model(ids)
            with packed_linears(model, dtype):
                assert torch.equal(model(ids), expected)
    with packed_linears(adapted, torch.float32):
        assert adapted.layers[0].self_attn.q_proj.base.packed is None
        assert adapted.layers[0].self_attn.k_proj.packed is not None


def test_no_row_and_strides():
    """Rows that lie apart, as the last position of each sequence does."""
    layer, x = layer_of(48, 92, torch.float32), torch.randn(5, 9, 92)
    with torch.inference_mode():
        assert torch.equal(layer(x[:, -1:]), layer(x[:, -1:].contiguous()))
        assert onednn_linear(x[:0], layer.weight, layer.bias).shape == (0, 9, 48)
