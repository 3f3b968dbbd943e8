"""eval/speed.py: turns, medians, memory of a known allocation, tables, words that it refuses.

No test here looks at a clock. python -m pytest tests/test_speed.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval import speed
from tests.conftest import ROOT


def test_turns_rotate():
    """A B C, B C A, C A B, A B C: what each call returns stands in the order of the rounds."""
    called = []
    variants = {name: lambda n=name: called.append(n) or len(called) for name in "ABC"}
    results = speed.take_turns(variants, 4)
    assert "".join(called) == "ABC" + "BCA" + "CAB" + "ABC"
    assert results == {"A": [1, 6, 8, 10], "B": [2, 4, 9, 11], "C": [3, 5, 7, 12]}


def test_spread_by_hand():
    """Of 1 2 3 4 10: the median 3, the quartiles 2 and 4; an outlier moves none of them."""
    assert speed.spread([10, 1, 3, 2, 4]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert speed.spread([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0}


def test_seconds_and_rates_are_positive():
    assert speed.seconds_of(lambda: sum(range(100)), "cpu") > 0
    assert speed.matrix_rate(torch.float32, "cpu") > 0
    assert speed.copy_rate("cpu") > 0


@pytest.mark.parametrize("mebibytes", [64, 200])
def test_memory_of_a_known_allocation(mebibytes):
    """The peak counts and not what is left: a tensor that is gone when the call returns."""
    if not speed.reset_peak_memory():
        pytest.skip("this system lets no process reset its peak memory")

    def run() -> float:
        return torch.ones(mebibytes * 2**18).sum().item()

    run()
    for _ in range(2):  # the second is not lower for the first one's peak
        extra = speed.extra_peak_memory(run, "cpu")
        assert abs(extra - mebibytes * 2**20) < 4 * 2**20
    assert speed.extra_peak_memory(lambda: None, "cpu") < 4 * 2**20


def test_memory_is_none_where_nothing_tells(monkeypatch):
    monkeypatch.setattr(speed, "reset_peak_memory", lambda: False)
    assert speed.extra_peak_memory(lambda: None, "cpu") is None


def test_resident_bytes_reads_kilobytes():
    assert speed.resident_bytes("VmHWM") >= speed.resident_bytes("VmRSS") > 2**20
    assert speed.resident_bytes("VmNone") is None


def test_table_is_markdown():
    """Names to the left, numbers to the right, every line as wide."""
    table = speed.markdown_table(["head", "ms"], [["naive", "12.5"], ["ours", "3"]])
    assert table.splitlines() == [
        "| head  |   ms |",
        "|-------|-----:|",
        "| naive | 12.5 |",
        "| ours  |    3 |",
    ]


def test_missing_numbers_are_dashes():
    assert speed.shown(None) == "-" and speed.shown(0.5, "{:.0%}") == "50%"
    assert speed.over(3, 2) == 1.5
    assert speed.over(None, 2) is speed.over(2, None) is speed.over(2, 0) is None


def test_choice_of_variants():
    assert speed.choose_variants("abc", None) == ["a", "b", "c"]
    assert speed.choose_variants("abc", ("c", "a")) == ["a", "c"]
    with pytest.raises(ValueError, match="--only expects some of a b c, got d"):
        speed.choose_variants("abc", ("a", "d"))


@pytest.mark.parametrize(
    ("load", "own", "busy"), [(0.5, 0, False), (0.6, 0, True), (2.4, 2, False), (None, 0, False)]
)
def test_a_busy_machine_is_flagged(load, own, busy, capsys):
    """From a quarter of 2 cores on, what our own threads load taken off."""
    speed.warn_if_busy(load, 2, own)
    assert ("warning: the machine is busy" in capsys.readouterr().out) == busy


def test_header_names_what_numbers_depend_on():
    machine = speed.describe_machine("cpu", "python -m eval.speed logps")
    assert torch.__version__.startswith(machine["versions"]["torch"])
    text = speed.header(machine)
    for part in ("cores", "threads", "load", "torch", "python -m eval.speed logps"):
        assert part in text
    assert text.startswith(machine["date"][:10])
    json.dumps(machine)


def test_threads_are_pinned():
    before = torch.get_num_threads()
    try:
        speed.pin_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="--threads expects 1 or more, got 0"):
        speed.pin_threads(0)


def test_summary_is_written(tmp_path: Path):
    speed.write_summary(tmp_path / "a" / "b", {"task": "x", "value": None})
    assert json.loads((tmp_path / "a" / "b" / "summary.json").read_text())["task"] == "x"


# ------------------------------------------------------------------------------------------------
# the command line


def test_exit_code_and_message_of_the_command():
    command = [sys.executable, "-m", "eval.speed", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    known = "logps or train or generate or choices"
    assert done.stderr == f"error: expected a question, {known}, got 'speed'; see --help\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a question, logps or train or generate or choices, got ''"),
        (["logps", "--row", "3"], r"unknown flag --row \(did you mean --rows\?\)"),
        (["train", "--pairs", "3"], "unknown flag --pairs"),
    ],
)
def test_bad_words(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", *words])
    with pytest.raises(ValueError, match=message):
        speed.main()


def test_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", "--help"])
    speed.main()
    assert "python -m eval.speed train" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["speed", "train", "--help"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "--equal_lengths [None]    prompt and" in capsys.readouterr().out
