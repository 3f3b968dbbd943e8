"""Files from anywhere: what is wrong with them is said, quickly and before memory is taken.

pytest tests/test_hostile.py
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data import prompts as data_prompts
from data import rows as data_rows
from data.chat import detect_chat_format, template_fingerprint
from data.problems import check_solution
from data.prompts import read_prompts
from data.rows import data_files, read_rows
from data.synthetic import checked_rows
from data.tokenizer import load_tokenizer
from model import adapter, checkpoint, files
from model.adapter import add_adapter, load_policy
from model.checkpoint import allocate, empty_model, init_model, load_model
from tests.conftest import ROOT
from tests.fuzz import make_adapter, make_sentencepiece, make_shards, make_tokenizer_json
from tests.test_files import tensor, write_raw

TINY = ROOT / "data" / "tiny"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model with its adapter and its tokenizer, small and valid."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make_adapter(folder)
    make_sentencepiece(folder)
    return folder


@pytest.fixture
def shards(tmp_path) -> Path:
    make_shards(tmp_path)
    return tmp_path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def no_memory(monkeypatch):
    """What is refused here is refused before any memory is taken."""

    def fail(*args) -> None:
        pytest.fail("memory was taken for files that are broken")

    for module in (checkpoint, adapter):
        monkeypatch.setattr(module, "allocate", fail)


# ------------------------------------------------------------------------------------------------
# weights


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "..", ".", "a/b", "a\0", "", "\ud800"]
)
def test_an_index_that_leads_out_of_the_folder(name, shards, no_memory):
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    edit(shards / INDEX, weight_map={**weight_map, "model.norm.weight": name})
    with pytest.raises((ValueError, FileNotFoundError), match=INDEX):
        load_model(shards)


def test_the_last_of_many_files_is_looked_at_before_the_first_is_read(shards, no_memory):
    last = sorted(shards.glob("*.safetensors"))[-1]
    tensors = load_file(last)
    save_file({name: torch.cat([x, x]) for name, x in tensors.items()}, last)
    for load in (load_model, lambda path: load_policy(path, None, torch.bfloat16, "cpu")):
        with pytest.raises(ValueError, match=rf"{last.name}: tensor .* expects shape"):
            load(shards)


def test_a_folder_is_checked_where_the_model_takes_shape(folder):
    """Whoever allocates has called `empty_model` before."""
    (folder / "model.safetensors").write_bytes(b"")
    empty_model(folder / "config.json", torch.float32)  # for random weights
    with pytest.raises(ValueError, match="truncated or corrupt"):
        empty_model(folder, torch.float32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="found neither"):
        empty_model(folder, torch.float32)
    init_model(folder, torch.float32, "cpu", seed=0)


# ------------------------------------------------------------------------------------------------
# sizes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 10**12),
        ("num_hidden_layers", 10**9),
        ("max_position_embeddings", 10**18),
        ("vocab_size", 2**63),
        ("intermediate_size", 10**400),
        ("num_attention_heads", 10**6),
        ("head_dim", 10**10),
    ],
)
def test_absurd_sizes_in_config_json(name, value, folder, no_memory):
    edit(folder / "config.json", **{name: value})
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"config.json: {name} expects at most \d+, got 1|9223"):
        load_model(folder)
    assert time.monotonic() - started < 2


def test_sizes_of_the_largest_published_models_are_taken(folder):
    edit(
        folder / "config.json", vocab_size=262144, hidden_size=16384, intermediate_size=53248,
        num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8, head_dim=128,
        max_position_embeddings=10**7,
    )  # fmt: skip
    assert empty_model(folder / "config.json", torch.bfloat16).config.num_hidden_layers == 126


def test_more_weights_than_memory(folder):
    edit(folder / "config.json", vocab_size=2**24, hidden_size=2**20, head_dim=4)
    model = empty_model(folder / "config.json", torch.float32)
    with pytest.raises(ValueError, match=r"would take \d+\.\d GB of memory; this machine has"):
        allocate(model, "cpu")
    assert model.norm.weight.is_meta


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta", "initializer_range"])
@pytest.mark.parametrize("text", ["1e999", "1" + "0" * 400, "true", '"1"', "-1", "[1]"])
def test_numbers_that_are_none(name, text, folder):
    edit(folder / "config.json", **{name: "HERE"})
    config = (folder / "config.json").read_text().replace('"HERE"', text)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=rf"config.json: {name} expects a number above 0"):
        load_model(folder)


# ------------------------------------------------------------------------------------------------
# adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_of_an_absurd_rank(dtype, folder, no_memory):
    edit(folder / "adapter_config.json", r=10**12)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: \S+ expects shapes"):
        load_policy(folder, folder, dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_is_larger_than_memory(dtype, folder, no_memory, monkeypatch):
    """A file with a hole: its terabytes cost nobody anything until they are read."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "sysconf", lambda name: 10)
        with pytest.raises(
            ValueError, match=r"adapter_model.safetensors would take 0\.0 GB of mem"
        ):
            load_policy(folder, folder, dtype, "cpu")
    edit(folder / "adapter_config.json", r=10**11, target_modules=["v_proj"])
    header, end = {}, 0
    for layer in range(2):
        for part, shape in (("A", (10**11, 8)), ("B", (4, 10**11))):
            begin, end = end, end + 4 * shape[0] * shape[1]
            name = f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{part}.weight"
            header[name] = tensor(shape, begin, end)
    file = folder / "adapter_model.safetensors"
    write_raw(file, header, b"")
    try:
        os.truncate(file, file.stat().st_size + end)
    except OSError:
        pytest.skip("this file system has no files of that size")
    message = r"adapter_model.safetensors (would take \d+\.\d GB|cannot be mapped into memory)"
    with pytest.raises((ValueError, OSError), match=message):
        load_policy(folder, folder, dtype, "cpu")


def test_one_layer_under_two_names(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name.replace("model.model.layers", "model.layers")] = tensors[name].clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="unexpected or repeated tensor"):
        load_policy(folder, folder, torch.float32, "cpu")


def test_an_adapter_is_checked_before_the_model_is_changed(folder):
    edit(folder / "adapter_config.json", r=3)
    model = load_model(folder)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="expects shapes"):
        add_adapter(model, folder)
    assert list(model.state_dict()) == before


# ------------------------------------------------------------------------------------------------
# what stands where a file should be

LOADERS = {
    "config.json": load_model,
    "model.safetensors": load_model,
    "adapter_model.safetensors": lambda path: load_policy(path, path, torch.float32, "cpu"),
    "adapter_config.json": lambda path: load_policy(path, path, torch.float32, "cpu"),
    "tokenizer.model": load_tokenizer,
    "tokenizer_config.json": load_tokenizer,
    "special_tokens_map.json": load_tokenizer,
    "added_tokens.json": load_tokenizer,
    "chat_template.jinja": lambda path: detect_chat_format(path, load_tokenizer(path), "plain"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_links_out_of_the_folder(name, folder, no_memory):
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link out of its folder, to .*elsewhere"):
        LOADERS[name](folder)


@pytest.mark.parametrize("name", LOADERS)
def test_links_within_the_folder(name, folder):
    (folder / name).rename(folder / "elsewhere")
    (folder / name).symlink_to("elsewhere")
    LOADERS[name](folder)


def test_the_cache_of_the_hub(folder, tmp_path):
    """snapshots/<revision>/ holds links to blobs/, and no link may lead anywhere else."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0123abc", tmp_path / "hub" / "blobs"
    (snapshot / "adapter").mkdir(parents=True)
    blobs.mkdir()
    for file in list(folder.iterdir()):
        place = snapshot / "adapter" if file.name.startswith("adapter") else snapshot
        file.rename(blobs / f"blob-{file.name}")
        (place / file.name).symlink_to(os.path.relpath(blobs / f"blob-{file.name}", place))
    (tmp_path / "alias").symlink_to(snapshot)  # of the folder itself: what the user has named
    for path in (snapshot, tmp_path / "alias"):
        load_policy(path, path / "adapter", torch.float32, "cpu")
        detect_chat_format(path, load_tokenizer(path), "plain")
    (blobs / "blob-config.json").rename(tmp_path / "config.json")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        load_model(snapshot)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_no_regular_file(name, kind, folder, no_memory):
    """None of these is waited for."""
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    with pytest.raises(FileNotFoundError, match=name):
        LOADERS[name](folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{\0}\0", r"not JSON|not UTF-8"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands twice in one object"),
        (b'{"x": {"a": 1, "a": 1}}', "'a' stands twice in one object"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}", "not JSON"),
    ],
)
def test_json_of_every_kind(name, content, message, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*({message})"):
        LOADERS[name](folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
def test_a_byte_order_mark_is_no_harm(name, folder):
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    LOADERS[name](folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "chat_template.jinja"])
def test_files_of_a_terabyte(name, folder):
    try:
        os.truncate(folder / name, 10**12)
    except OSError:
        pytest.skip("this file system has no files of that size")
    with pytest.raises(ValueError, match=rf"{name}: expected at most \d+ bytes"):
        LOADERS[name](folder)


# ------------------------------------------------------------------------------------------------
# tokenizers and chat templates


@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(1000), bytes(range(256)) * 40, b"\x0a\xff\xff\xff\xff\x7f"]
)
def test_a_tokenizer_model_of_garbage(content, folder):
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.model: expected a sentencepiece model"):
        load_tokenizer(folder)


def test_a_piece_that_is_no_text(folder):
    file = folder / "tokenizer.model"
    file.write_bytes(file.read_bytes().replace("▁t".encode(), b"\xff\x96\x81t", 1))
    with pytest.raises(ValueError, match=r"tokenizer.model: expected a sentencepiece model"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("added_tokens.json", {"x": "1"}, "added tokens expect an id"),
        ("added_tokens.json", {"x": 10**18}, "added tokens expect an id"),
        ("added_tokens.json", {"x": True}, "added tokens expect an id"),
        ("added_tokens.json", {"": 600}, "added tokens expect an id"),
        ("added_tokens.json", {"\ud800": 600}, "added tokens expect an id"),
        ("tokenizer_config.json", {"bos_token": 3}, "tokenizer_config.json: expected a token"),
        ("tokenizer_config.json", {"eos_token": {"text": "x"}}, "expected a token's text"),
        ("tokenizer_config.json", {"additional_special_tokens": 3}, "expects a list of tokens"),
        ("tokenizer_config.json", {"extra_special_tokens": {"a": 3}}, "expected a token's text"),
        ("special_tokens_map.json", {"bos_token": ["x"]}, "special_tokens_map.json: expected"),
    ],
)
def test_tokens_that_are_none(name, changes, message, folder):
    edit(folder / name, **changes)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": {"decoders": [{"type": "Fuse"}]}}, "with its type|expected a tokenizer.json"),
        ({"normalizer": 3}, "expected a tokenizer.json"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "expected ids"),
        ({"added_tokens": [{"id": 0}]}, "added tokens expect an id and a content"),
        ({"added_tokens": 3}, "added tokens expect an id and a content"),
    ],
)
def test_a_tokenizer_json_of_strange_parts(changes, message, tmp_path):
    pytest.importorskip("tokenizers")
    make_tokenizer_json(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).unlink()
    edit(tmp_path / "tokenizer.json", **changes)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match=message):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"\xff", r"chat_template.jinja: not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": "\\ud800"}', "chat_template expects a text"),
        ("tokenizer_config.json", b'{"chat_template": 0}', "chat_template expects a text, got 0"),
        ("tokenizer_config.json", b'{"chat_format": ["plain"]}', "expected one of .*got \\['plain"),
    ],
)
def test_chat_templates(name, content, message, tmp_path):
    shutil.copy(TINY / "tokenizer.model", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        detect_chat_format(tmp_path, load_tokenizer(tmp_path))


def test_no_text_takes_forever(folder):
    """The time of the searches grows with the text, not with its square."""
    started = time.monotonic()
    template_fingerprint("{{" + " " * 300000 + "x" + " " * 300000)
    check_solution({"answer": 3}, "1 " * 150000 + "\n#### 3")
    check_solution({"answer": 3}, "1" + " " * 300000 + "+ 2 = 3\n#### 3")
    edit(folder / "adapter_config.json", target_modules="a" * 300000)
    with pytest.raises(ValueError, match="expected target_modules out of"):
        load_policy(folder, folder, torch.float32, "cpu")
    assert time.monotonic() - started < 5


# ------------------------------------------------------------------------------------------------
# rows


def test_data_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(
        ValueError, match=r"pipe.jsonl: expected a file or a folder of data, got neither"
    ):
        data_files(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match="a folder without"):
        data_files(tmp_path)


def test_rows_without_end(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": "' + "x" * 100 + '"}\n')
    assert len(list(read_rows(file))) == 2
    monkeypatch.setattr(data_rows, "LINE_BYTES", 50)
    with pytest.raises(ValueError, match=r"a.jsonl:2: expected at most 50 bytes a line"):
        list(read_rows(file))
    monkeypatch.setattr(data_prompts, "TEXT_BYTES", 50)
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(ValueError, match=r"a.txt: expected at most 50 bytes"):
        read_prompts(tmp_path / "a.txt")


def test_an_error_of_the_disk_names_the_file(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")
    if not (tmp_path / "a.jsonl").is_file():
        pytest.skip("there is no /proc here")
    with pytest.raises(OSError, match=r"a.jsonl: cannot be read"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_results_hold_nothing_that_cannot_be_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl:2: not Unicode, half a surrogate pair"):
        list(checked_rows(tmp_path / "a.jsonl", {}))


# ------------------------------------------------------------------------------------------------
# everything at once


def test_some_hundred_broken_folders():
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--cases", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
