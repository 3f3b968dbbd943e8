"""Data files -> rows -> dialogues; whatever is malformed stops with its file:line.

A row is a JSON object: a line of .jsonl or .jsonl.gz, an item of a .json list, a row of .parquet.
A dialogue is the list of messages that one of its keys ends: the prompt and, last, the reply.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.chat import ROLES, Message
from data.reading import is_text, parse_json

LINE_BYTES = 2**26  # of a row in a file of lines, at most
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
SPLIT = re.compile(  # a word of a file's name; UltraFeedback has a train_prefs, _sft and _gen
    r"(?<![a-z])(train|tests?|eval(?:uation)?|val(?:id(?:ation)?)?|dev|held[_-]?out)"
    r"(?:_(?:prefs|sft|gen))?(?![a-z])",
    re.IGNORECASE,
)

# ---------------------------------------------------------------------------------------------
# files -> rows
# ---------------------------------------------------------------------------------------------


def data_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The data files that `paths` name; a folder stands for its .jsonl(.gz) and .parquet files."""
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; expected data")
        if path.is_file():
            if not path.name.endswith(SUFFIXES):
                raise ValueError(f"{path}: expected a file named {', '.join(SUFFIXES)}")
            files.append(path)
            continue
        if not path.is_dir():
            raise ValueError(f"{path}: expected a file or a folder of data, got neither")
        suffixes = (".jsonl", ".jsonl.gz", ".parquet")  # a .json may be anything
        inside = [f for f in sorted(path.iterdir()) if f.name.endswith(suffixes)]
        inside = [f for f in inside if f.is_file() and not f.name.startswith(".")]
        if not inside:
            raise ValueError(f"{path}: a folder without .jsonl, .jsonl.gz or .parquet files")
        check_names(path, [f.name for f in inside])
        files += inside
    if not files:
        raise ValueError("--data: expected at least one file, got none")
    return files


def check_names(folder: Path, names: Sequence[str]) -> None:
    """ValueError for a folder of several splits, or with two forms of one file."""
    words = (SPLIT.search(name) for name in names)
    if len({word.group().lower() if word else "train" for word in words}) > 1:
        raise ValueError(f"{folder}: holds several splits ({', '.join(names)}); name files")
    stems = [re.sub(r"\.(jsonl|jsonl\.gz|parquet)$", "", name) for name in names]
    twice = [name for name, stem in zip(names, stems, strict=True) if stems.count(stem) > 1]
    if twice:
        raise ValueError(f"{folder}: holds the same rows twice ({', '.join(twice)}); name files")


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
            if line.removeprefix(codecs.BOM_UTF8).strip():  # a blank line is not a row
                yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def read_list(path: Path) -> Iterator[tuple[str, object]]:
    hint = "a file of one object a line is named .jsonl"
    try:
        with open_binary(path) as file:
            rows = parse_json(file.read(), str(path))
    except MemoryError:
        raise ValueError(f"{path}: does not fit into memory; write its rows as .jsonl") from None
    except ValueError as error:
        if "Extra data" not in str(error):  # what json says behind the first of several values
            raise
        raise ValueError(f"{error}; {hint}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, got {describe(rows)}; {hint}")
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
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: expected a parquet file, got {error}") from error


def write_rows(path: Path, rows: Iterable[Mapping]) -> None:
    """A file of JSON lines, in a folder that is made for it."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def refuse_overwriting(out: Path, inputs: Iterable[Path], flag: str) -> None:
    """ValueError where a file that is to be written is one of those that are read."""
    for path in inputs:
        if out.resolve() == path.resolve():
            raise ValueError(f"{flag} would overwrite {path}, which is read; pass another")


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
    if not is_text(value):
        raise ValueError(f"{where}: {key}: not Unicode, half a surrogate pair")
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
OPENING = re.compile(r"\s*\n\n(Human|Assistant):")


def is_transcript(value: object) -> bool:
    """Whether a text begins with the mark of a speaker, as HH's dialogues do."""
    return isinstance(value, str) and OPENING.match(value) is not None


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


def prompt_turns(value: object, key: str, where: str) -> list[Message]:
    """A prompt's messages: its list of them, or of a text one of the user, or HH's turns."""
    if isinstance(value, list):
        return check_turns(value, key, where)
    text = check_text(value, key, where)
    if not is_transcript(text):
        return [{"role": "user", "content": text}]
    turns = parse_transcript(text, key, where)
    if turns[-1]["role"] == "assistant" and turns[-1]["content"].strip():
        raise ValueError(
            f"{where}: {key}: expected a dialogue that ends with '\\n\\nAssistant:', "
            f"got {text[-40:]!r} at its end"
        )
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def without_nulls(row: dict) -> dict:
    """The row's keys that have a value; parquet writes null for a key that is absent."""
    return {key: value for key, value in row.items() if value is not None}


def dialogue(row: dict, key: str, where: str) -> list[Message]:
    """The whole conversation that row[key] ends: the prompt and, last, the reply."""
    value = row[key]
    if isinstance(value, list):
        turns = check_turns(value, key, where)
    elif "prompt" not in row or is_transcript(value):
        turns = parse_transcript(check_text(value, key, where), key, where)
    else:
        reply = check_text(value, key, where)
        reply = reply.removeprefix(" ") if is_transcript(row["prompt"]) else reply
        turns = [{"role": "assistant", "content": reply}]
    turns = join_prompt(row["prompt"], turns, key, where) if "prompt" in row else turns
    turns = add_system(row, turns, where)
    if turns[-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: {key}: expected the assistant's reply at the end, "
            f"got a message of the {turns[-1]['role']}"
        )
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError(f"{where}: {key}: expected a user message before the reply, got none")
    return turns


def join_prompt(prompt: object, turns: list[Message], key: str, where: str) -> list[Message]:
    """prompt + turns; turns that do not begin with the reply must repeat the prompt.

    Its system message may be in the prompt alone. A prompt of one text may be any of their users'.
    """
    asked = prompt_turns(prompt, "prompt", where)
    system = [turn for turn in asked[:1] if turn["role"] == "system"]
    whole = turns if turns[0]["role"] == "system" else [*system, *turns]
    if whole[: len(asked)] == asked:
        return whole
    if turns[0]["role"] == "assistant":
        return [*asked, *turns]
    said = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
    if isinstance(prompt, str) and len(asked) == 1 and asked[0]["content"].strip() in said:
        return turns
    raise ValueError(
        f"{where}: {key}: expected messages that repeat the prompt ({shorten(asked)}), "
        f"got {shorten(turns)}; mend the row or leave its prompt out"
    )


def shorten(turns: Sequence[Message]) -> str:
    """The roles of a conversation and how each message begins."""
    return ", ".join(f"{turn['role']} {turn['content'][:40]!r}" for turn in turns[:4])


def add_system(row: dict, turns: list[Message], where: str) -> list[Message]:
    """The turns behind the row's text under `system`, if it has one."""
    message = {"role": "system", "content": check_text(row.get("system", ""), "system", where)}
    if not message["content"].strip() or turns[0] == message:
        return turns
    if any(turn["role"] == "system" for turn in turns):
        raise ValueError(
            f"{where}: system: expected one system message, got another in the messages; "
            "leave one of the two out"
        )
    return [message, *turns]
