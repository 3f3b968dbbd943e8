"""model/resumable.py on rows made in no time: whatever a kill has left, the same file in the end.

A row's text has ends of line that only some readers see, and letters of two and three bytes.
pytest tests/test_resumable.py; with kill -9 and torchrun, python -m tests.kill_samples
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from data.rows import read_rows
from model import parallel
from model.resumable import join_parts, write_rows
from model.run import hold

COUNT = 5
SETTINGS = {"seed": 3, "stop": ("a", "b"), "nested": {"ids": (1, 2)}, "adapter": None}


def row_of(index: int) -> dict:
    return {"square": index * index, "text": f"é\u2028ア\n{index}"}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "new" / "rows.jsonl"


class Maker:
    """Makes rows in the order they are asked for, or another; Ctrl-C comes after `most` rows."""

    def __init__(self, most: int | None = None, order=list) -> None:
        self.most, self.order = most, order
        self.made: list[int] = []

    def __call__(self, own: list[int]) -> Iterator[tuple[int, dict]]:
        for index in self.order(own):
            if len(self.made) == self.most:
                raise KeyboardInterrupt
            self.made.append(index)
            yield index, row_of(index)


def write(out: Path, settings: dict = SETTINGS, count: int = COUNT, **options) -> list[int]:
    """The indices of the rows that had to be made."""
    maker = Maker(**options)
    write_rows(out, settings, count, maker)
    return maker.made


def names(out: Path) -> list[str]:
    return sorted(file.name for file in out.parent.iterdir())


@pytest.fixture
def whole(tmp_path) -> bytes:
    """The file that is written in one go."""
    write(tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


@pytest.fixture
def start(out):
    """The file with these bytes, beside the settings of `write`'s own."""

    def start(content: bytes) -> None:
        write(out)
        out.write_bytes(content)

    return start


# ------------------------------------------------------------------------------------------------
# written


def test_rows_and_settings_are_in_their_files(out):
    assert write(out) == [0, 1, 2, 3, 4]
    assert [row for _, row in read_rows(out)] == [{"index": i} | row_of(i) for i in range(COUNT)]
    assert "é\u2028ア" in out.read_text()
    assert names(out) == ["rows.jsonl", "rows.jsonl.settings.json"]
    settings = json.loads(out.with_name("rows.jsonl.settings.json").read_text())
    assert settings == {"seed": 3, "stop": ["a", "b"], "nested": {"ids": [1, 2]}, "adapter": None}


def test_rows_that_come_in_another_order_stand_in_theirs(out, whole):
    assert write(out, order=lambda own: own[::-1]) == [4, 3, 2, 1, 0]
    assert out.read_bytes() == whole


def test_a_row_is_on_the_disk_when_the_next_one_is_asked_for(out):
    counts = []

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        for index in own:
            counts.append(out.read_bytes().count(b"\n"))
            yield index, row_of(index)

    write_rows(out, {}, 3, make)
    assert counts == [0, 1, 2]


def test_no_rows_are_a_file_too(out):
    assert write(out, count=0) == []
    assert out.read_bytes() == b"" and len(names(out)) == 2


# ------------------------------------------------------------------------------------------------
# taken up


@pytest.mark.parametrize("finished", range(COUNT))
def test_an_interrupted_file_goes_on(out, whole, capsys, finished):
    """The last rows first, so that what is missing is not the end of the file."""
    with pytest.raises(SystemExit) as stop:
        write(out, most=finished, order=lambda own: own[::-1])
    assert stop.value.code == 130
    message = f"stopped: {finished} of 5 rows are in {out}; the same command goes on"
    assert message in capsys.readouterr().err
    assert write(out) == list(range(COUNT - finished))
    assert out.read_bytes() == whole
    assert f"{out}: {finished} of 5 rows are there already" in capsys.readouterr().err


def test_ctrl_c_counts_the_rows_of_before(out, capsys):
    for most, there in ((2, 2), (1, 3), (0, 3)):
        with pytest.raises(SystemExit):
            write(out, most=most)
        assert f"stopped: {there} of 5 rows" in capsys.readouterr().err


def test_rows_survive_an_error(out, whole):
    def fail(own: list[int]) -> Iterator[tuple[int, dict]]:
        yield 1, row_of(1)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_rows(out, SETTINGS, COUNT, fail)
    assert write(out) == [0, 2, 3, 4]
    assert out.read_bytes() == whole


def test_a_file_that_is_whole_is_left_as_it_is(out, whole, capsys):
    write(out)
    assert write(out) == [] and out.read_bytes() == whole
    assert "5 of 5 rows are there already" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -2, -60, "é", "\u2028"])
def test_a_row_that_a_kill_has_cut_is_made_again(start, out, whole, cut):
    """Cut after so many bytes, before the last of them, or within a letter."""
    if isinstance(cut, str):
        cut = whole.rindex(cut.encode()) + 1
    start(whole[:cut])
    left = whole[:cut].count(b"\n")
    assert write(out) == list(range(left, COUNT))
    assert out.read_bytes() == whole


def test_a_kill_before_the_first_row_leaves_the_settings_alone(start, out, whole):
    start(whole)
    out.unlink()
    assert write(out) == list(range(COUNT)) and out.read_bytes() == whole


def test_a_file_that_was_removed_is_written_anew_with_other_settings(start, out, whole):
    start(whole)
    out.unlink()
    other = {**SETTINGS, "seed": 4}
    assert write(out, other) == list(range(COUNT)) and write(out, other) == []


def test_more_rows_go_on_and_fewer_leave_those_that_are_there(out, whole, capsys):
    """Where the settings do not say how many: nothing that was made is lost."""
    write(out, count=2)
    assert write(out) == [2, 3, 4] and out.read_bytes() == whole
    capsys.readouterr()
    assert write(out, count=3) == [] and out.read_bytes() == whole
    assert "3 of 3 rows are there already" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# two commands


def test_a_second_command_is_refused_while_one_writes(out, whole):
    """It comes behind row 2: the first goes on, unharmed, and leaves no lock."""

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        for index in own:
            if index == 3:
                who = rf"rows\.jsonl is in use by another run \(process {os.getpid()} on .*\)"
                with pytest.raises(ValueError, match=f"{who}; pass another file, or wait until"):
                    write(out)
            yield index, row_of(index)

    write_rows(out, SETTINGS, COUNT, make)
    assert out.read_bytes() == whole
    assert names(out) == ["rows.jsonl", "rows.jsonl.settings.json"]


def test_a_command_that_was_killed_leaves_the_file_free(out, whole):
    """Held by another process until kill -9: refused before, taken up behind it."""
    write(out, count=2)
    lock = out.with_name("rows.jsonl.lock")
    script = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); print('process 7', file=file); "
        "fcntl.flock(file, fcntl.LOCK_EX); file.flush(); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=r"in use by another run \(process 7\)"):
            write(out)
        process.kill()
    assert lock.exists()
    assert write(out) == [2, 3, 4] and out.read_bytes() == whole
    assert names(out) == ["rows.jsonl", "rows.jsonl.settings.json"]


def test_a_lock_that_was_removed_meanwhile_holds_nothing(tmp_path, monkeypatch):
    """Opened before its holder ends, locked behind that: the lock is taken on a file that is there.

    A third command finds it.
    """
    path, opened, flock = tmp_path / "lock", [], fcntl.flock

    def late(file: TextIO, how: int) -> None:
        opened.append(file)
        if len(opened) == 1:
            path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold(path, "it", "file"):
        assert len(opened) == 2 and path.exists()
        with pytest.raises(ValueError, match="it is in use by another run"):
            hold(path, "it", "file")


def test_rows_that_are_missing_in_the_end_are_an_error(out, whole):
    """The file is replaced behind row 2: rows 3 and 4 go into one that nobody sees."""

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        for index in own:
            if index == 3:
                join_parts(out)
            yield index, row_of(index)

    with pytest.raises(ValueError, match=r"rows\.jsonl: 2 of 5 rows are missing, the first is 3;"):
        write_rows(out, SETTINGS, COUNT, make)
    assert write(out) == [3, 4] and out.read_bytes() == whole


# ------------------------------------------------------------------------------------------------
# ranks


@pytest.mark.parametrize("name", ["rows.jsonl", "[a]*?.jsonl"])
def test_the_files_of_ranks_are_joined_in_order(tmp_path, whole, name):
    """Rank 0 has written rows 2 and 0, rank 1 a part of row 1; the joined file may be there too."""
    rows, out = whole.splitlines(keepends=True), tmp_path / "ranks" / name
    write(out)
    out.write_bytes(rows[0])
    out.with_name(f"{name}.rank-0").write_bytes(rows[2] + rows[0])
    out.with_name(f"{name}.rank-1").write_bytes(rows[1][:-9])
    out.with_name("other.jsonl.rank-0").write_bytes(rows[1])
    assert write(out) == [1, 3, 4]
    assert out.read_bytes() == whole
    assert names(out) == sorted([name, f"{name}.settings.json", "other.jsonl.rank-0"])


def test_each_rank_makes_its_share_into_a_file_of_its_own(out, whole, monkeypatch):
    """Two ranks, one after the other; rank 0 is stopped at first, then takes up what there is."""
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    with pytest.raises(SystemExit):
        write(out, most=0)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert write(out) == [1, 3]
    assert "rows.jsonl.rank-1" in names(out) and "rows.jsonl" not in names(out)
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    with pytest.raises(ValueError, match="1 of 5 rows are missing, the first is 2"):
        write(out)  # 0 and 4 of 0, 2, 4 that are missing
    assert names(out) == ["rows.jsonl", "rows.jsonl.settings.json"]
    assert [row["index"] for _, row in read_rows(out)] == [0, 1, 3, 4]
    monkeypatch.undo()
    assert write(out) == [2] and out.read_bytes() == whole


# ------------------------------------------------------------------------------------------------
# refused

CHANGES = {
    "seed": (4, r"seed 3, now 4"),
    "stop": (("a",), r"stop \['a', 'b'\], now \['a'\]"),
    "nested": ({"ids": (1, 3)}, r"nested {'ids': \[1, 2\]}, now {'ids': \[1, 3\]}"),
    "adapter": ("x", r"adapter None, now 'x'"),
    "new": (1, r"new None, now 1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name(out, whole, name):
    write(out)
    value, shown = CHANGES[name]
    message = rf"rows\.jsonl holds rows that were made otherwise \({shown}\); pass another file"
    with pytest.raises(ValueError, match=message):
        write(out, SETTINGS | {name: value})
    assert out.read_bytes() == whole
    assert write(out) == []


def test_all_that_differs_is_named(out):
    write(out)
    with pytest.raises(ValueError, match=r"\(adapter None, now 'x'; seed 3, now None\)"):
        write(out, {"stop": ["a", "b"], "nested": {"ids": [1, 2]}, "adapter": "x"})


def test_settings_are_compared_as_json(out):
    """Tuples and lists, keys in any order, and a setting of none that was not there before."""
    write(out)
    nested = {"ids": [1, 2]}
    assert write(out, {"new": None, "nested": nested, "stop": ["a", "b"], "seed": 3}) == []


def test_a_file_without_settings_that_are_its_own_is_refused(out, whole):
    write(out)
    file = out.with_name("rows.jsonl.settings.json")
    for text in ("{", "[]", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.settings\.json: expected JSON"):
            write(out)
    file.unlink()
    with pytest.raises(ValueError, match=r"is there already, without rows\.jsonl\.settings\.json"):
        write(out)
    assert out.read_bytes() == whole and not file.exists()


def test_what_a_rank_has_left_is_not_mixed_with_rows_of_other_settings(out, whole):
    """Somebody has removed the file and its settings, but not the part."""
    write(out)
    part = out.with_name("rows.jsonl.rank-0")
    out.rename(part)
    out.with_name("rows.jsonl.settings.json").unlink()
    with pytest.raises(ValueError, match=r"rank-0 is there already, without rows\.jsonl\.settings"):
        write(out, SETTINGS | {"seed": 4})
    assert part.read_bytes() == whole and not out.exists()


@pytest.mark.parametrize(
    "row",
    [
        b"{", b"", b"[]", b"3", b"{}", b'{"index": "x"}', b'{"index": "1"}', b'{"index": 1.0}',
        b'{"index": true}', b'{"index": -1}', b'{"index": null}', b'{"index": 0, "\xff',
    ],
)  # fmt: skip
def test_a_damaged_row_is_named(start, out, whole, row):
    first, rest = whole.split(b"\n", 1)
    start(first + b"\n" + row + b"\n" + rest)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a row with an index; mend or remove"):
        write(out)
    assert out.read_bytes() == first + b"\n" + row + b"\n" + rest


def test_bytes_that_are_no_text_are_not_mended_in_silence(start, out, whole):
    start(whole.replace("é".encode(), b"\xff", 1))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: not a row with an index"):
        join_parts(out)
