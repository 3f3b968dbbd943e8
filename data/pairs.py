"""Files -> checked `Pair(prompt, chosen, rejected)` records -> token ids.

Rows (.jsonl, .jsonl.gz, a .json list, .parquet) are recognised by their keys:

    prompt, chosen, rejected     texts, or lists of messages; the lists may repeat the prompt, as in
                                 UltraFeedback binarized, or stand without one (the common turns)
    chosen, rejected             two dialogues "\\n\\nHuman: ...\\n\\nAssistant: ...", as in HH
    messages                     sft: one example for each reply
    prompt, completion           sft
    system                       beside them: the system message; null is no value, of any key

For sft, rows of preferences give their chosen side. A prompt that is a text is one user message, or
a dialogue as in HH up to "\\n\\nAssistant:"; a chosen side that is such a dialogue repeats it.

A malformed row stops with its file:line. Well-formed rows that say nothing are dropped, counted and
reported: an empty reply; chosen equal to rejected; dialogues that part before their last reply (in
HH a few in a thousand: what follows would be a "completion" with turns of the human in it).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.chat import (
    ChatFormat,
    Message,
    bos_length,
    check_messages,
    encode_completions,
    encode_prompts,
    takes_turns,
)
from data.rows import (
    add_system,
    check_turns,
    data_files,
    dialogue,
    read_rows,
    without_nulls,
)
from data.tokenizer import Tokenizer

EMPTY = "empty reply"
EQUAL = "chosen equals rejected"
PARTED = "the dialogues part before their last reply"
UNANSWERED = "a reply to no user message"


@dataclass(frozen=True)
class Pair:
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str | None  # None for sft
    source: str  # file:line


@dataclass(frozen=True, eq=False)
class TokenPair:
    prompt_ids: np.ndarray  # (P,) int32
    chosen_ids: np.ndarray  # (C,) int32, end-of-turn token included unless truncated
    rejected_ids: np.ndarray  # (R,) int32, empty for sft
    source: str


# ---------------------------------------------------------------------------------------------
# dialogues -> pairs
# ---------------------------------------------------------------------------------------------


def read_pairs(
    paths: str | Path | Sequence[str | Path],
    objective: str,
    log: Callable[[str], None] = print,
) -> list[Pair]:
    """All pairs of the files, in order. objective: "sft" reads single examples.

    Raises ValueError or FileNotFoundError with the file:line to mend.
    """
    make = examples_of_row if objective == "sft" else pairs_of_row
    files = data_files(paths)
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    rows = 0
    for path in files:
        before = rows
        for where, row in read_rows(path):
            rows += 1
            for made in make(without_nulls(row), where):
                reason = made if isinstance(made, str) else nothing_to_learn(made)
                if reason is None:
                    pairs.append(made)
                else:
                    dropped[reason] += 1
        if rows == before:
            raise ValueError(f"{path}: expected rows, got an empty file")
    kind = "examples" if objective == "sft" else "pairs"
    names = short_names(files)
    log(f"data: {len(pairs)} {kind} from {rows} rows of {names}{tell_dropped(dropped)}")
    if not pairs:
        raise ValueError(f"{names}: no {kind} remain{tell_dropped(dropped)}")
    return pairs


def short_names(files: Sequence[Path]) -> str:
    """As much of the ends of their paths as tells the files apart."""
    depth = 1
    while len({path.parts[-depth:] for path in files}) < len(set(files)):
        depth += 1
    return ", ".join(str(Path(*path.parts[-depth:])) for path in files)


def tell_dropped(dropped: Counter[str]) -> str:
    if not dropped:
        return ""
    reasons = ", ".join(f"{reason} {n}" for reason, n in dropped.most_common())
    return f"; dropped {dropped.total()}: {reasons}"


def nothing_to_learn(pair: Pair) -> str | None:
    if not pair.chosen.strip() or (pair.rejected is not None and not pair.rejected.strip()):
        return EMPTY
    return EQUAL if pair.chosen == pair.rejected else None


def pairs_of_row(row: dict, where: str) -> list[Pair | str]:
    """One pair, or why there is none."""
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(
            f"{where}: expected the keys chosen and rejected, with or without prompt, "
            f"got {', '.join(row) or 'none'}"
        )
    chosen, rejected = dialogue(row, "chosen", where), dialogue(row, "rejected", where)
    if chosen == rejected:
        return [EQUAL]
    common = common_turns(chosen, rejected)
    if common != len(chosen) - 1 or common != len(rejected) - 1:
        return [PARTED]
    if chosen[common - 1]["role"] != "user":
        return [UNANSWERED]
    replies = chosen[-1]["content"], rejected[-1]["content"]
    return [Pair(tuple(chosen[:-1]), *replies, where)]


def common_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many leading turns the two dialogues share."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    return n


def examples_of_row(row: dict, where: str) -> list[Pair | str]:
    """sft: each reply of `messages`, or the last of prompt + completion or of the chosen side."""
    if "messages" in row:
        turns = add_system(row, check_turns(row["messages"], "messages", where), where)
        ends = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not ends:
            raise ValueError(f"{where}: messages: expected a reply of the assistant, got none")
    else:
        key = next((key for key in ("completion", "chosen") if key in row), None)
        if key is None or (key == "completion" and "prompt" not in row):
            raise ValueError(
                f"{where}: expected the keys messages, or prompt and completion, or prompt and "
                f"chosen, got {', '.join(row) or 'none'}"
            )
        turns = dialogue(row, key, where)
        ends = [len(turns) - 1]
    examples: list[Pair | str] = []
    for end in ends:
        answers = end > 0 and turns[end - 1]["role"] == "user"
        example = Pair(tuple(turns[:end]), turns[end]["content"], None, where)
        examples.append(example if answers else UNANSWERED)
    return examples


def flip_labels(pairs: Sequence[Pair], fraction: float, seed: int) -> list[Pair]:
    """The pairs with chosen and rejected swapped in exactly round(fraction * len(pairs)) of them.

    Which ones depends on (seed, number of pairs) alone.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"--label_noise: expected a fraction from 0 to 1, got {fraction}")
    flipped = list(pairs)
    rng = np.random.default_rng(seed)
    for i in rng.choice(len(flipped), size=round(fraction * len(flipped)), replace=False):
        pair = flipped[i]
        flipped[i] = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    return flipped


def split_by_first_turn(
    pairs: Sequence[Pair], share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """(training, held out): about `share` of the first human turns, with all their pairs, held out.

    No first turn stands on both sides, whatever the white space around it. Its side depends on
    (seed, its text as it first comes) alone, so that data that is added behind moves none.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    spelled: dict[str, str] = {}
    for pair in pairs:
        text = spelled.setdefault(first_turn(pair), first_message(pair))
        key = (seed, ({"role": "user", "content": text},))
        digest = hashlib.sha256(repr(key).encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < share * 2**64].append(pair)
    return sides


def first_message(pair: Pair) -> str:
    return next((turn["content"] for turn in pair.prompt if turn["role"] == "user"), "")


def first_turn(pair: Pair) -> str:
    """What the human says first, without the white space around it."""
    return first_message(pair).strip()


def read_split(
    data: str | Path | Sequence[str | Path],
    eval_data: str | Path | Sequence[str | Path] | None,
    eval_fraction: float,
    label_noise: float,
    objective: str,
    seed: int,
    eval_pairs: int = 0,
) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs of a run: from files of their own, or a share of the first turns.

    label_noise: the share of the training labels that is flipped. eval_pairs: so many of the
    held-out pairs at most, drawn by the seed and in their order; 0: all.
    """
    pairs = read_pairs(data, objective)
    if eval_data is not None:
        held_out = read_pairs(eval_data, objective)
    else:
        count = len(pairs)
        pairs, held_out = split_by_first_turn(pairs, eval_fraction, seed)
        if not pairs:
            raise ValueError(f"--eval_fraction {eval_fraction} leaves no training pairs of {count}")
    if 0 < eval_pairs < len(held_out):
        chosen = np.random.default_rng([seed, len(held_out)]).permutation(len(held_out))
        held_out = [held_out[i] for i in sorted(chosen[:eval_pairs].tolist())]
    return flip_labels(pairs, label_noise, seed), held_out


# ---------------------------------------------------------------------------------------------
# pairs -> ids
# ---------------------------------------------------------------------------------------------


def length_limits(
    max_length: int, max_prompt_length: int | None, positions: int
) -> tuple[int, int]:
    """max_length within the model's positions; and of the prompt, half of it where none is asked.

    A prompt may not take all of the positions: then half of them are left to the completion.
    """
    longest = min(max_length, positions)
    asked = max_prompt_length or longest // 2
    return longest, asked if asked < longest else max(1, longest // 2)


def tokenize_pairs(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    max_length: int,
    max_prompt_length: int,
    vocab_size: int | None = None,
    log: Callable[[str], None] = print,
    progress: bool = True,
    chunk: int = 512,
) -> list[TokenPair]:
    """Ids of the pairs, none longer than max_length (prompt and the longer completion).

    A pair that is too long first loses the front of its prompt, down to max_prompt_length tokens
    (BOS stays), then the end of its completions, and with it their end-of-turn token.
    vocab_size: of the model; larger ids are an error.
    """
    if not 0 < max_prompt_length < max_length:
        raise ValueError(
            "expected 0 < --max_prompt_length < --max_length, "
            f"got {max_prompt_length} and {max_length}"
        )
    keep = bos_length(chat_format, tokenizer)
    made: list[TokenPair] = []
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with tqdm(total=len(pairs), desc="tokenize", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), chunk):
            some = pairs[start : start + chunk]
            bar.update(len(some))
            some = [pair for pair in some if expressible(pair, chat_format, dropped)]
            for pair, ids in zip(some, encode_pairs(some, tokenizer, chat_format), strict=True):
                prompt, chosen, rejected = truncate(*ids, max_length, max_prompt_length, keep)
                counts["prompts"] += len(prompt) < len(ids[0])
                counts["completions"] += len(chosen) < len(ids[1])
                counts["completions"] += len(rejected) < len(ids[2])
                if pair.rejected is not None and chosen == rejected:
                    dropped["equal as tokens, or where they were cut"] += 1
                    continue
                arrays = (np.array(a, dtype=np.int32) for a in (prompt, chosen, rejected))
                made.append(TokenPair(*arrays, pair.source))
                check_ids(made[-1], vocab_size)
    report(made, counts, dropped, max_length, log)
    note_spelled(pairs, tokenizer, log)
    return made


def note_spelled(pairs: Sequence[Pair], tokenizer: Tokenizer, log: Callable[[str], None]) -> None:
    """Say where texts spell a special token: as text it is what a user wrote, or a template's."""
    special = re.compile("|".join(map(re.escape, tokenizer.special_ids)) or r"\Z.")
    found = []
    for pair in pairs:
        replies = (pair.chosen, pair.rejected or "")
        texts = (*(turn["content"] for turn in pair.prompt), *replies)
        if match := next(filter(None, map(special.search, texts)), None):
            found.append((pair.source, match[0]))
    if found:
        source, token = found[0]
        log(
            f"data: {len(found)} rows spell a special token, the first is {source} with {token}; "
            "it stays text. If a chat template has been applied to them, take rows without it"
        )


def expressible(pair: Pair, chat_format: ChatFormat, dropped: Counter[str]) -> bool:
    """False, and counted, for turns out of order where the format needs them in order."""
    if chat_format.alternate and not takes_turns(pair.prompt):
        dropped[f"turns out of order for {chat_format.name}"] += 1
        return False
    try:
        check_messages(pair.prompt, chat_format)
    except ValueError as error:
        raise ValueError(f"{pair.source}: {error}") from error
    return True


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, chat_format: ChatFormat
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) ids of each pair; rejected is empty for sft."""
    replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
    encoded = iter(
        encode_completions([r for r in replies if r is not None], chat_format, tokenizer)
    )
    prompts = encode_prompts([pair.prompt for pair in pairs], chat_format, tokenizer)
    for pair, prompt in zip(pairs, prompts, strict=True):
        if not prompt:
            raise ValueError(
                f"{pair.source}: the prompt has no tokens, so nothing predicts a reply"
            )
        yield prompt, next(encoded), next(encoded) if pair.rejected is not None else []


def truncate(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    max_length: int,
    max_prompt_length: int,
    keep: int,
) -> tuple[list[int], list[int], list[int]]:
    """Cuts a pair to max_length. keep: how many tokens at the prompt's front stay (its BOS).

    Decided from the longer completion, so that both keep the same prompt. Cutting the front of a
    conversation cuts its system message, or a turn, in the middle.
    """
    if len(prompt) + max(len(chosen), len(rejected)) <= max_length:
        return prompt, chosen, rejected
    if len(prompt) > max_prompt_length:
        prompt = prompt[:keep] + prompt[len(prompt) - max_prompt_length + keep :]
    room = max_length - len(prompt)
    return prompt, chosen[:room], rejected[:room]


def check_ids(pair: TokenPair, vocab_size: int | None) -> None:
    arrays = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
    largest = max(int(ids.max(initial=0)) for ids in arrays)
    if vocab_size is not None and largest >= vocab_size:
        raise ValueError(
            f"{pair.source}: the tokenizer gives id {largest}, but the model has a vocabulary of "
            f"{vocab_size}; the tokenizer is not the model's, or its embedding was not resized"
        )


def report(
    made: list[TokenPair],
    counts: Counter[str],
    dropped: Counter[str],
    max_length: int,
    log: Callable[[str], None],
) -> None:
    tokens = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in made)
    cut = ", ".join(f"{counts[name]} {name}" for name in ("prompts", "completions") if counts[name])
    cut = f"; cut to --max_length {max_length}: {cut}" if cut else ""
    log(f"tokens: {tokens} in {len(made)} pairs{cut}{tell_dropped(dropped)}")
    if not made:
        raise ValueError(f"no pairs remain{tell_dropped(dropped)}")
