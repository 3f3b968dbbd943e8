"""What a policy finds of given completions: log-probabilities and next-token entropies.

The entropy of a policy's completions is the mean of -log pi(y | x) over plain draws of its own. By
the chain rule it is also the mean of the sum over t of H(pi(. | x, y_<t)), of which each term is
known exactly along a draw: the same number with less noise (Rao and Blackwell's step).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.chat import encode_completions, encode_prompts
from data.formats import read_formats
from data.prompts import row_prompt, with_system
from data.rows import read_rows
from model.generate import check_ids
from model.logps import TokenStats
from model.reference import hash_weights
from model.resumable import write_rows
from model.score import completion_stats
from model.transformer import Transformer


def encode_rows(
    rows: Sequence[Mapping],
    folder: str,
    chat_format: str,
    system: str | None,
    adapter: str | None = None,
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of the prompts of samples rows, and of the completions of each.

    folder: with the tokenizer; chat_format: a name, or auto, that of the adapter's training before
    the folder's; system: message before prompts that have none. A completion that was cut by its
    limit has no end-of-turn token. The ids are those of the texts: what was drawn may have been
    written with other tokens.
    """
    for row in rows:
        if "prompt" not in row:
            raise ValueError(
                f"{row['where']}: --model and --reference need the `prompt` of every row, as "
                "sample.py --out writes it"
            )
    tokenizer, found, reason = read_formats(folder, adapter, chat_format)
    print(f"{folder}: chat format {found.name} ({reason})")
    messages = [with_system(row_prompt(row, row["where"]), system).messages for row in rows]
    prompts, completions = encode_prompts(messages, found, tokenizer), []
    for row in rows:
        encoded = encode_completions(row["completions"], found, tokenizer)
        reasons = row.get("finish_reasons", ["stop"] * len(encoded))
        ends = [1 if reason == "length" and len(ids) > 1 else 0
                for ids, reason in zip(encoded, reasons, strict=True)]  # fmt: skip
        completions.append([ids[: len(ids) - end] for ids, end in zip(encoded, ends, strict=True)])
    return prompts, completions


def score_texts(
    policy: Transformer,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[list[int]]],
    out: Path,
) -> tuple[list[dict], str]:
    """The rows of the file `out`, with SHA-256 of the weights; those that are there are kept.

    A row has `tokens`, `logps` and `entropies` (the sum of the next-token entropies, in nats) of
    the completions of a prompt. Raises ValueError where the policy has no room for them.
    """
    for i, (prompt, some) in enumerate(zip(prompts, completions, strict=True)):
        check_room(policy, len(prompt), max(map(len, some)), i)
        check_ids(policy, [*prompt, *chain(*some)], f"--samples, row {i}")
    weights = hash_weights(policy, adapters=True)
    digest = hashlib.sha256(json.dumps([prompts, completions]).encode()).hexdigest()

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        texts = ([some[i] for i in own] for some in (prompts, completions))
        stats = completion_stats(policy, *texts)
        stats = tqdm(stats, out.stem, len(own), leave=False, unit=" prompts", disable=not own)
        for i, found in zip(own, stats, strict=True):
            yield i, describe_stats(found)

    write_rows(out, {"weights": weights, "texts": digest}, len(prompts), make, policy)
    return [row for _, row in read_rows(out)], weights


def check_room(policy: Transformer, prompt: int, longest: int, row: int) -> None:
    """ValueError where the positions end before so many tokens of a row's prompt and completion."""
    positions = policy.config.max_position_embeddings
    if prompt + longest > positions:
        raise ValueError(
            f"--samples, row {row}: a prompt of {prompt} tokens and a completion of {longest} do "
            f"not fit the model's {positions} positions; draw shorter completions, or score with a "
            "model that has room"
        )


def describe_stats(found: Sequence[TokenStats]) -> dict[str, list]:
    return {
        "tokens": [len(stats.logps) for stats in found],
        "logps": [stats.logps.double().sum().item() for stats in found],
        "entropies": [stats.entropy.double().sum().item() for stats in found],
    }


def agreement(drawn: Sequence[Mapping], scored: Sequence[Mapping]) -> float | None:
    """The share of completions that score what they were drawn with, within 1%; it is printed.

    None where the rows do not say what that was. The others' texts were drawn as other tokens than
    they are read as, or by another policy, or behind another prompt.
    """
    if not {"logps", "tokens"} <= drawn[0].keys():
        return None
    same = []
    for row, found in zip(drawn, scored, strict=True):
        for key, close in (("tokens", 0.0), ("logps", 0.01)):
            same.append(np.isclose(found[key], row[key], rtol=close, atol=close))
    share = float(np.mean(np.logical_and(same[::2], same[1::2])))
    print(f"{share:.1%} of the completions score what they were drawn with, within 1%")
    if share < 0.05:
        print(
            "were they drawn by this --model and --adapter, at this --chat_format and --system, "
            "and without a stop text?"
        )
    return share
