r"""Does a policy follow instructions that a program can check? (IFEval, Zhou et al. 2023)

    python -m eval.ifeval --data input_data.jsonl --model MODEL --out runs/ifeval
    python -m eval.ifeval --data input_data.jsonl --samples samples.jsonl --out runs/scored

Each prompt has one to three instructions of the 25 kinds of eval/instructions.py. An instruction is
followed strictly if the reply follows it as it stands, and loosely if it does without its stars or
its first or last line, so that "Sure, here it is:" costs nothing. `prompt_strict` and
`prompt_loose` are the share of prompts with all instructions followed, `instruction_strict` and
`instruction_loose` the share of instructions, also by the group before the colon of a kind; of
several completions, the mean. lm-eval generates greedily, 1280 tokens at most.

Three kinds ask for a language: pip install langdetect. Without, the command stops at the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from data.rows import check_text
from eval.benchmark import BenchmarkConfig, Task, read_problems, run_benchmark
from eval.instructions import LANGUAGE_KINDS, check_arguments, judge
from eval.results import Metrics
from model.config import parse_config
from model.run import run_main

STYLES = ("chat", "raw")


@dataclass(frozen=True)
class IfevalConfig(BenchmarkConfig):
    prompt_style: str = "chat"  # chat: the prompt is a user message; raw: it is continued as a text
    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int = 1280  # per completion


def check_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """key, prompt, instruction_id_list, kwargs: with the arguments that each instruction needs."""
    kinds, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(kinds, list) or not kinds:
        raise ValueError(f"{where}: instruction_id_list: expected a list of kinds, got {kinds!r}")
    if not isinstance(arguments, list) or len(arguments) != len(kinds):
        raise ValueError(
            f"{where}: kwargs: expected a list of {len(kinds)} objects, one for each instruction"
        )
    pairs = zip(kinds, arguments, strict=True)
    return {
        "key": row.get("key"),
        "prompt": check_text(row.get("prompt"), "prompt", where),
        "instruction_id_list": kinds,
        "kwargs": [check_arguments(kind, given, where) for kind, given in pairs],
    }


def check_langdetect(problems: Sequence[Mapping]) -> None:
    """ImportError if a problem needs langdetect and it is not there, before anything is sampled."""
    kinds = [kind for problem in problems for kind in problem["instruction_id_list"]]
    needing = sum(kind in LANGUAGE_KINDS for kind in kinds)
    if needing and find_spec("langdetect") is None:
        raise ImportError(
            f"{needing} of {len(kinds)} instructions need the package langdetect, to identify a "
            "language: pip install langdetect"
        )


def score_problem(problem: Mapping, completions: Sequence[str]) -> dict:
    """strict and loose: for each completion, whether it follows each instruction."""
    instructions = list(zip(problem["instruction_id_list"], problem["kwargs"], strict=True))
    verdicts = [[judge(text, *instruction) for instruction in instructions] for text in completions]
    return {
        "key": problem["key"],
        "instruction_id_list": problem["instruction_id_list"],
        "strict": [[strict for strict, _ in row] for row in verdicts],
        "loose": [[loose for _, loose in row] for row in verdicts],
    }


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> a value per problem; of instructions, their mean and its weight, their number."""
    groups = sorted({group_of(kind) for item in items for kind in item["instruction_id_list"]})
    values: Metrics = {}
    for mode in ("strict", "loose"):
        rows = [item[mode] for item in items]
        values[f"prompt_{mode}"] = [sum(map(all, row)) / len(row) for row in rows]
        values[f"instruction_{mode}"] = [followed(item, mode) for item in items]
    for mode in ("strict", "loose"):
        for group in groups:
            having = [i for i in items if group in map(group_of, i["instruction_id_list"])]
            values[f"instruction_{mode}/{group}"] = [followed(i, mode, group) for i in having]
    return values


def group_of(kind: str) -> str:
    return kind.partition(":")[0]


def followed(item: Mapping, mode: str, group: str | None = None) -> tuple[float, int]:
    """(share followed, number) of a problem's instructions, or of those of a group."""
    kinds = item["instruction_id_list"]
    places = [i for i, kind in enumerate(kinds) if group in (None, group_of(kind))]
    marks = [row[i] for row in item[mode] for i in places]
    return sum(marks) / len(marks), len(places)


def main() -> None:
    config = parse_config(IfevalConfig)
    if config.prompt_style not in STYLES:
        raise ValueError(f"--prompt_style expects chat or raw, got {config.prompt_style!r}")
    problems = read_problems(config, check_row)
    check_langdetect(problems)
    prompts = [problem["prompt"] for problem in problems]
    raw = config.prompt_style == "raw"
    run_benchmark(config, Task("ifeval", problems, prompts, raw, (), score_problem, metric_values))


if __name__ == "__main__":
    run_main(main)
