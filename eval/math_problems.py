r"""How often does a policy reach the answer of a problem of competition mathematics (MATH)?

    python -m eval.math_problems --data math.jsonl --model MODEL --out runs/math --n 128
    python -m eval.math_problems --data math.jsonl --model BASE --out runs/math-base \
        --prompt_style 4shot --shots minerva_math_4shot.jsonl
    python -m eval.math_problems --data math.jsonl --samples samples.jsonl --out runs/scored \
        --sympy true

A row of --data has `problem`, and `solution` with the answer in \boxed{...} (or the `answer`
itself, in its box or not); its `level` is reported apart where all rows have one. No data come
with the project.

Prompt styles: `chat` asks for the answer in \boxed{...}; `4shot` continues a text after the first
four rows of --shots, in the words of Minerva (Lewkowycz et al. 2022).

Answers are compared after normalisation (eval/latex.py): `exact` as numbers and lists of these,
`string` as texts. `--sympy true` asks sympy about the rest, within --sympy_seconds for each, in a
process of its own; items.jsonl says which comparison matched.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial

from data.rows import check_text
from eval.algebra import Algebra
from eval.answers import vote
from eval.benchmark import BenchmarkConfig, Task, read_problems, run_benchmark
from eval.exemplars import Exemplar, build_prompt, read_exemplars
from eval.latex import Canonical, canonical, compare, extract_answer, last_boxed, show
from eval.metrics import pass_values
from eval.results import Metrics
from model.config import parse_config
from model.flags import refuse_given
from model.run import run_main

REQUEST = "{}\n\nReason step by step, and put your final answer within \\boxed{{}}."
TEMPLATES = {"chat": REQUEST, "4shot": "Problem:\n{}\n\nSolution:"}
SHOTS = 4
STOPS = {"chat": (), "4shot": ("Problem:",)}


@dataclass(frozen=True)
class MathConfig(BenchmarkConfig):
    prompt_style: str = "chat"  # chat or 4shot
    shots: str | None = None  # file of exemplars, problem and solution: for 4shot
    sympy: bool = False  # a second opinion on answers that are not the same text or number
    sympy_seconds: float = 5.0  # for one comparison
    n: int = 4  # completions per problem
    max_new_tokens: int = 1024  # per completion


# ---------------------------------------------------------------------------------------------
# problems and prompts
# ---------------------------------------------------------------------------------------------


def check_row(row: Mapping, where: str) -> dict:
    """problem, answer (LaTeX), level (a text or None)."""
    problem = check_text(row.get("problem"), "problem", where)
    if "answer" in row:
        answer = check_text(row["answer"], "answer", where)
        answer = last_boxed(answer) or answer
    else:
        answer = last_boxed(check_text(row.get("solution"), "solution", where))
    if answer is None or not answer.strip():
        raise ValueError(f"{where}: solution: expected the answer in \\boxed{{...}}")
    level = row.get("level")
    level = None if level is None else check_text(str(level), "level", where)
    return {"problem": problem, "answer": answer, "level": level}


def read_shots(config: MathConfig, problems: Sequence[Mapping]) -> list[Exemplar]:
    if config.prompt_style == "chat":
        refuse_given(config, ("shots",), "with --prompt_style chat, which shows no exemplars")
    if config.prompt_style == "chat" or config.samples is not None:
        return []
    known = {problem["problem"] for problem in problems}
    return read_exemplars(config.shots, SHOTS, (("problem", "solution"),), known)


# ---------------------------------------------------------------------------------------------
# scoring
# ---------------------------------------------------------------------------------------------


def judge(
    answer: Canonical, truth: Canonical, agrees: Callable[[Canonical, Canonical], bool] | None
) -> str | None:
    """The comparison that finds the answer right: exact, string or sympy; None if none does."""
    match = compare(answer, truth)
    if match is None and agrees is not None and agrees(answer, truth):
        return "sympy"
    return match


def score_problem(
    problem: Mapping,
    completions: Sequence[str],
    agrees: Callable[[Canonical, Canonical], bool] | None = None,
) -> dict:
    """Every completion's answer, the rule that found it, and the comparison that it passed."""
    truth, answers, rules, matches = canonical(problem["answer"]), [], [], []
    judge_once = cache(partial(judge, truth=truth, agrees=agrees))
    for text in completions:
        answer, rule = extract_answer(text)
        value = None if answer is None else canonical(answer)
        answers.append(None if value is None else show(value))
        rules.append(rule)
        matches.append(None if value is None else judge_once(value))
    return {
        "answer": show(truth),
        "level": problem["level"],
        "answers": answers,
        "rules": rules,
        "matches": matches,
        "correct": [match is not None for match in matches],
        "distinct": len({" ".join(text.split()) for text in completions}),
    }


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per problem; pass@k once more for each level, of its problems."""
    n = min(len(item["correct"]) for item in items)
    values = pass_values("pass", [item["correct"] for item in items])
    by_level = {}
    levels = [item["level"] for item in items]
    for level in sorted(set(levels)) if None not in levels else ():
        for name, column in values.items():
            pairs = zip(column, levels, strict=True)
            by_level[f"{name}/{level}"] = [value for value, other in pairs if other == level]
    values[f"majority@{n}"] = [vote(item, n) for item in items]
    values["no_answer"] = [i["answers"].count(None) / len(i["answers"]) for i in items]
    values["by_sympy"] = [i["matches"].count("sympy") / len(i["matches"]) for i in items]
    values["distinct"] = [i["distinct"] / len(i["answers"]) for i in items]
    return values | by_level


def main() -> None:
    config = parse_config(MathConfig)
    style = config.prompt_style
    if style not in TEMPLATES:
        raise ValueError(f"--prompt_style expects one of {', '.join(TEMPLATES)}, got {style!r}")
    if config.sympy_seconds <= 0:
        raise ValueError(f"--sympy_seconds expects more than 0, got {config.sympy_seconds}")
    problems = read_problems(config, check_row)
    shots = read_shots(config, problems)
    prompts = [build_prompt(p["problem"], shots, TEMPLATES[style]) for p in problems]
    with Algebra(config.sympy_seconds) if config.sympy else nullcontext() as algebra:
        agrees = algebra.agrees if algebra is not None else None
        score = partial(score_problem, agrees=agrees)
        task = Task("math_problems", problems, prompts, style != "chat", STOPS[style], score,
                    metric_values)  # fmt: skip
        run_benchmark(config, task)


if __name__ == "__main__":
    run_main(main)
