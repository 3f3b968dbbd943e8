"""All that the page of `eval.audit` shows: some pairs token by token, and all of them at a glance.

No command of its own. The numbers are those of `eval/audit_terms.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.pairs import TokenPair
from data.tokenizer import Tokenizer
from eval.audit_run import (
    SIDES,
    AuditConfig,
    Settings,
    ids_of,
    load_models,
    read_tokens,
    trained_model,
)
from eval.audit_terms import TOLERANCE, Objective, chains, close, pair_logps, shares, token_numbers
from model.logbook import read_records
from model.objective import DEFAULT_TAU
from model.run import choose_device
from model.training_state import checkpoints, load_trained, number
from model.transformer import Transformer

SATURATED = 20.0  # |margin| where sigmoid(-margin), the weight of a pair's gradient, is 2e-9 or 1
SHOWN = 2000  # pairs at a glance, at most


def audit(config: AuditConfig, settings: Settings) -> dict[str, Any]:
    """All that the page shows, see `eval/audit_page.py`."""
    device, dtype = choose_device(config.device, config.dtype)
    pairs, cut, tokenizer, chat_format, reason = read_tokens(config, settings)
    policy, reference, policy_name, reference_name = load_models(config, settings, dtype, device)
    budget = config.micro_batch_tokens
    policy_logps = pair_logps(policy, pairs, budget, device, "policy")
    reference_logps = pair_logps(reference, pairs, budget, device, "reference")
    lengths = torch.tensor([[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs])
    rows = chains(settings.terms, policy_logps, reference_logps, lengths)
    numbers = choose_pairs(config, rows)
    steps, lines = over_steps(config, settings, pairs, numbers, reference_logps, dtype, device)
    spell = Speller(tokenizer)
    duplicates = find_duplicates(pairs)
    shown = [
        show_pair(settings.terms, policy, reference, pairs[i], i, rows[i], cut, spell)
        | {"over_steps": {name: values[k] for name, values in lines.items()} or None}
        | {"duplicate_of": duplicates[i]}
        for k, i in enumerate(tqdm(numbers, desc="tokens", unit=" pairs", leave=False))
    ]
    residuals = [pair["closing"]["residual"] for pair in shown]
    policy_coef, reference_coef = settings.terms.coefficients
    return {
        "objective": settings.objective,
        "alpha": settings.alpha or DEFAULT_TAU * settings.beta,  # from which a slider begins
        "beta": settings.beta,
        "label_smoothing": settings.label_smoothing,
        "sft_weight": settings.sft_weight,
        "policy_coef": policy_coef,
        "reference_coef": reference_coef,
        "tau": policy_coef / reference_coef,
        "policy": policy_name,
        "reference": reference_name,
        "data": sorted({pair.source.rpartition(":")[0] for pair in pairs}),
        "dtype": str(dtype).removeprefix("torch."),
        "logged": logged(config, rows),
        "closing": {
            "largest": float(np.max(residuals, initial=0.0)),
            "tolerance": TOLERANCE[dtype],
            "closes": all(pair["closing"]["closes"] for pair in shown),
        },
        "counts": count(rows, cut, duplicates),
        "glance": glance(pairs, rows, cut, duplicates, config.seed),
        "tokenizer": {
            "chat_format": chat_format.name,
            "bos": tokenizer.bos_token,
            "eos": chat_format.literal(chat_format.end),
            "reason": reason,
        },
        "steps": steps,
        "pairs": shown,
    }


def choose_pairs(config: AuditConfig, rows: Sequence[dict[str, float]]) -> list[int]:
    """Numbers of the pairs that are shown token by token, in order."""
    asked = [int(text) for text in config.pairs or ()]
    if outside := [i for i in asked if i >= len(rows)]:
        raise ValueError(f"--pairs expects numbers below {len(rows)}, got {outside[0]}")
    margins = np.array([row["margin"] for row in rows])
    chosen = set(asked) | set(np.argsort(margins, kind="stable")[: config.worst].tolist())
    sample = config.sample
    if sample is None:
        sample = 0 if chosen else 20
    drawn = np.random.default_rng(config.seed).permutation(len(rows))[:sample]
    return sorted(chosen | set(drawn.tolist()))


def over_steps(
    config: AuditConfig,
    settings: Settings,
    pairs: Sequence[TokenPair],
    numbers: Sequence[int],
    reference_logps: Tensor,
    dtype: torch.dtype,
    device: str,
) -> tuple[list[int], dict[str, list[list[float]]]]:
    """(steps, {term: for each shown pair its values}) at the checkpoints that the run has kept.

    Nothing where they are fewer than two.
    """
    kept = list(reversed(checkpoints(Path(config.run)))) if config.run is not None else []
    if len(kept) < 2 or not numbers:
        return [], {}
    some = [pairs[i] for i in numbers]
    lengths = torch.tensor([[len(p.chosen_ids), len(p.rejected_ids)] for p in some])
    model = trained_model(settings, dtype, device)
    names = ("margin", "terms/policy", "terms/reference", "loss")
    lines: dict[str, list[list[float]]] = {name: [[] for _ in numbers] for name in names}
    for checkpoint in tqdm(kept, desc="checkpoints", leave=False):
        load_trained(checkpoint, model)
        logps = pair_logps(model, some, config.micro_batch_tokens, device, checkpoint.name)
        rows = chains(settings.terms, logps, reference_logps[list(numbers)], lengths)
        for name in names:
            for values, row in zip(lines[name], rows, strict=True):
                values.append(row[name])
    return [number(checkpoint) for checkpoint in kept], lines


def show_pair(
    objective: Objective,
    policy: Transformer,
    reference: Transformer,
    pair: TokenPair,
    number: int,
    chain: dict[str, float],
    cut: set[tuple[str, str]],
    spell: "Speller",
) -> dict[str, Any]:
    """One pair token by token."""
    prompt = ids_of(pair, "prompt")
    shown: dict[str, Any] = {
        "index": number,
        "source": pair.source,
        "prompt": spell.all(prompt) | {"truncated": (pair.source, "prompt") in cut},
        "chain": chain,
    }
    parts = []
    for side, sign in zip(SIDES, (1, -1), strict=True):
        ids = ids_of(pair, side)
        own, other = (token_numbers(model, prompt, ids) for model in (policy, reference))
        parts.append(shares(objective, sign, own.logps, other.logps))
        columns = {
            "logps": own.logps,
            "ref_logps": other.logps,
            "entropy": own.entropy,
            "gradient": own.gradient,
            "likeliest_p": own.likeliest_p,
        } | parts[-1]
        shown[side] = spell.all(ids) | {name: v.tolist() for name, v in columns.items()}
        shown[side]["likeliest"] = spell.all(own.likeliest.tolist())["tokens"]
        shown[side]["truncated"] = (pair.source, side) in cut
    return shown | {"closing": close(chain, *parts, TOLERANCE[policy.dtype])}


class Speller:
    """What each token id says: special tokens by name, others as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.names = {id: name for name, id in tokenizer.special_ids.items()}

    def all(self, ids: Sequence[int]) -> dict[str, list]:
        texts = [self.names.get(i) or self.tokenizer.decode_continuation([i]) for i in ids]
        return {"tokens": texts, "ids": list(ids), "special": [i in self.names for i in ids]}


# ------------------------------------------------------------------------------------------------
# all pairs


def find_duplicates(pairs: Sequence[TokenPair]) -> list[int | None]:
    """For each pair, the first one with the same tokens before it."""
    seen: dict[tuple, int] = {}
    found = []
    for i, pair in enumerate(pairs):
        key = tuple(ids.tobytes() for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        first = seen.setdefault(key, i)
        found.append(None if first == i else first)
    return found


def count(
    rows: Sequence[dict[str, float]],
    cut: set[tuple[str, str]],
    duplicates: Sequence[int | None],
) -> dict[str, int]:
    margins = [row["margin"] for row in rows]
    return {
        "pairs": len(rows),
        "saturated": sum(abs(margin) > SATURATED for margin in margins),
        "contradicted": sum(margin < 0 for margin in margins),
        "duplicates": sum(first is not None for first in duplicates),
        "truncated_prompts": sum(side == "prompt" for _, side in cut),
        "truncated_completions": sum(side != "prompt" for _, side in cut),
    }


def glance(
    pairs: Sequence[TokenPair],
    rows: Sequence[dict[str, float]],
    cut: set[tuple[str, str]],
    duplicates: Sequence[int | None],
    seed: int,
) -> dict[str, list]:
    """A row for each pair; of many, for SHOWN of them drawn by the seed."""
    drawn = sorted(np.random.default_rng(seed).permutation(len(pairs))[:SHOWN].tolist())
    sources = {source for source, _ in cut}
    table = [
        [i, pairs[i].source, rows[i]["margin"], rows[i]["loss"], rows[i]["pi_logratios"],
         rows[i]["ref_logratios"], len(pairs[i].prompt_ids), len(pairs[i].chosen_ids),
         len(pairs[i].rejected_ids), pairs[i].source in sources, duplicates[i]]
        for i in drawn
    ]  # fmt: skip
    columns = ["index", "source", "margin", "loss", "pi_logratio", "ref_logratio", "prompt_tokens",
               "chosen_tokens", "rejected_tokens", "truncated", "duplicate_of"]  # fmt: skip
    return {"columns": columns, "rows": table}


def logged(config: AuditConfig, rows: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """The run's last evaluation beside the same means here; None where they are not the same."""
    others = ("model", "adapter", "policy", "data", "objective", "alpha", "beta",
              "label_smoothing", "limit", "chat_format", "max_length", "max_prompt_length",
              "tokenizer")  # fmt: skip
    if config.run is None or config.on != "eval":
        return None
    if any(getattr(config, name) not in (None, "") for name in others):
        return None
    records = [r for r in read_records(Path(config.run) / "metrics.jsonl") if "eval/loss" in r]
    if not records:
        return None
    last = records[-1]
    return {
        "step": last["step"],
        "margin": last["eval/rewards/margins"],
        "loss": last["eval/loss"],
        "margin_here": float(np.mean([row["margin"] for row in rows])),
        "loss_here": float(np.mean([row["loss"] for row in rows])),
    }
