"""Hugging Face folders of safetensors <-> Transformer.

Nothing is pickled. A module's dotted name is the tensor's name in the file, but for the prefix
`model.` that Hugging Face puts before everything except the head. A reward model is what Hugging
Face calls a model for sequence classification with one label: `score.weight` (1, D), no `lm_head`.

A folder may come from anywhere. Its files are judged by their headers before memory is taken for
what they hold, and a file of it is a regular file inside it.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.lora import lora_layers, merged_weight
from model.parallel import fill, is_main, owned, whole
from model.transformer import ModelConfig, Transformer

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
REWARD_ARCHITECTURES = ("LlamaForSequenceClassification", "MistralForSequenceClassification")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
FILE_BYTES = 5 * 10**9  # of one file of weights that is written, at most
JSON_BYTES = 2**28  # of a JSON file that is read, at most
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


# ------------------------------------------------------------------------------------------------
# files of a folder


def check_file(path: Path) -> Path:
    """The path of a regular file; FileNotFoundError, or ValueError for a link out of its folder.

    The cache of the Hugging Face hub has such links, from snapshots/<revision>/ to blobs/.
    """
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"expected {path}: {kind}")
    folder, file = path.parent.resolve(), path.resolve()
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    if not file.is_relative_to(folder) and file.parent not in blobs:
        raise ValueError(f"{path} is a link out of its folder, to {file}; expected the file itself")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FileNotFoundError or ValueError with the file's name.

    What readers understand differently is refused: NaN, and a name twice in one object.
    """
    if (size := check_file(path).stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path}: expected at most {JSON_BYTES} bytes of JSON, got {size}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        fields = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands twice in one object")
    return fields


def check_memory(needed: int, what: str) -> None:
    """ValueError where something cannot fit into this machine's memory."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"{what} would take {needed / 1e9:.1f} GB of memory; this machine has {there / 1e9:.1f}"
        )


# ------------------------------------------------------------------------------------------------
# config.json


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


# ------------------------------------------------------------------------------------------------
# weights in


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Transformer:
    """A Llama or Mistral folder -> Transformer, its weights in `dtype` on `device`.

    path: a folder with config.json and model.safetensors, or the index of several files.
    Raises FileNotFoundError for a missing file, ValueError for missing, unexpected or mis-shaped
    tensors, a corrupt file, and an index that points out of the folder.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"--model expects a folder with config.json, got {path}")
    model = empty_model(path, dtype)
    allocate(model, device)
    read_weights(model, path)
    return model.eval()


def init_model(path: str | Path, dtype: torch.dtype, device: str, seed: int) -> Transformer:
    """Random weights for the architecture of a config.json."""
    model = empty_model(config_file(path), dtype)
    allocate(model, device)
    init_weights(model, seed)
    return model.eval()


def empty_model(path: str | Path, dtype: torch.dtype, reward: bool = False) -> Transformer:
    """An architecture on the meta device: names and shapes without memory.

    path: a config.json; or the folder of a checkpoint, whose weights are then held against the
    architecture here, by name and shape, before `allocate` makes room for them.
    reward: a reward model, whose head stays in float32; a language model's gets one in place of its
    own. Raises as `load_model` does.
    """
    config = read_model_config(path)
    if config.scalar_head and not reward:
        raise ValueError(
            f"{config_file(path)}: expected a language model, got a reward model, "
            "which is for train.py --objective reward and python -m eval.reward"
        )
    if reward:
        config = replace(config, scalar_head=True, tie_word_embeddings=False)
    with torch.device("meta"):
        model = Transformer(config)
    if Path(path).is_dir():
        find_weights(model, path)
    model = model.to(dtype).requires_grad_(False)
    if reward:
        model.score.float()
    return model


def allocate(model: Transformer, device: str) -> None:
    """Memory for a model on the meta device, or for this rank's share of it; not yet written.

    Raises ValueError for a share that is larger than the memory of the machine.
    """
    if torch.device(device).type == "cpu":
        share = sum(owned(parameter)[0].nbytes for parameter in model.parameters())
        check_memory(share, "this rank's share of the model")
    model.to_empty(device=device)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def init_weights(model: Transformer, seed: int) -> None:
    """Random weights, the same on any number of ranks."""
    for parameter, values in model.initial_weights(seed):
        fill(parameter, values)


def read_weights(
    model: Transformer, folder: str | Path, adapter: Mapping[str, tuple[Tensor, Tensor]] = {}
) -> None:
    """Fill a model, or this rank's share of it, from a folder; each rank reads its rows alone.

    adapter: {layer: (A (R, in), B (out, R))} of an adapter of scale 1, to be merged on the way.
    A reward model's head is zero where the folder is a language model's: all rewards are equal.
    Raises as `load_model` does.
    """
    parameters, places = base_parameters(model), find_weights(model, folder)
    for name in parameters.keys() - places.keys():
        owned(parameters[name])[0].zero_()
    for name, (file, file_name) in places.items():
        local, rows = owned(parameters[name])
        values = read_rows(file, file_name, rows)
        if (layer := name.removesuffix(".weight")) in adapter:
            lora_A, lora_B = adapter[layer]
            values = merged_weight(values.float(), lora_A, lora_B[rows], 1.0)
        local.copy_(values)


def find_weights(model: Transformer, folder: str | Path) -> dict[str, tuple[Path, str]]:
    """{parameter: (file, name in it)} of a folder, every shape checked; no tensor is read.

    For a reward model the folder may be a language model's: its head is left out, and so is ours.
    Raises as `load_model` does.
    """
    folder = Path(folder)
    expected = {name: tuple(x.shape) for name, x in base_parameters(model).items()}
    other_head = model.config.scalar_head and not read_model_config(folder).scalar_head
    if other_head:
        del expected["score.weight"]
    places = {}
    for file in weight_files(folder):
        for file_name, shape in tensor_shapes(file).items():
            name = file_name.removeprefix("model.")
            if ignored(name, other_head or model.config.tie_word_embeddings):
                continue
            if name not in expected or name in places:
                raise ValueError(f"{file}: unexpected or repeated tensor {name!r}")
            if shape != expected[name]:
                wanted = expected[name]
                raise ValueError(f"{file}: tensor {name} expects shape {wanted}, got {shape}")
            places[name] = file, file_name
    if missing := sorted(expected.keys() - places.keys()):
        some = ", ".join(missing[:3])
        raise ValueError(f"{folder}: {len(missing)} tensors are missing: {some}")
    return places


def base_parameters(model: Transformer) -> dict[str, torch.nn.Parameter]:
    """The parameters but the adapters', under the names that they have without adapters."""
    return {
        name.replace(".base.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def ignored(name: str, no_head: bool) -> bool:
    """Tensors that checkpoints carry and the architecture does not need."""
    return name.endswith("rotary_emb.inv_freq") or (no_head and name == "lm_head.weight")


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


# ------------------------------------------------------------------------------------------------
# tensors in a file


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a safetensors file, from its header; no shape is empty.

    Raises ValueError for a corrupt file, for whole numbers, and for shapes that torch cannot have.
    """
    shapes = {}
    with open_tensors(file) as reader:
        for name in reader.keys():
            part = reader.get_slice(name)
            if part.get_dtype() not in FLOATS:
                raise ValueError(f"{file}: tensor {name!r} expects floats, got {part.get_dtype()}")
            shapes[name] = tuple(part.get_shape())
            if not shapes[name] or max(shapes[name]) >= 2**63:
                raise ValueError(f"{file}: tensor {name!r} has a shape of no use, {shapes[name]}")
    return shapes


def read_rows(file: Path, name: str, rows: slice) -> Tensor:
    """Some rows of a tensor. The file is opened for each: closing it is what frees its pages."""
    with open_tensors(file) as reader:
        return reader.get_slice(name)[rows].clone()


@contextmanager
def open_tensors(file: Path) -> Iterator[safe_open]:
    try:
        with map_tensors(check_file(file)) as reader:
            yield reader
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from None


def map_tensors(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (RuntimeError, MemoryError) as error:  # of torch; the file is larger than the machine
        reason = str(error).splitlines()[0]
        raise OSError(f"{file} cannot be mapped into memory: {reason}") from None


def write_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one.

    Raises OSError where it cannot be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")  # runs may share a cache
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)  # readable like any other file, whatever the library's default
        partial.replace(file)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# weights out


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer_files: list[Path],
    file_bytes: int = FILE_BYTES,
    **ids: Any,
) -> None:
    """A folder that load_model and transformers read; rank 0 writes, every rank has to call.

    An adapter is merged in what is written, which then is float32: bfloat16 rounds most of it away.
    tokenizer_files: copied beside the weights; file_bytes: of one file, and of the host's memory
    for it; ids: bos_token_id and eos_token_id for config.json.
    """
    folder = Path(folder)
    weights, layers = base_parameters(model), dict(lora_layers(model))
    dtype = torch.float32 if layers else model.embed_tokens.weight.dtype
    sizes = {name: parameter.numel() * dtype.itemsize for name, parameter in weights.items()}
    parts = cut(sizes, file_bytes)
    weight_map = {}
    for number, names in enumerate(parts, start=1):
        file = "model.safetensors"
        if len(parts) > 1:
            file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {}
        for name in names:
            values = whole(weights[name]).to(dtype)
            if (layer := layers.get(name.removesuffix(".weight"))) is not None:
                matrices = whole(layer.lora_A), whole(layer.lora_B)
                values = merged_weight(values, *matrices, layer.scale)
            if is_main():
                tensors[to_file_name(name)] = values.cpu()
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(tensors, folder / file)
        weight_map |= {to_file_name(name): file for name in names}
    if not is_main():
        return
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_model_config(model.config, folder / "config.json", dtype, **ids)
    for file in tokenizer_files:
        if file.parent.resolve() != folder.resolve():
            shutil.copyfile(file, folder / file.name)


def cut(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in parts of at most `limit` bytes together; one that is larger is a part of its own."""
    parts: list[list[str]] = []
    total = 0
    for name, size in sizes.items():
        if not parts or total + size > limit:
            parts.append([])
            total = 0
        parts[-1].append(name)
        total += size
    return parts


def to_file_name(name: str) -> str:
    return name if name.startswith(("lm_head.", "score.")) else f"model.{name}"
