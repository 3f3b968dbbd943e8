"""Prompt files -> messages, worked by hand, and drawn ids -> text, the inverse of encoding a reply.

pytest tests/test_prompts.py
"""

import gzip
import json
from pathlib import Path

import pytest

from data.chat import CHAT_FORMATS, bind_tokens, encode_completion
from data.prompts import (
    Replies,
    completion_text,
    cut_at_stop,
    prompt_lines,
    read_prompts,
    text_prompt,
    with_system,
)
from data.tokenizer import load_tokenizer


def test_rows_of_a_prompt_file(tmp_path):
    """Texts, messages and questions; the record is what was given."""
    user = {"role": "user", "content": "Hi"}
    turns = [user, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]
    rows = [{"prompt": "Hi"}, {"prompt": [user]}, {"messages": turns}, {"question": "Why?", "x": 1}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(text)
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as file:
        file.write(text)
    for name in ("p.jsonl", "p.jsonl.gz"):
        prompts = read_prompts(tmp_path / name)
        why = {"role": "user", "content": "Why?"}
        assert [prompt.messages for prompt in prompts] == [[user], [user], turns, [why]]
        assert [prompt.record for prompt in prompts] == ["Hi", [user], turns, "Why?"]
        assert prompts[2].where == f"{tmp_path / name}:3"


def test_rows_with_a_dialogue_a_system_message_or_nulls(tmp_path):
    """The record is what was given where it says all; a system message stands in it."""
    user, system = {"role": "user", "content": "Go"}, {"role": "system", "content": "s"}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, user]
    text = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:"
    rows = [
        ({"prompt": text}, turns, text),
        ({"prompt": None, "messages": None, "question": "Go", "system": None}, [user], "Go"),
        ({"prompt": "Go", "system": "s"}, [system, user], [system, user]),
        ({"messages": turns, "system": "s"}, [system, *turns], [system, *turns]),
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _, _ in rows))
    prompts = read_prompts(tmp_path / "p.jsonl")
    assert [(prompt.messages, prompt.record) for prompt in prompts] == [row[1:] for row in rows]
    assert text_prompt(text, "--prompt").messages == turns


def test_lines_are_prompts():
    """Blank lines are none; a byte-order mark and carriage returns are not text."""
    prompts = prompt_lines("\ufeffTom \r\n \n\u2028x".encode(), "here")
    assert [prompt.record for prompt in prompts] == ["Tom ", "\u2028x"]
    assert [prompt.where for prompt in prompts] == ["here:1", "here:3"]


def test_system_goes_before_a_prompt_without_one():
    once = with_system(text_prompt("Hi", "--prompt"), "Be brief.")
    assert [message["content"] for message in once.messages] == ["Be brief.", "Hi"]
    assert with_system(once, "No.") == once and once.record == "Hi"
    assert with_system(text_prompt("Hi", "x"), None) == text_prompt("Hi", "x")


BAD_FILES = [
    ("p.jsonl", b'{"prompt": "a"}\n{"text": 3}\n', "p.jsonl:2: expected prompt, messages or"),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: not JSON"),
    ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl:1: prompt: expected a text, got a number"),
    ("p.jsonl", b'{"question": " "}\n', "p.jsonl:1: question: expected a text, got an empty one"),
    (
        "p.jsonl",
        b'{"messages": [{"role": "user", "content": ""}]}\n',
        "p.jsonl:1: messages: expected a text, got an empty one",
    ),
    ("p.jsonl", b'{"prompt": null}\n', "p.jsonl:1: expected prompt, messages or question, got"),
    (
        "p.jsonl",
        b'{"prompt": "\\n\\nHuman: a\\n\\nAssistant: b"}\n',
        r"p.jsonl:1: prompt: expected a dialogue that ends with '\\n\\nAssistant:'",
    ),
    (
        "p.jsonl",
        b'{"prompt": [{"role": "system", "content": "a"}], "system": "b"}\n',
        "p.jsonl:1: prompt: expected a user message at the end",
    ),
    ("p.jsonl", b'{"messages": []}\n', "p.jsonl:1: messages: expected a list of messages"),
    (
        "p.jsonl",
        b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
        "p.jsonl:1: messages: expected a user message at the end",
    ),
    ("p.jsonl", b"\n\n", "no prompt in it"),
    ("p.txt", b"", "no prompt in it"),
    ("p.txt", b"a\n\xff\n", "p.txt: not UTF-8"),
    ("p.csv", b"a\n", "--prompts expects a .txt, .jsonl or .jsonl.gz file"),
]


@pytest.mark.parametrize("name, data, message", BAD_FILES)
def test_bad_files_name_the_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_names_the_flag():
    with pytest.raises(FileNotFoundError, match="--prompts expects a file"):
        read_prompts(Path("nowhere.txt"))


@pytest.mark.parametrize("name", ["zephyr", "llama2", "mistral", "plain", "none"])
def test_completion_text_undoes_encode_completion(mistral_tokenizer_dir, name):
    tokenizer = load_tokenizer(mistral_tokenizer_dir)
    chat_format = bind_tokens(CHAT_FORMATS[name], tokenizer)
    for text in ("3 + 4 = 7", "größer\n\nthan", "a  b"):
        ids = encode_completion(text, chat_format, tokenizer)
        assert completion_text(ids[:-1], chat_format, tokenizer) == text


# ------------------------------------------------------------------------------------------------
# replies


@pytest.mark.parametrize(
    ("name", "stop", "written", "said"),
    [
        ("llama2", "User: ", " yes\nUser: ", "yes"),
        ("llama2", "\n\nQ:", "\n\nQ: what", ""),
        ("llama2", "7 ", " 7 ", ""),
        ("plain", " 7", " 7 or 8", ""),
        ("none", "= ", "3 + 4 = 7", "3 + 4 "),
    ],
)
def test_a_stop_is_looked_for_before_a_format_strips_the_reply(name, stop, written, said):
    """As it is while tokens are drawn: what ends a completion is not left in its text."""

    class Plain:  # one id for each character
        eos_id = None

        def decode_continuation(self, ids) -> str:
            return "".join(map(chr, ids))

        def special_id(self, token: str) -> int:
            return -1

    found, ids = Replies(CHAT_FORMATS[name], Plain(), (stop,)), list(map(ord, written))
    assert found.find_stop(ids) and found.text(ids) == said


def test_a_text_is_cut_at_the_first_of_its_stops():
    assert cut_at_stop("ab Q: c\nA: d Q:", ("A:", "Q:")) == "ab "
    assert cut_at_stop("ab", ("Q:",)) == cut_at_stop("ab", ()) == "ab"
    assert cut_at_stop("Q: ab", ("Q:",)) == ""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(__file__).resolve().parents[1] / "data" / "tiny")


def replies(name: str, tokenizer, stop: tuple[str, ...] = ()) -> Replies:
    return Replies(bind_tokens(CHAT_FORMATS[name], tokenizer), tokenizer, stop)


@pytest.mark.parametrize("name", ["plain", "none"])  # with and without a space before a reply
def test_a_reply_ends_before_its_stop_text_and_its_end_of_turn_token(tokenizer, name):
    format = bind_tokens(CHAT_FORMATS[name], tokenizer)
    ids = encode_completion("3 + 4 = 7 books\n#### 7", format, tokenizer)
    assert ids[-1] == tokenizer.eos_id
    whole = replies(name, tokenizer)
    assert whole.text(ids) == whole.text(ids[:-1]) == "3 + 4 = 7 books\n#### 7"
    assert replies(name, tokenizer, ("####", "books")).text(ids) == "3 + 4 = 7 "
    assert replies(name, tokenizer, ("stars",)).text(ids) == whole.text(ids)
    assert whole.text([]) == whole.text([tokenizer.eos_id]) == ""


@pytest.mark.parametrize("stop, tokens", [("3", 1), ("4 = 7", 7), ("ook", 8), ("s\n##", 9)])
def test_a_stop_text_is_found_once_it_is_whole(tokenizer, stop, tokens):
    """The tokens: 3, +, space, 4, =, space, 7, books, end of line with ####, space, 7."""
    ids = tokenizer.encode_continuation("3 + 4 = 7 books\n#### 7")
    assert len(ids) == 11
    found = [replies("none", tokenizer, ("x", stop)).find_stop(ids[:i]) for i in range(12)]
    assert found == [i >= tokens for i in range(12)]
    assert not replies("none", tokenizer).find_stop(ids)


def test_what_ends_a_reply_is_the_end_of_turn_and_eos(tokenizer):
    assert replies("plain", tokenizer).stop_ids == [tokenizer.eos_id]
