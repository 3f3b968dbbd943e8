"""Messages -> text and the boundary between prompt and completion, per model family.

A message is {"role": "system" | "user" | "assistant", "content": text}. The prompt ends where the
reply begins; the reply's end-of-turn token belongs to the completion, what a template writes behind
it does not. Special tokens of a format go in by id and the users' texts as text, so nobody can
write a turn of another role by spelling its tokens.

`render` gives the string of transformers' apply_chat_template(tokenize=False). The ids are those
of transformers' tokenisation of that string wherever no token straddles the boundary; here the
boundary always wins, so that chosen and rejected share the ids of their prompt. BOS: where the
template writes none (zephyr, chatml, plain, none), there is one at the start exactly if the
checkpoint's tokenizer puts one before a text, as transformers' tokenizer(rendered) does.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from data.reading import decode_text, is_text, read_file, read_json
from data.tokenizer import Tokenizer

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written. {bos}, {eos}: the tokenizer's; {content}: the message.

    A reply is written reply_start + before + content + after + end + between; the prompt ends
    behind reply_start.
    """

    name: str
    user: str
    reply_start: str
    before: str = ""
    after: str = ""
    end: str = "{eos}"  # the end-of-turn token
    between: str = ""
    start: str = ""  # of the conversation
    system: str | None = None  # a turn of its own
    system_in_user: str | None = None  # or written into the first user message
    default_system: str | None = None  # when there is no system message
    strip: bool = False  # contents lose the white space around them
    alternate: bool = False  # user and assistant take turns
    end_inside: bool = True  # replies inside the conversation have the end token too
    tokens: tuple[str, ...] = ()  # special tokens the tokenizer must have, besides {bos} and {eos}
    bos: str = "<s>"
    eos: str = "</s>"

    def literal(self, text: str) -> str:
        return text.replace("{bos}", self.bos).replace("{eos}", self.eos)


CHAT_FORMATS = {
    f.name: f
    for f in (
        ChatFormat(
            name="zephyr",
            system="<|system|>\n{content}{eos}\n",
            user="<|user|>\n{content}{eos}\n",
            reply_start="<|assistant|>\n",
            between="\n",
        ),
        ChatFormat(
            name="llama2",
            system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{content}",
            user="{bos}[INST] {content} [/INST]",
            reply_start="",
            before=" ",
            after=" ",
            strip=True,
            alternate=True,
        ),
        ChatFormat(
            name="llama3",
            start="{bos}",
            system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
            user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
            reply_start="<|start_header_id|>assistant<|end_header_id|>\n\n",
            end="<|eot_id|>",
            strip=True,
            tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        ChatFormat(
            name="mistral",
            start="{bos}",
            user="[INST] {content} [/INST]",
            reply_start="",
            alternate=True,
        ),
        ChatFormat(
            name="chatml",
            system="<|im_start|>system\n{content}<|im_end|>\n",
            user="<|im_start|>user\n{content}<|im_end|>\n",
            reply_start="<|im_start|>assistant\n",
            end="<|im_end|>",
            between="\n",
            tokens=("<|im_start|>", "<|im_end|>"),
        ),
        ChatFormat(  # the dialogues of Anthropic's HH
            name="plain",
            user="\n\nHuman: {content}",
            reply_start="\n\nAssistant:",
            before=" ",
            end_inside=False,
        ),
        ChatFormat(name="none", user="{content}", reply_start=""),  # a prompt, continued
    )
}

# Published chat templates by `template_fingerprint`, with what sets them apart from their family.
KNOWN_TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    "77514550d157c215": ("zephyr", {}),  # Zephyr-7B-beta, TinyLlama-Chat, the alignment handbook
    "471bf949c6320914": ("llama2", {}),  # Llama-2-chat
    "ea5c78b580e449a8": ("llama3", {}),  # Llama-3-Instruct
    "e433ded4258ae224": ("llama3", {}),  # its first release
    "bb72c5e964d508ef": ("llama3", {}),  # and a copy of it
    "2d6fa4f33dbbe2d2": ("mistral", {"between": " "}),  # Mistral-7B-Instruct-v0.1
    "ef44f248b637f9b8": ("mistral", {}),  # v0.2, Mixtral-8x7B-Instruct-v0.1
    "9b0397f1fc28f3c9": ("chatml", {}),  # OpenHermes-2.5, TRL's ChatML
    "fdbf06a1fd8e3ffd": ("chatml", {}),  # Yi-Chat
    "d86dc4b419229f04": ("chatml", {}),  # turn by turn
    "6f5903c1af300ca5": ("chatml", {}),  # SmolLM2, Qwen1.5
}


# ---------------------------------------------------------------------------------------------
# which format a checkpoint uses
# ---------------------------------------------------------------------------------------------


def detect_chat_format(
    path: str | Path,
    tokenizer: Tokenizer,
    chat_format: str = "auto",
    adapter: str | Path | None = None,
) -> tuple[ChatFormat, str]:
    """The format of the checkpoint in folder `path`, and why.

    In this order: the name given as chat_format; a `chat_format` in tokenizer_config.json, that of
    the adapter's folder first; the checkpoint's chat template; plain, if it has none. A name whose
    family the template is of keeps the template's particulars (default system message, spaces).
    Raises ValueError for an unknown name or template, and for special tokens that are missing.
    """
    template, file = read_template(Path(path))
    known = recognise_template(template) if template is not None else None
    name, reason = None, ""
    for folder in (Path(path), *([Path(adapter)] if adapter else [])):
        if (marker := read_config(folder).get("chat_format")) is not None:
            name, reason = marker, f"chat_format in {folder / CONFIG}"
    if chat_format != "auto":
        name, reason = chat_format, "--chat_format"
    if name is not None:
        if not isinstance(name, str) or name not in CHAT_FORMATS:
            raise ValueError(f"{reason}: expected one of {', '.join(CHAT_FORMATS)}, got {name!r}")
        same = known is not None and known.name == name
        found = known if same else CHAT_FORMATS[name]
        reason += f" and the chat template in {file}" if same else ""
    elif template is None:
        found, reason = CHAT_FORMATS["plain"], f"no chat template in {path}"
    elif known is not None:
        found, reason = known, f"the chat template in {file}"
    else:
        raise ValueError(
            f"{file}: a chat template this project does not know; pass --chat_format with the "
            f"format to use, one of {', '.join(CHAT_FORMATS)}"
        )
    if found.default_system is not None:
        reason += f"; default system message {found.default_system!r}"
    return bind_tokens(found, tokenizer), reason


def bind_tokens(chat_format: ChatFormat, tokenizer: Tokenizer) -> ChatFormat:
    """The format with the tokenizer's BOS and EOS; ValueError names a token that is missing."""
    f = replace(
        chat_format,
        bos=tokenizer.bos_token or chat_format.bos,
        eos=tokenizer.eos_token or chat_format.eos,
    )
    written = "".join(part or "" for part in (f.start, f.system, f.user, f.end))
    needed = {*f.tokens, *(token for token in ("{bos}", "{eos}") if token in written)}
    needed = {f.literal(token) for token in needed}
    missing = sorted(token for token in needed if tokenizer.special_id(token) is None)
    if missing:
        raise ValueError(
            f"chat format {f.name} needs the special token {', '.join(missing)}, which the "
            "tokenizer does not have; pass another --chat_format"
        )
    return f


def mark_chat_format(path: Path, chat_format: ChatFormat) -> None:
    """Say in a policy's folder with which format it was trained, for `detect_chat_format`."""
    write_config(path, read_config(path) | {"chat_format": chat_format.name})


def write_config(path: Path, config: dict) -> None:
    """Beside the file and renamed: a kill leaves the old one or the new one."""
    partial = path / f"{CONFIG}.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(path / CONFIG)


def read_config(path: Path) -> dict:
    file = path / CONFIG
    return read_json(file) if file.is_file() else {}


def read_template(path: Path) -> tuple[str | None, Path | None]:
    """The checkpoint's chat template and the file it is in, in the order of transformers."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return decode_text(read_file(file), str(file)), file
    file = path / CONFIG
    template = read_config(path).get("chat_template")
    if isinstance(template, list):  # several, by name
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), "")
    if template is not None and not is_text(template):
        raise ValueError(f"{file}: chat_template expects a text, got {template!r}")
    return template, file


def recognise_template(template: str) -> ChatFormat | None:
    """The format of a published template, None if it is not one of them, letter for letter."""
    if (entry := KNOWN_TEMPLATES.get(template_fingerprint(template))) is None:
        return None
    name, particulars = entry
    return replace(CHAT_FORMATS[name], default_system=default_system(template), **particulars)


SYSTEM_LITERAL = re.compile(r"'<\|im_start\|>system\n([^'\\]*)<\|im_end\|>\n'")


def template_fingerprint(template: str) -> str:
    r"""Hash of a template, blind to what does not change its meaning.

    That is: how \n is spelled, spaces just inside {{ }} and {% %}, and the text of a default ChatML
    system message, which `default_system` reads.
    """
    text = SYSTEM_LITERAL.sub("'default system'", unescape_newlines(template))
    text = re.sub(r"(?<=\{\{|\{%) +|(?<! ) +(?=\}\}|%\})", "", text).removesuffix("\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_system(template: str) -> str | None:
    match = SYSTEM_LITERAL.search(unescape_newlines(template))
    return match.group(1) if match else None


def unescape_newlines(template: str) -> str:
    r"""A newline in a Jinja string may be written as such or as \n."""
    return re.sub(r"'[^']*'", lambda string: string.group().replace("\\n", "\n"), template)


# ---------------------------------------------------------------------------------------------
# messages -> text
# ---------------------------------------------------------------------------------------------


def render(
    messages: Sequence[Message], chat_format: ChatFormat, add_generation_prompt: bool = False
) -> str:
    """The conversation as one string, special tokens spelled out."""
    return "".join(text for _, text in parts_of(messages, chat_format, add_generation_prompt))


def parts_of(
    messages: Sequence[Message], f: ChatFormat, add_generation_prompt: bool
) -> list[tuple[bool, str]]:
    """[(whether the format wrote it, text)]: the words of the format apart from the users'."""
    check_messages(messages, f)
    parts = [(True, f.start)]
    if f.default_system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": f.default_system}, *messages]
    folded = None
    for i, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "system" and f.system is None:
            folded = content
            continue
        if folded is not None:
            content, folded = f.system_in_user.format(system=folded, content=content), None
        content = content.strip() if f.strip else content
        if message["role"] == "assistant":
            last = i == len(messages) - 1
            end = f.end + f.between if f.end_inside or last else ""
            opening, closing = f.reply_start + f.before, f.after + end
        else:
            turn = f.user if message["role"] == "user" else f.system
            opening, _, closing = turn.partition("{content}")
        parts += [(True, opening), (False, content), (True, closing)]
    parts += [(True, f.reply_start)] if add_generation_prompt else []
    return [(written, f.literal(text) if written else text) for written, text in parts]


def check_messages(messages: Sequence[Message], f: ChatFormat) -> None:
    """ValueError if the format cannot express these messages."""
    roles = [message["role"] for message in messages]
    if not roles or any(role not in ROLES for role in roles):
        raise ValueError(f"expected messages with the roles {', '.join(ROLES)}, got {roles}")
    if "system" in roles and f.system is None and f.system_in_user is None:
        raise ValueError(
            f"chat format {f.name} has no system message; write it into the first user message"
        )
    if f.name == "none" and roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"chat format none takes a single user message as prompt, got {roles}")
    if f.alternate and not takes_turns(messages):
        raise ValueError(f"chat format {f.name} expects user, assistant, user, ..., got {roles}")


def takes_turns(messages: Sequence[Message]) -> bool:
    """user, assistant, user, ... behind at most one system message."""
    roles = [message["role"] for message in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return bool(roles) and all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))


# ---------------------------------------------------------------------------------------------
# messages -> ids
# ---------------------------------------------------------------------------------------------


def encode_prompt(
    messages: Sequence[Message], chat_format: ChatFormat, tokenizer: Tokenizer
) -> list[int]:
    """BOS (if there is one) and the conversation up to where the reply begins."""
    return encode_prompts([messages], chat_format, tokenizer)[0]


def encode_completion(text: str, chat_format: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """The reply and its end-of-turn token."""
    return encode_completions([text], chat_format, tokenizer)[0]


def encode_prompts(
    conversations: Sequence[Sequence[Message]], chat_format: ChatFormat, tokenizer: Tokenizer
) -> list[list[int]]:
    """`encode_prompt` of many, in parallel."""
    prompts = []
    for messages in conversations:
        if messages and messages[-1]["role"] == "assistant":
            raise ValueError("expected a prompt that ends with a user message, got an assistant's")
        pieces: list[int | str] = list(opening_ids(chat_format, tokenizer))
        for written, text in parts_of(messages, chat_format, add_generation_prompt=True):
            for piece in split_specials(text, tokenizer) if written else (text,):
                if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                    pieces[-1] += piece
                elif piece != "":
                    pieces.append(piece)
        prompts.append(pieces)
    return encode_pieces(prompts, chat_format, tokenizer)


def encode_pieces(
    prompts: list[list[int | str]], chat_format: ChatFormat, tokenizer: Tokenizer
) -> list[list[int]]:
    """Ids stay, texts are encoded, all of a kind in one call."""
    first = len(opening_ids(chat_format, tokenizer))  # a text there starts the conversation
    places: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for i, pieces in enumerate(prompts):
        for j, piece in enumerate(pieces):
            if isinstance(piece, str):
                places[j == first or tokenizer.prefix_after_special].append((i, j))
    encoded = [[[piece] for piece in pieces] for pieces in prompts]
    for prefix, spots in places.items():
        texts = [prompts[i][j] for i, j in spots]
        for (i, j), ids in zip(spots, tokenizer.encode_batch(texts, prefix), strict=True):
            encoded[i][j] = ids
    return [[id for ids in pieces for id in ids] for pieces in encoded]


def encode_completions(
    texts: Sequence[str], chat_format: ChatFormat, tokenizer: Tokenizer
) -> list[list[int]]:
    """`encode_completion` of many, in parallel."""
    f = chat_format
    prompt_end = f.literal(f.user.partition("{content}")[2] + f.reply_start)
    behind_special = isinstance(split_specials(prompt_end, tokenizer)[-1], int)
    prefix = behind_special and tokenizer.prefix_after_special
    texts = [f.before + (text.strip() if f.strip else text) + f.after for text in texts]
    end = tokenizer.special_id(f.literal(f.end))
    return [[*ids, end] for ids in tokenizer.encode_batch(texts, prefix)]


def writes_bos(chat_format: ChatFormat) -> bool:
    return (chat_format.start + chat_format.user).startswith("{bos}")


def opening_ids(chat_format: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """BOS where the tokenizer puts one before a text and the format writes none itself."""
    return [tokenizer.bos_id] if tokenizer.adds_bos and not writes_bos(chat_format) else []


def bos_length(chat_format: ChatFormat, tokenizer: Tokenizer) -> int:
    """1 if every prompt begins with BOS, else 0. SmolLM2's <|im_start|> opens turns: 0."""
    return int(writes_bos(chat_format) or tokenizer.adds_bos)


def stop_ids(chat_format: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """Tokens that end a completion: the end of a turn, and EOS where it is another one."""
    end = tokenizer.special_id(chat_format.literal(chat_format.end))
    eos = tokenizer.eos_id
    return [end] if eos is None or eos == end else [end, eos]


@lru_cache(maxsize=256)
def split_specials(text: str, tokenizer: Tokenizer) -> tuple[int | str, ...]:
    """Words of a format -> ids of the special tokens in them, and the texts between."""
    tokens = sorted(tokenizer.special_ids, key=len, reverse=True)
    if not tokens or not text:
        return (text,)
    pieces = re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)
    return tuple(tokenizer.special_ids.get(piece, piece) for piece in pieces if piece)
