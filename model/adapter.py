"""Adapters on disk, in PEFT's format: adapter_model.safetensors and adapter_config.json.

Only the thin matrices are written, never the frozen base. A run that starts from an adapter merges
it into the base and trains a fresh one; what it saves is the sum of both, which is again an adapter
of the original base, since s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2].

A reward model's head is trained whole beside the matrices and stands in the same file, as PEFT has
it for sequence classification: `modules_to_save` names it.
"""

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from model.architecture import read_number
from model.checkpoint import allocate, base_parameters, empty_model, read_weights, to_file_name
from model.files import check_memory, read_json, read_rows, tensor_shapes, write_tensors
from model.lora import TARGETS, add_lora, lora_layers
from model.parallel import fill, is_main, shard, whole
from model.transformer import Transformer

PREFIX = "base_model.model."
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Matrices = dict[str, tuple[Tensor, Tensor]]  # layer -> (lora_A (R, in), lora_B (out, R))
PARTS = ("lora_A", "lora_B")
HEAD = f"{PREFIX}score.weight"
HEADS = ("score", "classifier")  # names that PEFT gives to heads, whichever the model has
# fields of PEFT's configuration that leave a plain LoRA plain, or are looked at one by one; any
# other that says something (use_dora, layer_replication, ...) makes another model of the weights
READ = ("peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "bias",
        "init_lora_weights")  # fmt: skip
IDLE = ("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
        "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
        "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
        "task_type")  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the base as it is


def save_adapter(
    model: Transformer, folder: str | Path, base_model: str, earlier: str | Path | None = None
) -> None:
    """Write the adapter of a model as PEFT reads it; rank 0 writes, every rank has to call.

    base_model: where its base was loaded from. earlier: the adapter that had been merged into that
    base; it is written along.
    """
    folder = Path(folder)
    layers = dict(lora_layers(model))
    assert layers, "the model has no adapter"
    matrices = {name: (whole(x.lora_A), whole(x.lora_B)) for name, x in layers.items()}
    reward = model.config.scalar_head
    tensors = {HEAD: whole(model.score.weight)} if reward else {}
    first = next(iter(layers.values()))
    rank = first.lora_A.shape[0]
    alpha = first.scale * rank
    if not is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if earlier is not None:
        scaled = {name: (A, first.scale * B) for name, (A, B) in matrices.items()}
        matrices = stack(scaled, read_scaled(model, earlier))
        rank = alpha = next(iter(matrices.values()))[0].shape[0]
    for name, (lora_A, lora_B) in matrices.items():
        tensors[f"{PREFIX}{to_file_name(name)}.lora_A.weight"] = lora_A
        tensors[f"{PREFIX}{to_file_name(name)}.lora_B.weight"] = lora_B
    fields = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": first.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in matrices}),
        "modules_to_save": ["score"] if reward else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_tensors(tensors, folder / FILE)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def load_policy(
    model: str | Path,
    adapter: str | Path | None,
    dtype: torch.dtype,
    device: str,
    sharded: bool = False,
    reward: bool = False,
) -> Transformer:
    """A model to sample from: the checkpoint with its adapter, if any.

    The adapter is merged into float32 weights; bfloat16 would round most of it away, so there it
    stays beside them. sharded: share the weights among the ranks. reward: a reward model, whose
    head is the adapter's where it has one.
    Raises FileNotFoundError, or ValueError for a broken checkpoint, for options of PEFT's that are
    not plain LoRA, and for matrices that are missing, unexpected or do not fit the model.
    """
    policy = empty_model(model, dtype, reward)
    merged = read_scaled(policy, adapter) if adapter and dtype == torch.float32 else {}
    if adapter and not merged:
        add_adapter(policy, adapter)
    if sharded:
        shard(policy, device, dtype)
    allocate(policy, device)
    read_weights(policy, model, merged)
    if adapter and not merged:
        fill_adapter(policy, adapter)
    if adapter:
        fill_head(policy, adapter)
    return policy.eval()


def add_adapter(model: Transformer, folder: str | Path) -> None:
    """Give a model fresh adapters of the rank, the scale and on the layers that a folder has."""
    rank, alpha, targets = read_adapter_config(Path(folder))
    find_matrices(model, Path(folder))
    add_lora(model, rank, alpha, targets)


def fill_adapter(model: Transformer, folder: str | Path) -> None:
    """Write the matrices of a folder into a model that has adapters of that shape."""
    layers = dict(lora_layers(model))
    for name, (lora_A, lora_B) in read_matrices(model, Path(folder)).items():
        fill(layers[name].lora_A, lora_A)
        fill(layers[name].lora_B, lora_B)


def fill_head(model: Transformer, folder: str | Path) -> None:
    """Write the head of a reward model's adapter into a model; nothing where it has none."""
    if has_head(folder):
        fill(model.score.weight, read_rows(Path(folder) / FILE, HEAD, slice(None)))


def has_head(folder: str | Path) -> bool:
    """Whether an adapter is a reward model's."""
    return bool(read_json(Path(folder) / CONFIG).get("modules_to_save"))


def read_matrices(model: Transformer, folder: Path) -> Matrices:
    """The matrices of an adapter for a model, under the names of its layers; float32."""
    return {
        layer: tuple(read_rows(folder / FILE, name, slice(None)).float() for name in names)
        for layer, names in find_matrices(model, folder).items()
    }


def find_matrices(model: Transformer, folder: Path) -> dict[str, tuple[str, str]]:
    """{layer: names of lora_A and lora_B in the file}, every shape checked; no tensor is read."""
    rank, _, targets = read_adapter_config(folder)
    expected = {}
    for name, parameter in base_parameters(model).items():
        layer = name.removesuffix(".weight")
        if layer != name and layer.rpartition(".")[2] in targets:
            height, width = parameter.shape
            expected[layer] = ((rank, width), (height, rank))
    file = folder / FILE
    found = {part: {} for part in PARTS}
    shapes = tensor_shapes(file)
    if has_head(folder):
        check_head(model, folder, shapes.pop(HEAD, None))
    for name in shapes:
        match = re.fullmatch(rf"{re.escape(PREFIX)}(?:model\.)?(.+)\.(lora_[AB])\.weight", name)
        if match is None or match[1] in found[match[2]]:
            raise ValueError(f"{file}: unexpected or repeated tensor {name!r}; plain LoRA only")
        found[match[2]][match[1]] = name
    one, two = (found[part] for part in PARTS)
    if lone := one.keys() ^ two.keys():
        raise ValueError(f"{file}: only one of lora_A and lora_B for {sorted(lone)[0]!r}")
    for problem, layers in (("missing", expected.keys() - one.keys()),
                            ("unexpected", one.keys() - expected.keys())):  # fmt: skip
        if layers:
            some = ", ".join(sorted(layers)[:3])
            raise ValueError(
                f"{file}: matrices of {len(layers)} layers are {problem}: {some}; "
                f"is this the adapter's base model?"
            )
    places = {layer: (one[layer], two[layer]) for layer in one}
    for layer, names in places.items():
        got, wanted = tuple(shapes[name] for name in names), expected[layer]
        if got != wanted:
            raise ValueError(f"{file}: {layer} expects shapes {wanted}, got {got}")
    check_memory(4 * sum(math.prod(shape) for shape in shapes.values()), str(file))
    return places


def check_head(model: Transformer, folder: Path, shape: tuple[int, ...] | None) -> None:
    """ValueError for a reward model's adapter on a language model, or a head that does not fit."""
    if not model.config.scalar_head:
        raise ValueError(f"{folder}: the adapter of a reward model; expected a language model's")
    if shape != (wanted := (1, model.config.hidden_size)):
        raise ValueError(f"{folder / FILE}: tensor {HEAD!r} expects shape {wanted}, got {shape}")


def read_scaled(model: Transformer, folder: str | Path) -> Matrices:
    """The matrices of an adapter for a model, its scale multiplied into B."""
    rank, alpha, _ = read_adapter_config(Path(folder))
    matrices = read_matrices(model, Path(folder))
    return {name: (A, B * (alpha / rank)) for name, (A, B) in matrices.items()}


def stack(one: Matrices, two: Matrices) -> Matrices:
    """The sum of two adapters of scale 1; where only one has a layer, the other counts as 0."""
    ranks = [next(iter(matrices.values()))[0].shape[0] for matrices in (one, two)]
    total = {}
    for name in sorted(one.keys() | two.keys()):
        known = one.get(name) or two.get(name)
        width, height = known[0].shape[1], known[1].shape[0]
        pairs = [
            matrices.get(name) or (torch.zeros(rank, width), torch.zeros(height, rank))
            for matrices, rank in zip((one, two), ranks, strict=True)
        ]
        pairs = [(A.cpu(), B.cpu()) for A, B in pairs]
        total[name] = torch.cat([A for A, _ in pairs]), torch.cat([B for _, B in pairs], dim=1)
    return total


def read_adapter_config(folder: Path) -> tuple[int, float, tuple[str, ...]]:
    """(rank, alpha, targets) of a folder with an adapter; ValueError for what is not plain LoRA."""
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"--adapter expects a folder with {FILE}, got {folder}")
    path = folder / CONFIG
    fields = read_json(path)
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{path}: expected peft_type LORA, got {fields.get('peft_type')!r}")
    for name in sorted(fields.keys() - {*READ, *IDLE}):
        if fields[name]:
            raise ValueError(f"{path}: {name}={fields[name]!r} is not implemented; plain LoRA only")
    if (start := fields.get("init_lora_weights", True)) not in STARTS:
        raise ValueError(
            f"{path}: init_lora_weights={start!r} changes the base model's weights, which is not "
            "implemented; save it converted to plain LoRA (PEFT: "
            "path_initial_model_for_weight_conversion)"
        )
    heads = fields.get("modules_to_save") or ["score"]
    if not isinstance(heads, list) or "score" not in heads or not all(h in HEADS for h in heads):
        raise ValueError(f"{path}: modules_to_save={heads!r} is not implemented; expected score")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias={fields['bias']!r} is not implemented; expected none")
    rank, alpha = fields.get("r"), read_number(path, fields, "lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{path}: r expects a whole number above 0, got {rank!r}")
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        targets = re.findall(r"\b\w+_proj", targets)
    known = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    names = {target.rpartition(".")[2] for target in targets} if known else set()
    if not names or not names <= set(TARGETS):
        raise ValueError(f"{path}: expected target_modules out of {TARGETS}, got {targets!r}")
    return rank, alpha, tuple(name for name in TARGETS if name in names)
