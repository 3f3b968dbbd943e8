"""LoRA against the definition, its merge, and the reference behind disabled adapters.

pytest tests/test_lora.py
"""

import itertools
import math

import pytest
import torch

from model.checkpoint import init_weights
from model.linear import Linear
from model.lora import (
    LoRALinear,
    LoRAProduct,
    adapters_disabled,
    add_lora,
    dropout_seed,
    lora_layers,
    merged_weight,
)
from model.transformer import ModelConfig, Transformer


def small_model(seed: int = 0) -> Transformer:
    model = Transformer(ModelConfig(97, 32, 48, 2, 4, 2, 8, initializer_range=0.2))
    init_weights(model, seed)
    return model.eval()


def scatter(model: Transformer, seed: int = 5) -> None:
    """Move every B away from zero, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)


def test_forward_is_the_definition():
    """W x + b + (alpha / R) B A x by hand: W = I, b = (10, 20), A of (1, 1) and (0, 1), B of (2, 0)
    and (0, 1), alpha 6, R 2, x = (1, 4): A x = (5, 4), B A x = (10, 4)."""
    base = Linear(2, 2, bias=True)
    base.weight.data, base.bias.data = torch.eye(2), torch.tensor([10.0, 20.0])
    layer = LoRALinear(base, rank=2, alpha=6.0, dropout=0.0)
    layer.lora_A.data = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    layer.lora_B.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    out = layer(torch.tensor([[1.0, 4.0]]))
    assert out.tolist() == [[1.0 + 10 + 3 * 10, 4.0 + 20 + 3 * 4]]
    with torch.inference_mode():
        assert layer(torch.tensor([[1.0, 4.0]])).tolist() == out.tolist()
    merged = merged_weight(base.weight, layer.lora_A, layer.lora_B, layer.scale)
    assert merged.tolist() == [[7.0, 6.0], [0.0, 4.0]]


def test_adapters_are_enabled_again_whatever_happens_while_they_are_not():
    model = Transformer(ModelConfig(97, 32, 48, 1, 4, 2, 8))
    add_lora(model, 2, 2.0)
    with pytest.raises(KeyError), adapters_disabled(model):
        raise KeyError
    assert all(layer.enabled for _, layer in lora_layers(model))


@pytest.mark.parametrize("bias", [False, True])
def test_hand_written_backward_pass_is_that_of_finite_differences(bias):
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    generator = torch.Generator().manual_seed(0)
    weight, row = random(5, 4).detach(), random(5).detach() if bias else None

    def product(x, A, B):
        return LoRAProduct.apply(x, weight, row, A, B, 1.7)

    inputs = random(2, 3, 4), random(2, 4), random(5, 2)
    torch.autograd.gradcheck(product, inputs)
    x, A, B = inputs
    expected = torch.nn.functional.linear(x, weight + 1.7 * B @ A, row)
    torch.testing.assert_close(product(*inputs), expected, rtol=1e-12, atol=1e-12)
    torch.autograd.gradcheck(lambda A, B: product(x.detach(), A, B), (A, B))  # the first layer's


def test_fresh_adapter_is_the_reference_and_trains_alone():
    model = small_model()
    input_ids = torch.arange(20)[None]
    before = model(input_ids)
    add_lora(model, rank=4, alpha=8.0)
    assert torch.equal(model(input_ids), before)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2 and all(".lora_" in name for name in names)
    scatter(model)
    assert not torch.allclose(model(input_ids), before)
    with adapters_disabled(model):
        assert torch.equal(model(input_ids), before)
    assert not torch.allclose(model(input_ids), before)


def test_init_is_pefts_and_a_function_of_the_seed():
    """A is uniform in +-1/sqrt(in): standard deviation 1 / sqrt(3 in)."""
    models = [small_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_lora(model, rank=64, alpha=8.0, seed=seed)
    layers = [dict(lora_layers(model))["layers.0.mlp.down_proj"] for model in models]
    assert torch.equal(layers[0].lora_A, layers[1].lora_A)
    assert not torch.equal(layers[0].lora_A, layers[2].lora_A)
    assert layers[0].lora_A.abs().max().item() <= 1 / math.sqrt(48)
    assert layers[0].lora_A.std().item() == pytest.approx(1 / math.sqrt(3 * 48), rel=0.03)


def test_targets_choose_the_layers():
    model = small_model()
    add_lora(model, rank=2, alpha=2.0, targets=("q_proj", "down_proj"))
    names = {name for name, _ in lora_layers(model)}
    assert names == {
        f"layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.down_proj")
    }
    with pytest.raises(ValueError, match=r"--lora_targets out of .*lm_head"):
        add_lora(small_model(), rank=2, alpha=2.0, targets=("lm_head",))
    with pytest.raises(ValueError, match="--lora_rank 1 or more"):
        add_lora(small_model(), rank=0, alpha=2.0)


def test_bfloat16_base_keeps_float32_adapters():
    model = small_model().bfloat16()
    add_lora(model, rank=4, alpha=8.0)
    scatter(model)
    model(torch.arange(9)[None]).float().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
    assert model.embed_tokens.weight.grad is None


def test_dropout_acts_in_training_alone():
    model = small_model()
    add_lora(model, rank=4, alpha=8.0, dropout=0.5)
    scatter(model)
    input_ids = torch.arange(30)[None]
    assert torch.equal(model.eval()(input_ids), model(input_ids))
    assert not torch.equal(model.train()(input_ids), model(input_ids))


def test_dropout_of_each_seed_step_and_rank_is_its_own():
    """Also where a CPU would forget the upper 32 bits, or seed + step would be a sum."""
    seeds = {
        dropout_seed(*of) for of in itertools.product((0, 1, 2, 2**32 - 1), range(50), range(8))
    }
    assert len(seeds) == 4 * 50 * 8 and max(seeds) < 2**32


def test_dropout_leaves_the_scale():
    """alpha / rank = 4 there too; a share of 1e-9 strikes nothing."""
    model = small_model()
    add_lora(model, rank=2, alpha=8.0, dropout=1e-9)
    scatter(model)
    input_ids = torch.arange(30)[None]
    torch.testing.assert_close(model.train()(input_ids), model.eval()(input_ids))
