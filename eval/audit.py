r"""Where a preference loss comes from: every term of the objective, from a token to the loss.

    python -m eval.audit --run runs/tiny-spl --worst 20 --out audit.html
    python -m eval.audit --run runs/tiny-spl --pairs 12 40 --on train --out audit.html
    python -m eval.audit --model DIR --adapter RUN --data PAIRS.jsonl --objective dpo --sample 50 \
        --out audit.html
    python -m eval.audit --check --model DIR --data PAIRS.jsonl              before training

The page, one file without network, shows for each pair prompt, chosen and rejected token by token:
log-probabilities under policy and reference, entropy, what the token adds to the policy's term, to
the reference's term and to the margin, and how hard it pushes on the logits. The shares of the
tokens sum to the margin of the forward of training, or the page says that they do not, and the
exit code is 1. Then the pair's chain from log-probabilities to loss and gradient, at the run's
checkpoints too, and all pairs at a glance.

--run takes model, data and objective from a run of train.py; flags that are given go before. Its
held-out pairs are audited unless --on says otherwise.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data.rows import data_files, refuse_overwriting
from eval.audit_page import write_audit
from eval.audit_pairs import audit
from eval.audit_run import AuditConfig, Settings, read_settings
from eval.invariants import CheckConfig, check_run
from model.checkpoint import DTYPES
from model.config import parse_config
from model.flags import UNUSED, refuse_given
from model.run import run_main

OF_THE_PAGE = ("policy", "on", "pairs", "worst", "sample", "limit", "seed", "out")
OF_THE_CHECK = ("eval_data", "lora_rank", "lora_alpha", "lora_targets")


def main() -> None:
    config = parse_config(AuditConfig)
    settings = read_settings(config)
    check_flags(config)
    check_objective(config, settings)
    if config.check:
        raise SystemExit(0 if check_run(check_config(config, settings)) else 1)
    check_out(Path(config.out), settings)
    page = {"command": command_of(config)} | audit(config, settings)
    write_audit(Path(config.out), page)
    tell(config, page)
    if not page["closing"]["closes"]:
        raise SystemExit(1)


def check_flags(config: AuditConfig) -> None:
    """ValueError for flags that are out of range, missing, without a meaning, or contradictory."""
    if config.check:
        refuse_given(config, OF_THE_PAGE, "with --check, which writes no page")
        return
    refuse_given(config, OF_THE_CHECK, "without --check")
    if config.run is None and config.adapter is None and config.policy is None:
        raise ValueError("expected --run, or the policy: --model with --adapter or --policy")
    if config.adapter is not None and config.policy is not None:
        raise ValueError("--adapter and --policy exclude each other: both are the policy")
    if config.on not in ("eval", "train"):
        raise ValueError(f"--on expects eval or train, got {config.on!r}")
    for flag, least in (("worst", 0), ("sample", 0), ("limit", 1), ("micro_batch_tokens", 1)):
        if (value := getattr(config, flag)) is not None and value < least:
            raise ValueError(f"--{flag} expects {least} or more, got {value}")
    if config.dtype not in (None, *DTYPES):
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    for text in config.pairs or ():
        if not text.isdecimal():
            raise ValueError(f"--pairs expects numbers of pairs, got {text!r}")


def check_objective(config: AuditConfig, settings: Settings) -> None:
    """ValueError for what train.py refuses of an objective; a run's own alpha is no flag."""
    objective, smoothing = settings.objective, settings.label_smoothing
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"--label_smoothing expects a share in [0, 0.5), got {smoothing}")
    if smoothing and objective == "ipo":
        raise ValueError(
            f"--label_smoothing has no meaning for ipo, got {smoothing}; pass --label_smoothing 0"
        )
    unused, lacks = UNUSED.get(objective, ((), ""))
    refuse_given(config, unused, f"for --objective {objective}, which has no {lacks}")


def check_out(out: Path, settings: Settings) -> None:
    """ValueError for a page that is a folder, or a file of the pairs that are read."""
    if out.is_dir():
        raise ValueError(f"--out expects a file for the page, got the folder {out}")
    data = data_files((*settings.data, *(settings.eval_data or ())))
    refuse_overwriting(out, data, f"--out {out}")


def command_of(config: AuditConfig) -> str:
    """The flags that are not at their defaults."""
    given = {k: v for k, v in asdict(config).items() if v != getattr(AuditConfig, k)}
    words = [f"--{k} {' '.join(v) if isinstance(v, tuple) else v}" for k, v in given.items()]
    return " ".join(["python -m eval.audit", *words])


def tell(config: AuditConfig, page: dict[str, Any]) -> None:
    """One line for each thing worth knowing before the page is opened."""
    counts, closing = page["counts"], page["closing"]
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in counts.items()))
    if page["logged"]:
        print("mean margin {margin_here:.6f}, logged {margin:.6f}; mean loss {loss_here:.6f}, "
              "logged {loss:.6f} (step {step})".format(**page["logged"]))  # fmt: skip
    shown, largest = len(page["pairs"]), closing["largest"]
    allowed = f"; {closing['tolerance']:.0e} is allowed in {page['dtype']})"
    if closing["closes"]:
        print(f"the tokens of all {shown} pairs sum to their margins (largest residual "
              f"{largest:.1e} of the terms' size{allowed}")  # fmt: skip
    else:
        bad = [pair["index"] for pair in page["pairs"] if not pair["closing"]["closes"]]
        print(f"THE TOKENS DO NOT SUM TO THE MARGIN for {len(bad)} of {shown} pairs: "
              f"{', '.join(map(str, bad[:10]))} (largest residual {largest:.1e} of the terms' "
              f"size{allowed}")  # fmt: skip
    print(f"page: {config.out}")


def check_config(config: AuditConfig, settings: Settings) -> CheckConfig:
    """The settings that the checks of `eval/invariants.py` take."""
    known = {field.name for field in fields(CheckConfig)}
    if settings.init is not None:
        raise ValueError(f"--check is of a checkpoint, and {config.run} began with random weights")
    own = ("micro_batch_tokens", "dtype", "device")
    given = asdict(settings) | {name: getattr(config, name) for name in own}
    given["adapter"] = config.adapter or settings.adapter  # that train.py would start from
    return CheckConfig(**{name: value for name, value in given.items() if name in known})


if __name__ == "__main__":
    run_main(main)
