"""What the JSON files beside a tokenizer say about its tokens."""

import re
from pathlib import Path

from data.reading import is_text, read_json

COPIED_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
MARKER = re.compile(r"<\|[^|\s]+\|>")  # an added or user-defined token spelled so is special


class CheckpointFiles:
    """What the JSON files beside a tokenizer say about its tokens.

    added:    token -> id of tokens beyond the base vocabulary
    special:  the spellings of special tokens
    spec:     tokenizer.json, empty if there is none
    """

    def __init__(self, folder: Path | None, json_file: Path | None):
        self.folder = folder
        self.paths = [folder / n for n in COPIED_FILES if (folder / n).is_file()] if folder else []
        self.config = self.read("tokenizer_config.json")
        self.spec = read_json(json_file) if json_file else {}
        entries = self.added_entries()
        self.added = {entry["content"]: entry["id"] for entry in entries}
        self.special = {entry["content"] for entry in entries if entry.get("special")}
        self.special |= {token for token in self.added if MARKER.fullmatch(token)}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            self.special |= named_tokens(self.read(name), f"{self.folder}/{name}")

    def added_entries(self) -> list[dict]:
        """The added tokens of all files, each with its content and id."""
        more = self.read("added_tokens.json")
        try:
            decoder = self.config.get("added_tokens_decoder") or {}
            entries = [{"id": int(id), **entry} for id, entry in decoder.items()]
            entries += self.spec.get("added_tokens") or []
            entries += [{"id": id, "content": token} for token, id in more.items()]
            fit = all(
                entry["content"] and is_text(entry["content"])
                and type(entry["id"]) is int and 0 <= entry["id"] < 2**31
                for entry in entries
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError):
            fit = False
        if not fit:
            raise ValueError(
                f"{self.folder}: added tokens expect an id and a content each, in "
                "tokenizer_config.json (added_tokens_decoder), tokenizer.json (added_tokens) and "
                "added_tokens.json"
            )
        return entries

    def read(self, name: str) -> dict:
        path = self.folder / name if self.folder else None
        return read_json(path) if path and path.is_file() else {}

    def token(self, name: str) -> tuple[str, str] | None:
        """How bos_token or eos_token is spelled, and the file that says so."""
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if entry := self.read(file).get(name):
                return spelling(entry, f"{self.folder}/{file}"), f"{self.folder}/{file}"
        return None

    def model_id(self, name: str) -> int | None:
        """bos_token_id or eos_token_id of the model's own configuration, the first of a list."""
        for file in ("config.json", "generation_config.json"):
            value = self.read(file).get(name)
            value = value[0] if isinstance(value, list) and value else value
            if type(value) is int:
                return value
        return None

    def adds_bos(self, otherwise: bool) -> bool:
        said = self.config.get("add_bos_token")
        return said if isinstance(said, bool) else otherwise


def spelling(entry: object, where: str) -> str:
    """A token, written as its text or as an object that has it as content."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if not text or not is_text(text):
        raise ValueError(f"{where}: expected a token's text or an object with it, got {entry!r}")
    return text


def named_tokens(source: dict, where: str) -> set[str]:
    entries = [source[name] for name in NAMED_TOKENS if source.get(name)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        extra = source.get(name) or []
        if not isinstance(extra, dict | list):
            raise ValueError(f"{where}: {name} expects a list of tokens, got {extra!r}")
        entries += extra.values() if isinstance(extra, dict) else extra
    return {spelling(entry, where) for entry in entries}
