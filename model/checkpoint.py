"""Hugging Face folders of safetensors <-> Transformer.

A module's dotted name is the tensor's name in the file, but for the prefix `model.` that Hugging
Face puts before everything except the head. A reward model is what Hugging Face calls a model for
sequence classification with one label: `score.weight` (1, D), no `lm_head`.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.architecture import config_file, read_model_config, write_model_config
from model.files import check_memory, read_json, read_rows, tensor_shapes, write_tensors
from model.lora import lora_layers, merged_weight
from model.parallel import fill, is_main, owned, whole
from model.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILE_BYTES = 5 * 10**9  # of one file of weights that is written, at most


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
    if model.config.tie_word_embeddings:
        check_tied_head(Path(folder), places["embed_tokens.weight"], owned(model.lm_head.weight)[1])


def check_tied_head(folder: Path, embedding: tuple[Path, str], rows: slice) -> None:
    """ValueError where these rows of a folder's head are not its embedding's, though it says so."""
    for file in weight_files(folder):
        for name in tensor_shapes(file):
            if name.removeprefix("model.") != "lm_head.weight":
                continue
            if not torch.equal(read_rows(file, name, rows), read_rows(*embedding, rows)):
                raise ValueError(
                    f"{file}: {name} differs from the embedding, and config.json has "
                    "tie_word_embeddings true; set that to false to use the head that is there"
                )


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
