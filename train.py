"""Preference learning in one loop: batch -> reference -> policy -> objective -> step -> log.

    python train.py                      SPL on the embedded model and data, into runs/tiny-spl
    python train.py --model DIR --data PAIRS.jsonl --objective h_dpo --alpha 0.9 --beta 0.01
    python train.py --model DIR --data PAIRS.jsonl --lora_rank 0 --reference cached
    python train.py --objective sft --init config.json --lora_rank 0 --data TEXTS.jsonl
    python train.py --objective reward --model DIR --data PAIRS.jsonl  a reward model
    python train.py --config runs/tiny-spl/config.json --resume        go on after Ctrl-C
    torchrun --nproc_per_node=8 train.py --model DIR ...               on 8 GPUs, sharded by FSDP2

The equations are in model/objective.py; what a batch looks like, in data/packing.py.
"""

import contextlib
import dataclasses
import math
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.chat import ChatFormat, stop_ids
from data.formats import mark_formats, model_ids, read_formats
from data.packing import (
    PairBatch,
    epoch_batches,
    heaviest_batch,
    num_tokens,
    pack_step,
    step_indices,
    steps_per_epoch,
    to_device,
)
from data.pairs import Pair, TokenPair, length_limits, read_split, tokenize_pairs
from data.prompts import completion_text
from data.tokenizer import Tokenizer
from model import parallel, policy
from model.adapter import save_adapter
from model.architecture import config_file, read_model_config
from model.checkpoint import DTYPES, save_model
from model.config import parse_config, to_json
from model.flags import check_flags
from model.generate import generate
from model.logbook import (
    Means,
    Metrics,
    Step,
    StepLog,
    before_and_after,
    check_finite,
    evaluation_line,
    open_metrics,
    read_records,
    write_record,
)
from model.logps import HeadOptions
from model.lora import TARGETS, dropout_seed
from model.objective import (
    ONE_MODEL,
    TWO_TERMS,
    answer_mass,
    coefficients,
    fill_alpha,
    objective_loss,
    reward_objective,
    sft_term,
)
from model.plan import plan_run, render
from model.reference import (
    cached_reference_logps,
    compute_reference_logps,
    hash_weights,
    reference_key,
    reference_logps,
)
from model.run import (
    Interrupt,
    choose_device,
    choose_out_dir,
    lock,
    peak_memory_gb,
    run_main,
    write_run_config,
)
from model.sampling import completion_seeds
from model.training_state import (
    FREE,
    ROUNDING,
    flush,
    load_training_state,
    refuse_other_run,
    save_training_state,
    trained_parameters,
)
from model.transformer import Transformer

EMBEDDED = "data/tiny/train.jsonl"
EMBEDDED_EVAL = "data/tiny/eval.jsonl"
SAMPLE_TOKENS = 100  # of an answer that is shown at the end, at most


@dataclass(frozen=True)
class TrainConfig:
    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    init: str | None = None  # config.json: start from random weights instead of --model
    tokenizer: str | None = None  # folder with the tokenizer; none: the folder of --model or --init
    adapter: str | None = None  # folder with a LoRA adapter to start from; merged into the base
    data: tuple[str, ...] = (EMBEDDED,)  # files or folders of JSONL, JSONL.gz or parquet
    eval_data: tuple[str, ...] | None = None  # held-out pairs; none: --eval_fraction of --data
    eval_fraction: float = 0.05  # share of first human turns held out, without --eval_data
    eval_pairs: int = 1000  # held-out pairs that are evaluated, at most; 0: all
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the checkpoint
    max_length: int = 1024  # tokens of a prompt and its longer completion
    max_prompt_length: int | None = None  # a prompt is cut to, at its front, if need be; none: half
    label_noise: float = 0.0  # share of the training labels to flip

    objective: str = "spl"  # sft, dpo, spl, h_dpo, ipo, robust, f_dpo or reward
    alpha: float | None = None  # spl: of the policy's term, none: 1.2 beta; h_dpo: times beta
    beta: float = 0.1  # weight of the reference term in the margin
    divergence: str | None = None  # of f_dpo: forward_kl, jensen_shannon or alpha
    divergence_order: float = 0.5  # of the alpha-divergence: near 0 it is DPO, near 1 forward_kl
    label_smoothing: float = 0.0  # share of labels taken to be flipped (conservative, robust DPO)
    sft_weight: float = 0.0  # weight of the chosen completion's mean negative logp in the loss
    reference: str = "online"  # online: adapters disabled; cached: computed before the first step
    reference_cache: str | None = None  # folder of what is cached, for runs to share

    lora_rank: int = 16  # 0 trains every parameter
    lora_alpha: float = 16.0  # the adapter's product is scaled by lora_alpha / lora_rank
    lora_targets: tuple[str, ...] = TARGETS  # which linear layers carry an adapter
    lora_dropout: float = 0.0  # of the adapter's input; sft and reward only

    batch_size: int = 32  # pairs per optimiser step
    micro_batch_tokens: int = 8192  # packed tokens per backward pass
    epochs: int = 1  # passes over the data
    max_steps: int | None = None  # optimiser steps; none: what --epochs makes
    learning_rate: float = 1e-4  # at the end of the warm-up
    schedule: str = "cosine"  # constant, linear or cosine: to zero behind the last step
    warmup_steps: int = 10  # steps over which the learning rate rises to its full value
    max_grad_norm: float = 1.0  # gradients are clipped to this global norm; 0: not clipped
    weight_decay: float = 0.0  # of AdamW, per unit of learning rate; of matrices alone
    seed: int = 0  # of the order of the data, held-out prompts, new weights, dropout, label noise
    dtype: str | None = None  # float32 or bfloat16; none: bfloat16 on CUDA, float32 elsewhere
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    activation_checkpointing: bool = False  # recompute each block in the backward pass
    keep_every: int = 0  # with checkpointing, keep every n-th block's activations; 0: of none
    head_kernel: str = "auto"  # cuda, torch, or auto: cuda where it runs
    head_workspace_mib: int = 256  # memory for logits, at most
    compile: bool = False  # torch.compile for the blocks, attention left out
    replicas: int = 1  # copies of the sharded model: one for each node, say; torchrun only
    cpu_offload: bool = False  # keep shards and optimiser state in host memory; torchrun only

    eval_every: int = 50  # steps between evaluations; 0: before the first and after the last alone
    save_every: int = 0  # steps between checkpoints; 0: at the end and on Ctrl-C or SIGTERM alone
    keep: int = 2  # newest checkpoints that stay; 0: all
    plan: bool = False  # print what each rank will hold, send and compute; then stop
    world_size: int | None = None  # of --plan: for how many ranks
    resume: bool = False  # go on from the newest whole checkpoint in --out_dir
    inexact_resume: bool = False  # with --resume: ranks, threads or torch may differ, so may bits
    sample_prompts: int = 3  # held-out prompts answered at the end
    out_dir: str | None = None  # run folder; none: runs/<model>-<objective>, numbered where taken


def main() -> None:
    config = parse_config(TrainConfig)
    check_flags(config)
    if config.plan:
        print_plan(config)
        return
    device, dtype = choose_device(config.device, config.dtype)
    if config.head_kernel == "cuda" and not device.startswith("cuda"):
        raise ValueError(f"--head_kernel cuda needs a GPU, and the run is on {device}")
    policy.check_merge(config.adapter, dtype)
    start = config_file(config.init).parent if config.init else Path(config.model)
    # beside a file of data a run may lie; in a folder of data its metrics.jsonl would be data
    folders = [p for p in (*config.data, *(config.eval_data or ())) if Path(p).is_dir()]
    inputs = (config.model, config.init, config.tokenizer, config.adapter, *folders)
    name = f"{start.resolve().name}-{config.objective}"
    goes_on = config.resume or parallel.restarts() > 0
    out_dir = choose_out_dir(config.out_dir, name, goes_on, [p for p in inputs if p])
    out_dir = Path(parallel.gather_json(str(out_dir))[0])
    config = dataclasses.replace(config, out_dir=str(out_dir))
    alpha = fill_alpha(config.objective, config.alpha, config.beta)
    if config.objective in TWO_TERMS:
        weights = coefficients(config.objective, alpha, config.beta)
        print("{}: policy_coef {:g}, reference_coef {:g}, tau {:.4g}".format(
            config.objective, *weights, weights[0] / weights[1]))  # fmt: skip

    tokenizer, chat_format = load_formats(config)
    pairs, eval_pairs = load_pairs(config, tokenizer, chat_format)
    model = build_policy(config, dtype, device)

    with contextlib.ExitStack() as held:
        if parallel.is_main():
            out_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(out_dir, goes_on))
            if not (out_dir / "metrics.jsonl").exists():
                write_run_config(config, out_dir, device=device, dtype=str(dtype), alpha=alpha)
                (out_dir / "metrics.jsonl").touch()  # from here on the folder holds a run
        train(config, model, pairs, eval_pairs, out_dir, device)
        save_policy(config, model, tokenizer, chat_format, out_dir)
        if parallel.is_main():
            mark_formats(policy_folder(out_dir), config.model, tokenizer, chat_format)
        with parallel.in_lockstep(model):
            if parallel.is_main():
                report(config, model, tokenizer, chat_format, eval_pairs, out_dir)


# ------------------------------------------------------------------------------------------------
# before the loop


def load_formats(config: TrainConfig) -> tuple[Tokenizer, ChatFormat]:
    """From text to ids."""
    start = Path(config.init or config.model)
    start = start.parent if start.is_file() else start
    asked = config.adapter, config.chat_format, config.tokenizer
    tokenizer, chat_format, reason = read_formats(start, *asked)
    print(f"chat format: {chat_format.name} ({reason})")
    return tokenizer, chat_format


def load_pairs(
    config: TrainConfig, tokenizer: Tokenizer, chat_format: ChatFormat
) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training and held-out pairs as token ids."""
    model_config = read_model_config(config.init or config.model)
    eval_data = config.eval_data
    if eval_data is None and config.data == (EMBEDDED,) and config.objective != "sft":
        eval_data = (EMBEDDED_EVAL,)
    pairs, held_out = read_split(
        config.data, eval_data, config.eval_fraction, config.label_noise, config.objective,
        config.seed, config.eval_pairs,
    )  # fmt: skip
    positions = model_config.max_position_embeddings
    longest, prompt = length_limits(config.max_length, config.max_prompt_length, positions)
    if longest < config.max_length:
        print(f"max_length: {longest} (the model's positions), not {config.max_length}; "
              f"prompts that do not fit are cut to {prompt}")  # fmt: skip

    def encode(some: list[Pair]) -> list[TokenPair]:
        limits = longest, prompt, model_config.vocab_size
        return tokenize_pairs(some, tokenizer, chat_format, *limits, progress=parallel.is_main())

    tokens, held_out_tokens = encode(pairs), encode(held_out) if held_out else []
    print(f"data: {len(tokens)} training and {len(held_out_tokens)} held-out")
    return tokens, held_out_tokens


def build_policy(config: TrainConfig, dtype: torch.dtype, device: str) -> Transformer:
    """The policy of a configuration before its first step, and a line on its size."""
    model = shape_policy(config, dtype)
    folder = None if config.init else config.model
    policy.fill_policy(
        model, folder, config.adapter, config.seed, dtype, device, config.replicas,
        config.cpu_offload,
    )  # fmt: skip
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    print(
        f"policy: {total / 1e6:.2f}M parameters, {trained / 1e6:.2f}M trained, {dtype} on {device}"
    )
    if parallel.world_size() > 1:
        held = parallel.max_over_ranks(sum(parallel.owned(p)[0].nbytes for p in parameters) / 1e9)
        peak = parallel.max_over_ranks(peak_memory_gb("cpu"))
        print(
            f"ranks: {parallel.world_size()}, each with {held:.3f} GB of the parameters at most; "
            f"host memory of one so far {peak:.3f} GB at most"
        )
    return model


def shape_policy(config: TrainConfig, dtype: torch.dtype) -> Transformer:
    """The policy on the meta device, with the options of its forward."""
    path = config.init or config.model
    model = policy.shape_policy(
        config_file(path) if config.init or config.plan else path,  # else with its weights
        dtype,
        config.lora_rank,
        config.lora_alpha,
        config.lora_targets,
        config.lora_dropout,
        config.objective == "reward",
    )
    model.checkpoint_activations = config.activation_checkpointing
    model.keep_every = config.keep_every
    model.head = HeadOptions(config.head_workspace_mib * 2**20, config.head_kernel)
    if config.compile:
        model.compile_blocks()
    return model


def print_plan(config: TrainConfig) -> None:
    """--plan: the run's heaviest micro-step, counted on the meta device; no weight is read."""
    device = torch.device(config.device or "cuda").type
    dtype = DTYPES[config.dtype or ("bfloat16" if device == "cuda" else "float32")]
    pairs, _ = load_pairs(config, *load_formats(config))
    ranks = config.world_size or 1
    steps = number_of_steps(config, pairs)
    limits = (config.batch_size, config.micro_batch_tokens, config.seed, steps, ranks)
    batch, micro_steps = heaviest_batch(pairs, *limits)
    plan = plan_run(
        shape_policy(dataclasses.replace(config, compile=False), dtype),
        batch,
        micro_steps,
        ranks,
        config.replicas,
        config.cpu_offload,
        online_reference=config.objective not in ONE_MODEL and config.reference == "online",
        device_type=device,
    )
    print(f"\n{micro_steps} micro-steps a step, the heaviest with {len(batch)} pairs, "
          f"{len(batch.input_ids)} tokens, {len(batch.targets)} of them predicted; "
          f"{dtype} on {device}\n{render(plan)}")  # fmt: skip


# ------------------------------------------------------------------------------------------------
# the loop


def train(
    config: TrainConfig,
    model: Transformer,
    pairs: list[TokenPair],
    eval_pairs: list[TokenPair],
    out_dir: Path,
    device: str,
) -> None:
    """All steps of the run; metrics.jsonl and the checkpoints are written on the way."""
    rank, ranks = parallel.rank(), parallel.world_size()
    total_steps = number_of_steps(config, pairs)
    if config.warmup_steps > total_steps:
        print(f"learning rate: the run's {total_steps} steps end within its --warmup_steps "
              f"{config.warmup_steps}, below --learning_rate {config.learning_rate:g}")  # fmt: skip
    trained = list(trained_parameters(model).values())
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    weights = hash_weights(model)
    identity = to_json(config) | {
        "data (token ids)": reference_key("", pairs),
        "held-out data (token ids)": reference_key("", eval_pairs),
        "weights (SHA-256)": weights,
        "number of ranks": ranks,
        "number of threads": torch.get_num_threads(),
        "version of torch": torch.__version__,
        "dtype in use": str(model.dtype),
        "kind of device": torch.cuda.get_device_name(device) if "cuda" in device else device,
    }
    parallel.same_on_all({k: v for k, v in identity.items() if k not in (*FREE, *ROUNDING)})
    resumes, inexact = config.resume or parallel.restarts(), config.inexact_resume
    if resumes:
        refuse_other_run(out_dir, identity, inexact)
    reference = eval_reference = None  # online: computed beside the policy, adapters disabled
    budget = config.micro_batch_tokens
    batches = [partial(epoch_batches, some, budget, rank, ranks) for some in (pairs, eval_pairs)]
    if config.reference == "cached":
        folder = Path(config.reference_cache or out_dir / "reference")
        reference, eval_reference = (
            cached_reference_logps(model, weights, some, packed(), folder, device) if some else None
            for some, packed in zip((pairs, eval_pairs), batches, strict=True)
        )
    elif config.objective not in ONE_MODEL and eval_pairs:  # evaluated again and again
        eval_reference = compute_reference_logps(model, eval_pairs, batches[1](), device)
    first_step = 0
    if resumes:
        first_step = load_training_state(out_dir, model, optimizer, identity, inexact)
        print(f"resuming {out_dir} after step {first_step}")
    metrics_file = open_metrics(out_dir / "metrics.jsonl", first_step)
    interrupt = Interrupt()

    def evaluate_after(step: int) -> None:
        evaluate(config, model, eval_pairs, eval_reference, step, metrics_file, device)

    def is_evaluated(step: int) -> bool:
        due = step in (0, total_steps) or is_due(step, config.eval_every)
        return due and bool(eval_pairs)

    if is_evaluated(first_step) and lacks_evaluation(metrics_file, first_step):
        evaluate_after(first_step)

    bar = tqdm(
        range(first_step, total_steps),
        initial=first_step,
        total=total_steps,
        unit="step",
        disable=not parallel.is_main(),
    )
    log = StepLog(metrics_file, bar, pairs, device)
    skip = torch.zeros((), device=trained[0].device)  # 1 from the first step on that is no number
    for step in bar:
        torch.manual_seed(dropout_seed(config.seed, step, rank))  # read with --lora_dropout alone
        model.train()
        lr = learning_rate(config, step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        indices = step_indices(step, len(pairs), config.batch_size, config.seed)
        normaliser = loss_normaliser(config, pairs, indices)
        means, tokens = Means(), sum(num_tokens(pairs[i]) for i in indices)
        for batch in pack_step(pairs, indices, config.micro_batch_tokens, rank, ranks):
            losses, metrics = compute_losses(config, model, batch.to(device), reference)
            (losses.sum() / normaliser).backward()
            means.add(metrics, batch.pair_ids)
        means.reduce()
        grad_norm = torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
        means.set("grad_norm", parallel.whole(grad_norm))
        skip = torch.maximum(skip, means.not_finite().to(skip.device))
        optimizer.found_inf = skip
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.add(Step(step + 1, means, lr, tokens, len(indices)))

        last = step + 1 == total_steps
        stopped = parallel.max_over_ranks(interrupt.asked)  # the number of the signal, or 0
        if last or stopped or is_due(step + 1, config.save_every):
            log.flush()
            if parallel.is_main():
                flush(metrics_file)
            save_training_state(out_dir, model, optimizer, step + 1, identity, config.keep)
            log.restart_clock()
        if stopped and not last:
            bar.close()
            print(f"stopped after step {step + 1}; nothing is lost. To go on:\n"
                  f"  {resume_command(out_dir)}")  # fmt: skip
            raise SystemExit(128 + int(stopped))
        if is_evaluated(step + 1):  # where it was stopped, when it goes on
            log.flush()
            evaluate_after(step + 1)
            log.restart_clock()
    interrupt.restore()


def number_of_steps(config: TrainConfig, pairs: list[TokenPair]) -> int:
    return config.max_steps or config.epochs * steps_per_epoch(len(pairs), config.batch_size)


def resume_command(out_dir: Path) -> str:
    ranks = parallel.world_size()
    start = "python" if ranks == 1 else f"torchrun --nproc_per_node={ranks}"
    if ranks > (own := parallel.local_world_size()):
        start = f"torchrun --nnodes={ranks // own} --nproc_per_node={own}"
    return f"{start} train.py --config {shlex.quote(str(out_dir / 'config.json'))} --resume"


def lacks_evaluation(metrics_file: Path, step: int) -> bool:
    """Whether a run that goes on after this step was stopped before the evaluation behind it."""
    records = read_records(metrics_file) if parallel.is_main() else []
    found = any(r["step"] == step and "eval/loss" in r for r in records)
    return parallel.any_rank(parallel.is_main() and not found)


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def compute_losses(
    config: TrainConfig, model: Transformer, batch: PairBatch, reference: Tensor | None
) -> tuple[Tensor, Metrics]:
    """The objective's losses (B,) and what is logged of it, to be averaged."""
    chosen_lengths, rejected_lengths = batch.lengths.chunk(2)
    if config.objective == "reward":
        losses, metrics = reward_objective(model(batch=batch), config.label_smoothing)
        metrics |= {"lengths/chosen": chosen_lengths, "lengths/rejected": rejected_lengths}
        return losses, metrics
    if config.objective not in ONE_MODEL and reference is None:
        ref_logps = reference_logps(model, batch)  # (2B,)
    elif config.objective not in ONE_MODEL:
        ref_logps = reference[batch.pair_ids].T.flatten()  # (2B,)
        ref_logps = to_device(ref_logps, batch.lengths.device)
    stats = model(batch=batch)
    policy_logps = batch.sum_by_sequence(stats.logps)  # (2B,)
    chosen_logps = policy_logps[: len(batch)]
    metrics = {"entropy": stats.entropy, "token_accuracy": stats.hits}
    metrics["lengths/chosen"] = chosen_lengths
    if config.objective == "sft":
        metrics |= {"loss": -stats.logps.detach(), "logps/chosen": chosen_logps.detach()}
        return -chosen_logps, metrics
    losses, terms = objective_loss(
        config.objective,
        policy_logps,
        ref_logps,
        batch.lengths,
        fill_alpha(config.objective, config.alpha, config.beta),
        config.beta,
        config.label_smoothing,
        config.divergence,
        config.divergence_order,
    )
    if config.sft_weight:
        likelihood = sft_term(chosen_logps, chosen_lengths)
        losses = losses + config.sft_weight * likelihood
        terms |= {"loss": losses.detach(), "terms/sft": likelihood.detach()}
    metrics |= terms | {"lengths/rejected": rejected_lengths}
    metrics |= answer_mass(policy_logps, ref_logps)
    return losses, metrics


@torch.no_grad()
def evaluate(
    config: TrainConfig,
    model: Transformer,
    pairs: list[TokenPair],
    reference: Tensor | None,
    step: int,
    metrics_file: Path,
    device: str,
) -> None:
    """The same numbers on held-out pairs, each pair once, under names that begin with eval/."""
    model.eval()
    means, ranks = Means(), parallel.world_size()
    for batch in epoch_batches(pairs, config.micro_batch_tokens, parallel.rank(), ranks):
        _, metrics = compute_losses(config, model, batch.to(device), reference)
        means.add(metrics, batch.pair_ids)
    parallel.drop_gathered(model)
    means.reduce()
    values = means.read()
    check_finite(f"held-out loss {values['loss']} after step {step}", values, means, pairs)
    record = {"step": step, **{f"eval/{name}": v for name, v in values.items()}}
    write_record(metrics_file, record)
    tqdm.write(evaluation_line(record))


def loss_normaliser(config: TrainConfig, pairs: list[TokenPair], indices: list[int]) -> int:
    """Losses are averaged over the pairs of the global batch; for sft, over its tokens."""
    if config.objective == "sft":
        return sum(len(pairs[i].chosen_ids) for i in indices)
    return len(indices)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Linear warm-up, then the schedule down to zero at total_steps; step counts from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[config.schedule]
    return config.learning_rate * factor


# ------------------------------------------------------------------------------------------------
# what is shown and saved


def save_policy(
    config: TrainConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    out_dir: Path,
) -> None:
    """The adapter; or, where there is no base on disk, the whole model for --model to load."""
    if config.lora_rank and not config.init:
        save_adapter(model, out_dir, config.model, config.adapter)
        return
    ids = model_ids(chat_format, tokenizer)
    save_model(model, out_dir / "model", tokenizer.files, **ids)


def policy_folder(out_dir: Path) -> Path:
    """Of a finished run: the whole model's, or else its own, which has the adapter."""
    return out_dir / "model" if (out_dir / "model").is_dir() else out_dir


def report(
    config: TrainConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    eval_pairs: list[TokenPair],
    out_dir: Path,
) -> None:
    """Before and after on the held-out pairs, some answers, and what to run next."""
    records = [r for r in read_records(out_dir / "metrics.jsonl") if "eval/loss" in r]
    if records:
        print(f"\n{before_and_after(records[0], records[-1])}")
    whole = policy_folder(out_dir) != out_dir
    run, saved, base = (
        shlex.quote(str(path)) for path in (out_dir, policy_folder(out_dir), config.model)
    )
    if config.objective == "reward":
        trained = saved if whole else f"{base} --reward_adapter {run}"
        print(f"\nsaved in {out_dir}; to go on:\n  python -m eval.reward --reward_model {trained} "
              f"--samples SAMPLES.jsonl --out {run}/eval")  # fmt: skip
        return
    if config.sample_prompts and eval_pairs:
        print_answers(config, model, tokenizer, chat_format, eval_pairs)
    policy = f"--model {saved}" if whole else f"--model {base} --adapter {run}"
    print(f"\nsaved in {out_dir}; to go on:\n  python sample.py {policy}")
    if config.data == (EMBEDDED,):
        print(f"  python -m eval.arithmetic {policy} --out {run}/eval")
        if config.objective == "spl":
            print("  python train.py --objective h_dpo --alpha 0.9    the other side of tau = 1")
        print("  python train.py --model DIR --data PAIRS.jsonl   your model and your pairs")


def print_answers(
    config: TrainConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    eval_pairs: list[TokenPair],
) -> None:
    """One answer at temperature 1 to each of the first held-out prompts."""
    model.eval()
    distinct = {tuple(pair.prompt_ids.tolist()): None for pair in eval_pairs}
    room = model.config.max_position_embeddings - SAMPLE_TOKENS
    prompts = [list(ids) for ids in distinct if len(ids) <= room][: config.sample_prompts]
    seeds = [completion_seeds(config.seed, i, 1)[0] for i in range(len(prompts))]
    stops = stop_ids(chat_format, tokenizer)
    # compiling for these few would take longer than drawing them
    eager = torch.compiler.set_stance("force_eager") if config.compile else contextlib.nullcontext()
    with eager:
        answers = dict(generate(model, prompts, seeds, SAMPLE_TOKENS, stop_ids=stops))
    for i, prompt in enumerate(prompts):
        text = f"{tokenizer.decode(prompt).strip()} "
        text += completion_text(answers[i].ids, chat_format, tokenizer)
        print(f"\n--- a held-out prompt and the policy's answer\n{text}")


if __name__ == "__main__":
    run_main(
        main,
        spare="Lower --micro_batch_tokens, or pass --activation_checkpointing",
        go_on="The newest checkpoint is whole: start again with --resume",
    )
