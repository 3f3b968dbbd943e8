"""Hugging Face folders of safetensors <-> Transformer.

Nothing is pickled. A module's dotted name is the tensor's name in the file, but for the prefix
`model.` that Hugging Face puts before everything except the head.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.lora import lora_layers
from model.transformer import ModelConfig, Transformer

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


# ------------------------------------------------------------------------------------------------
# config.json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FileNotFoundError or ValueError with the file's name."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}: no such file")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def read_model_config(path: str | Path) -> ModelConfig:
    """A checkpoint's config.json (a file, or the folder that holds it) -> ModelConfig.

    Raises ValueError for another architecture, an activation or a rotary scaling that is not
    implemented, and for sizes that do not fit together.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    fields = read_json(path)
    names = fields.get("architectures")
    if not isinstance(names, list) or not any(name in ARCHITECTURES for name in names):
        expected = " or ".join(ARCHITECTURES)
        raise ValueError(f"{path}: expected architectures with {expected}, got {names!r}")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"{path}: expected hidden_act silu, got {fields['hidden_act']!r}")

    def size(name: str, default: int | None = None) -> int:
        value = fields.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {name} expects a whole number above 0, got {value!r}")
        return value

    heads = size("num_attention_heads")
    theta, scaling = read_rope(path, fields)
    # as in transformers: only Mistral has a window, 4096 where its file is silent
    mistral = ARCHITECTURES[1] in names
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
        tie_word_embeddings=read_switch(path, fields, "tie_word_embeddings"),
        initializer_range=read_number(path, fields, "initializer_range", 0.02),
    )
    if heads % config.num_key_value_heads:
        raise ValueError(
            f"{path}: num_attention_heads ({heads}) is not a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})"
        )
    if config.head_dim % 2:
        raise ValueError(f"{path}: head_dim expects an even number, got {config.head_dim}")
    return config


def read_rope(path: Path, fields: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """rope_theta and the scaling, in the old form (rope_scaling) or the newer (rope_parameters)."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
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
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"{path}: {name} expects a number above 0, got {value!r}")
    return float(value)


def write_model_config(config: ModelConfig, path: Path, dtype: torch.dtype, **ids: Any) -> None:
    """config.json as transformers reads it; ids: bos_token_id and eos_token_id."""
    fields = asdict(config)
    scaling = fields.pop("rope_scaling")
    fields["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    mistral = config.sliding_window is not None
    fields = {
        "architectures": [ARCHITECTURES[1] if mistral else ARCHITECTURES[0]],
        "model_type": "mistral" if mistral else "llama",
        "hidden_act": "silu",
        **fields,
        **ids,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    path.write_text(json.dumps(fields, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------
# weights


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Transformer:
    """A Llama or Mistral folder -> Transformer, its weights in `dtype` on `device`.

    path: a folder with config.json and model.safetensors, or the index of several files.
    Raises FileNotFoundError for a missing file, ValueError for missing, unexpected or mis-shaped
    tensors, a corrupt file, and an index that points out of the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {path}")
    with torch.device("meta"):
        model = Transformer(read_model_config(folder))
    expected = dict(model.state_dict(keep_vars=True))
    tied = model.config.tie_word_embeddings
    if tied:
        del expected["lm_head.weight"]
    for file in weight_files(folder):
        for name, tensor in read_tensors(file, dtype, device):
            name = name.removeprefix("model.")
            if ignored(name, tied):
                continue
            if name not in expected:
                raise ValueError(f"{file}: unexpected or repeated tensor {name}")
            shape = tuple(expected.pop(name).shape)
            if tuple(tensor.shape) != shape:
                got = tuple(tensor.shape)
                raise ValueError(f"{file}: tensor {name} expects shape {shape}, got {got}")
            put(model, name, tensor)
    if expected:
        some = ", ".join(sorted(expected)[:3])
        raise ValueError(f"{folder}: {len(expected)} tensors are missing: {some}")
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def init_model(path: str | Path, dtype: torch.dtype, device: str, seed: int) -> Transformer:
    """Random weights for the architecture of a config.json."""
    model = Transformer(read_model_config(path))
    model.init_weights(seed)
    return model.to(device=device, dtype=dtype).eval()


def put(model: torch.nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(parent), leaf, parameter)


def ignored(name: str, tied: bool) -> bool:
    """Tensors that old checkpoints carry and the architecture does not need."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that model.safetensors.index.json names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder}: expected model.safetensors or model.safetensors.index.json, found neither"
        )
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: expected a weight_map from tensor to file name")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name or name == "..":
            raise ValueError(f"{index}: {name!r} is not a file name inside the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names {name}: no such file")
    return [folder / name for name in files]


def read_tensors(
    file: Path, dtype: torch.dtype | None, device: str
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a safetensors file, one at a time; None keeps the stored dtype."""
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            for name in reader.keys():
                tensor = reader.get_tensor(name)
                if not tensor.is_floating_point():
                    raise ValueError(f"{file}: tensor {name} expects floats, got {tensor.dtype}")
                yield name, tensor.to(device=device, dtype=dtype or tensor.dtype)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from None


def save_model(model: Transformer, folder: str | Path, tokenizer_files: list[Path], **ids) -> None:
    """A folder that load_model and transformers read; adapters must have been merged.

    tokenizer_files: copied beside the weights; ids: bos_token_id and eos_token_id for config.json.
    """
    assert not list(lora_layers(model)), "merge the adapter before saving the whole model"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {to_file_name(name): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    write_tensors(tensors, folder / "model.safetensors")
    write_model_config(model.config, folder / "config.json", model.embed_tokens.weight.dtype, **ids)
    for file in tokenizer_files:
        if file.parent.resolve() != folder.resolve():
            shutil.copy(file, folder)


def write_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one."""
    partial = file.with_name(file.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata={"format": "pt", **(metadata or {})})
    partial.chmod(0o644)  # readable like any other file, whatever the library's default
    partial.replace(file)


def to_file_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
