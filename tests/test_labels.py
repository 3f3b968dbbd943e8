"""data/labels.py: labels say what the checker and the coin said, by hand and by counts of coins.

python -m pytest tests/test_labels.py
"""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from data.labels import (
    check_opinion,
    label_by_coin,
    label_by_verdict,
    main,
    read_opinions,
    reward,
)
from data.synthetic import OPINIONS, opinion_rows, problem_rows
from tests.conftest import read_jsonl

PROBLEM = {"prompt": "3 and 4?", "answer": 7}
RIGHT, OTHER = "3 + 4 = 7\n#### 7", "4 + 3 = 7\n#### 7"
WRONG, FALSE = "3 + 4 = 8\n#### 8", "3 + 5 = 7\n#### 7"
TRUE = "3 + 5 = 8\n#### 8"  # though wrong


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---------------------------------------------------------------------------------------------
# pairs of solutions
# ---------------------------------------------------------------------------------------------


def test_right_and_true_beats_all_others() -> None:
    """2 good and 2 bad samples, one of them twice: 4 pairs, the right answer got falsely is bad."""
    samples = [RIGHT, WRONG, RIGHT, OTHER, FALSE, ""]
    pairs = label_by_verdict(PROBLEM, samples, random.Random(0), 10)
    assert {(p["chosen"], p["rejected"]) for p in pairs} == {
        (good, bad) for good in (RIGHT, OTHER) for bad in (WRONG, FALSE)
    }
    assert len(pairs) == 4
    assert len(label_by_verdict(PROBLEM, samples, random.Random(0), 3)) == 3
    assert label_by_verdict(PROBLEM, [RIGHT, OTHER], random.Random(0), 3) == []


def test_reward_by_hand() -> None:
    """Two lines cost 0.2: 1 + 0.5 - 0.2, -0.2, 1 - 0.2, 0.5 - 0.2; three lines 0.3."""
    texts = (RIGHT, WRONG, FALSE, TRUE, "3 + 4 = 7\n7 + 0 = 7\n#### 7")
    assert [reward(PROBLEM, text) for text in texts] == pytest.approx([1.3, -0.2, 0.8, 0.3, 1.2])


@pytest.mark.parametrize(
    ("scale", "share"), [(1.0, 0.817574), (2.0, 0.952574), (0.0, 0.5), (1e6, 1.0)]
)
def test_the_coin_has_the_probability_of_bradley_and_terry(scale: float, share: float) -> None:
    """RIGHT over WRONG: 1/(1 + exp(-1.5)), 1/(1 + exp(-3)), 1/2, 1; within 4 standard errors."""
    rng, N = random.Random(1), 4000
    rows = [label_by_coin(PROBLEM, [WRONG, RIGHT], rng, 1, scale)[0] for _ in range(N)]
    wins = sum(row["chosen"] == RIGHT for row in rows) / N
    assert all({row["chosen"], row["rejected"]} == {RIGHT, WRONG} for row in rows)
    assert abs(wins - share) <= 4 * (share * (1 - share) / N) ** 0.5


def test_all_kinds_of_pairs_are_drawn_equally_often() -> None:
    """Right-right, wrong-wrong, mixed: 6 pairs of 4 texts, 1000 draws each, sigma 29."""
    rng, counts = random.Random(2), Counter()
    for _ in range(6000):
        (row,) = label_by_coin(PROBLEM, [RIGHT, OTHER, RIGHT, WRONG, FALSE, " "], rng, 1, 1.0)
        counts[frozenset((row["chosen"], row["rejected"]))] += 1
    assert len(counts) == 6 and all(abs(count - 1000) < 4 * 29 for count in counts.values())


def test_no_pair_of_a_population_comes_twice() -> None:
    rows = label_by_coin(PROBLEM, [RIGHT, OTHER, WRONG, WRONG], random.Random(0), 10, 1.0)
    assert len({frozenset((row["chosen"], row["rejected"])) for row in rows}) == len(rows) == 3
    assert label_by_coin(PROBLEM, [RIGHT, RIGHT, ""], random.Random(0), 10, 1.0) == []


# ---------------------------------------------------------------------------------------------
# the command
# ---------------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> list[str]:
    """40 problems, each with its own solution and those of the two before; 12 opinions."""
    problems = problem_rows(40, "problems", 7)
    texts = [row["completion"] for row in problems]
    samples = [
        {"index": i, "completions": [texts[i], texts[i - 1], texts[i - 2], texts[i], ""]}
        for i in range(40)
    ]
    return [
        "--problems", write_jsonl(folder / "problems.jsonl", problems),
        "--samples", write_jsonl(folder / "samples.jsonl", samples),
        "--opinions", write_jsonl(folder / "opinions.jsonl", opinion_rows(400, 7)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("votes", "digest"),
    [
        ([], "030a48c05a9543783216d7fa22851a5a282f29b7eb88066727e48d2aefd0b807"),
        (["--votes", "20"], "bc6ae74d2508c1303ec7b9bd8907583ab5b91db3d7a8eac8ba84424168787a69"),
    ],
)
def test_pairs_by_verdict_are_pinned(votes: list[str], digest: str, tmp_path: Path) -> None:
    """The bytes that data/tiny's pairs were made with: 80 of solutions and those of opinion."""
    out = tmp_path / "out.jsonl"
    inputs = make_inputs(tmp_path)
    main(["--process", "verdict", *inputs, "--pairs", "2", "--out", str(out), *votes])
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("process", ["verdict", "population"])
def test_pairs_of_opinion_are_the_votes(process: str, tmp_path: Path) -> None:
    inputs, out = make_inputs(tmp_path), tmp_path / "out.jsonl"
    main(["--process", process, *inputs, "--out", str(out), "--pairs", "2"])
    pairs = read_jsonl(out)
    counts = Counter((row["prompt"], row["chosen"], row["rejected"]) for row in pairs)
    for row in read_jsonl(tmp_path / "opinions.jsonl"):
        first, second = row["answers"]
        assert counts[row["prompt"], first, second] == row["first_preferred"]
        assert counts[row["prompt"], second, first] == row["labels"] - row["first_preferred"]
    assert len(pairs) == 2 * 40 + 400 * len(OPINIONS)
    again = tmp_path / "again.jsonl"
    main(["--process", process, *inputs, "--out", str(again), "--pairs", "2", "--votes", "20"])
    assert len(read_jsonl(again)) == 2 * 40 + 20 * len(OPINIONS)


def test_completions_that_were_cut_make_no_pair(tmp_path: Path) -> None:
    """Of a right and two wrong completions one is cut: one pair is left, and of a second problem,
    both of whose wrong ones are cut, none."""
    problems = write_jsonl(tmp_path / "p.jsonl", [PROBLEM, {**PROBLEM, "prompt": "4 and 3?"}])
    texts = [RIGHT, WRONG, "3 + 4 = 8\n3 + 4 ="]
    reasons = [["stop", "stop", "length"], ["stop", "length", "length"]]
    samples = [{"index": i, "completions": texts, "finish_reasons": reasons[i]} for i in (0, 1)]
    command = ["--process", "verdict", "--problems", problems, "--out", str(tmp_path / "o.jsonl")]
    main([*command, "--samples", write_jsonl(tmp_path / "s.jsonl", samples)])
    assert read_jsonl(tmp_path / "o.jsonl") == [
        {"prompt": PROBLEM["prompt"], "chosen": RIGHT, "rejected": WRONG}
    ]


def test_samples_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    inputs = make_inputs(tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        main(["--process", "verdict", *inputs, "--out", str(tmp_path / "samples.jsonl")])
    assert "would overwrite" in capsys.readouterr().err
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_same_seed_same_coins_other_seed_other_coins(tmp_path: Path) -> None:
    inputs, found = make_inputs(tmp_path), []
    for seed in ("0", "0", "1"):
        out = tmp_path / "out.jsonl"
        main(["--process", "population", *inputs, "--seed", seed, "--out", str(out)])
        found.append(out.read_bytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("samples", "flags", "message"),
    [
        ('{"index": 5, "completions": ["x"]}\n', "verdict", "s:1: expected an index below 1"),
        ('{"index": 0, "completions": ["x"]}\n', "verdict", "no problem has samples that make a"),
        ('{"index": 0, "completions": ["x"]}\n', "population", "no problem has samples that make"),
        ('{"index": 0, "completions"\n', "verdict", "s:1: not JSON"),
        ("[]\n", "verdict", "s:1: expected an object {...}, got a list"),
        ("", "verdict --scale 2", "--scale has no meaning for --process verdict"),
        ("", "population --scale -1", "--scale expects a finite number, 0 or more, got -1.0"),
        ("", "population --scale nan", "--scale expects a finite number, 0 or more, got nan"),
        ("", "population --pairs 0", "--pairs and --votes expect 1 or more"),
        ("", "population --votes 5", "--votes counts labels of --opinions, which is not given"),
        ('\n\n{"index": 5, "completions": ["x"]}\n', "verdict", "s:3: expected an index below 1"),
    ],
)
def test_wrong_input_ends_with_one_message(
    samples: str, flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    problems, out = write_jsonl(tmp_path / "p", [PROBLEM]), str(tmp_path / "out")
    (tmp_path / "s").write_text(samples)
    command = ["--problems", problems, "--samples", str(tmp_path / "s"), "--out", out]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--process", *flags.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_opinion_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    """Blank lines count."""
    rows = opinion_rows(10, 0)[:2]
    texts = [json.dumps(row) for row in (rows[0], {**rows[1], "first_preferred": 11})]
    (tmp_path / "o").write_text("\n".join(["", texts[0], "", texts[1]]))
    with pytest.raises(ValueError, match="o:4: expected 0 <= first_preferred <= labels"):
        read_opinions(tmp_path / "o")


def test_a_question_of_opinion_has_a_million_labels_at_most() -> None:
    row = {"prompt": "?", "answers": ["a", "b"], "labels": 10**6, "first_preferred": 10**6}
    assert check_opinion(row, "o:1") == row
    with pytest.raises(ValueError, match="labels <= 1000000, got 1000000 and 1000001"):
        check_opinion({**row, "labels": 10**6 + 1}, "o:1")


def test_a_scale_of_zero_leaves_fair_coins(tmp_path: Path) -> None:
    inputs, out = make_inputs(tmp_path), tmp_path / "out.jsonl"
    command = ["--process", "population", *inputs[:4], "--scale", "0", "--pairs", "2"]
    main([*command, "--out", str(out)])
    assert len(read_jsonl(out)) == 2 * 40


def test_the_folder_of_the_pairs_is_made(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    main(["--process", "verdict", *make_inputs(tmp_path), "--out", str(out)])
    assert len(read_jsonl(out)) > 400
