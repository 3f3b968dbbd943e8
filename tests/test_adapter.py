"""Adapters on disk: PEFT loads ours and ours loads PEFT's, and what does not fit is refused.

pytest tests/test_adapter.py
"""

import json

import peft
import pytest
import torch
import transformers

from model.adapter import add_adapter, fill_adapter, load_policy, save_adapter
from model.checkpoint import load_model
from model.lora import TARGETS, adapters_disabled, add_lora, lora_layers
from tests.conftest import ROOT
from tests.test_lora import scatter, small_model
from tests.test_transformer import save_witness

TINY = ROOT / "data" / "tiny"


def with_adapter(model, folder):
    add_adapter(model, folder)
    fill_adapter(model, folder)
    return model


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
    model = with_adapter(load_model(tmp_path), tmp_path / "adapter")
    input_ids = torch.arange(40)[None]
    with torch.no_grad():
        assert (model(input_ids) - theirs(input_ids).logits).abs().max().item() < 1e-4


def test_adapter_survives_a_round_trip_bit_for_bit(tmp_path):
    model = small_model()
    add_lora(model, rank=4, alpha=6.0, targets=("q_proj", "up_proj"))
    scatter(model)
    save_adapter(model, tmp_path, "base")
    again = with_adapter(small_model(), tmp_path)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_dropout_of_training_is_written_down(tmp_path):
    model = small_model()
    add_lora(model, rank=4, alpha=6.0, targets=("q_proj",), dropout=0.25)
    save_adapter(model, tmp_path, "base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_dropout"] == 0.25


def test_in_half_precision_an_adapter_stays_beside_the_weights(tmp_path):
    """bfloat16 would round most of it away: W = 1 plus B A = 2^-9 is 1."""
    add_lora(model := load_model(TINY), rank=2, alpha=4.0)
    scatter(model)
    save_adapter(model, tmp_path, str(TINY))
    layers = dict(lora_layers(load_policy(TINY, tmp_path, torch.bfloat16, "cpu")))
    for name, layer in lora_layers(model):
        assert torch.equal(layers[name].lora_B, layer.lora_B) and layers[name].scale == layer.scale


def test_an_adapter_on_an_adapter_is_saved_as_one(tmp_path):
    """Merge the first, train a second on other layers and at another scale: their sum is saved."""
    save_witness(tmp_path, {"num_key_value_heads": 2})
    one = load_model(tmp_path)
    add_lora(one, rank=3, alpha=9.0, targets=("q_proj", "up_proj"))
    scatter(one, seed=1)
    save_adapter(one, tmp_path / "one", "base")
    one = load_policy(tmp_path, tmp_path / "one", torch.float32, "cpu")
    add_lora(one, rank=2, alpha=1.0, targets=("q_proj", "v_proj"))
    scatter(one, seed=2)
    save_adapter(one, tmp_path / "two", "base", earlier=tmp_path / "one")

    both = with_adapter(load_model(tmp_path), tmp_path / "two")
    input_ids = torch.arange(40)[None]
    torch.testing.assert_close(both(input_ids), one(input_ids), rtol=1e-4, atol=1e-5)
    base = load_model(tmp_path)
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "two"
    ).eval()
    torch.testing.assert_close(theirs(input_ids).logits, both(input_ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base(input_ids), both(input_ids), atol=1e-3)


def edit(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA"),
        ({"use_dora": True}, "use_dora=True is not implemented"),
        ({"use_rslora": True}, "use_rslora=True is not implemented"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern=.* is not implemented"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern=.* is not implemented"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens=\[5\] is not implemented"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=.* is not implemented"),
        ({"of_a_later_version": 1}, "of_a_later_version=1 is not implemented"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base model's"),
        ({"init_lora_weights": "olora"}, "'olora' changes the base model's weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all' is not implemented"),
        ({"r": 0}, "r expects a whole number above 0, got 0"),
        ({"lora_alpha": True}, "lora_alpha expects a number above 0, got True"),
        ({"r": 3}, r"q_proj expects shapes \(\(3, 32\), \(32, 3\)\), got \(\(4, 32\)"),
        ({"target_modules": ["lm_head"]}, "expected target_modules out of"),
        ({"target_modules": ["q_proj", "k_proj"]}, "matrices of 2 layers are missing"),
        ({"target_modules": ["v_proj"]}, "matrices of 2 layers are missing"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(changes, message, tmp_path):
    model = small_model()
    add_lora(model, rank=4, alpha=6.0, targets=("q_proj",))
    save_adapter(model, tmp_path, "base")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        with_adapter(small_model(), tmp_path)


def test_missing_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--adapter expects a folder with adapter_model"):
        with_adapter(small_model(), tmp_path / "nowhere")
