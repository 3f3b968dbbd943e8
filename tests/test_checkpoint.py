"""Reading and writing checkpoints: transformers reads ours, and every broken folder gets a message.

pytest tests/test_checkpoint.py
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from model.architecture import read_model_config
from model.checkpoint import cut, init_model, load_model, save_model
from model.lora import add_lora
from tests.test_lora import scatter
from tests.test_transformer import LLAMA3, save_witness


@pytest.fixture
def folder(tmp_path) -> Path:
    save_witness(tmp_path, {"num_key_value_heads": 2})
    return tmp_path


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v != "absent"}))


def shard(folder: Path, count: int = 3) -> dict[str, str]:
    """Split model.safetensors into files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = enumerate(sorted(tensors))
    weight_map = {name: f"model-{i % count}.safetensors" for i, name in names}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ],
)
def test_transformers_reads_what_we_write(options, tmp_path):
    save_witness(tmp_path, options)
    model = load_model(tmp_path)
    save_model(model, tmp_path / "out", [], bos_token_id=1, eos_token_id=2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    input_ids = torch.arange(90)[None]
    with torch.no_grad():
        ours = model(input_ids)
        assert (theirs(input_ids).logits - ours).abs().max().item() < 1e-4
        assert torch.equal(load_model(tmp_path / "out")(input_ids), ours)
    assert read_model_config(tmp_path / "out") == model.config


def test_large_weights_go_into_several_files(tmp_path):
    """No file is larger than asked for, but for a tensor that is; transformers reads the index."""
    save_witness(tmp_path, {})
    model = load_model(tmp_path)
    save_model(model, tmp_path / "out", [], file_bytes=20_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        assert all(index["weight_map"][name] == file.name for name in tensors)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    input_ids = torch.arange(90)[None]
    with torch.no_grad():
        assert (theirs(input_ids).logits - model(input_ids)).abs().max().item() < 1e-4
        assert torch.equal(load_model(tmp_path / "out")(input_ids), model(input_ids))


def test_a_file_holds_as_much_as_is_allowed():
    assert cut({"a": 3, "b": 2, "c": 6, "d": 1}, 5) == [["a", "b"], ["c"], ["d"]]


def test_an_adapter_is_merged_in_what_is_written(tmp_path):
    """In float32, whatever the base is kept in: bfloat16 would round most of it away."""
    save_witness(tmp_path, {})
    model = load_model(tmp_path, torch.bfloat16)
    add_lora(model, rank=4, alpha=8.0)
    scatter(model)
    save_model(model, tmp_path / "out", [])
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    layer = model.layers[1].mlp.up_proj
    expected = layer.base.weight.double() + 2.0 * layer.lora_B.double() @ layer.lora_A.double()
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert layer.base.weight.dtype == torch.bfloat16  # the policy itself is left as it is


def test_window_is_written_as_mistral(tmp_path):
    save_witness(tmp_path, {"sliding_window": 7}, mistral=True)
    model = load_model(tmp_path)
    save_model(model, tmp_path / "out", [])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(theirs).__name__ == "MistralForCausalLM"
    input_ids = torch.arange(90)[None]
    with torch.no_grad():
        assert (theirs(input_ids).logits - model(input_ids)).abs().max().item() < 1e-4


def test_sharded_equals_whole(folder):
    whole = load_model(folder).state_dict()
    shard(folder)
    parts = load_model(folder).state_dict()
    assert whole.keys() == parts.keys() and all(torch.equal(whole[n], parts[n]) for n in whole)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_dtypes(folder, stored, wanted):
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(stored) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    model = load_model(folder, wanted)
    assert {p.dtype for p in model.parameters()} == {wanted}
    expected = tensors["model.norm.weight"].to(wanted)
    assert torch.equal(model.norm.weight, expected)


def test_tied_weights_are_one_parameter(tmp_path):
    save_witness(tmp_path, {"tie_word_embeddings": True})
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.embed_tokens.weight
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # some have a copy
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)  # old Llamas, too
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)
    tensors["lm_head.weight"][96, 47] += 1  # transformers 5 would not tie these
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weight differs from the embedding"):
        load_model(tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    assert torch.equal(load_model(tmp_path).lm_head.weight, tensors["lm_head.weight"])


def test_random_weights_from_a_config(folder):
    one, two = (init_model(folder / "config.json", torch.float32, "cpu", s) for s in (0, 1))
    assert one(torch.arange(9)[None]).isfinite().all()
    assert not torch.equal(one.embed_tokens.weight, two.embed_tokens.weight)
    assert one.config == load_model(folder).config


# ------------------------------------------------------------------------------------------------
# what is refused, and how


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "9 tensors are missing: layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "unexpected or repeated tensor 'layers.2"),
        ({"vocab_size": 98}, r"tensor \S+ expects shape \(98, 48\), got \(97, 48\)"),
        ({"attention_bias": True}, "tensors are missing: layers.0.self_attn.k_proj.bias"),
    ],
)
def test_weights_that_are_not_the_config_s_are_refused(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_broken_files_are_named(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-100], whole[:5], b"", b"\xff" * 200, whole[:8] + b"{" + whole[9:]):
        if content != whole:
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"model.safetensors is truncated or corrupt"):
                load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        load_model(folder)


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match="--model expects a folder"):
        load_model(folder / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="found neither"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../model-0.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_an_index_must_stay_in_its_folder(folder, name):
    weight_map = shard(folder)
    weight_map["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="is not a file name inside the folder"):
        load_model(folder)


def test_broken_indices_are_named(folder):
    shard(folder)
    index = folder / "model.safetensors.index.json"
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names model-1.safetensors: no such file"):
        load_model(folder)
    index.write_text(json.dumps({"weight_map": ["model-0.safetensors"]}))
    with pytest.raises(ValueError, match="expected a weight_map"):
        load_model(folder)
