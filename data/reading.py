"""Bytes, text and JSON out of files that may come from anywhere, checked before they are used."""

import json
import re
from collections import Counter
from pathlib import Path

FILE_BYTES = 2**28  # of one of these files, at most


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; FileNotFoundError, or ValueError for a link out of its folder.

    The cache of the Hugging Face hub has such links, from snapshots/<revision>/ to blobs/.
    """
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"expected {path}: {kind}")
    folder, file = path.parent.resolve(), path.resolve()
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    if not file.is_relative_to(folder) and file.parent not in blobs:
        raise ValueError(f"{path} is a link out of its folder, to {file}; expected the file itself")
    if (size := path.stat().st_size) > FILE_BYTES:
        raise ValueError(f"{path}: expected at most {FILE_BYTES} bytes, got {size}")
    return path.read_bytes()


def read_json(path: Path) -> dict:
    """The object in a JSON file; ValueError if it holds something else."""
    value = parse_json(read_file(path), str(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(data: bytes, where: str) -> object:
    """A JSON value; ValueError that begins with `where` for anything else.

    What readers understand differently is refused: NaN, and a name twice in one object.
    """
    text = decode_text(data, where)
    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON, {error}") from error


def decode_text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8, {error.reason} at byte {error.start}") from error


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands twice in one object")
    return fields


def is_text(value: object) -> bool:
    """Whether a value is a text of Unicode: JSON can spell half a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)
