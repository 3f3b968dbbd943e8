"""eval/speed_generate.py: the command on the embedded model, its numbers by hand, what it refuses.

No test here looks at a clock. python -m pytest tests/test_speed_generate.py
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval import speed_generate
from eval.speed_generate import SpeedGenerateConfig, make_job, notes, summarize
from model.architecture import read_model_config
from tests.conftest import ROOT

CONFIG = SpeedGenerateConfig(model=str(ROOT / "data" / "tiny"))


def test_command(tmp_path: Path):
    """3 completions of 4 tokens in 4 steps, from both engines: 12 tokens, 3 a step."""
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "eval.speed", "generate", "--prompt_tokens", "5", "--n", "3"]
    command += ["--max_new_tokens", "4", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "| ours_float32 " in done.stdout and "decode step's products alone" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["task"] == "speed/generate" and summary["skipped"] == {}
    assert summary["settings"]["n"] == 3 and summary["machine"]["threads"] == 1
    assert summary["prompt_lengths"] == [5] and summary["stop_ids"] == []
    assert list(summary["variants"]) == ["ours_float32", "transformers_float32"]
    for name, result in summary["variants"].items():
        (turn,) = summary["turns"][name]
        assert (turn["tokens"], turn["completions"], turn["steps"]) == (12, 3, 4)
        assert (result["tokens_per_completion"], result["tokens_per_step"]) == (4.0, 3.0)
        assert result["tokens_per_s"]["median"] == pytest.approx(12 / turn["seconds"])
        assert result["peak_bytes"] == turn["peak_bytes"]
    ours, peer = summary["variants"].values()
    assert ours["rate/transformers"] == pytest.approx(
        ours["tokens_per_s"]["median"] / peer["tokens_per_s"]["median"]
    )
    assert peer["rate/transformers"] == peer["memory/transformers"] == 1.0
    assert 0 < ours["share_of_bare_rate"] < 1 and "bare_rate" not in peer


# ------------------------------------------------------------------------------------------------
# numbers


def turn(seconds: float, tokens: int, peak: int | None, **bounds: float) -> dict:
    known = {"seconds": seconds, "cpu_seconds": 2 * seconds, "tokens": tokens, "completions": 10}
    begin = None if peak is None else peak - 5
    return known | {"steps": 20, "peak_bytes": peak, "begin_bytes": begin} | bounds


def test_numbers_by_hand():
    """Rates 100/2, 100/4, 100/5 = 50, 25, 20 tokens/s: the median 25.

    Of a bound of 100, 50, 80 tokens/s they are 1/2, 1/2, 1/4: the median 1/2, and of the bound 80.
    transformers draws 80/8, 120/6 = 10, 20 tokens/s, the median 15: ours has 25/15 of it, in 30/60
    of the memory. bfloat16 has no peer here.
    """
    ours = [
        turn(2, 100, 20, bare_rate=100.0, copy_rate=500.0),
        turn(4, 100, 30, bare_rate=50.0, copy_rate=500.0),
        turn(5, 100, 25, bare_rate=80.0, copy_rate=500.0),
    ]
    bfloat16 = [turn(1, 90, None, bare_rate=900.0, copy_rate=100.0, identical=0.75)]
    peer = [turn(8, 80, 60), turn(6, 120, 50)]
    turns = {"ours_float32": ours, "transformers_float32": peer, "ours_bfloat16": bfloat16}
    results = summarize(turns)
    r = results["ours_float32"]
    assert r["tokens_per_s"] == {"median": 25.0, "low": 22.5, "high": 37.5}
    assert (r["seconds"]["median"], r["cpu_seconds"]["median"]) == (4.0, 8.0)
    assert (r["tokens_per_completion"], r["tokens_per_step"]) == (10.0, 5.0)
    assert (r["peak_bytes"], r["extra_peak_bytes"]) == (30, 5)
    assert (r["bare_rate"], r["share_of_bare_rate"]) == (80.0, 0.5)
    assert (r["copy_rate"], r["share_of_copy_rate"]) == (500.0, 0.05)
    assert r["rate/transformers"] == pytest.approx(25 / 15)
    assert r["memory/transformers"] == 0.5
    r = results["ours_bfloat16"]
    assert r["rate/transformers"] is r["memory/transformers"] is r["peak_bytes"] is None
    assert r["share_of_bare_rate"] == 0.1
    said = "\n".join(notes(results, {"transformers": "pip install transformers"}))
    assert "transformers is left out: pip install transformers" in said
    assert "ours_float32: 50% of its decode step's products alone, which make 80 tokens/s" in said
    assert "ours_bfloat16: 75.0% of the completions are the same" in said
    header, _, *rows = speed_generate.table(results).splitlines()
    assert [row.count("|") for row in rows] == [header.count("|")] * 3


# ------------------------------------------------------------------------------------------------
# what is asked for


def test_job_is_a_function_of_the_seed():
    model_config = read_model_config(CONFIG.model)
    job = make_job(CONFIG, model_config, "cpu")
    assert [len(p) for p in job["prompts"]] == [64] and job["n"] == 32
    mixed = replace(CONFIG, mixed=200)
    one, two = (make_job(replace(mixed, seed=s), model_config, "cpu") for s in (0, 1))
    assert one == make_job(mixed, model_config, "cpu") and one["prompts"] != two["prompts"]
    lengths = [len(p) for p in one["prompts"]]
    assert one["n"] == 8 and (min(lengths), max(lengths)) == (16, 128)
    assert max(map(max, one["prompts"])) < 512
    assert make_job(replace(mixed, n=5), model_config, "cpu")["n"] == 5
    json.dumps(one)


def test_a_variant_that_fails_is_said_once(monkeypatch, capsys):
    calls = []

    def run_process(job):
        calls.append((job["engine"], job["dtype"]))
        if job == {"threads": 1, "engine": "transformers", "dtype": "bfloat16"}:
            return None, "out of memory"
        return turn(1.0, 3, 10), ""

    monkeypatch.setattr(speed_generate, "run_process", run_process)
    skipped: dict[str, str] = {}
    order = (("ours", "transformers"), ("float32", "bfloat16"))
    turns = speed_generate.run_turns({"threads": 1}, *order, 2, skipped)
    assert {name: len(said) for name, said in turns.items()} == {
        "ours_float32": 2, "transformers_float32": 2, "ours_bfloat16": 2
    }  # fmt: skip
    assert skipped == {"transformers_bfloat16": "it failed: out of memory"}
    assert calls.count(("transformers", "bfloat16")) == 1
    assert "out of memory" in capsys.readouterr().out
    monkeypatch.setattr(speed_generate, "run_process", lambda job: (None, "no"))
    with pytest.raises(ValueError, match=r"every variant failed: .*it failed: no"):
        speed_generate.run_turns({"threads": 1}, *order, 2, {})


def test_a_process_that_fails_gives_its_last_line():
    job = make_job(CONFIG, read_model_config(CONFIG.model), "cpu")
    result, reason = speed_generate.run_process(job | {"engine": "ours", "model": "nowhere"})
    assert result is None and reason.startswith("error: --model expects a folder")


def test_transformers_is_left_out_where_it_is_not_installed(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(speed_generate, "installed", lambda package: None)
    monkeypatch.setattr(speed_generate, "run_process", lambda job: (turn(1.0, 3, 10), ""))
    before = torch.get_num_threads()
    try:
        words = ["--model", CONFIG.model, "--device", "cpu", "--threads", "1"]
        speed_generate.main([*words, "--out", str(tmp_path)])
        with pytest.raises(ValueError, match="nothing is left to run"):
            speed_generate.main([*words, "--only", "transformers"])
    finally:
        torch.set_num_threads(before)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["skipped"] == {"transformers": "pip install transformers"}
    assert list(summary["variants"]) == ["ours_float32"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "0"], "--n expects 1 or more, got 0"),
        (["--mixed", "0"], "--mixed expects 1 or more, got 0"),
        (["--seed", "-1"], "--seed expects 0 or more, got -1"),
        (["--stop_after", "0.5"], "--stop_after expects 1 or more, got 0.5"),
        (["--cache_gb", "0"], "--cache_gb expects a number above 0, got 0"),
        (["--dtypes", "float32", "int8"], "--dtypes expects float32 or bfloat16, got int8"),
        (["--only", "vllm"], "--only expects some of ours transformers, got vllm"),
        (["--prompt_tokens", "200"], "--max_new_tokens 128 need 328 positions, the model has 256"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_bad_words(words, message, tmp_path: Path):
    before = torch.get_num_threads()
    model = [] if "--model" in words else ["--model", CONFIG.model]
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            out = ["--device", "cpu", "--out", str(tmp_path / "out")]
            speed_generate.main([*model, *words, *out])
    finally:
        torch.set_num_threads(before)
    assert not (tmp_path / "out").exists()
