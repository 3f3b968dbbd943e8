r"""MMLU: does a policy choose the right letter, and is it as often right as it is sure?

    python -m eval.mmlu --data mmlu/test --dev mmlu/dev --model MODEL --adapter RUN --out runs/mmlu
    python -m eval.mmlu --data mmlu/test --samples runs/mmlu/items.jsonl --bins 10 --out runs/again

--data and --dev are folders of CSV files as the authors have them (SUBJECT_test.csv, a row is
question, four choices, letter), or files of rows with question, choices, answer (an index) and
subject. The prompt is lm-eval's: a line naming the subject, the first --shots questions of it in
--dev, the question; the answer is " A" to " D", tokenised with the prompt. With `--prompt_style
chat` the same text is a user message, and the letter begins the reply.

The four log-probabilities of one forward, normalised, are the policy's probabilities; `mass` is
what they held before, so that a policy which answers otherwise is seen. Accuracy is over all
questions; accuracy_subjects is the mean over subjects.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.rows import check_text, read_rows
from eval.calibration import calibration_metrics
from eval.choices import ChoiceConfig, Logps, Question, Task, run_choices
from eval.results import Metrics
from model.config import parse_config
from model.run import run_main

LETTERS = "ABCD"
HEADER = "The following are multiple choice questions (with answers) about {}.\n\n"


@dataclass(frozen=True)
class MmluConfig(ChoiceConfig):
    dev: str | None = None  # folder or file with the exemplars of each subject
    shots: int = 5  # exemplars before the question


def main() -> None:
    config = parse_config(MmluConfig)
    if config.shots < 0:
        raise ValueError(f"--shots expects 0 or more, got {config.shots}")
    problems = read_problems(config.data, "--data", config.limit)
    shots = read_shots(config, problems)
    questions = [ask(i, problem, shots) for i, problem in enumerate(problems)]

    def metrics(items: Sequence[Mapping]) -> Metrics:
        return metric_values(items, config.bins, config.binning)

    run_choices(config, Task("mmlu", problems, questions, score, metrics))


# ------------------------------------------------------------------------------------------------
# problems and prompts


def read_problems(source: str | None, flag: str, limit: int | None = None) -> list[dict]:
    """Subject, question, choices and answer (an index), subject by subject.

    limit: the first so many of each subject
    """
    if source is None or not Path(source).exists():
        raise FileNotFoundError(f"{flag} expects a folder of CSV files or a file, got {source}")
    subjects: dict[str, list[dict]] = defaultdict(list)
    for where, row in read_source(Path(source), flag):
        problem = check_row(row, where)
        if limit is None or len(subjects[problem["subject"]]) < limit:
            subjects[problem["subject"]].append(problem)
    if not subjects:
        raise ValueError(f"{flag} {source}: no problem in it")
    return [problem for some in subjects.values() for problem in some]


def read_source(path: Path, flag: str) -> Iterator[tuple[str, dict]]:
    """(file:line, row) of a folder of CSV files, one such file, or a file of objects."""
    if path.is_file() and path.suffix != ".csv":
        yield from read_rows(path)
        return
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{flag} expects a folder with SUBJECT_test.csv files, got {path}")
    for file in files:
        subject = re.sub("_(test|dev|val)$", "", file.stem)
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            try:
                for row in reader:
                    where = f"{file}:{reader.line_num}"
                    yield where, csv_row(row, subject, where)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{file}:{reader.line_num}: not CSV, {error}") from None


def csv_row(row: Sequence[str], subject: str, where: str) -> dict:
    if len(row) != 2 + len(LETTERS) or row[-1] not in tuple(LETTERS):
        last = row[-1][:20] if row else ""
        raise ValueError(f"{where}: expected question, four choices and a letter, got {len(row)} "
                         f"columns, the last {last!r}")  # fmt: skip
    return {
        "subject": subject,
        "question": row[0],
        "choices": row[1:-1],
        "answer": LETTERS.index(row[-1]),
    }


def check_row(row: Mapping, where: str) -> dict:
    problem = {key: check_text(row.get(key), key, where) for key in ("subject", "question")}
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise ValueError(f"{where}: choices: expected {len(LETTERS)} texts, got {choices!r}")
    problem["choices"] = [check_text(c, f"choices[{i}]", where) for i, c in enumerate(choices)]
    if type(answer) is not int or not 0 <= answer < len(LETTERS):
        raise ValueError(f"{where}: answer: expected 0 to {len(LETTERS) - 1}, got {answer!r}")
    return problem | {"answer": answer}


def read_shots(config: MmluConfig, problems: Sequence[Mapping]) -> dict[str, list[dict]]:
    """subject -> its first --shots rows of --dev."""
    if config.shots == 0 or config.samples is not None:
        return {}
    if config.dev is None:
        raise ValueError("--dev expects the file or folder of exemplars, got none; or --shots 0")
    shots: dict[str, list[dict]] = defaultdict(list)
    for problem in read_problems(config.dev, "--dev", config.shots):
        shots[problem["subject"]].append(problem)
    for subject in {problem["subject"] for problem in problems}:
        if len(shots[subject]) < config.shots:
            raise ValueError(
                f"--dev {config.dev}: expected {config.shots} rows of {subject}, got "
                f"{len(shots[subject])}; pass another file or fewer --shots"
            )
    return shots


def show_question(problem: Mapping) -> str:
    options = zip(LETTERS, problem["choices"], strict=True)
    shown = "".join(f"{letter}. {choice}\n" for letter, choice in options)
    return f"{problem['question'].strip()}\n{shown}Answer:"


def ask(index: int, problem: Mapping, shots: Mapping[str, Sequence[Mapping]]) -> Question:
    """The question behind its exemplars, and behind fewer of them where there is no room."""
    subject = problem["subject"]
    exemplars = [f"{show_question(s)} {LETTERS[s['answer']]}\n\n" for s in shots.get(subject, ())]
    header, question = HEADER.format(subject.replace("_", " ")), show_question(problem)
    counts = range(len(exemplars), -1, -1)
    prompt, *shorter = (header + "".join(exemplars[:count]) + question for count in counts)
    choices = tuple(f" {letter}" for letter in LETTERS)
    return Question(index, "logps", prompt, choices, subject, tuple(shorter))


# ------------------------------------------------------------------------------------------------
# scoring


def score(problem: Mapping, found: Logps) -> dict:
    about = {key: problem[key] for key in ("subject", "question", "answer")}
    return about | {"logps": found["logps"]}


def metric_values(items: Sequence[Mapping], bins: int, binning: str) -> Metrics:
    logps, truths = [item["logps"] for item in items], [item["answer"] for item in items]
    values = dict(calibration_metrics(logps, truths, bins, binning))
    sizes = Counter(item["subject"] for item in items)
    right = values["accuracy"]
    weights = [1 / sizes[item["subject"]] for item in items]
    values["accuracy_subjects"] = list(zip(right, weights, strict=True))
    values["mass"] = [float(np.exp(some).sum()) for some in logps]
    for subject in sorted(sizes):
        own = [i for i, item in enumerate(items) if item["subject"] == subject]
        some = calibration_metrics([logps[i] for i in own], [truths[i] for i in own], bins, binning)
        values[f"accuracy/{subject}"] = some["accuracy"]
        values[f"ece/{subject}"] = some["ece"]
    return values


if __name__ == "__main__":
    run_main(main)
