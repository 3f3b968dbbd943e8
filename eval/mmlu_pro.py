r"""How many of MMLU-Pro's multiple-choice questions does a policy answer with the right letter?

    python -m eval.mmlu_pro --data test.jsonl.gz --validation validation.jsonl --model MODEL \
        --out runs/mmlu-pro
    python -m eval.mmlu_pro --data test.jsonl.gz --samples samples.jsonl --out runs/scored

The prompt is the authors': the first --shots questions of the category in --validation, with their
chains of thought, then the question. `chat` sends the same text as a user message. As with the
authors, a prompt loses its last exemplars where the model has no room for a completion behind it.

The letter is looked for in three stages, the next where one finds nothing: behind "answer is",
behind "answer:", and marked as one of the options: (C), **C**, option C, a line of its own. Two
readings are reported:

    accuracy_authors   the first match of the first stage, as the authors and lm-eval have it
    accuracy           the last match of the first stage that finds one of the question's letters

A first match may be a supposition ("if the answer is (A), ..."). The third stage of the authors is
the last letter that stands alone, which finds "A man", "I think" and 5 J; after it they draw a
letter at random. Here nothing is earned where no letter is found. `stage/...` is the share of
completions that each stage decides, `no_answer` that of none.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.chat import encode_prompts
from data.formats import read_formats
from data.rows import check_text, read_rows
from eval.answers import vote
from eval.benchmark import BenchmarkConfig, Task, check_config, read_problems, run_benchmark
from eval.results import Metrics
from model.architecture import read_model_config
from model.config import parse_config
from model.run import run_main

LETTERS = "ABCDEFGHIJ"
STYLES = ("text", "chat")
STOP = ("Question:",)
HEADER = (
    "The following are multiple choice questions (with answers) about {}. Think step by step and "
    'then finish your answer with "the answer is (X)" where X is the correct letter choice.\n\n\n'
)
THINK = "Let's think step by step."


@dataclass(frozen=True)
class MmluProConfig(BenchmarkConfig):
    validation: str | None = None  # file of exemplars for each category: validation.jsonl
    shots: int = 5  # exemplars before the question
    prompt_style: str = "text"  # text: the prompt is continued; chat: it is a user message
    n: int = 1  # completions per problem
    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int = 2048  # per completion


# ---------------------------------------------------------------------------------------------
# problems and prompts
# ---------------------------------------------------------------------------------------------


def check_row(row: Mapping, where: str) -> dict:
    """question, options (without the "N/A" at their end), answer (a letter), category, chain."""
    problem = {key: check_text(row.get(key), key, where) for key in ("question", "category")}
    options = row.get("options")
    if not isinstance(options, list):
        raise ValueError(f"{where}: options: expected a list of texts")
    options = [check_text(option, f"options[{i}]", where) for i, option in enumerate(options)]
    while options[-1:] == ["N/A"]:  # within the list it would shift the letters
        options = options[:-1]
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{where}: options: expected 2 to {len(LETTERS)}, got {len(options)}")
    answer = row.get("answer")
    if not isinstance(answer, str) or answer not in tuple(LETTERS[: len(options)]):
        raise ValueError(
            f"{where}: answer: expected a letter up to {LETTERS[len(options) - 1]}, got {answer!r}"
        )
    chain = check_text(row.get("cot_content", ""), "cot_content", where)
    return {**problem, "options": options, "answer": answer, "chain": chain}


def read_shots(config: MmluProConfig, problems: Sequence[Mapping]) -> dict[str, list[dict]]:
    """category -> its first --shots rows of --validation."""
    if config.shots == 0 or config.samples is not None:
        return {}
    if config.validation is None:
        raise ValueError("--validation expects the file of exemplars, got none; or pass --shots 0")
    shots = defaultdict(list)
    for where, row in read_rows(Path(config.validation)):
        exemplar = check_row(row, where)
        if len(shots[exemplar["category"]]) < config.shots:
            if not exemplar["chain"].strip():
                raise ValueError(
                    f"{where}: cot_content: expected an exemplar's chain of thought, got none; "
                    "pass another file or --shots 0"
                )
            shots[exemplar["category"]].append(exemplar)
    for category in {problem["category"] for problem in problems}:
        if len(shots[category]) < config.shots:
            raise ValueError(
                f"--validation {config.validation}: expected {config.shots} rows of the category "
                f"{category!r}, got {len(shots[category])}; pass another file or fewer --shots"
            )
    return shots


def show_question(problem: Mapping) -> str:
    options = zip(LETTERS, problem["options"], strict=False)
    shown = "".join(f"{letter}. {option}\n" for letter, option in options)
    return f"Question:\n{problem['question']}\nOptions:\n{shown}"


def build_prompt(problem: Mapping, shots: Mapping[str, Sequence[Mapping]]) -> str:
    exemplars = [
        show_question(shot) + shot["chain"].replace(f"A: {THINK}", f"Answer: {THINK}") + "\n\n"
        for shot in shots.get(problem["category"], ())
    ]
    question = show_question(problem) + f"Answer: {THINK}"
    return HEADER.format(problem["category"]) + "".join(exemplars) + question


def fit_prompts(
    config: MmluProConfig, problems: Sequence[Mapping], shots: Mapping[str, Sequence[Mapping]]
) -> list[str]:
    """Each problem's prompt, with as many exemplars as leave room for a completion.

    Room is --max_new_tokens, but no more than half of the model's positions: the authors give 2048
    of 4096 to either.
    """
    asked = "none" if config.prompt_style == "text" else config.chat_format
    tokenizer, chat_format, _ = read_formats(config.model, config.adapter, asked)
    positions = read_model_config(config.model).max_position_embeddings
    room = positions - min(config.max_new_tokens, positions // 2)
    prompts = [build_prompt(problem, shots) for problem in problems]
    long, kept = list(range(len(problems))), {}  # kept: how many a shortened prompt has
    for count in reversed(range(config.shots)):
        messages = [[{"role": "user", "content": prompts[i]}] for i in long]
        encoded = encode_prompts(messages, chat_format, tokenizer)
        long = [i for i, ids in zip(long, encoded, strict=True) if len(ids) > room]
        fewer = {category: some[:count] for category, some in shots.items()}
        for i in long:
            prompts[i], kept[i] = build_prompt(problems[i], fewer), count
    if kept:
        print(f"{len(kept)} of {len(prompts)} prompts were too long for the model and lost "
              f"exemplars; the least has {min(kept.values())} of {config.shots}")  # fmt: skip
    return prompts


# ---------------------------------------------------------------------------------------------
# text -> letter
# ---------------------------------------------------------------------------------------------

AUTHORS = re.compile(r"answer is \(?([A-J])\)?")
OPEN = (  # between the words and the letter: $\boxed{\text{(
    r"[\s*_$:(\[{`\"'\u2018\u201c]{0,9}(?:\\(?:boxed|text|mathrm|mathbf)\{[\s(]{0,3}){0,3}"
)
CLOSED = r"(?!\w|['\u2019]\w)"
BEHIND = "and|as|because|but|by|due|for|from|if|in|is|not|or|since|so|where|which|with"
NO_WORD = rf"(?![AI][ \t]+(?!(?:{BEHIND})\b)[a-z])"  # A man, I think
STAGES = {  # the last match of each that is a letter of the question
    "answer is": re.compile(rf"\b(?i:answer\s+is)\b{OPEN}{NO_WORD}([A-J]){CLOSED}"),
    "answer:": re.compile(
        rf"\b(?i:answer)(?:\**:|\s+[-\u2013\u2014]\s){OPEN}{NO_WORD}([A-J]){CLOSED}"
    ),
    "marked": re.compile(
        rf"(?:\b(?i:option|choice)(?:\s+is\b{OPEN}{NO_WORD}|{OPEN})"
        rf"|(?<!\w)[(*]{{1,4}}(?=[A-J][)*])|\\boxed\{{{OPEN}"
        rf"|^\W{{0,4}}(?=[A-J]\W{{0,4}}$))([A-J]){CLOSED}",
        re.MULTILINE,
    ),
}


def authors_letter(text: str) -> str | None:
    match = AUTHORS.search(text)
    return match[1] if match else None


def extract_letter(text: str, options: int) -> tuple[str | None, str | None]:
    """(letter, stage): the last match of the first stage that finds one of the first letters."""
    for stage, pattern in STAGES.items():
        found = [letter for letter in pattern.findall(text) if letter in LETTERS[:options]]
        if found:
            return found[-1], stage
    return None, None


# ---------------------------------------------------------------------------------------------
# scoring
# ---------------------------------------------------------------------------------------------


def score_problem(problem: Mapping, completions: Sequence[str]) -> dict:
    found = [extract_letter(text, len(problem["options"])) for text in completions]
    authors = [authors_letter(text) for text in completions]
    return {
        "category": problem["category"],
        "answer": problem["answer"],
        "answers": [letter for letter, _ in found],
        "stages": [stage for _, stage in found],
        "correct": [letter == problem["answer"] for letter, _ in found],
        "authors_answers": authors,
        "authors_correct": [letter == problem["answer"] for letter in authors],
    }


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per problem, the mean over its completions; the vote where there are n."""
    n = min(len(item["correct"]) for item in items)
    values = {
        "accuracy": [share(item["correct"], True) for item in items],
        "accuracy_authors": [share(item["authors_correct"], True) for item in items],
        "no_answer": [share(item["answers"], None) for item in items],
    }
    if n > 1:
        values[f"majority@{n}"] = [vote(item, n) for item in items]
    for stage in STAGES:
        values[f"stage/{stage}"] = [share(item["stages"], stage) for item in items]
    for category in sorted({item["category"] for item in items}):
        chosen = [item for item in items if item["category"] == category]
        values[f"accuracy/{category}"] = [share(item["correct"], True) for item in chosen]
    return values


def share(values: Sequence, value: object) -> float:
    return list(values).count(value) / len(values)


def main() -> None:
    config = parse_config(MmluProConfig)
    if config.prompt_style not in STYLES:
        raise ValueError(
            f"--prompt_style expects one of {', '.join(STYLES)}, got {config.prompt_style!r}"
        )
    if config.shots < 0:
        raise ValueError(f"--shots expects 0 or more, got {config.shots}")
    problems = read_problems(config, check_row)
    shots = read_shots(config, problems)
    check_config(config)
    if config.samples is None:
        prompts = fit_prompts(config, problems, shots)
    else:
        prompts = [build_prompt(problem, shots) for problem in problems]
    raw = config.prompt_style == "text"
    stop = STOP if raw else ()  # a reply may restate the question
    task = Task("mmlu_pro", problems, prompts, raw, stop, score_problem, metric_values)
    run_benchmark(config, task)


if __name__ == "__main__":
    run_main(main)
