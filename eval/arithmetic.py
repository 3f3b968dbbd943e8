r"""How often does a policy solve the embedded word problems, and are its equations true?

    python -m eval.arithmetic --model data/tiny --data data/tiny/heldout.jsonl --out runs/sft-eval
    python -m eval.arithmetic --model data/tiny --adapter runs/tiny-spl --out runs/spl-eval \
        --baseline runs/sft-eval
    python -m eval.arithmetic --data data/tiny/test.jsonl --n 128 --out runs/graded
    python -m eval.arithmetic --samples samples.jsonl --out runs/scored     # no model is loaded

Metrics: pass@k; valid@k (right, with every equation on the way true); floor@k, which is pass@k
against another problem's answer: what guesses earn; majority@n; the rate of no answer; `distinct`
and `distinct_correct`, the shares of the completions that are different, and different and right.
Problems that have a `difficulty` give each of these as name/difficulty too.

Calibration is that of the vote: its confidence is the share of the completions that give the
commonest answer, and it is right as majority@n says. `brier` takes the shares of all answers for
their probabilities, none among them: sum_k (p_k - y_k)^2, in [0, 2]. Shares of few completions
stray from what they estimate, and confidence is the largest of them: compare at equal n.

Files in OUT: see eval/benchmark.py; and reliability.json, for eval/plots.py.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.problems import check_solution, extract_answer
from eval.answers import floor_values
from eval.benchmark import BenchmarkConfig, Task, read_problems, run_benchmark
from eval.calibration import brier_score, confidence_metrics, reliability_table
from eval.metrics import label_values, majority_vote, pass_values, powers_of_two
from eval.results import Metrics
from model.config import parse_config
from model.run import run_main, write_text


@dataclass(frozen=True)
class ArithmeticConfig(BenchmarkConfig):
    data: str | None = "data/tiny/heldout.jsonl"  # problems: rows with prompt and answer
    n: int = 8  # completions per problem
    max_new_tokens: int = 120  # per completion
    dtype: str | None = "float32"  # float32, bfloat16 or float16
    out: str | None = "runs/arithmetic"  # folder for the results


def check_row(row: Mapping, where: str) -> Mapping:
    if not isinstance(row.get("prompt"), str) or type(row.get("answer")) is not int:
        raise ValueError(f"{where}: expected a text `prompt` and an integer `answer`")
    if not isinstance(row.get("difficulty", ""), str):
        raise ValueError(f"{where}: difficulty: expected a text, got {row['difficulty']!r}")
    return row


def score_problem(problem: Mapping, completions: Sequence[str]) -> dict:
    """The verdict on every completion; `valid` here is right with every equation true.

    distinct, distinct_correct: how many completions are different, and different and right.
    """
    verdicts = [check_solution(problem, text) for text in completions]
    right = {text for text, (correct, _) in zip(completions, verdicts, strict=True) if correct}
    answers = [extract_answer(text) for text in completions]
    item = {
        "answer": problem["answer"],
        "answers": answers,
        "correct": [correct for correct, _ in verdicts],
        "valid": [correct and valid for correct, valid in verdicts],
        "distinct": len(set(completions)),
        "distinct_correct": len(right),
        "majority": majority_vote(answers, {problem["answer"]}),
    }
    return item | {key: problem[key] for key in ("difficulty",) if key in problem}


# ------------------------------------------------------------------------------------------------
# metrics


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per problem: pass@k and valid@k for k = 1, 2, 4, ..., the votes, ..."""
    n = fewest(items)
    values = pass_values("pass", [item["correct"] for item in items])
    values |= pass_values("valid", [item["valid"] for item in items])
    values |= floor_values(items, powers_of_two(n))
    confidence, majority = votes(items)
    values[f"majority@{n}"] = majority.tolist()
    values["no_answer"] = [i["answers"].count(None) / len(i["answers"]) for i in items]
    for name in ("distinct", "distinct_correct"):
        values[name] = [item[name] / len(item["answers"]) for item in items]
    values |= label_values(values, [item["difficulty"] for item in items if "difficulty" in item])
    brier = [vote_brier(item["answers"][:n], item["answer"]) for item in items]
    return values | confidence_metrics(confidence, majority) | {"brier": brier}


def fewest(items: Sequence[Mapping]) -> int:
    """Of how many completions of each problem the vote is taken."""
    return min(len(item["answers"]) for item in items)


def votes(items: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) shares of the commonest answer, and (N,) how far it is right; no answer has no vote."""
    n, found = fewest(items), []
    for item in items:
        answers = item["answers"][:n]
        counts = Counter(answer for answer in answers if answer is not None)
        confidence = max(counts.values(), default=0) / n
        found.append((confidence, majority_vote(answers, {item["answer"]})))
    confidence, majority = np.array(found, dtype=np.float64).T
    return confidence, majority


def vote_brier(answers: Sequence[int | None], truth: int) -> float:
    counts = Counter(answers)
    options = dict.fromkeys([truth, *answers])  # the right one first
    return brier_score(np.array([counts[answer] for answer in options]) / len(answers), 0)


# ------------------------------------------------------------------------------------------------
# the command


def make_task(config: ArithmeticConfig) -> Task:
    problems = read_problems(config, check_row)
    if len({"difficulty" in problem for problem in problems}) > 1:
        raise ValueError(f"{config.data}: expected a `difficulty` in every row or in none")
    prompts = [problem["prompt"] for problem in problems]
    return Task("arithmetic", problems, prompts, False, (), score_problem, metric_values)


def main() -> None:
    config = parse_config(ArithmeticConfig)
    if config.samples is None and config.model is None:
        config = replace(config, model="data/tiny")
    items = run_benchmark(config, make_task(config))
    if items:
        table = reliability_table(*votes(items))
        write_text(Path(config.out) / "reliability.json", json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
