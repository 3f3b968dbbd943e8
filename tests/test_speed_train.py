"""eval/speed_train.py: the command on the embedded model, its pairs, and what it refuses.

No test here looks at a clock. python -m pytest tests/test_speed_train.py
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import speed_train
from eval.speed_train import SpeedTrainConfig, available, lengths_of, make_pairs
from model.architecture import read_model_config
from tests.conftest import ROOT

CONFIG = SpeedTrainConfig(
    model=str(ROOT / "data" / "tiny"), data=(str(ROOT / "data" / "tiny" / "train.jsonl"),)
)


def test_command(tmp_path: Path):
    command = [sys.executable, "-m", "eval.speed", "train", "--repeats", "1", "--steps", "2"]
    command += ["--only", "ours", "all_off", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "| ours    |" in done.stdout and "all_off / ours: time" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["task"] == "speed/train" and summary["skipped"] == {}
    assert list(summary["variants"]) == list(summary["turns"]) == ["ours", "all_off"]
    assert [len(step) for step in summary["lengths"]] == [4, 4]
    for result in summary["variants"].values():
        assert result["losses_agree"] and result["pairs_per_s"] > 0
    assert summary["variants"]["ours"]["time_ratio"] == 1.0
    assert summary["machine"]["threads"] == 1


def test_pairs_are_a_function_of_the_seed():
    model_config = read_model_config(CONFIG.model)
    one, two = (make_pairs(replace(CONFIG, seed=s), model_config) for s in (0, 0))
    assert len(one) == 16 and lengths_of(one) == lengths_of(two)
    assert [p.source for p in one] == [p.source for p in two]
    other = make_pairs(replace(CONFIG, seed=1), model_config)
    assert [p.source for p in one] != [p.source for p in other]
    short = make_pairs(replace(CONFIG, max_length=30, max_prompt_length=20), model_config)
    assert max(p + max(c, r) for p, c, r in lengths_of(short)) <= 30


def test_equal_lengths_need_no_data():
    config = replace(CONFIG, equal_lengths=("6", "12"), data=("nowhere",))
    pairs = make_pairs(config, read_model_config(CONFIG.model))
    assert set(lengths_of(pairs)) == {(6, 12, 12)} and len(pairs) == 16
    assert max(pair.chosen_ids.max() for pair in pairs) < 512
    assert not np.array_equal(pairs[0].chosen_ids, pairs[1].chosen_ids)


def test_too_few_pairs(tmp_path: Path):
    data = tmp_path / "few.jsonl"
    lines = (ROOT / "data" / "tiny" / "train.jsonl").read_text().splitlines()[:3]
    data.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError, match="3 pairs, 4 steps of 4 need 16; lower --steps"):
        make_pairs(replace(CONFIG, data=(str(data),)), read_model_config(CONFIG.model))


def test_what_cannot_run_has_its_reason(monkeypatch):
    names = ["ours", "bfloat16", "compiled", "trl"]
    rate = {torch.float32: 100.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(speed_train, "matrix_rate", lambda dtype, device: rate[dtype])
    monkeypatch.setattr(speed_train, "installed", lambda package: None)
    left, skipped = available(names, CONFIG, "float32", "cpu")
    assert left == ["ours"]
    assert "0.01 of the float32 rate" in skipped["bfloat16"]
    assert "--only" in skipped["compiled"]
    assert skipped["trl"] == "pip install trl transformers peft datasets"
    monkeypatch.setattr(speed_train, "installed", lambda package: "1")
    only = replace(CONFIG, only=tuple(names))
    assert available(names, only, "float32", "cpu") == (names, {})
    assert "everything is" in available(names, only, "bfloat16", "cpu")[1]["bfloat16"]
    init = replace(only, init="config.json")
    assert "--init" in available(names, init, "float32", "cpu")[1]["trl"]
    with pytest.raises(ValueError, match="nothing is left to run"):
        available(["trl"], init, "float32", "cpu")


def test_a_variant_that_fails_is_said_once(monkeypatch, tmp_path: Path, capsys):
    calls = []

    def run_process(fields, threads):
        calls.append(fields["variant"])
        if fields["variant"] == "cached":
            return None, "out of memory"
        return {"seconds": [1.0], "variant": fields["variant"]}, ""

    monkeypatch.setattr(speed_train, "run_process", run_process)
    skipped: dict[str, str] = {}
    names = ["ours", "cached"]
    config = replace(CONFIG, repeats=3)
    turns = speed_train.run_turns(config, names, [], "float32", "cpu", tmp_path, skipped)
    assert len(turns["ours"]) == 3 and calls.count("cached") == 1
    assert skipped == {"cached": "it failed: out of memory"}
    assert "it failed: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "1"], "--steps expects 2 or more, got 1"),
        (["--batch_size", "0"], "--batch_size expects 1 or more, got 0"),
        (["--dtype", "int8"], "--dtype expects float32 or bfloat16, got 'int8'"),
        (["--equal_lengths", "64"], "--equal_lengths expects prompt and completion tokens"),
        (["--equal_lengths", "64", "x"], "--equal_lengths expects prompt and completion tokens"),
        (["--only", "peer"], "--only expects some of ours .*, got peer"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_words(words, message, tmp_path: Path):
    before = torch.get_num_threads()
    words = ["--equal_lengths", "4", "4", *words] if "--equal_lengths" not in words else words
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            speed_train.main([*words, "--device", "cpu", "--out", str(tmp_path / "out")])
    finally:
        torch.set_num_threads(before)
    assert not (tmp_path / "out").exists()
