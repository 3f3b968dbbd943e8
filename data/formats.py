"""A policy's folders -> its tokenizer and its chat format; and what a saved model says of them.

A policy is a model, or a model with an adapter. What it was trained with stands beside its weights:
the name of the format always, the tokenizer where it is not the base model's.
"""

import shutil
from pathlib import Path

from data.chat import ChatFormat, detect_chat_format, mark_chat_format, read_config, stop_ids
from data.token_files import COPIED_FILES
from data.tokenizer import Tokenizer, load_tokenizer

TOKENIZERS = COPIED_FILES[:2]


def read_formats(
    model: str | Path,
    adapter: str | Path | None = None,
    chat_format: str = "auto",
    tokenizer: str | Path | None = None,
) -> tuple[Tokenizer, ChatFormat, str]:
    """out: the tokenizer, the chat format, and why that one (see `detect_chat_format`).

    tokenizer: its folder, where it is neither the model's nor the adapter's. Raises what
    `load_tokenizer` and `detect_chat_format` raise.
    """
    folder = Path(tokenizer or tokenizer_folder(model, adapter))
    loaded = load_tokenizer(folder)
    return loaded, *detect_chat_format(folder, loaded, chat_format, adapter)


def tokenizer_folder(model: str | Path, adapter: str | Path | None) -> Path:
    """The adapter's folder where train.py has left a tokenizer in it, or else the model's.

    PEFT leaves tokenizers beside adapters too, which are those of the base model.
    """
    if adapter is None:
        return Path(model)
    ours = "chat_format" in read_config(Path(adapter))
    held = any((Path(adapter) / name).is_file() for name in TOKENIZERS)
    return Path(adapter if ours and held else model)


def mark_formats(
    folder: Path, model: str | Path, tokenizer: Tokenizer, chat_format: ChatFormat
) -> None:
    """Leave in a policy's folder what it was trained with, for `read_formats`.

    model: folder of its base model, whose own tokenizer is not copied.
    """
    for file in tokenizer.files:
        if file.parent.resolve() not in (Path(model).resolve(), folder.resolve()):
            shutil.copyfile(file, folder / file.name)
    mark_chat_format(folder, chat_format)


def model_ids(chat_format: ChatFormat, tokenizer: Tokenizer) -> dict[str, int | list[int] | None]:
    """bos_token_id and eos_token_id for the config.json of a model trained with this format.

    EOS comes first, then what else ends a turn: transformers stops at any of them.
    """
    stops = sorted(stop_ids(chat_format, tokenizer), key=lambda id: id != tokenizer.eos_id)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
    }
