"""Which tokenizer and format a policy's folders mean, and where transformers stops.

python -m pytest tests/test_formats.py
"""

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig, LlamaConfig

from data.chat import CHAT_FORMATS, bind_tokens, stop_ids
from data.formats import mark_formats, model_ids, read_formats, tokenizer_folder
from data.tokenizer import load_tokenizer

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"


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
    assert tokenizer_folder(TINY, tmp_path) == TINY


def test_a_tokenizer_s_own_folder_goes_before_all(tmp_path) -> None:
    tokenizer, _, reason = read_formats(tmp_path, None, "none", TINY)
    assert tokenizer.vocab_size == load_tokenizer(TINY).vocab_size and reason == "--chat_format"


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
