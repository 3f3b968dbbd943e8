"""Invariants of texts and token ids: what a model is about to be trained on is what the files say.

A flaw of some pairs is a note, and of most of them a failure; what would train something else than
the pairs (an id without a row, a second BOS, an end of turn in the wrong place, an empty reply)
fails at the first.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.chat import (
    CHAT_FORMATS,
    ChatFormat,
    bos_length,
    encode_completion,
    opening_ids,
    parts_of,
    split_specials,
)
from data.pairs import Pair, TokenPair, first_turn
from data.tokenizer import Tokenizer
from eval.findings import NOTE, PASS, Finding, count_finding

DECODED_PAIRS = 1000  # at most, spread over the data
MOST = 0.5  # share of the pairs beyond which a flaw is a failure
MARKUP = {"[INST]", "[/INST]", "<<SYS>>", "<|user|>", "<|assistant|>", "</s>", "<|endoftext|>"}
MARKUP |= {token for chat_format in CHAT_FORMATS.values() for token in chat_format.tokens}


@dataclass(frozen=True)
class Texts:
    """The pairs as texts and as ids, and what makes the one of the other."""

    pairs: dict[str, Pair]  # by their file:line
    tokens: list[TokenPair]
    held_out: list[Pair]
    tokenizer: Tokenizer
    chat_format: ChatFormat
    template: str | None  # name of the format of the checkpoint's own template; none: it has none
    max_length: int
    max_prompt_length: int
    vocab_size: int  # of the model

    @property
    def end(self) -> int:
        """The end-of-turn token."""
        return self.tokenizer.special_id(self.chat_format.literal(self.chat_format.end))


def text_findings(texts: Texts) -> Iterator[Finding]:
    """All of them, the most fundamental first."""
    yield own_template(texts)
    yield vocabulary(texts)
    yield one_bos(texts)
    yield end_of_turn(texts)
    yield not_empty(texts)
    some = spread(texts.tokens, DECODED_PAIRS)
    yield round_trip(texts, some)
    yield boundary(texts, some)
    yield markup(texts)
    yield truncation(texts)
    yield from repeats(texts)
    if texts.held_out:
        yield held_out(texts)


def spread(pairs: Sequence[TokenPair], limit: int) -> list[TokenPair]:
    """At most `limit` of the pairs, evenly over their order."""
    places = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).astype(int)
    return [pairs[i] for i in places]


# ------------------------------------------------------------------------------------------------
# ids


def own_template(texts: Texts) -> Finding:
    """A note where --chat_format overrules the template that the checkpoint brings along."""
    name, own = texts.chat_format.name, texts.template
    verdict = PASS if own in (None, name) else NOTE
    mend = (
        f"the checkpoint brings the template of {own}, and --chat_format {name} overrules it; "
        "where that is not what you want, leave --chat_format out"
    )
    expected = own or "no template to compare"
    return Finding("chat format", verdict, name, expected, "all, as a note", mend)


def vocabulary(texts: Texts) -> Finding:
    largest = {
        pair.source: int(max(ids.max(initial=0) for ids in all_ids(pair))) for pair in texts.tokens
    }
    bad = [source for source, id in largest.items() if id >= texts.vocab_size]
    mend = (
        f"id {largest[bad[0]] if bad else ''}, but the model has {texts.vocab_size} rows of "
        "embeddings; pass the model's own tokenizer with --tokenizer, or resize the embeddings"
    )
    return count_finding("ids in the vocabulary", bad, len(texts.tokens), "pairs beyond it", mend)


def all_ids(pair: TokenPair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return pair.prompt_ids, pair.chosen_ids, pair.rejected_ids


def one_bos(texts: Texts) -> Finding:
    """At the front of each prompt where the tokenizer or the format puts one, never twice, and in
    no completion. A format that opens later turns with BOS keeps those, and an end of turn that is
    the same token is counted as such."""
    bos, wanted = texts.tokenizer.bos_id, bos_length(texts.chat_format, texts.tokenizer)

    def wrong(pair: TokenPair) -> bool:
        front = (pair.prompt_ids[:2] == bos).tolist()
        lacks = bool(wanted) and not front[0]
        behind = bos != texts.end and any((c == bos).any() for c in completions(pair))
        return lacks or front == [True, True] or behind

    bad = [] if bos is None else [pair.source for pair in texts.tokens if wrong(pair)]
    mend = (
        f"BOS is not there once, at the front of the prompt ({wanted} expected there); "
        "see add_bos_token in tokenizer_config.json, or pass --chat_format"
    )
    return count_finding("one BOS", bad, len(texts.tokens), "pairs have another count", mend)


def completions(pair: TokenPair) -> tuple[np.ndarray, np.ndarray]:
    return pair.chosen_ids, pair.rejected_ids


def end_of_turn(texts: Texts) -> Finding:
    """Once, as the last token; not at all in a completion that --max_length cuts."""
    end = texts.end

    def wrong(pair: TokenPair, ids: np.ndarray, text: str) -> bool:
        places = np.flatnonzero(ids == end)
        if len(pair.prompt_ids) + len(ids) < texts.max_length:
            return places.tolist() != [len(ids) - 1]
        whole = encode_completion(text, texts.chat_format, texts.tokenizer)  # it may be cut
        return places.tolist() != ([len(ids) - 1] if len(whole) <= len(ids) else [])

    bad = []
    for pair in texts.tokens:
        origin = texts.pairs[pair.source]
        sides = zip(completions(pair), (origin.chosen, origin.rejected), strict=True)
        bad += [pair.source for ids, text in sides if wrong(pair, ids, text)]
    mend = (
        f"a completion has the end-of-turn token (id {end}) elsewhere than once at its end, or "
        "where it is cut; see eos_token of the tokenizer, or pass --chat_format"
    )
    total = 2 * len(texts.tokens)
    return count_finding("end of turn", bad, total, "completions end wrong", mend)


def not_empty(texts: Texts) -> Finding:
    bad = [p.source for p in texts.tokens for c in completions(p) if not (c != texts.end).any()]
    mend = "the reply has no token of its own, so there is nothing to prefer; drop the row"
    return count_finding("completions with text", bad, 2 * len(texts.tokens), "empty", mend)


# ------------------------------------------------------------------------------------------------
# ids against the texts


def round_trip(texts: Texts, some: Sequence[TokenPair]) -> Finding:
    """The ids decode to the rendered text, and hold its special tokens in their order.

    What a limit cuts is not compared.
    """
    bad = []
    whole = [pair for pair in some if not_cut(texts, pair)]
    for pair in whole:
        origin = texts.pairs[pair.source]
        prompt, specials = rendered(texts, origin)
        for ids, reply in zip(completions(pair), (origin.chosen, origin.rejected), strict=True):
            decoded = texts.tokenizer.decode([*pair.prompt_ids, *ids])
            expected = prompt + reply_text(texts.chat_format, reply)
            if decoded != expected or special_ids(texts, pair.prompt_ids) != specials:
                bad.append(pair.source)
                break
    mend = (
        "the ids decode to another text than the rendered one; the tokenizer has no tokens for "
        "some of its characters, or rewrites them: mend the row, or pass another --tokenizer"
    )
    return count_finding("decode(encode(text))", bad, len(whole), "pairs differ", mend, MOST)


def not_cut(texts: Texts, pair: TokenPair) -> bool:
    """Whether a pair is whole for sure: a cut prompt has --max_prompt_length tokens."""
    tokens = len(pair.prompt_ids) + max(map(len, completions(pair)))
    return tokens < texts.max_length and len(pair.prompt_ids) != texts.max_prompt_length


def rendered(texts: Texts, pair: Pair) -> tuple[str, list[int]]:
    """A prompt's text without special tokens, and the special tokens in it but for an opening."""
    pieces = prompt_pieces(texts, pair)
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    specials = [piece for piece in pieces if not isinstance(piece, str)]
    return text, without_opening(texts, specials)


def prompt_pieces(texts: Texts, pair: Pair) -> list[str | int]:
    pieces: list[str | int] = []
    for written, text in parts_of(pair.prompt, texts.chat_format, add_generation_prompt=True):
        pieces += split_specials(text, texts.tokenizer) if written else (text,)
    return [piece for piece in pieces if piece != ""]


def special_ids(texts: Texts, ids: np.ndarray) -> list[int]:
    known = set(texts.tokenizer.special_ids.values())
    return without_opening(texts, [id for id in ids.tolist() if id in known])


def without_opening(texts: Texts, specials: list[int]) -> list[int]:
    """BOS at the front is counted by `one_bos`."""
    start = 0
    while start < len(specials) and specials[start] == texts.tokenizer.bos_id:
        start += 1
    return specials[start:]


def reply_text(f: ChatFormat, reply: str) -> str:
    return f.before + (reply.strip() if f.strip else reply) + f.after


def boundary(texts: Texts, some: Sequence[TokenPair]) -> Finding:
    """Where one tokenisation of prompt and reply together would merge across the boundary."""
    f, tokenizer = texts.chat_format, texts.tokenizer
    bad = []
    for pair in some:
        origin = texts.pairs[pair.source]
        tail, prefix = prompt_tail(texts, origin)
        for reply in (origin.chosen, origin.rejected) if tail else ():
            joint, alone = tokenizer.encode_batch([tail + reply_text(f, reply), tail], prefix)
            if joint != alone + encode_completion(reply, f, tokenizer)[:-1]:
                bad.append(pair.source)
    mend = (
        "nothing to mend. Read as one text, prompt and reply have a token that straddles them; "
        "here the prompt ends where its text ends, so that chosen, rejected and what is sampled "
        "all follow the same ids"
    )
    total = 2 * len(some)
    return count_finding("boundary of the prompt", bad, total, "replies would merge", mend, 1.0)


def prompt_tail(texts: Texts, pair: Pair) -> tuple[str, bool]:
    """A prompt's text behind its last special token, and whether it has a dummy prefix."""
    pieces = [*opening_ids(texts.chat_format, texts.tokenizer), *prompt_pieces(texts, pair)]
    last = max((i for i, piece in enumerate(pieces) if not isinstance(piece, str)), default=-1)
    opens = last + 1 == len(opening_ids(texts.chat_format, texts.tokenizer))
    return "".join(pieces[last + 1 :]), opens or texts.tokenizer.prefix_after_special


def markup(texts: Texts) -> Finding:
    """Special tokens spelled in the texts: they are trained as text, not as turns."""
    f = texts.chat_format
    tokens = sorted({*MARKUP, f.bos, f.eos, f.literal(f.end)})
    pattern = re.compile("|".join(map(re.escape, tokens)))
    bad = [
        pair.source
        for pair in texts.pairs.values()
        if any(map(pattern.search, (m["content"] for m in pair.prompt)))
        or any(map(pattern.search, (pair.chosen, pair.rejected)))
    ]
    mend = (
        "the text spells a chat template's tokens, which are read as text; if the rows were "
        "rendered before, give messages or plain texts instead: the template is applied here"
    )
    return count_finding("no markup in texts", bad, len(texts.pairs), "pairs spell it", mend, MOST)


# ------------------------------------------------------------------------------------------------
# the data as a whole


def truncation(texts: Texts) -> Finding:
    def cut(pair: TokenPair, ids: np.ndarray) -> bool:
        full = len(pair.prompt_ids) + len(ids) >= texts.max_length
        return full and texts.end not in ids[-1:]

    bad = [pair.source for pair in texts.tokens for ids in completions(pair) if cut(pair, ids)]
    mend = (
        f"the completion is cut at --max_length {texts.max_length}, so that it never ends; raise "
        "it, lower --max_prompt_length, or drop such rows"
    )
    return count_finding("whole completions", bad, 2 * len(texts.tokens), "cut", mend, MOST)


def repeats(texts: Texts) -> Iterator[Finding]:
    """Pairs that stand twice, and pairs whose opposite stands there too."""
    keys = [tuple(ids.tobytes() for ids in all_ids(pair)) for pair in texts.tokens]
    again, opposed, known = [], [], set(keys)
    seen: set[tuple[bytes, ...]] = set()
    for key, pair in zip(keys, texts.tokens, strict=True):
        prompt, chosen, rejected = key
        if key in seen:
            again.append(pair.source)
        seen.add(key)
        if (prompt, rejected, chosen) in known:
            opposed.append(pair.source)
    total = len(texts.tokens)
    mend = "stands there before; a pair that repeats by mistake weighs more than it should"
    yield count_finding("distinct pairs", again, total, "repeat one", mend, 1.0)
    mend = (
        "another row prefers the other completion: right for a population that disagrees, "
        "a mistake for labels of one person"
    )
    yield count_finding("labels agree", opposed, total, "have their opposite", mend, 1.0)


def held_out(texts: Texts) -> Finding:
    trained = set(map(first_turn, texts.pairs.values()))
    bad = [pair.source for pair in texts.held_out if first_turn(pair) in trained]
    mend = (
        "a conversation of --eval_data begins as one of --data: held-out numbers will be too good; "
        "leave --eval_data out and the data is split by what the human says first"
    )
    total = len(texts.held_out)
    return count_finding("held-out prompts are new", bad, total, "are trained on", mend, MOST)
