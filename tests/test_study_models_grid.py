"""Cells of a plan on a real checkpoint: names, flags, expected hours, mistakes, and one real run.

python -m pytest tests/test_study_models_grid.py
"""

import hashlib
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data.prompts import read_prompts
from eval import study
from eval.study_cells import folder_of, read_study
from eval.study_models import MODEL_PLANS, Benchmark, Reward
from eval.study_models_grid import (
    GPU_FLOPS,
    count_cells,
    data_name,
    describe,
    next_cells,
    plan_study,
    seconds_for,
)
from eval.study_plans import spl
from tests.conftest import ROOT
from tests.test_readme import flags_of

TINY = ROOT / "data" / "tiny"
OUT = Path("runs/x")
FILES = {
    "small": (),
    "spl_chat": (),
    "spl_maths": ("gsm8k", "math_problems", "mmlu", "mmlu.dev", "truthfulqa"),
    "h_dpo": ("gsm8k", "humaneval", "mmlu_pro", "mmlu_pro.validation", "ifeval"),
}


@pytest.fixture(params=MODEL_PLANS)
def planned(request, stories_dir):
    """Each plan on stories260k, with all of its benchmarks."""
    words = [f"{name}={TINY}/heldout.jsonl" for name in FILES[request.param]]
    data = (str(TINY / "eval.jsonl"), str(TINY / "train.jsonl"))
    runs_code = "humaneval" in FILES[request.param]
    return plan_study(request.param, str(stories_dir), data, words, runs_code, 1)


def trained(planned, loss=lambda rate: rate):
    """Rows of all trainings; their last held-out loss by rate."""
    grid = planned.grid
    cells = []
    while True:
        rows = [
            {"cell": c.name, "curves": {"eval/loss": [9.0, loss(c.labels["rate"])]}} for c in cells
        ]
        more = [c for c in next_cells(planned, rows, OUT) if c.labels["kind"] == "train"]
        if len(more) == len(cells):
            assert len(rows) == len(grid.methods) * (len(grid.rates) + grid.seeds - 1)
            return rows
        cells = more


def test_every_need_stands_before_and_the_count_is_right(planned):
    cells = next_cells(planned, trained(planned), OUT)
    seen = set()
    for cell in cells:
        assert seen.issuperset(cell.needs) and cell.name not in seen
        seen.add(cell.name)
    assert Counter(cell.labels["kind"] for cell in cells) == count_cells(planned)


def test_what_a_cell_reads_of_others_it_needs(planned):
    """Else it may run before them, where several workers share the cells."""
    cells = next_cells(planned, trained(planned), OUT)
    for cell in cells:
        words = [word for command in cell.commands for word in command]
        for other in cells:
            folder = f"{folder_of(OUT, other.name)}/"
            if other is not cell and any(word.startswith(folder) for word in words):
                assert other.name in cell.needs


def test_every_flag_of_every_command_exists_and_comes_once(planned):
    commands = [c for cell in next_cells(planned, trained(planned), OUT) for c in cell.commands]
    scripts = set()
    for command in commands:
        script = command[1] if command[0] == "-m" else command[0]
        given = [word[2:] for word in command if word.startswith("--")]
        assert set(given) <= flags_of(script) and len(set(given)) == len(given), command
        scripts.add(script)
    tasks = {f"eval.{name}" for name in FILES[planned.name] if "." not in name}
    tasks |= {"eval.reward"} if planned.plan.reward else set()
    assert scripts == {"data.split", "train.py", "sample.py", "eval.diversity"} | tasks


def test_the_rate_of_least_held_out_loss_goes_on_to_other_seeds_and_tests():
    chat = plan_study("spl_chat", str(TINY), (str(TINY / "eval.jsonl"),), (), False, 1)
    cells = next_cells(chat, trained(chat, lambda rate: abs(rate - 3)), OUT)
    rates = {c.labels["rate"] for c in cells if c.labels.get("seed") or c.labels["kind"] == "test"}
    assert rates == {3.0}
    test = next(c for c in cells if c.name == "eval/spl/tau 11/rate 3/seed 2/test")
    others = ("eval/pairs", "eval/reward model")
    assert test.needs == ("eval/spl/tau 11/rate 3/seed 2/train", *others)
    assert (test.labels["alpha"], test.labels["beta"], test.labels["learning_rate"]) == (
        1.1, 0.1, 1.5e-5,
    )  # fmt: skip
    control = next(c for c in cells if c.name == "eval/dpo, min-p/m 0.1/seed 1")
    assert control.needs == ("eval/spl/tau 1/rate 3/seed 1/train", *others)
    assert control.labels["kind"] == "decode" and control.labels["tau"] is None
    draw = control.commands[0]
    assert draw[draw.index("--min_p") + 1] == "0.1" and draw[draw.index("--seed") + 1] == "1001"


def test_a_study_names_the_files_of_its_benchmarks_and_nothing_else(planned):
    """Whether code may run is no file."""
    named = [file["name"] for files in describe(planned)["benchmarks"].values() for file in files]
    assert named == ["heldout.jsonl"] * len(FILES[planned.plan.name])


def value(command, flag):
    return command[command.index(flag) + 1]


def test_a_policy_is_trained_and_drawn_from_as_its_name_says():
    chat = plan_study("spl_chat", str(TINY), (str(TINY / "eval.jsonl"),), (), False, 1)
    cells = {c.name: c for c in next_cells(chat, trained(chat, lambda rate: abs(rate - 3)), OUT)}
    name = "eval/spl/tau 11/rate 3/seed 2"
    (train,), (draw, *_) = (cells[f"{name}/{step}"].commands for step in ("train", "test"))
    asked = [value(train, flag) for flag in ("--alpha", "--beta", "--learning_rate", "--seed")]
    assert asked == ["1.1", "0.1", "1.5e-05", "2"]
    assert value(draw, "--adapter") == value(train, "--out_dir")
    asked = [value(draw, flag) for flag in ("--seed", "--n", "--max_new_tokens")]
    assert asked == ["1002", "16", "512"] and "--min_p" not in draw
    (judge,) = cells["eval/reward model"].commands
    assert value(judge, "--objective") == "reward" and value(judge, "--batch_size") == "64"
    assert value(judge, "--learning_rate") == "0.0001"
    (split,) = cells["eval/pairs"].commands
    asked = [value(split, flag) for flag in ("--prompts", "--pairs", "--eval_pairs")]
    assert asked == ["500", "40000", "500"]


def maths(*words):
    data = (str(TINY / "eval.jsonl"),)
    return plan_study("spl_maths", str(TINY), data, words, False, 1)


def test_what_grades_the_problems_is_not_what_is_scored():
    """The reference grades them by a seed of its own; or a file does, and no cell."""
    words = (f"gsm8k={TINY}/heldout.jsonl", f"math_problems={TINY}/heldout.jsonl")
    own = maths(*words)
    seeds = {"difficulty": set(), "base": set(), "test": set(), "decode": set()}
    for cell in next_cells(own, trained(own), OUT):
        for command in cell.commands:
            if "--seed" in command and (kind := cell.labels["kind"]) in seeds:
                seeds[kind].add(value(command, "--seed"))
    policies = {str(1000 + seed) for seed in range(5)}
    assert seeds == {"difficulty": {"999"}, "base": {"1000"}, "test": policies, "decode": policies}
    file = str(TINY / "eval.jsonl")
    given = maths(*words, f"gsm8k.split={file}")
    assert count_cells(own)["difficulty"] == 1 and "difficulty" not in count_cells(given)
    base = next(c for c in next_cells(given, [], OUT) if c.labels["kind"] == "base")
    splits = [c[i + 1] for c in base.commands for i, word in enumerate(c) if word == "--split"]
    assert splits == [file]


def test_no_decoding_is_asked_what_is_not_drawn():
    """Letters have probabilities, whatever the temperature: policies are asked once."""
    study = maths(f"truthfulqa={TINY}/heldout.jsonl", f"math_problems={TINY}/heldout.jsonl")
    asked = Counter()
    for cell in next_cells(study, trained(study), OUT):
        for command in cell.commands:
            asked[cell.labels["kind"], command[1]] += 1
            assert command[1] != "eval.truthfulqa" or "--seed" not in command
    for kind, drawn, letters in (("base", 1, 1), ("test", 15, 15), ("decode", 10, 0)):
        assert asked[kind, "eval.math_problems"] == drawn
        assert asked[kind, "eval.truthfulqa"] == letters


def test_all_trainings_share_one_split_and_one_reference_cache(planned):
    cells = next_cells(planned, trained(planned), OUT)
    trainings = [dict(zip(c.commands[0][1::2], c.commands[0][2::2], strict=True))
                 for c in cells if c.labels["kind"] == "train"]  # fmt: skip
    for flag in ("--data", "--eval_data", "--reference_cache"):
        assert len({training[flag] for training in trainings}) == 1
    assert len({training["--out_dir"] for training in trainings}) == len(trainings)


def test_expected_seconds_by_hand():
    """7.24e9 parameters and two products each: 10,000 tokens read take 1.448e14 FLOP; drawn on a
    CPU twice, on a GPU 20 times as long."""
    small = plan_study("small", str(TINY), (str(TINY / "eval.jsonl"),), (), False, 2)
    assert small.flops == 1e11 or small.device == "cuda"
    cpu = replace(small, parameters=7_240_000_000, device="cpu", flops=5e10)
    gpu = replace(cpu, device="cuda", flops=GPU_FLOPS)
    assert seconds_for(cpu, 10_000) == pytest.approx(2896)
    assert seconds_for(cpu, 0, 10_000) == pytest.approx(5792)
    assert seconds_for(gpu, 10_000, 10_000) == pytest.approx(0.724 * 21)
    train = next(c for c in next_cells(cpu, [], OUT) if c.labels["kind"] == "train")
    # 480 pairs forward and back, 4 evaluations of 40: 1120 pairs of 240 tokens
    assert train.seconds == pytest.approx(1120 * 240 * 2 * 7.24e9 / 5e10)


def test_expected_seconds_of_what_is_measured_by_hand():
    """A token that is read takes a second here, one that is drawn two.

    The reward model: 480 pairs of 240 tokens, forward and back. 50 * 8 completions of 70 tokens
    are 28,000, drawn, then read twice by eval.diversity and once by the reward model; one benchmark
    draws 1000, which the reference does once more to grade them, another reads 300.
    """
    small = plan_study("small", str(TINY), (str(TINY / "eval.jsonl"),), (), False, 1)
    benchmarks = {"gsm8k": Benchmark((), 1000, graded=True), "mmlu": Benchmark((), read=300)}
    plan = replace(small.plan, benchmarks=benchmarks, reward=Reward((), 1e-3))
    files = dict.fromkeys(benchmarks, ("--data", "file"))
    slow = {"parameters": 5 * 10**9, "device": "cpu", "flops": 1e10}
    cells = next_cells(replace(small, plan=plan, benchmarks=files, **slow), [], OUT)
    seconds = {cell.labels["kind"]: cell.seconds for cell in cells}
    assert seconds["judge"] == 2 * 480 * 240
    assert seconds["difficulty"] == 2 * 1000
    assert seconds["base"] == 2 * (28_000 + 1000) + 3 * 28_000 + 300


def test_the_data_has_a_name():
    assert data_name(["hh/helpful.jsonl.gz"]) == "helpful"
    assert data_name(["hh/a/test.jsonl.gz", "hh/b/test.jsonl.gz"]) == "hh"
    assert data_name(["/a.jsonl", "/b.jsonl"]) == "pairs"  # the root has no name


# ------------------------------------------------------------------------------------------------
# the command


def run(monkeypatch, *flags) -> None:
    monkeypatch.setattr(sys, "argv", ["study", *map(str, flags)])
    study.main()


@pytest.mark.parametrize("name", MODEL_PLANS)
def test_a_dry_run_reads_no_weights_and_writes_nothing(name, tmp_path, monkeypatch, capsys):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    shutil.copy(TINY / "config.json", model)  # and nothing else
    flags = ("--plan", name, "--model", model, "--data", TINY / "eval.jsonl", "--out", out)
    run(monkeypatch, *flags, "--dry_run")
    said = capsys.readouterr().out
    assert said.startswith(f"plan {name}: ") and "hours to go with 1 workers at " in said
    plan = MODEL_PLANS[name]
    one = len(plan.rates) == 1  # else the seeds and the tests wait for the choice of a rate
    trainings = len(plan.methods) * (plan.seeds if one else len(plan.rates))
    drawings = 1 + (len(plan.methods) + len(plan.controls)) * plan.seeds if one else 1
    assert said.count("python -m data.split --data ") == 1
    assert said.count("python train.py ") == trainings + (plan.reward is not None)
    assert said.count("python sample.py ") == drawings
    assert not out.exists()


def test_what_is_not_named_yet_is_expected_to_take_as_long_as_the_reference(planned):
    later = study.expected_seconds(planned, [], OUT)
    kinds = count_cells(planned)
    cells = {cell.labels["kind"]: cell.seconds for cell in next_cells(planned, [], OUT)}
    by_hand = cells["split"] + cells.get("difficulty", 0) + cells.get("judge", 0)
    by_hand += kinds["train"] * cells["train"] + (kinds["base"] + kinds["test"]) * cells["base"]
    by_hand += kinds.get("decode", 0) * cells.get("decode", cells["base"])
    assert later == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("plan", "flags", "message"),
    [
        ("quick", ["--model", TINY], "--model is for --plan small, spl_chat, spl_maths, h_dpo"),
        ("small", [], "--plan small expects --model, a checkpoint, and --data, its pairs"),
        ("small", ["--data", TINY / "eval.jsonl", "--model", "no"], "--model expects a folder"),
        ("small", ["--model", TINY, "--data", "no.jsonl"], "no.jsonl: no such file or folder"),
        ("small", ["gsm8k=x"], "--benchmarks expects NAME=FILE with a NAME of none"),
        ("h_dpo", ["mmlu=x"], "a NAME of gsm8k, humaneval, mmlu_pro, mmlu_pro.validation, ifeval"),
        ("spl_maths", ["x=y"], "gsm8k, gsm8k.split, math_problems, mmlu, mmlu.dev, truthfulqa"),
        ("h_dpo", ["gsm8k=no.jsonl"], "gsm8k expects a file or folder, got 'no.jsonl'"),
        ("h_dpo", ["gsm8k="], "--benchmarks gsm8k expects a file or folder, got ''"),
        ("h_dpo", [f"gsm8k={TINY}", f"gsm8k={ROOT}"], f"gsm8k is given twice: {TINY}, {ROOT}"),
        ("h_dpo", [f"mmlu_pro={TINY}/eval.jsonl"], "needs mmlu_pro.validation=FILE too"),
        ("h_dpo", [f"humaneval={TINY}/eval.jsonl"], "--allow_code_execution true"),
        (
            "h_dpo",
            [f"gsm8k={TINY}/heldout.jsonl", "--allow_code_execution", "true"],
            "--allow_code_execution is for humaneval, which --benchmarks has not",
        ),
    ],
)
def test_mistakes_end_before_anything_runs(plan, flags, message, tmp_path, monkeypatch):
    if flags and "=" in str(flags[0]):
        flags = ["--model", TINY, "--data", TINY / "eval.jsonl", "--benchmarks", *flags]
    out = tmp_path / "out"
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run(monkeypatch, "--plan", plan, *flags, "--out", out)
    assert message in str(error.value) and not out.exists()


def test_a_plan_from_the_split_to_the_report(tmp_path, monkeypatch, stories_dir):
    """`small` made smaller, on stories260k, with a reward model and a benchmark that it grades:
    every cell runs, and says what rows have to say.
    """
    short = ("--batch_size", "5", "--max_length", "192", "--max_prompt_length", "96")
    plan = replace(
        MODEL_PLANS["small"],
        methods=(spl(1.0),),
        pairs=10,
        eval_pairs=4,
        train=(*short, "--eval_every", "1"),
        prompts=5,
        n=3,
        sampling=("--max_new_tokens", "8"),
        seeds=1,
        benchmarks={"gsm8k": Benchmark(("--n", "64", "--limit", "2", "--max_new_tokens", "4"),
                                       2 * 64 * 4, graded=True)},
        reward=Reward(short, 1e-3),
    )  # fmt: skip
    monkeypatch.setitem(MODEL_PLANS, "small", plan)
    sums, out = tmp_path / "sums.jsonl", tmp_path / "out"
    sums.write_text('{"question": "2 + 2?", "answer": "#### 4"}\n' * 2)
    flags = ("--plan", "small", "--model", stories_dir, "--out", out, "--threads", "1",
             "--data", TINY / "eval.jsonl", "--benchmarks", f"gsm8k={sums}")  # fmt: skip
    run(monkeypatch, *flags)
    rows = {row["cell"]: row for row in read_study(out)}
    assert Counter(row["kind"] for row in rows.values()) == {
        "split": 1, "difficulty": 1, "judge": 1, "base": 1, "train": 1, "test": 1,
    }  # fmt: skip
    train = rows["eval/spl/tau 1/rate 1/seed 0/train"]
    assert train["curves"]["step"] == [0, 1, 2] and len(train["curves"]["eval/loss"]) == 3
    measured = [row for row in rows.values() if row["kind"] in ("base", "test")]
    asked = read_prompts(out / "cells" / "eval" / "pairs" / "prompts.jsonl")
    for row in measured:
        assert row["process"] == "eval" and row["source"] == stories_dir.name
        assert [sample["prompt"] for sample in row["samples"]] == [
            prompt.messages[0]["content"] for prompt in asked[:3]
        ]
        assert all(len(sample["completions"]) == 3 for sample in row["samples"])
        names = {"input/distinct_2", "input/cosine_distance", "reference_cross_entropy/sequence",
                 "entropy/sequence", "tokens"}  # fmt: skip
        assert {f"diversity:{name}" for name in names} <= set(row["metrics"])
        assert {"reward:reward@1", "gsm8k:pass@64", "gsm8k:pass@64/hard"} <= set(row["metrics"])
        assert len(row["values"]["reward:reward@1"]) == 5
        assert row["values"]["gsm8k:pass@64"] == [0, 0]  # stories solve nothing
    base = rows["base/eval"]["metrics"]  # the reference read as it was drawn: one number, twice
    entropy, cross = (base[f"diversity:{name}/sequence"]["value"]
                      for name in ("entropy", "reference_cross_entropy"))  # fmt: skip
    assert entropy == pytest.approx(cross, rel=0.02)
    about = json.loads((out / "study.json").read_text())
    assert about["model"] == stories_dir.name
    content = hashlib.sha256((TINY / "eval.jsonl").read_bytes()).hexdigest()
    assert about["data"] == [{"name": "eval.jsonl", "sha256": content}]
    assert about["recipe"]["sources"]["embedding"].startswith("gap: ")
    assert "<h4>GSM8K</h4>" in (out / "report.html").read_text()
    with pytest.raises(ValueError, match=r"holds a study with model stories260k, not tiny"):
        run(monkeypatch, *flags[:3], TINY, *flags[4:])
