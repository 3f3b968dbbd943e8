"""eval/aberrations.py: words of small files, counted by hand.

python -m pytest tests/test_aberrations.py
"""

import gzip
import json
from pathlib import Path

import pytest

from eval.aberrations import count_aberrations, letter_runs, read_vocabulary


def test_words_are_runs_of_letters() -> None:
    assert letter_runs("It's 3x é_Zß, 42!") == ["it", "s", "x", "é", "zß"]


def test_counts_by_hand() -> None:
    """The cat sat | on qzx, the: two of six words are not known."""
    known = {"the", "cat", "sat", "mat"}
    assert count_aberrations(["The cat sat", "on qzx, the"], known) == (2, 6)
    assert count_aberrations(["12 ..."], known) == (0, 0)


def test_vocabulary_of_files(tmp_path: Path) -> None:
    """cat stands three times, dog and in twice, keys of objects do not count, user once."""
    (tmp_path / "a.txt").write_text("A Cat, a dog.\n")
    turns = [{"role": "user", "content": "the cat in"}, "dog in", 3]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": "cat", "chosen": turns}))
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl.gz")]
    assert read_vocabulary(files, 2) == {"a", "cat", "dog", "in"}
    assert read_vocabulary(files, 3) == {"cat"}
    assert "user" in read_vocabulary(files, 1) and "role" not in read_vocabulary(files, 1)
    assert read_vocabulary((), 2) == frozenset()


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--vocabulary expects files, got .*none.txt"):
        read_vocabulary([str(tmp_path / "none.txt")], 1)
    file = tmp_path / "words.csv"
    file.write_text("a")
    with pytest.raises(ValueError, match=r"--vocabulary .*words.csv: expected .txt, .jsonl"):
        read_vocabulary([str(file)], 1)
    file = tmp_path / "words.txt"
    file.write_text("a b c")
    with pytest.raises(ValueError, match=r"no word stands 2 times in .*words.txt"):
        read_vocabulary([str(file)], 2)
