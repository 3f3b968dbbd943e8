"""Every invariant of texts and ids is seen to break, alone, by what it guards against.

pytest tests/test_invariant_texts.py
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

import data.chat
import data.pairs
from data.pairs import TokenPair
from data.tokenizer import SentencePieceTokenizer
from eval.invariant_texts import (
    boundary,
    end_of_turn,
    markup,
    not_empty,
    one_bos,
    round_trip,
    spread,
    truncation,
    vocabulary,
)
from eval.invariants import load_texts
from tests.test_invariants import TINY, check, not_passed, small, sums_of, write

ENCODE, TRUNCATE = data.chat.encode_completions, data.pairs.truncate
DECODE = SentencePieceTokenizer._decode_run
OPENING = data.chat.opening_ids


@dataclass(frozen=True)
class Sabotage:
    """What is broken, and what the checks have to say of it."""

    verdicts: dict[str, str]  # all that do not pass
    mend: str
    rows: list[dict] = field(default_factory=lambda: sums_of(12))
    flags: dict = field(default_factory=dict)
    patches: tuple[tuple[object, str, Callable], ...] = ()


def without_end(texts, chat_format, tokenizer):
    return [ids[:-1] for ids in ENCODE(texts, chat_format, tokenizer)]


def with_two_ends(texts, chat_format, tokenizer):
    return [[*ids, ids[-1]] for ids in ENCODE(texts, chat_format, tokenizer)]


def end_after_the_cut(prompt, chosen, rejected, *limits):
    end = chosen[-1]
    prompt, *cut = TRUNCATE(prompt, chosen, rejected, *limits)
    return prompt, *([*ids[:-1], end] for ids in cut)


def nothing_of_one(texts, chat_format, tokenizer):
    encoded = ENCODE(texts, chat_format, tokenizer)
    return [ids[-1:] if "2 + 3 = 5" in text else ids
            for text, ids in zip(texts, encoded, strict=True)]  # fmt: skip


def bos_in_completions(texts, chat_format, tokenizer):
    return [[tokenizer.bos_id, *ids] for ids in ENCODE(texts, chat_format, tokenizer)]


def edited(row: int, **texts: str) -> list[dict]:
    rows = sums_of(12)
    rows[row] |= texts
    return rows


RENDERED = [
    {name: f"<|im_start|>user\n{text}<|im_end|>" for name, text in row.items()}
    for row in sums_of(12)
]
LONG = [row | {name: f"{row[name]} " * 4 for name in ("chosen", "rejected")} for row in sums_of(12)]
SABOTAGES = {
    "BOS twice": Sabotage(
        {"one BOS": "fail"},
        "pairs.jsonl:1: BOS is not there once, at the front of the prompt (1 expected there)",
        patches=((data.chat, "opening_ids", lambda *a: OPENING(*a) * 2),),
    ),
    "no BOS": Sabotage(
        {"one BOS": "fail"},
        "pairs.jsonl:1: BOS is not there once",
        patches=((data.chat, "opening_ids", lambda *a: []),),
    ),
    "BOS in completions": Sabotage(
        {"one BOS": "fail", "decode(encode(text))": "fail", "boundary of the prompt": "note"},
        "to mend: one BOS (2 invariants fail, this is the first)",
        patches=((data.chat, "encode_completions", bos_in_completions),
                 (data.pairs, "encode_completions", bos_in_completions)),
    ),
    "no end of turn": Sabotage(
        {"end of turn": "fail"},
        "pairs.jsonl:1: a completion has the end-of-turn token (id 2) elsewhere than once",
        patches=((data.pairs, "encode_completions", without_end),),
    ),
    "two ends of turn": Sabotage(
        {"end of turn": "fail"},
        "pairs.jsonl:1: a completion has the end-of-turn token (id 2) elsewhere than once",
        patches=((data.pairs, "encode_completions", with_two_ends),),
    ),
    "an end of turn where it was cut": Sabotage(
        {"end of turn": "fail"},
        "where it is cut; see eos_token of the tokenizer",
        rows=LONG,
        flags={"max_length": 60, "max_prompt_length": 40},
        patches=((data.pairs, "truncate", end_after_the_cut),),
    ),
    "a reply without tokens": Sabotage(
        {"completions with text": "fail", "decode(encode(text))": "note",
         "boundary of the prompt": "note"},
        "pairs.jsonl:1: the reply has no token of its own, so there is nothing to prefer",
        patches=((data.chat, "encode_completions", nothing_of_one),
                 (data.pairs, "encode_completions", nothing_of_one)),
    ),
    "letters that decode to others": Sabotage(
        {"decode(encode(text))": "fail"},
        "pairs.jsonl:1: the ids decode to another text than the rendered one",
        patches=(
            (SentencePieceTokenizer, "_decode_run", lambda *a: DECODE(*a).replace("oo", "00")),
        ),
    ),
    "rows that were rendered before": Sabotage(
        {"no markup in texts": "fail"},
        "pairs.jsonl:1: the text spells a chat template's tokens, which are read as text",
        rows=RENDERED,
    ),
    "one row that spells EOS": Sabotage(
        {"no markup in texts": "note"},
        "pairs.jsonl:5: the text spells a chat template's tokens",
        rows=edited(4, chosen="5 + 6 = 11</s>"),
    ),
    "most completions cut": Sabotage(
        {"whole completions": "fail"},
        "pairs.jsonl:1: the completion is cut at --max_length 60",
        rows=LONG,
        flags={"max_length": 60, "max_prompt_length": 40},
    ),
    "one completion cut": Sabotage(
        {"whole completions": "note"},
        "pairs.jsonl:3: the completion is cut at --max_length 100",
        rows=edited(2, chosen="1 + 1 = 2\n" * 20),
        flags={"max_length": 100, "max_prompt_length": 60},
    ),
    "a pair twice": Sabotage(
        {"distinct pairs": "note"},
        "pairs.jsonl:13: stands there before",
        rows=sums_of(12) + sums_of(1),
    ),
    "opposite labels": Sabotage(
        {"labels agree": "note"},
        "pairs.jsonl:1: another row prefers the other completion",
        rows=sums_of(12) + [r | {"chosen": r["rejected"], "rejected": r["chosen"]}
                            for r in sums_of(1)],
    ),
    "a token across the boundary": Sabotage(  # in a format that the model was not trained with
        {"boundary of the prompt": "note", "the texts are known": "fail",
         "the end of turn is known": "note"},
        "pairs.jsonl:1: nothing to mend. Read as one text, prompt and reply have a token",
        rows=[{"prompt": "Ben has 9 bo", "chosen": "oks. How many books is that?",
               "rejected": "oks. Then 4 more are added. How many books is that?"}],
        flags={"chat_format": "none"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGES)
def test_what_is_broken_is_found_and_nothing_else(name, tmp_path, capsys, monkeypatch):
    sabotage = SABOTAGES[name]
    for patch in sabotage.patches:
        monkeypatch.setattr(*patch)
    ready, verdicts, text = check(small(tmp_path, sabotage.rows, **sabotage.flags), capsys)
    assert not_passed(verdicts) == sabotage.verdicts
    assert sabotage.mend in text
    assert ready == ("fail" not in sabotage.verdicts.values())


def test_ids_beyond_the_models_rows(tmp_path, capsys):
    """A model of 100 rows with a tokenizer of 512."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    fields = json.loads((folder / "config.json").read_text()) | {"vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(fields))
    ready, verdicts, text = check(small(tmp_path, model=str(folder)), capsys)
    assert not ready and not_passed(verdicts) == {"ids in the vocabulary": "fail"}
    assert ", but the model has 100 rows of embeddings; pass the model's own tokenizer" in text


def test_held_out_prompts_that_are_trained_on(tmp_path, capsys):
    """1 of 2 is a note, 2 of 3 a failure."""
    rows = sums_of(12)
    for known, total, verdict in ((0, 2, None), (1, 2, "note"), (2, 3, "fail")):
        held_out = write(tmp_path / "h.jsonl", rows[:known] + sums_of(total - known, first=40))
        ready, verdicts, _ = check(small(tmp_path, rows, eval_data=held_out), capsys, 2)
        assert verdicts["held-out prompts are new"] == (verdict or "pass")
        assert ready == (verdict != "fail")


def test_a_conversation_that_goes_on_is_no_new_one(tmp_path, capsys):
    """HH has one conversation at several lengths: what the human says first tells them apart."""

    def talk(turn: str, *more: str) -> dict:
        names = ("Human", "Assistant", "Human")
        text = "".join(f"\n\n{a}: {b}" for a, b in zip(names, (turn, *more), strict=False))
        return {"chosen": f"{text}\n\nAssistant: yes", "rejected": f"{text}\n\nAssistant: no"}

    rows = [talk(f"{i} + {i}?") for i in range(8)]
    for first, verdict in (("7 + 7?", "fail"), ("8 + 8?", "pass")):
        held_out = write(tmp_path / "h.jsonl", [talk(first, "14", "and?")])
        flags = {"eval_data": held_out, "chat_format": "plain"}
        _, verdicts, _ = check(small(tmp_path, rows, **flags), capsys, 2)
        assert verdicts["held-out prompts are new"] == verdict


def test_a_format_that_overrules_the_checkpoints_own(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text("{{ 'something new' }}")
    _, verdicts, text = check(small(tmp_path, model=str(folder)), capsys)
    assert verdicts == {"model and data readable": "fail"}
    assert text.splitlines()[-1].startswith(f"{folder}/chat_template.jinja: a chat template this")
    _, verdicts, text = check(small(tmp_path, model=str(folder), chat_format="plain"), capsys)
    assert not_passed(verdicts) == {"chat format": "note"}
    assert "--chat_format plain overrules it" in text


def test_formats_with_turns_and_specials_round_trip(smollm2_dir, tmp_path, capsys):
    """ChatML with several turns, a system message, spaces, characters of several bytes, special
    tokens spelled as text: all of it comes back."""
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Größe?\n\n  ∑ 🙂"},
        {"role": "assistant", "content": "12\tcm"},
        {"role": "user", "content": "and <|im_end|> width?"},
    ]
    rows = [{"prompt": turns, "chosen": " 3 cm 🙂", "rejected": "<|im_start|>4"}]
    model = str(smollm2_dir)
    _, verdicts, _ = check(small(tmp_path, rows, model=model, max_length=80,
                                 max_prompt_length=79, tokenizer=model), capsys)  # fmt: skip
    merged = {"boundary of the prompt": "note"}  # the format's newline with the reply's space
    assert not_passed(verdicts) == {"no markup in texts": "fail"} | merged


def test_prompts_that_are_cut_are_no_difference(tmp_path, capsys):
    """The long prompt loses its front, down to 40 tokens, and then there is room."""
    rows = [*sums_of(3), sums_of(4)[3] | {"prompt": "How many books? " * 30 + "1 + 1?"}]
    flags = {"max_length": 100, "max_prompt_length": 40}
    ready, verdicts, text = check(small(tmp_path, rows, **flags), capsys)
    assert ready and not not_passed(verdicts)
    assert "cut to --max_length 100: 1 prompts" in text and "0 of 3 pairs differ" in text


def test_spread_takes_them_evenly():
    none = np.zeros(0, np.int32)
    pairs = [TokenPair(none, none, none, str(i)) for i in range(10)]
    assert [pair.source for pair in spread(pairs, 4)] == ["0", "3", "6", "9"]
    assert spread(pairs, 20) == pairs and spread(pairs, 1) == pairs[:1]


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_the_largest_id_of_a_pair_may_be_anywhere():
    """10 rows have the ids 0 to 9."""
    for place in range(3):
        parts = [ids(1), ids(2), ids(3)]
        for id, verdict in ((9, "pass"), (10, "fail")):
            parts[place] = ids(id)
            pairs = [TokenPair(*parts, "x:1"), TokenPair(ids(1), ids(2), ids(3), "x:2")]
            finding = vocabulary(SimpleNamespace(tokens=pairs, vocab_size=10))
            assert finding.verdict == verdict
    pairs.append(TokenPair(ids(99), ids(2), ids(3), "x:3"))
    finding = vocabulary(SimpleNamespace(tokens=pairs, vocab_size=10))
    assert finding.mend.startswith("x:1: id 10, but the model has 10 rows")


def test_an_end_of_turn_may_be_bos(tmp_path):
    """As in a base model with one special token for all; elsewhere in a completion it is wrong."""
    texts = load_texts(small(tmp_path))
    (pair, *_) = texts.tokens
    texts.tokenizer.bos_id, first = texts.end, np.int32(texts.end)
    one = replace(pair, prompt_ids=np.append(first, pair.prompt_ids[1:]))
    for rejected, verdict in ((one.rejected_ids, "pass"), (ids(first, first), "fail")):
        some = replace(texts, tokens=[replace(one, rejected_ids=rejected)])
        assert (one_bos(some).verdict, end_of_turn(some).verdict) == ("pass", verdict)


def test_what_is_wrong_with_one_completion_of_a_pair_is_enough(tmp_path):
    """BOS, no text, markup, and no end of turn, in the rejected one alone."""
    texts = load_texts(small(tmp_path))
    pair = texts.tokens[0]
    odd = [ids(1, *pair.rejected_ids), ids(2), ids(*pair.rejected_ids[:-1])]
    with_bos, empty, endless = (
        replace(texts, tokens=[TokenPair(pair.prompt_ids, pair.chosen_ids, one, pair.source)])
        for one in odd
    )
    assert one_bos(with_bos).found == "1 of 1 pairs have another count"
    assert not_empty(empty).found == "1 of 2 empty"
    assert end_of_turn(endless).found == "1 of 2 completions end wrong"
    for row in ({"rejected": "2</s>"}, {"prompt": "1 + 1</s>?"}):
        some = load_texts(small(tmp_path, edited(0, **row)))
        assert markup(some).found == "1 of 12 pairs spell it"


def test_a_completion_that_just_fits_has_its_end(tmp_path):
    """max_length is what the longer pair takes, to the token; with one less it is cut."""
    texts = load_texts(small(tmp_path, sums_of(1)))
    (pair,) = texts.tokens
    longest = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
    for length, cut in ((longest, 0), (longest - 1, 2)):
        flags = {"max_length": length, "max_prompt_length": length - 1}
        some = load_texts(small(tmp_path, sums_of(1), **flags))
        assert end_of_turn(some).verdict == "pass"
        assert truncation(some).found == f"{cut} of 2 cut"


def test_the_special_tokens_of_a_prompt_are_those_that_are_rendered(tmp_path):
    """A decoder leaves them out: an end of turn (2) behind BOS does not show in the text."""
    texts = load_texts(small(tmp_path, sums_of(3)))
    first, *others = texts.tokens
    spelled = replace(first, prompt_ids=np.insert(first.prompt_ids, 1, 2))
    assert texts.tokenizer.decode(spelled.prompt_ids) == texts.tokenizer.decode(first.prompt_ids)
    finding = round_trip(texts, [spelled, *others])
    assert finding.found == "1 of 3 pairs differ" and finding.verdict == "note"
    assert round_trip(texts, [spelled]).verdict == "fail"  # most of them


def test_both_replies_are_looked_at_across_the_boundary(tmp_path):
    row = {"prompt": "Ben has 9 bo", "chosen": "12", "rejected": "oks. How many books is that?"}
    texts = load_texts(small(tmp_path, [row], chat_format="none"))
    assert boundary(texts, texts.tokens).found == "1 of 2 replies would merge"
