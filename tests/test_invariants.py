"""The checks before a training: all pass on the embedded model, and each is seen to fail.

Here: the whole of it, what train.py builds, and files that cannot be read. What breaks each check
stands in test_invariant_texts.py, test_invariant_numbers.py and test_invariant_gradients.py.

pytest tests/test_invariants.py
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from eval.invariants import CheckConfig, build_policy, check_run, load_texts
from model.adapter import save_adapter
from model.lora import add_lora
from tests.conftest import ROOT
from tests.test_lora import scatter
from train import TrainConfig

TINY = ROOT / "data" / "tiny"
NOTED = {"distinct pairs", "labels agree", "held-out prompts are new"}  # opinions, by design


def sums_of(n: int, first: int = 0) -> list[dict]:
    """Rows of distinct prompts, in the words of the embedded data."""
    rows = []
    for i in range(first, first + n):
        a, b = 2 + i // 7, 3 + i % 7
        prompt = f"Ben has {a} books and {b} more. How many books is that?"
        rows.append({"prompt": prompt, "chosen": f"{a} + {b} = {a + b}\n#### {a + b}",
                     "rejected": f"{a} + {b} = {a + b + 1}\n#### {a + b + 1}"})  # fmt: skip
    return rows


def write(path: Path, rows: list[dict]) -> tuple[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (str(path),)


def small(tmp_path: Path, rows: list[dict] | None = None, **flags) -> CheckConfig:
    """The embedded model on a dozen rows without a flaw, or on others."""
    data = write(tmp_path / "pairs.jsonl", sums_of(12) if rows is None else rows)
    return CheckConfig(**{"model": str(TINY), "data": data, "device": "cpu", **flags})


def check(config: CheckConfig, capsys, pairs_limit: int = 8) -> tuple[bool, dict[str, str], str]:
    """(ready, {invariant: verdict}, what was printed)."""
    capsys.readouterr()
    ready = check_run(config, pairs_limit)
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line[:6] in ("pass  ", "note  ", "fail  ")]
    return ready, {line[6:30].strip(): line[:4] for line in lines}, text


def not_passed(verdicts: dict[str, str]) -> dict[str, str]:
    return {name: verdict for name, verdict in verdicts.items() if verdict != "pass"}


# ------------------------------------------------------------------------------------------------
# all of it


def test_the_embedded_model_and_data_are_ready(capsys, monkeypatch):
    """25 invariants; the notes are of opinions, which the generator repeats both ways."""
    monkeypatch.chdir(ROOT)
    ready, verdicts, text = check(CheckConfig(device="cpu"), capsys)
    assert ready and len(verdicts) == 25
    assert not_passed(verdicts) == dict.fromkeys(NOTED, "note")
    assert text.endswith("\n25 invariants hold, 3 with a note\nready to train\n")
    assert "4776 of 6986 repeat one" in text  # 6986 rows, 2210 of them distinct


@pytest.mark.parametrize(
    "flags",
    [
        {"objective": "dpo"},
        {"objective": "dpo", "label_smoothing": 0.1, "lora_rank": 0},
        {"objective": "spl", "label_smoothing": 0.1, "dtype": "bfloat16"},
        {"objective": "h_dpo", "alpha": 0.9, "lora_targets": ("q_proj",), "lora_alpha": 64.0},
        {"objective": "ipo", "lora_rank": 0, "dtype": "bfloat16"},
        {"objective": "robust", "label_smoothing": 0.2, "micro_batch_tokens": 100},
    ],
    ids=lambda flags: "-".join(str(value) for value in flags.values()),
)
def test_every_objective_passes_without_a_note(flags, tmp_path, capsys):
    ready, verdicts, _ = check(small(tmp_path, **flags), capsys)
    assert ready and len(verdicts) == 24 and not not_passed(verdicts)


def test_a_stage_that_fails_is_the_last(tmp_path, capsys):
    rows = sums_of(4)
    held_out = write(tmp_path / "held_out.jsonl", rows[:2])
    ready, verdicts, text = check(small(tmp_path, rows, eval_data=held_out), capsys)
    assert not ready and not_passed(verdicts) == {"held-out prompts are new": "fail"}
    assert "finite numbers" not in verdicts
    mend = text.partition("\nto mend: held-out prompts are new\n")[2]
    assert mend.startswith(f"{held_out[0]}:1: a conversation of --eval_data begins as one of ")


# ------------------------------------------------------------------------------------------------
# the same as train.py


def test_flags_are_those_of_training():
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for field in dataclasses.fields(CheckConfig):
        assert field.name in fields and field.type == fields[field.name].type
        assert getattr(CheckConfig, field.name) == getattr(TrainConfig, field.name), field.name


@pytest.mark.parametrize("kind", ["lora", "full", "bfloat16", "adapter"])
def test_the_policy_is_that_of_training(kind, tmp_path):
    """The same tensors, dtypes and trained parameters, bit by bit."""
    flags = {"model": str(TINY), "seed": 3, "lora_rank": 0 if kind == "full" else 4}
    if kind == "adapter":
        model = build_policy(CheckConfig(model=str(TINY), lora_rank=2), torch.float32, "cpu")
        scatter(model)
        save_adapter(model, tmp_path, str(TINY))
        flags["adapter"] = str(tmp_path)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    ours = build_policy(CheckConfig(**flags), dtype, "cpu")
    theirs = train.build_policy(TrainConfig(**flags), dtype, "cpu")
    assert ours.compute_dtype == theirs.compute_dtype
    pairs = list(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
    assert len(pairs) == 4 * 9 + 2 + (0 if kind == "full" else 4 * 7 * 2)
    for (name, one), (other_name, other) in pairs:
        assert name == other_name and one.requires_grad == other.requires_grad
        assert one.dtype == other.dtype and torch.equal(one, other), name


def test_the_texts_are_those_of_training(tmp_path):
    """1024 tokens are asked for, and the model has 256 positions; the tokenizer may lie elsewhere;
    of data that is not the embedded nothing is held out."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(TINY / "config.json", folder)
    texts = load_texts(small(tmp_path, model=str(folder), tokenizer=str(TINY)))
    assert (texts.max_length, texts.max_prompt_length) == (256, 128)
    assert texts.held_out == [] and len(texts.tokens) == 12


def test_the_loss_has_the_smoothing_that_is_asked_for(tmp_path, capsys):
    """(1 - eps) log(1 + e^-m) + eps log(1 + e^m) is linear in eps."""
    losses = []
    for smoothing in (0.0, 0.2, 0.4):
        text = check(small(tmp_path, alpha=0.3, label_smoothing=smoothing), capsys)[2]
        losses.append(float(text.partition("loss at step 0")[2].split()[0]))
    assert losses[0] - losses[1] == pytest.approx(losses[1] - losses[2], abs=2e-6)
    assert abs(losses[0] - losses[1]) > 0.01


# ------------------------------------------------------------------------------------------------
# what cannot be read or cannot be meant


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"objective": "sft"}, "--objective expects one of dpo, spl, h_dpo, ipo, robust"),
        ({"objective": "f_dpo"}, "--objective expects one of dpo, spl, h_dpo, ipo, robust, got"),
        ({"alpha": 0.0}, "--alpha expects a number above 0"),
        ({"max_length": 10, "max_prompt_length": 10}, "less than --max_length 10"),
        ({"dtype": "float16"}, "--dtype expects float32 or bfloat16"),
        ({"objective": "ipo", "label_smoothing": 0.1}, "no meaning for ipo"),
        ({"chat_format": "alpaca"}, "--chat_format expects one of auto, zephyr"),
        ({"lora_rank": -1}, "--lora_rank expects 0 or more"),
        ({"label_smoothing": 0.5}, r"--label_smoothing expects a share in \[0, 0.5\), got 0.5"),
        ({"beta": 0.0}, "--beta expects a number above 0, got 0.0"),
        ({"max_prompt_length": 0}, "--max_prompt_length expects 1 or more, got 0"),
        ({"micro_batch_tokens": 0}, "--micro_batch_tokens expects 1 or more, got 0"),
    ],
)
def test_contradictions_stop_before_any_file_is_read(flags, message):
    with pytest.raises(ValueError, match=message):
        check_run(CheckConfig(**{"model": "nowhere", **flags}))
    with pytest.raises(ValueError, match="1 or more pairs"):
        check_run(CheckConfig(model="nowhere"), pairs_limit=0)


def test_a_broken_row_is_the_thing_to_mend(tmp_path, capsys):
    config = small(tmp_path)
    with open(config.data[0], "a") as file:
        file.write('{"prompt": "Hi", "chosen"\n')
    ready, verdicts, text = check(config, capsys)
    assert not ready and verdicts == {"model and data readable": "fail"}
    assert text.splitlines()[-2] == "to mend: model and data readable"
    assert text.splitlines()[-1].startswith(f"{config.data[0]}:13: ")


@pytest.mark.parametrize("broken", ["weights", "adapter", "targets"])
def test_weights_that_cannot_be_read_are_the_thing_to_mend(broken, tmp_path, capsys):
    folder, flags = tmp_path / "model", {}
    shutil.copytree(TINY, folder)
    if broken == "weights":
        (folder / "model.safetensors").write_bytes(b"no weights")
        reason = f"{folder}/model.safetensors is truncated or corrupt"
    elif broken == "adapter":
        flags, reason = {"adapter": str(tmp_path)}, "--adapter expects a folder with adapter_model"
    else:
        flags, reason = {"lora_targets": ("lm_head",)}, "expected --lora_targets out of q_proj"
    ready, verdicts, text = check(small(tmp_path, model=str(folder), **flags), capsys)
    assert not ready and not_passed(verdicts) == {"weights readable": "fail"}
    assert text.splitlines()[-1].startswith(reason)


def test_an_adapter_is_merged_and_checked_like_any_policy(tmp_path, capsys):
    model = build_policy(CheckConfig(model=str(TINY), lora_rank=0), torch.float32, "cpu")
    add_lora(model, rank=2, alpha=4.0)
    scatter(model)
    save_adapter(model, tmp_path / "adapter", str(TINY))
    config = small(tmp_path, adapter=str(tmp_path / "adapter"))
    _, verdicts, text = check(config, capsys)
    assert verdicts["policy is reference"] == "pass"
    loss = text.partition("loss at step 0")[2].split()[0]
    base = check(small(tmp_path), capsys)[2].partition("loss at step 0")[2].split()[0]
    assert loss != base  # another reference: the base with its adapter
