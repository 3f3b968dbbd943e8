"""data/synthetic.py: the corpus is the same bytes everywhere, and held-out sums stay out of it;
problems are graded as counted; the tokenizer against sentencepiece's own pieces.

    python -m pytest tests/test_synthetic.py
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece

from data.problems import check_solution, is_held_out
from data.synthetic import OPINIONS, grade_of, main
from tests.conftest import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
FILES = ("validation", "test")  # that `grade` writes
SMALL = ["--sft", "1500", "--problems", "40", "--heldout", "60"]
SMALL_SHA256 = {  # of `corpus --seed 7` with the sizes above
    "sft.jsonl": "0ddaced43e144e4f0e4d6b1ce9feaa66068ec41230735ad7c7cbe5636e0fabc5",
    "problems.jsonl": "136b78871d707fe7d7774866cd98f84eeb2e47c2fee3e108f2792c8156ce579c",
    "heldout.jsonl": "e0e9ca8a698ef13023591a1798fd26cb2e443cded6ad135ab800da276a77b643",
    "opinions.jsonl": "0ac6ea04aa4b26eaff84242de48e4a69ce707b318d3030658d293a6001eb5093",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    main(["corpus", "--out", str(out), "--seed", "7", *SMALL])
    return out


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus / "tokenizer.model"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------
# the corpus
# ---------------------------------------------------------------------------------------------


def test_corpus_is_pinned(corpus: Path) -> None:
    """A change of a byte is a change of the embedded default: make data/tiny again, then pin."""
    assert {name: sha256(corpus / name) for name in SMALL_SHA256} == SMALL_SHA256


def test_same_seed_same_bytes_other_seed_other_problems(corpus: Path, tmp_path: Path) -> None:
    """In another process, with another hash seed of Python."""
    for seed in (7, 8):
        command = [sys.executable, "-m", "data.synthetic", "corpus", "--out", str(tmp_path / "o")]
        environment = {"PYTHONHASHSEED": "123"}
        subprocess.run(
            [*command, "--seed", str(seed), *SMALL], check=True, env=environment, cwd=ROOT
        )
        same = {p.name: sha256(p) == sha256(corpus / p.name) for p in (tmp_path / "o").iterdir()}
        assert len(same) == 6
        assert all(same.values()) if seed == 7 else not same["sft.jsonl"]


def test_heldout_sums_are_in_no_other_file(corpus: Path) -> None:
    heldout = [row["key"] for row in read_jsonl(corpus / "heldout.jsonl")]
    problems = [row["key"] for row in read_jsonl(corpus / "problems.jsonl")]
    assert all(map(is_held_out, heldout)) and not any(map(is_held_out, problems))
    prompts = {row["prompt"] for row in read_jsonl(corpus / "sft.jsonl")}
    stories = {row["prompt"] for row in read_jsonl(corpus / "heldout.jsonl")}
    assert len(stories) == 60 and not stories & prompts


def test_every_row_is_solved(corpus: Path) -> None:
    for name in ("heldout.jsonl", "problems.jsonl"):
        for row in read_jsonl(corpus / name):
            assert check_solution(row, row["completion"]) == (True, True)


def test_sft_gives_both_answers_of_an_opinion_equally_often(corpus: Path) -> None:
    """1500 rows, 5% opinions, 12 questions with 2 answers: 1500 * 0.05 / 24 = 3.1, so 3 of each."""
    rows = read_jsonl(corpus / "sft.jsonl")
    counts = Counter((row["prompt"], row["completion"]) for row in rows)
    assert len(rows) == 1500
    for prompt, first, second, _ in OPINIONS:
        assert counts[prompt, first] == counts[prompt, second] == 3


def test_opinion_labels_are_coin_flips_with_a_known_share(corpus: Path) -> None:
    """p_hat within 4 standard errors of p; both answers are the majority's equally often."""
    rows = read_jsonl(corpus / "opinions.jsonl")
    assert len(rows) == len(OPINIONS) >= 12
    for row in rows:
        assert row["labels"] >= 400 and row["p_hat"] == row["first_preferred"] / row["labels"]
        error = (row["p"] * (1 - row["p"]) / row["labels"]) ** 0.5
        assert abs(row["p_hat"] - row["p"]) < 4 * error
    shares = sorted(row["p"] for row in rows)
    assert shares == pytest.approx(sorted(1 - p for p in shares))


# ---------------------------------------------------------------------------------------------
# grades
# ---------------------------------------------------------------------------------------------

RIGHT, WRONG = "3 + 4 = 7\n#### 7", "3 + 4 = 8\n#### 8"


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("correct", "samples", "grade"),
    [(32, 64, "easy"), (31, 64, "medium"), (4, 64, "medium"), (3, 64, "hard"), (0, 64, "hard"),
     (1, 2, "easy"), (1, 16, "medium"), (1, 17, "hard")],
)  # fmt: skip
def test_grades_at_their_borders(correct: int, samples: int, grade: str) -> None:
    """Half of 64 is 32; one in sixteen of 64 is 4, of 16 is 1."""
    assert grade_of(correct, samples) == grade


def test_grade_command_deals_the_grades_in_turn(tmp_path: Path) -> None:
    """16 samples each. Right: 16 16 0 1 0 8 7 15 0 1 2 0, so that by the order of the file

    easy 0 1 5 7, medium 3 6 9 10, hard 2 4 8 11: two of each for validation, then two for test.
    The samples file has the rows backwards: that is not the order that counts.
    """
    right = [16, 16, 0, 1, 0, 8, 7, 15, 0, 1, 2, 0]
    rows = [{"prompt": f"{i}?", "answer": 7, "key": str(i)} for i in range(len(right))]
    samples = [
        {"index": i, "completions": [RIGHT] * count + [WRONG] * (16 - count)}
        for i, count in enumerate(right)
    ]
    command = ["grade", "--problems", write_jsonl(tmp_path / "problems.jsonl", rows)]
    command += ["--samples", write_jsonl(tmp_path / "s", samples[::-1]), "--out"]
    main([*command, str(tmp_path / "graded"), "--each", "2"])
    validation, test = (read_jsonl(tmp_path / "graded" / f"{name}.jsonl") for name in FILES)
    assert [int(row["key"]) for row in validation] == [0, 3, 2, 1, 6, 4]
    assert [int(row["key"]) for row in test] == [5, 9, 8, 7, 10, 11]
    assert [row["difficulty"] for row in validation + test] == ["easy", "medium", "hard"] * 4
    grade = {"difficulty": "easy", "base_correct": 8, "base_samples": 16}
    assert test[0] == {"prompt": "5?", "answer": 7, "key": "5", **grade}


def test_problems_with_one_sum_are_graded_once(tmp_path: Path) -> None:
    """Of two with the key 0 the first counts: the validation problem is not tested again."""
    keys, right = ["0", "1", "2", "0", "3", "4", "5"], [16, 1, 0, 16, 16, 1, 0]
    rows = [{"prompt": f"{i}?", "answer": 7, "key": key} for i, key in enumerate(keys)]
    samples = [
        {"index": i, "completions": [RIGHT] * count + [WRONG] * (16 - count)}
        for i, count in enumerate(right)
    ]
    command = ["grade", "--problems", write_jsonl(tmp_path / "problems.jsonl", rows)]
    command += ["--samples", write_jsonl(tmp_path / "s", samples), "--each", "1", "--out"]
    main([*command, str(tmp_path)])
    validation, test = (read_jsonl(tmp_path / f"{name}.jsonl") for name in FILES)
    assert [row["prompt"] for row in validation + test] == ["0?", "1?", "2?", "4?", "5?", "6?"]
    command[2] = str(tmp_path / "test.jsonl")
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path)])
    assert read_jsonl(tmp_path / "test.jsonl") == test


@pytest.mark.parametrize(
    ("samples", "flags", "message"),
    [
        ('{"index": 5, "completions": ["x"]}\n', [], "s:1: expected an index below 1"),
        ('{"index": 0, "completions": ["x"]}\n' * 2, [], "s:2: expected an index not yet seen"),
        ('\n{"index": 0}\n', [], "s:2: completions: expected list, got NoneType"),
        ('\n{"index": 9, "completions": ["x"]}\n', [], "s:2: expected an index below 1"),
        ('{"index": 0, "completions": []}\n', [], "s:1: expected an index not yet seen, with"),
        ('{"index": 0, "completions": [5]}\n', [], "s:1: completions: expected a text"),
        (
            '{"index": 0, "completions": ["x"], "finish_reasons": []}\n',
            [],
            "s:1: finish_reasons: expected one for each completion",
        ),
        ('{"index": 0, "completions": ["x"]}\n', [], "expected 100 easy problems, got 0"),
        ("", ["--each", "0"], "--each expects 1 or more, got 0"),
    ],
)
def test_wrong_samples_end_with_one_message(
    samples: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    problems = write_jsonl(tmp_path / "p", [{"prompt": "3 and 4?", "answer": 7}])
    (tmp_path / "s").write_text(samples)
    command = ["grade", "--problems", problems, "--samples", str(tmp_path / "s"), *flags]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_graded_problems_of_the_embedded_task() -> None:
    """50 of each grade in either file; held-out sums, solved, and no story twice."""
    rows = [row for name in FILES for row in read_jsonl(ROOT / "data" / "tiny" / f"{name}.jsonl")]
    assert [row["difficulty"] for row in rows] == ["easy", "medium", "hard"] * 100
    assert len({row["prompt"] for row in rows}) == 300
    for row in rows:
        assert is_held_out(row["key"]) and check_solution(row, row["completion"]) == (True, True)
        assert row["base_samples"] == 64
        assert row["difficulty"] == grade_of(row["base_correct"], 64)


# ---------------------------------------------------------------------------------------------
# the tokenizer
# ---------------------------------------------------------------------------------------------


def test_tokenizer_has_512_pieces_with_llamas_special_ones(tokenizer) -> None:
    assert tokenizer.vocab_size() == 512
    assert [tokenizer.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)


def test_tokenizer_splits_digits_and_falls_back_to_bytes(tokenizer) -> None:
    pieces = [tokenizer.id_to_piece(i) for i in range(3 + 256, 512)]  # after bytes
    assert {piece for piece in pieces if any(map(str.isdigit, piece))} == set("0123456789")
    assert tokenizer.encode("97 + 3", out_type=str) == ["▁", "9", "7", "▁+", "▁", "3"]
    assert tokenizer.encode("é", out_type=str)[-2:] == ["<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("text", ["3 + 4 = 7\n#### 7", "  two  spaces\n\n\nlines ", "日本 🙂 é\t"])
def test_tokenizer_gives_text_back(text: str, tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_and_chat_marks_are_cheap(corpus: Path, tokenizer) -> None:
    rows = read_jsonl(corpus / "heldout.jsonl")
    prompts = [f"\n\nHuman: {row['prompt']}\n\nAssistant:" for row in rows]
    assert sum(len(tokenizer.encode(text)) for text in prompts) / len(rows) < 45
    assert sum(len(tokenizer.encode(row["completion"])) for row in rows) / len(rows) < 40
