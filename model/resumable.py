"""Rows of a JSONL file, written as they are made, taken up after a kill.

Beside FILE stands FILE.settings.json with all that its rows depend on: the same command goes on
where it was stopped, and another one is refused. While ranks write, each has FILE.rank-R; at the
end FILE holds all rows, in order of their index. While a command writes, its first rank holds
FILE.lock, and a second command is refused, even the same one; a kill leaves the lock free.
"""

import glob
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from model import parallel
from model.run import hold, write_text


def write_rows(
    out: Path,
    settings: Mapping[str, Any],
    count: int,
    make: Callable[[list[int]], Iterator[tuple[int, Mapping[str, Any]]]],
    model: nn.Module | None = None,
) -> None:
    """Rows 0 to count - 1 into the file `out`; under torchrun each rank makes its share.

    settings: JSON, all that the rows depend on; make: indices of rows that are missing -> (index,
    row) of each, in any order; model: what `make` calls, where it may be sharded. A row is on the
    disk when the next one is asked for. Raises ValueError where `out` holds rows of other settings,
    where another command is writing it, and where rows are missing at the end; Ctrl-C ends with a
    message and code 130.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    with only_writer(out) if parallel.is_main() else nullcontext():
        write_missing(out, take_up(out, settings, count), count, make, model)
        parallel.any_rank(False)  # all have written
        if parallel.is_main():
            check_whole(out, join_parts(out), count)


def write_missing(
    out: Path,
    done: set[int],
    count: int,
    make: Callable[[list[int]], Iterator[tuple[int, Mapping[str, Any]]]],
    model: nn.Module | None,
) -> None:
    """This rank's share of the rows that are not done, into its file."""
    missing = [index for index in range(count) if index not in done]
    own = [missing[i] for i in parallel.share(len(missing))]
    lockstep = nullcontext() if model is None else parallel.in_lockstep(model)
    written = 0
    with lockstep, part_file(out).open("a", encoding="utf-8") as file:
        try:
            for index, row in make(own):
                file.write(json.dumps({"index": index} | dict(row), ensure_ascii=False) + "\n")
                file.flush()
                written += 1
        except KeyboardInterrupt:
            if parallel.says_first("rows interrupted"):
                stand = f"{len(done) + written} of {count} rows are in {out}"
                if parallel.world_size() > 1:  # how many the others have is not known here
                    stand = "the rows that are written stay"
                print(f"\nstopped: {stand}; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None


def check_whole(out: Path, indices: list[int], count: int) -> None:
    """ValueError for rows that are missing when all have been written."""
    missing = sorted({*range(count)} - {*indices})
    if missing:
        raise ValueError(
            f"{out}: {len(missing)} of {count} rows are missing, the first is {missing[0]}; was it "
            "changed while it was written? The same command makes them"
        )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Inside, no other command writes rows into `out`; ValueError where one does already."""
    path = out.with_name(out.name + ".lock")
    with hold(path, str(out), "file"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# what is there already


def settings_file(out: Path) -> Path:
    return out.with_name(out.name + ".settings.json")


def part_file(out: Path) -> Path:
    """Where this rank writes: the file itself where there is one rank."""
    if parallel.world_size() == 1:
        return out
    return out.with_name(f"{out.name}.rank-{parallel.rank()}")


def part_files(out: Path) -> list[Path]:
    """What ranks have written that has not been joined."""
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.rank-*"))


def take_up(out: Path, settings: Mapping[str, Any], count: int) -> set[int]:
    """The indices of the rows that are there already, on every rank the same."""
    parallel.same_on_all(settings)
    done: list[int] = []
    if parallel.is_main():
        if out.exists() or part_files(out):
            check_settings(out, settings)
            done = [index for index in join_parts(out) if index < count]
            parallel.note(f"{out}: {len(done)} of {count} rows are there already")
        write_text(settings_file(out), json.dumps(settings, indent=2) + "\n")
    return set(parallel.gather_json(done)[0])


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """ValueError, naming what differs, for a file whose rows were made otherwise."""
    file = settings_file(out)
    if not file.exists():
        there = out if out.exists() else part_files(out)[0]
        raise ValueError(f"{there} is there already, without {file.name}; pass another file")
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(f"{file}: expected JSON, got something else; pass another file for {out}")
    names = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if names:
        changes = "; ".join(f"{k} {before.get(k)!r}, now {settings.get(k)!r}" for k in names)
        raise ValueError(
            f"{out} holds rows that were made otherwise ({changes}); pass another file, "
            "or what was passed then"
        )


def join_parts(out: Path) -> list[int]:
    """Bring the rows of all ranks into one file, in the order of their indices; out: these.

    A row that a kill has cut short is left out.
    """
    parts = part_files(out)
    rows: dict[int, str] = {}
    for part in [out, *parts]:
        if not part.exists():
            continue
        with part.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    index, row = read_row(line, f"{part}:{number}")
                    rows[index] = row
    write_text(out, "".join(rows[index] for index in sorted(rows)))
    for part in parts:
        part.unlink()
    return sorted(rows)


def read_row(line: bytes, where: str) -> tuple[int, str]:
    """(index, the line as a text) of a row."""
    try:
        text = line.decode()
        index = json.loads(text)["index"]
    except (ValueError, KeyError, TypeError):
        index = None
    if type(index) is not int or index < 0:
        raise ValueError(f"{where}: not a row with an index; mend or remove it")
    return index, text
