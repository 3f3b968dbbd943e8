"""Prompts for generation: a file or a text -> messages; and ids that were drawn -> text.

A .txt file has one prompt a line, a .jsonl or .jsonl.gz file one object with `prompt` (a text or
messages), `messages` or `question`, and perhaps `system`. A text is one user message, or a dialogue
as in HH, up to "\\n\\nAssistant:".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.chat import ChatFormat, Message, stop_ids
from data.reading import decode_text
from data.rows import (
    add_system,
    check_turns,
    open_binary,
    prompt_turns,
    read_rows,
    without_nulls,
)
from data.tokenizer import Tokenizer

TEXT_BYTES = 2**28  # of a .txt file, at most


@dataclass(frozen=True)
class Prompt:
    messages: list[Message]
    where: str  # file:line or flag
    record: str | list[Message]  # as it was given, for the results


def read_prompts(path: Path) -> list[Prompt]:
    """Every prompt of a file; ValueError with file:line for a row that is none."""
    if not path.is_file():
        raise FileNotFoundError(f"--prompts expects a file, got {path}: no such file")
    if path.suffix == ".txt":
        with open_binary(path) as file:
            data = file.read(TEXT_BYTES + 1)
        if len(data) > TEXT_BYTES:
            raise ValueError(f"{path}: expected at most {TEXT_BYTES} bytes of prompts")
        prompts = prompt_lines(data, str(path))
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        prompts = [row_prompt(row, where) for where, row in read_rows(path)]
    else:
        raise ValueError(f"--prompts expects a .txt, .jsonl or .jsonl.gz file, got {path}")
    if not prompts:
        raise ValueError(f"{path}: no prompt in it; --prompts expects one a line")
    return prompts


def prompt_lines(data: bytes, where: str) -> list[Prompt]:
    """One prompt a line; blank lines are none."""
    lines = [line.removesuffix("\r") for line in decode_text(data, where).split("\n")]
    return [
        text_prompt(line, f"{where}:{i}") for i, line in enumerate(lines, start=1) if line.strip()
    ]


def text_prompt(text: str, where: str) -> Prompt:
    return Prompt(prompt_turns(text, "prompt", where), where, text)


def row_prompt(row: dict, where: str) -> Prompt:
    """prompt (text or messages), messages, or question; behind the text under system."""
    row = without_nulls(row)
    key = next((key for key in ("prompt", "messages", "question") if key in row), None)
    if key is None:
        raise ValueError(f"{where}: expected prompt, messages or question, got {sorted(row)}")
    value = row[key]
    turns = (check_turns if key == "messages" else prompt_turns)(value, key, where)
    if turns[-1]["role"] != "user":
        role = turns[-1]["role"]
        raise ValueError(f"{where}: {key}: expected a user message at the end, got {role}'s")
    if not turns[-1]["content"].strip():
        raise ValueError(f"{where}: {key}: expected a text, got an empty one")
    messages = add_system(row, turns, where)
    as_given = isinstance(value, str) and messages == turns
    return Prompt(messages, where, value if as_given else messages)


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0]["role"] == "system":
        return prompt
    messages = [{"role": "system", "content": system}, *prompt.messages]
    return Prompt(messages, prompt.where, prompt.record)


class Replies:
    """How drawn ids become a text, and where a completion ends: end-of-turn tokens, stop texts."""

    def __init__(
        self, chat_format: ChatFormat, tokenizer: Tokenizer, stop: tuple[str, ...] = ()
    ) -> None:
        self.chat_format, self.tokenizer, self.stop = chat_format, tokenizer, stop
        self.stop_ids = stop_ids(chat_format, tokenizer)

    def find_stop(self, ids: Sequence[int]) -> bool:
        """Whether a stop text has been written."""
        text = self.tokenizer.decode_continuation(ids)
        return any(stop in text for stop in self.stop)

    def text(self, ids: Sequence[int]) -> str:
        """What a completion says: without its end-of-turn token, cut before a stop text."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return reply_text(
            cut_at_stop(self.tokenizer.decode_continuation(ids), self.stop), self.chat_format
        )


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop texts."""
    return text[: min((text.index(s) for s in stop if s in text), default=None)]


def completion_text(ids: Sequence[int], chat_format: ChatFormat, tokenizer: Tokenizer) -> str:
    """The reply that `encode_completion` made these ids of, its end-of-turn token left out."""
    return reply_text(tokenizer.decode_continuation(ids), chat_format)


def reply_text(written: str, chat_format: ChatFormat) -> str:
    """A reply as it is written in a format -> what it says."""
    text = written.removeprefix(chat_format.before).removesuffix(chat_format.after)
    return text.strip() if chat_format.strip else text
