"""What `eval.audit` looks at: its flags, the settings of a run, pairs as token ids, models.

No command of its own.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.chat import ChatFormat
from data.formats import read_formats
from data.pairs import TokenPair, length_limits, read_split, tokenize_pairs
from data.tokenizer import Tokenizer
from eval.audit_equations import AUDITED
from eval.audit_terms import Objective
from model.adapter import load_policy
from model.architecture import read_model_config
from model.config import check_json_value, field_types
from model.files import read_json
from model.lora import TARGETS
from model.objective import fill_alpha
from model.policy import fill_policy, shape_policy
from model.transformer import Transformer

SIDES = ("chosen", "rejected")
INHERITED = ("model", "tokenizer", "data", "objective", "alpha", "beta", "label_smoothing",
             "chat_format", "max_length", "max_prompt_length", "lora_rank", "lora_alpha",
             "lora_targets")  # fmt: skip


@dataclass(frozen=True)
class AuditConfig:
    run: str | None = None  # folder of a run of train.py
    model: str | None = None  # folder of the base model; none: that of --run
    adapter: str | None = None  # the policy's LoRA adapter; with --check: one to start from
    policy: str | None = None  # folder of the policy where all weights were trained
    data: tuple[str, ...] | None = None  # files of pairs; none: those of --run
    on: str = "eval"  # of --run: eval, its held-out pairs, or train
    objective: str | None = None  # dpo, spl, h_dpo, ipo or robust; none: that of --run
    alpha: float | None = None  # as for train.py; none: that of --run
    beta: float | None = None
    label_smoothing: float | None = None
    pairs: tuple[str, ...] | None = None  # numbers of the pairs to show token by token
    worst: int = 0  # and so many of those with the smallest margin
    sample: int | None = None  # and so many drawn by --seed; none: 20 where no other is asked for
    limit: int | None = None  # look at the first so many pairs alone
    chat_format: str = ""  # one of the chat formats, or auto; not given: that of --run
    max_length: int | None = None  # tokens of a prompt and its longer completion
    max_prompt_length: int | None = None  # tokens a prompt is cut to
    tokenizer: str | None = None  # folder with the tokenizer, where --model has none
    eval_data: tuple[str, ...] | None = None  # of --check: held-out pairs, to be looked at too
    lora_rank: int | None = None  # of --check: the adapter to be trained; 0: all weights
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] | None = None
    micro_batch_tokens: int = 8192  # packed tokens per forward
    seed: int = 0  # of the sample
    dtype: str | None = None  # float32, bfloat16 or float16; none: bfloat16 on CUDA, else float32
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    out: str = "audit.html"  # the page
    check: bool = False  # check the invariants that hold before training, and write no page


@dataclass(frozen=True)
class Settings:
    """What is audited, in train.py's words: a run's, or its defaults, where no flag is given."""

    model: str = "data/tiny"
    init: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None  # that the run started from: part of the reference
    data: tuple[str, ...] = ("data/tiny/train.jsonl",)
    eval_data: tuple[str, ...] | None = None
    eval_fraction: float = 0.05
    eval_pairs: int = 1000
    label_noise: float = 0.0
    chat_format: str = "auto"
    max_length: int = 1024
    max_prompt_length: int | None = None
    objective: str = "spl"
    alpha: float | None = None  # of spl and h_dpo
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = TARGETS
    seed: int = 0

    @property
    def terms(self) -> Objective:
        return Objective(
            self.objective, self.alpha, self.beta, self.label_smoothing, self.sft_weight
        )


def read_settings(config: AuditConfig) -> Settings:
    """The run's settings with the flags that are given in their place."""
    kinds = field_types(Settings)
    run: dict[str, Any] = {}
    if config.run is not None:
        file = Path(config.run) / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"--run expects a folder of train.py, got {config.run}")
        run = {name: check_json_value(str(file), name, value, kinds[name])
               for name, value in read_json(file).items() if name in kinds}  # fmt: skip
        if run.get("data") == Settings.data and run.get("eval_data") is None:
            run["eval_data"] = ("data/tiny/eval.jsonl",)  # as train.py has it
        if config.objective not in (None, run.get("objective")):
            run["alpha"] = None  # it weighs something else there: tau for h_dpo, tau * beta for spl
    given = {name: value for name, value in asdict(config).items() if name in INHERITED}
    merged = run | {name: value for name, value in given.items() if value not in (None, "")}
    if config.data is not None:  # all of it is looked at
        merged |= {"eval_data": None, "label_noise": 0.0}
    if config.eval_data is not None:
        merged["eval_data"] = config.eval_data
    settings = Settings(**merged)
    if settings.objective not in AUDITED:
        raise ValueError(
            f"expected --objective to be one of {', '.join(AUDITED)}, whose equations the "
            f"audit has (eval/audit_equations.py); got {settings.objective}"
        )
    alpha = fill_alpha(settings.objective, settings.alpha, settings.beta)
    settings = replace(settings, alpha=alpha)
    settings.terms.coefficients  # noqa: B018 raises for weights and names that are none
    return settings


def read_tokens(
    config: AuditConfig, settings: Settings
) -> tuple[list[TokenPair], set[tuple[str, str]], Tokenizer, ChatFormat, str]:
    """The pairs as in training; what of them was cut, as (source, side); the formats."""
    start = Path(settings.init or settings.model)
    start = start.parent if start.is_file() else start
    asked = settings.adapter, settings.chat_format, settings.tokenizer
    tokenizer, chat_format, reason = read_formats(start, *asked)
    train, held_out = read_split(
        settings.data,
        settings.eval_data,
        0.0 if config.data is not None else settings.eval_fraction,
        settings.label_noise,
        settings.objective,
        settings.seed,
        settings.eval_pairs,
    )
    chosen = train if config.data is not None or config.on == "train" else held_out
    if not chosen:
        raise ValueError("the run has no held-out pairs; pass --on train")
    model_config = read_model_config(settings.init or settings.model)
    positions = model_config.max_position_embeddings
    limits = length_limits(settings.max_length, settings.max_prompt_length, positions)
    chosen = chosen[: config.limit]
    pairs = tokenize_pairs(chosen, tokenizer, chat_format, *limits, model_config.vocab_size)
    whole = {
        pair.source: pair
        for pair in tokenize_pairs(
            chosen, tokenizer, chat_format, 2**60, 2**59, log=lambda _: None, progress=False
        )
    }
    cut = {
        (pair.source, side)
        for pair in pairs
        for side in ("prompt", *SIDES)
        if len(ids_of(pair, side)) < len(ids_of(whole[pair.source], side))
    }
    return pairs, cut, tokenizer, chat_format, reason


def ids_of(pair: TokenPair, side: str) -> list[int]:
    return getattr(pair, f"{side}_ids").tolist()


def load_models(
    config: AuditConfig, settings: Settings, dtype: torch.dtype, device: str
) -> tuple[Transformer, Transformer, str, str]:
    """(policy, reference) and what they are called."""
    base = settings.model
    adapter, whole = config.adapter, config.policy
    if config.run is not None and adapter is None and whole is None:
        trained = Path(config.run) / "model"
        whole, adapter = (str(trained), None) if trained.is_dir() else (None, config.run)
    if whole is not None and settings.init is not None:
        raise ValueError("a run from random weights (--init) left no reference to audit against")
    reference = load_policy(base, settings.adapter, dtype, device)
    policy = load_policy(whole or base, adapter, dtype, device)
    names = (whole or f"{base} + {adapter}"), base
    if settings.adapter is not None:
        names = names[0], f"{base} + {settings.adapter}"
    return policy, reference, *names


def trained_model(settings: Settings, dtype: torch.dtype, device: str) -> Transformer:
    """A model whose trained parameters a checkpoint fills: its adapters, or all of it."""
    rank, alpha, targets = settings.lora_rank, settings.lora_alpha, settings.lora_targets
    model = shape_policy(settings.model, dtype, rank, alpha, targets)
    fill_policy(model, settings.model, settings.adapter, settings.seed, dtype, device)
    return model.eval()
