r"""How diverse are a policy's completions, and how far from fluent text do they go for it?

    python sample.py --model MODEL --adapter RUN --prompts prompts.jsonl --n 16 --out samples.jsonl
    python -m eval.diversity --samples samples.jsonl --out runs/diversity
    python -m eval.diversity --samples samples.jsonl --out runs/diversity \
        --embedding_model ENCODER --model MODEL --adapter RUN --reference MODEL \
        --vocabulary train.jsonl --baseline runs/diversity-of-dpo

`input/...` is measured among the completions of one prompt and averaged over prompts; `across/...`
among one completion of each prompt, the j-th of all, and averaged over j.

    distinct_1 .. distinct_5   distinct n-grams / n-grams, pooled over the texts; `distinct`: mean
    ead                        the same over what random words would show, mean of n = 1 to 5
    self_bleu                  BLEU-4 of each text against the others; low is diverse
    unique                     distinct texts / texts
    cosine_distance            mean 1 - cosine of the embeddings of two of the texts
    cosine_distance_all_pairs  the same over all i, j, i = j too: SPL's, (N - 1) / N of it

They depend on the number of texts, distinct_n also on their lengths, and cosines on the encoder:
compare like with like (a baseline that is not like is refused). What the policy thinks of its
texts, in nats, of a whole completion (`/sequence`) and of a token of it (`/token`):

    entropy                    -log pi, where the rows' logps are of plain draws at temperature 1:
                               a Monte Carlo estimate without bias; else it is `cross_entropy`, of
                               the policy relative to whatever drew the texts
    next_token_entropy         entropy of pi(. | the text so far) (--model): of plain draws of the
                               policy the sequence's is a second estimate, with less noise
    reference_cross_entropy    -log pi_ref (the rows' reference_logps, or --reference): fluency
    aberrations                share of words, runs of letters, outside --vocabulary

A completion that was cut by its limit (`truncated`) counts as it stands. --model and --reference
read texts, not the tokens that were drawn; how often these agree is told. Their numbers stand in
OUT, row by row, and the same command goes on where it was stopped; the rest takes minutes.

Intervals are over prompts. The numbers across prompts are no means over them: their items hold what
each prompt counts for, by leaving it out (see `influences`), with their mean at the number itself.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.reading import read_json
from data.rows import check_text, read_rows
from eval.aberrations import count_aberrations, read_vocabulary
from eval.embeddings import cosine_distances, embed
from eval.entropy import agreement, encode_rows, score_texts
from eval.ngrams import (
    DISTINCT_ORDERS,
    WORD,
    count_ngrams,
    distinct_share,
    expectation_adjusted,
    pooled_counts,
    self_bleu,
    split_words,
    unique_share,
)
from eval.results import Metrics, Statistic, data_digest, read_baseline, read_results, report
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.config import parse_config
from model.flags import refuse_given
from model.resumable import settings_file
from model.run import choose_device, run_main
from model.sampling import PLAIN

TASK = "diversity"
NUMBERS = ("tokens", "logps", "reference_logps")  # of each completion, where the rows have them
LISTS = ("completions", "finish_reasons", *NUMBERS)
BOUNDED = ("distinct", "unique", "self_bleu")  # by 1
COMPARED = ("n", "vocabulary_size", "vocabulary_count", "vocabulary_sha256", "encoder",
            "reference_weights")  # fmt: skip


@dataclass(frozen=True)
class DiversityConfig:
    samples: str | None = None  # samples file, as sample.py --out and the benchmarks write it
    n: int | None = None  # completions of each prompt that count; none: as many as all prompts have
    limit: int | None = None  # only the first so many prompts
    vocabulary_size: int = 50257  # V of ead, one for all that is compared
    embeddings: str | None = None  # .npy file: a row for each completion that counts, in order
    embedding_model: str | None = None  # or: checkpoint whose mean last hidden states are taken
    sentence_encoder: str | None = None  # or: folder or name of a sentence-transformers model
    vocabulary: tuple[str, ...] = ()  # files (.txt, .jsonl, ...) whose words are the known ones
    vocabulary_count: int = 2  # a word is known that stands there so often
    model: str | None = None  # folder of the policy that drew the samples, for next-token entropies
    adapter: str | None = None  # folder with a LoRA adapter for it
    reference: str | None = None  # folder of the reference policy
    chat_format: str = "auto"  # of --model and --reference; auto: detected from the checkpoint
    system: str | None = None  # system message that stood before every prompt that has none
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    out: str | None = None  # folder for the results
    baseline: str | None = None  # results folder of another policy on the same prompts


def main() -> None:
    config = parse_config(DiversityConfig)
    check_config(config)
    rows = read_samples(config)
    known = read_vocabulary(config.vocabulary, config.vocabulary_count)
    settings = describe(config, rows)
    baseline = read_baseline(
        config.baseline, config.out, TASK, settings["data_sha256"], len(rows), metric_values
    )
    check_comparable(config.baseline, settings)
    items = [{"index": row["index"], "means": {}, "ratios": {}} for row in rows]
    add_words(items, rows, known)
    add_log_probabilities(items, rows, config, settings)
    vectors, settings["encoder"] = embed_rows(config, rows)
    check_comparable(config.baseline, settings)
    add_diversity(items, rows, vectors, config.vocabulary_size)
    report(Path(config.out), TASK, settings, items, metric_values, baseline)


def check_config(config: DiversityConfig) -> None:
    """ValueError for flags out of range, missing, or contradicting each other."""
    if config.samples is None or not Path(config.samples).is_file():
        raise FileNotFoundError(
            f"--samples expects a samples file, got {config.samples}; sample.py --out makes one"
        )
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")
    for flag in ("n", "limit", "vocabulary_count"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    if config.vocabulary_size < 2:
        raise ValueError(f"--vocabulary_size expects 2 or more, got {config.vocabulary_size}")
    sources = [config.embeddings, config.embedding_model, config.sentence_encoder]
    if len(sources) - sources.count(None) > 1:
        raise ValueError("--embeddings, --embedding_model, --sentence_encoder exclude each other")
    if config.adapter is not None and config.model is None:
        raise ValueError("--adapter needs --model, the model that it belongs to")
    if config.model is None and config.reference is None:
        refuse_given(config, ("system", "chat_format"), "without --model or --reference")
    for flag in ("model", "adapter", "reference", "embedding_model"):
        if (folder := getattr(config, flag)) is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"--{flag} expects a folder, got {folder}")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    if parallel.world_size() > 1:
        raise ValueError("eval.diversity runs in one process; start it without torchrun")


# ------------------------------------------------------------------------------------------------
# what is read


def read_samples(config: DiversityConfig) -> list[dict]:
    """The rows that count, with equally many completions; a key that some row lacks has gone."""
    rows: list[dict] = []
    for where, row in read_rows(Path(config.samples)):
        if config.limit is not None and len(rows) == config.limit:
            break
        rows.append(check_row(row, where))
    if not rows:
        raise ValueError(f"{config.samples}: expected rows with completions, got none")
    if repeated := [i for i, times in Counter(row["index"] for row in rows).items() if times > 1]:
        raise ValueError(f"{config.samples}: index {repeated[0]} stands in several rows")
    fewest = min(rows, key=lambda row: len(row["completions"]))
    n = config.n or len(fewest["completions"])
    if n > len(fewest["completions"]):
        raise ValueError(
            f"{fewest['where']}: has {len(fewest['completions'])} completions, --n {n}"
        )
    if n < 2 and len(rows) < 3:
        raise ValueError(f"{config.samples}: expected 2 completions of a prompt, or 3 prompts")
    common = [key for key in rows[0] if all(key in row for row in rows)]
    return [{k: row[k][:n] if k in LISTS else row[k] for k in common} for row in rows]


def check_row(row: Mapping, where: str) -> dict:
    """Its index, completions, and what else is used, as long as the completions."""
    index, texts = row.get("index"), row.get("completions")
    if type(index) is not int or index < 0:
        raise ValueError(f"{where}: index: expected a number from 0, got {index!r}")
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{where}: expected `completions`, a list of texts")
    texts = [check_text(text, f"completions[{i}]", where) for i, text in enumerate(texts)]
    checked = {"index": index, "where": where, "completions": texts}
    for key in LISTS[1:]:
        kinds = (int, float) if key in NUMBERS else (str,)
        values = row.get(key)
        if values is None:
            continue
        right = isinstance(values, list) and len(values) == len(texts)
        if not right or any(type(value) not in kinds for value in values):
            raise ValueError(f"{where}: {key}: expected one for each completion, got {values!r}")
        checked[key] = values
    return checked | ({"prompt": row["prompt"]} if "prompt" in row else {})


def describe(config: DiversityConfig, rows: Sequence[Mapping]) -> dict:
    """Every flag, and what the numbers depend on besides."""
    file = settings_file(Path(config.samples))
    drawn = read_json(file) if file.is_file() else {}
    asked = [[row["index"], row.get("prompt")] for row in rows]
    if any(prompt is None for _, prompt in asked):  # of a benchmark: a digest of them all
        asked.append(drawn.get("prompts"))
        if config.baseline is not None and asked[-1] is None:
            raise ValueError(
                f"--baseline: {config.samples} has no prompts, and {file.name} names none, so that "
                "nobody can tell whether they are the same"
            )
    return asdict(config) | {
        "n": len(rows[0]["completions"]),
        "data_sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "samples_sha256": data_digest(config.samples),
        "sampling": drawn.get("sampling"),  # null: not known
        "reference_weights": drawn.get("reference_weights") if config.reference is None else None,
        "tokenisation": WORD.pattern,
        "vocabulary_sha256": [data_digest(file) for file in config.vocabulary],
    }


def check_comparable(folder: str | None, settings: Mapping) -> None:
    """ValueError where a baseline was measured otherwise, in what is known so far."""
    if folder is None:
        return
    before = read_results(Path(folder))[0]["settings"]
    for key in COMPARED:
        there, here = before.get(key), settings.get(key)
        if there and here and there != here:  # else there is nothing to compare
            raise ValueError(f"--baseline {folder} was measured with {key} {there}, here {here}")


# ------------------------------------------------------------------------------------------------
# diversity


def add_diversity(
    items: Sequence[dict], rows: Sequence[Mapping], vectors: np.ndarray | None, vocabulary_size: int
) -> None:
    """`input` and `across` of every item; vectors: (rows, n, D)."""
    words = [[split_words(text) for text in row["completions"]] for row in rows]
    n, across = len(words[0]), {}
    for i, (item, row) in enumerate(zip(items, rows, strict=True)):
        own = None if vectors is None else vectors[i]
        values = measure(row["completions"], words[i], own, vocabulary_size) if n > 1 else {}
        item["input"] = {name: float(value[0]) for name, value in values.items()}
    for j in range(n) if len(rows) > 2 else ():
        texts = [row["completions"][j] for row in rows]
        own = None if vectors is None else vectors[:, j]
        values = measure(texts, [some[j] for some in words], own, vocabulary_size)
        for name, value in values.items():
            across[name] = across.get(name, 0) + influences(value) / n
    for i, item in enumerate(items):
        item["across"] = {name: float(values[i]) for name, values in across.items()}


def measure(
    texts: Sequence[str],
    words: Sequence[Sequence[str]],
    vectors: np.ndarray | None,
    vocabulary_size: int,
) -> dict[str, np.ndarray]:
    """name -> (N + 1,) of N texts: the value of all, then without each."""
    tables = count_ngrams(words, DISTINCT_ORDERS)
    counts = [pooled_counts(ngrams) for ngrams in tables]
    shares = [distinct_share(*pair) for pair in counts]
    values = {f"distinct_{n}": share for n, share in enumerate(shares, start=1)}
    values["distinct"] = np.mean(shares, axis=0)
    values["ead"] = np.mean([expectation_adjusted(*c, vocabulary_size) for c in counts], axis=0)
    values["self_bleu"] = self_bleu(words, tables)
    values["unique"] = unique_share(texts)
    if vectors is not None:
        all_pairs, distinct_pairs = cosine_distances(vectors)
        values["cosine_distance"] = distinct_pairs
        values["cosine_distance_all_pairs"] = all_pairs
    return values


def embed_rows(
    config: DiversityConfig, rows: Sequence[Mapping]
) -> tuple[np.ndarray | None, dict | None]:
    """(rows, n, D) vectors, and where they are from; made here, they go into OUT."""
    texts = [text for row in rows for text in row["completions"]]
    ways = (config.embeddings, config.embedding_model, config.sentence_encoder)
    if ways == (None, None, None):
        print("no cosine distances: pass --embeddings, --embedding_model or --sentence_encoder")
        return None, None
    vectors, encoder = embed(texts, *ways, config.device, config.dtype)
    if config.embeddings is None:
        Path(config.out).mkdir(parents=True, exist_ok=True)
        np.save(Path(config.out) / "embeddings.npy", vectors)  # --embeddings reads it again
    return vectors.reshape(len(rows), -1, vectors.shape[-1]), encoder


def influences(values: np.ndarray) -> np.ndarray:
    """(N + 1,) a number of N prompts, of all and without each -> (N,) a value for each prompt.

    value_i = whole + (N - 1) (mean of the N - number without i): their mean is the whole, and their
    standard error the jackknife's (Efron and Stein 1981), which errs to the wide side. To resample
    the prompts themselves would make pairs of a completion with its own copy.
    """
    whole, without = values[0], values[1:]
    return whole + (len(without) - 1) * (without.mean() - without)


# ------------------------------------------------------------------------------------------------
# words, lengths, log-probabilities


def add_words(items: Sequence[dict], rows: Sequence[Mapping], known: frozenset[str]) -> None:
    for item, row in zip(items, rows, strict=True):
        item["lengths"] = {"words": [len(split_words(text)) for text in row["completions"]]}
        if "tokens" in row:
            item["lengths"]["tokens"] = row["tokens"]
        if "finish_reasons" in row:
            cut = [reason == "length" for reason in row["finish_reasons"]]
            item["means"]["truncated"] = float(np.mean(cut))
        if known:
            item["ratios"]["aberrations"] = count_aberrations(row["completions"], known)


def add_log_probabilities(
    items: Sequence[dict], rows: Sequence[Mapping], config: DiversityConfig, settings: dict
) -> None:
    """Entropies and cross-entropies of every item, and settings that tell what they are of."""
    plain = settings["sampling"] == asdict(PLAIN) and "logps" in rows[0]
    of_policy, of_reference = rows, rows
    if config.model is not None:
        of_policy, settings["weights"] = score(config, "model", rows)
        settings["policy_agreement"] = agreement(rows, of_policy)
        for item, row in zip(items, of_policy, strict=True):
            add_nats(item, "next_token_entropy", row["entropies"], row["tokens"])
    if config.reference is not None:
        scored, settings["reference_weights"] = score(config, "reference", rows)
        of_reference = [{**row, "reference_logps": row["logps"]} for row in scored]
    add_surprise(items, "entropy" if plain else "cross_entropy", "logps",
                 rows if "logps" in rows[0] else of_policy)  # fmt: skip
    add_surprise(items, "reference_cross_entropy", "reference_logps", of_reference)


def score(config: DiversityConfig, flag: str, rows: Sequence[Mapping]) -> tuple[list[dict], str]:
    """What the policy of --model or --reference finds, and SHA-256 of its weights."""
    folder = getattr(config, flag)
    device, dtype = choose_device(config.device, config.dtype)
    adapter = config.adapter if flag == "model" else None
    texts = encode_rows(rows, folder, config.chat_format, config.system, adapter)
    policy = load_policy(folder, adapter, dtype, device)
    return score_texts(policy, *texts, Path(config.out) / f"{flag}.jsonl")


def add_surprise(items: Sequence[dict], name: str, key: str, rows: Sequence[Mapping]) -> None:
    """-logp of each completion, where the rows have that."""
    if {key, "tokens"} <= rows[0].keys():
        for item, row in zip(items, rows, strict=True):
            add_nats(item, name, [-logp for logp in row[key]], row["tokens"])


def add_nats(item: dict, name: str, nats: Sequence[float], tokens: Sequence[int]) -> None:
    """The mean over completions, with its standard error, and the sums for that over tokens."""
    item["means"][f"{name}/sequence"] = float(np.mean(nats))
    item["ratios"][f"{name}/token"] = [sum(nats), sum(tokens)]
    if len(nats) > 1:
        error = float(np.std(nats, ddof=1) / np.sqrt(len(nats)))
        item.setdefault("standard_errors", {})[f"{name}/sequence"] = error


# ------------------------------------------------------------------------------------------------
# metrics


def metric_values(items: Sequence[Mapping]) -> Metrics:
    """name -> a value for each prompt, or a statistic of all."""
    first, values = items[0], {}
    for name in first["input"]:
        values[f"input/{name}"] = [item["input"][name] for item in items]
    for name in first["across"]:
        shares = np.array([item["across"][name] for item in items])
        most = 1.0 if name.startswith(BOUNDED) else np.inf
        values[f"across/{name}"] = Statistic(shares, np.mean, least=0.0, most=most)
    for name in first["means"]:
        values[name] = [item["means"][name] for item in items]
    for name in first["ratios"]:
        sums = np.array([item["ratios"][name] for item in items])  # (prompts, 2)
        most = 1.0 if name == "aberrations" else np.inf  # a share; the others are nats
        values[name] = Statistic(sums, ratio, least=0, most=most)
    for name in first["lengths"]:
        lengths = np.array([item["lengths"][name] for item in items])  # (prompts, n)
        values[name] = lengths.mean(axis=1).tolist()
        values[f"{name}_sd"] = Statistic(lengths, np.std, least=0)
    return values


def ratio(rows: np.ndarray) -> float:
    """(N, 2) -> sum of the first column / sum of the second."""
    above, below = rows.sum(axis=0)
    return float(above / max(below, 1))


if __name__ == "__main__":
    run_main(main)
