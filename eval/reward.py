r"""What does a reward model, trained by `train.py --objective reward`, say of completions or pairs?

    python -m eval.reward --reward_model MODEL --reward_adapter runs/reward \
        --samples samples.jsonl --out runs/rewards
    python -m eval.reward --reward_model MODEL --samples runs/gsm8k/samples.jsonl \
        --prompts gsm8k/test.jsonl --items runs/gsm8k/items.jsonl --out runs/best-of-n
    python -m eval.reward --reward_model MODEL --data pairs.jsonl --out runs/held-out
    python -m eval.reward --reward_model MODEL --data pairs.jsonl --relabel other.jsonl --out OUT

Of samples: `reward@N`, the expected best of N completions that are drawn without replacement from
those of a prompt (`reward@1` is their mean), and `reward_sd`, their standard deviation. A reward is
known up to a constant of the prompt, so it says something beside another policy's, on the same
prompts and by the same reward model: --baseline.
--items, the verdicts of another evaluation of the same samples, gives `selected@N`, the chance that
the completion of the highest reward among N is right, beside `pass@N`, that any of them is.
Rows with reference_logps (sample.py --reference_logps) give `cross_entropy`, the policy's with its
reference, in nats: the mean of -log pi_ref over completions, and over tokens.

Of pairs: `accuracy`, in how many the chosen completion has the higher reward, `margin`, the
difference, and `loss`, that of training. --relabel writes the pairs again, in the order of their
rewards; equal rewards keep theirs.

A completion that --max_new_tokens ended (`finish_reasons`) is scored without an end-of-turn token,
as in training. Rewards are written to OUT/rewards.jsonl as they are made, and the same command goes
on after a kill.
"""

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.chat import (
    CHAT_FORMATS,
    ChatFormat,
    bos_length,
    encode_completions,
    encode_prompts,
)
from data.formats import read_formats
from data.pairs import truncate
from data.rows import data_files, read_rows, refuse_overwriting
from data.tokenizer import Tokenizer
from eval.metrics import pass_values, powers_of_two
from eval.results import (
    Metrics,
    data_digest,
    json_digest,
    read_baseline,
    read_results,
    refuse_results,
    report,
)
from eval.reward_rows import NUMBERS, Row, add_verdicts, pair_rows, read_samples
from model import parallel
from model.checkpoint import DTYPES
from model.config import parse_config
from model.reference import hash_weights
from model.resumable import write_rows
from model.reward import completion_rewards, load_reward_model
from model.run import choose_device, run_main, write_text
from model.transformer import Transformer


@dataclass(frozen=True)
class RewardConfig:
    reward_model: str | None = None  # folder of the reward model, or of its adapter's base
    reward_adapter: str | None = None  # folder with the reward model's LoRA adapter
    samples: str | None = None  # samples file with the completions to score
    prompts: str | None = None  # file of their prompts, where the rows of --samples have none
    items: str | None = None  # items.jsonl of an evaluation of --samples, with `correct`
    data: str | None = None  # score the preference pairs of this file or folder instead
    relabel: str | None = None  # write the pairs of --data, ordered by reward, to this file
    limit: int | None = None  # only the first so many rows
    max_length: int | None = None  # tokens of a prompt and its longest completion; none: positions
    max_prompt_length: int | None = None  # tokens a prompt is cut to, where needed; none: half
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the reward model
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    shard: bool = False  # under torchrun: share the weights among the ranks; else each has a copy
    out: str | None = None  # folder for the results
    baseline: str | None = None  # results folder: samples of another policy, pairs of another model


def main() -> None:
    config = parse_config(RewardConfig)
    check_config(config)
    asked = config.reward_model, config.reward_adapter, config.chat_format
    tokenizer, chat_format, reason = read_formats(*asked)
    print(f"chat format: {chat_format.name} ({reason})")
    rows, data = gather_rows(config, chat_format)
    pairs = config.samples is None
    task, metrics_of = ("reward_pairs", pair_metrics) if pairs else ("reward", sample_metrics)
    baseline = read_baseline(config.baseline, config.out, task, data, len(rows), metrics_of)
    device, dtype = choose_device(config.device, config.dtype)
    folders = (config.reward_model, config.reward_adapter)
    model = load_reward_model(*folders, dtype, device, config.shard)
    weights = hash_weights(model, adapters=True)
    if config.baseline is not None and not pairs:
        check_judge(config.baseline, weights)
    encoded = encode_rows(config, rows, model, tokenizer, chat_format)
    write_rewards(config, model, rows, encoded, weights)
    if not parallel.is_main():
        return
    scored = [row for _, row in read_rows(rewards_file(config))]
    items = [dict(one) | dict(row.about) for one, row in zip(scored, rows, strict=True)]
    settings = asdict(config) | {"data_sha256": data, "reward_sha256": weights}
    if not pairs:
        settings["samples_sha256"] = data_digest(config.samples)
    report(Path(config.out), task, settings, items, metrics_of, baseline)
    if config.relabel is not None:
        write_relabelled(Path(config.relabel), rows, items)


def check_config(config: RewardConfig) -> None:
    """ValueError for flags out of range, missing, or contradicting each other."""
    for flag, what in (("out", "a folder for the results"), ("reward_model", "a folder")):
        if getattr(config, flag) is None:
            raise ValueError(f"--{flag} expects {what}, got none")
    if (config.samples is None) == (config.data is None):
        raise ValueError("expected either --samples or --data, completions or pairs to score")
    for flag, needed in (("prompts", "samples"), ("items", "samples"), ("relabel", "data")):
        if getattr(config, flag) is not None and getattr(config, needed) is None:
            raise ValueError(f"--{flag} has no meaning without --{needed}")
    for flag in ("limit", "max_length", "max_prompt_length"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    formats = ("auto", *CHAT_FORMATS)
    for flag, known in (("chat_format", formats), ("dtype", (None, *DTYPES))):
        if getattr(config, flag) not in known:
            names = ", ".join(name for name in known if name)
            raise ValueError(f"--{flag} expects one of {names}, got {getattr(config, flag)!r}")
    if config.shard and parallel.world_size() == 1:
        raise ValueError("--shard needs more than one rank; start it with torchrun")
    for flag in ("reward_model", "reward_adapter"):
        if (path := getattr(config, flag)) is not None and not Path(path).is_dir():
            raise FileNotFoundError(f"--{flag} expects a folder, got {path}: no such folder")
    for flag in ("samples", "items"):
        if (path := getattr(config, flag)) is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{flag} expects a file, got {path}: no such file")
    if config.items is not None:
        refuse_results(config.out, Path(config.items).resolve().parent, "--items")
    if config.relabel is not None:
        target = Path(config.relabel)
        if target.is_dir():
            raise ValueError(f"--relabel expects a file, got the folder {target}")
        own = [rewards_file(config), Path(config.out) / "items.jsonl"]
        refuse_overwriting(target, [*data_files(config.data), *own], f"--relabel {target}")


# ------------------------------------------------------------------------------------------------
# rewards


def gather_rows(config: RewardConfig, chat_format: ChatFormat) -> tuple[list[Row], str]:
    """What is scored, and the SHA-256 of it: of the prompts of samples, of the file of pairs."""
    if config.samples is None:
        return pair_rows(config.data, chat_format, config.limit), data_digest(config.data)
    prompts = None if config.prompts is None else Path(config.prompts)
    rows = read_samples(Path(config.samples), prompts, chat_format, config.limit)
    digest = json_digest([row.messages for row in rows])
    return rows if config.items is None else add_verdicts(rows, Path(config.items)), digest


def encode_rows(
    config: RewardConfig,
    rows: Sequence[Row],
    model: Transformer,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt, completions) of each row as token ids, cut to --max_length as in training."""
    longest = min(config.max_length or math.inf, model.config.max_position_embeddings)
    longest_prompt = config.max_prompt_length or max(1, longest // 2)
    if not longest_prompt < longest:
        raise ValueError(
            "expected --max_prompt_length < --max_length (and the model's positions), "
            f"got {longest_prompt} and {longest}"
        )
    keep = bos_length(chat_format, tokenizer)
    prompts = encode_prompts([row.messages for row in rows], chat_format, tokenizer)
    texts = [reply for row in rows for reply in row.replies]
    ids = iter(encode_completions(texts, chat_format, tokenizer))
    encoded, cut = [], Counter()
    for row, prompt in zip(rows, prompts, strict=True):
        if not prompt:
            raise ValueError(f"{row.where}: the prompt has no tokens")
        whole = [next(ids) if ended else next(ids)[:-1] for ended in row.ended]
        kept, _, _ = truncate(prompt, max(whole, key=len), [], longest, longest_prompt, keep)
        completions = [completion[: longest - len(kept)] for completion in whole]
        cut["prompts"] += len(kept) < len(prompt)
        cut["completions"] += sum(map(len, completions)) < sum(map(len, whole))
        encoded.append((kept, completions))
    if cut.total():
        rows_cut = ", ".join(f"{name} of {n} rows" for name, n in cut.items() if n)
        print(f"cut to {longest} tokens: {rows_cut}")
    return encoded


def rewards_file(config: RewardConfig) -> Path:
    return Path(config.out) / "rewards.jsonl"


def write_rewards(
    config: RewardConfig,
    model: Transformer,
    rows: Sequence[Row],
    encoded: Sequence[tuple],
    weights: str,
) -> None:
    """OUT/rewards.jsonl; a row depends on the model, its prompt and its completions alone."""

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        for index in tqdm(own, desc="rewards", unit="row", disable=not parallel.is_main()):
            rewards = completion_rewards(model, *encoded[index])
            if not all(map(math.isfinite, rewards)):
                where = rows[index].where
                raise ValueError(f"{where}: rewards {rewards}; are the weights broken?")
            yield index, {"rewards": rewards}

    settings = {"weights": weights, "tokens": json_digest(encoded)}
    write_rows(rewards_file(config), settings, len(encoded), make, model)


def check_judge(folder: str, weights: str) -> None:
    """ValueError where the samples of --baseline were scored by another reward model."""
    if read_results(Path(folder))[0]["settings"].get("reward_sha256") != weights:
        raise ValueError(f"--baseline {folder}: its rewards are those of another reward model")


def write_relabelled(file: Path, rows: Sequence[Row], items: Sequence[Mapping]) -> None:
    """The pairs, chosen and rejected in the order of their rewards, for train.py --data."""
    lines, changed, ties = [], 0, 0
    for row, item in zip(rows, items, strict=True):
        (chosen, rejected), replies = item["rewards"], row.replies
        if chosen < rejected:
            replies = replies[::-1]
        pair = {"prompt": row.messages, "chosen": replies[0], "rejected": replies[1]}
        pair |= {"rewards": sorted(item["rewards"], reverse=True), "changed": chosen < rejected}
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
        changed, ties = changed + (chosen < rejected), ties + (chosen == rejected)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(lines))
    print(f"{file}: {len(rows)} pairs, the order of {changed} changed; {ties} ties kept theirs")


# ------------------------------------------------------------------------------------------------
# metrics


def selection_chances(rewards: Sequence[float], drawn: int) -> list[float]:
    """The chance of each completion to be the one of the highest reward among `drawn`.

    These are drawn without replacement. All are among those that are no better than the i-th best
    of n in C(n - i + 1, drawn) of C(n, drawn) draws; equal rewards share their chance.
    """
    order, draws = sorted(rewards), math.comb(len(rewards), drawn)
    chances = []
    for reward in rewards:
        worse, not_better = bisect_left(order, reward), bisect_right(order, reward)
        ways = math.comb(not_better, drawn) - math.comb(worse, drawn)
        chances.append(ways / draws / (not_better - worse))
    return chances


def best_of(item: Mapping, drawn: int, values: Sequence[float]) -> float:
    """The expected value of the completion that the reward selects among `drawn`."""
    return float(np.dot(selection_chances(item["rewards"], drawn), values))


def sample_metrics(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per prompt."""
    ks = powers_of_two(min(len(item["rewards"]) for item in items))
    values = {f"reward@{k}": [best_of(item, k, item["rewards"]) for item in items] for k in ks}
    if len(ks) > 1:
        values["reward_sd"] = [float(np.std(item["rewards"], ddof=1)) for item in items]
    if all("correct" in item for item in items):
        for k in ks:
            values[f"selected@{k}"] = [best_of(item, k, item["correct"]) for item in items]
        values |= pass_values("pass", [item["correct"] for item in items])
    if all(name in item for item in items for name in NUMBERS):
        sums = [-float(np.sum(item["reference_logps"])) for item in items]
        tokens = [float(np.sum(item["tokens"])) for item in items]
        counts = [len(item["rewards"]) for item in items]
        values["cross_entropy"] = [s / n for s, n in zip(sums, counts, strict=True)]
        values["cross_entropy_per_token"] = [(s / t, t) for s, t in zip(sums, tokens, strict=True)]
    return values


def pair_metrics(items: Sequence[Mapping]) -> Metrics:
    """name -> one value per pair; a tie is no success."""
    chosen, rejected = np.array([item["rewards"] for item in items]).T
    return {
        "accuracy": (chosen > rejected).astype(float).tolist(),
        "margin": (chosen - rejected).tolist(),
        "reward/chosen": chosen.tolist(),
        "reward/rejected": rejected.tolist(),
        "loss": np.logaddexp(0, rejected - chosen).tolist(),  # -log sigmoid(margin)
    }


if __name__ == "__main__":
    run_main(main)
