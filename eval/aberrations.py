"""Aberrations: how many words of a text are none, by the words of a body of text.

A word is a run of letters, in lower case. Names and rare words count as aberrations too: it is the
difference between policies on the same prompts that tells.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from data.reading import decode_text
from data.rows import SUFFIXES, open_binary, read_rows

LETTERS = re.compile(r"[^\W\d_]+")


def letter_runs(text: str) -> list[str]:
    return LETTERS.findall(text.lower())


def count_aberrations(texts: Sequence[str], known: Collection[str]) -> tuple[int, int]:
    """(words that are not known, words) of some texts."""
    words = [word for text in texts for word in letter_runs(text)]
    return sum(word not in known for word in words), len(words)


def read_vocabulary(files: Sequence[str], least: int) -> frozenset[str]:
    """The words that stand at least so often in the texts of the files."""
    times = Counter()
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(f"--vocabulary expects files, got {path}: no such file")
        if path.name.endswith((".txt", ".txt.gz")):
            with open_binary(path) as file:
                times.update(letter_runs(decode_text(file.read(), str(path))))
        elif path.name.endswith(SUFFIXES):
            for _, row in read_rows(path):
                for text in texts_in(row):
                    times.update(letter_runs(text))
        else:
            raise ValueError(f"--vocabulary {path}: expected .txt, {', '.join(SUFFIXES)}")
    known = frozenset(word for word, count in times.items() if count >= least)
    if files and not known:
        raise ValueError(f"--vocabulary: no word stands {least} times in {', '.join(files)}")
    return known


def texts_in(value: object) -> Iterator[str]:
    """Every text in a JSON value, but for the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)
