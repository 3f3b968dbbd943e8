"""Choices of questions: the numbers of the plain forward, tokens at the seam, files, refusals.

The embedded model; a question's choices are scored one at a time with whole logits beside them.
pytest tests/test_choices.py
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.chat import detect_chat_format
from data.tokenizer import load_tokenizer
from eval import choices as module
from eval.choices import (
    ChoiceConfig,
    Question,
    Task,
    ask_model,
    check_ids,
    check_logps,
    encode_questions,
    run_choices,
    shared_length,
    write_reliability,
)
from model import score
from model.checkpoint import load_model
from model.lora import add_lora
from tests.conftest import ROOT
from tests.test_lora import scatter, small_model

TINY = ROOT / "data" / "tiny"
PROBLEMS = [
    {"text": f"{name} has {a} apples and gets {b} more. How many?", "answer": (a + b) % 3}
    for name, a, b in [("Tom", 3, 5), ("Lily", 10, 4), ("Ben", 7, 7), ("Mia", 2, 9), ("Sam", 1, 1)]
]
CHOICES = (" 8", " 14 apples", " eleven")
BEGINNING = "Answer the question. " * 6


def ask(i: int, problem: dict) -> list[Question]:
    """One question of each of two groups; the second has a choice for each letter of two."""
    text = problem["text"]
    return [
        Question(i, "logps", BEGINNING + text, CHOICES, "long"),
        Question(i, "letters", text, (" A", " B"), "short"),
    ]


def make_item(problem: dict, found: dict) -> dict:
    return {"answer": problem["answer"]} | found


def metric_values(items: list[dict]) -> dict:
    best = [max(range(3), key=item["logps"].__getitem__) for item in items]
    right = [float(b == item["answer"]) for b, item in zip(best, items, strict=True)]
    return {"accuracy": right, "confidence": [1.0] * len(items)}


TASK = Task("apples", PROBLEMS, [q for i, p in enumerate(PROBLEMS) for q in ask(i, p)], make_item,
            metric_values)  # fmt: skip


@pytest.fixture
def config(tmp_path) -> ChoiceConfig:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(problem) for problem in PROBLEMS))
    return ChoiceConfig(
        model=str(TINY), data=str(data), device="cpu", dtype="float32", out=str(tmp_path / "out")
    )


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY)


def plain_logp(model, tokenizer, prompt: str, choice: str) -> float:
    """log p(prompt + choice) - log p(prompt), each as one text, where the seam parts no token."""
    opening = [tokenizer.bos_id] if tokenizer.adds_bos else []
    alone, joined = (opening + tokenizer.encode(text) for text in (prompt, prompt + choice))
    assert joined[: len(alone)] == alone
    with torch.no_grad():
        logps = model(torch.tensor([joined])).double().log_softmax(-1)[0]
    return sum(logps[t - 1, joined[t]].item() for t in range(len(alone), len(joined)))


@pytest.mark.parametrize("tokens", [4096, 60])
def test_scores_are_those_of_the_plain_forward(config, tokenizer, monkeypatch, tokens):
    monkeypatch.setattr(score, "PACKED_TOKENS", tokens)
    items, model = run_choices(config, TASK), load_model(TINY)
    for item, question in zip([i for i in items for _ in range(2)], TASK.questions, strict=True):
        plain = [plain_logp(model, tokenizer, question.prompt, c) for c in question.choices]
        assert item[question.field] == pytest.approx(plain, abs=1e-4)
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["problems"] == 5 and summary["settings"]["model"] == str(TINY)


def test_scored_again_from_the_items(config, tmp_path):
    """The same metrics without a model; what the model's flags were is not known there."""
    items = run_choices(config, TASK)
    samples, out = f"{config.out}/items.jsonl", str(tmp_path / "again")
    again = run_choices(replace(config, model=None, samples=samples, out=out), TASK)
    assert again == items
    before, after = (json.loads((Path(o) / "summary.json").read_text()) for o in (config.out, out))
    assert after["metrics"] == before["metrics"]
    assert after["settings"]["device"] is None and len(after["settings"]["samples_sha256"]) == 64


def test_a_killed_run_goes_on_to_the_same_bytes(config, tmp_path, monkeypatch):
    """Stopped in the third forward; the next run makes those that are missing alone."""
    monkeypatch.setattr(score, "PACKED_TOKENS", 60)
    whole = replace(config, out=str(tmp_path / "whole"))
    run_choices(whole, TASK)
    made, plain = [], module.score_parts

    def stopped(*args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "score_parts", stopped)
        with pytest.raises(SystemExit):
            run_choices(config, TASK)
    rows = (Path(config.out) / "logps.jsonl").read_text().splitlines()
    assert [json.loads(row)["index"] for row in rows] == [0, 1]
    monkeypatch.setattr(module, "score_parts", lambda *args: made.append(args) or plain(*args))
    run_choices(config, TASK)
    for name in ("logps.jsonl", "items.jsonl", "reliability.json"):
        assert (Path(config.out) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    total = len((tmp_path / "whole" / "logps.jsonl").read_text().splitlines())
    assert len(made) == total > 4


RANKS = """
import sys
from eval.choices import check_ids, ChoiceConfig, run_choices
from model import parallel, score
from model.run import run_main
from tests.test_choices import TASK

model, data, out = sys.argv[1:]
score.PACKED_TOKENS = 60


def main() -> None:
    for kind in ("copies", "shard"):
        run_choices(ChoiceConfig(model=model, data=data, device="cpu", dtype="float32",
                                 shard=kind == "shard", out=f"{out}/{kind}"), TASK)
        parallel.any_rank(False)


run_main(main)
"""


def test_two_ranks_share_the_forwards(config, tmp_path):
    """Each with a copy of the weights, or with a share: the numbers of one process to 1e-4."""
    expected = run_choices(config, TASK)
    script = tmp_path / "script.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [str(script), config.model, config.data, str(tmp_path)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("copies", "shard"):
        lines = (tmp_path / kind / "items.jsonl").read_text().splitlines()
        for item, line in zip(expected, lines, strict=True):
            for field in ("logps", "letters"):
                assert json.loads(line)[field] == pytest.approx(item[field], abs=1e-4)


# ------------------------------------------------------------------------------------------------
# tokens


def test_scores_of_another_adapter_or_behind_another_prompt_are_not_kept(tmp_path):
    add_lora(model := small_model(), rank=2, alpha=4.0)
    questions = [Question(i, "logps", "", (" A",), "g") for i in range(2)]
    task = Task("t", [{}, {}], questions, make_item, metric_values)

    def score(last: int) -> None:
        ids = [[1, 2], [1, last]], [[[7, 8]]] * 2
        ask_model(model, task, *ids, [0, 0], tmp_path / "logps.jsonl")

    score(3)
    with pytest.raises(ValueError, match=r"made otherwise \(prompts"):
        score(4)
    scatter(model)
    with pytest.raises(ValueError, match=r"made otherwise \(weights"):
        score(3)


def test_where_prompt_and_choices_part():
    """The last id of a whole is a choice's own, even where the prompt has it too."""
    assert shared_length([1, 2, 3], [1, 2, 3, 4]) == 3
    assert shared_length([1, 2, 3], [1, 2, 9, 4]) == 2
    assert shared_length([1, 2, 3], [1, 2, 3]) == 2
    assert shared_length([1, 2, 3], [1, 9]) == 1


def test_a_token_across_the_seam_belongs_to_the_choice(tokenizer):
    """Prompt "... ha" and choice "s": if "has" is one token, it is the choice's, and "ha" is not
    read. Whatever the tokens are, prompt and choice together are those of the whole text.
    """
    chat_format, _ = detect_chat_format(TINY, tokenizer, "none")
    question = Question(0, "logps", "Tom ha", ("s 3 apples", "d 3 apples"), "")
    (prompt,), (choices,), _ = encode_questions([question], chat_format, tokenizer, 512, False)
    opening = [tokenizer.bos_id] if tokenizer.adds_bos else []
    for text, ids in zip(question.choices, choices, strict=True):
        assert prompt + ids == opening + tokenizer.encode("Tom ha" + text)
    assert choices[0][0] != choices[1][0] and tokenizer.decode(choices[0][:1]).strip() == "has"


def test_a_chat_s_choices_begin_the_reply(tokenizer):
    chat_format, _ = detect_chat_format(TINY, tokenizer)
    question = Question(0, "logps", "Which?", (" A", " B"), "")
    (prompt,), (choices,), _ = encode_questions([question], chat_format, tokenizer, 512, True)
    assert [tokenizer.decode_continuation(ids).strip() for ids in choices] == ["A", "B"]
    assert "Which?" in tokenizer.decode(prompt)


def test_a_prompt_that_is_too_long_says_less(tokenizer):
    """Room for the second of three prompts; the last choice token takes no position."""
    chat_format, _ = detect_chat_format(TINY, tokenizer, "none")
    prompts = ["Tom has 3 apples. " * n for n in (3, 2, 1)]
    question = Question(0, "logps", prompts[0], (" A",), "", tuple(prompts[1:]))

    def encode(positions: int):
        return encode_questions([question], chat_format, tokenizer, positions, False)

    _, _, level = encode(512)
    assert level == [0]
    lengths = [len(encode_questions([replace(question, prompt=p)], chat_format, tokenizer, 512,
                                    False)[0][0]) for p in prompts]  # fmt: skip
    extra = len(encode(512)[1][0][0]) - 1
    (prompt,), _, level = encode(lengths[1] + extra)
    assert (len(prompt), level) == (lengths[1], [1])
    with pytest.raises(ValueError, match=r"problem 0 takes \d+ tokens; the model has 3 positions"):
        encode(3)


def test_ids_that_the_model_does_not_have_are_refused():
    check_ids([[1, 2]], [[[9], [3]]], vocab_size=10)
    for prompts, choices in (([[1, 10]], [[[9]]]), ([[1]], [[[9], [4, 10]]])):
        with pytest.raises(ValueError, match="gives id 10, but the model has a vocabulary of 10"):
            check_ids(prompts, choices, vocab_size=10)


def test_questions_with_fewer_exemplars_are_a_group_of_their_own():
    questions = [Question(i, "logps", "", (" A",), "g") for i in range(3)]
    prompts, choices = [[1, 2, 3, 4], [9, 4], [1, 2, 3, 5]], [[[7]]] * 3
    forwards = module.plan_groups(questions, prompts, choices, [0, 1, 0])
    assert [forward.group for forward in forwards] == [[0, 2], [1]]


# ------------------------------------------------------------------------------------------------
# refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"out": None}, "--out expects a folder"),
        ({"model": None}, "either --model to ask, or --samples to score"),
        ({"samples": "x"}, "either --model to ask, or --samples to score"),
        ({"limit": 0}, "--limit expects 1 or more, got 0"),
        ({"bins": 0}, "--bins expects 1 or more, got 0"),
        ({"binning": "x"}, "--binning expects width or mass, got 'x'"),
        ({"prompt_style": "x"}, "--prompt_style expects text or chat, got 'x'"),
        ({"chat_format": "zephyr"}, "--chat_format zephyr needs --prompt_style chat"),
        ({"dtype": "int8"}, "--dtype expects one of float32"),
        ({"shard": True}, "--shard needs more than one rank"),
        ({"data": "nowhere"}, "--data expects the problems, got nowhere"),
        ({"model": "nowhere"}, "--model expects a folder with config.json, got nowhere"),
        ({"model": None, "samples": "nowhere"}, "--samples expects a file, got nowhere"),
        ({"model": None, "samples": "x", "adapter": "y"}, "--adapter needs --model"),
    ],
)
def test_flags_are_refused(config, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_choices(replace(config, **changes), TASK)


FOUND = {"logps": [-1.0, -2.0, -3.0], "letters": [-0.5, -0.9]}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"index": -1}, "f:2: expected the index of a problem, got -1"),
        ({"index": 0} | FOUND, "f:2: problem 0 stands there twice"),
        ({"index": 1, "logps": [-1.0]}, r"f:2: logps: expected 3 log-probabilities, got \[-1.0\]"),
        ({"index": 1} | FOUND | {"logps": [-1.0, "x", 0]}, "f:2: logps: expected 3"),
        ({"index": 1} | FOUND | {"logps": [-1.0, 0.5, 0]}, "f:2: logps: expected 3"),
        ({"index": 1} | FOUND | {"logps": [-1.0, math.nan, 0]}, "f:2: "),
        ({"index": 1} | FOUND | {"answer": 1}, "f:2: answer: expected 2, got 1: not an item of"),
        ({"index": 1} | FOUND, "f: nothing on 3 of 5 problems, the first is 2"),
    ],
)
def test_samples_that_are_none_are_refused(config, tmp_path, row, message):
    samples = tmp_path / "f"
    samples.write_text("\n".join(json.dumps(r) for r in ({"index": 0} | FOUND, row)))
    config = replace(config, model=None, samples=str(samples))
    with pytest.raises(ValueError, match=message):
        run_choices(config, TASK)


def test_a_log_probability_may_be_rounded_above_zero():
    assert check_logps([1e-3, -1], 2, "f:1") == [1e-3, -1.0]
    with pytest.raises(ValueError, match="f:1: expected 2 log-probabilities"):
        check_logps([2e-3, -1], 2, "f:1")


@pytest.mark.parametrize("binning, counts", [("width", [4]), ("mass", [2, 2])])
def test_reliability_has_the_bins_that_are_asked_for(tmp_path, binning, counts):
    """Two of equal width: all four are above a half; two of equal mass."""
    values = {"confidence": [0.6, 0.7, 0.8, 0.9], "accuracy": [0.0, 1.0, 1.0, 1.0]}
    (tmp_path / "values.json").write_text(json.dumps(values))
    write_reliability(ChoiceConfig(bins=2, binning=binning, out=str(tmp_path)), "")
    table = json.loads((tmp_path / "reliability.json").read_text())
    assert [row["count"] for row in table] == counts
