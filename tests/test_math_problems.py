r"""eval/math_problems.py: a hand-written samples file against metrics worked by hand; no model.

python -m pytest tests/test_math_problems.py

No problems of MATH come with the project; these are ours, in its format.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from eval import math_problems
from eval.exemplars import build_prompt
from eval.math_problems import TEMPLATES, check_row

PROBLEMS = [
    {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1"},
    {"problem": "Roots?", "solution": r"They are $\boxed{\{1, 2\}}$.", "level": "Level 5"},
    {"problem": "Square?", "solution": r"It is $\boxed{(x+1)^2}$.", "level": "Level 5"},
]
COMPLETIONS = [
    [r"\boxed{0.5}", r"The answer is $\frac12$.", r"\boxed{2}", "no idea"],
    [r"\boxed{2, 1}", r"$\boxed{1}$", r"\boxed{1}", r"\boxed{1}"],
    [r"\boxed{(x + 1)^2}", r"\boxed{x^2+2x+1}", r"\boxed{x^2+1}", r"\boxed{x^2+1}"],
]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command on PROBLEMS with these flags; out: its metrics by name, and its items."""

    def run(*flags: str, problems: list[dict] = PROBLEMS) -> tuple[dict[str, float], list[dict]]:
        out, data = tmp_path / "out", write_jsonl(tmp_path / "data.jsonl", problems)
        monkeypatch.setattr(sys, "argv", ["math", "--data", data, "--out", str(out), *flags])
        math_problems.main()
        summary = json.loads((out / "summary.json").read_text())
        items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
        assert summary["task"] == "math_problems"
        return {name: m["value"] for name, m in summary["metrics"].items()}, items

    return run


@pytest.fixture
def samples(tmp_path: Path) -> str:
    rows = [{"index": i, "completions": texts} for i, texts in enumerate(COMPLETIONS)]
    return write_jsonl(tmp_path / "samples.jsonl", rows)


def test_metrics_by_hand(run, samples: str) -> None:
    """Right: 2, 1 and 1 of 4. pass@2: 5/6, 1/2, 1/2. Votes: 1/2 wins by 2 to 1; 1 and x^2+1 win.

    Distinct texts: 4, 3 (two of the 1 are the same) and 3 of 4.
    """
    values, items = run("--samples", samples)
    assert values == pytest.approx(
        {
            "pass@1": (2 + 1 + 1) / 12,
            "pass@2": (5 / 6 + 1 / 2 + 1 / 2) / 3,
            "pass@4": 1.0,
            "majority@4": 1 / 3,
            "no_answer": 1 / 12,
            "by_sympy": 0.0,
            "distinct": 10 / 12,
            "pass@1/Level 1": 2 / 4,
            "pass@2/Level 1": 5 / 6,
            "pass@4/Level 1": 1.0,
            "pass@1/Level 5": 1 / 4,
            "pass@2/Level 5": 1 / 2,
            "pass@4/Level 5": 1.0,
        }
    )
    assert items[0]["answers"] == ["1/2", "1/2", "2", None]
    assert items[0]["rules"] == ["boxed", "answer", "boxed", None]
    assert items[0]["matches"] == ["exact", "exact", None, None]
    assert items[2]["matches"] == ["string", None, None, None]


@pytest.mark.skipif(
    importlib.util.find_spec("sympy") is None, reason="the optional package sympy is not installed"
)
def test_sympy_finds_one_more_and_the_spellings_do_not_vote_together(run, samples: str) -> None:
    """x^2+2x+1 is (x+1)^2: two of four are right, in two spellings, and x^2+1 has two votes."""
    values, items = run("--samples", samples, "--sympy", "true", "--sympy_seconds", "20")
    assert items[2]["matches"] == ["string", "sympy", None, None]
    assert values["pass@1"] == pytest.approx((2 + 1 + 2) / 12)
    assert values["by_sympy"] == pytest.approx(1 / 12)
    assert values["majority@4"] == pytest.approx((1 + 0 + 0) / 3)


def test_levels_are_left_out_where_a_row_has_none(run, samples: str) -> None:
    rows = [{k: v for k, v in row.items() if k != "level"} for row in PROBLEMS[:1]]
    values, _ = run("--samples", samples, problems=rows + PROBLEMS[1:])
    assert not any("/" in name for name in values)


@pytest.mark.parametrize(("style", "answer"), [("4shot", "1/2"), ("chat", "3")])
def test_the_stop_is_that_of_the_style(run, tmp_path: Path, style: str, answer: str) -> None:
    text = r"\boxed{\frac12}" + "\n\nProblem:\nAnother?\n\nSolution: \\boxed{3}"
    samples = write_jsonl(tmp_path / "samples.jsonl", [{"index": 0, "completions": [text]}])
    _, [item] = run("--samples", samples, "--prompt_style", style, problems=PROBLEMS[:1])
    assert item["answers"] == [answer]


def test_prompts_by_hand() -> None:
    exemplars = [("1 + 1?", "It is $2$.")]
    assert build_prompt("Half?", exemplars, TEMPLATES["4shot"]) == (
        "Problem:\n1 + 1?\n\nSolution: It is $2$.\n\nProblem:\nHalf?\n\nSolution:"
    )
    assert build_prompt("Half?", [], TEMPLATES["chat"]).endswith(r"within \boxed{}.")


def test_the_answer_may_stand_alone() -> None:
    assert check_row({"problem": "x", "answer": "5"}, "here")["answer"] == "5"
    assert check_row({"problem": "x", "answer": r"$\boxed{5}$"}, "here")["answer"] == "5"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": r"\boxed{1}"}, "here: problem: expected a text"),
        ({"problem": "x"}, "here: solution: expected a text"),
        ({"problem": "x", "solution": "5"}, r"here: solution: expected the answer in .boxed"),
        ({"problem": "x", "answer": 5}, "here: answer: expected a text, got a number"),
    ],
)
def test_bad_rows_are_named(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_row(row, "here")


def test_bad_flags_are_named(run, samples: str) -> None:
    with pytest.raises(ValueError, match="--prompt_style expects one of chat, 4shot"):
        run("--samples", samples, "--prompt_style", "8shot")
    with pytest.raises(ValueError, match="--sympy_seconds expects more than 0"):
        run("--samples", samples, "--sympy_seconds", "0")
    with pytest.raises(ValueError, match="expects --shots, a file of 4 exemplars"):
        run("--model", ".", "--prompt_style", "4shot")
