"""eval/speed_choices.py: its numbers by hand, which questions are asked, what it refuses.

No test here looks at a clock. pytest tests/test_speed_choices.py
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from eval.speed_choices import SpeedChoicesConfig, check_config, make_job, notes, summarize
from tests.conftest import ROOT

CONFIG = SpeedChoicesConfig(model=str(ROOT / "data" / "tiny"), subjects=2, questions=1, shots=1)


@pytest.fixture
def config(tmp_path) -> SpeedChoicesConfig:
    for kind in ("test", "dev"):
        (tmp_path / kind).mkdir()
        for subject in "abcd":
            file = tmp_path / kind / f"{subject}_{kind}.csv"
            file.write_text(f"{subject} {kind}?,1,2,3,4,A\n" * 2)
    return replace(CONFIG, data=str(tmp_path / "test"), dev=str(tmp_path / "dev"))


def test_subjects_are_spread_over_all(config):
    """Two of a, b, c, d: the first and the third, one question and one exemplar of each."""
    job = make_job(config, "cpu")
    assert [p["question"] for p in job["problems"]] == ["a test?", "c test?"]
    assert {s: [p["question"] for p in some] for s, some in job["shots"].items()} == {
        "a": ["a dev?"], "c": ["c dev?"],
    }  # fmt: skip
    assert make_job(replace(config, shots=0, dev=None), "cpu")["shots"] == {"a": [], "c": []}


def turn(seconds: float, logps: list) -> dict:
    return {"seconds": seconds, "cpu_seconds": 2 * seconds, "questions": 2, "peak_bytes": None,
            "accuracy": 0.5, "logps": logps}  # fmt: skip


def test_numbers_by_hand():
    """2 questions in 1, 2 and 4 s: 1 a second. lm-eval's in 8 s: 0.25, so 4 times.

    The largest difference is 0.5; to the first question both say A, to the second A and B.
    """
    ours = [[-1.0, -2.0], [-1.0, -1.25]]
    theirs = [[-1.0, -2.0], [-1.25, -0.75]]
    turns = {"ours": [turn(s, ours) for s in (1, 2, 4)], "lm_eval": [turn(8, theirs)] * 3}
    results = summarize(turns)
    assert results["ours"]["questions_per_s"]["median"] == 1
    assert results["ours"]["rate/lm_eval"] == 4 and results["lm_eval"]["rate/lm_eval"] == 1
    assert results["ours"]["largest_difference"] == 0.5
    assert results["ours"]["same_answer"] == 0.5
    assert notes(results, {}) == [
        "log-probabilities of choices differ by 0.5 at most; the same answer to 50.0% of the "
        "questions"
    ]
    alone = summarize({"ours": turns["ours"]})["ours"]
    assert alone["rate/lm_eval"] is None and "same_answer" not in alone


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shots": -1}, "--shots expects 0 or more"),
        ({"subjects": 0}, "--subjects expects 1 or more"),
        ({"questions": 0}, "--questions expects 1"),
        ({"batch_size": 0}, "--batch_size expects 1"),
        ({"repeats": 0}, "--repeats expects 1"),
        ({"dtype": "x"}, "--dtype expects float32 or bfloat16, got 'x'"),
        ({"dev": None}, "--dev expects the folder of exemplars"),
    ],
)
def test_flags_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(replace(config, **changes))


def test_command(config, tmp_path):
    """Ours alone, on the embedded model: two questions."""
    command = [sys.executable, "-m", "eval.speed", "choices", "--only", "ours", "--data"]
    command += [config.data, "--dev", config.dev, "--subjects", "2", "--questions", "1"]
    command += ["--shots", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["task"] == "speed/choices"
    assert summary["turns"]["ours"][0]["questions"] == 2
