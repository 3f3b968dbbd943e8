r"""eval/gsm8k.py: metrics and splits worked by hand, prompts written out, recorded solutions.

python -m pytest tests/test_gsm8k.py

The recorded solutions of GSM8K and the targets of GSM-Hard are scored as a user would score them;
no model is loaded.
"""

import gzip
import hashlib
import json
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from eval import gsm8k
from eval.exemplars import build_prompt, read_exemplars
from eval.gsm8k import TEMPLATES, check_row, difficulty

PROBLEMS = [{"question": f"Problem {i}?", "answer": f"So.\n#### {n}"} for i, n in enumerate("787")]
COMPLETIONS = [
    ["#### 7", "The answer is 7.", "2 * 4 = 8\n#### 8", "I do not know."],
    ["#### 8", "####  8", "#### 7", "#### 9"],
    ["#### 9"] * 4,
]
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_samples(path: Path, completions: list[list[str]]) -> str:
    return write_jsonl(path, [{"index": i, "completions": t} for i, t in enumerate(completions)])


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with these flags; out: its metrics by name, and its items."""

    def run(*flags: str, out: str = "out") -> tuple[dict[str, float], list[dict]]:
        argv = ["gsm8k", *flags, "--out", str(tmp_path / out)]
        monkeypatch.setattr(sys, "argv", argv)
        gsm8k.main()
        if not (tmp_path / out).exists():
            return {}, []
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        assert summary["task"] == "gsm8k"
        lines = (tmp_path / out / "items.jsonl").read_text().splitlines()
        values = {name: metric["value"] for name, metric in summary["metrics"].items()}
        return values, [json.loads(line) for line in lines]

    return run


def test_metrics_by_hand(run, tmp_path: Path) -> None:
    """Flexible verdicts: 2, 2, 0 of 4 are right; strict, behind ####: 1, 2, 0.

    pass@2: 1 - C(2,2)/C(4,2) = 5/6 for two right ones, 1 - C(3,2)/C(4,2) = 1/2 for one.
    Floors: of problem 0 (truths of the others 8, 7) the hits are 1 and 2 of 4; of problem 1
    (7, 7) 1 and 1; of problem 2 (7, 8) none. k = 1: (1/4 + 2/4)/2, 1/4, 0. k = 2: (1/2 + 5/6)/2,
    1/2, 0. Votes: 7 by 2 to 1, 8 by 2 to 1 and 1, 9. The two "#### 8" are one solution.
    """
    data = write_jsonl(tmp_path / "data.jsonl", PROBLEMS)
    samples = write_samples(tmp_path / "samples.jsonl", COMPLETIONS)
    values, items = run("--data", data, "--samples", samples)
    assert values == pytest.approx(
        {
            "pass@1": 4 / 12,
            "pass@2": (5 / 6 + 5 / 6) / 3,
            "pass@4": 2 / 3,
            "floor@1": (3 / 8 + 1 / 4) / 3,
            "floor@2": (2 / 3 + 1 / 2) / 3,
            "floor@4": 2 / 3,
            "strict@1": 3 / 12,
            "strict@2": (1 / 2 + 5 / 6) / 3,
            "strict@4": 2 / 3,
            "majority@4": 2 / 3,
            "no_answer": 1 / 12,
            "no_strict_answer": 2 / 12,
            "distinct": (4 + 3 + 1) / 12,
        }
    )
    assert items[0] == {
        "index": 0,
        "answer": "7",
        "tolerance": "0",
        "answers": ["7", "7", "8", None],
        "rules": ["####", "answer", "####", None],
        "correct": [True, True, False, False],
        "strict_answers": ["7", None, "8", None],
        "strict_correct": [True, False, False, False],
        "distinct": 4,
        "first_sha256": hashlib.sha256(b"#### 7").hexdigest(),
    }


def test_one_problem_has_no_floor(run, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", PROBLEMS[:1])
    values, _ = run("--data", data, "--samples", write_samples(tmp_path / "s", COMPLETIONS[:1]))
    assert "pass@4" in values and not any(name.startswith("floor") for name in values)


@pytest.mark.parametrize(
    ("style", "text", "answer", "strict"),
    [
        ("cot", "So. The answer is 7.\n\nQ: another?\nA: The answer is 8.", "7", "7"),
        ("5shot", "So. The answer is 7.\n\nQ: another?\nA: The answer is 8.", "8", None),
        ("5shot", "#### 7\n\nQuestion: another?\nAnswer: #### 8", "7", "7"),
        ("chat", "Question: the first?\n#### 7\nQuestion: another?\n#### 8", "8", "8"),
    ],
)
def test_the_marker_and_the_stops_are_those_of_the_style(
    run, tmp_path: Path, style: str, text: str, answer: str, strict: str | None
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", PROBLEMS[:1])
    samples = write_samples(tmp_path / "samples.jsonl", [[text]])
    _, [item] = run("--data", data, "--samples", samples, "--prompt_style", style)
    assert (item["answers"], item["strict_answers"]) == ([answer], [strict])


# ---------------------------------------------------------------------------------------------
# prompts and rows
# ---------------------------------------------------------------------------------------------


def test_prompts_in_the_words_of_the_harness(shared_data) -> None:
    path = str(shared_data / "gsm8k" / "train.jsonl.gz")
    exemplars = read_exemplars(path, 5, (("question", "answer"),), set())
    prompt = build_prompt("How many?", exemplars, TEMPLATES["5shot"])
    assert prompt.startswith(
        "Question: Natalia sold clips to 48 of her friends in April, and then "
    )
    assert "\n#### 72\n\nQuestion: Weng earns $12 an hour" in prompt
    assert prompt.endswith("\n\nQuestion: How many?\nAnswer:")
    assert prompt.count("\nAnswer: ") == 5

    path = str(shared_data / "fewshot" / "gsm8k_cot_8shot.jsonl")
    exemplars = read_exemplars(path, 8, (("question", "target"),), set())
    prompt = build_prompt("How many?", exemplars, TEMPLATES["cot"])
    assert prompt.startswith("Q: There are 15 trees in the grove. Grove workers will plant trees ")
    assert "today?\nA: There are 15 trees originally. Then there were 21" in prompt
    assert "The answer is 6.\n\nQ: If there are 3 cars" in prompt
    assert prompt.endswith("\n\nQ: How many?\nA:")
    assert prompt.count("\nA: ") == prompt.count(" The answer is ") == 8


def test_exemplars_come_from_shots_and_not_from_the_problems(run, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", PROBLEMS)
    flags = ("--data", data, "--model", str(tmp_path), "--prompt_style", "5shot")
    with pytest.raises(ValueError, match="expects --shots, a file of 5 exemplars"):
        run(*flags)
    with pytest.raises(ValueError, match=r"data.jsonl:1: this exemplar is a problem of --data"):
        run(*flags, "--shots", data)
    with pytest.raises(ValueError, match="--prompt_style expects one of chat, 5shot, cot"):
        run("--data", data, "--model", str(tmp_path), "--prompt_style", "8shot")
    with pytest.raises(ValueError, match="--shots has no meaning with --prompt_style chat"):
        run("--data", data, "--model", str(tmp_path), "--shots", data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x"}, "here: answer: expected a text, got null"),
        ({"question": "x", "answer": "7"}, "here: answer: expected `#### number` at its end"),
        ({"answer": "#### 7"}, "here: question: expected a text"),
        ({"input": "x", "target": "7"}, "here: target: expected a number, got '7'"),
        ({"input": "x", "target": float("nan")}, "here: target: expected a number, got nan"),
        ({"target": 7.0}, "here: input: expected a text"),
    ],
)
def test_bad_rows_are_named(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_row(row, "here")


def test_gsm_hard_is_compared_within_its_authors_tolerance(run, tmp_path, shared_data) -> None:
    """The targets themselves are right, 0.0005 beside them too, 0.002 beside them not."""
    path = shared_data / "gsm8k" / "gsm_hard.jsonl"
    targets = [Fraction(str(json.loads(t)["target"])) for t in path.read_text().splitlines()]
    assert len(targets) == 664 and sum(t < 0 for t in targets) > 10
    offsets = (Fraction(0), Fraction(5, 10_000), Fraction(2, 1000))
    completions = [[f"#### {float(t + o):.7f}" for o in offsets] for t in targets]
    samples = write_samples(tmp_path / "samples.jsonl", completions)
    values, items = run("--data", str(path), "--samples", samples)
    assert {tuple(item["correct"]) for item in items} == {(True, True, False)}
    assert values["pass@1"] == values["strict@1"] == pytest.approx(2 / 3)
    # three answers, two of them right; of one target, 9e12, a float cannot hold 0.0005 more
    assert values["majority@3"] == pytest.approx((663 * 2 / 3 + 1) / 664)


def test_recorded_solutions_as_a_user_scores_them(run, tmp_path: Path, shared_data) -> None:
    """Four systems as four samples of 665 problems; the oracle is the recorded `is_correct`."""
    data = shared_data / "gsm8k" / "test.jsonl"
    index = {json.loads(t)["question"]: i for i, t in enumerate(data.read_text().splitlines())}
    with gzip.open(shared_data / "gsm8k" / "example_model_solutions.jsonl.gz", "rt") as file:
        rows = {index[row["question"]]: row for row in map(json.loads, file)}
    completions = [[rows[i][system]["solution"] for system in SYSTEMS] for i in range(len(rows))]
    samples = write_samples(tmp_path / "samples.jsonl", completions)
    values, items = run("--data", str(data), "--samples", samples)
    recorded = [[rows[i][system]["is_correct"] for system in SYSTEMS] for i in range(len(rows))]
    assert [item["correct"] for item in items] == recorded
    assert sum(not any(verdicts) for verdicts in recorded) == 231
    assert values["pass@1"] == pytest.approx(0.363158, abs=5e-7)
    assert values["pass@2"] == pytest.approx(0.511529, abs=5e-7)
    assert values["pass@4"] == pytest.approx(0.652632, abs=5e-7)
    assert values["no_answer"] == pytest.approx(3 / 2660)
    assert 0 < values["floor@1"] < 0.02 < values["pass@1"]


# ---------------------------------------------------------------------------------------------
# difficulty splits
# ---------------------------------------------------------------------------------------------


def test_difficulty_by_hand() -> None:
    labels = [difficulty(first) for first in (1, 4, 5, 64, 65, 128, None)]
    assert labels == ["easy", "easy", "medium", "medium", "hard", "hard", "hard"]


def with_first_right(place: int | None, n: int = 128) -> list[str]:
    return ["#### 7" if i == place or (place and i > place + 1) else "#### 8"
            for i in range(1, n + 1)]  # fmt: skip


@pytest.fixture
def split(run, tmp_path: Path) -> dict[str, str]:
    """Problems with answer 7 whose first right samples are 4, 5, 64, 65 and none; files of all."""
    rows = [{"question": f"{i}?", "answer": "#### 7"} for i in range(5)]
    files = {
        "data": write_jsonl(tmp_path / "data.jsonl", rows),
        "samples": write_samples(
            tmp_path / "base.jsonl", [with_first_right(p) for p in (4, 5, 64, 65, None)]
        ),
        "split": str(tmp_path / "splits" / "split.json"),
    }
    run("--data", files["data"], "--samples", files["samples"], "--write_split", files["split"])
    return files


def test_split_file_by_hand(split: dict[str, str]) -> None:
    content = json.loads(Path(split["split"]).read_text())
    rows = [(row["index"], row["first_correct"], row["label"]) for row in content["problems"]]
    assert rows == [
        (0, 4, "easy"),
        (1, 5, "medium"),
        (2, 64, "medium"),
        (3, 65, "hard"),
        (4, None, "hard"),
    ]
    assert len(content["data_sha256"]) == len(content["samples_sha256"]) == 64
    firsts = {row["first_sha256"] for row in content["problems"]}
    assert firsts == {hashlib.sha256(b"#### 8").hexdigest()}


def test_a_split_is_made_of_what_stands_before_the_stop(run, tmp_path: Path, split) -> None:
    """In the style cot the first of 64 is right; a recital of the next problem does not count."""
    recital = ["The answer is 7.\n\nQ: another?\nA: The answer is 8."] * 64
    samples = write_samples(tmp_path / "recital.jsonl", [recital] * 5)
    flags = ("--data", split["data"], "--samples", samples, "--prompt_style", "cot")
    run(*flags, "--write_split", str(tmp_path / "cot.json"))
    rows = json.loads((tmp_path / "cot.json").read_text())["problems"]
    assert {row["first_correct"] for row in rows} == {1}
    cut = write_samples(tmp_path / "cut.jsonl", [["The answer is 7.\n\n"]] * 5)
    for file in (samples, cut):  # as they were made, and as they would be drawn here
        own = ("--data", split["data"], "--samples", file, "--prompt_style", "cot")
        with pytest.raises(ValueError, match="--split was made from these completions"):
            run(*own, "--split", str(tmp_path / "cot.json"))


def test_metrics_of_each_difficulty_by_hand(run, tmp_path: Path, split) -> None:
    """Right of 2: 2, 1, 2, 0, 1 for easy, medium twice, hard twice."""
    right, wrong = "#### 7", "#### 8"
    pairs = [[right, right], [right, wrong], [right, right], [wrong, wrong], [wrong, right]]
    samples = write_samples(tmp_path / "other.jsonl", pairs)
    values, _ = run("--data", split["data"], "--samples", samples, "--split", split["split"])
    chosen = {name: value for name, value in values.items() if "/" in name}
    assert chosen == pytest.approx(
        {
            "share/easy": 1 / 5,
            "pass@1/easy": 1.0,
            "pass@2/easy": 1.0,
            "share/medium": 2 / 5,
            "pass@1/medium": 3 / 4,
            "pass@2/medium": 1.0,
            "share/hard": 2 / 5,
            "pass@1/hard": 1 / 4,
            "pass@2/hard": 1 / 2,
        }
    )
    values, _ = run(
        *("--data", split["data"], "--samples", samples, "--split", split["split"]),
        *("--limit", "3"),
    )
    assert values["share/medium"] == pytest.approx(2 / 3) and "share/hard" not in values


def test_a_split_does_not_score_its_own_samples(run, tmp_path: Path, split) -> None:
    flags = ("--data", split["data"], "--split", split["split"])
    with pytest.raises(ValueError, match="--split was made from these completions"):
        run(*flags, "--samples", split["samples"], out="own")
    prefix = [with_first_right(p)[:8] for p in (4, 5, 64, 65, None)]  # the same seed, a smaller n
    with pytest.raises(ValueError, match="--split was made from these completions"):
        run(*flags, "--samples", write_samples(tmp_path / "prefix.jsonl", prefix), out="own")
    changed = [["So. #### 7"], ["So. #### 7"], *([text] for text in ["#### 8"] * 3)]
    with pytest.raises(ValueError, match=r"changed.jsonl: .*\(3 of 5 first ones, over a half\)"):
        run(*flags, "--samples", write_samples(tmp_path / "changed.jsonl", changed), out="own")
    assert not (tmp_path / "own").exists()
    half = write_samples(tmp_path / "half.jsonl", changed[:4])  # two of four, as chance may have it
    assert run(*flags, "--samples", half, "--limit", "4")[0]["pass@1"] == 1 / 2


def test_a_baseline_is_not_of_the_split_s_own_samples(run, tmp_path: Path, split) -> None:
    """By its samples, or the first ones of them; those of an earlier version are known by the file.

    Another baseline is labelled alike. Right of 64: all here; there 60, 59, 0, 0, 0.
    """
    data = ("--data", split["data"])
    ours = write_samples(tmp_path / "ours.jsonl", [["#### 7"] * 128] * 5)
    eight = write_samples(tmp_path / "8.jsonl", [["#### 8", "#### 7"]] * 5)
    run(*data, "--samples", split["samples"], out="base")
    run(*data, "--samples", eight, out="eight")
    flags = (*data, "--samples", ours, "--split", split["split"], "--baseline")
    with pytest.raises(ValueError, match=r"--baseline .*base: .* \(the same file\)"):
        run(*flags, str(tmp_path / "base"), out="own")
    items = tmp_path / "base" / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    write_jsonl(items, [{k: v for k, v in row.items() if k != "first_sha256"} for row in rows])
    with pytest.raises(ValueError, match=r"--baseline .*base: .* \(the same file\)"):
        run(*flags, str(tmp_path / "base"), out="own")
    with pytest.raises(ValueError, match=r"--baseline .*eight: .* \(5 of 5 first ones"):
        run(*flags, str(tmp_path / "eight"), out="own")
    assert not (tmp_path / "own").exists()


def test_a_split_and_a_baseline_of_completions_that_are_drawn(run, tmp_path: Path, split) -> None:
    """The baseline has its labels before there are any samples; it is right in 1/2 of medium."""
    others = [["#### 7"], ["#### 7"], ["####  8"], ["####  8"], ["####  8"]]
    data = ("--data", split["data"])
    run(*data, "--samples", write_samples(tmp_path / "other.jsonl", others), out="base")
    flags = ("--model", "data/tiny", "--n", "1", "--max_new_tokens", "2", "--device", "cpu")
    split_flags = ("--split", split["split"], "--baseline", str(tmp_path / "base"))
    values, _ = run(*data, *flags, *split_flags)
    assert values["pass@1/medium - baseline"] == -1 / 2 and values["pass@1/easy - baseline"] == -1


@pytest.mark.parametrize("key", ["samples", "data"])
def test_a_split_overwrites_nothing_that_is_read(run, split, key: str) -> None:
    before = Path(split[key]).read_bytes()
    flags = ("--data", split["data"], "--samples", split["samples"])
    with pytest.raises(ValueError, match=r"^--write_split .* would overwrite .*; pass another"):
        run(*flags, "--write_split", split[key])
    assert Path(split[key]).read_bytes() == before


def test_splits_that_do_not_fit_are_refused(run, tmp_path: Path, split) -> None:
    others = write_samples(tmp_path / "other.jsonl", [["#### 7"]] * 5)
    flags = ("--data", split["data"], "--samples", others)
    with pytest.raises(FileNotFoundError, match="--split expects a file"):
        run(*flags, "--split", str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="not a file that --write_split made"):
        run(*flags, "--split", split["data"])
    with pytest.raises(ValueError, match="at least 64 completions of each problem"):
        run(*flags, "--write_split", split["split"])
    with pytest.raises(ValueError, match="--write_split expects --samples"):
        run("--data", split["data"], "--write_split", split["split"])
    data = write_jsonl(tmp_path / "more.jsonl", [{"question": "9?", "answer": "#### 7"}] * 5)
    with pytest.raises(ValueError, match="made of other problems than --data"):
        run("--data", data, "--samples", others, "--split", split["split"])
    short = str(tmp_path / "short.json")
    own = ("--data", split["data"], "--samples", split["samples"])
    run(*own, "--limit", "2", "--write_split", short)
    with pytest.raises(ValueError, match="expected 5 labels, got 2"):
        run(*flags, "--split", short)
