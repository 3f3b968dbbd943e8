"""A user's mistakes, from flags to broken files: each ends with one message and exit code 2.

pytest tests/test_bad_input.py
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest

import sample
import train
from eval import arithmetic
from model.adapter import save_adapter
from model.lora import add_lora
from model.run import run_main
from tests.conftest import ROOT
from tests.test_lora import small_model

TINY = ROOT / "data" / "tiny"
GOOD = {"prompt": "Which is better?", "chosen": "Tea", "rejected": "Coffee"}


def run(script, flags: list[str], monkeypatch, capsys) -> tuple[object, str, str]:
    """(exit code, stdout, stderr) of a script's main, as the command line runs it."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *flags])
    with pytest.raises(SystemExit) as stop:
        run_main(script.main)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Run a script and hold that it ends as a mistake of the user's should."""

    def check(script, flags: list, *expected: str) -> None:
        flags = [str(flag) for flag in flags]
        if script is not sample:
            flags += ["--out_dir" if script is train else "--out", str(tmp_path / "out")]
        code, _, err = run(script, flags, monkeypatch, capsys)
        message = [line for line in err.replace("\r", "\n").splitlines() if "error: " in line]
        assert code == 2 and len(message) == 1, err
        for words in expected:
            assert words in message[0], message[0]
        assert "Traceback" not in err
        assert not (tmp_path / "out" / "metrics.jsonl").exists()

    return check


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def write(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ------------------------------------------------------------------------------------------------
# rows of data


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, "{"], ["data.jsonl:2", "JSON"]),
        ([GOOD, "[1]"], ["data.jsonl:2", "object"]),
        ([GOOD, {"prompt": "a", "chosen": "b"}], ["data.jsonl:2", "chosen and rejected"]),
        ([{**GOOD, "chosen": 3}], ["data.jsonl:1", "chosen"]),
        ([{**GOOD, "prompt": None}], ["data.jsonl:1", "prompt"]),
        ([{**GOOD, "chosen": [{"role": "robot", "content": "x"}]}], ["data.jsonl:1", "role"]),
        ([{**GOOD, "chosen": [{"role": "user"}]}], ["data.jsonl:1", "content"]),
        ([{**GOOD, "chosen": []}], ["data.jsonl:1", "chosen"]),
        ([{"chosen": "Hello", "rejected": "Bye"}], ["data.jsonl:1", "Human"]),
        ([{**GOOD, "chosen": ""}], ["no pairs remain", "empty reply 1"]),
        ([{**GOOD, "chosen": "Coffee"}], ["no pairs remain", "chosen equals rejected 1"]),
        ([], ["data.jsonl", "empty"]),
    ],
)
def test_rows(rows, expected, fails, tmp_path):
    data = tmp_path / "data.jsonl"
    write(data, *rows) if rows else data.write_text("")
    fails(train, ["--data", data], *expected)


def test_files_of_data(fails, tmp_path):
    fails(train, ["--data", tmp_path / "nowhere.jsonl"], "nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    fails(train, ["--data", tmp_path / "empty"], "empty")
    (tmp_path / "x.csv").write_text("a,b\n")
    fails(train, ["--data", tmp_path / "x.csv"], "x.csv", ".jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    fails(train, ["--data", tmp_path / "x.jsonl"], "x.jsonl", "UTF-8")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-6])
    fails(train, ["--data", tmp_path / "x.jsonl.gz"], "x.jsonl.gz")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    fails(train, ["--data", tmp_path / "x.parquet"], "x.parquet")


def test_held_out_data(fails, tmp_path):
    good = write(tmp_path / "good.jsonl", GOOD)
    fails(train, ["--data", good, "--eval_data", tmp_path / "nowhere"], "nowhere")
    fails(train, ["--data", good, "--eval_fraction", "0.999999"], "--eval_fraction")


def test_sft_rows(fails, tmp_path):
    only_user = {"messages": [{"role": "user", "content": "a"}]}
    flags = ["--objective", "sft", "--data"]
    fails(train, [*flags, write(tmp_path / "a.jsonl", only_user)], "a.jsonl:1", "assistant")
    fails(train, [*flags, write(tmp_path / "b.jsonl", {"completion": "x"})], "b.jsonl:1", "prompt")


# ------------------------------------------------------------------------------------------------
# models, tokenizers, adapters


def test_models(fails, model, tmp_path):
    fails(train, ["--model", tmp_path / "nowhere"], "nowhere")
    fails(train, ["--init", tmp_path / "nowhere.json", "--tokenizer", model], "nowhere.json")
    config, weights, tokens = (
        model / name for name in ("config.json", "model.safetensors", "tokenizer.model")
    )
    whole, text = weights.read_bytes(), config.read_text()
    edit(config, architectures=["GPT2LMHeadModel"])
    fails(train, ["--model", model], "GPT2LMHeadModel", "LlamaForCausalLM")
    config.write_text(text)
    edit(config, rope_scaling={"rope_type": "yarn", "factor": 2.0})
    fails(train, ["--model", model], "'yarn'")
    config.write_text(text)
    edit(config, vocab_size=100)
    fails(train, ["--model", model], "100")
    config.write_text(text[:-5])
    fails(train, ["--model", model], "config.json is not JSON")
    config.write_text(text)
    weights.write_bytes(whole[:-1000])
    fails(train, ["--model", model], "model.safetensors is truncated or corrupt")
    weights.unlink()
    fails(train, ["--model", model], "expected model.safetensors")
    weights.write_bytes(whole)
    tokens.write_bytes(b"garbage")
    fails(train, ["--model", model], "tokenizer.model")
    tokens.unlink()
    fails(train, ["--model", model], "tokenizer")


def test_chat_formats(fails, model):
    fails(train, ["--model", model, "--chat_format", "chatml"], "<|im_start|>")
    template = {"chat_template": "{{ messages }}"}
    write(model / "tokenizer_config.json", template)
    fails(train, ["--model", model], "chat template", "--chat_format")


def test_adapters(fails, model, tmp_path):
    fails(train, ["--adapter", tmp_path / "nowhere"], "nowhere", "adapter_model.safetensors")
    other = small_model()
    add_lora(other, rank=2, alpha=2.0)
    save_adapter(other, tmp_path / "other", "base")
    fails(train, ["--model", model, "--adapter", tmp_path / "other"], "adapter's base")
    fails(sample, ["--adapter", tmp_path / "other", "--prompt", "a"], "adapter's base model")
    fails(train, ["--lora_targets", "lm_head"], "--lora_targets", "lm_head")


def test_nothing_that_is_there_is_overwritten(fails, model, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", {"prompt": "a"})
    before = prompts.read_text()
    fails(sample, ["--prompts", prompts, "--out", prompts], "would overwrite")
    fails(sample, ["--adapter", model, "--merge_to", model], "expects a new folder")
    assert prompts.read_text() == before


# ------------------------------------------------------------------------------------------------
# flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--objective none", "--objective expects one of sft, dpo, spl"),
        ("--learning_rte 1", "did you mean --learning_rate?"),
        ("--beta zero", "--beta expects a number, got 'zero'"),
        ("--beta 0", "--beta expects a number above 0"),
        ("--batch_size 2.5", "--batch_size expects a whole number"),
        ("--max_length 64 --max_prompt_length 64", "--max_prompt_length expects less than"),
        ("--lora_rank 0", "pass --reference cached"),
        ("--lora_rank -1", "--lora_rank expects 0 or more"),
        ("--device abacus", "--device expects cpu, cuda or cuda:N"),
        ("--dtype float8", "--dtype expects one of float32, bfloat16"),
        ("--head_kernel cuda --device cpu", "--head_kernel cuda needs a GPU, and the run is on c"),
        ("--resume", "--resume expects"),
        ("--config nowhere.json", "nowhere.json"),
        ("--seed", "--seed expects one value"),
        ("stray", "expected a --flag, got 'stray'"),
    ],
)
def test_flags_of_train(flags, expected, tmp_path, monkeypatch, capsys):
    code, _, err = run(train, flags.split(), monkeypatch, capsys)
    assert code == 2 and err.startswith("error: ") and expected in err


def test_run_folders(fails, tmp_path, monkeypatch, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "metrics.jsonl").write_text("")
    code, _, err = run(train, ["--out_dir", str(taken)], monkeypatch, capsys)
    assert code == 2 and "holds a run; pass --resume or another folder" in err
    flags = ["--out_dir", str(tmp_path / "new"), "--resume", "--max_steps", "1"]
    code, _, err = run(train, flags, monkeypatch, capsys)
    assert code == 2 and "--resume expects a run in --out_dir" in err
    (tmp_path / "file").write_text("")
    code, _, err = run(train, ["--out_dir", str(tmp_path / "file")], monkeypatch, capsys)
    assert code == 2 and str(tmp_path / "file") in err


def test_results_folders_of_eval(fails, tmp_path):
    fails(arithmetic, ["--data", tmp_path / "nowhere.jsonl"], "nowhere.jsonl")
    fails(arithmetic, ["--samples", write(tmp_path / "s.jsonl", {"index": -1})], "s.jsonl:1")
    fails(arithmetic, ["--n", "0", "--limit", "1"], "--n")
