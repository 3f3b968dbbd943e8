"""A policy's folders -> its tokenizer and its chat format; and what a saved model says of them.

A policy is a model, or a model with an adapter. What it was trained with stands beside its weights:
the name of the format always, the tokenizer where it is not the base model's.
"""

import json
import re
import shutil
from pathlib import Path

from data.chat import (
    ChatFormat,
    detect_chat_format,
    mark_chat_format,
    read_config,
    read_template,
    recognise_template,
    stop_ids,
    write_config,
)
from data.token_files import COPIED_FILES
from data.tokenizer import Tokenizer, load_tokenizer

TOKENIZERS = COPIED_FILES[:2]
BODY = """{{- f.start }}{%- set ns = namespace(folded="") %}
{%- if f.default and messages[0].role != "system" %}
{{- f.system[0] + f.default + f.system[1] }}{%- endif %}
{%- for message in messages %}{%- set content = message.content %}
{%- if message.role == "system" and not f.system[1:] %}
{%- if not f.fold[1:] %}{{- raise_exception("no system message in this format") }}{%- endif %}
{%- set ns.folded = f.fold[0] + content + f.fold[1] %}
{%- else %}
{%- if ns.folded %}{%- set content = ns.folded + content + f.fold[2] %}{%- set ns.folded = "" %}
{%- endif %}
{%- if f.strip %}{%- set content = content | trim %}{%- endif %}
{%- set turn = f.reply if message.role == "assistant" else f[message.role] %}
{{- turn[0] + content + turn[1] }}
{%- if turn[2:] and (f.end_inside or loop.last) %}{{- turn[2] }}{%- endif %}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- f.reply_start }}{%- endif %}"""  # of a chat template


def read_formats(
    model: str | Path,
    adapter: str | Path | None = None,
    chat_format: str = "auto",
    tokenizer: str | Path | None = None,
) -> tuple[Tokenizer, ChatFormat, str]:
    """out: the tokenizer, the chat format, and why that one (see `detect_chat_format`).

    tokenizer: its folder, or a file there, where it is neither the model's nor the adapter's.
    Raises what `load_tokenizer` and `detect_chat_format` raise.
    """
    folder = Path(tokenizer or tokenizer_folder(model, adapter))
    folder = folder.parent if folder.is_file() else folder
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
    """Leave in a policy's folder what it was trained with, for `read_formats` and transformers.

    model: folder of its base model, whose own tokenizer is not copied. Where there is a tokenizer
    in the end, its chat template is that of the format: the published one, or `jinja_template`.
    """
    for file in tokenizer.files:
        if file.parent.resolve() not in (Path(model).resolve(), folder.resolve()):
            shutil.copyfile(file, folder / file.name)
    mark_chat_format(folder, chat_format)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return
    template, _ = read_template(folder)
    known = recognise_template(template) if template is not None else None
    if known is None or known.name != chat_format.name:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        write_config(folder, read_config(folder) | {"chat_template": jinja_template(chat_format)})


def jinja_template(f: ChatFormat) -> str:
    """The format for transformers' apply_chat_template: writes what `render` writes."""
    words = {
        "start": f.start,
        "system": (f.system or "").split("{content}"),
        "default": f.default_system or "",
        "fold": re.split("{system}|{content}", f.system_in_user or ""),
        "user": f.user.split("{content}"),
        "reply": [f.reply_start + f.before, f.after, f.end + f.between],
        "reply_start": f.reply_start,
        "strip": f.strip,
        "end_inside": f.end_inside,
    }
    return "{%- set f = " + f.literal(json.dumps(words)) + " %}" + "".join(BODY.splitlines())


def model_ids(chat_format: ChatFormat, tokenizer: Tokenizer) -> dict[str, int | list[int] | None]:
    """bos_token_id and eos_token_id for the config.json of a model trained with this format.

    EOS comes first, then what else ends a turn: transformers stops at any of them.
    """
    stops = sorted(stop_ids(chat_format, tokenizer), key=lambda id: id != tokenizer.eos_id)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
    }
