"""Files of a folder that may come from anywhere: JSON and safetensors.

Nothing is pickled. A file is a regular file inside its folder, and is judged by its size or its
header before memory is taken for what it holds.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
JSON_BYTES = 2**28  # of a JSON file that is read, at most


def check_file(path: Path) -> Path:
    """The path of a regular file; FileNotFoundError, or ValueError for a link out of its folder.

    The cache of the Hugging Face hub has such links, from snapshots/<revision>/ to blobs/.
    """
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"expected {path}: {kind}")
    folder, file = path.parent.resolve(), path.resolve()
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    if not file.is_relative_to(folder) and file.parent not in blobs:
        raise ValueError(f"{path} is a link out of its folder, to {file}; expected the file itself")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FileNotFoundError or ValueError with the file's name.

    What readers understand differently is refused: NaN, and a name twice in one object.
    """
    if (size := check_file(path).stat().st_size) > JSON_BYTES:
        raise ValueError(f"{path}: expected at most {JSON_BYTES} bytes of JSON, got {size}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        fields = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands twice in one object")
    return fields


def check_memory(needed: int, what: str) -> None:
    """ValueError where something cannot fit into this machine's memory."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"{what} would take {needed / 1e9:.1f} GB of memory; this machine has {there / 1e9:.1f}"
        )


# ------------------------------------------------------------------------------------------------
# tensors in a file


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a safetensors file, from its header; no shape is empty.

    Raises ValueError for a corrupt file, for whole numbers, and for shapes that torch cannot have.
    """
    shapes = {}
    with open_tensors(file) as reader:
        for name in reader.keys():
            part = reader.get_slice(name)
            if part.get_dtype() not in FLOATS:
                raise ValueError(f"{file}: tensor {name!r} expects floats, got {part.get_dtype()}")
            shapes[name] = tuple(part.get_shape())
            if not shapes[name] or max(shapes[name]) >= 2**63:
                raise ValueError(f"{file}: tensor {name!r} has a shape of no use, {shapes[name]}")
    return shapes


def read_rows(file: Path, name: str, rows: slice) -> Tensor:
    """Some rows of a tensor. The file is opened for each: closing it is what frees its pages."""
    with open_tensors(file) as reader:
        return reader.get_slice(name)[rows].clone()


@contextmanager
def open_tensors(file: Path) -> Iterator[safe_open]:
    try:
        with map_tensors(check_file(file)) as reader:
            yield reader
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt: {error}") from None


def map_tensors(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (RuntimeError, MemoryError) as error:  # of torch; the file is larger than the machine
        reason = str(error).splitlines()[0]
        raise OSError(f"{file} cannot be mapped into memory: {reason}") from None


def write_tensors(
    tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one.

    Raises OSError where it cannot be written.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")  # runs may share a cache
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)  # readable like any other file, whatever the library's default
        partial.replace(file)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
