"""data/pairs.py by hand: rows to pairs, truncation worked by hand, dropped rows counted.

On the real data the counts of what is dropped are compared with an independent count.
"""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data.chat import CHAT_FORMATS, bind_tokens, encode_completion, encode_prompt
from data.pairs import (
    Pair,
    TokenPair,
    first_turn,
    flip_labels,
    length_limits,
    read_pairs,
    read_split,
    split_by_first_turn,
    tokenize_pairs,
    truncate,
)
from data.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def say_nothing(_: str) -> None:
    pass


class Log(list):
    def __call__(self, line: str) -> None:
        self.append(line)


# ---------------------------------------------------------------------------------------------
# rows -> pairs
# ---------------------------------------------------------------------------------------------


def test_preferences_in_every_shape(tmp_path: Path) -> None:
    """Each row says: prompt p, chosen c, rejected r."""
    chosen, rejected = [user("p"), assistant("c")], [user("p"), assistant("r")]
    shapes = [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": [user("p")], "chosen": chosen[1:], "rejected": rejected[1:]},
        {"prompt": "p", "chosen": chosen, "rejected": rejected, "messages": chosen, "score": 1},
        {"chosen": chosen, "rejected": rejected},
        {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
        {"prompt": "\n\nHuman: p\n\nAssistant:", "chosen": " c", "rejected": " r"},
        {"prompt": "p", "chosen": "c", "rejected": "r", "messages": None, "system": None},
        {"prompt": None, "chosen": chosen, "rejected": rejected},
    ]
    path = write_rows(tmp_path / "a.jsonl", *shapes)
    log = Log()
    pairs = read_pairs([path], "dpo", log=log)
    assert pairs == [Pair((user("p"),), "c", "r", f"{path}:{i}") for i in range(1, len(shapes) + 1)]
    assert log == ["data: 8 pairs from 8 rows of a.jsonl"]
    examples = read_pairs([path], "sft", log=say_nothing)
    assert examples == [Pair((user("p"),), "c", None, pair.source) for pair in pairs]


def test_the_prompt_is_the_common_turns(tmp_path: Path) -> None:
    """Turns, not characters: "colour" and "color" begin alike and are two replies."""
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("p")]
    row = {
        "chosen": [*turns, assistant("colour")],
        "rejected": [*turns, assistant("color")],
    }
    (pair,) = read_pairs(write_rows(tmp_path / "a.jsonl", row), "spl", log=say_nothing)
    assert pair.prompt == tuple(turns) and (pair.chosen, pair.rejected) == ("colour", "color")


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    hh = "\n\nHuman: p\n\nAssistant:"
    rows = [
        good,
        {**good, "chosen": ""},
        {**good, "rejected": " \n"},
        {**good, "rejected": "c"},
        # as in HH: the dialogues part at the first reply, and one of them goes on
        {"chosen": f"{hh} a\n\nHuman: q\n\nAssistant: b", "rejected": f"{hh} c"},
        {
            "chosen": f"{hh} a\n\nHuman: q\n\nAssistant: b",
            "rejected": f"{hh} c\n\nHuman: q\n\nAssistant: b",
        },
        # two different questions
        {"chosen": f"{hh} a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        # a reply to a reply
        {"chosen": f"{hh} a\n\nAssistant: b", "rejected": f"{hh} a\n\nAssistant: c"},
        {
            "chosen": f"{hh} a\n\nHuman: q\n\nAssistant: b",
            "rejected": f"{hh} a\n\nHuman: q\n\nAssistant: c",
        },
    ]
    log = Log()
    pairs = read_pairs(write_rows(tmp_path / "a.jsonl", *rows), "dpo", log=log)
    assert [pair.source.rpartition(":")[2] for pair in pairs] == ["1", "9"]
    assert log == [
        "data: 2 pairs from 9 rows of a.jsonl; dropped 7: the dialogues part before their last "
        "reply 3, empty reply 2, chosen equals rejected 1, a reply to no user message 1"
    ]
    # sft reads the chosen side alone: rows 2 and 8 go
    log = Log()
    assert len(read_pairs(tmp_path / "a.jsonl", "sft", log=log)) == 7
    assert log[0].endswith("dropped 2: empty reply 1, a reply to no user message 1")


def test_sft_shapes(tmp_path: Path) -> None:
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    path = write_rows(
        tmp_path / "a.jsonl",
        {"messages": turns},
        {"messages": turns[:3]},
        {"prompt": "p", "completion": "q"},
        {"prompt": [user("p")], "completion": [assistant("q")]},
        {"prompt": "p", "chosen": "q"},
        {"messages": [assistant("hello"), *turns[:2]]},
        {"messages": None, "prompt": "p", "completion": "q", "chosen": None},
        {"messages": turns[:2], "system": "s"},
    )
    log = Log()
    examples = read_pairs(path, "sft", log=log)
    assert [(e.prompt, e.chosen, e.rejected) for e in examples] == [
        ((user("a"),), "b", None),
        (tuple(turns[:3]), "d", None),
        ((user("a"),), "b", None),
        ((user("p"),), "q", None),
        ((user("p"),), "q", None),
        ((user("p"),), "q", None),
        ((assistant("hello"), user("a")), "b", None),
        ((user("p"),), "q", None),
        (({"role": "system", "content": "s"}, user("a")), "b", None),
    ]
    assert [e.source.rpartition(":")[2] for e in examples] == [*"112345678"]
    assert log == [
        "data: 9 examples from 8 rows of a.jsonl; dropped 1: a reply to no user message 1"
    ]


@pytest.mark.parametrize(
    ("objective", "row", "message"),
    [
        ("dpo", {"prompt": "p", "chosen": "c"}, "expected the keys chosen and rejected, .* got p"),
        ("dpo", {}, "expected the keys chosen and rejected, with or without prompt, got none"),
        ("dpo", {"prompt": "p", "chosen": "c", "rejected": None}, "expected the keys .* got p"),
        ("dpo", {"prompt": "p", "chosen": "c", "rejected": [user("p")]}, "rejected: expected the"),
        ("dpo", {"chosen": "c", "rejected": "r"}, "chosen: expected a dialogue that begins"),
        ("sft", {"text": "x"}, "expected the keys messages, or prompt and completion, .* got text"),
        ("sft", {"completion": "x"}, "expected the keys messages, or prompt and completion"),
        ("sft", {"messages": [user("p")]}, "messages: expected a reply of the assistant, got none"),
        ("sft", {"messages": "hi"}, "messages: expected a list of messages, got a text"),
        ("sft", {"prompt": "p", "completion": None}, "expected the keys messages, .* got prompt$"),
    ],
)
def test_malformed_rows_are_named(objective: str, row: dict, message: str, tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = write_rows(tmp_path / "a.jsonl", good, good, row)
    with pytest.raises(ValueError, match=f"a.jsonl:3: {message}"):
        read_pairs(path, objective, log=say_nothing)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    files = [tmp_path / "hh" / name / "test.jsonl" for name in ("helpful", "harmless")]
    for file in files:
        file.parent.mkdir(parents=True)
        write_rows(file, row)
    log = Log()
    read_pairs(files, "dpo", log=log)
    read_pairs([files[0], files[0]], "dpo", log=log)
    assert log == [
        "data: 2 pairs from 2 rows of helpful/test.jsonl, harmless/test.jsonl",
        "data: 2 pairs from 2 rows of test.jsonl, test.jsonl",
    ]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match=r"a.jsonl: expected rows, got an empty file"):
        read_pairs(tmp_path / "a.jsonl", "dpo", log=say_nothing)
    same = {"prompt": "p", "chosen": "c", "rejected": "c"}
    path = write_rows(tmp_path / "b.jsonl", same, same)
    with pytest.raises(ValueError, match=r"b.jsonl: no pairs remain; dropped 2: chosen equals"):
        read_pairs(path, "dpo", log=say_nothing)
    full = write_rows(tmp_path / "c.jsonl", {"prompt": "p", "chosen": "c", "rejected": "r"})
    with pytest.raises(ValueError, match=r"a.jsonl: expected rows, got an empty file"):
        read_pairs([full, tmp_path / "a.jsonl"], "dpo", log=say_nothing)


# ---------------------------------------------------------------------------------------------
# truncation
# ---------------------------------------------------------------------------------------------

BOS, EOS = 1, 2
PROMPT = [BOS, 10, 11, 12, 13, 14]  # 6 tokens
CHOSEN = [20, 21, 22, 23, EOS]  # 5
REJECTED = [30, 31, EOS]  # 3


@pytest.mark.parametrize(
    ("max_length", "max_prompt_length", "keep", "expected"),
    [
        # 6 + 5 = 11 fits: nothing is cut, though the prompt is longer than max_prompt_length
        (11, 4, 1, (PROMPT, CHOSEN, REJECTED)),
        # the prompt keeps BOS and its last 3; 4 + 5 fits 10
        (10, 4, 1, ([BOS, 12, 13, 14], CHOSEN, REJECTED)),
        (10, 4, 0, ([11, 12, 13, 14], CHOSEN, REJECTED)),
        # 4 + 5 > 7: 3 tokens of completion; chosen loses its EOS, rejected fits with its own
        (7, 4, 1, ([BOS, 12, 13, 14], [20, 21, 22], REJECTED)),
        (6, 4, 1, ([BOS, 12, 13, 14], [20, 21], [30, 31])),
        # the prompt is within max_prompt_length: it stays, completions get what is left (not 10-7)
        (10, 7, 1, (PROMPT, [20, 21, 22, 23], REJECTED)),
        (7, 6, 1, (PROMPT, [20], [30])),
        (5, 1, 1, ([BOS], [20, 21, 22, 23], REJECTED)),
        (5, 1, 0, ([14], [20, 21, 22, 23], REJECTED)),
    ],
)
def test_truncation_by_hand(
    max_length: int, max_prompt_length: int, keep: int, expected: tuple
) -> None:
    assert truncate(PROMPT, CHOSEN, REJECTED, max_length, max_prompt_length, keep) == expected
    swapped = truncate(PROMPT, REJECTED, CHOSEN, max_length, max_prompt_length, keep)
    assert swapped == (expected[0], expected[2], expected[1])  # neither side decides by itself


def test_truncation_holds_its_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        sizes = rng.integers(1, 40, size=3)
        prompt, chosen, rejected = (list(range(n)) for n in sizes)
        max_prompt = int(rng.integers(1, 40))
        limit = max_prompt + int(rng.integers(1, 40))
        keep = int(rng.integers(0, 2))
        p, c, r = truncate(prompt, chosen, rejected, limit, max_prompt, keep)
        assert 0 < len(p) and len(c) and len(r) and len(p) + max(len(c), len(r)) <= limit
        assert chosen[: len(c)] == c and rejected[: len(r)] == r
        assert p[:keep] == prompt[:keep] and prompt[len(prompt) - len(p) + keep :] == p[keep:]
        if len(p) < len(prompt):
            assert len(p) == max_prompt
        if len(c) < len(chosen) or len(r) < len(rejected):
            assert len(p) + max(len(c), len(r)) == limit
            assert len(p) == min(len(prompt), max_prompt)


# ---------------------------------------------------------------------------------------------
# pairs -> ids
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistral(mistral_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(mistral_tokenizer_dir)


@pytest.fixture(scope="module")
def smollm2(smollm2_dir: Path) -> Tokenizer:
    return load_tokenizer(smollm2_dir)


def ids_of(pair: TokenPair) -> tuple[list[int], list[int], list[int]]:
    return pair.prompt_ids.tolist(), pair.chosen_ids.tolist(), pair.rejected_ids.tolist()


@pytest.mark.parametrize("name", ["zephyr", "llama2", "mistral", "plain", "none", "chatml"])
def test_ids_are_those_of_the_chat_format(
    name: str, mistral_tokenizer_dir: Path, smollm2_dir: Path
) -> None:
    """In chunks and in parallel, as one by one; and the same whatever the size of the chunk."""
    tokenizer = load_tokenizer(smollm2_dir if name == "chatml" else mistral_tokenizer_dir)
    chat_format = bind_tokens(CHAT_FORMATS[name], tokenizer)
    turns = [user("first\n\n \U0001f642"), assistant("</s> and <|im_end|>"), user("again")]
    pairs = [
        Pair(
            (user("q" * i),) if name == "none" or i % 2 else tuple(turns),
            f"reply {i}\n",
            f"  other {i}",
            f"f:{i}",
        )
        for i in range(1, 41)
    ]
    options = {"max_length": 512, "max_prompt_length": 256, "log": say_nothing, "progress": False}
    made = tokenize_pairs(pairs, tokenizer, chat_format, **options, vocab_size=tokenizer.vocab_size)
    for pair, tokens in zip(pairs, made, strict=True):
        assert tokens.source == pair.source
        assert {a.dtype for a in (tokens.prompt_ids, tokens.chosen_ids)} == {np.dtype(np.int32)}
        assert ids_of(tokens) == (
            encode_prompt(pair.prompt, chat_format, tokenizer),
            encode_completion(pair.chosen, chat_format, tokenizer),
            encode_completion(pair.rejected, chat_format, tokenizer),
        )
    again = tokenize_pairs(pairs, tokenizer, chat_format, **options, chunk=7)
    assert [*map(ids_of, again)] == [*map(ids_of, made)]


def test_sft_has_no_rejected(mistral: Tokenizer) -> None:
    chat_format = bind_tokens(CHAT_FORMATS["zephyr"], mistral)
    pairs = [Pair((user("p"),), f"c{i}", None, f"f:{i}") for i in range(3)]
    made = tokenize_pairs(pairs, mistral, chat_format, 64, 32, log=say_nothing, progress=False)
    assert [len(pair.rejected_ids) for pair in made] == [0, 0, 0]
    assert made[0].rejected_ids.dtype == np.int32 and made[1].chosen_ids[-1] == EOS


def test_what_truncation_does_is_told(mistral: Tokenizer) -> None:
    """none: <s> + 5 words | 6 words + </s>, one token a word ("a" -> ▁a, " a" -> ▁a)."""
    chat_format = bind_tokens(CHAT_FORMATS["none"], mistral)
    a, b = mistral.encode("a")[0], mistral.encode("b")[0]
    pairs = [
        Pair((user("a a a a a"),), " a a a a a a", " b", "f:1"),  # 6 + 7 > 9
        Pair((user("a"),), " a", " b", "f:2"),
        Pair((user("a a"),), " a a a a a a a b", " a a a a a a a a", "f:3"),  # equal once cut
        Pair((user("a a"),), " a a a a a a a b", " b", "f:4"),
    ]
    log = Log()
    made = tokenize_pairs(pairs, mistral, chat_format, 9, 4, log=log, progress=False)
    assert [ids_of(pair) for pair in made] == [
        ([1, a, a, a], [a] * 5, [b, 2]),
        ([1, a], [a, 2], [b, 2]),
        ([1, a, a], [a] * 6, [b, 2]),
    ]
    assert log == [
        "tokens: 28 in 3 pairs; cut to --max_length 9: 1 prompts, 4 completions; dropped 1: "
        "equal as tokens, or where they were cut 1"
    ]


def test_texts_that_a_format_makes_equal(mistral: Tokenizer) -> None:
    """llama2 strips replies: "c" and "c\\n" are the same one."""
    chat_format = bind_tokens(CHAT_FORMATS["llama2"], mistral)
    with pytest.raises(ValueError, match="no pairs remain; dropped 1: equal as tokens"):
        tokenize_pairs(
            [Pair((user("p"),), "c", "c\n", "f:1")],
            mistral,
            chat_format,
            64,
            32,
            log=say_nothing,
            progress=False,
        )


def test_pairs_that_cannot_be_tokenized(mistral: Tokenizer, smollm2: Tokenizer) -> None:
    options = {"log": say_nothing, "progress": False}
    zephyr = bind_tokens(CHAT_FORMATS["zephyr"], mistral)
    pair = Pair((user("p"),), "c", "r", "f:1")
    for lengths in ((64, 64), (64, 65), (64, 0)):
        with pytest.raises(ValueError, match="expected 0 < --max_prompt_length < --max_length"):
            tokenize_pairs([pair], mistral, zephyr, *lengths, **options)
    with pytest.raises(ValueError, match=r"f:1: the tokenizer gives id \d+, but the model has a "):
        tokenize_pairs([pair], mistral, zephyr, 64, 32, vocab_size=512, **options)
    none = bind_tokens(CHAT_FORMATS["none"], smollm2)
    with pytest.raises(ValueError, match="f:2: the prompt has no tokens"):
        tokenize_pairs([pair, Pair((user(""),), "c", "r", "f:2")], smollm2, none, 64, 32, **options)
    system = ({"role": "system", "content": "s"}, user("p"))
    plain = bind_tokens(CHAT_FORMATS["plain"], mistral)
    with pytest.raises(ValueError, match="f:2: chat format plain has no system message"):
        tokenize_pairs([pair, Pair(system, "c", "r", "f:2")], mistral, plain, 64, 32, **options)


def test_turns_out_of_order_are_dropped_where_the_format_needs_order(mistral: Tokenizer) -> None:
    """As in a few rows of HH: two replies in a row inside the dialogue."""
    turns = (user("a"), assistant("b"), assistant("c"), user("d"))
    pairs = [Pair(turns, "c", "r", "f:1"), Pair(turns[:1], "c", "r", "f:2")]
    log = Log()
    options = {"log": log, "progress": False}
    llama2, plain = (bind_tokens(CHAT_FORMATS[n], mistral) for n in ("llama2", "plain"))
    assert len(tokenize_pairs(pairs, mistral, llama2, 64, 32, **options)) == 1
    assert "dropped 1: turns out of order for llama2 1" in log[0]
    assert len(tokenize_pairs(pairs, mistral, plain, 64, 32, **options)) == 2


def test_progress_goes_to_stderr(mistral: Tokenizer, capsys: pytest.CaptureFixture) -> None:
    zephyr = bind_tokens(CHAT_FORMATS["zephyr"], mistral)
    tokenize_pairs([Pair((user("p"),), "c", "r", "f:1")], mistral, zephyr, 64, 32)
    out, err = capsys.readouterr()
    assert out.startswith("tokens: ") and "tokenize" in err and "1/1" in err


# ---------------------------------------------------------------------------------------------
# label noise
# ---------------------------------------------------------------------------------------------


def test_flip_labels() -> None:
    pairs = [Pair((user("p"),), f"c{i}", f"r{i}", f"f:{i}") for i in range(50)]
    for fraction, count in ((0.0, 0), (0.1, 5), (0.33, 16), (0.5, 25), (1.0, 50)):
        flipped = flip_labels(pairs, fraction, seed=3)
        changed = [i for i in range(50) if flipped[i] != pairs[i]]
        assert len(changed) == count
        for i in changed:
            assert (flipped[i].chosen, flipped[i].rejected) == (f"r{i}", f"c{i}")
            assert flipped[i].source == pairs[i].source
        assert flipped == flip_labels(pairs, fraction, seed=3)
        np.random.seed(7)  # noqa: NPY002 - the global state of numpy does not matter
        assert flipped == flip_labels(list(pairs), fraction, seed=3)
    assert flip_labels(pairs, 0.5, seed=3) != flip_labels(pairs, 0.5, seed=4)
    for fraction in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="--label_noise: expected a fraction from 0 to 1"):
            flip_labels(pairs, fraction, seed=0)


@pytest.mark.parametrize(("count", "share", "flipped"), [(5, 0.3, 2), (100, 0.29, 29)])
def test_a_share_of_labels_is_rounded(count: int, share: float, flipped: int) -> None:
    """0.3 of 5 is 1.5, and 0.29 of 100 is 28.999999999999996 in float64."""
    pairs = [Pair((), "a", "b", str(i)) for i in range(count)]
    assert sum(pair.chosen == "b" for pair in flip_labels(pairs, share, 0)) == flipped


def test_labels_are_flipped_in_training_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "good", "rejected": "bad"} for i in range(4)]
    file = write_rows(tmp_path / "a.jsonl", *rows)
    pairs, held_out = read_split(file, (file,), 0.05, 1.0, "dpo", seed=0)
    plain = read_pairs(file, "dpo")
    assert [(p.chosen, p.rejected) for p in pairs] == [(p.rejected, p.chosen) for p in plain]
    assert held_out == plain


def test_evaluations_look_at_some_held_out_pairs_the_same_ones_each_time(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "good", "rejected": "bad"} for i in range(40)]
    file = write_rows(tmp_path / "a.jsonl", *rows)
    plain = read_pairs(file, "dpo")
    some = [read_split(file, (file,), 0.05, 0.0, "dpo", seed, 15)[1] for seed in (0, 0, 1)]
    assert len(some[0]) == 15 and some[0] == some[1] != some[2]
    assert some[0] == [pair for pair in plain if pair in some[0]]  # in their order
    for limit in (0, 40, 100):
        pairs, held_out = read_split(file, (file,), 0.05, 0.0, "dpo", 0, limit)
        assert pairs == held_out == plain


def test_texts_that_spell_a_special_token_are_counted(tmp_path: Path) -> None:
    """Of four rows one has </s> in a prompt and one <s> in a reply: text, and worth a word."""
    rows = [
        {"prompt": "a?", "chosen": "good", "rejected": "bad"},
        {"prompt": "b</s>?", "chosen": "good", "rejected": "bad"},
        {"prompt": "c?", "chosen": "good", "rejected": "<s>bad"},
        {"prompt": "d?", "chosen": "x < y", "rejected": "s> y"},
    ]
    file = write_rows(tmp_path / "a.jsonl", *rows)
    tokenizer, lines = load_tokenizer(TINY), []
    chat_format = bind_tokens(CHAT_FORMATS["plain"], tokenizer)
    tokenize_pairs(read_pairs(file, "dpo"), tokenizer, chat_format, 99, 50, log=lines.append)
    (line,) = [line for line in lines if "spell" in line]
    assert f"2 rows spell a special token, the first is {file}:2 with </s>" in line
    tokenize_pairs(read_pairs(file, "dpo")[:1], tokenizer, chat_format, 99, 50, log=lines.append)
    assert sum("spell" in line for line in lines) == 1


def test_a_conversation_and_what_goes_on_with_it_are_on_one_side(tmp_path: Path) -> None:
    """100 conversations of two replies, told apart by their first turns alone."""
    rows = [
        {"messages": [user(f"{i}?"), assistant("a"), user("and?"), assistant("b")]}
        for i in range(100)
    ]
    rows += [{"messages": [{"role": "system", "content": "s"}, user(" 7?\n"), assistant("c")]}]
    path = write_rows(tmp_path / "a.jsonl", *rows)
    pairs, held_out = read_split(path, None, 0.3, 0.0, "sft", seed=0)
    assert len(pairs) + len(held_out) == 201 and 15 <= len(held_out) / 2 <= 45
    first = [{first_turn(pair) for pair in side} for side in (pairs, held_out)]
    assert len(first[0]) + len(first[1]) == 100 == len(first[0] | first[1])
    with pytest.raises(ValueError, match=r"--eval_fraction 1 leaves no training pairs of 201"):
        read_split(path, None, 1, 0.0, "sft", seed=0)


def test_the_side_of_a_single_turn_is_pinned() -> None:
    """By the first 8 bytes of the hash of this text, so that earlier splits stay as they are."""
    for text in ("p", " p", "How many?\n"):
        key = f"(7, ({{'role': 'user', 'content': {text!r}}},))"
        digest = hashlib.sha256(key.encode()).digest()
        side = int.from_bytes(digest[:8], "big") / 2**64
        pair = Pair((user(text),), "c", "r", "f:1")
        assert split_by_first_turn([pair], side + 1e-9, 7) == ([], [pair])
        assert split_by_first_turn([pair], side - 1e-9, 7) == ([pair], [])


def test_no_prompt_is_on_both_sides_and_more_data_moves_none() -> None:
    pairs = [Pair((user(f"p{i // 2}"),), f"c{i}", f"r{i}", f"f:{i}") for i in range(2000)]
    kept, held_out = split_by_first_turn(pairs, 0.1, seed=0)
    assert len(kept) + len(held_out) == 2000
    assert not {repr(pair.prompt) for pair in kept} & {repr(pair.prompt) for pair in held_out}
    assert 140 <= len(held_out) <= 260  # 100 prompts of two pairs, give or take three deviations
    first_half = [pair for pair in held_out if pair in pairs[:1000]]
    assert split_by_first_turn(pairs[:1000], 0.1, seed=0)[1] == first_half
    assert split_by_first_turn(pairs, 0.1, seed=1)[1] != held_out
    assert split_by_first_turn(pairs, 0.0, seed=0) == (pairs, [])


# ---------------------------------------------------------------------------------------------
# real data
# ---------------------------------------------------------------------------------------------


def test_hh(shared_data: Path) -> None:
    """Counted here in the plain way: both sides cut at their last "\\n\\nAssistant:"."""
    folder = shared_data / "hh_rlhf"
    for name, kept in (("harmless-base", 1128), ("helpful-base", 1195)):
        path = folder / name / "test.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        pairs = {pair.source: pair for pair in read_pairs(path, "dpo", log=say_nothing)}
        assert len(pairs) == kept
        mark = "\n\nAssistant:"
        for number, row in enumerate(rows, start=1):
            sides = [row[key].rpartition(mark) for key in ("chosen", "rejected")]
            usable = (
                sides[0][0] == sides[1][0]
                and row["chosen"] != row["rejected"]
                and all(side[2].strip() for side in sides)
            )
            pair = pairs.get(f"{path}:{number}")
            assert (pair is not None) == usable
            if pair is not None:
                replies = [side[2].removeprefix(" ") for side in sides]
                assert [pair.chosen, pair.rejected] == replies
                rendered = "".join(
                    f"\n\n{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}"
                    for turn in pair.prompt
                )
                assert rendered.replace(" ", "") == sides[0][0].replace(" ", "")


def test_half_of_the_length_is_left_to_the_completion() -> None:
    """None: half. What is asked for holds as long as the model's positions leave some more."""
    assert length_limits(1024, None, 4096) == (1024, 512)
    assert length_limits(1024, None, 256) == (256, 128)
    assert length_limits(1024, 200, 256) == (256, 200)
    assert length_limits(1024, 512, 256) == (256, 128)
    assert length_limits(1024, 256, 256) == (256, 128)  # all of the positions: none left


def test_ultrafeedback(shared_data: Path, smollm2: Tokenizer) -> None:
    """The text form and the message form say the same; 1024 and 512 hold."""
    folder = shared_data / "ultrafeedback_binarized"
    texts = read_pairs(folder / "train_clean.jsonl.gz", "dpo", log=say_nothing)
    assert len(texts) == 478  # of 483: 3 with equal sides, 2 with an empty one
    lists = read_pairs(folder / "messages_format_example.jsonl", "dpo", log=say_nothing)
    by_prompt = {pair.prompt[0]["content"]: pair for pair in texts}
    both = [pair for pair in lists if pair.prompt[0]["content"] in by_prompt]
    assert len(both) >= 10
    for pair in both:
        same = by_prompt[pair.prompt[0]["content"]]
        assert (pair.prompt, pair.chosen, pair.rejected) == (
            same.prompt,
            same.chosen,
            same.rejected,
        )
    chatml = bind_tokens(CHAT_FORMATS["chatml"], smollm2)
    made = tokenize_pairs(texts, smollm2, chatml, 1024, 512, 49152, say_nothing, progress=False)
    for pair in made:
        prompt, chosen, rejected = ids_of(pair)
        assert len(prompt) + max(len(chosen), len(rejected)) <= 1024
        assert chosen[-1] == 2 or len(prompt) + len(chosen) == 1024
        assert rejected[-1] == 2 or len(prompt) + len(rejected) == 1024
        assert 2 not in chosen[:-1] and 2 not in rejected[:-1]
