"""eval/style.py: counts by hand and those that Arena-Hard published with its answers.

python -m pytest tests/test_style.py
"""

import pytest

from data.rows import read_rows
from eval.style import STYLE, style_difference, style_of

TEXT = """# One
####### seven are none
- a
  * b **bold** and __bold__
2. c
-no item
```python
# no header
- no item **no bold**
```
**open
"""


def test_counts_by_hand():
    counts = {"bytes": len(TEXT), "headers": 1, "lists": 3, "bold": 2}
    assert style_of(TEXT) == counts and tuple(counts) == STYLE


def test_length_is_in_bytes_and_an_open_block_ends_with_the_text():
    assert style_of("é\n```\n# x") == {"bytes": 10, "headers": 0, "lists": 0, "bold": 0}


def test_the_counts_of_arena_hard(shared_data):
    """All 389 recorded answers of o3-mini, with the authors' counts in `metadata`."""
    folder = shared_data / "arena_hard" / "arena-hard-v2.0" / "model_answer"
    rows = [row for _, row in read_rows(folder / "o3-mini-2025-01-31.jsonl.gz")]
    ours = [style_of(row["messages"][-1]["content"]["answer"]) for row in rows]
    keys = {"headers": "header_count", "lists": "list_count", "bold": "bold_count"}
    for name, key in keys.items():
        theirs = [sum(row["metadata"][key].values()) for row in rows]
        assert [counts[name] for counts in ours] == theirs
    assert len(rows) == 389 and sum(counts["lists"] for counts in ours) == 1130


def test_differences_by_hand():
    """(300 - 100) / 400; one header in 300 bytes; 3 items in 300 less 2 in 100."""
    ours = {"bytes": 300, "headers": 1, "lists": 3, "bold": 0}
    theirs = {"bytes": 100, "headers": 0, "lists": 2, "bold": 0}
    expected = [0.5, 1 / 300, 0.01 - 0.02, 0]
    assert style_difference(ours, theirs) == pytest.approx(expected)
    assert style_difference(theirs, ours) == pytest.approx([-x for x in expected])


def test_empty_answers_are_alike():
    assert style_difference(style_of(""), style_of("")) == [0, 0, 0, 0]
    assert style_difference(style_of("a"), style_of("")) == [1, 0, 0, 0]
