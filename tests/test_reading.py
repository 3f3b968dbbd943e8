"""Files that may come from anywhere: what is read, and what is refused with its name.

pytest tests/test_reading.py
"""

import os
from pathlib import Path

import pytest

from data.reading import FILE_BYTES, decode_text, is_text, parse_json, read_file, read_json


def test_json_as_every_reader_understands_it(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, "\\u00e9"]}')  # a byte order mark is no harm
    assert read_json(file) == {"a": [1, 2.5, "é"]}
    assert parse_json(b"[1, 2]", "x") == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "here: not JSON"),
        (b'{"a": NaN}', "here: not JSON, NaN is not a JSON value"),
        (b'{"a": {"b": 1, "b": 2}}', "here: not JSON, 'b' stands twice in one object"),
        (b"[" * 100_000, "here: not JSON"),
        (b'"ab\xff"', "here: not UTF-8, invalid start byte at byte 3"),
    ],
)
def test_json_that_readers_understand_differently(data, message):
    with pytest.raises(ValueError, match=message):
        parse_json(data, "here")


def test_a_list_is_no_object(tmp_path: Path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a.json: expected a JSON object, got list"):
        read_json(tmp_path / "a.json")


def test_text():
    assert decode_text("é".encode(), "x") == "é"
    assert is_text("é\U0001f600") and not is_text("\ud83d") and not is_text(3)


def test_regular_files_of_a_folder_alone(tmp_path: Path):
    """But for the links that the cache of a hub has, into blobs/ beside snapshots/."""
    outside, folder = tmp_path / "outside", tmp_path / "hub" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    outside.write_bytes(b"1")
    (tmp_path / "hub" / "blobs" / "123").write_bytes(b"2")
    (folder / "linked").symlink_to(outside)
    (folder / "blob").symlink_to(tmp_path / "hub" / "blobs" / "123")
    assert read_file(outside) == b"1" and read_file(folder / "blob") == b"2"
    with pytest.raises(ValueError, match="linked is a link out of its folder"):
        read_file(folder / "linked")
    with pytest.raises(FileNotFoundError, match="abc: not a regular file"):
        read_file(folder)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        read_file(folder / "nowhere")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    file = tmp_path / "large"
    file.touch()
    os.truncate(file, FILE_BYTES + 1)  # a hole: it takes no room
    with pytest.raises(ValueError, match=f"large: expected at most {FILE_BYTES} bytes, got"):
        read_file(file)
