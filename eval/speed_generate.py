"""Completions, side by side: ours and transformers' `generate` on the same prompts.

    python -m eval.speed generate                     one prompt, 32 completions of equal lengths
    python -m eval.speed generate --mixed 64          64 prompts, 8 completions each, as they end
    python -m eval.speed generate --model DIR --dtypes float32 bfloat16 --threads 2

    ours          model.generate.generate: a prompt is read once, rows come and go
    transformers  left-padded batches of --hf_batch rows, sorted by length; a batch ends with its
                  longest completion

Both sample at temperature 1 from the whole distribution behind random prompts; a variant is one of
them in one dtype, runs in a process of its own, and takes turns with the others. Loading and a
short warm-up are not counted. With --mixed a completion ends with the first of many stop tokens,
the same for all, chosen so that they come about as often as --stop_after says; tokens count up to
it, padding does not count.

Two bounds on ours: the matrix products of its decode step alone, at the rows that it has on
average; and reading the weights and the cache at the rate of a large copy, which holds where they
are too large for the processor's caches. On CUDA also the share of completions that come out the
same, token for token, when a quarter as many are drawn beside them.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.speed import (
    choose_variants,
    describe_machine,
    header,
    installed,
    load_average,
    markdown_table,
    over,
    pin_threads,
    run_module,
    shown,
    spread,
    take_turns,
    warn_if_busy,
    write_summary,
)
from eval.speed_decode import Job, choose_stop_ids
from model.architecture import read_model_config
from model.config import parse_config
from model.flags import refuse_given
from model.run import choose_device
from model.transformer import ModelConfig

ENGINES = ("ours", "transformers")
MIXED_TOKENS = (16, 128)  # the shortest and the longest prompt of --mixed


@dataclass(frozen=True)
class SpeedGenerateConfig:
    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    prompt_tokens: int = 64  # of the one prompt
    mixed: int | None = None  # so many prompts of 16 to 128 tokens instead, completions that stop
    n: int | None = None  # completions per prompt; none: 32, with --mixed 8
    max_new_tokens: int = 128  # per completion
    stop_after: float = 48.0  # tokens, on average about, until a stop token; with --mixed
    hf_batch: int = 64  # rows of a batch of transformers
    cache_gb: float = 1.0  # ours: memory for keys and values
    only: tuple[str, ...] | None = None  # of ours and transformers; none: both
    dtypes: tuple[str, ...] = ("float32",)  # float32, bfloat16: each engine in each of them
    repeats: int = 3  # turns: processes of each variant
    threads: int | None = None  # of the products; none: one for each core
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    seed: int = 0  # of the prompts, the stop tokens and the draws
    out: str = "runs/speed-generate"  # folder for summary.json


def main(words: list[str]) -> None:
    config = parse_config(SpeedGenerateConfig, words)
    check_config(config)
    engines, skipped = choose_variants(ENGINES, config.only), {}
    device, _ = choose_device(config.device, config.dtypes[0])
    pin_threads(config.threads)
    job = make_job(config, read_model_config(config.model), device)
    machine = describe_machine(device, " ".join(["python -m eval.speed generate", *words]))
    print(header(machine))
    warn_if_busy(machine["load_before"], machine["cores"])
    if "transformers" in engines and installed("transformers") is None:
        engines.remove("transformers")
        skipped["transformers"] = "pip install transformers"
    if not engines:
        raise ValueError(f"nothing is left to run: {skipped}")

    if config.mixed is not None:
        job["stop_ids"] = choose_stop_ids(job, config.stop_after)
    turns = run_turns(job, engines, config.dtypes, config.repeats, skipped)
    results = summarize(turns)
    print("\n" + table(results) + "\n")
    for line in notes(results, skipped):
        print(line)
    machine["load_after"] = load_average()
    own = 0 if device.startswith("cuda") else machine["threads"]
    warn_if_busy(machine["load_after"], machine["cores"], own)
    settings = asdict(config) | {"n": job["n"], "device": device}
    summary = {"task": "speed/generate", "settings": settings, "machine": machine}
    summary |= {"prompt_lengths": [len(p) for p in job["prompts"]], "stop_ids": job["stop_ids"]}
    write_summary(config.out, summary | {"variants": results, "skipped": skipped, "turns": turns})


def check_config(config: SpeedGenerateConfig) -> None:
    least = {"prompt_tokens": 1, "mixed": 1, "n": 1, "max_new_tokens": 1, "hf_batch": 1,
             "repeats": 1, "seed": 0}  # fmt: skip
    for flag, bound in least.items():
        if (value := getattr(config, flag)) is not None and value < bound:
            raise ValueError(f"--{flag} expects {bound} or more, got {value}")
    if config.stop_after < 1:
        raise ValueError(f"--stop_after expects 1 or more, got {config.stop_after}")
    if config.mixed is not None:
        refuse_given(config, ("prompt_tokens",), "beside --mixed, which draws the lengths")
    else:
        refuse_given(config, ("stop_after",), "without --mixed")
    if config.cache_gb <= 0:
        raise ValueError(f"--cache_gb expects a number above 0, got {config.cache_gb}")
    if unknown := set(config.dtypes) - {"float32", "bfloat16"}:
        raise ValueError(f"--dtypes expects float32 or bfloat16, got {' '.join(sorted(unknown))}")


def make_job(config: SpeedGenerateConfig, model_config: ModelConfig, device: str) -> Job:
    """What all variants are asked for; ValueError where the model has too few positions."""
    rng, vocab = np.random.default_rng(config.seed), model_config.vocab_size
    lengths, n = [config.prompt_tokens], 32
    if config.mixed is not None:
        low, high = MIXED_TOKENS
        lengths, n = rng.integers(low, high + 1, size=config.mixed).tolist(), 8
    needed, positions = max(lengths) + config.max_new_tokens, model_config.max_position_embeddings
    if needed > positions:
        raise ValueError(f"prompts of up to {max(lengths)} tokens and --max_new_tokens "
                         f"{config.max_new_tokens} need {needed} positions, the model has "
                         f"{positions}")  # fmt: skip
    return {
        "prompts": [rng.integers(vocab, size=length).tolist() for length in lengths],
        "stop_ids": [],
        "n": config.n or n,
        "dtype": config.dtypes[0],
        "model": config.model,
        "max_new_tokens": config.max_new_tokens,
        "hf_batch": config.hf_batch,
        "cache_bytes": int(config.cache_gb * 1e9),
        "threads": config.threads,
        "device": device,
        "seed": config.seed,
    }


# ------------------------------------------------------------------------------------------------
# running


def run_turns(
    job: Job, engines: Sequence[str], dtypes: Sequence[str], repeats: int, skipped: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """{variant: what each of its processes says}; one that fails goes to `skipped`."""

    def turn(name: str, own: Job) -> dict[str, Any] | None:
        if name in skipped:
            return None
        result, reason = run_process(job | own)
        if result is None:
            skipped[name] = f"it failed: {reason}"
            print(f"  {name:<21} {skipped[name]}")
        else:
            print(f"  {name:<21} {result['tokens']} tokens, {result['seconds']:.3g} s", flush=True)
        return result

    fields = [{"engine": engine, "dtype": dtype} for dtype in dtypes for engine in engines]
    variants = {f"{own['engine']}_{own['dtype']}": own for own in fields}
    turns = take_turns({name: partial(turn, name, own) for name, own in variants.items()}, repeats)
    turns = {name: said for name, said in turns.items() if name not in skipped}
    if not turns:
        raise ValueError(f"every variant failed: {skipped}")
    return turns


def run_process(job: Job) -> tuple[dict | None, str]:
    """What `run_variant` says in a fresh process, or None and the last line of its complaint."""
    with tempfile.TemporaryDirectory() as folder:
        asked, said = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(job | {"device": torch.device(job["device"]).type}))
        words = [str(asked), str(said)]
        reason = run_module("eval.speed_decode", words, job["threads"], job["device"])
        if reason is not None:
            return None, reason
        return json.loads(said.read_text()), ""


# ------------------------------------------------------------------------------------------------
# what is said of it


def summarize(turns: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """{variant: its numbers}; ratios are over transformers in the same dtype."""
    results = {name: numbers(some) for name, some in turns.items()}
    for name, result in results.items():
        other = results.get("transformers_" + name.partition("_")[2], {})
        rate = other.get("tokens_per_s", {}).get("median")
        result["rate/transformers"] = over(result["tokens_per_s"]["median"], rate)
        result["memory/transformers"] = over(result["peak_bytes"], other.get("peak_bytes"))
    return results


def numbers(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rates, memory and shares of one variant, over its turns."""
    tokens = np.array([turn["tokens"] for turn in turns])
    rates = tokens / np.array([turn["seconds"] for turn in turns])
    held = [turn["peak_bytes"] for turn in turns if turn["peak_bytes"] is not None]
    extra = [t["peak_bytes"] - t["begin_bytes"] for t in turns if t["begin_bytes"] is not None]
    result = {
        "seconds": spread([turn["seconds"] for turn in turns]),
        "cpu_seconds": spread([turn["cpu_seconds"] for turn in turns]),
        "tokens": tokens.tolist(),
        "tokens_per_s": spread(rates),
        "tokens_per_completion": float(np.mean([t["tokens"] / t["completions"] for t in turns])),
        "tokens_per_step": float(np.mean([t["tokens"] / t["steps"] for t in turns])),
        "peak_bytes": max(held, default=None),
        "extra_peak_bytes": max(extra, default=None),
    }
    for bound in ("bare_rate", "copy_rate"):
        if bound in turns[0]:
            limits = np.array([turn[bound] for turn in turns])
            result[bound] = float(np.median(limits))
            result[f"share_of_{bound}"] = float(np.median(rates / limits))
    if "identical" in turns[0]:
        result["identical"] = float(np.mean([turn["identical"] for turn in turns]))
    return result


def table(results: Mapping[str, dict[str, Any]]) -> str:
    columns = ["completions", "tokens/s", "quartiles", "/ transformers", "s", "CPU s", "tokens",
               "per step", "mean length", "peak MiB", "/ transformers", "extra MiB"]  # fmt: skip
    rows = []
    for name, r in results.items():
        rate = r["tokens_per_s"]
        rows.append([
            name,
            f"{rate['median']:.4g}",
            f"{rate['low']:.4g} to {rate['high']:.4g}",
            shown(r["rate/transformers"], "{:.2f}"),
            f"{r['seconds']['median']:.3g}",
            f"{r['cpu_seconds']['median']:.3g}",
            f"{np.median(r['tokens']):.0f}",
            f"{r['tokens_per_step']:.1f}",
            f"{r['tokens_per_completion']:.1f}",
            shown(over(r["peak_bytes"], 2**20), "{:.0f}"),
            shown(r["memory/transformers"], "{:.2f}"),
            shown(over(r["extra_peak_bytes"], 2**20), "{:.0f}"),
        ])  # fmt: skip
    return markdown_table(columns, rows)


def notes(results: Mapping[str, dict[str, Any]], skipped: Mapping[str, str]) -> list[str]:
    """What the table has no room for."""
    lines = [f"{name} is left out: {reason}" for name, reason in skipped.items()]
    for name, r in results.items():
        if "bare_rate" in r:
            lines.append(f"{name}: {r['share_of_bare_rate']:.0%} of its decode step's products "
                         f"alone, which make {r['bare_rate']:.4g} tokens/s")  # fmt: skip
            lines.append(f"{name}: {r['share_of_copy_rate']:.0%} of {r['copy_rate']:.4g} tokens/s, "
                         "weights and cache read at a copy's rate")  # fmt: skip
        if "identical" in r:
            lines.append(f"{name}: {r['identical']:.1%} of the completions are the same in a "
                         "smaller batch")  # fmt: skip
    return lines
