"""What the JSON files beside a tokenizer say, by hand; tests/test_tokenizer.py has real ones.

pytest tests/test_token_files.py
"""

import json
from pathlib import Path

import pytest

from data.token_files import CheckpointFiles


def files(folder: Path, **contents: object) -> CheckpointFiles:
    """The files of a folder that has these, by their names without .json."""
    for name, value in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    spec = folder / "tokenizer.json"
    return CheckpointFiles(folder, spec if spec.exists() else None)


def test_added_tokens_of_all_files(tmp_path: Path):
    """Special is what a file calls so, names as bos, eos, ... or an extra; or what looks so."""
    found = files(
        tmp_path,
        tokenizer_config={
            "added_tokens_decoder": {
                "10": {"content": "<pad>", "special": True},
                "11": {"content": "<tool>", "special": False},
            },
            "extra_special_tokens": {"image_token": "<image>"},
        },
        tokenizer={"added_tokens": [{"id": 12, "content": "<|im_end|>", "special": False}]},
        added_tokens={"word": 13, "<image>": 14},
        special_tokens_map={"eos_token": {"content": "</s>"}},
    )
    assert found.added == {"<pad>": 10, "<tool>": 11, "<|im_end|>": 12, "word": 13, "<image>": 14}
    assert found.special == {"<pad>", "<|im_end|>", "<image>", "</s>"}
    assert [path.name for path in found.paths] == [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    ]  # fmt: skip


def test_who_names_bos_and_eos(tmp_path: Path):
    """tokenizer_config.json before special_tokens_map.json; of ids, config.json comes first."""
    found = files(
        tmp_path,
        tokenizer_config={"eos_token": "<a>", "add_bos_token": False},
        special_tokens_map={"eos_token": "<b>", "bos_token": {"content": "<c>"}},
        config={"eos_token_id": [7, 8]},
        generation_config={"eos_token_id": 9, "bos_token_id": 5},
    )
    assert found.token("eos_token") == ("<a>", f"{tmp_path}/tokenizer_config.json")
    assert found.token("bos_token") == ("<c>", f"{tmp_path}/special_tokens_map.json")
    assert found.token("pad_token") is None
    assert found.model_id("eos_token_id") == 7 and found.model_id("bos_token_id") == 5
    assert not found.adds_bos(True)


def test_nothing_beside_it():
    found = CheckpointFiles(None, None)
    assert (found.added, found.special, found.spec, found.paths) == ({}, set(), {}, [])
    assert found.token("bos_token") is None and found.adds_bos(True)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"added_tokens": {"word": "13"}}, "added tokens expect an id and a content each"),
        ({"added_tokens": {"word": -1}}, "added tokens expect an id and a content each"),
        ({"tokenizer": {"added_tokens": [{"id": 1}]}}, "added tokens expect an id and a content"),
        ({"special_tokens_map": {"eos_token": {"text": "x"}}}, "expected a token's text or an"),
        ({"tokenizer_config": {"extra_special_tokens": "x"}}, "expects a list of tokens, got 'x'"),
    ],
)
def test_what_is_no_token_is_named(contents, message, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        files(tmp_path, **contents)
