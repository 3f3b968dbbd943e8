"""Does what a preference training rests on hold, on this model and these pairs?

`check_run` builds what train.py builds from the same flags, prints a line for each invariant, and
ends with `ready to train` or with the one thing to mend. What the files say is checked first, on
all pairs (eval/invariant_texts.py); then what the policy computes of some of them
(eval/invariant_numbers.py, eval/invariant_gradients.py). A stage that fails is the last: broken
texts cost no look at the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from data.chat import CHAT_FORMATS, read_template, recognise_template
from data.formats import read_formats, tokenizer_folder
from data.pairs import TokenPair, length_limits, read_pairs, tokenize_pairs
from eval.audit_equations import AUDITED
from eval.audit_terms import Objective
from eval.findings import FAIL, HEADER, NOTE, Finding
from eval.invariant_gradients import gradient_findings
from eval.invariant_numbers import number_findings, shortest
from eval.invariant_texts import Texts, spread, text_findings
from model.architecture import read_model_config
from model.lora import TARGETS
from model.objective import fill_alpha
from model.policy import fill_policy, shape_policy
from model.run import choose_device
from model.transformer import Transformer

EMBEDDED = "data/tiny/train.jsonl"
EMBEDDED_EVAL = "data/tiny/eval.jsonl"


@dataclass(frozen=True)
class CheckConfig:
    """The flags of train.py that the checks depend on, with its defaults."""

    model: str = "data/tiny"  # folder of a Llama or Mistral checkpoint
    tokenizer: str | None = None  # folder with the tokenizer; none: the folder of --model
    adapter: str | None = None  # folder with a LoRA adapter to start from; merged into the base
    data: tuple[str, ...] = (EMBEDDED,)  # files or folders of JSONL, JSONL.gz or parquet
    eval_data: tuple[str, ...] | None = None  # held-out pairs; none: train.py splits --data
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the checkpoint
    max_length: int = 1024  # tokens of a prompt and its longer completion
    max_prompt_length: int | None = None  # tokens a prompt is cut to, where needed; none: half
    objective: str = "spl"  # dpo, spl, h_dpo, ipo or robust
    alpha: float | None = None  # spl: of the policy's term, none: 1.2 beta; h_dpo: times beta
    beta: float = 0.1  # weight of the reference term in the margin
    label_smoothing: float = 0.0  # share of labels taken to be flipped (conservative, robust DPO)
    lora_rank: int = 16  # 0 trains every parameter
    lora_alpha: float = 16.0  # the adapter's product is scaled by lora_alpha / lora_rank
    lora_targets: tuple[str, ...] = TARGETS  # which linear layers carry an adapter
    micro_batch_tokens: int = 8192  # packed tokens per backward pass
    dtype: str | None = None  # float32 or bfloat16; none: bfloat16 on CUDA, float32 elsewhere
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    seed: int = 0  # of the adapters


def check_run(config: CheckConfig, pairs_limit: int = 8) -> bool:
    """Print every invariant; True where all hold. pairs_limit: how many pairs meet the model.

    Raises ValueError for a flag that no data could make right; what is wrong with the model or the
    data is printed as the thing to mend.
    """
    check_config(config, pairs_limit)
    findings: list[Finding] = []
    for stage in stages(config, pairs_limit):
        for finding in stage:
            if not findings:
                print(f"\n{HEADER}")
            print(finding, flush=True)
            findings.append(finding)
        if any(finding.verdict == FAIL for finding in findings):
            break
    failed = [finding for finding in findings if finding.verdict == FAIL]
    notes = sum(finding.verdict == NOTE for finding in findings)
    if failed:
        others = f" ({len(failed)} invariants fail, this is the first)" if failed[1:] else ""
        print(f"\nto mend: {failed[0].name}{others}\n{failed[0].mend}")
        return False
    print(f"\n{len(findings)} invariants hold, {notes} with a note\nready to train")
    return True


def check_config(config: CheckConfig, pairs_limit: int) -> None:
    """ValueError naming the flag, before any file is read."""

    def expect(condition: bool, flag: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"--{flag} expects {expected}, got {getattr(config, flag)!r}")

    expect(config.objective in AUDITED, "objective", f"one of {', '.join(AUDITED)}")
    formats = ("auto", *CHAT_FORMATS)
    expect(config.chat_format in formats, "chat_format", f"one of {', '.join(formats)}")
    expect(config.dtype in (None, "float32", "bfloat16"), "dtype", "float32 or bfloat16")
    for flag in ("max_length", "max_prompt_length", "micro_batch_tokens"):
        value = getattr(config, flag)
        expect(value is None or value >= 1, flag, "1 or more")
    for flag in ("alpha", "beta", "lora_alpha"):
        value = getattr(config, flag)
        expect(value is None or value > 0, flag, "a number above 0")
    for flag in ("lora_rank", "seed"):
        expect(getattr(config, flag) >= 0, flag, "0 or more")
    expect(0 <= config.label_smoothing < 0.5, "label_smoothing", "a share in [0, 0.5)")
    shorter = (config.max_prompt_length or 0) < config.max_length
    expect(shorter, "max_prompt_length", f"less than --max_length {config.max_length}")
    if config.label_smoothing and config.objective == "ipo":
        raise ValueError("--label_smoothing has no meaning for ipo; use robust, dpo, spl or h_dpo")
    fill_alpha(config.objective, config.alpha, config.beta)
    if pairs_limit < 1:
        raise ValueError(f"expected 1 or more pairs for the model to see, got {pairs_limit}")


def stages(config: CheckConfig, pairs_limit: int) -> Iterator[Iterator[Finding]]:
    """Texts, numbers, gradients: each rests on the one before, and is built when it is asked for.

    What a reader refuses is a stage of one failure.
    """
    device, dtype = choose_device(config.device, config.dtype)
    mistakes = (ValueError, OSError, ImportError)
    try:
        texts = load_texts(config)
    except mistakes as error:
        yield iter([unreadable("model and data readable", error)])
        return
    yield text_findings(texts)
    try:
        model = build_policy(config, dtype, device)
    except mistakes as error:
        yield iter([unreadable("weights readable", error)])
        return
    some = spread(texts.tokens, pairs_limit)
    alpha = fill_alpha(config.objective, config.alpha, config.beta)
    objective = Objective(config.objective, alpha, config.beta, config.label_smoothing)
    ids = special_tokens(texts, some), texts.end
    yield number_findings(model, some, objective, *ids, config.micro_batch_tokens, device)
    yield gradient_findings(model, shortest(some), objective, device)


def unreadable(name: str, error: Exception) -> Finding:
    return Finding(name, FAIL, type(error).__name__, "no error", "none", str(error))


# ------------------------------------------------------------------------------------------------
# what train.py builds


def load_texts(config: CheckConfig) -> Texts:
    """The pairs as texts and as ids. Raises what the readers raise, with the file:line to mend."""
    source = config.tokenizer or tokenizer_folder(config.model, config.adapter)
    model_config = read_model_config(config.model)
    asked = config.model, config.adapter, config.chat_format, source
    tokenizer, chat_format, reason = read_formats(*asked)
    print(f"chat format: {chat_format.name} ({reason})")
    eval_data = config.eval_data
    if eval_data is None and config.data == (EMBEDDED,):
        eval_data = (EMBEDDED_EVAL,)
    positions = model_config.max_position_embeddings
    limits = length_limits(config.max_length, config.max_prompt_length, positions)

    pairs = read_pairs(config.data, config.objective)
    return Texts(
        pairs={pair.source: pair for pair in pairs},
        tokens=tokenize_pairs(pairs, tokenizer, chat_format, *limits),
        held_out=read_pairs(eval_data, config.objective) if eval_data else [],
        tokenizer=tokenizer,
        chat_format=chat_format,
        template=own_template(source),
        max_length=limits[0],
        max_prompt_length=limits[1],
        vocab_size=model_config.vocab_size,
    )


def own_template(source: str) -> str | None:
    """The format of the chat template beside a tokenizer, None where there is none."""
    template, file = read_template(Path(source))
    if template is None:
        return None
    known = recognise_template(template)
    return known.name if known else f"{file}, which is not a known one"


def special_tokens(texts: Texts, pairs: list[TokenPair]) -> list[int]:
    """The special tokens that stand in some pairs."""
    known = set(texts.tokenizer.special_ids.values())
    there = {id for p in pairs for ids in (p.prompt_ids, p.chosen_ids) for id in ids.tolist()}
    return sorted(known & there)


def build_policy(config: CheckConfig, dtype: torch.dtype, device: str) -> Transformer:
    """The policy on one device, as train.py has it before its first step."""
    rank, alpha, targets = config.lora_rank, config.lora_alpha, config.lora_targets
    model = shape_policy(config.model, dtype, rank, alpha, targets)
    fill_policy(model, config.model, config.adapter, config.seed, dtype, device)
    return model
