"""config.json <-> ModelConfig: the architectures, and what of them is implemented."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.files import read_json
from model.transformer import ModelConfig

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
REWARD_ARCHITECTURES = ("LlamaForSequenceClassification", "MistralForSequenceClassification")
LARGEST = {  # sizes in a config.json, each far beyond every published model
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "intermediate_size": 2**22,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "max_position_embeddings": 2**31,
    "sliding_window": 2**31,
}
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def read_model_config(path: str | Path) -> ModelConfig:
    """A checkpoint's config.json (a file, or the folder that holds it) -> ModelConfig.

    Raises ValueError for another architecture, an activation or a rotary scaling that is not
    implemented, more than one label, and for sizes that do not fit together.
    """
    path = config_file(path)
    fields = read_json(path)
    names = fields.get("architectures")
    known = (*ARCHITECTURES, *REWARD_ARCHITECTURES)
    if not isinstance(names, list) or not any(name in known for name in names):
        raise ValueError(f"{path}: expected architectures with {' or '.join(known)}, got {names!r}")
    reward = not any(name in ARCHITECTURES for name in names)
    if reward and (labels := count_labels(fields)) != 1:
        raise ValueError(f"{path}: a reward model expects one label in id2label, got {labels}")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{path}: expected hidden_act silu, got {fields['hidden_act']!r}")

    def size(name: str, default: int | None = None) -> int:
        value = fields.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} expects a whole number above 0, got {value!r}")
        if value > LARGEST[name]:
            raise ValueError(f"{path}: {name} expects at most {LARGEST[name]}, got {value}")
        return value

    heads = size("num_attention_heads")
    theta, scaling = read_rope(path, fields)
    # as in transformers: only Mistral has a window, 4096 where its file is silent
    mistral = ARCHITECTURES[1] in names or REWARD_ARCHITECTURES[1] in names
    window = fields.get("sliding_window", 4096) if mistral else None
    config = ModelConfig(
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", size("hidden_size") // heads),
        max_position_embeddings=size("max_position_embeddings", 2048),
        rms_norm_eps=read_number(path, fields, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=None if window is None else size("sliding_window", 4096),
        attention_bias=read_switch(path, fields, "attention_bias"),
        mlp_bias=read_switch(path, fields, "mlp_bias"),
        tie_word_embeddings=not reward and read_switch(path, fields, "tie_word_embeddings"),
        initializer_range=read_number(path, fields, "initializer_range", 0.02),
        scalar_head=reward,
    )
    if heads % config.num_key_value_heads:
        raise ValueError(
            f"{path}: num_attention_heads ({heads}) is not a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})"
        )
    if config.head_dim % 2:
        raise ValueError(f"{path}: head_dim expects an even number, got {config.head_dim}")
    return config


def count_labels(fields: dict[str, Any]) -> Any:
    """Labels of a model for sequence classification; as in transformers, 2 where none is named."""
    names = fields.get("id2label")
    return fields.get("num_labels", len(names) if isinstance(names, dict) else 2)


def config_file(path: str | Path) -> Path:
    """config.json, where a path is the folder that holds it."""
    return Path(path) / "config.json" if Path(path).is_dir() else Path(path)


def read_rope(path: Path, fields: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """rope_theta and the scaling, in the old form (rope_scaling) or the newer (rope_parameters)."""
    older, newer = fields.get("rope_scaling"), fields.get("rope_parameters")
    if older and newer and older != newer:
        raise ValueError(
            f"{path}: expected rope_parameters or rope_scaling, or both alike, "
            f"got {newer} and {older}"
        )
    scaling = newer or older or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"{path}: rope_scaling expects an object, got {scaling!r}")
    theta = read_number(path, {**fields, **scaling}, "rope_theta", 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        expected = ", ".join(ROPE_FIELDS)
        raise ValueError(f"{path}: expected rope_type {expected}, got {kind!r}")
    values = {name: read_number(path, scaling, name) for name in ROPE_FIELDS[kind]}
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise ValueError(f"{path}: high_freq_factor expects more than low_freq_factor, {values}")
    return theta, {"rope_type": kind, **values}


def read_switch(path: Path, fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if type(value) is not bool:
        raise ValueError(f"{path}: {name} expects true or false, got {value!r}")
    return value


def read_number(path: Path, fields: dict[str, Any], name: str, default: Any = None) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{path}: {name} expects a number above 0, got {value!r}")
    return float(value)


def write_model_config(config: ModelConfig, path: Path, dtype: torch.dtype, **ids: Any) -> None:
    """config.json as transformers reads it; ids: bos_token_id and eos_token_id."""
    fields = asdict(config)
    scaling = fields.pop("rope_scaling")
    fields["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    architectures = ARCHITECTURES
    if fields.pop("scalar_head"):
        architectures = REWARD_ARCHITECTURES
        fields |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    mistral = config.sliding_window is not None
    fields = {
        "architectures": [architectures[mistral]],
        "model_type": "mistral" if mistral else "llama",
        "hidden_act": "silu",
        **fields,
        **ids,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    path.write_text(json.dumps(fields, indent=2) + "\n")
