"""Data files -> rows -> dialogues; whatever is malformed stops with its file:line.

A row is a JSON object: a line of .jsonl or .jsonl.gz, an item of a .json list, a row of .parquet.
A dialogue is the list of messages that one of its keys ends: the prompt and, last, the reply.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.chat import ROLES, Message
from data.tokenizer import parse_json

LINE_BYTES = 2**26  # of a row in a file of lines, at most
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

# ---------------------------------------------------------------------------------------------
# files -> rows
# ---------------------------------------------------------------------------------------------


def data_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The data files that `paths` name; a folder stands for its .jsonl(.gz) and .parquet files."""
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; mend --data")
        if path.is_file():
            if not path.name.endswith(SUFFIXES):
                raise ValueError(f"{path}: expected a file named {', '.join(SUFFIXES)}")
            files.append(path)
            continue
        if not path.is_dir():
            raise ValueError(f"{path}: expected a file or a folder, got neither; mend --data")
        suffixes = (".jsonl", ".jsonl.gz", ".parquet")  # a .json may be anything
        inside = [f for f in sorted(path.iterdir()) if f.name.endswith(suffixes)]
        inside = [f for f in inside if f.is_file() and not f.name.startswith(".")]
        if not inside:
            raise ValueError(f"{path}: a folder without .jsonl, .jsonl.gz or .parquet files")
        splits = {f.name for f in inside if re.match(r"(test|eval|valid|dev|held_?out)", f.name)}
        if splits and len(splits) < len(inside):
            raise ValueError(
                f"{path}: holds several splits ({', '.join(f.name for f in inside)}); name files"
            )
        files += inside
    if not files:
        raise ValueError("--data: expected at least one file, got none")
    return files


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(file:line, object) of every row; the line counts rows in .json lists and .parquet."""
    if path.name.endswith(".parquet"):
        rows = read_parquet(path)
    elif path.name.endswith((".json", ".json.gz")):
        rows = read_list(path)
    else:
        rows = read_lines(path)
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object {{...}}, got {describe(row)}")
        yield where, row


@contextmanager
def open_binary(path: Path) -> Iterator[IO[bytes]]:
    """A file that may be packed; an error while it is read has its name."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file, {error}") from error
    except OSError as error:
        raise OSError(f"{path}: cannot be read, {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[str, object]]:
    with open_binary(path) as file:
        lines = iter(lambda: file.readline(LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > LINE_BYTES:
                raise ValueError(f"{path}:{number}: expected at most {LINE_BYTES} bytes a line")
            if line.strip():  # a blank line is not a row
                yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def read_list(path: Path) -> Iterator[tuple[str, object]]:
    try:
        with open_binary(path) as file:
            rows = parse_json(file.read(), str(path))
    except MemoryError:
        raise ValueError(f"{path}: does not fit into memory; write its rows as .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, got {describe(rows)}")
    yield from ((f"{path}:{i}", row) for i, row in enumerate(rows, start=1))


def read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path} needs the package pyarrow: pip install pyarrow") from error
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: expected a parquet file, got {error}") from error


def describe(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    names |= {type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


# ---------------------------------------------------------------------------------------------
# a row -> dialogues
# ---------------------------------------------------------------------------------------------


def check_text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key}: expected a text, got {describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {key}: not Unicode, half a surrogate pair") from error
    return value


def check_turns(value: object, key: str, where: str) -> list[Message]:
    """A list of messages, with nothing but role and content."""
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else describe(value)
        raise ValueError(f"{where}: {key}: expected a list of messages, got {got}")
    turns = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise ValueError(
                f"{where}: {key}[{i}]: expected a message {{role, content}}, "
                f"got {describe(message)}"
            )
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(
                f"{where}: {key}[{i}].role: expected one of {', '.join(ROLES)}, got {role!r}"
            )
        content = check_text(message.get("content"), f"{key}[{i}].content", where)
        turns.append({"role": role, "content": content})
    return turns


SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def parse_transcript(text: str, key: str, where: str) -> list[Message]:
    """The turns of an HH dialogue; one space behind the colon is not content."""
    start, *rest = SPEAKER.split(text)
    if start.strip() or rest[:1] != ["Human"]:
        raise ValueError(
            f"{where}: {key}: expected a dialogue that begins with '\\n\\nHuman:' (or a prompt in "
            f"a key of its own), got {text[:40]!r}"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]


def dialogue(row: dict, key: str, where: str) -> list[Message]:
    """The whole conversation that row[key] ends: the prompt and, last, the reply."""
    value = row[key]
    if isinstance(value, list):
        turns = check_turns(value, key, where)
        turns = join_prompt(row["prompt"], turns, key, where) if "prompt" in row else turns
    elif "prompt" in row:
        reply = {"role": "assistant", "content": check_text(value, key, where)}
        turns = join_prompt(row["prompt"], [reply], key, where)
    else:
        turns = parse_transcript(check_text(value, key, where), key, where)
    if turns[-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: {key}: expected the assistant's reply at the end, "
            f"got a message of the {turns[-1]['role']}"
        )
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError(f"{where}: {key}: expected a user message before the reply, got none")
    return turns


def join_prompt(prompt: object, turns: list[Message], key: str, where: str) -> list[Message]:
    """prompt + turns, where the turns may repeat the prompt already."""
    if isinstance(prompt, list):
        prompt = check_turns(prompt, "prompt", where)
        return turns if turns[: len(prompt)] == prompt else [*prompt, *turns]
    prompt = check_text(prompt, "prompt", where)
    if turns[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}, *turns]
    said = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
    if prompt.strip() not in said:
        raise ValueError(
            f"{where}: {key}: expected messages that repeat the prompt {prompt[:40]!r}, got a user "
            f"who says {said[0][:40] if said else None!r}; mend the row or leave its prompt out"
        )
    return turns
