"""eval/arithmetic.py: a hand-written samples file against metrics worked by hand; no model.

python -m pytest tests/test_arithmetic.py
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

import sample
from eval import arithmetic
from eval.plots import read_reliability
from tests.conftest import read_jsonl

ROOT = Path(__file__).resolve().parents[1]

# Four samples for each of three problems whose answer is 7. Right: 2, 1, 0; and true: 1, 1, 0.
TRUE, FALSE = "3 + 4 = 7\n#### 7", "3 + 5 = 7\n#### 7"
EIGHT, NINE, NONE = "3 + 5 = 8\n#### 8", "3 + 6 = 9\n#### 9", "3 + 4"
COMPLETIONS = [
    [TRUE, FALSE, EIGHT, NINE],
    [TRUE, EIGHT, EIGHT, NONE],
    [EIGHT, EIGHT, EIGHT, EIGHT],
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(
    tmp_path: Path, completions: list[list[str]], out: str, *flags: str, rows: Sequence[dict] = ()
) -> dict:
    """The summary of the command as a user runs it; rows: what problems have beside a prompt."""
    problems = [{"prompt": f"Problem {i}?", "answer": 7} for i in range(len(completions))]
    problems = [a | b for a, b in zip_longest(problems, rows, fillvalue={})]
    drawn = [{"index": i, "completions": texts} for i, texts in enumerate(completions)]
    data = write_jsonl(tmp_path / "heldout.jsonl", problems)
    samples = write_jsonl(tmp_path / f"{out}.jsonl", drawn[::-1])  # any order
    command = [sys.executable, "-m", "eval.arithmetic", "--data", str(data)]
    command += ["--samples", str(samples), "--out", str(tmp_path / out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "pass@4" in done.stdout
    return json.loads((tmp_path / out / "summary.json").read_text())


def test_metrics_by_hand(tmp_path: Path) -> None:
    """pass@1 = (2 + 1 + 0) / 12. pass@2: 1 - C(2,2)/C(4,2) = 5/6, 1 - C(3,2)/C(4,2) = 1/2 and 0.

    Votes: 7 (two of four) wins the first, 8 the others. Distinct texts: 4, 3 and 1 of 4; right
    ones 2, 1, 0. All problems have the same answer, so that guesses earn what pass@k is.

    Confidence: 2/4, 2/4, 4/4, right 1, 0, 0. At 0.5 accuracy is 0.5, at 1 it is 0: ece 1/3. A
    calibrated policy's accuracy has sigma sqrt(0.25 / 2) at 0.5 and 0 at 1: 2/3 * 0.353553 *
    sqrt(2/pi) = 0.188063, which is also what ece_debiased takes off 1/3.
    Brier: (1/2)^2 + 2 (1/4)^2 = 0.375; (3/4)^2 + (1/2)^2 + (1/4)^2 = 0.875; 1 + 1 = 2.
    """
    summary = score(tmp_path, COMPLETIONS, "a")
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values == pytest.approx(
        {
            "pass@1": 3 / 12,
            "pass@2": (5 / 6 + 1 / 2) / 3,
            "pass@4": 2 / 3,
            "valid@1": 2 / 12,
            "valid@2": (1 / 2 + 1 / 2) / 3,
            "valid@4": 2 / 3,
            "majority@4": 1 / 3,
            "no_answer": 1 / 12,
            "distinct": 8 / 12,
            "distinct_correct": 3 / 12,
            "floor@1": 3 / 12,
            "floor@2": (5 / 6 + 1 / 2) / 3,
            "floor@4": 2 / 3,
            "confidence": 2 / 3,
            "overconfidence": 1 / 3,
            "ece": 1 / 3,
            "ece_mass": 1 / 3,
            "ece_calibrated": 0.188063,
            "ece_debiased": 1 / 3 - 0.188063,
            "brier": 3.25 / 3,
        },
        abs=1e-6,
    )
    assert (summary["task"], summary["problems"]) == ("arithmetic", 3)
    assert len(summary["settings"]["data_sha256"]) == 64
    for name, metric in summary["metrics"].items():
        if not name.startswith(("ece", "over")):  # an error may lie above its interval
            assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 2
    first = read_jsonl(tmp_path / "a" / "items.jsonl")[0]
    assert first["correct"] == [True, True, False, False]
    assert first["valid"] == [True, False, False, False]
    assert first["answers"] == [7, 7, 8, 9]
    assert (first["distinct"], first["distinct_correct"], first["majority"]) == (4, 2, 1.0)
    bins, ece = read_reliability(tmp_path / "a")
    shown = [(row["count"], row["confidence"], row["accuracy"]) for row in bins]
    assert shown == [(2, 0.5, 0.5), (1, 1.0, 0.0)] and ece == summary["metrics"]["ece"]


def test_difficulties_and_floors_by_hand(tmp_path: Path) -> None:
    """Answers 7, 8, 9. Guesses for another's: 8 and 9 once of four each, 1/4 on average; 7 once
    and 9 never, 1/8; 8 always and 7 never, 1/2. Of two: 1/2, (1/2 + 0) / 2, 1/2.
    """
    grades = ("easy", "hard", "easy")
    rows = [{"answer": a, "difficulty": g} for a, g in zip((7, 8, 9), grades, strict=True)]
    metrics = score(tmp_path, COMPLETIONS, "a", rows=rows)["metrics"]
    values = {name: metric["value"] for name, metric in metrics.items()}
    expected = {
        "floor@1": (1 / 4 + 1 / 8 + 1 / 2) / 3,
        "floor@1/easy": (1 / 4 + 1 / 2) / 2,
        "floor@2/easy": 1 / 2,
        "floor@1/hard": 1 / 8,
        "floor@2/hard": 1 / 4,
        "floor@4/hard": 1 / 2,
        "share/easy": 2 / 3,
        "pass@1/easy": (2 / 4 + 0) / 2,
        "pass@1/hard": 2 / 4,
        "pass@2/hard": 1 - 1 / 6,
        "valid@1/easy": (1 / 4 + 0) / 2,
        "valid@1/hard": 2 / 4,
        "majority@4/easy": 1 / 2,
        "majority@4/hard": 1.0,
        "no_answer/hard": 1 / 4,
        "distinct/easy": (1 + 1 / 4) / 2,
        "distinct_correct/hard": 1 / 4,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    items = read_jsonl(tmp_path / "a" / "items.jsonl")
    assert [item["difficulty"] for item in items] == ["easy", "hard", "easy"]


def test_no_answer_at_all_has_no_confidence(tmp_path: Path) -> None:
    """And a problem alone has no other's answer for a floor. Brier: 1 for none, 1 for the truth."""
    values = score(tmp_path, [[NONE] * 4], "a")["metrics"]
    assert values["confidence"]["value"] == values["majority@4"]["value"] == 0
    assert values["brier"]["value"] == 2 and "floor@1" not in values


def test_baseline_gives_the_paired_difference(tmp_path: Path) -> None:
    """Each problem gains one right answer of four: 0.25, and no doubt about it."""
    score(tmp_path, COMPLETIONS, "a")
    better = [[TRUE, *texts[:-1]] for texts in COMPLETIONS]  # the last one is wrong in each
    summary = score(tmp_path, better, "b", "--baseline", str(tmp_path / "a"))
    difference = summary["metrics"]["pass@1 - baseline"]
    assert difference == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--samples", '{"index": 0, "completions": ["x"]}\n', "no completions for 1 of 2 problems"),
        ("--samples", '{"index": 0, "completions": []}\n', ":1: expected `completions`"),
        ("--samples", '{"completions": ["x"]}\n', ":1: expected an index"),
        ("--samples", '{"index": 0, "completions": ["x"]}\n' * 2, ":2: expected an index not yet"),
        ("--data", '{"prompt": "x"}\n', ":1: expected a text `prompt` and an integer `answer`"),
        ("--data", "", "no problem in it"),
        (
            "--data",
            '{"prompt": "x", "answer": 7, "difficulty": 3}\n',
            ":1: difficulty: expected a text, got 3",
        ),
        (
            "--data",
            '{"prompt": "x", "answer": 7}\n{"prompt": "x", "answer": 7, "difficulty": "easy"}\n',
            "expected a `difficulty` in every row or in none",
        ),
    ],
)
def test_bad_files_end_with_one_message(
    flag: str, content: str, message: str, tmp_path: Path
) -> None:
    paths = {
        "--data": write_jsonl(tmp_path / "d", [{"prompt": "x", "answer": 7}] * 2),
        "--samples": write_jsonl(tmp_path / "s", [{"index": 0, "completions": ["x"]}]),
    }
    paths[flag].write_text(content)
    command = [sys.executable, "-m", "eval.arithmetic", "--out", str(tmp_path / "out")]
    command += [word for name, path in paths.items() for word in (name, str(path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_baseline_of_other_problems_is_refused(tmp_path: Path) -> None:
    score(tmp_path, COMPLETIONS, "a")
    with pytest.raises(AssertionError, match="on the same problems"):
        score(tmp_path, COMPLETIONS[:2], "b", "--baseline", str(tmp_path / "a"))


def test_samples_are_those_of_sample_py(tmp_path, monkeypatch):
    """The same seeds, prompts and policy give the completions that sample.py writes."""
    problems = tmp_path / "problems.jsonl"
    lines = (ROOT / "data" / "tiny" / "heldout.jsonl").read_text().splitlines()[:3]
    problems.write_text("".join(line + "\n" for line in lines))
    common = ["--model", str(ROOT / "data" / "tiny"), "--n", "2", "--seed", "5"]
    common += ["--max_new_tokens", "80"]
    argv = ["arithmetic", *common, "--data", str(problems), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    arithmetic.main()
    out = tmp_path / "samples.jsonl"
    argv = ["sample.py", *common, "--prompts", str(problems), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    sample.main()
    ours = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    theirs = [json.loads(line) for line in out.open()]
    assert [r["completions"] for r in ours] == [r["completions"] for r in theirs]
    assert len(ours) == 3 and all("####" in text for r in ours for text in r["completions"])
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert settings["n"] == 2 and settings["seed"] == 5
