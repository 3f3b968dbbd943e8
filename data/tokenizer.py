"""Text <-> ids with a checkpoint's own tokenizer; no text ever turns into a special token.

`load_tokenizer(folder)` reads tokenizer.model through sentencepiece, or else tokenizer.json through
the optional package tokenizers. The ids are those of transformers with add_special_tokens=False and
split_special_tokens=True. Conventions:

1. A special token (`</s>`, `<|im_end|>`, ...) spelled in a text is text. The tokens themselves are
   added by id: `special_id`, data/chat.py.
2. Llama's tokenizers put a space before a text ("Hi" -> "▁Hi"), the dummy prefix. `encode` does so;
   `encode_continuation`, for text that follows earlier tokens, does not. Whether text behind a
   special token has the prefix depends on the checkpoint: `prefix_after_special`.
3. `decode` leaves special tokens out of the text, and dummy prefixes. Bytes that are not UTF-8,
   unknown pieces and ids beyond the vocabulary become the replacement character U+FFFD.
4. Spaces stay as they are: where a sentencepiece model asks to merge runs of them
   (remove_extra_whitespaces), this is switched off, as in transformers.

A folder may come from anywhere: what its files say is checked before it is used, and they are
regular files inside it.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from data.reading import read_file
from data.token_files import COPIED_FILES, MARKER, CheckpointFiles

REPLACEMENT = "\ufffd"


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """path: folder of a checkpoint; or a tokenizer.model or tokenizer.json, read by itself.

    Raises FileNotFoundError without a tokenizer, ValueError if a file is not what its name says.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected one with a tokenizer")
    folder = path if path.is_dir() else None
    model_file, json_file = (path / n if folder else path for n in COPIED_FILES[:2])
    has_json = json_file.suffix == ".json" and json_file.is_file()
    if model_file.suffix == ".model" and model_file.is_file():
        proto = read_file(model_file)
        if is_sentencepiece(proto):
            files = CheckpointFiles(folder, json_file if has_json else None)
            return SentencePieceTokenizer(model_file, proto, files)
        if not has_json:
            raise ValueError(
                f"{model_file}: expected a sentencepiece model, or a tokenizer.json beside it (the "
                "tokenizer.model of Llama 3 is a tiktoken file)"
            )
    if not has_json:
        raise FileNotFoundError(f"{path}: expected a tokenizer.model or a tokenizer.json")
    return JsonTokenizer(json_file, CheckpointFiles(folder, json_file))


def is_sentencepiece(proto: bytes) -> bool:
    """Whether bytes are a sentencepiece model with pieces, each of them a text."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        pieces = [model.id_to_piece(id) for id in range(model.vocab_size())]
    except (RuntimeError, UnicodeDecodeError):  # what it raises for bytes that are something else
        return False
    return bool(pieces) and all(pieces)


class Tokenizer(ABC):
    """Made by `load_tokenizer`.

    bos_id, eos_id:        from tokenizer_config.json, else special_tokens_map.json, else the
                           sentencepiece model, else config.json, else generation_config.json
    bos_token, eos_token:  how they are spelled
    adds_bos:              transformers puts BOS before a text for this checkpoint
    prefix_after_special:  a text behind a special token begins with the dummy prefix
    special_ids:           spelling -> id
    vocab_size:            the largest id plus one
    files:                 what to copy beside saved weights so that the folder loads again
    """

    bos_id: int | None = None
    eos_id: int | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    adds_bos: bool
    prefix_after_special: bool
    special_ids: dict[str, int]
    vocab_size: int
    files: list[Path]

    def encode(self, text: str) -> list[int]:
        """Ids of a text that nothing precedes; no BOS or EOS."""
        return self.encode_batch([text], prefix=True)[0]

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that follows earlier tokens: no dummy prefix, its own spaces only."""
        return self.encode_batch([text], prefix=False)[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], prefix: bool) -> list[list[int]]:
        """Many texts in parallel; prefix: as in `encode`, otherwise as in continuations."""

    def decode(self, ids: Iterable[int]) -> str:
        """decode(encode(a) + encode_continuation(b)) == a + b.

        Except with sentencepiece's pieces, which write a space as U+2581: in a text that has this
        character it comes back as a space.
        """
        return self._decode(ids, prefix=True)

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """Text of ids that follow earlier tokens: a space at its front is its own."""
        return self._decode(ids, prefix=False)

    def special_id(self, token: str) -> int | None:
        """Id of the special token spelled so, None if there is none."""
        return self.special_ids.get(token)

    def _decode(self, ids: Iterable[int], prefix: bool) -> str:
        texts, run = [], []
        specials = set(self.special_ids.values())
        for id in [*map(int, ids), None]:  # None closes the last run
            if id is not None and id < 0:
                raise ValueError(f"expected token ids, got {id}")
            known = id is not None and id < self.vocab_size
            if known and id not in specials:
                run.append(id)
                continue
            texts += [self._decode_run(run, prefix)] if run else []
            texts += [REPLACEMENT] if id is not None and not known else []
            prefix = (prefix and not any(texts)) or (known and self.prefix_after_special)
            run = []
        return "".join(texts)

    @abstractmethod
    def _decode_run(self, ids: list[int], prefix: bool) -> str:
        """Text of ids without a special token among them."""

    def _name_tokens(self, files: CheckpointFiles, spelled: dict[int, str]) -> None:
        """Sets bos and eos. spelled: id -> token, for ids that are known by number only."""
        for name in ("bos", "eos"):
            id = getattr(self, f"{name}_id")
            id = files.model_id(f"{name}_token_id") if id is None else id
            token = spelled.get(id) or None
            if (named := files.token(f"{name}_token")) is not None:
                token, file = named
                id = self.special_ids.get(token)
                if id is None:
                    raise ValueError(f"{file}: {name}_token {token!r} is not in the vocabulary")
            if token is not None:
                self.special_ids[token] = id
                setattr(self, f"{name}_id", id)
                setattr(self, f"{name}_token", token)


# ---------------------------------------------------------------------------------------------
# tokenizer.model
# ---------------------------------------------------------------------------------------------


class SentencePieceTokenizer(Tokenizer):
    """tokenizer.model of Llama 2, Mistral, Zephyr, TinyLlama, ..."""

    def __init__(self, path: Path, proto: bytes, files: CheckpointFiles):
        self.files = files.paths or [path]
        base = sentencepiece.SentencePieceProcessor(model_proto=proto)
        pieces = {base.id_to_piece(id): id for id in range(base.vocab_size())}
        self.special_ids = {
            piece: id
            for piece, id in pieces.items()
            if base.is_control(id) or MARKER.fullmatch(piece) or piece in files.special
        }
        self.special_ids |= {t: files.added[t] for t in files.special & files.added.keys()}
        self.bos_id = base.bos_id() if base.bos_id() >= 0 else None
        self.eos_id = base.eos_id() if base.eos_id() >= 0 else None
        self._name_tokens(files, {id: piece for piece, id in pieces.items()})
        self.adds_bos = self.bos_id is not None and files.adds_bos(otherwise=True)
        self.vocab_size = max([base.vocab_size() - 1, *files.added.values()]) + 1

        self.has_prefix = "".join(base.encode_as_pieces("a")).startswith("▁")
        self.prefix_after_special = self.has_prefix and prefixes_after_special(files)
        self.processors = {
            prefix: sentencepiece.SentencePieceProcessor(
                model_proto=proto + normalizer_override(dummy_prefix=prefix and self.has_prefix)
            )
            for prefix in (True, False)
        }
        # Words that the files add and sentencepiece does not know: put in by id, as transformers
        # does with AddedToken(normalized=False).
        # Special tokens that it would find in a text (user-defined pieces): to be cut in two.
        self.words = {
            t: id for t, id in files.added.items() if t not in files.special and t not in pieces
        }
        hidden = [t for t in self.special_ids if t in pieces and pieces[t] in base.encode(t)]
        found = sorted([*self.words, *hidden], key=len, reverse=True)
        self.found = re.compile("|".join(map(re.escape, found))) if found else None
        self.bytes_of = {id: piece_bytes(base, id) for id in pieces.values()}
        self.bytes_of |= {id: word.encode() for word, id in self.words.items()}

    def encode_batch(self, texts: Sequence[str], prefix: bool) -> list[list[int]]:
        if self.found is None or not any(map(self.found.search, texts)):
            return self._encode_plain(texts, prefix)
        return [self._encode_around(text, prefix) for text in texts]

    def _encode_plain(self, texts: Sequence[str], prefix: bool) -> list[list[int]]:
        threads = min(8, os.cpu_count() or 1) if len(texts) >= 16 else 1
        return self.processors[prefix].encode(list(texts), num_threads=threads)

    def _encode_around(self, text: str, prefix: bool) -> list[int]:
        """Cuts hidden special tokens behind their first character, puts added words in by id."""
        ids, start = [], 0
        for match in self.found.finditer(text):
            word = self.words.get(match.group())
            end = match.start() + (word is None)
            ids += self._encode_plain([text[start:end]], prefix)[0]
            ids += [] if word is None else [word]
            prefix = word is not None and self.prefix_after_special
            start = end if word is None else match.end()
        return ids + self._encode_plain([text[start:]], prefix)[0]

    def _decode_run(self, ids: list[int], prefix: bool) -> str:
        data = b"".join(self.bytes_of.get(id, REPLACEMENT.encode()) for id in ids)
        text = data.decode("utf-8", errors="replace")
        return text.removeprefix(" ") if prefix and self.has_prefix else text


def piece_bytes(processor: sentencepiece.SentencePieceProcessor, id: int) -> bytes:
    if processor.is_byte(id):
        return bytes([int(processor.id_to_piece(id)[1:-1], 16)])  # <0x0A>
    if processor.is_unknown(id):
        return REPLACEMENT.encode()
    return processor.id_to_piece(id).replace("▁", " ").encode()


def normalizer_override(dummy_prefix: bool) -> bytes:
    """Bytes that, behind a serialised ModelProto, set two fields of its normalizer_spec.

    Protocol buffers merge a message that occurs twice, the last value of a field counts.
    normalizer_spec = 3 of ModelProto; add_dummy_prefix = 3, remove_extra_whitespaces = 4 of it.
    """
    fields = bytes([3 << 3, dummy_prefix, 4 << 3, False])
    return bytes([3 << 3 | 2, len(fields)]) + fields


def prefixes_after_special(files: CheckpointFiles) -> bool:
    """Whether a text behind a special token gets the dummy prefix ("legacy" in transformers).

    The tokenizer.json beside the model says it, as that is what the checkpoint was used with; else
    `legacy` of tokenizer_config.json; else yes, as in the published Llama 2, Mistral and Zephyr.
    """
    return spec_prefixes(files.spec) if files.spec else files.config.get("legacy") is not False


# ---------------------------------------------------------------------------------------------
# tokenizer.json
# ---------------------------------------------------------------------------------------------


class JsonTokenizer(Tokenizer):
    """tokenizer.json: SmolLM2, Llama 3, and whatever transformers 5 saves."""

    def __init__(self, path: Path, files: CheckpointFiles):
        self.files = files.paths or [path]
        spec = {**files.spec, "truncation": None, "padding": None}
        if not isinstance(spec.get("model"), dict):
            raise ValueError(f"{path}: expected a tokenizer.json with a model, got {[*spec][:5]}")
        added = [dict(entry) for entry in spec.get("added_tokens") or []]
        for entry in added:  # special is what the files or its spelling make so
            declared = entry["content"] in files.special or MARKER.fullmatch(entry["content"])
            entry["special"] = bool(entry.get("special") or declared)
        spec["added_tokens"] = added
        backend, bare = build_backend(spec, path), without_prefix(spec, path)
        behind = backend if bare is spec else build_backend(bare, path)
        self.backends = {True: backend, False: behind}
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        if not 0 < self.vocab_size <= 2**31:
            raise ValueError(f"{path}: expected ids from 0 to {2**31 - 1}, got {len(vocab)} tokens "
                             f"with ids up to {self.vocab_size - 1}")  # fmt: skip
        self.special_ids = {entry["content"]: entry["id"] for entry in added if entry["special"]}
        self.special_ids |= {t: vocab[t] for t in files.special & vocab.keys()}
        self._name_tokens(files, {id: token for token, id in vocab.items()})
        opening = backend.encode("a", add_special_tokens=True).ids[:1]
        self.adds_bos = self.bos_id is not None and files.adds_bos(opening == [self.bos_id])
        self.prefix_after_special = spec_prefixes(spec)

    def encode_batch(self, texts: Sequence[str], prefix: bool) -> list[list[int]]:
        encodings = self.backends[prefix].encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _decode_run(self, ids: list[int], prefix: bool) -> str:
        return self.backends[prefix].decode(ids, skip_special_tokens=False)


def build_backend(spec: dict, path: Path):
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package tokenizers: pip install 'tokenizers>=0.20' "
            "(or give the checkpoint its tokenizer.model)"
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"{path}: expected a tokenizer.json, got {error}") from error
    backend.encode_special_tokens = True  # special tokens spelled in a text are text
    return backend


def without_prefix(spec: dict, path: Path) -> dict:
    """The same tokenizer without the dummy prefix, and without its removal when decoding."""
    bare = {n: drop_prefix(spec.get(n), path) for n in ("normalizer", "pre_tokenizer")}
    if all(bare[name] == spec.get(name) for name in bare):
        return spec
    return {**spec, **bare, "decoder": drop_prefix(spec.get("decoder"), path)}


def drop_prefix(part: dict | None, path: Path) -> dict | None:
    if part is None:
        return None
    if not isinstance(part, dict) or "type" not in part:  # the library guesses; a prefix is lost
        raise ValueError(f"{path}: expected a part of the tokenizer with its type, got {part!r}")
    if part["type"] in ("Prepend", "Strip"):
        return None
    if part["type"] == "Sequence":
        name = next(n for n in ("normalizers", "pretokenizers", "decoders") if n in part)
        inner = [drop_prefix(p, path) for p in part[name]]
        return {**part, name: [p for p in inner if p is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never", "add_prefix_space": False}
    return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else part


def spec_prefixes(spec: dict) -> bool:
    """A Prepend normaliser or a Metaspace that prepends always acts on every stretch of text."""
    text = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    seldom = re.search(r'"prepend_scheme": "(first|never)"|"add_prefix_space": false', text)
    return '"Prepend"' in text or ('"Metaspace"' in text and not seldom)
