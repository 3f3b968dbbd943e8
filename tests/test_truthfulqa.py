"""TruthfulQA: the four scores by hand, letters in a drawn order, and lm-eval on the same questions.

pytest tests/test_truthfulqa.py
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval import truthfulqa
from eval.truthfulqa import (
    TruthfulQaConfig,
    ask,
    best_is_true,
    check_row,
    read_primer,
    read_problems,
    score_problem,
    shown_answers,
    true_mass,
    true_share,
)
from tests.conftest import ROOT

ROW = {
    "question": "What is it?",
    "mc0_targets": {"Best": 1, "Worst": 0},
    "mc1_targets": {"Best": 1, "Worst": 0, "Bad": 0},
    "mc2_targets": {"Best": 1, "Good": 1, "Worst": 0, "Bad": 0},
}
PRIMER = '{"question": "One?", "answer": "1."}\n{"question": "Two?", "answer": "2."}\n'
CONFIG = TruthfulQaConfig(shots=2)


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.truthfulqa", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------
# numbers


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_scores_by_hand():
    """Best 0.2, Worst 0.3, Bad 0.1, Good 0.4: the best is not above the worst, so mc0 and mc1 are
    0; mc2 = (0.2 + 0.4) / 1; of the two true ones only Good is above 0.3: mc3 = 1/2.
    """
    problem = check_row(ROW, "f:1")
    found = {"logps": logs(0.2, 0.3, 0.1, 0.4), "letters_logps": [0.0] * 3,
             "binary_logps": [0.0] * 2}  # fmt: skip
    item = score_problem(problem, found, seed=0)
    assert (item["mc0"], item["mc1"], item["mc3"]) == (0, 0, 0.5)
    assert item["mc2"] == pytest.approx(0.6)
    assert item["mc1_logps"] == pytest.approx(logs(0.2, 0.3, 0.1)) and item["mc1_answer"] == 0
    shown = shown_answers(problem, seed=0)
    assert shown["letters"][item["letters_answer"]] == "Best"
    assert shown["binary"][item["binary_answer"]] == "Best"


def test_a_tie_is_a_loss_and_sums_do_not_underflow():
    """exp(-2000) is 0 in float64; the true one has e / (e + 1) of the two."""
    assert not best_is_true([(-1.0, True), (-1.0, False)])
    assert best_is_true([(-1.0, True), (-1.1, False), (-9.0, True)])
    assert true_mass([(-2000.0, True), (-2001.0, False)]) == pytest.approx(math.e / (math.e + 1))
    assert true_share([(-1.0, True), (-3.0, True), (-2.0, False)]) == 0.5


def test_the_prompts_by_hand(tmp_path):
    (tmp_path / "primer.jsonl").write_text(PRIMER)
    problem = check_row(ROW, "f:1")
    config = TruthfulQaConfig(shots=2, primer=str(tmp_path / "primer.jsonl"))
    answers, letters, binary = ask(config, 7, problem, read_primer(config))
    assert answers.prompt == "Q: One?\nA: 1.\n\nQ: Two?\nA: 2.\n\nQ: What is it?\nA:"
    assert answers.choices == (" Best", " Worst", " Bad", " Good"), "each distinct one, once"
    shown = shown_answers(problem, 0)
    lines = "".join(f"{x}. {a}\n" for x, a in zip("ABC", shown["letters"], strict=True))
    header = "The following are multiple choice questions (with answers).\n\n"
    assert letters.prompt == f"{header}What is it?\n{lines}Answer:"
    assert letters.choices == (" A", " B", " C") and binary.choices == (" A", " B")
    assert [q.field for q in (answers, letters, binary)] == [
        "logps", "letters_logps", "binary_logps",
    ]  # fmt: skip
    chat = TruthfulQaConfig(prompt_style="chat")
    assert next(iter(ask(chat, 7, problem, read_primer(chat)))).prompt == "What is it?"


def test_the_order_of_the_letters_is_drawn(shared_data):
    """By seed and question: another seed gives another order, and each letter has its share.

    395 questions with 2 answers: A is right in 197.5 +- 9.9 of them; 4.5 deviations are allowed.
    """
    path = shared_data / "truthfulqa" / "mc_task.json"
    problems = read_problems(TruthfulQaConfig(data=str(path)))
    orders = [shown_answers(problem, 0) for problem in problems]
    assert orders == [shown_answers(problem, 0) for problem in problems]
    assert orders != [shown_answers(problem, 1) for problem in problems]
    first = sum(p["mc0"][o["binary"][0]] for p, o in zip(problems, orders, strict=True))
    assert abs(first - len(problems) / 2) < 4.5 * math.sqrt(len(problems)) / 2
    for problem, order in zip(problems, orders, strict=True):
        assert sorted(order["letters"]) == sorted(problem["mc1"])


def test_files_of_2021_have_no_mc0(shared_data):
    path = shared_data / "truthfulqa" / "mc_task_v1.json"
    problems = read_problems(TruthfulQaConfig(data=str(path), limit=3))
    assert len(problems) == 3 and "mc0" not in problems[0]
    assert [q.field for q in ask(CONFIG, 0, problems[0], "")] == ["logps", "letters_logps"]


def test_the_form_of_hugging_face_is_the_same():
    """choices and labels, in the order of the authors' objects; one label too few is named."""
    lists = {
        name: {"choices": list(targets), "labels": list(targets.values())}
        for name, targets in ROW.items()
        if name != "question"
    }
    assert check_row(ROW | lists, "f:1") == check_row(ROW, "f:1")
    short = {"mc1_targets": {"choices": ["a", "b", "c"], "labels": [1, 0]}}
    with pytest.raises(ValueError, match="f:1: mc1_targets: expected"):
        check_row(ROW | short, "f:1")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": 3}, "question"),
        ({"mc1_targets": None}, "mc1_targets: expected"),
        ({"mc1_targets": {"a": 1}}, "mc1_targets: expected .* with both"),
        ({"mc1_targets": {"a": 1, "b": 1, "c": 0}}, "mc1_targets: expected one true answer"),
        ({"mc2_targets": {"a": "1", "b": 0}}, "mc2_targets: expected"),
        ({"mc2_targets": {"a": [1], "b": 0}}, "mc2_targets: expected"),
    ],
)
def test_rows_that_are_none_are_named(row, message):
    with pytest.raises(ValueError, match=f"f:1: {message}"):
        check_row(ROW | row, "f:1")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data expects mc_task\.json, got None"):
        read_problems(TruthfulQaConfig())
    with pytest.raises(ValueError, match="--primer expects a file of question-answer pairs"):
        read_primer(TruthfulQaConfig())
    (tmp_path / "primer.jsonl").write_text(PRIMER)
    with pytest.raises(ValueError, match="expected 6 rows, got 2"):
        read_primer(TruthfulQaConfig(primer=str(tmp_path / "primer.jsonl")))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on two questions, in this process."""
    data = tmp_path / "mc_task.json"
    data.write_text(json.dumps([ROW, ROW | {"question": "Which?"}]))

    def command(*words: str) -> Path:
        out = tmp_path / "out"
        monkeypatch.setattr(
            sys, "argv", ["truthfulqa", "--data", str(data), *words, "--out", str(out)]
        )
        truthfulqa.main()
        return out

    return command


def write_items(path: Path, seed: int) -> str:
    """Items of the two questions by a policy that is sure of the right one, in each form."""
    rows = []
    for i, question in enumerate(("What is it?", "Which?")):
        problem = check_row(ROW | {"question": question}, "f:1")
        found = {"logps": [-0.5, -9.0, -9.0, -9.0]}
        for form, answers in shown_answers(problem, seed).items():
            found[f"{form}_logps"] = [-0.5 if a == "Best" else -9.0 for a in answers]
        rows.append({"index": i} | score_problem(problem, found, seed))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_samples_have_the_letters_of_their_own_seed(command, tmp_path):
    """With seed 1 the first question has another order; its items are right in every form."""
    samples = write_items(tmp_path / "items.jsonl", seed=1)
    out = command("--samples", samples, "--seed", "1")
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert metrics["letters/accuracy"]["value"] == metrics["binary/accuracy"]["value"] == 1
    with pytest.raises(ValueError, match=r"items.jsonl:\d: \w+_answer: .* pass .*--seed as they"):
        command("--samples", samples)


def test_samples_of_other_questions_are_refused(command, tmp_path):
    samples = Path(write_items(tmp_path / "items.jsonl", seed=0))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    swapped = [rows[0] | {"index": 1}, rows[1] | {"index": 0}]
    samples.write_text("".join(json.dumps(row) + "\n" for row in swapped))
    message = "items.jsonl:1: question: expected 'Which\\?', got 'What is it\\?'"
    with pytest.raises(ValueError, match=message):
        command("--samples", str(samples))


def test_a_limit_below_1_is_named(command):
    with pytest.raises(ValueError, match="--limit expects 1 or more, got -1"):
        command("--samples", str(Path(__file__)), "--limit", "-1")


# ------------------------------------------------------------------------------------------------
# lm-eval

WITNESS = """
import json, os, sys
from pathlib import Path

data, model, out, cache = sys.argv[1:]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": cache}
import lm_eval
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

folder = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa"
tasks = []
for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
    config = load_yaml(folder / f"{name}.yaml")
    for key in ("dataset_name", "tag"):
        config.pop(key, None)
    files = {"validation": data}
    tasks.append(config | {"dataset_path": "json", "dataset_kwargs": {"data_files": files}})
lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=4)
said = simple_evaluate(lm, tasks=tasks, bootstrap_iters=0)
rows = {
    task: [
        {"acc": row["acc"], "logps": [logp for logp, _ in row["filtered_resps"]]}
        for row in sorted(some, key=lambda row: row["doc_id"])
    ]
    for task, some in said["samples"].items()
}
Path(out).write_text(json.dumps(rows))
"""


def test_lm_eval_and_we_agree(smollm2_dir, shared_data, tmp_path):
    """mc1 and mc2 of three questions, and the log-probability of each answer, within 1e-3."""
    pytest.importorskip("lm_eval")
    path = shared_data / "truthfulqa" / "mc_task.json"
    rows = sorted(json.loads(path.read_text()), key=lambda row: len(json.dumps(row)))[:3]
    data, theirs = tmp_path / "ours.json", tmp_path / "theirs.jsonl"
    data.write_text(json.dumps(rows))
    with theirs.open("w") as file:
        for row in rows:
            lists = {
                f"{name}_targets": {
                    "choices": list(row[f"{name}_targets"]),
                    "labels": list(row[f"{name}_targets"].values()),
                }
                for name in ("mc1", "mc2")
            }
            file.write(json.dumps({"question": row["question"]} | lists) + "\n")
    script, said = tmp_path / "witness.py", tmp_path / "said.json"
    script.write_text(WITNESS)
    words = [str(theirs), str(smollm2_dir), str(said), str(tmp_path / "hf")]
    witness = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, env=os.environ
    )
    assert witness.returncode == 0, witness.stderr[-2000:]
    primer = str(shared_data / "fewshot" / "truthfulqa_qa_primer_6.jsonl")
    done = run("--data", str(data), "--primer", primer, "--model", str(smollm2_dir), "--device",
               "cpu", "--out", str(tmp_path / "out"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    items = [json.loads(x) for x in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    expected = json.loads(said.read_text())
    for row, item, one, two in zip(
        rows, items, expected["truthfulqa_mc1"], expected["truthfulqa_mc2"], strict=True
    ):
        assert item["mc1"] == one["acc"] and item["mc2"] == pytest.approx(two["acc"], abs=1e-3)
        texts = list(dict.fromkeys(a for n in ("mc0", "mc1", "mc2") for a in row[f"{n}_targets"]))
        ours = dict(zip(texts, item["logps"], strict=True))
        for name, theirs in (("mc1", one), ("mc2", two)):
            wanted = [ours[answer] for answer in row[f"{name}_targets"]]
            assert wanted == pytest.approx(theirs["logps"], abs=1e-3)


def test_command_on_the_embedded_model(tmp_path):
    """A bar, a table, results; a chat; and again from the items with another number of bins."""
    data, primer = tmp_path / "mc_task.json", tmp_path / "primer.jsonl"
    data.write_text(json.dumps([ROW, ROW | {"question": "Which?"}]))
    primer.write_text(PRIMER)
    flags = ["--data", str(data), "--primer", str(primer), "--shots", "2", "--device", "cpu"]
    for style in ("text", "chat"):
        out = tmp_path / style
        done = run(*flags, "--model", str(ROOT / "data" / "tiny"), "--prompt_style", style,
                   "--out", str(out))  # fmt: skip
        assert done.returncode == 0, done.stderr
        metrics = json.loads((out / "summary.json").read_text())["metrics"]
        assert {"mc0", "mc1", "mc2", "mc3", "letters/ece", "binary/brier", "likelihood/nll",
                "letters/mass"} <= metrics.keys()  # fmt: skip
        assert (out / "reliability.json").is_file()
    samples = str(tmp_path / "text" / "items.jsonl")
    again = run("--data", str(data), "--samples", samples, "--bins", "2", "--out",
                str(tmp_path / "again"))  # fmt: skip
    assert again.returncode == 0, again.stderr
    bad = run("--data", str(data), "--samples", samples, "--binns", "2", "--out", "x")
    assert bad.returncode == 2 and "--bins" in bad.stderr and "Traceback" not in bad.stderr
    assert Path(samples).is_file()
