"""The completions of one variant of `eval.speed generate`, in a process of its own.

    python -m eval.speed_decode JOB.json RESULT.json

Started by eval/speed_generate.py, whose `make_job` says what stands in a job. Loading the model and
a short warm-up are not in the seconds; the memory is that of the process at its peak.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from eval.speed import begin_peak, best_seconds, copy_rate, peak_bytes, pin_threads, seconds_of
from model.cache import PAGE, ROWS, round_up
from model.checkpoint import DTYPES, load_model
from model.generate import generate
from model.linear import packed_linears
from model.run import run_main
from model.sampling import completion_seeds
from model.transformer import Transformer

WARM_UP = 2  # tokens
PROBE = 32  # prompts, and tokens behind each, that stop tokens are chosen by

Job = dict[str, Any]


class Drawn(NamedTuple):
    ids: list[list[int]]  # of each completion, up to its stop token
    steps: int  # forwards that drew a token for each row


def main() -> None:
    if len(sys.argv) != 3:
        raise ValueError("expected the files of a job and of its result; the command to measure "
                         "with is python -m eval.speed generate")  # fmt: skip
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run_variant(job)) + "\n")


def run_variant(job: Job) -> dict[str, Any]:
    """seconds, tokens and memory of one run; of ours also the bounds."""
    pin_threads(job["threads"])
    device, prompts = job["device"], job["prompts"]
    ours = job["engine"] == "ours"
    model = (load_ours if ours else load_transformers)(job)
    draw = partial(draw_ours if ours else draw_transformers, model)
    sum(p.detach().sum() for p in model.parameters())  # mapped files are read now
    draw(job | {"prompts": prompts[:1], "max_new_tokens": min(WARM_UP, job["max_new_tokens"])})
    begin, runs, started = begin_peak(device), [], time.process_time()
    seconds = seconds_of(lambda: runs.append(draw(job)), device)
    result = {"seconds": seconds, "cpu_seconds": time.process_time() - started}
    result |= {"begin_bytes": begin, "peak_bytes": peak_bytes(device)}
    (drawn,) = runs
    tokens = sum(map(len, drawn.ids))
    result |= {"completions": len(drawn.ids), "tokens": tokens, "steps": drawn.steps}
    if ours:
        result |= bounds(model, job, drawn)
        if device.startswith("cuda"):
            result["identical"] = identical_share(model, job, drawn)
    return result


def load_ours(job: Job) -> Transformer:
    return load_model(job["model"], DTYPES[job["dtype"]], job["device"])


def draw_ours(model: Transformer, job: Job) -> Drawn:
    prompts, n, steps = job["prompts"], job["n"], []
    done = generate(
        model,
        [prompt for prompt in prompts for _ in range(n)],
        [seed for i in range(len(prompts)) for seed in completion_seeds(job["seed"], i, n)],
        job["max_new_tokens"],
        stop_ids=job["stop_ids"],
        on_tokens=lambda which, tokens: steps.append(len(which)),
        cache_bytes=job["cache_bytes"],
    )
    completions = dict(done)
    return Drawn([completions[i].ids for i in range(len(completions))], len(steps))


def load_transformers(job: Job) -> nn.Module:
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ImportError:
        raise ImportError("transformers is not here; pip install transformers") from None
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPES[job["dtype"]])
    # in place of the checkpoint's own, whose values would fill what is left open here
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        eos_token_id=job["stop_ids"] or None,
    )  # fmt: skip
    return model.to(job["device"])


def draw_transformers(model: nn.Module, job: Job) -> Drawn:
    torch.manual_seed(job["seed"])
    rows = sorted((p for p in job["prompts"] for _ in range(job["n"])), key=len)
    ids, steps, stops = [], 0, set(job["stop_ids"])
    for start in range(0, len(rows), job["hf_batch"]):
        batch = rows[start : start + job["hf_batch"]]
        T = max(map(len, batch))
        padded = torch.tensor([[0] * (T - len(row)) + row for row in batch])  # (B, T)
        mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in batch])
        out = model.generate(
            input_ids=padded.to(job["device"]),
            attention_mask=mask.to(job["device"]),
            max_new_tokens=job["max_new_tokens"],
        )[:, T:]
        ids += [up_to_stop(row, stops) for row in out.tolist()]
        steps += out.shape[1]
    return Drawn(ids, steps)


def up_to_stop(ids: list[int], stop_ids: set[int]) -> list[int]:
    """What counts of a row: the first stop token and all before it."""
    return ids[: 1 + next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]


def choose_stop_ids(job: Job, after: float) -> list[int]:
    """Tokens in an order by the seed, until one in `after` of those that a probe draws is theirs.

    A token that alone would be too frequent is passed over.
    """
    model, tokens = load_ours(job), min(PROBE, job["max_new_tokens"])
    probe = {"prompts": job["prompts"][:PROBE], "n": 1, "max_new_tokens": tokens, "stop_ids": []}
    drawn = np.concatenate(draw_ours(model, job | probe).ids)
    counts = np.bincount(drawn, minlength=model.config.vocab_size)
    left, chosen = max(1, round(len(drawn) / after)), []
    for token in np.random.default_rng(job["seed"]).permutation(len(counts)).tolist():
        if left and counts[token] <= left:
            chosen.append(token)
            left -= counts[token]
    del model
    if job["device"].startswith("cuda"):
        torch.cuda.empty_cache()  # the memory is for the processes that are timed
    return sorted(chosen)


# ------------------------------------------------------------------------------------------------
# how fast ours could be


def bounds(model: Transformer, job: Job, drawn: Drawn) -> dict[str, float]:
    """Tokens/s if there were nothing but the products; if all bytes came at a copy's rate."""
    tokens = sum(map(len, drawn.ids))
    rows = round_up(round(tokens / drawn.steps), ROWS)
    with packed_linears(model, model.dtype), torch.inference_mode():
        seconds = drawn.steps * best_seconds(step_products(model, rows), job["device"])
    moved = least_bytes(model, job, drawn)
    return {"bare_rate": tokens / seconds, "copy_rate": tokens / moved * copy_rate(job["device"])}


def linear_layers(model: Transformer) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def step_products(model: Transformer, rows: int) -> Callable[[], None]:
    """The products of all linear layers with one new token for each row, in order."""
    layers = linear_layers(model)
    inputs = {x.in_features: x.weight.new_ones(rows, x.in_features) for x in layers}

    def run() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    return run


def least_bytes(model: Transformer, job: Job, drawn: Drawn) -> int:
    """Read by all decode steps: the weights at each, and what is cached of each row at each.

    A completion of c tokens is met in c - 1 steps, by 1, 2, ..., c - 1 of its own tokens; a prompt
    is read once a step for all of its completions, at least as often as the longest has steps.
    """
    weights = sum(layer.weight.nbytes for layer in linear_layers(model))
    token = 2 * model.new_cache(pages=1).keys.nbytes // PAGE  # a key and a value in each layer
    lengths = np.array([len(ids) for ids in drawn.ids])
    own = (lengths * (lengths - 1) // 2).sum()
    longest = lengths.reshape(len(job["prompts"]), job["n"]).max(axis=1)
    read = sum(len(p) * (c - 1) for p, c in zip(job["prompts"], longest, strict=True))
    return int(drawn.steps * weights + token * (own + read))


def identical_share(model: Transformer, job: Job, drawn: Drawn) -> float:
    """Of each prompt's first completions, drawn again without the others: the share unchanged."""
    n, few = job["n"], max(1, job["n"] // 4)
    again = draw_ours(model, job | {"n": few}).ids
    first = [drawn.ids[i * n + k] for i in range(len(job["prompts"])) for k in range(few)]
    return float(np.mean([a == b for a, b in zip(first, again, strict=True)]))


if __name__ == "__main__":
    run_main(main)
