r"""eval/mmlu_pro.py against the authors' own readings of 1,050 outputs, and metrics by hand.

python -m pytest tests/test_mmlu_pro.py

`pred` of the recorded outputs is what the authors' script found: by its first stage for two models,
by all its stages and then a random letter for the third.
"""

import gzip
import json
import random
import re
import sys
import time
from pathlib import Path
from shutil import copytree

import pytest

from data.tokenizer import load_tokenizer
from eval import mmlu_pro
from eval.mmlu_pro import (
    MmluProConfig,
    authors_letter,
    build_prompt,
    check_row,
    extract_letter,
    fit_prompts,
)

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"

PROBLEM = {"question": "Which?", "options": ["x", "y", "z"], "answer": "C", "category": "law"}


def recorded(shared_data: Path, model: str) -> list[dict]:
    with gzip.open(shared_data / "mmlu_pro" / f"model_outputs_{model}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("model", ["llama-3-8b-base", "mistral-7b-instruct-v0.2"])
def test_first_stage_finds_the_authors_letters(shared_data, model: str) -> None:
    rows = recorded(shared_data, model)
    assert len(rows) == 350
    for row in rows:
        assert authors_letter(row["model_outputs"]) == row["pred"], row["model_outputs"]


def test_the_other_stages_of_the_authors_are_no_answers(shared_data) -> None:
    """331 are of the first, 9 the last letter that stands alone, 10 a draw of their seed, 12345."""
    drawn = random.Random(12345).choice("ABCDEFGHIJ")
    found = []
    for row in recorded(shared_data, "llama-3.1-8b-instruct"):
        letter, *alone = authors_letter(row["model_outputs"]), drawn
        alone += re.findall(r"\b([A-J])\b", row["model_outputs"])
        assert (letter or alone[-1]) == row["pred"], row["model_outputs"]
        found.append("first" if letter else "alone" if alone[1:] else "drawn")
    assert [found.count(stage) for stage in ("first", "alone", "drawn")] == [331, 9, 10]


@pytest.mark.parametrize(
    ("text", "authors", "ours"),
    [
        ("The answer is (C).", "C", ("C", "answer is")),
        ("The answer is C", "C", ("C", "answer is")),
        # a supposition, or a recital, comes first
        ("If the answer is (A), no. The answer is (C).", "A", ("C", "answer is")),
        ("The answer is **(C)**.", None, ("C", "answer is")),
        (r"The answer is $\boxed{\text{C}}$.", None, ("C", "answer is")),
        ("The Answer is C.", None, ("C", "answer is")),
        ("the answer is Counterintuitive", "C", (None, None)),
        ("Answer: B\nAnswer: C", None, ("C", "answer:")),
        ("answer: A, answer: B", None, ("B", "answer:")),
        ("**Answer:** C", None, ("C", "answer:")),
        ("I would say option C", None, ("C", "marked")),
        ("It must be (B), and a gas.", None, ("B", "marked")),
        ("C.", None, ("C", "marked")),
        (r"\boxed{C}", None, ("C", "marked")),
        ("The answer is `B`", None, ("B", "answer is")),
        ('the answer is "B"', None, ("B", "answer is")),
        ("the answer is \u2018A\u2019.", None, ("A", "answer is")),
        ("Answer - B", None, ("B", "answer:")),
        ("The correct option is B", None, ("B", "marked")),
        ("The answer is A because of y", "A", ("A", "answer is")),
        ("So option A states y", None, ("A", "marked")),
        # words, units and functions are no letters of ours
        ("The answer is I think (B).", "I", ("B", "marked")),
        ("The answer is A man who", "A", (None, None)),
        ("the answer is A's", "A", (None, None)),
        ("Answer: A man; the right option is A man", None, (None, None)),
        ("A man thinks", None, (None, None)),
        ("Then I think it heats", None, (None, None)),
        ("The work is 5 J", None, (None, None)),
        ("We need P(B) for this", None, (None, None)),
        ("The answer is (J).", "J", (None, None)),  # of three options
        ("The answer is (J). Or (B).", "J", ("B", "marked")),
        ("the answer is (N/A)", None, (None, None)),
        ("no letter", None, (None, None)),
        ("", None, (None, None)),
    ],
)
def test_readings_by_hand(text: str, authors: str | None, ours: tuple) -> None:
    assert authors_letter(text) == authors
    assert extract_letter(text, options=3) == ours


PIECES = ("(", "*", "`", "answer:", "answer is", "answer - ", "option (", "option is ")
PIECES += (" ", "\n", "A ", "E.")


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


def test_a_reply_may_restate_the_question(run, tmp_path: Path) -> None:
    """And be right behind it; a text that is continued ends where the next question begins."""
    data = write_jsonl(tmp_path / "data", [PROBLEM])
    rows = [{"index": 0, "completions": ["Question: Which?\nThe answer is (C)."]}]
    flags = ("--data", data, "--samples", write_jsonl(tmp_path / "samples", rows))
    assert run(*flags, "--prompt_style", "chat")["accuracy"] == 1
    assert run(*flags, "--prompt_style", "text")["no_answer"] == 1


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
    shots = write_jsonl(tmp_path / "shots.jsonl", [{**PROBLEM, "cot_content": "A: So (C)."}] * 2)
    with pytest.raises(ValueError, match="expected 5 rows of the category 'law', got 2"):
        run(*flags, "--validation", shots)
    write_jsonl(tmp_path / "shots.jsonl", [{**PROBLEM, "cot_content": "A: So (C)."}, PROBLEM])
    with pytest.raises(
        ValueError, match=r"shots.jsonl:2: cot_content: expected .*, got none; pass"
    ):
        run(*flags, "--validation", shots)
    with pytest.raises(ValueError, match="--shots expects 0 or more, got -1"):
        run(*flags, "--shots", "-1")
    with pytest.raises(ValueError, match="--prompt_style expects one of text, chat"):
        run(*flags, "--prompt_style", "raw")


# ---------------------------------------------------------------------------------------------
# exemplars that do not fit
# ---------------------------------------------------------------------------------------------

SHOTS = {"law": [{**PROBLEM, "chain": f"A: Let's think step by step. {i}"} for i in range(3)]}


def model_with(positions: int, folder: Path) -> str:
    """The embedded model with so many positions."""
    copytree(TINY, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": positions}))
    return str(folder)


def count_tokens(count: int) -> int:
    """Of the prompt with so many exemplars, BOS included."""
    prompt = build_prompt(PROBLEM, {"law": SHOTS["law"][:count]})
    return 1 + len(load_tokenizer(TINY).encode(prompt))


@pytest.mark.parametrize("kept", [3, 2, 1, 0])
@pytest.mark.parametrize("less", [0, 1])
def test_a_prompt_keeps_the_exemplars_that_fit(tmp_path, capsys, kept: int, less: int) -> None:
    """The positions that `kept` exemplars and 10 new tokens take, or one less.

    The second problem has a longer question: it keeps an exemplar less than the positions are for.
    """
    positions = count_tokens(kept) + 10 - less
    config = MmluProConfig(
        model=model_with(positions, tmp_path / "model"), shots=3, max_new_tokens=10
    )
    problems = [PROBLEM, {**PROBLEM, "question": "Which" + " x" * 5 + "?"}]
    counts = [max(kept - less, 0), max(kept - 1, 0)]
    assert fit_prompts(config, problems, SHOTS) == [
        build_prompt(problem, {"law": SHOTS["law"][:count]})
        for problem, count in zip(problems, counts, strict=True)
    ]
    shortened = sum(count < 3 for count in counts)
    expected = f"{shortened} of 2 prompts were too long for the model and lost exemplars; the least"
    assert capsys.readouterr().out == f"{expected} has {min(counts)} of 3\n"


def test_a_completion_takes_no_more_than_half_of_the_positions(tmp_path) -> None:
    """By default it may have 2048 tokens: the prompt keeps one half, as the authors' of 4096."""
    for positions, kept in ((2 * count_tokens(2), 2), (2 * count_tokens(2) - 2, 1)):
        config = MmluProConfig(model=model_with(positions, tmp_path / str(positions)), shots=3)
        [prompt] = fit_prompts(config, [PROBLEM], SHOTS)
        assert prompt == build_prompt(PROBLEM, {"law": SHOTS["law"][:kept]})


def test_a_model_with_few_positions_is_scored(run, tmp_path: Path) -> None:
    """Its prompts with an exemplar would leave no room; those without do."""
    model = model_with(count_tokens(0) + 10, tmp_path / "model")
    rows = [{**PROBLEM, "cot_content": shot["chain"]} for shot in SHOTS["law"]]
    values = run(
        *("--data", write_jsonl(tmp_path / "data.jsonl", [PROBLEM])),
        *("--validation", write_jsonl(tmp_path / "shots.jsonl", rows)),
        *("--model", model, "--shots", "3", "--max_new_tokens", "5"),
    )
    assert "accuracy" in values
