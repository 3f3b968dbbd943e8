"""eval/entropy.py on the embedded model: entropies against the sum over all completions.

python -m pytest tests/test_entropy.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.chat import detect_chat_format, encode_completion, encode_prompt
from data.prompts import Replies
from data.rows import read_rows
from data.tokenizer import load_tokenizer
from eval.entropy import agreement, encode_rows, score_texts
from model.checkpoint import load_model
from model.lora import add_lora
from model.reference import hash_weights
from model.samples import Drawing, write_samples
from model.sampling import PLAIN
from model.transformer import Transformer
from tests.test_lora import scatter, small_model

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "data" / "tiny")
QUESTIONS = [json.loads(line)["prompt"] for line in open(f"{TINY}/heldout.jsonl")][:3]


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return load_model(TINY).eval()


@pytest.fixture(scope="module")
def replies() -> Replies:
    tokenizer = load_tokenizer(TINY)
    return Replies(detect_chat_format(TINY, tokenizer)[0], tokenizer)


@pytest.fixture(scope="module")
def drawn(policy: Transformer, replies: Replies, tmp_path_factory) -> list[dict]:
    """400 completions of three prompts, of two tokens at most."""
    out = tmp_path_factory.mktemp("drawn") / "samples.jsonl"
    drawing = Drawing(400, 2, PLAIN, 0, replies.stop_ids)
    prompts = [encode(question, replies) for question in QUESTIONS]
    records = [{"prompt": question} for question in QUESTIONS]
    write_samples(policy, prompts, drawing, out, replies.text, records=records)
    return [{**row, "where": where} for where, row in read_rows(out)]


def encode(question: str, replies: Replies) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return encode_prompt(messages, replies.chat_format, replies.tokenizer)


def next_logps(policy: Transformer, rows: list[list[int]]) -> torch.Tensor:
    """(B, V) float64 log-probabilities behind rows of equal length."""
    with torch.no_grad():
        return policy(torch.tensor(rows))[:, -1].double().log_softmax(dim=-1)


def exact_entropy(policy: Transformer, prompt: list[int], stop_ids: list[int]) -> float:
    """Of completions of two tokens at most: H(y1) + sum over y1 of p(y1) H(y2 | y1).

    A token that ends the completion has no second one behind it.
    """
    first = next_logps(policy, [prompt])[0]
    second = next_logps(policy, [[*prompt, id] for id in range(len(first))])
    behind = -(second.exp() * second).sum(dim=-1)
    behind[stop_ids] = 0
    return (-(first.exp() * first).sum() + (first.exp() * behind).sum()).item()


def test_both_estimates_are_the_exact_entropy(policy, replies, drawn, tmp_path: Path) -> None:
    """Within four standard errors for each prompt; the second estimate has the smaller ones."""
    texts = encode_rows(drawn, TINY, "auto", None)
    scored, _ = score_texts(policy, *texts, tmp_path / "scored.jsonl")
    errors = []
    for prompt, row, found in zip(texts[0], drawn, scored, strict=True):
        assert found["tokens"] == row["tokens"]
        assert found["logps"] == pytest.approx(row["logps"], abs=1e-4)
        exact = exact_entropy(policy, prompt, replies.stop_ids)
        for values in ([-logp for logp in row["logps"]], found["entropies"]):
            errors.append(np.std(values, ddof=1) / 20)
            assert np.mean(values) == pytest.approx(exact, abs=4 * errors[-1])
    assert sum(errors[1::2]) < sum(errors[::2]) / 1.3


def test_entropies_of_one_token_are_exact(policy, replies, tmp_path: Path) -> None:
    """A word of one token, and no word: whatever the first token is, its entropy is the same."""
    row = {"prompt": QUESTIONS[0], "where": "row", "completions": ["That", ""]}
    row["finish_reasons"] = ["length", "length"]
    prompts, completions = encode_rows([row], TINY, "auto", None)
    logps = next_logps(policy, [encode(QUESTIONS[0], replies)])[0]
    [found], _ = score_texts(policy, prompts, completions, tmp_path / "scored.jsonl")
    assert found["tokens"] == [1, 1]
    assert found["entropies"] == pytest.approx([-(logps.exp() * logps).sum().item()] * 2, abs=1e-5)
    assert found["logps"] == pytest.approx([logps[ids[0]].item() for ids in completions[0]], 1e-5)


def test_a_cut_completion_has_no_end(replies) -> None:
    row = {"prompt": QUESTIONS[0], "where": "row", "completions": ["a b", "a b", ""]}
    row["finish_reasons"] = ["stop", "length", "length"]
    prompts, [[whole, cut, empty]] = encode_rows([row], TINY, "auto", None)
    assert prompts == [encode(QUESTIONS[0], replies)]
    assert whole == encode_completion("a b", replies.chat_format, replies.tokenizer)
    assert cut == whole[:-1]
    assert len(empty) == 1  # what was drawn cannot be told from the text; a token there must be
    del row["finish_reasons"]
    assert encode_rows([row], TINY, "auto", None)[1][0][:2] == [whole, whole]


def test_prompts_take_messages_and_a_system_message() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"prompt": [*turns, {"role": "user", "content": "c"}], "completions": ["d"]}
    asked, _ = encode_rows([{**row, "where": "row"}], TINY, "zephyr", None)
    told, _ = encode_rows([{**row, "where": "row"}], TINY, "zephyr", "be brief")
    decode = load_tokenizer(TINY).decode
    assert "b" in decode(asked[0]) and "be brief" not in decode(asked[0])
    assert "be brief" in decode(told[0])


def test_rows_that_are_there_are_kept(policy, drawn, tmp_path: Path) -> None:
    """A run that was stopped behind its first row goes on to the same file; others are refused."""
    prompts, completions = encode_rows(drawn, TINY, "auto", None)
    completions = [some[:3] for some in completions]
    out = tmp_path / "scored.jsonl"
    whole, weights = score_texts(policy, prompts, completions, out)
    assert weights == hash_weights(policy, adapters=True)
    text = out.read_text()
    first = json.loads(text.splitlines()[0])
    marked = json.dumps({**first, "logps": [-7.0] * 3}) + "\n"
    out.write_text(marked + text.splitlines()[1][:20])  # and a row that a kill has cut
    rows, _ = score_texts(policy, prompts, completions, out)
    assert rows[0]["logps"] == [-7.0] * 3
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in whole]
    with pytest.raises(ValueError, match=r"made otherwise .texts"):
        score_texts(policy, prompts, [some[:2] for some in completions], out)


def test_scores_of_another_adapter_or_behind_another_prompt_are_not_kept(tmp_path: Path) -> None:
    add_lora(model := small_model(), rank=2, alpha=4.0)
    file = tmp_path / "scored.jsonl"
    score_texts(model, [[5, 6]], [[[7, 8]]], file)
    with pytest.raises(ValueError, match=r"made otherwise \(texts"):
        score_texts(model, [[5, 9]], [[[7, 8]]], file)
    scatter(model)
    with pytest.raises(ValueError, match=r"made otherwise \(weights"):
        score_texts(model, [[5, 6]], [[[7, 8]]], file)


def test_what_cannot_be_scored_is_named(policy, tmp_path: Path) -> None:
    row = {"where": "samples.jsonl:1", "completions": ["a"]}
    with pytest.raises(
        ValueError, match=r"samples.jsonl:1: --model and --reference need the `prom"
    ):
        encode_rows([row], TINY, "auto", None)
    positions = policy.config.max_position_embeddings
    fits, longer = [[[5] * 9, [7] * (positions - 10 + more)] for more in (0, 1)]
    score_texts(policy, [[5] * 10], [fits], tmp_path / "fits.jsonl")
    message = (
        f"--samples, row 1: a prompt of 10 tokens and a completion of {positions - 9} do not fit "
        f"the model's {positions} positions; draw shorter completions"
    )
    with pytest.raises(ValueError, match=message):
        score_texts(policy, [[5], [5] * 10], [[[7]], longer], tmp_path / "scored.jsonl")
    with pytest.raises(ValueError, match="--samples, row 0: token 9999 is outside the model's voc"):
        score_texts(policy, [[5]], [[[7, 8], [9999]]], tmp_path / "scored.jsonl")


def test_agreement_by_hand(capsys) -> None:
    """Of four one has other tokens and one is off by 3%."""
    drawn = [{"tokens": [3, 4], "logps": [-10, -20]}, {"tokens": [5, 1], "logps": [-1, -100]}]
    scored = [{"tokens": [3, 5], "logps": [-10.05, -20]}, {"tokens": [5, 1], "logps": [-1, -103]}]
    assert agreement(drawn, scored) == 1 / 2
    assert "50.0% of the completions" in capsys.readouterr().out
    others = [{"tokens": [3, 4], "logps": [-30, -90]}, {"tokens": [5, 1], "logps": [-9, -1]}]
    assert agreement(drawn, others) == 0
    assert "were they drawn by this --model" in capsys.readouterr().out
    assert agreement([{"tokens": [1]}], scored) is None
