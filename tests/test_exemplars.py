"""eval/exemplars.py: prompts written out by hand, and files that do not serve.

python -m pytest tests/test_exemplars.py
"""

import json
from pathlib import Path

import pytest

from eval.exemplars import build_prompt, read_exemplars

KEYS = (("question", "answer"), ("question", "target"))


@pytest.fixture
def shots(tmp_path: Path) -> str:
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "target": "3"}]
    path = tmp_path / "shots.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompt_by_hand(shots: str) -> None:
    exemplars = read_exemplars(shots, 2, KEYS, {"2 + 2?"})
    prompt = build_prompt("2 + 2?", exemplars, "Q: {}\nA:")
    assert prompt == "Q: 1 + 1?\nA: 2\n\nQ: 1 + 2?\nA: 3\n\nQ: 2 + 2?\nA:"
    assert build_prompt("{2}?", [], "Q: {}\nA:") == "Q: {2}?\nA:"


def test_only_the_first_rows_are_read(shots: str) -> None:
    assert read_exemplars(shots, 1, KEYS, {"1 + 2?"}) == [("1 + 1?", "2")]


@pytest.mark.parametrize(
    ("count", "keys", "problems", "message"),
    [
        (3, KEYS, set(), "expected 3 rows, got 2"),
        (2, KEYS, {"1 + 2?"}, r"shots.jsonl:2: this exemplar is a problem of --data"),
        (2, KEYS[:1], set(), r"shots.jsonl:2: answer: expected a text, got null"),
        (2, (("problem", "solution"),), set(), r"shots.jsonl:1: problem: expected a text"),
    ],
)
def test_files_that_do_not_serve(shots: str, count, keys, problems, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_exemplars(shots, count, keys, problems)


def test_no_file_names_the_flag() -> None:
    with pytest.raises(ValueError, match="--shots, a file of 5 exemplars"):
        read_exemplars(None, 5, KEYS, set())
