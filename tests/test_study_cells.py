"""A cell of a study: commands, locks, rows, and what of the results goes into a row.

python -m pytest tests/test_study_cells.py
"""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from eval.study_cells import (
    Cell,
    CellFailed,
    append_row,
    claim,
    collect,
    folder_of,
    go_on,
    own_gpu,
    read_curves,
    read_study,
    rounded,
    run_cell,
)
from model.run import git_commit
from model.sampling import PLAIN, Sampling


def ignore(process):
    pass


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_cell_runs_its_commands_in_order_and_leaves_a_row(tmp_path):
    folder = folder_of(tmp_path, "a/tau 1, beta 2/train")
    assert folder == tmp_path / "cells" / "a" / "tau_1_beta_2" / "train"
    first = ("-c", f"open({str(folder / 'x')!r}, 'a').write('1')")
    second = ("-c", f"open({str(folder / 'x')!r}, 'a').write('2'); print('said')")
    cell = Cell("a/tau 1, beta 2/train", {"kind": "train", "seed": 3}, (first, second))
    row = run_cell(tmp_path, cell, 1, ignore)
    assert (folder / "x").read_text() == "12" and "said" in (folder / "log.txt").read_text()
    assert row["cell"] == cell.name and row["seed"] == 3 and row["metrics"] == {}
    assert row["commit"] == git_commit()
    assert [text.split()[:2] for text in row["commands"]] == [["python", "-c"]] * 2
    assert (folder / "done").exists()


def test_a_command_that_fails_is_shown_with_the_end_of_its_log(tmp_path):
    cell = Cell("b", {}, (("-c", "print('why it failed'); raise SystemExit(7)"), ("-c", "1/0")))
    with pytest.raises(CellFailed, match=r"ended with 7; .*log.txt ends with:\n(.|\n)*why it fail"):
        run_cell(tmp_path, cell, 1, ignore)
    assert not (folder_of(tmp_path, "b") / "done").exists()
    assert "ZeroDivisionError" not in (folder_of(tmp_path, "b") / "log.txt").read_text()


def test_the_seconds_of_a_row_are_those_of_all_attempts(tmp_path):
    folder = folder_of(tmp_path, "c")
    folder.mkdir(parents=True)
    (folder / "seconds").write_text("1000.0\n")  # of one that was stopped
    row = run_cell(tmp_path, Cell("c", {}, (("-c", "pass"), ("-c", "pass"))), 1, ignore)
    assert 1000 <= row["seconds"] < 1100


def test_commands_do_not_think_that_they_are_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = "import os; print(os.environ.get('RANK'), os.environ['OMP_NUM_THREADS'])"
    run_cell(tmp_path, Cell("c", {}, (("-c", text),)), 3, ignore)
    assert "None 3" in (folder_of(tmp_path, "c") / "log.txt").read_text()


@pytest.mark.parametrize(
    ("rank", "seen", "gpus", "own"),
    [(None, None, 8, None), ("3", None, 0, None), ("3", None, 8, "3"), ("1", "4,6", 2, "6"),
     ("9", None, 8, "1")],
)  # fmt: skip
def test_under_torchrun_each_rank_has_its_gpu(rank, seen, gpus, own, monkeypatch):
    for name, value in (("LOCAL_RANK", rank), ("CUDA_VISIBLE_DEVICES", seen)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert own_gpu() == ({} if own is None else {"CUDA_VISIBLE_DEVICES": own})


def test_a_stopped_training_goes_on_and_one_without_a_checkpoint_begins_anew(tmp_path):
    run = tmp_path / "train"
    command = ("train.py", "--out_dir", str(run))
    assert go_on(command) == list(command)
    run.mkdir()
    (run / "metrics.jsonl").touch()
    assert go_on(command) == list(command) and not run.exists()
    (run / "checkpoints" / "step-10").mkdir(parents=True)
    assert go_on(command) == [*command, "--resume"] and run.exists()
    assert go_on(("sample.py", "--out", "x")) == ["sample.py", "--out", "x"]


def test_a_claim_excludes_other_processes_and_goes_with_its_holder(tmp_path):
    text = (
        "import sys; from pathlib import Path; from eval.study_cells import claim\n"
        f"with claim(Path({str(tmp_path)!r}), 'cell') as ours: print(ours)"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout

    with claim(tmp_path, "cell") as ours:
        assert ours and other() == "False\n"
        with claim(tmp_path, "cell") as again:
            assert not again
    assert other() == "True\n"


def test_rows_behind_one_that_a_kill_has_cut_short(tmp_path):
    assert read_study(tmp_path) == []
    append_row(tmp_path, {"cell": "a", "x": "ä"})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"cell": "b", "x"')
    assert [row["cell"] for row in read_study(tmp_path)] == ["a"]
    append_row(tmp_path, {"cell": "c"})
    assert read_study(tmp_path) == [{"cell": "a", "x": "ä"}, {"cell": "c"}]
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write("[1]\n")
    with pytest.raises(ValueError, match=r"results.jsonl:3: expected the row of a cell"):
        read_study(tmp_path)


def test_curves_have_every_held_out_name_and_no_training_step(tmp_path):
    records = [{"step": 0, "eval/loss": 0.7, "eval/terms/policy": 0.0}, {"step": 1, "loss": 0.6}]
    records += [{"step": 2, "eval/loss": 0.5, "eval/terms/policy": 0.25}]
    write_lines(tmp_path / "metrics.jsonl", records)
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves == {"step": [0, 2], "eval/loss": [0.7, 0.5], "eval/terms/policy": [0.0, 0.25]}
    many = [{"step": i, "eval/loss": 0.0} for i in range(1001)]
    write_lines(tmp_path / "metrics.jsonl", many)
    steps = read_curves(tmp_path / "metrics.jsonl")["step"]
    assert len(steps) == 64 and steps[0] == 0 and steps[-1] == 1000


def test_what_a_folder_says(tmp_path):
    items = [
        {"correct": [True, True, False], "valid": [True, False, False], "distinct": 2,
         "distinct_correct": 1, "majority": 1.0, "difficulty": level}
        for level in ("easy", "hard", "easy", "easy", "easy")
    ]  # fmt: skip
    drawn = [
        {"prompt": f"p{i}", "completions": ["a", "b", "c"], "tokens": [3, 4, 5],
         "logps": [-1.0, -2.0, -6.0]}
        for i in range(5)
    ]  # fmt: skip
    write_lines(tmp_path / "arithmetic" / "items.jsonl", items)
    write_lines(tmp_path / "samples.jsonl", drawn)
    settings = tmp_path / "samples.jsonl.settings.json"
    settings.write_text(json.dumps({"sampling": asdict(PLAIN)}))
    write_lines(tmp_path / "opinions" / "items.jsonl", [{"prompt": "q", "p": 0.123456789}])
    (tmp_path / "arithmetic" / "values.json").write_text(
        '{"confidence": [1, 1, 1, 0, 0], "brier": [0.5, 1, 1, 1, 1]}'
    )
    (tmp_path / "arithmetic" / "reliability.json").write_text('[{"count": 5}]')
    value = {"value": 0.5, "low": 0.25, "high": 0.75}
    names = ("pass@1", "pass@1/hard", "floor@1/hard", "no_answer/easy")
    for task in ("arithmetic", "validation", "gsm8k"):
        (tmp_path / task).mkdir(exist_ok=True)
        metrics = {"metrics": dict.fromkeys(names, value)}
        (tmp_path / task / "summary.json").write_text(json.dumps(metrics))
    row = collect(tmp_path)
    assert row["metrics"] == dict.fromkeys(
        ("arithmetic:pass@1", "arithmetic:floor@1/hard", "validation:pass@1",
         *(f"gsm8k:{name}" for name in names)), value
    )  # fmt: skip
    problems = row["problems"]
    assert problems["n"] == 3 and problems["correct"] == [2] * 5 and problems["valid"] == [1] * 5
    assert problems["entropy"] == [3.0] * 5 and problems["tokens"] == [4.0] * 5
    assert problems["confidence"] == [1, 1, 1, 0, 0]
    assert problems["brier"] == [0.5, 1, 1, 1, 1] and "validation_entropy" not in row
    assert problems["difficulty"] == ["easy", "hard", "easy", "easy", "easy"]
    assert [one["prompt"] for one in row["samples"]] == ["p0", "p1", "p2", "p3"]  # 3 easy, 1 hard
    assert row["opinions"] == [{"prompt": "q", "p": 0.12346}]
    settings.write_text(json.dumps({"sampling": asdict(Sampling(1.2))}))
    assert "values" not in row
    heated = collect(tmp_path)["problems"]  # -log pi of draws that are not the policy's own
    assert heated["cross_entropy"] == [3.0] * 5 and "entropy" not in heated
    assert row["reliability"] == {"arithmetic": [{"count": 5}]} and "curves" not in row


def test_completions_of_prompts_that_are_no_problems(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    prompts = ["x", *([{"role": r, "content": c} for r, c in turns[:n]] for n in (1, 3, 1))]
    write_lines(tmp_path / "samples.jsonl", [{"prompt": p, "completions": list("pqrs")}
                                             for p in prompts])  # fmt: skip
    (tmp_path / "diversity").mkdir()
    (tmp_path / "diversity" / "summary.json").write_text('{"metrics": {}}')
    values = {"tokens": [3, 4.5, 7.25, 1.0], "entropy/token": [[1.0, 3], [2.0, 5]]}  # a ratio
    (tmp_path / "diversity" / "values.json").write_text(json.dumps(values))
    row = collect(tmp_path)
    assert row["values"] == {"diversity:tokens": [3, 4.5, 7.25, 1.0]}
    shown = ("x", "a", "user: a\n\nassistant: b\n\nuser: c")
    assert row["samples"] == [{"prompt": p, "completions": ["p", "q", "r"]} for p in shown]
    assert "problems" not in row


def test_numbers_are_rounded_and_nothing_else_is():
    value = {"a": [0.1234567, 3, True, None, "x"], "b": {"c": 1234567.0}}
    assert rounded(value) == {"a": [0.12346, 3, True, None, "x"], "b": {"c": 1234600.0}}
