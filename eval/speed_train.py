"""Training steps, side by side: ours, ours with each saving turned off, and trl's DPOTrainer.

    python -m eval.speed train
    python -m eval.speed train --model DIR --data PAIRS.jsonl --max_length 1024 --threads 2
    python -m eval.speed train --model DIR --equal_lengths 64 128 --only ours trl

    ours        packed without padding, a pair's prompt once, only completions at the head, the
                reference beside the policy
    no_packing  every completion with its prompt in a row of its own, padded to the longest
    no_sharing  packed, but each completion with its own copy of the prompt
    whole_head  all rows at the head
    all_off     padded, not shared, all rows at the head: a peer's layout on our code
    cached      the reference's log-probabilities are there before the step
    bfloat16    ours in bfloat16
    compiled    ours with its blocks through torch.compile; only where --only names it
    trl         trl's DPOTrainer: padded
    trl_cached  the same with precomputed reference log-probabilities

Every variant takes the same pairs from the same fresh adapter, one micro-batch a step, in a process
of its own; rounds of processes take turns. The first step of each warms up and is not counted.
Losses must agree with ours to 1e-4 (bfloat16: 2e-2), or it is said. pairs/s counts each step by its
median over the rounds. work is what eval/speed_work.py counts for a layout, and efficiency the rest
of the factor in time.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.chat import detect_chat_format
from data.packing import step_indices
from data.pairs import TokenPair, length_limits, read_pairs, tokenize_pairs
from data.tokenizer import load_tokenizer
from eval.speed import (
    choose_variants,
    describe_machine,
    header,
    installed,
    load_average,
    matrix_rate,
    pin_threads,
    run_module,
    take_turns,
    warn_if_busy,
    write_summary,
)
from eval.speed_report import Run, break_down, notes, summarize, table
from eval.speed_step import SpeedStepConfig, build_policy, group, write_token_pairs
from eval.speed_work import LAYOUTS
from model.adapter import save_adapter
from model.architecture import read_model_config
from model.config import parse_config
from model.flags import refuse_given
from model.run import choose_device
from model.transformer import ModelConfig

VARIANTS = tuple(LAYOUTS)
TRL_NEEDS = ("trl", "transformers", "peft", "datasets")
SLOW_BFLOAT16 = 0.2  # of the float32 rate: below it, the variant is not worth its time


@dataclass(frozen=True)
class SpeedTrainConfig:
    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    init: str | None = None  # config.json: random weights instead of --model; without trl
    tokenizer: str | None = None  # folder with the tokenizer; none: that of --model or --init
    data: tuple[str, ...] = ("data/tiny/train.jsonl",)  # preference pairs, as train.py reads them
    equal_lengths: tuple[str, ...] | None = None  # prompt and completion tokens: random ids instead
    max_length: int = 1024  # tokens of a prompt and its longer completion
    max_prompt_length: int | None = None  # tokens a prompt is cut to, where needed; none: half
    batch_size: int = 4  # pairs per step
    steps: int = 4  # of each process; the first warms up
    repeats: int = 2  # rounds: processes of each variant
    only: tuple[str, ...] | None = None  # variants; none: all of them
    beta: float = 0.1  # of DPO
    learning_rate: float = 1e-4  # constant
    lora_rank: int = 16  # on all linear layers
    lora_alpha: float = 16.0  # the adapter's product is scaled by lora_alpha / lora_rank
    activation_checkpointing: bool = False  # ours: recompute each block in the backward pass
    threads: int | None = None  # of the products; none: one for each core
    dtype: str | None = None  # float32 or bfloat16; none: bfloat16 on CUDA, float32 elsewhere
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    seed: int = 0  # of the choice of the pairs and of the adapter
    out: str = "runs/speed-train"  # folder for summary.json


def main(words: list[str]) -> None:
    config = parse_config(SpeedTrainConfig, words)
    check_config(config)
    device, torch_dtype = choose_device(config.device, config.dtype)
    dtype = str(torch_dtype).removeprefix("torch.")
    pin_threads(config.threads)
    machine = describe_machine(device, " ".join(["python -m eval.speed train", *words]))
    print(header(machine))
    warn_if_busy(machine["load_before"], machine["cores"])

    model_config = read_model_config(config.init or config.model)
    pairs = make_pairs(config, model_config)
    steps = [lengths_of(some) for some in group(pairs, config.batch_size)]
    names, skipped = available(choose_variants(VARIANTS, config.only), config, dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        turns = run_turns(config, names, pairs, dtype, device, Path(folder), skipped)
    turns = {name: said for name, said in turns.items() if name not in skipped}
    run = Run(model_config, config.lora_rank, steps, dtype, device)
    results = summarize(run, turns)
    factors = break_down(run, results)

    print("\n" + table(results) + "\n")
    for line in notes(results, factors, skipped):
        print(line)
    machine["load_after"] = load_average()
    own = 0 if device.startswith("cuda") else machine["threads"]
    warn_if_busy(machine["load_after"], machine["cores"], own)
    settings = asdict(config) | {"dtype": dtype, "device": device}
    summary = {"task": "speed/train", "settings": settings, "machine": machine, "lengths": steps}
    summary |= {"variants": results, "skipped": skipped, "factors": factors, "turns": turns}
    write_summary(config.out, summary)


def check_config(config: SpeedTrainConfig) -> None:
    least = {"batch_size": 1, "steps": 2, "repeats": 1, "lora_rank": 1, "max_prompt_length": 1}
    for flag, bound in least.items():
        if (value := getattr(config, flag)) is not None and value < bound:
            raise ValueError(f"--{flag} expects {bound} or more, got {getattr(config, flag)}")
    if config.dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype expects float32 or bfloat16, got {config.dtype!r}")
    words = config.equal_lengths
    if words is not None and (len(words) != 2 or not all(w.isdigit() and int(w) for w in words)):
        raise ValueError(f"--equal_lengths expects prompt and completion tokens, got {words}")
    if words is not None:
        of_data = ("data", "max_length", "max_prompt_length", "tokenizer")
        refuse_given(config, of_data, "beside --equal_lengths, which draws random ids")
    if config.init is not None:
        refuse_given(config, ("model",), "beside --init, which draws the weights")


# ------------------------------------------------------------------------------------------------
# the pairs


def make_pairs(config: SpeedTrainConfig, model_config: ModelConfig) -> list[TokenPair]:
    """batch_size pairs for each step, drawn from the data, or random ids of equal lengths."""
    count = config.batch_size * config.steps
    if config.equal_lengths is not None:
        P, C = map(int, config.equal_lengths)
        rng = np.random.default_rng(config.seed)
        draw = lambda n: rng.integers(model_config.vocab_size, size=n).astype(np.int32)  # noqa: E731
        return [TokenPair(draw(P), draw(C), draw(C), f"random:{i}") for i in range(count)]
    source = Path(config.tokenizer or config.init or config.model)
    source = source.parent if source.is_file() else source
    tokenizer = load_tokenizer(source)
    chat_format, _ = detect_chat_format(source, tokenizer)
    rows = read_pairs(config.data, "dpo")
    drawn = step_indices(0, len(rows), min(len(rows), 2 * count), config.seed)
    positions = model_config.max_position_embeddings
    limits = length_limits(config.max_length, config.max_prompt_length, positions)
    limits += (model_config.vocab_size,)
    some = [rows[i] for i in drawn]
    pairs = tokenize_pairs(some, tokenizer, chat_format, *limits, progress=False)[:count]
    if len(pairs) < count:
        raise ValueError(
            f"--data has {len(pairs)} pairs, {config.steps} steps of {config.batch_size} need "
            f"{count}; lower --steps or --batch_size"
        )
    means = np.mean(lengths_of(pairs), axis=0)
    print("{} pairs, on average {:.0f} prompt, {:.0f} chosen, {:.0f} rejected tokens".format(
        count, *means))  # fmt: skip
    return pairs


def lengths_of(pairs: list[TokenPair]) -> list[tuple[int, int, int]]:
    return [(len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]


# ------------------------------------------------------------------------------------------------
# running


def available(
    names: list[str], config: SpeedTrainConfig, dtype: str, device: str
) -> tuple[list[str], dict[str, str]]:
    """The variants that can run here, and why the others cannot."""
    skipped = {}
    missing = [package for package in TRL_NEEDS if installed(package) is None]
    for name in names:
        if name.startswith("trl") and missing:
            skipped[name] = f"pip install {' '.join(missing)}"
        elif name.startswith("trl") and config.init:
            skipped[name] = "it needs the weights of --model, not --init"
        elif name == "compiled" and not config.only:
            skipped[name] = "it compiles for minutes; name it with --only"
        elif name == "bfloat16" and dtype == "bfloat16":
            skipped[name] = "everything is, by --dtype"
        elif name == "bfloat16" and not config.only:
            share = matrix_rate(torch.bfloat16, device) / matrix_rate(torch.float32, device)
            if share < SLOW_BFLOAT16:
                skipped[name] = f"this device multiplies it at {share:.2f} of the float32 rate"
    names = [name for name in names if name not in skipped]
    if not names:
        raise ValueError(f"nothing is left to run: {skipped}")
    return names, skipped


def run_turns(
    config: SpeedTrainConfig,
    names: list[str],
    pairs: list[TokenPair],
    dtype: str,
    device: str,
    folder: Path,
    skipped: dict[str, str],
) -> dict[str, list[dict[str, Any]]]:
    """{variant: what each of its processes says}; one that fails goes to `skipped`."""
    write_token_pairs(pairs, folder / "pairs.json")
    step = SpeedStepConfig(
        model=config.model,
        init=config.init,
        pairs=str(folder / "pairs.json"),
        batch_size=config.batch_size,
        beta=config.beta,
        learning_rate=config.learning_rate,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        activation_checkpointing=config.activation_checkpointing,
        dtype=dtype,
        device=device,
        threads=config.threads,
        seed=config.seed,
        out=str(folder / "result.json"),
    )
    fields = {name: value for name, value in asdict(step).items() if value is not None}
    if any(name.startswith("trl") for name in names):
        save_adapter(build_policy(step, torch.float32, "cpu"), folder / "adapter", config.model)
        fields["adapter"] = str(folder / "adapter")

    def turn(name: str) -> dict[str, Any] | None:
        if name in skipped:
            return None
        own = {"variant": name} | ({"dtype": "bfloat16"} if name == "bfloat16" else {})
        result, reason = run_process(fields | own, config.threads)
        if result is None:
            skipped[name] = f"it failed: {reason}"
            print(f"  {name:<11} {skipped[name]}")
        else:
            seconds = ", ".join(f"{s:.3g}" for s in result["seconds"])
            print(f"  {name:<11} {seconds} s", flush=True)
        return result

    turns = take_turns({name: partial(turn, name) for name in names}, config.repeats)
    if all(name in skipped for name in names):
        raise ValueError(f"every variant failed: {skipped}")
    return turns


def run_process(fields: dict[str, Any], threads: int | None) -> tuple[dict | None, str]:
    """What eval.speed_step writes, or None and the last line of its complaint."""
    own = fields | {"device": torch.device(fields["device"]).type}
    words = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    reason = run_module("eval.speed_step", words, threads, fields["device"])
    if reason is not None:
        return None, reason
    return json.loads(Path(fields["out"]).read_text()), ""
