"""config.json against transformers, and what of it is refused.

pytest tests/test_architecture.py
"""

import json

import pytest
import torch
import transformers

from model.architecture import read_model_config
from model.checkpoint import load_model
from tests.test_checkpoint import edit
from tests.test_transformer import LLAMA3, save_witness


def test_config_written_by_transformers_itself_loads(tmp_path):
    """The rope_parameters form, as transformers 5 writes it."""
    witness = save_witness(tmp_path, {"rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    witness.config.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    input_ids = torch.arange(90)[None]
    with torch.no_grad():
        assert (load_model(tmp_path)(input_ids) - witness(input_ids).logits).abs().max() < 1e-4


def test_windows_are_mistrals_alone(tmp_path):
    """transformers ignores a window in a Llama; a Mistral has 4096 where its file is silent."""
    save_witness(tmp_path, {"sliding_window": 7})
    assert read_model_config(tmp_path).sliding_window is None
    for window, expected in ((7, 7), (None, None), ("absent", 4096)):
        save_witness(tmp_path, {"sliding_window": None}, mistral=True)
        fields = json.loads((tmp_path / "config.json").read_text())
        fields["sliding_window"] = window
        if window == "absent":
            del fields["sliding_window"]
            assert transformers.MistralConfig().sliding_window == expected
        (tmp_path / "config.json").write_text(json.dumps(fields))
        assert read_model_config(tmp_path).sliding_window == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "expected architectures with LlamaForCausalLM or"),
        ({"architectures": "absent"}, "expected architectures with LlamaForCausalLM or"),
        ({"architectures": "LlamaForCausalLM"}, "got 'LlamaForCausalLM'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings expects true or false"),
        ({"rope_scaling": "linear"}, "rope_scaling expects an object, got 'linear'"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "expected rope_parameters or rope_scaling, or both alike",
        ),
        ({"rope_scaling": {"rope_type": ["x"]}}, "expected rope_type"),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor expects more than low_freq_factor",
        ),
        ({"hidden_act": "gelu"}, "expected hidden_act silu, got 'gelu'"),
        ({"hidden_size": "absent"}, "hidden_size expects a whole number above 0, got None"),
        ({"hidden_size": -1}, "hidden_size expects a whole number above 0, got -1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers expects a whole number"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"head_dim": 7}, "head_dim expects an even number, got 7"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps expects a number above 0, got 'small'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type .*got 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type .*got 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor expects a number above 0, got None"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message, tmp_path):
    save_witness(tmp_path, {"num_key_value_heads": 2})
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_model_config(tmp_path)
