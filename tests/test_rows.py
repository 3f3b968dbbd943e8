"""data/rows.py by hand: which files and rows are read, and what every malformed one is told."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from data.rows import data_files, dialogue, parse_transcript, read_rows, write_rows

ROW = {"prompt": "p", "chosen": "c", "rejected": "r"}
LINE = json.dumps(ROW).encode() + b"\n"


def rows_of(path: Path) -> list[tuple[str, dict]]:
    return list(read_rows(path))


# ---------------------------------------------------------------------------------------------
# files
# ---------------------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path: Path) -> None:
    """Two rows each, with a blank line and a byte order mark on the way."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    contents = {
        "a.jsonl": b"\xef\xbb\xbf" + LINE + b"\n" + LINE.rstrip(),
        "b.jsonl.gz": gzip.compress(LINE + b"\n" + LINE, mtime=0),
        "c.json": json.dumps([ROW, ROW]).encode(),
        "d.json.gz": gzip.compress(json.dumps([ROW, ROW], indent=1).encode(), mtime=0),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        second = 3 if "jsonl" in name else 2
        found = rows_of(tmp_path / name)
        assert found == [(f"{tmp_path / name}:{i}", ROW) for i in (1, second)]
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    table = pyarrow.Table.from_pylist([{**ROW, "chosen": messages}] * 3)
    parquet.write_table(table, tmp_path / "e.parquet")
    found = rows_of(tmp_path / "e.parquet")
    assert found[2] == (f"{tmp_path / 'e.parquet'}:3", {**ROW, "chosen": messages})


def test_a_parquet_column_that_python_cannot_hold_is_named(tmp_path: Path) -> None:
    """A date behind the year 9999, in a column that nobody reads."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    late = pyarrow.array([2**62], pyarrow.timestamp("us"))
    table = pyarrow.Table.from_pylist([ROW]).append_column("created", late)
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a parquet file, got .*range"):
        rows_of(tmp_path / "a.parquet")


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    row = {"prompt": "a\u2028b\x85c"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert rows_of(tmp_path / "a.jsonl")[0][1] == row


def test_folders(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "config.json", "notes.txt", "._b.jsonl"):
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in data_files(tmp_path)]
    assert names == ["a.jsonl.gz", "b.jsonl", "c.parquet"]
    assert data_files([tmp_path / "c.parquet", str(tmp_path / "b.jsonl")]) == [
        tmp_path / "c.parquet",
        tmp_path / "b.jsonl",
    ]
    (tmp_path / "train.jsonl").write_bytes(b"")
    (tmp_path / "test-00.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds several splits .*test-00.parquet.*; name files"):
        data_files(tmp_path)
    assert data_files(tmp_path / "train.jsonl") == [tmp_path / "train.jsonl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("helpful_train.jsonl helpful_test.jsonl", "several splits"),
        ("train.jsonl Test.jsonl", "several splits"),
        ("a.jsonl a-VALIDATION-00.parquet", "several splits"),
        ("hh.jsonl hh.held-out.jsonl.gz", "several splits"),
        ("validation.jsonl test1.jsonl", "several splits"),
        ("train_prefs-00000-of-00001.parquet train_sft-00000-of-00001.parquet", "several splits"),
        ("train.jsonl train.jsonl.gz", r"the same rows twice \(train.jsonl, train.jsonl.gz\)"),
        ("a.jsonl b.jsonl b.parquet", r"the same rows twice \(b.jsonl, b.parquet\)"),
        ("train.jsonl more.jsonl", None),
        ("test-00.parquet test-01.parquet", None),
        ("latest.jsonl device.jsonl contest_answers.jsonl medieval.jsonl", None),
    ],
)
def test_a_folder_is_one_split_once(names: str, message: str | None, tmp_path: Path) -> None:
    for name in names.split():
        (tmp_path / name).write_bytes(b"")
    if message is None:
        assert len(data_files(tmp_path)) == len(names.split())
        return
    with pytest.raises(ValueError, match=f"holds {message}.*; name files"):
        data_files(tmp_path)


def test_a_byte_order_mark_on_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf\n" + LINE)
    assert rows_of(tmp_path / "a.jsonl") == [(f"{tmp_path / 'a.jsonl'}:2", ROW)]


def test_rows_are_written_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.jsonl"
    write_rows(path, [{"a": "\u00e9\u2028"}, {}])
    assert path.read_bytes() == b'{"a": "\xc3\xa9\xe2\x80\xa8"}\n{}\n'
    assert [row for _, row in rows_of(path)] == [{"a": "\u00e9\u2028"}, {}]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing: no such file or folder; expected data"):
        data_files(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"a folder without .jsonl"):
        data_files(tmp_path)
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"data.csv: expected a file named .jsonl, .jsonl.gz"):
        data_files(tmp_path / "data.csv")
    with pytest.raises(ValueError, match="--data: expected at least one file"):
        data_files([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINE + b"{'prompt': 1}\n", r"a.jsonl:2: not JSON"),
        ("a.jsonl", LINE * 3 + b'{"prompt": "a"', r"a.jsonl:4: not JSON"),
        ("a.jsonl", b'{"score": NaN}', r"a.jsonl:1: not JSON, NaN is not a JSON value"),
        ("a.jsonl", b'{"score": -Infinity}', r"a.jsonl:1: not JSON, -Infinity"),
        ("a.jsonl", b"[" * 100000, r"a.jsonl:1: not JSON"),
        ("a.jsonl", LINE + b'"text"', r"a.jsonl:2: expected an object \{...\}, got a text"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: expected an object \{...\}, got a list"),
        ("a.jsonl", b"null\n", r"a.jsonl:1: expected an object \{...\}, got null"),
        ("a.jsonl", b"17\n", r"a.jsonl:1: expected an object \{...\}, got a number"),
        ("a.jsonl", b'{"prompt": "\xff"}', r"a.jsonl:1: not UTF-8, invalid start byte at byte 12"),
        ("a.jsonl.gz", LINE, r"a.jsonl.gz: not a whole gzip file, Not a gzipped file"),
        # no time in them, since two workers have to collect the same tests
        ("a.jsonl.gz", gzip.compress(LINE * 99, mtime=0)[:-9], "a.jsonl.gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0)[:12] + b"\xff" * 40, "a.jsonl.gz: not a whole"),
        ("a.json.gz", LINE, r"a.json.gz: not a whole gzip file"),
        ("a.json", LINE, r"a.json: expected a list of objects, got an object"),
        ("a.json", LINE * 2, r"a.json: not JSON, Extra data.*; a file of one object a line is"),
        ("a.json", b"[1]", r"a.json:1: expected an object \{...\}, got a number"),
        ("a.json", b"", r"a.json: not JSON"),
        ("a.parquet", LINE, r"a.parquet: expected a parquet file, got"),
    ],
)
def test_malformed_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow.parquet")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    """Bytes that are no text in a column of texts, and a page that cannot be unpacked."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"ok", b"\xff\xfe"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, texts.buffers())
    parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "text.parquet")
    rows = pyarrow.table({"prompt": [f"{i}" * 9 for i in range(999)]})
    parquet.write_table(rows, tmp_path / "page.parquet", compression="gzip", use_dictionary=False)
    whole = (tmp_path / "page.parquet").read_bytes()
    (tmp_path / "page.parquet").write_bytes(whole[:60] + b"\xff" * 60 + whole[120:])
    for name in ("text.parquet", "page.parquet"):
        with pytest.raises(ValueError, match=f"{name}: expected a parquet file, got"):
            rows_of(tmp_path / name)


def test_absent_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"a.parquet needs the package pyarrow: pip install"):
        rows_of(tmp_path / "a.parquet")


# ---------------------------------------------------------------------------------------------
# dialogues
# ---------------------------------------------------------------------------------------------


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_transcripts() -> None:
    text = "\n\nHuman: Hi\n\nthere\n\nAssistant:  two spaces\n\nHuman:none\n\nAssistant:"
    assert parse_transcript(text, "chosen", "f:1") == [
        user("Hi\n\nthere"),
        assistant(" two spaces"),
        user("none"),
        assistant(""),
    ]


@pytest.mark.parametrize("text", ["", "Hello", "\n\nAssistant: Hi", "x\n\nHuman: Hi"])
def test_texts_that_are_no_transcript(text: str) -> None:
    with pytest.raises(ValueError, match=r"f:1: chosen: expected a dialogue that begins with"):
        parse_transcript(text, "chosen", "f:1")


def test_shapes_of_the_prompt() -> None:
    """The same dialogue, said in every way."""
    system = {"role": "system", "content": "s"}
    whole = [user("p"), assistant("c")]
    for row in (
        {"prompt": "p", "chosen": "c"},
        {"prompt": [user("p")], "chosen": "c"},
        {"prompt": [user("p")], "chosen": [assistant("c")]},
        {"prompt": "p", "chosen": [assistant("c")]},
        {"prompt": [user("p")], "chosen": whole},
        {"prompt": " p\n", "chosen": whole},
        {"chosen": whole},
        {"chosen": [{**turn, "name": "x"} for turn in whole]},
        {"chosen": "\n\nHuman: p\n\nAssistant: c"},
        {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": " c"},
        {"prompt": "\n\nHuman: p\n\nAssistant: ", "chosen": "c"},
        {"prompt": "\n\nHuman: p\n\nAssistant: \n", "chosen": "c"},
        {"prompt": "\n\nHuman: p", "chosen": "c"},
        {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": whole},
        {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": "\n\nHuman: p\n\nAssistant: c"},
        {"prompt": "p", "chosen": "\n\nHuman: p\n\nAssistant: c"},
        {"prompt": "p", "chosen": "c", "system": " "},
    ):
        assert dialogue(row, "chosen", "f:1") == whole
    long = [system, user("a"), assistant("b"), *whole]
    assert dialogue({"prompt": "p", "chosen": long}, "chosen", "f:1") == long
    assert dialogue({"prompt": long[:-1], "chosen": "c"}, "chosen", "f:1") == long
    spaced = [*long[:-2], user(" p\n"), assistant("c")]
    assert dialogue({"prompt": "p", "chosen": spaced}, "chosen", "f:1") == spaced
    transcript = "\n\nHuman: a\n\nAssistant: b\n\nHuman: p\n\nAssistant:"
    row = {"prompt": transcript, "chosen": " c\n\nHuman: no turn"}
    said = assistant("c\n\nHuman: no turn")
    assert dialogue(row, "chosen", "f:1") == [*long[1:-1], said]


def test_a_system_message_stands_once() -> None:
    """In the prompt alone, in both, or under a key of its own."""
    system = {"role": "system", "content": "s"}
    whole = [system, user("p"), assistant("c")]
    for row in (
        {"prompt": whole[:2], "chosen": whole[1:]},
        {"prompt": whole[:2], "chosen": whole},
        {"prompt": whole[:2], "chosen": whole[2:]},
        {"prompt": whole[:1], "chosen": whole[1:]},
        {"prompt": "p", "chosen": "c", "system": "s"},
        {"chosen": "\n\nHuman: p\n\nAssistant: c", "system": "s"},
        {"chosen": whole, "system": "s"},
    ):
        assert dialogue(row, "chosen", "f:1") == whole
    greeted = [system, assistant("hello"), *whole[1:]]
    row = {"prompt": greeted[:3], "chosen": greeted[1:]}
    assert dialogue(row, "chosen", "f:1") == greeted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": None}, "chosen: expected a text, got null"),
        ({"prompt": "p", "chosen": 3.5}, "chosen: expected a text, got a number"),
        ({"prompt": "p", "chosen": True}, "chosen: expected a text, got a truth value"),
        ({"prompt": None, "chosen": "c"}, "prompt: expected a text, got null"),
        ({"prompt": {"a": 1}, "chosen": "c"}, "prompt: expected a text, got an object"),
        ({"prompt": "p\ud800", "chosen": "c"}, "prompt: not Unicode, half a surrogate pair"),
        ({"chosen": 1}, "chosen: expected a text, got a number"),
        ({"chosen": []}, "chosen: expected a list of messages, got an empty list"),
        ({"prompt": [], "chosen": "c"}, "prompt: expected a list of messages, got an empty list"),
        ({"chosen": ["hi"]}, r"chosen\[0\]: expected a message \{role, content\}, got a text"),
        (
            {"chosen": [user("p"), {"role": "bot", "content": "c"}]},
            r"chosen\[1\].role: expected one of system, user, assistant, got 'bot'",
        ),
        (
            {"chosen": [{"from": "human", "value": "p"}]},
            r"chosen\[0\].role: expected one of system, user, assistant, got None",
        ),
        (
            {"chosen": [user("p"), {"role": "assistant", "content": None}]},
            r"chosen\[1\].content: expected a text, got null",
        ),
        (
            {"chosen": [{"role": "user", "content": [{"type": "text"}]}]},
            r"chosen\[0\].content: expected a text, got a list",
        ),
        (
            {"chosen": [user("p"), assistant("c"), user("q")]},
            "chosen: expected the assistant's reply at the end, got a message of the user",
        ),
        (
            {"prompt": [user("p")], "chosen": [user("p")]},
            "chosen: expected the assistant's reply at the end",
        ),
        ({"chosen": [assistant("c")]}, "chosen: expected a user message before the reply"),
        ({"chosen": "\n\nHuman: p"}, "chosen: expected the assistant's reply at the end"),
        (
            {"prompt": "p", "chosen": [user("q"), assistant("c")]},
            r"chosen: expected messages that repeat the prompt \(user 'p'\), got user 'q', "
            "assistant 'c'; mend the row or leave its prompt out",
        ),
        (
            {"prompt": [user("p")], "chosen": [user("q"), assistant("c")]},
            r"chosen: expected messages that repeat the prompt \(user 'p'\), got user 'q'",
        ),
        (
            {"prompt": [user("p"), assistant("a")], "chosen": [user("q"), assistant("c")]},
            r"chosen: expected messages that repeat the prompt \(user 'p', assistant 'a'\), got us",
        ),
        (
            {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": "\n\nHuman: q\n\nAssistant: c"},
            r"chosen: expected messages that repeat the prompt \(user 'p'\), got user 'q'",
        ),
        (
            {"prompt": "\n\nHuman: p\n\nAssistant: so", "chosen": "c"},
            r"prompt: expected a dialogue that ends with '\\n\\nAssistant:', got '.* so' at its",
        ),
        (
            {"prompt": "\n\nAssistant: p\n\nHuman: q", "chosen": "c"},
            r"prompt: expected a dialogue that begins with '\\n\\nHuman:'",
        ),
        (
            {"prompt": "p", "chosen": "\n\nAssistant: c"},
            r"chosen: expected a dialogue that begins with '\\n\\nHuman:'",
        ),
        ({"prompt": "p", "chosen": "c", "system": 3}, "system: expected a text, got a number"),
        (
            {"chosen": [{"role": "system", "content": "t"}, user("p")], "system": "s"},
            "system: expected one system message, got another in the messages",
        ),
    ],
)
def test_malformed_rows(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"f:1: {message}"):
        dialogue(row, "chosen", "f:1")
