"""The flags of train.py: what each may be, and which contradict each other.

All of it is said before a file is read, as a ValueError that names the flag. `config` is a
TrainConfig; a flag that has no meaning where it is given is one that differs from its default.
"""

import re
from typing import Any

from model import parallel
from model.logps import HEAD_KERNELS
from model.lora import TARGETS
from model.objective import DIVERGENCES, OBJECTIVES, ONE_MODEL, fill_alpha

CHOICES = {
    "objective": OBJECTIVES,
    "reference": ("online", "cached"),
    "head_kernel": HEAD_KERNELS,
    "schedule": ("constant", "linear", "cosine"),
    "dtype": (None, "float32", "bfloat16"),
}
AT_LEAST_ONE = ("batch_size", "micro_batch_tokens", "epochs", "max_steps", "max_length",
                "max_prompt_length", "head_workspace_mib", "replicas", "world_size")  # fmt: skip
AT_LEAST_ZERO = ("warmup_steps", "eval_every", "save_every", "sample_prompts", "seed", "lora_rank",
                 "max_grad_norm", "weight_decay", "sft_weight", "keep_every", "keep",
                 "eval_pairs")  # fmt: skip
ABOVE_ZERO = ("alpha", "beta", "learning_rate", "lora_alpha")
SHARES = ("label_noise", "eval_fraction", "lora_dropout")
UNUSED = {  # flags that an objective gives no meaning to, and why
    "sft": (
        ("alpha", "beta", "label_noise", "label_smoothing", "sft_weight", "reference"),
        "pairs",
    ),
    "reward": (
        ("alpha", "beta", "sft_weight", "reference", "head_kernel", "head_workspace_mib"),
        "policy and no reference",
    ),
    "f_dpo": (("alpha",), "weight of the entropy; its alpha-divergence has --divergence_order"),
    **dict.fromkeys(("dpo", "ipo", "robust"), (("alpha",), "weight of the policy's term but beta")),
}


def check_flags(config: Any) -> None:
    check_values(config)
    check_data(config)
    check_objective(config)
    check_policy(config)
    check_run(config)


def check_values(config: Any) -> None:
    """Each flag by itself."""

    def expect(condition: bool, flag: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"--{flag} expects {expected}, got {getattr(config, flag)!r}")

    for flag, choices in CHOICES.items():
        names = ", ".join(choice for choice in choices if choice)
        expect(getattr(config, flag) in choices, flag, f"one of {names}")
    for flag in AT_LEAST_ONE:
        value = getattr(config, flag)
        expect(value is None or value >= 1, flag, "1 or more")
    for flag in AT_LEAST_ZERO:
        expect(getattr(config, flag) >= 0, flag, "0 or more")
    for flag in ABOVE_ZERO:
        value = getattr(config, flag)
        expect(value is None or value > 0, flag, "a number above 0")
    for flag in SHARES:
        expect(0 <= getattr(config, flag) < 1, flag, "a share in [0, 1)")
    expect(0 <= config.label_smoothing < 0.5, "label_smoothing", "a share in [0, 0.5)")
    expect(0 < config.divergence_order < 1, "divergence_order", "a number in (0, 1)")
    expect(config.seed < 2**32, "seed", "less than 2^32")
    for flag in {*AT_LEAST_ONE, *AT_LEAST_ZERO} - {"seed"}:
        value = getattr(config, flag)
        expect(value is None or value < 2**31, flag, "a number below 2^31")
    expect(config.lora_rank <= 2**15, "lora_rank", "32768 or less")
    shorter = (config.max_prompt_length or 0) < config.max_length
    expect(shorter, "max_prompt_length", f"less than --max_length {config.max_length}")
    expect(config.max_length >= 2, "max_length", "2 or more, of a prompt and its completion")
    device = re.fullmatch(r"cpu|cuda(:\d+)?", config.device or "cpu")
    expect(device is not None, "device", "cpu, cuda or cuda:N")
    expect(set(config.lora_targets) <= set(TARGETS), "lora_targets", f"some of {' '.join(TARGETS)}")
    expect(config.out_dir != "", "out_dir", "a folder")


def check_data(config: Any) -> None:
    """Which pairs are held out."""
    if config.eval_data is not None:
        refuse_given(config, ("eval_fraction",), "beside --eval_data")
    elif not is_given(config, "data") and config.objective != "sft":
        refuse_given(config, ("eval_fraction",), "without --data: the default has held-out pairs")
    if config.eval_data is None and not config.eval_fraction and is_given(config, "data"):
        refuse_given(config, ("eval_every", "eval_pairs"), "with --eval_fraction 0")


def check_objective(config: Any) -> None:
    """What an objective needs, and what has no meaning for it."""
    objective, divergence = config.objective, config.divergence
    if config.label_smoothing and objective in ("ipo", "f_dpo"):
        other = "use robust, dpo, spl or h_dpo"
        raise ValueError(f"--label_smoothing has no meaning for {objective}; {other}")
    if objective == "f_dpo" and divergence not in DIVERGENCES:
        known = ", ".join(DIVERGENCES)
        raise ValueError(f"--divergence expects one of {known} for f_dpo, got {divergence!r}")
    if objective != "f_dpo" and divergence is not None:
        raise ValueError(f"--divergence has no meaning for --objective {objective}; use f_dpo")
    if is_given(config, "divergence_order") and divergence != "alpha":
        raise ValueError(f"--divergence_order is for --divergence alpha, got {divergence!r}")
    unused, lacks = UNUSED.get(objective, ((), ""))
    refuse_given(config, unused, f"for --objective {objective}, which has no {lacks}")
    fill_alpha(objective, config.alpha, config.beta)


def check_policy(config: Any) -> None:
    """Where policy and reference come from, and what is trained."""
    pairs = config.objective not in ONE_MODEL
    if config.init:
        refuse_given(config, ("adapter", "model"), "beside --init, which draws the weights")
    if not config.lora_rank:
        adapters = ("lora_alpha", "lora_targets", "lora_dropout")
        refuse_given(config, adapters, "with --lora_rank 0, which has no adapter")
    if config.lora_dropout and pairs:
        raise ValueError(
            "--lora_dropout must be 0 in preference training: policy and reference have to differ "
            "by the adapter alone"
        )
    if config.reference_cache and config.reference != "cached":
        raise ValueError("--reference_cache needs --reference cached")
    if config.lora_rank == 0 and pairs and config.reference == "online":
        raise ValueError(
            "--lora_rank 0 trains every weight, so no reference policy is left beside it; "
            "pass --reference cached"
        )


def check_run(config: Any) -> None:
    """How the run is spread over memory and ranks, and how it goes on."""
    if not config.activation_checkpointing:
        refuse_given(config, ("keep_every",), "without --activation_checkpointing")
    if config.world_size is not None and not config.plan:
        raise ValueError("--world_size is for --plan; a run has the ranks that torchrun starts")
    ranks = (config.world_size or 1) if config.plan else parallel.world_size()
    for flag in ("replicas", "cpu_offload"):
        if ranks == 1 and is_given(config, flag):
            raise ValueError(f"--{flag} needs more than one rank; start train.py with torchrun")
    if config.cpu_offload and config.device == "cpu":
        raise ValueError("--cpu_offload has no meaning with --device cpu")
    if ranks % config.replicas:
        raise ValueError(f"--replicas expects a divisor of {ranks} ranks, got {config.replicas}")
    if config.inexact_resume and not config.resume:
        raise ValueError("--inexact_resume has no meaning without --resume")
    if config.resume and not config.out_dir:
        raise ValueError("--resume expects the run folder: pass --out_dir or its config.json")


def refuse_given(config: Any, flags: tuple[str, ...], where: str) -> None:
    for flag in flags:
        if is_given(config, flag):
            raise ValueError(f"--{flag} has no meaning {where}")


def is_given(config: Any, flag: str) -> bool:
    return getattr(config, flag) != getattr(type(config), flag)
