r"""How often does a policy reach the number that solves a GSM8K or GSM-Hard problem?

    python -m eval.gsm8k --data test.jsonl --model MODEL --out runs/gsm8k --n 128
    python -m eval.gsm8k --data test.jsonl --model BASE --out runs/gsm8k-base --n 128 \
        --prompt_style cot --shots gsm8k_cot_8shot.jsonl
    python -m eval.gsm8k --data test.jsonl --samples samples.jsonl --out runs/scored

Prompt styles: `chat` asks for a solution that ends in `#### number`; `5shot` and `cot` continue a
text after exemplars from --shots, five whole solutions of GSM8K, as lm-eval sends them, or the
eight chains of thought of Wei et al. 2022.

`pass@k` reads the answer by flexible rules (eval/answers.py), `strict@k` only behind the marker
that the prompt asked for. `floor@k` is pass@k against another problem's answer: what guesses earn.
`majority@n` is the vote in which a completion without an answer does not take part, `no_answer`
the rate of these, `distinct` the share of solutions that differ in more than white space.
Answers of GSM8K are compared exactly, those of GSM-Hard within 1e-3 as its authors do, so that 0
is right where the target is smaller than that.

Difficulty splits, as in the SPL paper, go by the first right one of a base policy's completions:
at most 4 is easy, 5 to 64 medium, later or never hard. They are made once, by

    python -m eval.gsm8k --data test.jsonl --samples runs/gsm8k-base/samples.jsonl \
        --write_split split.json

and `--split split.json` adds `pass@k/easy`, `/medium`, `/hard` and the `share/...` of each. The
completions that a split was made from are not scored with it, here or in --baseline: that would
score the luck that made the labels. They are known by the first one of each problem, which the same
policy and seed draw whatever --n is; half of these may be equal by chance, where they are short.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from data.rows import check_text, refuse_overwriting
from eval.answers import (
    flexible_number,
    floor_values,
    is_correct,
    strict_number,
    vote,
)
from eval.benchmark import BenchmarkConfig, Task, read_completions, read_problems, run_benchmark
from eval.exemplars import Exemplar, build_prompt, read_exemplars
from eval.metrics import label_values, pass_values, powers_of_two
from eval.results import Metrics, data_digest, read_results
from model.config import parse_config
from model.flags import refuse_given
from model.run import run_main, write_text

REQUEST = (
    "{}\n\nSolve the problem step by step. End your answer with a line that holds the final number "
    "behind four hashes, like this:\n#### 42"
)
TEMPLATES = {"chat": REQUEST, "5shot": "Question: {}\nAnswer:", "cot": "Q: {}\nA:"}
SHOTS = {"5shot": 5, "cot": 8}
STOPS = {"chat": (), "5shot": ("Question:", "</s>", "<|im_end|>"),
         "cot": ("Q:", "</s>", "<|im_end|>")}  # fmt: skip
MARKERS = {"chat": "####", "5shot": "####", "cot": "the answer is"}

EASY, MEDIUM = 4, 64  # the last place of the first right completion that counts as such
GSM_HARD_TOLERANCE = Fraction(1, 1000)


@dataclass(frozen=True)
class Gsm8kConfig(BenchmarkConfig):
    prompt_style: str = "chat"  # chat, 5shot or cot
    shots: str | None = None  # file of exemplars, question and answer (or target): 5shot and cot
    split: str | None = None  # file of difficulties that --write_split has made
    write_split: str | None = None  # make such a file of --samples of a base policy, and stop
    n: int = 8  # completions per problem


# ---------------------------------------------------------------------------------------------
# problems and prompts
# ---------------------------------------------------------------------------------------------


def check_row(row: Mapping, where: str) -> dict:
    """question, answer (a fraction), tolerance: of a row of GSM8K or, by its keys, of GSM-Hard."""
    if "target" in row:
        target = row["target"]
        if type(target) not in (int, float) or not math.isfinite(target):
            raise ValueError(f"{where}: target: expected a number, got {target!r}")
        question = check_text(row.get("input"), "input", where)
        return {
            "question": question,
            "answer": Fraction(str(target)),
            "tolerance": GSM_HARD_TOLERANCE,
        }
    question, solution = (check_text(row.get(key), key, where) for key in ("question", "answer"))
    answer = strict_number(solution, "####")
    if answer is None:
        raise ValueError(f"{where}: answer: expected `#### number` at its end")
    return {"question": question, "answer": answer, "tolerance": Fraction(0)}


def read_shots(config: Gsm8kConfig, problems: Sequence[Mapping]) -> list[Exemplar]:
    if config.prompt_style == "chat":
        refuse_given(config, ("shots",), "with --prompt_style chat, which shows no exemplars")
    if config.prompt_style == "chat" or config.samples is not None:
        return []
    keys = (("question", "answer"), ("question", "target"))
    questions = {problem["question"] for problem in problems}
    return read_exemplars(config.shots, SHOTS[config.prompt_style], keys, questions)


# ---------------------------------------------------------------------------------------------
# scoring
# ---------------------------------------------------------------------------------------------


def score_problem(problem: Mapping, completions: Sequence[str], style: str) -> dict:
    """Both readings of every completion, and the rule that found the flexible one."""
    answers, rules = zip(*map(flexible_number, completions), strict=True)
    strict = [strict_number(text, MARKERS[style]) for text in completions]
    right = partial(is_correct, truth=problem["answer"], tolerance=problem["tolerance"])
    return {
        "answer": str(problem["answer"]),
        "tolerance": str(problem["tolerance"]),
        "answers": [None if answer is None else str(answer) for answer in answers],
        "rules": list(rules),
        "correct": [right(answer) for answer in answers],
        "strict_answers": [None if answer is None else str(answer) for answer in strict],
        "strict_correct": [right(answer) for answer in strict],
        "distinct": len({" ".join(text.split()) for text in completions}),
        "first_sha256": digest(completions[0].encode()),
    }


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def metric_values(items: Sequence[Mapping], labels: Sequence[str] = ()) -> Metrics:
    """name -> one value per problem; with labels, of the problems that have the label too."""
    n = min(len(item["correct"]) for item in items)
    ks = powers_of_two(n)
    values = pass_values("pass", [item["correct"] for item in items])
    values |= floor_values(items, ks)
    values |= pass_values("strict", [item["strict_correct"] for item in items])
    values[f"majority@{n}"] = [vote(item, n) for item in items]
    values["no_answer"] = [i["answers"].count(None) / len(i["answers"]) for i in items]
    strict = [i["strict_answers"] for i in items]
    values["no_strict_answer"] = [answers.count(None) / len(answers) for answers in strict]
    values["distinct"] = [i["distinct"] / len(i["answers"]) for i in items]
    return values | label_values({f"pass@{k}": values[f"pass@{k}"] for k in ks}, labels)


# ---------------------------------------------------------------------------------------------
# difficulty splits
# ---------------------------------------------------------------------------------------------


def difficulty(first: int | None) -> str:
    """The label of a problem whose first right completion is the first-th, counted from 1."""
    if first is None or first > MEDIUM:
        return "hard"
    return "easy" if first <= EASY else "medium"


def write_split(config: Gsm8kConfig, problems: Sequence[Mapping]) -> None:
    """Label every problem by the place of the first right one of its --samples."""
    if config.samples is None or config.split is not None:
        raise ValueError(
            "--write_split expects --samples, completions of the base policy, and no --split"
        )
    refuse_given(config, ("baseline",), "with --write_split, which scores nothing")
    inputs = Path(config.samples), Path(config.data)
    refuse_overwriting(Path(config.write_split), inputs, f"--write_split {config.write_split}")
    rows = []
    stop = STOPS[config.prompt_style]
    for i, texts in enumerate(read_completions(Path(config.samples), len(problems), stop)):
        if len(texts) < MEDIUM:
            raise ValueError(
                f"--write_split expects at least {MEDIUM} completions of each problem (the SPL "
                f"paper has 128), got {len(texts)} of problem {i}; draw the --samples with --n 128"
            )
        item = score_problem(problems[i], texts, config.prompt_style)
        first = item["correct"].index(True) + 1 if True in item["correct"] else None
        rows.append(
            {
                "index": i,
                "first_correct": first,
                "label": difficulty(first),
                "first_sha256": item["first_sha256"],
            }
        )
    split = {
        "task": "gsm8k",
        "data_sha256": data_digest(config.data),
        "samples_sha256": digest(Path(config.samples).read_bytes()),
        "problems": rows,
    }
    Path(config.write_split).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(config.write_split), json.dumps(split, indent=1) + "\n")
    counts = Counter(row["label"] for row in rows)
    shown = ", ".join(f"{counts[label]} {label}" for label in ("easy", "medium", "hard"))
    print(f"{config.write_split}: {len(rows)} problems, {shown}")


def read_split(config: Gsm8kConfig, problems: int) -> dict:
    """A split, checked: of this --data, and with a row for each problem."""
    if not Path(config.split).is_file():
        raise FileNotFoundError(f"--split expects a file, got {config.split}: no such file")
    try:
        split = json.loads(Path(config.split).read_text(encoding="utf-8"))
        rows = [{key: row[key] for key in ("label", "first_sha256")} for row in split["problems"]]
        split = {key: split[key] for key in ("data_sha256", "samples_sha256")}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"--split {config.split}: not a file that --write_split made") from None
    if split["data_sha256"] != data_digest(config.data):
        raise ValueError(f"--split {config.split} was made of other problems than --data")
    if len(rows) < problems:
        raise ValueError(
            f"--split {config.split}: expected {problems} labels, got {len(rows)}; lower --limit"
        )
    return split | {"problems": rows[:problems]}


def split_values(items: Sequence[Mapping], split: Mapping, samples: str) -> Metrics:
    """The metrics of all problems and of each difficulty, but not of the split's own samples."""
    check_luck(samples, None, items, split)
    return metric_values(items, [row["label"] for row in split["problems"]])


def check_baseline(folder: str, split: Mapping) -> None:
    summary, items = read_results(Path(folder))
    check_luck(f"--baseline {folder}", summary["settings"].get("samples_sha256"), items, split)


def check_luck(
    whose: str, samples_sha256: str | None, items: Sequence[Mapping], split: Mapping
) -> None:
    """ValueError for items of the split's own samples; those of an earlier version lack firsts."""
    rows = split["problems"]
    pairs = zip(items, rows, strict=False)
    equal = sum(item.get("first_sha256") == row["first_sha256"] for item, row in pairs)
    same = samples_sha256 == split["samples_sha256"]
    if same or equal > len(rows) / 2:
        found = "the same file" if same else f"{equal} of {len(rows)} first ones, over a half"
        raise ValueError(
            f"{whose}: --split was made from these completions ({found}), whose luck it would "
            "score; draw others with another --seed"
        )


def main() -> None:
    config = parse_config(Gsm8kConfig)
    if config.prompt_style not in TEMPLATES:
        raise ValueError(
            f"--prompt_style expects one of {', '.join(TEMPLATES)}, got {config.prompt_style!r}"
        )
    problems = read_problems(config, check_row)
    if config.write_split is not None:
        return write_split(config, problems)
    style, metrics = config.prompt_style, metric_values
    if config.split is not None:
        split = read_split(config, len(problems))
        if config.baseline is not None:
            check_baseline(config.baseline, split)
        metrics = partial(split_values, split=split, samples=config.samples or config.out)
    shots = read_shots(config, problems)
    prompts = [build_prompt(p["question"], shots, TEMPLATES[style]) for p in problems]
    score = partial(score_problem, style=style)
    task = Task("gsm8k", problems, prompts, style != "chat", STOPS[style], score, metrics)
    run_benchmark(config, task)


if __name__ == "__main__":
    run_main(main)
