"""eval/win_rate.py: every number by hand, judges with a bias, Arena-Hard's real answers.

Judgements are written here or come from a scripted endpoint on loopback.
python -m pytest tests/test_win_rate.py
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data.rows import read_rows
from eval import results, win_rate
from eval.metrics import basic_interval
from eval.results import json_digest, summarize
from eval.win_rate import (
    CRITERIA,
    OPENING,
    OWN_ANSWER,
    VERDICTS,
    ask_both_ways,
    instructions,
    metric_values,
    read_answers,
    read_verdict,
    score_prompt,
)
from tests.judge_server import serve

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def plain(monkeypatch) -> None:
    """No proxy on the way, no key, and few resamples: intervals are tests/test_metrics.py's."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(results, "basic_interval", partial(basic_interval, resamples=10))


def write_jsonl(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_answers(path: Path, answers: Sequence[str]) -> str:
    return write_jsonl(path, [{"index": i, "completions": [a]} for i, a in enumerate(answers)])


def rows_of(path: Path) -> list[dict]:
    return [row for _, row in read_rows(path)]


def run(monkeypatch, out: Path, **flags: str) -> dict[str, float]:
    """The command in this process; out: the value of each metric."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["win_rate.py", "--out", str(out), *words])
    win_rate.main()
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    return {name: row["value"] for name, row in metrics.items()}


def answers_of(messages: Sequence[dict]) -> tuple[str, str]:
    """What assistants A and B say in a question."""
    pattern = (
        r"<\|The Start of Assistant A's Answer\|>\n(.*)\n<\|The End of Assistant A's Answer\|>\n\n"
        r"<\|The Start of Assistant B's Answer\|>\n(.*)\n<\|The End of Assistant B's Answer\|>"
    )
    return re.search(pattern, messages[-1]["content"], re.DOTALL).groups()


def longer_wins(messages: Sequence[dict], _: int = 0) -> str:
    a, b = (len(answer.encode()) for answer in answers_of(messages))
    return f"The longer is better. [[{'A>B' if a > b else 'B>>A' if b > a else 'A=B'}]]"


# ------------------------------------------------------------------------------------------------
# verdicts


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is tie: [[A=B]].", "A=B"),
        ("[[A>>B]]", "A>>B"),
        ("[[a>b]]", "A>B"),
        ("first [[A>B]], no: [[B>A]]", "B>A"),
        ("[[B>>A]] and then words", "B>>A"),
        ("[[[B>A]]]", "B>A"),
        ("[[A<B]]", "B>A"),
        ("[[A<<B]]", "B>>A"),
        ("[[B=A]]", "A=B"),
        ("[[B<A]]", "A>B"),
        ("[[B<<A]]", "A>>B"),
        ("", None),
        ("[A>B]", "A>B"),
        ("[A>B], [B>A]", "B>A"),
        ("[[A=B]], not [A>B]", "A=B"),  # single brackets count where there are no double ones
        ("A>B", None),
        ("[[A]]", None),
        ("[[C]]", None),
        ("[[A>>>B]]", None),
        ("[[A>=B]]", None),
        ("[[==]]", None),
        ("[[ A>B ]]", None),
        ("[[A>B]] or rather [[A]]", None),
    ],
)
def test_verdicts(text, verdict):
    assert read_verdict(text) == verdict


def test_the_policy_is_b_and_then_a():
    """It wins both games, the first by far; as a tie, and where B wins twice, it wins one."""
    item = score_prompt(["[[B>>A]]", "[[A>B]]"], "# x", "y")
    assert item == {
        "verdicts": ["B>>A", "A>B"],
        "known": True,
        "outcomes": [1.0, 1.0],
        "policy": {"bytes": 3, "headers": 1, "lists": 0, "bold": 0},
        "opponent": {"bytes": 1, "headers": 0, "lists": 0, "bold": 0},
    }
    assert score_prompt(["[[A=B]]", "[[A=B]]"], "", "")["outcomes"] == [0.5, 0.5]
    assert score_prompt(["[[B>A]]", "[[B>A]]"], "", "")["outcomes"] == [1.0, 0.0]
    unknown = score_prompt(["[[B>A]]", "none"], "", "")
    assert (unknown["known"], unknown["outcomes"]) == (False, None)


def test_both_games_of_a_prompt():
    first, second = ask_both_ways("Why {a}?", "Judge.", "ours {b}", "theirs")
    assert first[0] == second[0] == {"role": "system", "content": "Judge."}
    assert first[1]["content"] == (
        "<|User Prompt|>\nWhy {a}?\n\n"
        "<|The Start of Assistant A's Answer|>\ntheirs\n<|The End of Assistant A's Answer|>\n\n"
        "<|The Start of Assistant B's Answer|>\nours {b}\n<|The End of Assistant B's Answer|>"
    )
    assert answers_of(second) == ("ours {b}", "theirs")


def test_instructions_name_the_five_verdicts():
    system = instructions({"category": "hard_prompt"}, None)
    assert set(re.findall(r"\[\[(.*?)\]\]", system)) == set(VERDICTS)
    assert system == OPENING + OWN_ANSWER + CRITERIA
    assert instructions({"category": "creative_writing"}, None) == OPENING + CRITERIA
    assert instructions({"category": "creative_writing"}, "mine") == "mine"


# ------------------------------------------------------------------------------------------------
# numbers


def items_of(*verdicts: tuple[str, str], answers: Sequence[tuple[str, str]] = ()) -> list[dict]:
    answers = answers or [("ours", "theirs")] * len(verdicts)
    return [
        {"index": i, "category": "ab"[i % 2]}
        | score_prompt([f"[[{label}]]" for label in pair], *answers[i])
        for i, pair in enumerate(verdicts)
    ]


def values_of(items: Sequence[dict], left_out: Sequence[int] = ()) -> dict[str, float]:
    summary = summarize(metric_values(items, frozenset(left_out)))
    return {name: row["value"] for name, row in summary.items()}


def test_metrics_by_hand():
    """Outcomes 1, 1; 0, 1; 1/2, 0; and one verdict of the last prompt is unknown.

    Win rates 1, 1/2 and 1/4. The first game counts three times: (3 + 1 + 0 + 1 + 1/2 + 0) / 8.
    What A gets: 0, 1; 1, 1; 1/2, 0. Bradley-Terry: (7/4 + 1/2) / (5/4 + 1/2) = 9/7.
    """
    items = items_of(("B>>A", "A>B"), ("A>B", "A>B"), ("A=B", "B>A"), ("A>B", "?"))
    values = values_of(items, left_out=[3])
    expected = {
        "unknown": 1 / 8,
        "win_rate": 7 / 12,
        "win_rate_arena_hard": 5.5 / 8,
        "bradley_terry": math.log(9 / 7),
        "win": 3 / 6,
        "tie": 1 / 6,
        "loss": 2 / 6,
        "position_consistency": 1 / 3,
        "first_position": (1 / 2 + 1 + 1 / 4) / 3,
        "longer": 0,
        "bytes/policy": 4,
        "bytes/opponent": 6,
        "win_rate/a": (1 + 1 / 4) / 2,
        "win_rate/b": 1 / 2,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_a_single_category_is_not_reported_apart():
    assert not any(name.startswith("win_rate/") for name in values_of(items_of(("B>A", "A>B"))))


def test_weights_are_those_of_arena_hard():
    """Its rows, a game with >> three times, and their mean, on all 25 pairs of verdicts."""
    pairs = [(first, second) for first in VERDICTS for second in VERDICTS]
    rows = []
    for first, second in pairs:
        rows += [1 - VERDICTS[first]] * (3 if ">>" in first else 1)
        rows += [VERDICTS[second]] * (3 if ">>" in second else 1)
    values = values_of(items_of(*pairs[7:]))
    skipped = sum(3 if ">>" in label else 1 for pair in pairs[:7] for label in pair)
    assert values["win_rate_arena_hard"] == pytest.approx(np.mean(rows[skipped:]))
    assert values["win_rate_arena_hard"] != pytest.approx(values["win_rate"], abs=1e-3)


def test_the_policy_against_itself_with_sides_exchanged():
    """Every rate and its mirror image sum to 1, the log-odds to 0."""
    answers = [("a" * n, "b" * m) for n, m in ((5, 3), (2, 9), (4, 4), (8, 7), (1, 6))]
    verdicts = [("B>A", "A>>B"), ("A>B", "B>A"), ("A=B", "A>B"), ("B>A", "B>A"), ("A>B", "A>B")]
    values = values_of(items_of(*verdicts, answers=answers))
    mirrored = [(second, first) for first, second in verdicts]
    other = values_of(items_of(*mirrored, answers=[(b, a) for a, b in answers]))
    for name in ("win_rate", "win_rate_arena_hard", "longer"):
        assert values[name] + other[name] == pytest.approx(1)
    for name in ("win_rate_length_controlled", "win_rate_style_controlled"):
        assert values[name] + other[name] == pytest.approx(1, abs=1e-6)
    assert values["bradley_terry"] == pytest.approx(-other["bradley_terry"])
    for name in ("position_consistency", "first_position", "tie"):
        assert values[name] == pytest.approx(other[name])


def two_groups(pairs: Sequence[tuple[str, str]]) -> list[dict]:
    """The first pair of answers 12 times, winning 9; the second 4 times, winning 1."""
    verdicts = [("B>A", "A>B")] * 9 + [("A>B", "B>A")] * 3 + [("B>A", "A>B")] + [("A>B", "B>A")] * 3
    return items_of(*verdicts, answers=[pairs[0]] * 12 + [pairs[1]] * 4)


def test_a_leaning_to_the_longer_answer_is_taken_out():
    """Longer wins 9 of 12, shorter 1 of 4: a win rate of 10/16 that is the length's alone.

    Odds 9.5/3.5 at a difference of 1/3 and 1.5/3.5 at -1/3, so at zero their geometric mean.
    """
    values = values_of(two_groups([("aa", "b"), ("a", "bb")]))
    odds = math.sqrt(9.5 / 3.5 * 1.5 / 3.5)
    assert values["win_rate"] == 10 / 16 and values["longer"] == 12 / 16
    assert values["win_rate_length_controlled"] == pytest.approx(odds / (1 + odds), abs=1e-8)
    assert values["win_rate_length_controlled"] == pytest.approx(0.519, abs=1e-3)


def test_a_leaning_to_bold_is_taken_out_by_style_and_not_by_length():
    """The same games with answers of 6 bytes each: length explains nothing, bold all of it."""
    values = values_of(two_groups([("**aa**", "bbbbbb"), ("aaaaaa", "**bb**")]))
    odds = math.sqrt(9.5 / 3.5 * 1.5 / 3.5)
    assert values["win_rate_length_controlled"] == pytest.approx(10.5 / 17, abs=1e-8)
    assert values["win_rate_style_controlled"] == pytest.approx(odds / (1 + odds), abs=1e-8)
    assert values["bold/policy"] == 12 / 16 and values["bold/opponent"] == 4 / 16


def test_no_length_can_be_taken_out_where_the_policy_is_always_longer():
    """Four wins at a difference of 1/2: log-odds log(9) = (1 + 1/4) x intercept. `longer` is 1."""
    values = values_of(items_of(*[("B>A", "A>B")] * 4, answers=[("aaa", "b")] * 4))
    assert values["win_rate"] == values["longer"] == 1
    odds = 9 ** (1 / 1.25)
    assert values["win_rate_length_controlled"] == pytest.approx(odds / (1 + odds), abs=1e-8)


# ------------------------------------------------------------------------------------------------
# the command


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Five prompts; the policy's answers are longer four times."""
    rows = [{"uid": f"u{i}", "prompt": f"p{i}"} for i in range(5)]
    return {
        "data": write_jsonl(tmp_path / "data.jsonl", rows),
        "samples": write_answers(tmp_path / "ours.jsonl", ["aaa" * (i + 1) for i in range(5)]),
        "baseline_answers": write_answers(tmp_path / "theirs.jsonl", ["b" * 4] * 5),
    }


def judged(monkeypatch, out: Path, files: dict[str, str], script: Callable, **flags) -> dict:
    with serve(script) as server:
        endpoint = {"judge_url": server.url, "judge_name": "x"}
        return run(monkeypatch, out, **files, **endpoint, **flags)


def test_a_judge_that_looks_at_the_position_alone(monkeypatch, tmp_path, files):
    """Always [[A>B]]: a win and a loss for everyone, which is no win; the bias shows."""
    values = judged(monkeypatch, tmp_path / "out", files, lambda *_: "So: [[A>B]]")
    assert values["position_consistency"] == 0 and values["first_position"] == 1
    for name in ("win_rate", "win_rate_arena_hard", "win", "loss"):
        assert values[name] == 1 / 2
    for name in ("win_rate_length_controlled", "win_rate_style_controlled"):
        assert values[name] == pytest.approx(1 / 2, abs=1e-9)
    assert values["bradley_terry"] == values["tie"] == values["unknown"] == 0


def test_a_judge_that_prefers_the_longer_answer(monkeypatch, tmp_path, files):
    """3 bytes against 4 lose, 6 to 15 win; the win is by far ([[B>>A]]) where the longer is B."""
    values = judged(monkeypatch, tmp_path / "out", files, longer_wins)
    assert values["win_rate"] == values["longer"] == 4 / 5
    assert values["win_rate_arena_hard"] == (4 * 3 + 4) / (5 * 4)
    assert values["position_consistency"] == 1 and values["first_position"] == 1 / 2
    assert abs(values["win_rate_length_controlled"] - 1 / 2) < 4 / 5 - 1 / 2


def test_a_judge_that_says_nothing_of_use(monkeypatch, tmp_path, files, capsys):
    """It is counted, and nothing else is reported."""
    values = judged(monkeypatch, tmp_path / "out", files, lambda *_: "Both are [[fine]]")
    assert values == {"unknown": 1}
    assert "5 of 5 prompts left out" in capsys.readouterr().out


def test_malformed_verdicts_leave_their_prompt_out(monkeypatch, tmp_path, files):
    """The second prompt, of which one game has a verdict, is left out whole; 2 of 10 unknown."""

    def script(messages: list[dict], _: int) -> str:
        prompt, first = messages[-1]["content"].split()[2], answers_of(messages)[0] == "bbbb"
        wrong = {("p1", True): "[[A>B]] [[A]]", ("p2", False): "[[?]]"}
        return wrong.get((prompt, first)) or longer_wins(messages)

    values = judged(monkeypatch, tmp_path / "out", files, script)
    assert values["unknown"] == pytest.approx(2 / 10) and values["win_rate"] == pytest.approx(2 / 3)
    items = rows_of(tmp_path / "out" / "items.jsonl")
    assert [item["known"] for item in items] == [True, False, False, True, True]
    assert [item["uid"] for item in items] == [f"u{i}" for i in range(5)]


def test_a_later_completion_plays_against_the_baseline_s_first(monkeypatch, tmp_path):
    rows = [{"index": 0, "completions": ["a", "bb"]}]
    flags = {
        "data": write_jsonl(tmp_path / "q.jsonl", [{"prompt": "p"}]),
        "samples": write_jsonl(tmp_path / "ours.jsonl", rows),
        "baseline_answers": write_answers(tmp_path / "theirs.jsonl", ["ccc"]),
        "judgements": write_jsonl(
            tmp_path / "said.jsonl", [{"index": i, "text": "[[A=B]]"} for i in (0, 1)]
        ),
    }
    values = run(monkeypatch, tmp_path / "out", completion="1", **flags)
    assert (values["bytes/policy"], values["bytes/opponent"]) == (2, 3)


def test_settings_say_what_was_judged_and_by_whom(monkeypatch, tmp_path, files):
    prompt = tmp_path / "judge.txt"
    prompt.write_text("Mine. [[A>B]]")
    judged(monkeypatch, tmp_path / "out", files, longer_wins, judge_prompt=prompt)
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert settings["judges"] == ["scripted-judge-1"] and settings["left_out"] == 0
    assert settings["baseline_answers_sha256"] == json_digest(["bbbb"] * 5)
    assert settings["instructions_sha256"] == json_digest(["Mine. [[A>B]]"] * 5)
    rows = rows_of(tmp_path / "out" / "questions.jsonl")
    assert {row["messages"][0]["content"] for row in rows} == {"Mine. [[A>B]]"} and len(rows) == 10


def test_differences_from_another_policy(monkeypatch, tmp_path, files):
    """The other one's answers are shorter than all others: 4/5 less 0, and from a file again."""
    other = files | {"samples": write_answers(tmp_path / "other.jsonl", ["a"] * 5)}
    judged(monkeypatch, tmp_path / "other", other, longer_wins)
    baseline = {"baseline": tmp_path / "other"}
    values = judged(monkeypatch, tmp_path / "out", files, longer_wins, **baseline)
    assert values["win_rate - baseline"] == values["win_rate_arena_hard - baseline"] == 4 / 5
    judgements = tmp_path / "out" / "judgements.jsonl"
    again = run(monkeypatch, tmp_path / "again", **files, **baseline, judgements=judgements)
    assert again == values
    rows = [row | {"text": "none"} if row["index"] == 3 else row for row in rows_of(judgements)]
    without = write_jsonl(tmp_path / "without.jsonl", rows)  # the second prompt, 6 bytes, won
    run(monkeypatch, tmp_path / "fewer", **files, judgements=without)
    baseline = {"baseline": tmp_path / "fewer"}
    values = run(monkeypatch, tmp_path / "more", **files, **baseline, judgements=judgements)
    assert (values["win_rate"], values["win_rate - baseline"]) == (3 / 4, 0)
    assert values["unknown - baseline"] == pytest.approx(-1 / 10)
    with pytest.raises(ValueError, match="of another question than is asked here"):
        run(monkeypatch, tmp_path / "wrong", **other, judgements=judgements)


# ------------------------------------------------------------------------------------------------
# answers


def arena_hard_row(uid: str, answer: object) -> dict:
    return {"uid": uid, "messages": [{"role": "user", "content": "p"}, {"content": answer}]}


def test_answers_in_both_forms(tmp_path):
    problems = [{"uid": "x"}, {"uid": "y"}]
    rows = [{"index": 1, "completions": ["c", "d"]}, {"index": 0, "completions": ["a", "b"]}]
    samples = Path(write_jsonl(tmp_path / "samples.jsonl", rows))
    assert read_answers(samples, "samples", problems, 0) == ["a", "c"]
    assert read_answers(samples, "samples", problems, 1) == ["b", "d"]
    rows = [arena_hard_row(*row) for row in (("z", "0"), ("y", {"answer": "2"}), ("x", "1"))]
    arena_hard = Path(write_jsonl(tmp_path / "answers.jsonl", rows))
    assert read_answers(arena_hard, "samples", problems, 0) == ["1", "2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"index": 0, "completions": ["a"]}], "no completions for 1 of 2 problems"),
        ([{"index": i, "completions": ["a"]} for i in (0, 1)], "expected more than 1 completions"),
        ([arena_hard_row("x", "a")], "no answer to 1 of 2 problems, the first is 1 with uid 'y'"),
        ([arena_hard_row("x", 3)], ":1: --samples expects `index` and `completions`, or `uid`"),
        ([{"uid": "x", "messages": []}], r"got \['messages', 'uid'\]"),
        ([arena_hard_row("x", {"answer": None})], ":1: answer: expected a text, got null"),
        ([arena_hard_row(3, "a")], ":1: uid: expected a text, got a number"),
        ([arena_hard_row("x", "a"), arena_hard_row("x", "b")], ":2: expected a uid not yet seen"),
        ([], "no answer to 2 of 2 problems"),
        (
            [{"index": i, "prompt": "qp"[i], "completions": ["a"] * 2} for i in (0, 1)],
            ":1: expected a completion of problem 0, 'p', got one of 'q'",
        ),
    ],
)
def test_answers_that_do_not_fit(tmp_path, rows, message):
    path = Path(write_jsonl(tmp_path / "answers.jsonl", rows))
    with pytest.raises(ValueError, match=message):
        read_answers(path, "samples", [{"uid": uid, "prompt": "p"} for uid in "xy"], 1)


def test_arena_hard_answers_with_a_judge_of_length(monkeypatch, tmp_path, shared_data):
    """gpt-3.5-turbo-0125 against gpt-4-0314 on the first 60 prompts: who is longer is known."""
    folder = shared_data / "arena_hard" / "arena-hard-v0.1"
    answers = {
        name: {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows_of(path)}
        for name in ("gpt-3.5-turbo-0125", "gpt-4-0314")
        for path in [folder / "model_answer" / f"{name}.jsonl.gz"]
    }
    uids = [row["uid"] for row in rows_of(folder / "question.jsonl")][:60]
    lengths = [[len(answers[name][uid].encode()) for name in answers] for uid in uids]
    longer = np.mean([ours > theirs for ours, theirs in lengths])
    paths = [folder / "model_answer" / f"{name}.jsonl.gz" for name in answers]
    flags = {"data": folder / "question.jsonl", "samples": paths[0], "baseline_answers": paths[1]}
    values = judged(monkeypatch, tmp_path, flags, longer_wins, limit=60)
    assert values["win_rate"] == values["longer"] == pytest.approx(longer)
    assert values["position_consistency"] == 1 and values["unknown"] == 0
    assert abs(values["win_rate_length_controlled"] - 1 / 2) < 1 / 2 - longer
    means = np.mean(lengths, axis=0)
    assert [values["bytes/policy"], values["bytes/opponent"]] == pytest.approx(means)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline_answers": "no/file"}, "error: --baseline_answers expects a file, got no/file"),
        ({"completion": "-1"}, "error: --completion expects 0 or more, got -1"),
        ({"judge_promt": "x"}, "unknown flag --judge_promt (did you mean --judge_prompt?)"),
        ({}, "got no judge; what it would be asked is in"),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, files, changes, message):
    flags = files | {"out": str(tmp_path / "out")} | changes
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "eval.win_rate", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
