r"""How often does a policy solve the embedded word problems, and are its equations true?

    python -m eval.arithmetic --model data/tiny --data data/tiny/heldout.jsonl --out runs/sft-eval
    python -m eval.arithmetic --model data/tiny --adapter runs/tiny-spl --out runs/spl-eval \
        --baseline runs/sft-eval
    python -m eval.arithmetic --samples samples.jsonl --out runs/scored     # no model is loaded

Metrics: pass@k, valid@k (right, with every equation on the way true), majority@n, the rate of no
answer, and the share of distinct completions. Files in OUT: see eval/benchmark.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data.problems import check_solution, extract_answer
from eval.benchmark import BenchmarkConfig, Task, read_problems, run_benchmark
from eval.metrics import majority_vote, pass_values
from eval.results import Metrics
from model.config import parse_config
from model.run import run_main


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
    return row


def score_problem(problem: Mapping, completions: Sequence[str]) -> dict:
    """The verdict on every completion; `valid` here is right with every equation true."""
    verdicts = [check_solution(problem, text) for text in completions]
    return {
        "answer": problem["answer"],
        "answers": [extract_answer(text) for text in completions],
        "correct": [correct for correct, _ in verdicts],
        "valid": [correct and valid for correct, valid in verdicts],
        "distinct": len(set(completions)),
    }


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per problem: pass@k and valid@k for k = 1, 2, 4, ..., the votes, ..."""
    n = min(len(item["correct"]) for item in items)
    values: Metrics = pass_values("pass", [item["correct"] for item in items])
    values |= pass_values("valid", [item["valid"] for item in items])
    values[f"majority@{n}"] = [majority_vote(i["answers"][:n], i["answer"]) for i in items]
    values["no_answer"] = [i["answers"].count(None) / len(i["answers"]) for i in items]
    values["distinct"] = [i["distinct"] / len(i["answers"]) for i in items]
    return values


def make_task(config: ArithmeticConfig) -> Task:
    problems = read_problems(config, check_row)
    prompts = [problem["prompt"] for problem in problems]
    return Task("arithmetic", problems, prompts, False, (), score_problem, metric_values)


def main() -> None:
    config = parse_config(ArithmeticConfig)
    if config.samples is None and config.model is None:
        config = replace(config, model="data/tiny")
    run_benchmark(config, make_task(config))


if __name__ == "__main__":
    run_main(main)
