"""LoRA against the definition, PEFT as witness in both directions, and the disabled reference.

    pytest tests/test_lora.py
"""

import json
import math

import peft
import pytest
import torch

from model.checkpoint import load_adapter, load_model, save_adapter
from model.lora import TARGETS, LoRALinear, adapters_disabled, add_lora, lora_layers, merge_lora
from model.transformer import Linear, ModelConfig, Transformer
from tests.test_transformer import save_witness


def small_model(seed: int = 0) -> Transformer:
    model = Transformer(ModelConfig(97, 32, 48, 2, 4, 2, 8, initializer_range=0.2))
    model.init_weights(seed)
    return model.eval()


def scatter(model: Transformer, seed: int = 5) -> None:
    """Move every B away from zero, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)


def test_forward_is_the_definition():
    """W x + (alpha / R) B A x by hand: W = I, A = (1, 1), B = (2, 0), alpha 3, R 1, x = (1, 4)."""
    base = Linear(2, 2, bias=False)
    base.weight.data = torch.eye(2)
    layer = LoRALinear(base, rank=1, alpha=3.0, dropout=0.0)
    layer.lora_A.data = torch.tensor([[1.0, 1.0]])
    layer.lora_B.data = torch.tensor([[2.0], [0.0]])
    out = layer(torch.tensor([[1.0, 4.0]]))
    assert out.tolist() == [[1.0 + 3 * 2 * 5, 4.0]]
    assert layer.merged_weight().tolist() == [[7.0, 6.0], [0.0, 1.0]]


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
    assert names == {f"layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.down_proj")}
    with pytest.raises(ValueError, match=r"--lora_targets out of .*lm_head"):
        add_lora(small_model(), rank=2, alpha=2.0, targets=("lm_head",))
    with pytest.raises(ValueError, match="--lora_rank 1 or more"):
        add_lora(small_model(), rank=0, alpha=2.0)


def test_merge_gives_the_same_logits_and_the_plain_layers():
    model = small_model()
    names = list(model.state_dict())
    add_lora(model, rank=4, alpha=8.0)
    scatter(model)
    input_ids = torch.arange(30)[None]
    with_adapter = model(input_ids)
    merge_lora(model)
    torch.testing.assert_close(model(input_ids), with_adapter, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names


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


# ------------------------------------------------------------------------------------------------
# PEFT


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj")])
def test_peft_loads_ours(targets, tmp_path):
    witness = save_witness(tmp_path, {"num_key_value_heads": 2})
    model = load_model(tmp_path)
    add_lora(model, rank=5, alpha=8.0, targets=targets)
    scatter(model)
    save_adapter(model, tmp_path / "adapter", str(tmp_path))
    theirs = peft.PeftModel.from_pretrained(witness, tmp_path / "adapter").eval()
    input_ids = torch.arange(40)[None]
    with torch.no_grad():
        ours = model(input_ids)
        assert (ours - theirs(input_ids).logits).abs().max().item() < 1e-4
        with adapters_disabled(model), theirs.disable_adapter():
            assert (model(input_ids) - theirs(input_ids).logits).abs().max().item() < 1e-4
            assert not torch.allclose(model(input_ids), ours)


def test_ours_loads_peft(tmp_path):
    witness = save_witness(tmp_path, {"num_key_value_heads": 2})
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["k_proj", "o_proj", "up_proj"])
    theirs = peft.get_peft_model(witness, config).eval()
    torch.manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path)
    load_adapter(model, tmp_path / "adapter")
    input_ids = torch.arange(40)[None]
    with torch.no_grad():
        assert (model(input_ids) - theirs(input_ids).logits).abs().max().item() < 1e-4


def test_adapter_survives_a_round_trip_bit_for_bit(tmp_path):
    model = small_model()
    add_lora(model, rank=4, alpha=6.0, targets=("q_proj", "up_proj"))
    scatter(model)
    save_adapter(model, tmp_path, "base")
    again = small_model()
    load_adapter(again, tmp_path)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def edit(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA"),
        ({"use_dora": True}, "use_dora=True is not implemented"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all' is not implemented"),
        ({"r": 0}, "expected r and lora_alpha above 0"),
        ({"r": 3}, r"lora_A expects shape \(3, 32\), got \(4, 32\)"),
        ({"target_modules": ["lm_head"]}, "expected target_modules out of"),
        ({"target_modules": ["q_proj", "k_proj"]}, "2 tensors are missing|4 tensors are missing"),
        ({"target_modules": ["v_proj"]}, "unexpected tensor"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(changes, message, tmp_path):
    model = small_model()
    add_lora(model, rank=4, alpha=6.0, targets=("q_proj",))
    save_adapter(model, tmp_path, "base")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(small_model(), tmp_path)


def test_missing_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--adapter expects a folder with adapter_model"):
        load_adapter(small_model(), tmp_path / "nowhere")


