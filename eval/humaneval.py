r"""How many of HumanEval's functions does a policy write so that they pass the tests?

    python -m eval.humaneval --data HumanEval.jsonl.gz --model MODEL --out runs/humaneval \
        --n 20 --temperature 0.2 --top_p 0.95 --allow_code_execution true
    python -m eval.humaneval --data HumanEval.jsonl.gz --samples samples.jsonl --out runs/scored \
        --allow_code_execution true     # no model is loaded

It runs what the model wrote, in eval.sandbox, and nothing before --allow_code_execution is given.
Three file formats are read: HumanEval's own, HumanEval+ with its tests as code, and HumanEval+ Mini
with its inputs as data, whose expected outputs come from the canonical solution as the tests run.
Prefer Mini: the tests as code cannot pass HumanEval/32, and take an empty list for any float.

A raw prompt is the problem's, with the line break at its end, as the authors and lm-eval send it;
a tokenizer that joins line breaks with spaces would rather continue the text without it. What
continues it is cut at lm-eval's stops, that of --samples too. In the chat style nothing is cut, and
the reply's first code block counts that defines the function: --samples that are whole programs,
with imports and helpers of their own, are scored with --prompt_style chat. A program may import
Python's library and numpy; what it returns is of built-in types, and no array or numpy.int64.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from data.rows import check_text
from eval.benchmark import BenchmarkConfig, Task, read_problems, run_benchmark
from eval.jail import to_literal
from eval.metrics import pass_values
from eval.sandbox import REASONS, Sandbox, open_sandbox, run_tests
from model.config import parse_config
from model.run import run_main

STYLES = ("raw", "chat")
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
REQUEST = (  # lm-eval's
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{}\n```\n"
)


@dataclass(frozen=True)
class HumanEvalConfig(BenchmarkConfig):
    prompt_style: str = "raw"  # raw: continue the problem's text; chat: ask for the function
    allow_code_execution: bool = False  # run what the model wrote; nothing is scored without
    time_limit: float = 10.0  # seconds for one program and its tests
    memory_limit_mb: int = 1024  # for one program, in 2^20 bytes
    workers: int | None = None  # problems that are tested at a time; none: the cores, at most 16
    n: int = 1  # completions per problem
    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int = 512  # per completion


# ---------------------------------------------------------------------------------------------
# problems and programs
# ---------------------------------------------------------------------------------------------

# The tests of a Mini row: exact, or close for floats (absolute 1e-6 if the row says 0, relative
# 1e-7), of the same type and length. Any zero of a polynomial answers HumanEval/32.
PLUS_TESTS = """
import copy, math

def close(value, expected):
    if isinstance(expected, float) and isinstance(value, (int, float)):
        return value == expected or math.isclose(value, expected, rel_tol=1e-7, abs_tol={atol})
    if isinstance(expected, (list, tuple)) and type(value) is type(expected):
        return len(value) == len(expected) and all(map(close, value, expected))
    return value == expected

def check(candidate):
    for arguments in {inputs}:
        value = candidate(*copy.deepcopy(arguments))
        if "{entry_point}" == "find_zero":
            assert abs(poly(*arguments, value)) <= {atol}
        else:
            assert close(value, reference(*copy.deepcopy(arguments)))
"""


def check_row(row: Mapping[str, Any], where: str) -> dict[str, str]:
    """task_id, prompt, entry_point, canonical_solution, test: those of Mini are written here."""
    keys = ("task_id", "prompt", "entry_point", "canonical_solution")
    problem = {key: check_text(row.get(key), key, where) for key in keys}
    if definition(problem["entry_point"]).search(problem["prompt"]) is None:
        raise ValueError(f"{where}: prompt: expected `def {problem['entry_point']}(` in it")
    if "base_input" in row:
        test = plus_tests(row, where)
    else:
        test = check_text(row.get("test"), "test", where)
    return {**problem, "test": test}


def plus_tests(row: Mapping[str, Any], where: str) -> str:
    inputs = []
    for key in ("base_input", "plus_input"):
        if not isinstance(row.get(key), list) or not all(isinstance(i, list) for i in row[key]):
            raise ValueError(f"{where}: {key}: expected a list of lists of arguments")
        inputs += row[key]
    if type(row.get("atol")) not in (int, float):
        raise ValueError(f"{where}: atol: expected a number, got {row.get('atol')!r}")
    atol = float(row["atol"]) or 1e-6
    return PLUS_TESTS.format(atol=atol, inputs=to_literal(inputs), entry_point=row["entry_point"])


def definition(entry_point: str) -> re.Pattern[str]:
    return re.compile(rf"^def {re.escape(entry_point)}\s*\(", re.MULTILINE)


BLOCK = re.compile(r"(?:^([ \t]*))?```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)
FUTURE = re.compile(r"^from __future__ import .*\n", re.MULTILINE)


def unindent(indent: str, block: str) -> str:
    """The lines of a block without its fence's white space, where all of them have it."""
    lines = block.splitlines(keepends=True)
    if not all(line.startswith(indent) for line in lines if line.strip()):
        return block
    return "".join(line.removeprefix(indent) for line in lines)


def build_program(problem: Mapping[str, str], completion: str, style: str) -> str:
    """The program that a completion stands for.

    A text that defines the function itself follows the prompt's imports and helpers, but for its
    imports from __future__, which go before them; any other continues the prompt. Of a chat reply,
    the first code block that defines it counts, or else the first, or else all; a block that is not
    closed ends with the reply, and one that is indented as a whole, in a list, is moved back.
    """
    defines, code = definition(problem["entry_point"]).search, completion
    if style == "chat":
        blocks = [unindent(*block) for block in BLOCK.findall(completion)] or [completion]
        code = next(filter(defines, blocks), blocks[0])
    if not defines(code):
        return problem["prompt"] + code
    start = defines(problem["prompt"]).start()
    future = "".join(FUTURE.findall(code))
    return future + problem["prompt"][:start] + FUTURE.sub("", code)


# ---------------------------------------------------------------------------------------------
# scoring
# ---------------------------------------------------------------------------------------------


def score_problem(
    problem: Mapping[str, str], completions: Sequence[str], style: str, sandbox: Sandbox
) -> dict[str, Any]:
    """The verdict on every completion; each distinct program runs once."""
    programs = [build_program(problem, text, style) for text in completions]
    reference = problem["prompt"] + problem["canonical_solution"]
    about = problem["entry_point"], reference, problem["test"]
    found = {program: run_tests(sandbox, program, *about) for program in dict.fromkeys(programs)}
    verdicts = [found[program] for program in programs]
    return {
        "task_id": problem["task_id"],
        "correct": [verdict.reason == "passed" for verdict in verdicts],
        "reasons": [verdict.reason for verdict in verdicts],
        "details": [verdict.detail for verdict in verdicts],
        "distinct": len(found),
    }


def metric_values(items: Sequence[Mapping]) -> dict[str, list[float]]:
    """name -> one value per problem: pass@k for k = 1, 2, 4, ..., why others failed, distinct."""
    values = pass_values("pass", [item["correct"] for item in items])
    for reason in REASONS[1:]:
        rates = [item["reasons"].count(reason) / len(item["reasons"]) for item in items]
        values[reason.replace(" ", "_")] = rates
    values["distinct"] = [item["distinct"] / len(item["correct"]) for item in items]
    return values


def check_flags(config: HumanEvalConfig) -> None:
    if not config.allow_code_execution:
        raise ValueError(
            "this task runs programs that a model wrote; pass --allow_code_execution true to let it"
        )
    if config.prompt_style not in STYLES:
        raise ValueError(f"--prompt_style expects raw or chat, got {config.prompt_style!r}")
    for flag, least in (("time_limit", 0.1), ("memory_limit_mb", 64), ("workers", 1)):
        if (value := getattr(config, flag)) is not None and value < least:
            raise ValueError(f"--{flag} expects {least} or more, got {value}")


def count_cores() -> int:
    """Those that this process may use, where the machine says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    config = parse_config(HumanEvalConfig)
    check_flags(config)
    problems = read_problems(config, check_row)
    sandbox = open_sandbox(config.time_limit, config.memory_limit_mb)
    raw, style = config.prompt_style == "raw", config.prompt_style
    prompts = [p["prompt"] if raw else REQUEST.format(p["prompt"]) for p in problems]
    score = partial(score_problem, style=style, sandbox=sandbox)
    stop = STOPS if raw else ()
    workers = config.workers or min(count_cores(), 16)
    task = Task("humaneval", problems, prompts, raw, stop, score, metric_values, workers)
    run_benchmark(config, task)


if __name__ == "__main__":
    run_main(main)
