"""eval/study.py: workers, what fails, what is stopped, what is there already.

python -m pytest tests/test_study.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval import study as module
from eval.study import Study, expected_seconds
from eval.study_cells import Cell, append_row, folder_of, read_study
from eval.study_plans import PLANS

ROOT = Path(__file__).resolve().parents[1]


def writes(out, name, text):
    """A command that adds a text to a file of its own cell."""
    return ("-c", f"open({str(folder_of(out, name) / 'x')!r}, 'a').write({text!r})")


@pytest.fixture
def cells(monkeypatch):
    """What the plan consists of, whatever the rows."""
    made: list[Cell] = []
    monkeypatch.setattr(module, "next_cells", lambda plan, rows, out: made)
    monkeypatch.setattr(module, "count_cells", lambda plan: {"test": len(made)})
    monkeypatch.setattr(module, "PAUSE", 0.05)
    return made


def run(out, workers=2):
    study = Study(PLANS["quick"], out, 1)
    study.run(workers)
    return study


def test_each_cell_is_run_once_and_behind_what_it_needs(tmp_path, cells):
    cells += [
        Cell("c", {"kind": "test"}, (writes(tmp_path, "c", "3"),), ("a", "b")),
        Cell("a", {"kind": "test"}, (writes(tmp_path, "a", "1"),)),
        Cell("b", {"kind": "test"}, (writes(tmp_path, "b", "2"),), ("a",)),
    ]
    assert not run(tmp_path).failed
    assert [row["cell"] for row in read_study(tmp_path)] == ["a", "b", "c"]
    assert not run(tmp_path).failed  # nothing is left to do
    assert [(folder_of(tmp_path, name) / "x").read_text() for name in "abc"] == ["1", "2", "3"]


def test_what_needs_a_failed_cell_is_left_out_and_the_rest_is_done(tmp_path, cells):
    cells += [
        Cell("bad", {"kind": "test"}, (("-c", "raise SystemExit('no such thing')"),)),
        Cell("behind it", {"kind": "test"}, (writes(tmp_path, "behind it", ""),), ("bad",)),
        Cell("good", {"kind": "test"}, (writes(tmp_path, "good", ""),)),
    ]
    study = run(tmp_path)
    assert [row["cell"] for row in read_study(tmp_path)] == ["good"]
    assert list(study.failed) == ["bad"] and "no such thing" in study.failed["bad"]


def test_a_failure_is_known_to_every_rank(tmp_path, cells):
    """Of two ranks one tries the cell, and neither what needs it."""
    tries = tmp_path / "tries"
    fail = f"open({str(tries)!r}, 'a').write('x'); raise SystemExit('no such thing')"
    cells += [
        Cell("bad", {"kind": "test"}, (("-c", fail),)),
        Cell("behind it", {"kind": "test"}, (writes(tmp_path, "behind it", ""),), ("bad",)),
    ]
    first, second = run(tmp_path), run(tmp_path)
    assert tries.read_text() == "x" and not read_study(tmp_path)
    assert first.failed == second.failed and list(first.failed) == ["bad"]


def test_files_that_are_missing_are_made_again_without_another_row(tmp_path, cells):
    cells += [
        Cell("a", {"kind": "train"}, (writes(tmp_path, "a", "1"),)),
        Cell("b", {"kind": "labels"}, (writes(tmp_path, "b", "2"),), ("a",)),
        Cell("c", {"kind": "test"}, (writes(tmp_path, "c", "3"),), ("b",)),
    ]
    for name in "ab":  # done on another machine
        append_row(tmp_path, {"cell": name, "kind": "train"})
    run(tmp_path)
    assert [row["cell"] for row in read_study(tmp_path)] == ["a", "b", "c"]
    assert [(folder_of(tmp_path, name) / "x").read_text() for name in "abc"] == ["1", "2", "3"]


def test_two_processes_share_the_cells(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from eval import study; from eval.study_cells import Cell\n"
        "from eval.study_plans import PLANS\n"
        f"out = Path({str(tmp_path)!r})\n"
        "cells = [Cell(f'c{i}', {'kind': 'test'}, (('-c', 'import time; time.sleep(0.2)'),))\n"
        "         for i in range(6)]\n"
        "study.next_cells = lambda plan, rows, out: cells\n"
        "study.count_cells = lambda plan: {'test': 6}\n"
        "study.Study(PLANS['quick'], out, 1).run(1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, script], env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(row["cell"] for row in read_study(tmp_path)) == [f"c{i}" for i in range(6)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_commands_and_the_same_command_goes_on(tmp_path, number):
    command = [sys.executable, "-m", "eval.study", "--out", str(tmp_path), "--workers", "1"]
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    log = folder_of(tmp_path, "source/tiny") / "log.txt"
    deadline = time.time() + 60
    while not (log.exists() and "data.synthetic" in log.read_text()):
        assert time.time() < deadline and first.poll() is None
        time.sleep(0.05)
    first.send_signal(number)
    out, _ = first.communicate(timeout=30)
    assert first.returncode == 128 + number, out
    assert "the same command goes on" in out and read_study(tmp_path) == []
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not left.strip()


def test_expected_seconds_count_what_is_missing(tmp_path, cells):
    cells += [Cell(name, {"kind": "test"}, (), seconds=7.0) for name in "abc"]
    rows = [{"cell": "a", "kind": "test"}]
    assert expected_seconds(PLANS["quick"], rows, tmp_path) == 14.0


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path):
    out = tmp_path / "dry"
    command = [sys.executable, "-m", "eval.study", "--out", str(out), "--dry_run", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not out.exists()
    assert "hours to go with 2 workers" in done.stdout
    assert done.stdout.count("\n  python train.py ") == 6
    first = done.stdout.splitlines()[0]
    assert first.startswith("plan quick: ") and "6 train, 6 test" in first


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plan", "fool"], "--plan expects one of quick, full"),
        (["--workers", "0"], "--workers expects 1 or more, got 0"),
        (["--seed", "1"], "unknown flag --seed"),
    ],
)
def test_a_wrong_flag_is_named(argv, message):
    command = [sys.executable, "-m", "eval.study", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_study_json_says_what_was_run(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path / "s"), "--workers", "1"])
    module.main()
    about = json.loads((tmp_path / "s" / "study.json").read_text())
    assert about["plan"] == "quick" and about["grids"][0]["process"]["name"] == "verdict"
    assert set(about["environment"]) == {"machine", "python", "torch", "commit"}
