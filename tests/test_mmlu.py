"""MMLU: prompts as lm-eval writes them, numbers by hand and from transformers, odd files.

What lm-eval itself says of the same questions is in tests/test_speed_ask.py.
pytest tests/test_mmlu.py
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from eval import mmlu
from eval.mmlu import (
    MmluConfig,
    ask,
    metric_values,
    read_problems,
    read_shots,
    score,
    show_question,
)
from tests.conftest import ROOT

ROWS = """"What is 2 + 2? ",3,4,"5, or so",None,B
"He said ""yes"".
Did he?",a,b,c,d,D
"""
DEV = "One?,1,2,3,4,A\nTwo?,1,2,3,4,B\nThree?,1,2,3,4,C\n"


@pytest.fixture
def folders(tmp_path) -> tuple[str, str]:
    """(test, dev): two subjects of two questions, three exemplars of each."""
    for kind, text in (("test", ROWS), ("dev", DEV)):
        (tmp_path / kind).mkdir()
        for subject in ("abstract_algebra", "anatomy"):
            (tmp_path / kind / f"{subject}_{kind}.csv").write_text(text)
    return str(tmp_path / "test"), str(tmp_path / "dev")


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.mmlu", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------
# files and prompts


def test_the_authors_files(folders):
    """Quotes, commas, an end of line within a question, and the choice "None"."""
    problems = read_problems(folders[0], "--data")
    assert problems[:2] == [
        {"subject": "abstract_algebra", "question": "What is 2 + 2? ",
         "choices": ["3", "4", "5, or so", "None"], "answer": 1},
        {"subject": "abstract_algebra", "question": 'He said "yes".\nDid he?',
         "choices": list("abcd"), "answer": 3},
    ]  # fmt: skip
    assert [p["subject"] for p in problems[2:]] == ["anatomy"] * 2
    limited = read_problems(folders[0], "--data", limit=1)
    assert [p["subject"] for p in limited] == ["abstract_algebra", "anatomy"]


def test_rows_of_objects_are_the_same(folders, tmp_path):
    """As the hub's copy has them, the subjects in any order."""
    problems = read_problems(folders[0], "--data")
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(json.dumps(problems[i]) for i in (2, 0, 3, 1)))
    assert read_problems(str(file), "--data") == [problems[i] for i in (2, 3, 0, 1)]


def test_the_prompt_by_hand(folders):
    problems = read_problems(folders[0], "--data")
    config = MmluConfig(data=folders[0], dev=folders[1], shots=2)
    question = ask(0, problems[0], read_shots(config, problems))
    header = (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    )
    one = "One?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\n"
    two = "Two?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
    asked = "What is 2 + 2?\nA. 3\nB. 4\nC. 5, or so\nD. None\nAnswer:"
    assert question.prompt == header + one + two + asked
    assert ask(0, problems[0], {}).prompt == header + asked
    assert question.shorter == (header + one + asked, header + asked)
    assert question.choices == (" A", " B", " C", " D") and question.group == "abstract_algebra"


def test_a_subject_is_the_name_without_its_split(tmp_path):
    """Names with an underscore and no split stay whole; the mark at the beginning is no text."""
    for name in ("high_school_biology", "high_school_chemistry", "virology_val", "anatomy_test"):
        text = "\ufeff" + f"{name}?,1,2,3,4,A\n"
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    problems = read_problems(str(tmp_path), "--data")
    assert [(p["subject"], p["question"]) for p in problems] == [
        ("anatomy", "anatomy_test?"),
        ("high_school_biology", "high_school_biology?"),
        ("high_school_chemistry", "high_school_chemistry?"),
        ("virology", "virology_val?"),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("q,1,2,3,A\n", r"a_test.csv:1: expected question, four choices and a letter"),
        ("q,1,2,3,4,E\n", r"a_test.csv:1: expected question, four choices and a letter"),
        ("q,1,2,3,4,\n", r"a_test.csv:1: expected question"),
        ('q,1,2,3,4,A\n"q,1', r"a_test.csv:2: (not CSV|expected question)"),
        ("", "no problem in it"),
    ],
)
def test_files_that_are_none_are_named(tmp_path, text, message):
    (tmp_path / "a_test.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_problems(str(tmp_path), "--data")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"choices": ["1"]}, "choices: expected 4 texts"),
        ({"choices": [1, 2, 3, 4]}, r"choices\[0\]"),
        ({"answer": 4}, "answer: expected 0 to 3, got 4"),
        ({"answer": "A"}, "answer: expected 0 to 3, got 'A'"),
        ({"subject": None}, "subject"),
    ],
)
def test_rows_that_are_none_are_named(tmp_path, row, message):
    good = {"subject": "x", "question": "q", "choices": list("abcd"), "answer": 0}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(good | row))
    with pytest.raises(ValueError, match=f"a.jsonl:1: {message}"):
        read_problems(str(file), "--data")


def test_missing_exemplars_are_refused(folders):
    problems = read_problems(folders[0], "--data")
    with pytest.raises(ValueError, match=r"expected 5 rows of \w+, got 3; pass another"):
        read_shots(MmluConfig(data=folders[0], dev=folders[1]), problems)
    with pytest.raises(ValueError, match="--dev expects"):
        read_shots(MmluConfig(data=folders[0]), problems)
    assert read_shots(MmluConfig(data=folders[0], shots=0), problems) == {}


# ------------------------------------------------------------------------------------------------
# numbers


def test_metrics_by_hand():
    """Subject x: right with 0.4 of a mass of 0.8, wrong with 0.1 each; subject y: wrong.

    Probabilities (0.5, 0.25, 0.125, 0.125), uniform but for a tie, (0.7, 0.1, 0.1, 0.1). A tie of
    four counts 1/4. Accuracy (1 + 1/4 + 0) / 3; over subjects ((1 + 1/4) / 2 + 0) / 2. Masses 0.8,
    0.4, 1. Brier: 0.25 + 0.0625 + 2/64, 0.5625 + 3/16, 0.49 + 0.81 + 0.02.
    """
    weights = [(0.4, 0.2, 0.1, 0.1), (0.1,) * 4, (0.7, 0.1, 0.1, 0.1)]
    items = [
        {"subject": s, "answer": a, "logps": [math.log(w) for w in some]}
        for s, a, some in zip("xxy", (0, 2, 1), weights, strict=True)
    ]
    values = metric_values(items, bins=15, binning="width")
    assert values["accuracy"] == pytest.approx([1, 1 / 4, 0])
    assert values["confidence"] == pytest.approx([0.5, 0.25, 0.7])
    assert values["mass"] == pytest.approx([0.8, 0.4, 1.0])
    assert values["brier"] == pytest.approx([0.34375, 0.75, 1.32])
    assert values["nll"] == pytest.approx([math.log(2), math.log(4), math.log(10)])
    pairs = values["accuracy_subjects"]
    mean = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    assert mean == pytest.approx(((1 + 1 / 4) / 2 + 0) / 2)
    assert values["accuracy/y"] == pytest.approx([0]) and len(values["accuracy/x"]) == 2


@pytest.mark.parametrize("bins, error", [(15, (0.5 + 0.7) / 2), (1, (0.7 - 0.5) / 2)])
def test_the_error_of_a_subject_has_the_bins_that_are_asked_for(bins, error):
    """Right at 0.5 and wrong at 0.7: in bins of their own, or in one, where the gaps offset."""
    items = [
        {"subject": "x", "answer": a, "logps": [math.log(w) for w in some]}
        for a, some in ((0, (0.5, 0.25, 0.15, 0.1)), (1, (0.7, 0.1, 0.1, 0.1)))
    ]
    values = metric_values(items, bins, "width")
    for name in ("ece", "ece/x"):
        assert values[name].compute(values[name].rows) == pytest.approx(error)


def test_samples_of_other_questions_are_refused(tmp_path, monkeypatch):
    """Two subjects of two questions, all right: with --limit 1 problem 1 is another subject's.

    So it is where items change places; what a file does not say of its questions is not asked.
    """
    data, samples = tmp_path / "data.jsonl", tmp_path / "items.jsonl"
    rows = [{"subject": s, "question": f"{s}{i}?", "choices": list("wxyz"), "answer": 0}
            for s in "ab" for i in range(2)]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    logps = [-0.1, -3.0, -4.0, -5.0]
    items = [{"index": i} | score(row, {"logps": logps}) for i, row in enumerate(rows)]

    def command(*words: str) -> dict:
        samples.write_text("\n".join(map(json.dumps, items)))
        out = tmp_path / "out"
        flags = ["--data", str(data), "--samples", str(samples), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["mmlu", *flags, *words])
        mmlu.main()
        return json.loads((out / "summary.json").read_text())

    summary = command()
    assert summary["metrics"]["accuracy"]["value"] == 1
    names = ("shots", "prompt_style", "dev", "model")
    assert {summary["settings"][name] for name in names} == {None}
    message = "items.jsonl:2: subject: expected 'b', got 'a': .* pass --data, --limit as they were"
    with pytest.raises(ValueError, match=message):
        command("--limit", "1")
    items[0], items[1] = items[1] | {"index": 0}, items[0] | {"index": 1}
    with pytest.raises(ValueError, match=r"items.jsonl:1: question: expected 'a0\?', got 'a1\?'"):
        command()
    items = [{"index": i, "logps": logps} for i in range(4)]
    assert command()["metrics"]["accuracy"]["value"] == 1


def test_real_questions_equal_transformers(smollm2_dir, shared_data, tmp_path):
    """The four letters of two real questions behind five exemplars, from whole logits."""
    mmlu = shared_data / "mmlu"
    data, dev = (str(mmlu / kind / f"anatomy_{kind}.csv") for kind in ("test", "dev"))
    out = tmp_path / "out"
    done = run("--data", data, "--dev", dev, "--model", str(smollm2_dir), "--limit", "2",
               "--device", "cpu", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    problems = read_problems(data, "--data", 2)
    shots = read_shots(MmluConfig(data=data, dev=dev), problems)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2_dir)
    witness = transformers.AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    lines = (out / "items.jsonl").read_text().splitlines()
    for i, (problem, line) in enumerate(zip(problems, lines, strict=True)):
        question = ask(i, problem, shots)
        assert question.prompt.endswith(show_question(problem))
        ids = tokenizer(question.prompt, return_tensors="pt").input_ids
        letters = [tokenizer(letter).input_ids for letter in question.choices]
        assert all(len(letter) == 1 for letter in letters)
        with torch.no_grad():
            logps = witness(ids).logits[0, -1].log_softmax(-1)[[letter[0] for letter in letters]]
        assert json.loads(line)["logps"] == pytest.approx(logps.tolist(), abs=1e-3)


def test_command_with_fewer_exemplars_where_there_is_no_room(folders, tmp_path):
    """The embedded model's positions do not hold every exemplar; a chat has the same questions."""
    dev = Path(folders[1]) / "anatomy_dev.csv"
    long = "Is it so or is it not so as they say? " * 12
    dev.write_text("".join(f"{long}{n},1,2,3,4,A\n" for n in ("one", "two", "three")))
    flags = ["--data", folders[0], "--dev", folders[1], "--shots", "3", "--device", "cpu"]
    model = ["--model", str(ROOT / "data" / "tiny")]
    for style in ("text", "chat"):
        out = tmp_path / style
        done = run(*flags, *model, "--prompt_style", style, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert "2 prompts were too long for the model and say less" in done.stdout
        summary = json.loads((out / "summary.json").read_text())
        assert summary["problems"] == 4
        assert {"accuracy", "ece", "ece_debiased", "mass"} <= summary["metrics"].keys()
        table = json.loads((out / "reliability.json").read_text())
        assert sum(row["count"] for row in table) == 4
    again = run(*flags[:4], "--samples", str(tmp_path / "text" / "items.jsonl"), "--bins", "3",
                "--baseline", str(tmp_path / "chat"), "--out", str(tmp_path / "again"))  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "accuracy - baseline" in again.stdout and "ece - baseline" in again.stdout
