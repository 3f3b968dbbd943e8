r"""eval/mmlu_pro.py against the authors' own readings of 1,050 outputs, and metrics by hand.

python -m pytest tests/test_mmlu_pro.py

`pred` of the recorded outputs is what the authors' script found: by its first stage for two models,
by all its stages and then a random letter for the third.
"""

import gzip
import json
import random
import sys
import time
from pathlib import Path

import pytest

from eval import mmlu_pro
from eval.mmlu_pro import (
    authors_letter,
    build_prompt,
    check_row,
    extract_letter,
)

PROBLEM = {"question": "Which?", "options": ["x", "y", "z"], "answer": "C", "category": "law"}


def recorded(shared_data: Path, model: str) -> list[dict]:
    with gzip.open(shared_data / "mmlu_pro" / f"model_outputs_{model}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("model", ["llama-3-8b-base", "mistral-7b-instruct-v0.2"])
def test_first_stage_finds_the_authors_letters(shared_data, model: str) -> None:
    rows = recorded(shared_data, model)
    assert len(rows) == 350
    for row in rows:
        letter, stage = authors_letter(row["model_outputs"])
        assert (letter if stage == "answer is" else None) == row["pred"], row["model_outputs"]


def test_all_stages_find_the_authors_letters(shared_data) -> None:
    """331 by the first stage, 9 by the last, and G for 10: the first draw of their seed, 12345."""
    drawn = random.Random(12345).choice("ABCDEFGHIJ")
    found = []
    for row in recorded(shared_data, "llama-3.1-8b-instruct"):
        letter, stage = authors_letter(row["model_outputs"])
        assert (letter or drawn) == row["pred"], row["model_outputs"]
        found.append(stage)
    assert [found.count(stage) for stage in ("answer is", "alone", None)] == [331, 9, 10]


@pytest.mark.parametrize(
    ("text", "authors", "ours"),
    [
        ("The answer is (C).", ("C", "answer is"), ("C", "answer is")),
        ("The answer is C", ("C", "answer is"), ("C", "answer is")),
        # a supposition, or a recital, comes first
        ("If the answer is (A), no. The answer is (C).", ("A", "answer is"), ("C", "answer is")),
        ("The answer is **(C)**.", ("C", "alone"), ("C", "answer is")),
        (r"The answer is $\boxed{\text{C}}$.", ("C", "alone"), ("C", "answer is")),
        ("The Answer is C.", ("C", "alone"), ("C", "answer is")),
        ("the answer is Counterintuitive", ("C", "answer is"), (None, None)),
        ("Answer: B\nAnswer: C", ("B", "answer:"), ("C", "answer:")),
        ("answer: A, answer: B", ("B", "answer:"), ("B", "answer:")),
        ("**Answer:** C", ("C", "alone"), ("C", "answer:")),
        ("I would say option C", ("C", "alone"), ("C", "marked")),
        ("It must be (B), and a gas.", ("B", "alone"), ("B", "marked")),
        ("C.", ("C", "alone"), ("C", "marked")),
        (r"\boxed{C}", ("C", "alone"), ("C", "marked")),
        # words, units and functions are no letters of ours
        ("A man thinks", ("A", "alone"), (None, None)),
        ("Then I think it heats", ("I", "alone"), (None, None)),
        ("The work is 5 J", ("J", "alone"), (None, None)),
        ("We need P(B) for this", ("B", "alone"), (None, None)),
        ("The answer is (J).", ("J", "answer is"), (None, None)),  # of three options
        ("The answer is (J). Or (B).", ("J", "answer is"), ("B", "marked")),
        ("the answer is (N/A)", ("A", "alone"), (None, None)),
        ("no letter", (None, None), (None, None)),
        ("", (None, None), (None, None)),
    ],
)
def test_readings_by_hand(text: str, authors: tuple, ours: tuple) -> None:
    assert authors_letter(text) == authors
    assert extract_letter(text, options=3) == ours


PIECES = ("(", "*", "answer:", "answer is", "option (", " ", "\n", "A ", "E.")


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_text_costs_little(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    authors_letter(text), extract_letter(text, 10)
    assert time.process_time() - start < 4


def test_item_of_a_completion_that_goes_on(run, tmp_path: Path) -> None:
    """The first says C before it invents a next question, and A, a letter alone, is no answer."""
    texts = ["The answer is (C).\n\nQuestion: more?\nThe answer is (A).", "A man", "(B)"]
    data = write_jsonl(tmp_path / "data", [PROBLEM])
    row = {"index": 0, "completions": texts}
    run("--data", data, "--samples", write_jsonl(tmp_path / "samples", [row]))
    assert json.loads((tmp_path / "out" / "items.jsonl").read_text()) == {
        "index": 0,
        "category": "law",
        "answer": "C",
        "answers": ["C", None, "B"],
        "stages": ["answer is", None, "marked"],
        "correct": [True, False, False],
        "authors_answers": ["C", None, None],
        "authors_correct": [True, False, False],
    }


# ---------------------------------------------------------------------------------------------
# the command
# ---------------------------------------------------------------------------------------------


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with these flags; out: its metrics by name."""

    def run(*flags: str) -> dict[str, float]:
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["mmlu_pro", "--out", str(out), *flags])
        mmlu_pro.main()
        summary = json.loads((out / "summary.json").read_text())
        assert summary["task"] == "mmlu_pro"
        return {name: metric["value"] for name, metric in summary["metrics"].items()}

    return run


def test_metrics_by_hand(run, tmp_path: Path) -> None:
    """The gold letter is C. Ours: C, C, B of the first question and none, C, C of the second.

    The authors': A (a supposition), C, none; and none, C, none. Vote: C by 2 to 1, and by 2 to 0.
    """
    completions = [
        ["If the answer is (A), x. The answer is (C).", "The answer is C.", "Answer: B"],
        ["Maybe.", "The answer is (C).", "So, (C)."],
    ]
    data = write_jsonl(tmp_path / "data", [PROBLEM, {**PROBLEM, "category": "art"}])
    rows = [{"index": i, "completions": texts} for i, texts in enumerate(completions)]
    assert run("--data", data, "--samples", write_jsonl(tmp_path / "samples", rows)) == (
        pytest.approx(
            {
                "accuracy": 4 / 6,
                "accuracy_authors": 2 / 6,
                "no_answer": 1 / 6,
                "majority@3": 1.0,
                "stage/answer is": 3 / 6,
                "stage/answer:": 1 / 6,
                "stage/marked": 1 / 6,
                "accuracy/art": 2 / 3,
                "accuracy/law": 2 / 3,
            }
        )
    )


def test_recorded_outputs_as_a_user_scores_them(run, tmp_path: Path, shared_data) -> None:
    """accuracy_authors is the share of rows with pred == answer, where the first stage made pred.

    Of the recorded questions only the number of options is known; they get blank ones.
    """
    rows = recorded(shared_data, "mistral-7b-instruct-v0.2")
    keys = ("category", "answer")
    problems = [{k: r[k] for k in keys} | {"question": "?", "options": ["-"] * r["n_options"]}
                for r in rows]  # fmt: skip
    samples = [{"index": i, "completions": [r["model_outputs"]]} for i, r in enumerate(rows)]
    values = run(
        *("--data", write_jsonl(tmp_path / "data", problems)),
        *("--samples", write_jsonl(tmp_path / "samples", samples)),
    )
    assert values["accuracy_authors"] == pytest.approx(
        sum(row["pred"] == row["answer"] for row in rows) / 350
    )
    assert values["accuracy"] == pytest.approx(110 / 350)  # read by eye: 107, one lost, four gained
    assert "majority@1" not in values


def test_prompt_in_the_words_of_the_authors(shared_data) -> None:
    lines = (shared_data / "mmlu_pro" / "validation.jsonl").read_text().splitlines()
    shots = [check_row(json.loads(line), "") for line in lines]
    shots = [shot for shot in shots if shot["category"] == "math"]
    assert len(shots) == 5
    prompt = build_prompt({**PROBLEM, "category": "math"}, {"math": shots})
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about math. Think step by step "
        'and then finish your answer with "the answer is (X)" where X is the correct letter choice.'
        "\n\n\nQuestion:\nThe symmetric group $S_n$ has $\n\\factorial{n}$ elements, hence"
    )
    assert "\nOptions:\nA. 0\nB. 30\nC. 3\n" in prompt
    assert "\nJ. 5\nAnswer: Let's think step by step. A characteristic of a ring is R" in prompt
    assert "The answer is (A).\n\nQuestion:\nLet V be the set of all real polynomials" in prompt
    assert prompt.endswith(
        "\n\nQuestion:\nWhich?\nOptions:\nA. x\nB. y\nC. z\nAnswer: Let's think step by step."
    )
    assert prompt.count("Answer: Let's think step by step.") == 6
    assert "A: Let's think" not in prompt.replace("Answer: ", "")


def test_every_question_of_the_test_file_is_read(shared_data) -> None:
    """The authors score by the letter; in one row the index is another (N-H is right)."""
    with gzip.open(shared_data / "mmlu_pro" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 5943
    answers = [(check_row(row, "")["answer"], row["answer_index"], row) for row in rows]
    odd = [row for letter, index, row in answers if "ABCDEFGHIJ"[index] != letter]
    assert [row["question_id"] for row in odd] == [3983]


def test_padding_is_no_option() -> None:
    row = check_row({**PROBLEM, "options": ["N/A", "y", "z", "N/A", "N/A"]}, "here")
    assert row["options"] == ["N/A", "y", "z"]  # C is still z


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "here: question: expected a text, got null"),
        ({"options": "xyz"}, "here: options: expected a list of texts"),
        ({"options": ["x", 2]}, r"here: options\[1\]: expected a text, got a number"),
        ({"options": ["x", "N/A"]}, "here: options: expected 2 to 10, got 1"),
        ({"answer": "D"}, "here: answer: expected a letter up to C, got 'D'"),
        ({"answer": "AB"}, "here: answer: expected a letter up to C, got 'AB'"),
        ({"answer": ""}, "here: answer: expected a letter up to C, got ''"),
        ({"answer": 2}, "here: answer: expected a letter up to C, got 2"),
    ],
)
def test_bad_rows_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_row({**PROBLEM, **change}, "here")


def test_exemplars_that_are_not_there_are_named(run, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [PROBLEM])
    flags = ("--data", data, "--model", str(tmp_path))
    with pytest.raises(ValueError, match="--validation expects the file of exemplars"):
        run(*flags)
    with pytest.raises(ValueError, match="expected 5 rows of the category 'law', got 1"):
        run(*flags, "--validation", data)
    with pytest.raises(ValueError, match="--shots expects 0 or more, got -1"):
        run(*flags, "--shots", "-1")
    with pytest.raises(ValueError, match="--prompt_style expects one of text, chat"):
        run(*flags, "--prompt_style", "raw")
