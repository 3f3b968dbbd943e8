"""Rows that a reward model is asked about: samples, their prompts and verdicts, pairs.

pytest tests/test_reward_rows.py
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.chat import CHAT_FORMATS
from eval.reward_rows import Row, add_verdicts, pair_rows, read_samples

PLAIN = CHAT_FORMATS["plain"]
ONE = {"index": 0, "prompt": "1 + 1?", "completions": ["2", "two"]}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_in_the_order_of_their_indices(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    two = {"index": 1, "prompt": turns, "completions": ["x"], "finish_reasons": ["length"]}
    two |= {"tokens": [3], "reference_logps": [-2.5], "logps": [-1.0]}
    file = write(tmp_path / "s.jsonl", two, ONE)
    first, second = read_samples(file, None, PLAIN, None)
    assert first.messages == [{"role": "user", "content": "1 + 1?"}] and first.ended == [True, True]
    assert first.replies == ["2", "two"] and first.about == {}
    assert second.messages == turns and second.ended == [False]
    assert second.about == {"tokens": [3], "reference_logps": [-2.5]}
    assert read_samples(file, None, PLAIN, 1) == [first]


def test_prompts_of_their_own_file_win(tmp_path):
    prompts = write(tmp_path / "p.jsonl", {"question": "other?"}, {"question": "more?"})
    (row,) = read_samples(write(tmp_path / "s.jsonl", ONE), prompts, PLAIN, None)
    assert row.messages == [{"role": "user", "content": "other?"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": -1}, "s.jsonl:1: expected an index not yet seen, got -1"),
        ({"index": 1}, "s.jsonl: row 0 is missing; was it written to its end"),
        ({"completions": []}, "s.jsonl:1: expected `completions`, a list of texts"),
        ({"completions": [1]}, r"completions\[0\]: expected a text, got a number"),
        ({"prompt": ""}, "prompt: expected a text, got an empty one"),
        ({"finish_reasons": ["stop"]}, "finish_reasons: expected a list of 2, got"),
        ({"tokens": [1, 2, 3]}, "tokens: expected a list of 2, got"),
        ({"tokens": [0, 2]}, r"tokens: expected counts above 0, got \[0, 2\]"),
        ({"reference_logps": [-1.0, None]}, "reference_logps: expected numbers, got"),
        ({"reference_logps": [-1.0, True]}, "reference_logps: expected numbers, got"),
        ({"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
         "s.jsonl:1: chat format plain has no system message"),
    ],
)  # fmt: skip
def test_broken_samples_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_samples(write(tmp_path / "s.jsonl", {**ONE, **changes}), None, PLAIN, None)


def test_missing_prompts_and_rows_are_named(tmp_path):
    bare = write(tmp_path / "s.jsonl", {"index": 0, "completions": ["2"]})
    with pytest.raises(ValueError, match="has no prompt; pass the file of the prompts with --prom"):
        read_samples(bare, None, PLAIN, None)
    two = write(tmp_path / "t.jsonl", ONE, {**ONE, "index": 1})
    prompts = write(tmp_path / "p.jsonl", {"prompt": "1 + 1?"})
    with pytest.raises(ValueError, match=r"--prompts .*: 1 prompts for 2 rows"):
        read_samples(two, prompts, PLAIN, None)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl: expected rows, got an empty file"):
        read_samples(tmp_path / "empty.jsonl", None, PLAIN, None)


def test_verdicts_belong_to_completions(tmp_path):
    row = Row([], ("a", "b"), (True, True), {"tokens": [1, 2]}, "")
    marks = [{"index": 1, "correct": [False, True]}, {"index": 0, "correct": [True, True]}]
    items = write(tmp_path / "items.jsonl", *marks)
    about = [marked.about for marked in add_verdicts([row, row], items)]
    assert about == [{"tokens": [1, 2], "correct": marks[i]["correct"]} for i in (1, 0)]
    with pytest.raises(
        ValueError, match="expected 1 verdicts on row 1, got 2; are they of the sam"
    ):
        add_verdicts([row, replace(row, replies=("a",))], items)
    with pytest.raises(ValueError, match="expected 2 verdicts on row 2, got 0"):
        add_verdicts([row] * 3, items)
    for index in ([1], None, -1, 0):
        twice = write(tmp_path / "twice.jsonl", {"index": 0, "correct": [True, True]},
                      {"index": index, "correct": [True, True]})  # fmt: skip
        with pytest.raises(ValueError, match=r"twice.jsonl:2: expected an index not yet seen, got"):
            add_verdicts([row], twice)
    for broken in ([1, 0], "yes", None):
        with pytest.raises(ValueError, match="correct: expected a list of true and false"):
            add_verdicts([row], write(items, {"index": 0, "correct": broken}))


def test_pairs_that_a_format_cannot_express_are_dropped_and_counted(tmp_path, capsys):
    odd = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    rows = [{"prompt": prompt, "chosen": "c", "rejected": "r"} for prompt in ("q", odd, "p")]
    file = write(tmp_path / "pairs.jsonl", *rows)
    kept = pair_rows(str(file), CHAT_FORMATS["mistral"], None)
    assert [row.where.rpartition(":")[2] for row in kept] == ["1", "3"]
    assert kept[0].replies == ("c", "r") and kept[0].ended == (True, True)
    assert "pairs: 2; dropped 1: turns out of order for mistral" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no pairs remain; dropped 1: turns out of order"):
        pair_rows(str(write(file, rows[1])), CHAT_FORMATS["mistral"], None)
