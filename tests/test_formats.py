"""Which tokenizer and format a policy's folders mean, and where transformers stops.

python -m pytest tests/test_formats.py
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

from data.chat import CHAT_FORMATS, bind_tokens, render, stop_ids
from data.formats import jinja_template, mark_formats, model_ids, read_formats, tokenizer_folder
from data.tokenizer import load_tokenizer
from tests.test_chat import CONVERSATIONS, PUBLISHED

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"


@pytest.fixture(scope="module")
def witness():
    return AutoTokenizer.from_pretrained(TINY)


def test_the_adapter_s_tokenizer_counts_where_train_py_has_left_it(tmp_path) -> None:
    assert tokenizer_folder(TINY, None) == TINY
    shutil.copy(TINY / "tokenizer.model", tmp_path)
    assert tokenizer_folder(TINY, tmp_path) == TINY  # as PEFT leaves one
    plain = bind_tokens(CHAT_FORMATS["plain"], load_tokenizer(TINY))
    mark_formats(tmp_path, tmp_path / "another", load_tokenizer(TINY), plain)
    assert tokenizer_folder(TINY, tmp_path) == tmp_path
    tokenizer, chat_format, reason = read_formats(tmp_path / "no model", tmp_path)
    assert tokenizer.encode("two") == load_tokenizer(TINY).encode("two")
    assert chat_format.name == "plain" and "chat_format in" in reason


def test_the_base_model_s_own_tokenizer_is_not_copied(tmp_path) -> None:
    plain = bind_tokens(CHAT_FORMATS["plain"], load_tokenizer(TINY))
    mark_formats(tmp_path, TINY, load_tokenizer(TINY), plain)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer_config.json"]
    assert "chat_template" not in (tmp_path / "tokenizer_config.json").read_text()
    assert tokenizer_folder(TINY, tmp_path) == TINY


def test_a_tokenizer_s_own_folder_goes_before_all(tmp_path) -> None:
    tokenizer, _, reason = read_formats(tmp_path, None, "none", TINY)
    assert tokenizer.vocab_size == load_tokenizer(TINY).vocab_size and reason == "--chat_format"


SMOLLM2 = replace(CHAT_FORMATS["chatml"], default_system='You are SmolLM, it\'s said: "hi"\n')


@pytest.mark.parametrize(
    "chat_format", [*CHAT_FORMATS.values(), SMOLLM2], ids=lambda f: f"{f.name} {f.default_system}"
)
def test_the_template_for_transformers_writes_what_render_writes(chat_format, witness) -> None:
    template, seen = jinja_template(chat_format), 0
    for messages in CONVERSATIONS:
        for prompting in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompting}
            try:
                expected = render(messages, chat_format, prompting)
            except ValueError as error:
                if "system" in str(error):
                    with pytest.raises(jinja2.TemplateError, match="no system message"):
                        witness.apply_chat_template(messages, chat_template=template, **options)
                continue
            found = witness.apply_chat_template(messages, chat_template=template, **options)
            assert found == expected
            seen += 1
    assert seen >= (4 if chat_format.name == "none" else 8)


def test_a_folder_with_a_tokenizer_gets_the_format_s_template(tmp_path, witness) -> None:
    """As transformers finds it; the published template of the same format stays."""
    tokenizer = load_tokenizer(TINY)
    hi = [{"role": "user", "content": "Hi"}]
    plain = bind_tokens(CHAT_FORMATS["plain"], tokenizer)
    zephyr = bind_tokens(CHAT_FORMATS["zephyr"], tokenizer)
    for chat_format in (plain, zephyr, plain):
        mark_formats(tmp_path, tmp_path / "base", tokenizer, chat_format)
        (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
        found = AutoTokenizer.from_pretrained(tmp_path)
        expected = render(hi, chat_format, True)
        assert found.apply_chat_template(hi, tokenize=False, add_generation_prompt=True) == expected
        assert read_formats(tmp_path)[1] == chat_format
    published = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(published)
    mark_formats(tmp_path, tmp_path / "base", tokenizer, plain)
    assert not (tmp_path / "chat_template.jinja").exists()  # of another format
    published = PUBLISHED["zephyr"]
    (tmp_path / "chat_template.jinja").write_text(published)
    mark_formats(tmp_path, tmp_path / "base", tokenizer, zephyr)
    assert (tmp_path / "chat_template.jinja").read_text() == published


class Known:
    """A tokenizer with two special tokens, of which the second is its EOS."""

    bos_id, eos_id, bos_token, eos_token = None, 0, None, "<|endoftext|>"

    def special_id(self, token: str) -> int | None:
        return {"<|im_end|>": 2, "<|im_start|>": 1, "<|endoftext|>": 0}.get(token)


def test_transformers_stops_where_we_do(tmp_path) -> None:
    """A base model's EOS is not what ends a turn of ChatML: a config.json needs both."""
    chatml = bind_tokens(CHAT_FORMATS["chatml"], Known())
    ids = model_ids(chatml, Known())
    assert ids == {"bos_token_id": None, "eos_token_id": [0, 2]}  # EOS first: it is the tokenizer's
    assert sorted(ids["eos_token_id"]) == sorted(stop_ids(chatml, Known()))
    config = LlamaConfig(**json.loads(json.dumps(ids)))
    assert GenerationConfig.from_model_config(config).eos_token_id == [0, 2]
    plain = bind_tokens(CHAT_FORMATS["plain"], Known())
    assert model_ids(plain, Known())["eos_token_id"] == 0
