"""eval/judged_diversity.py: scores read, sets shown, means by hand, a judge that can be worked out.

python -m pytest tests/test_judged_diversity.py
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.rows import read_rows
from eval import judged_diversity
from eval.judged_diversity import INSTRUCTIONS, ask_about, metric_values, read_scores, read_sets
from eval.results import summarize
from tests.judge_server import serve


@pytest.fixture(autouse=True)
def plain(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def write_jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Sets of 1, 3 and 2 distinct texts among three."""
    sets = [["a", "a", "a"], ["a", "b", "c"], ["d", "d", "e"]]
    samples = [{"index": i, "completions": texts} for i, texts in enumerate(sets)]
    return {
        "data": write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"p{i}"} for i in range(3)]),
        "samples": write_jsonl(tmp_path / "samples.jsonl", samples),
    }


def run(monkeypatch, out: Path, **flags: object) -> dict[str, float]:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["judged_diversity.py", "--out", str(out), *words])
    judged_diversity.main()
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    return {name: row["value"] for name, row in metrics.items()}


def distinct(messages: Sequence[dict], _: int = 0) -> str:
    """A script: the number of distinct texts, 1, and whatever the third aspect is told to be."""
    texts = messages[-1]["content"].split("|>\n")[2::2]
    count = len({text.split("\n")[0] for text in texts})
    return f"They differ.\n\nlogical: [[{count}]]\ncontent: [[1]]\nsurface: [[{6 - count}]]"


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("logical: [[1]]\ncontent: [[3]]\nsurface: [[5]]", (1, 3, 5)),
        ("**Logical disagreement:** [[2]], Content - [[ 4 ]]\nSURFACE form [[1]]", (2, 4, 1)),
        ("logical: [[1]] content: [[2]] surface: [[3]]; no, logical: [[4]]", (4, 2, 3)),
        ("surface: [[3]]\nlogical: [[2]]", (2, None, 3)),
        ("logical: [[0]]\ncontent: [[6]]\nsurface: [[12]]", (None, None, None)),
        ("logical: [[4.5]]\ncontent: [[k]]\nsurface: [[]]", (None, None, None)),
        ("logical: [[4]]\nlogical: [[k]]\ncontent: [3]\nsurface: 3", (None, None, None)),
        ("logical: [[3]] at first\nlogical: [[4.5]]", (None, None, None)),
        ("logical: [[3]]\nlogical: [[3 or 4]]\ncontent: [[2]]", (None, 2, None)),
        ("logical:\n[[4]]\ncontents: [[2]]\n[[3]]", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_scores(text, scores):
    assert tuple(read_scores(text).values()) == scores


def test_a_question_has_all_completions():
    system, user = ask_about("Why?", ["one", "two\nlines"], "Judge.")
    assert system == {"role": "system", "content": "Judge."}
    assert user == {
        "role": "user",
        "content": "<|User Prompt|>\nWhy?\n\n"
        "<|The Start of Response 1|>\none\n<|The End of Response 1|>\n\n"
        "<|The Start of Response 2|>\ntwo\nlines\n<|The End of Response 2|>",
    }


def test_the_instructions_ask_for_what_is_read():
    assert tuple(read_scores(INSTRUCTIONS.replace("[[k]]", "[[2]]")).values()) == (2, 2, 2)


def test_metrics_by_hand():
    """Means of 1 and 4, 2 and 2, 5 and 3; of the third prompt's scores one in three is unknown."""
    rows = [(1, 2, 5), (4, 2, 3), (5, None, 5)]
    items = [
        {"index": i, "scores": dict(zip(("logical", "content", "surface"), row, strict=True))}
        for i, row in enumerate(rows)
    ]
    summary = summarize(metric_values(items, frozenset({2})))
    values = {name: row["value"] for name, row in summary.items()}
    expected = {"unknown": 1 / 9, "logical": 2.5, "content": 2, "surface": 4}
    assert values == pytest.approx(expected)
    assert metric_values(items, frozenset({0, 1, 2})).keys() == {"unknown"}


def test_a_judge_that_counts_distinct_texts(monkeypatch, tmp_path, files):
    """1, 3 and 2 distinct: mean 2, and 6 less that: 4. Of the first two completions: 1, 2 and 1."""
    with serve(distinct) as server:
        flags = files | {"judge_url": server.url, "judge_name": "x"}
        values = run(monkeypatch, tmp_path / "out", **flags)
        assert values == pytest.approx({"unknown": 0, "logical": 2, "content": 1, "surface": 4})
        assert len(server.requests) == 3
        run(monkeypatch, tmp_path / "out", **flags)
        assert len(server.requests) == 3  # nothing is asked twice
        values = run(monkeypatch, tmp_path / "two", **flags, n=2)
        assert values["logical"] == pytest.approx(4 / 3)
        with pytest.raises(ValueError, match="expected results with the same n, got 3, now 2"):
            run(monkeypatch, tmp_path / "x", **flags, n=2, baseline=tmp_path / "out")
    items = [row for _, row in read_rows(tmp_path / "out" / "items.jsonl")]
    scores = {"logical": 3, "content": 1, "surface": 3}
    assert items[1] == {"index": 1, "scores": scores, "known": True}


def test_an_unreadable_judgement_is_counted_and_left_out(monkeypatch, tmp_path, files, capsys):
    """The second prompt has no score for content: 1 of 9 unknown, means of 1 and 2."""

    def script(messages: list[dict], _: int) -> str:
        said = distinct(messages)
        return said.replace("[[1]]", "[[?]]") if "p1" in messages[-1]["content"] else said

    with serve(script) as server:
        values = run(monkeypatch, tmp_path / "o", **files, judge_url=server.url, judge_name="x")
    assert values == pytest.approx({"unknown": 1 / 9, "logical": 1.5, "content": 1, "surface": 4.5})
    assert "judged by scripted-judge-1; 1 of 3 prompts left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "n", "message"),
    [
        ((3, 2), None, "2 to 3 completions of a problem, and more can differ more; pass --n 2"),
        ((3, 2), 3, "and --n of them; got 2 of one and --n 3"),
        ((1, 1), None, "expected 2 or more completions of each problem"),
        ((3, 3), 1, "expected 2 or more completions of each problem"),
        ((3, 3), 0, "expected 2 or more completions of each problem"),
    ],
)
def test_sets_that_cannot_be_compared(tmp_path, counts, n, message):
    rows = [{"index": i, "completions": ["a"] * count} for i, count in enumerate(counts)]
    with pytest.raises(ValueError, match=message):
        read_sets(Path(write_jsonl(tmp_path / "s.jsonl", rows)), [{}] * 2, n)


def test_sets_are_the_first_completions(tmp_path):
    rows = [{"index": i, "completions": list("abcd")[: i + 2]} for i in range(3)]
    path = Path(write_jsonl(tmp_path / "s.jsonl", rows))
    assert read_sets(path, [{}] * 3, 2) == [["a", "b"]] * 3
    assert read_sets(path, [{}], None) == [["a", "b"]]
