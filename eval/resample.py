r"""From completions of a policy pi to completions of pi^(1/tau), by importance weights: a control.

    python sample.py --model zephyr-7b --adapter runs/dpo --prompts test.jsonl --n 256 \
        --out dpo.jsonl
    python -m eval.resample --samples dpo.jsonl --tau 1.2 --n 16 --out dpo-tau-1.2.jsonl

SPL at tau = alpha / beta is to be DPO's policy raised to 1 / tau and normalised, a temperature of
whole sequences. The same distribution needs no training: draw many completions y from pi and keep
some with weights pi(y)^(1/tau - 1) (self-normalised importance resampling, Rubin 1987). Where the
trained policy is better than this control, training did more than temper.

How --n completions are kept of N: those of a prompt are dealt into n blocks of N / n, and each
block keeps one, drawn by the weights within it. So what is kept are independent draws from one
distribution, as those of a policy are, and pass@k and distances of pairs mean what they mean there.
That distribution tends to pi^(1/tau) as N / n grows, with an error of the order n / N, towards pi.
Draws with replacement out of all N would repeat completions, which a measure of diversity takes for
a lack of it; draws without replacement depend on each other, and are pi's own where n = N.

Few completions can carry all of the weight, the more so the longer they are: weights go by sums
over tokens. The effective sample size (Kish 1965), (sum of w)^2 / (sum of w^2), says how many of
the N count. It cannot see what pi^(1/tau) would say and pi never said.

The log-probabilities have to be those of the draw: temperature 1, nothing left out (checked in
FILE.settings.json). A completion cut at --max_new_tokens weighs by what is there of it, so that
pi is the policy that stops at that length.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.rows import read_rows, refuse_overwriting
from eval.results import data_digest
from model import parallel
from model.config import parse_config
from model.resumable import settings_file, write_rows
from model.run import run_main
from model.sampling import PLAIN

FIELDS = ("completions", "tokens", "logps", "finish_reasons", "reference_logps")  # lists
CARRIED = ("prompts", "reference_weights")  # settings that resampled completions have as before
ENOUGH = 4  # completions that count, for each one kept


@dataclass(frozen=True)
class ResampleConfig:
    samples: str | None = None  # samples file with many completions per prompt, at temperature 1
    tau: float | None = None  # temperature of whole sequences; 1 leaves the distribution as it is
    n: int = 16  # completions to keep per prompt
    seed: int = 0  # of the draws
    out: str | None = None  # samples file for the results


def main() -> None:
    config = parse_config(ResampleConfig)
    check_config(config)
    samples, out = Path(config.samples), Path(config.out)
    drawn = read_sampling(samples)
    count = check_samples(samples, config.n)
    settings = {
        "resampled_from": data_digest(samples),
        "tau": config.tau,
        "n": config.n,
        "seed": config.seed,
        "drawn": drawn,  # no `sampling`: these are not draws of the policy, to be weighted again
    }
    settings |= {name: drawn[name] for name in CARRIED if name in drawn}

    def make(own: list[int]) -> Iterator[tuple[int, dict]]:
        wanted = set(own)
        for _, row in read_rows(samples):
            if row["index"] in wanted:
                yield row["index"], resample(row, config.tau, config.n, config.seed)

    write_rows(out, settings, count, make)
    if parallel.is_main():
        print_report(samples, out, config.n)


# ------------------------------------------------------------------------------------------------
# weights and draws


def log_weights(logps: np.ndarray, tau: float) -> np.ndarray:
    """log of the normalised weights pi(y)^(1/tau - 1); logps: (N,) log pi(y), out: (N,)"""
    weights = (1 / tau - 1) * logps
    return weights - np.logaddexp.reduce(weights)


def effective_size(weights: np.ndarray) -> float:
    """Of N completions, how many count (Kish 1965); weights: (N,) logs."""
    scaled = np.exp(weights - weights.max())
    return float(scaled.sum() ** 2 / (scaled @ scaled))


def draw(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) places in (N,): one out of each block of consecutive ones, by its weight there.

    The largest of weight plus Gumbel noise is a draw by the weights, which need no sum.
    """
    noisy = weights + rng.gumbel(size=len(weights))
    blocks = np.array_split(np.arange(len(weights)), n)
    return np.array([block[noisy[block].argmax()] for block in blocks])


def resample(row: Mapping, tau: float, n: int, seed: int) -> dict:
    """A row with n of its completions; `kept`: which they are, `effective`: how many counted."""
    weights = log_weights(np.array(row["logps"]), tau)
    kept = draw(weights, n, np.random.default_rng([seed, row["index"]])).tolist()
    lists = {key: [row[key][i] for i in kept] for key in FIELDS if key in row}
    return {**row, **lists, "kept": kept, "effective": effective_size(weights)}


# ------------------------------------------------------------------------------------------------
# files


def check_config(config: ResampleConfig) -> None:
    """ValueError or FileNotFoundError for flags that are missing or out of range."""
    if config.samples is None or not Path(config.samples).is_file():
        raise FileNotFoundError(f"--samples expects a samples file, got {config.samples}")
    if config.tau is None or config.tau <= 0:
        raise ValueError(f"--tau expects a number above 0, got {config.tau}")
    if config.n < 1:
        raise ValueError(f"--n expects 1 or more, got {config.n}")
    if config.seed < 0:
        raise ValueError(f"--seed expects 0 or more, got {config.seed}")
    if config.out is None:
        raise ValueError("--out expects a samples file for the results, got none")
    refuse_overwriting(Path(config.out), [Path(config.samples)], f"--out {config.out}")


def read_sampling(samples: Path) -> dict:
    """The settings that the completions were drawn with; ValueError unless from the policy itself.

    A weight is a power of the probability that a completion was drawn with.
    """
    file = settings_file(samples)
    if not file.is_file():
        raise FileNotFoundError(f"--samples {samples}: {file} has to say how it was drawn")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        sampling = settings["sampling"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{file}: expected `sampling`, how a policy drew the completions"
        ) from None
    if sampling != asdict(PLAIN):
        raise ValueError(
            f"--samples {samples}: expected draws at temperature 1 with nothing left out, "
            f"got {sampling}; draw again without these flags"
        )
    return settings


def check_samples(samples: Path, n: int) -> int:
    """How many rows there are; ValueError for what is no whole samples file with log-probs."""
    count = 0
    for where, row in read_rows(samples):
        if row.get("index") != count:
            raise ValueError(
                f"{where}: expected the row of index {count}, got {row.get('index')!r}; where "
                "sampling was stopped, the same command goes on"
            )
        texts = row.get("completions")
        if not isinstance(texts, list) or len(texts) < n:
            found = len(texts) if isinstance(texts, list) else "none"
            raise ValueError(f"{where}: expected at least --n {n} completions, got {found}")
        for key in FIELDS[:4] if "reference_logps" not in row else FIELDS:
            if not isinstance(row.get(key), list) or len(row[key]) != len(texts):
                raise ValueError(f"{where}: expected `{key}`, one for each completion")
        if not all(type(logp) in (int, float) and math.isfinite(logp) for logp in row["logps"]):
            raise ValueError(f"{where}: expected `logps`, the log-probability of each completion")
        if not all(type(tokens) is int for tokens in row["tokens"]):
            raise ValueError(f"{where}: expected `tokens`, how many each completion has")
        count += 1
    if count == 0:
        raise ValueError(f"--samples {samples}: no row in it")
    return count


# ------------------------------------------------------------------------------------------------
# report


def print_report(samples: Path, out: Path, n: int) -> None:
    """How many completions counted, and what changed; what these numbers do not carry is said."""
    before, after = averages(samples), averages(out)
    width = max(map(len, before))
    print(f"{'':{width}}      drawn       kept")
    for name, value in before.items():
        print(f"{name:{width}} {value:10.4g} {after[name]:10.4g}")
    effective = [row["effective"] for _, row in read_rows(out)]
    least = min(range(len(effective)), key=effective.__getitem__)
    print(
        f"effective sample size: mean {np.mean(effective):.1f}, least {effective[least]:.1f} "
        f"(prompt {least})"
    )
    few = sum(size < ENOUGH * n for size in effective)
    if few:
        print(
            f"warning: for {few} of {len(effective)} prompts it is below {ENOUGH} for each of the "
            f"{n} kept: these stay nearer to the policy than tau says. Draw more, or keep fewer"
        )


def averages(samples: Path) -> dict[str, float]:
    """Over all completions of a file, each prompt counting the same."""
    rows = [row_averages(row) for _, row in read_rows(samples)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def row_averages(row: Mapping) -> dict[str, float]:
    n = len(row["completions"])
    return {
        "completions per prompt": n,
        "log-probability": sum(row["logps"]) / n,
        "tokens": sum(row["tokens"]) / n,
        "cut at the length limit": row["finish_reasons"].count("length") / n,
    }


if __name__ == "__main__":
    run_main(main)
