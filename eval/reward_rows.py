"""What a reward model is asked about: prompts with their completions, out of samples or pairs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.chat import ChatFormat, Message, check_messages
from data.pairs import expressible, read_pairs, tell_dropped
from data.prompts import Prompt, read_prompts, row_prompt
from data.rows import check_text, read_rows

NUMBERS = ("tokens", "reference_logps")  # of a samples row, one for each completion


@dataclass(frozen=True)
class Row:
    """A prompt and the completions of it that are scored."""

    messages: Sequence[Message]
    replies: Sequence[str]
    ended: Sequence[bool]  # whether the end-of-turn token follows the reply
    about: Mapping  # what else its item holds
    where: str  # file:line


def read_samples(
    samples: Path, prompts_file: Path | None, chat_format: ChatFormat, limit: int | None
) -> list[Row]:
    """The first rows of a samples file, with their prompts, from their own file where it is given.

    Raises ValueError with file:line for a row that is none, or missing.
    """
    prompts = None if prompts_file is None else read_prompts(prompts_file)
    found = {}
    for where, row in read_rows(samples):
        index = row.get("index")
        if type(index) is not int or index < 0 or index in found:
            raise ValueError(f"{where}: expected an index not yet seen, got {index!r}")
        found[index] = where, row
    count = len(found) if limit is None else min(limit, len(found))
    if not count:
        raise ValueError(f"{samples}: expected rows, got an empty file")
    if missing := sorted(set(range(count)) - found.keys()):
        raise ValueError(f"{samples}: row {missing[0]} is missing; was it written to its end?")
    if prompts is not None and len(prompts) < count:
        raise ValueError(f"--prompts {prompts_file}: {len(prompts)} prompts for {count} rows")
    rows = [sample_row(*found[i], prompts[i] if prompts else None) for i in range(count)]
    for row in rows:
        try:
            check_messages(row.messages, chat_format)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
    return rows


def sample_row(where: str, row: Mapping, prompt: Prompt | None) -> Row:
    texts = row.get("completions")
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{where}: expected `completions`, a list of texts")
    replies = [check_text(text, f"completions[{i}]", where) for i, text in enumerate(texts)]
    if prompt is None and not {"prompt", "messages", "question"} & row.keys():
        raise ValueError(f"{where}: has no prompt; pass the file of the prompts with --prompts")
    about = {name: row[name] for name in NUMBERS if name in row}
    reasons = row.get("finish_reasons", ["stop"] * len(texts))
    for name, values in {**about, "finish_reasons": reasons}.items():
        if not isinstance(values, list) or len(values) != len(texts):
            raise ValueError(f"{where}: {name}: expected a list of {len(texts)}, got {values!r}")
    for name, values in about.items():
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError(f"{where}: {name}: expected numbers, got {values!r}")
    if any(count < 1 for count in about.get("tokens", ())):
        raise ValueError(f"{where}: tokens: expected counts above 0, got {about['tokens']}")
    ended = [reason != "length" for reason in reasons]
    return Row((prompt or row_prompt(row, where)).messages, replies, ended, about, where)


def add_verdicts(rows: Sequence[Row], items: Path) -> list[Row]:
    """The rows with `correct`, the verdicts of an evaluation of the same samples.

    Raises ValueError for a broken row, and where there are not as many verdicts as completions.
    """
    marks = {}
    for where, item in read_rows(items):
        index, correct = item.get("index"), item.get("correct")
        if type(index) is not int or index < 0 or index in marks:
            raise ValueError(f"{where}: expected an index not yet seen, got {index!r}")
        if not isinstance(correct, list) or not all(type(mark) is bool for mark in correct):
            raise ValueError(f"{where}: correct: expected a list of true and false")
        marks[index] = correct
    for index, row in enumerate(rows):
        wanted, got = len(row.replies), len(marks.get(index, ()))
        if wanted != got:
            raise ValueError(
                f"--items {items}: expected {wanted} verdicts on row {index}, got {got}; are they "
                "of the same --samples?"
            )
    return [replace(row, about={**row.about, "correct": marks[i]}) for i, row in enumerate(rows)]


def pair_rows(data: str, chat_format: ChatFormat, limit: int | None) -> list[Row]:
    """The first pairs of a file or folder, chosen first; without those that the chat format cannot
    express, which are counted."""
    dropped: Counter[str] = Counter()
    pairs = read_pairs(data, "reward")[:limit]
    kept = [pair for pair in pairs if expressible(pair, chat_format, dropped)]
    if dropped:
        print(f"pairs: {len(kept)}{tell_dropped(dropped)}")
    if not kept:
        raise ValueError(f"{data}: no pairs remain{tell_dropped(dropped)}")
    return [Row(p.prompt, (p.chosen, p.rejected), (True, True), {}, p.source) for p in kept]
