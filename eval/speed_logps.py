"""The head, side by side: hidden states -> log-probability of each target, and back.

    python -m eval.speed logps
    python -m eval.speed logps --rows 8192 --width 4096 --vocab 128256 --device cuda
    python -m eval.speed logps --only naive ours bare --repeats 9 --threads 2

    naive         whole logits, float32 log_softmax, gather
    trl           whole logits, trl's selective_log_softmax
    trl_chunked   the head that trl's trainers call: vocabulary in chunks, recomputed backward
    torch         torch.nn.functional.linear_cross_entropy
    torch_chunked the same with its default chunking
    compiled      naive through torch.compile
    ours          model.logps.token_logps: rows in chunks, its gradient made in the forward pass
    bare          the two matrix products of ours at its chunk's shape, and nothing else: the bound

The head is frozen, as beside a LoRA adapter: the gradient is that of the hidden states alone, which
takes 2 products of 2 C D V FLOP each at least. Errors are against the definition in float64 on the
first rows: the largest of the log-probabilities, in nats, and of the gradient the norm of the
difference over the norm. Memory is what one forward and backward pass takes at its peak.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.speed import (
    best_seconds,
    choose_variants,
    copy_rate,
    describe_machine,
    extra_peak_memory,
    header,
    load_average,
    markdown_table,
    matrix_rate,
    over,
    pin_threads,
    seconds_of,
    shown,
    spread,
    take_turns,
    warn_if_busy,
    write_summary,
)
from model.config import parse_config
from model.logps import (
    WORKSPACE_BYTES,
    chunks,
    empty_stats,
    gradient_memory,
    reduce_rows,
    token_logps,
)
from model.run import choose_device

VARIANTS = (
    "naive", "trl", "trl_chunked", "torch", "torch_chunked", "compiled", "ours", "bare"
)  # fmt: skip
LOGIT_SPREAD = 3.0  # standard deviation of the random logits: some tokens likely, most not


@dataclass(frozen=True)
class SpeedLogpsConfig:
    rows: int = 1024  # completion tokens, C
    width: int = 576  # of the hidden states, D
    vocab: int = 49152  # V
    checked_rows: int = 64  # of them compared with float64
    only: tuple[str, ...] | None = None  # variants; none: all of them
    repeats: int = 5  # turns of each variant
    patience: float = 10.0  # seconds; a variant that takes longer has one turn alone
    threads: int | None = None  # of the products; none: one for each core
    dtype: str | None = None  # float32 or bfloat16; none: bfloat16 on CUDA, float32 elsewhere
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    seed: int = 0  # of the random inputs
    out: str = "runs/speed-logps"  # folder for summary.json


class Inputs(NamedTuple):
    hidden: Tensor  # (C, D), its gradient is asked for
    weight: Tensor  # (V, D), frozen
    targets: Tensor  # (C,)
    grad_logps: Tensor  # (C,) float32, what comes back from the loss


Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, weight, targets -> logps (C,)


@dataclass(frozen=True)
class Variant:
    forward: Callable[[], Any]  # without autograd
    both: Callable[[], Any]  # forward and backward
    head: Head | None = None  # none: bare products, which have no result


def main(words: list[str]) -> None:
    config = parse_config(SpeedLogpsConfig, words)
    check_config(config)
    device, dtype = choose_device(config.device, config.dtype)
    pin_threads(config.threads)
    machine = describe_machine(device, " ".join(["python -m eval.speed logps", *words]))
    print(header(machine))
    warn_if_busy(machine["load_before"], machine["cores"])

    inputs = make_inputs(config, dtype, device)
    names = choose_variants(VARIANTS, config.only)
    variants, skipped = make_variants(names, inputs)
    results = measure(config, variants, skipped, inputs, device)
    add_ratios(results, config)
    rates = {"matrix FLOP/s": matrix_rate(dtype, device), "copy bytes/s": copy_rate(device)}
    rates |= reduction_rates(inputs, device)

    print("\n" + table(results) + "\n")
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}")
    print(rate_lines(rates, results))
    machine["load_after"] = load_average()
    own = 0 if device.startswith("cuda") else machine["threads"]
    warn_if_busy(machine["load_after"], machine["cores"], own)
    settings = asdict(config) | {"dtype": str(dtype), "device": device}
    summary = {"task": "speed/logps", "settings": settings, "machine": machine}
    write_summary(config.out, summary | {"variants": results, "skipped": skipped, "rates": rates})


def check_config(config: SpeedLogpsConfig) -> None:
    for flag in ("rows", "width", "vocab", "repeats", "checked_rows"):
        if getattr(config, flag) < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {getattr(config, flag)}")
    if config.dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"--dtype expects float32 or bfloat16, got {config.dtype!r}")


def make_inputs(config: SpeedLogpsConfig, dtype: torch.dtype, device: str) -> Inputs:
    generator = torch.Generator(device=device).manual_seed(config.seed)
    options = {"generator": generator, "device": device}
    C, D, V = config.rows, config.width, config.vocab
    hidden = torch.randn(C, D, **options).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, **options) * (LOGIT_SPREAD / D**0.5)).to(dtype)
    targets = torch.randint(V, (C,), **options)
    return Inputs(hidden, weight, targets, torch.randn(C, **options))


# ------------------------------------------------------------------------------------------------
# the variants


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The definition, in float32 or wider from the logits on."""
    logits = F.linear(hidden, weight)  # (C, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return token_logps(hidden, weight, targets).logps


def torch_head(hidden: Tensor, weight: Tensor, targets: Tensor, options: Any = None) -> Tensor:
    loss = F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
    return -loss


def trl_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(F.linear(hidden, weight), targets)


def trl_chunked_head() -> Head:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as size

    # hidden, weight, bias, targets, temperature, chunk size; the first output is log_probs
    return lambda h, w, t: ChunkedLogProbFunction.apply(h, w, None, t, 1.0, size)[0]


def make_head(name: str) -> Head:
    """ImportError or AttributeError where this machine has no such variant."""
    if name == "torch":
        F.linear_cross_entropy  # noqa: B018 an AttributeError here, not in a turn
        return torch_head
    if name == "torch_chunked":
        options = torch.nn.LinearCrossEntropyOptions()
        return lambda h, w, t: torch_head(h, w, t, options)
    if name == "trl":
        import trl.trainer.utils  # noqa: F401

        return trl_head
    if name == "trl_chunked":
        return trl_chunked_head()
    return {"naive": naive, "ours": ours, "compiled": torch.compile(naive)}[name]


def bare_products(hidden: Tensor, weight: Tensor, with_gradient: bool) -> None:
    """The head's products in chunks as ours makes them: the logits', and the gradient's."""
    gradient = torch.empty_like(hidden) if with_gradient else None
    for rows, logits in chunks(hidden, weight, WORKSPACE_BYTES):
        if with_gradient:
            torch.mm(gradient_memory(logits, hidden.dtype), weight, out=gradient[rows])


def make_variants(names: list[str], inputs: Inputs) -> tuple[dict[str, Variant], dict[str, str]]:
    """Those that this machine has, and why it has not the others."""
    hidden, weight, targets, grad_logps = inputs
    variants, skipped = {}, {}

    def passes(head: Head) -> Variant:
        def forward() -> None:
            with torch.no_grad():
                head(hidden, weight, targets)

        def both() -> None:
            hidden.grad = None
            logps = head(hidden, weight, targets)
            logps.backward(grad_logps.to(logps.dtype))

        return Variant(forward, both, head)

    for name in names:
        if name == "bare":
            products = (partial(bare_products, hidden.detach(), weight, g) for g in (False, True))
            variants[name] = Variant(*products)
            continue
        try:
            variants[name] = passes(make_head(name))
        except (ImportError, AttributeError) as error:
            skipped[name] = str(error)
    return variants, skipped


# ------------------------------------------------------------------------------------------------
# measuring


def measure(
    config: SpeedLogpsConfig,
    variants: dict[str, Variant],
    skipped: dict[str, str],
    inputs: Inputs,
    device: str,
) -> dict[str, dict[str, Any]]:
    """{name: seconds forward and both, extra peak bytes, errors}; what fails goes to `skipped`."""
    results: dict[str, dict[str, Any]] = {}
    turns: dict[str, list[tuple[float, float]]] = {}
    for name, variant in variants.items():
        try:
            if name == "compiled":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    variant.forward(), variant.both()
            found = errors(variant, inputs, config.checked_rows)
            first = [seconds_of(variant.forward, device)]
            run = lambda v=variant, first=first: first.append(seconds_of(v.both, device))  # noqa: E731
            found["extra_peak_bytes"] = extra_peak_memory(run, device)
        except Exception as error:  # compilers fail in many ways: said, and left out
            if name == "ours":
                raise
            skipped[name] = (str(error).strip() or repr(error)).splitlines()[0]
            inputs.hidden.grad = None
            continue
        results[name] = found
        if sum(first) > config.patience:
            turns[name] = [tuple(first)]

    def turn(variant: Variant) -> tuple[float, float]:
        return seconds_of(variant.forward, device), seconds_of(variant.both, device)

    quick = {n: partial(turn, variants[n]) for n in results if n not in turns}
    turns |= take_turns(quick, config.repeats) if quick else {}
    for name, result in results.items():
        forward, both = zip(*turns[name], strict=True)
        result |= {"turns": len(both), "forward": spread(forward), "both": spread(both)}
    return results


def errors(variant: Variant, inputs: Inputs, rows: int) -> dict[str, float | None]:
    """Against the definition in float64 on the first rows; leaves no gradient behind."""
    hidden, weight, targets, grad_logps = inputs
    if variant.head is None:
        return {"logps_error": None, "gradient_error": None}
    part = hidden[:rows].detach().requires_grad_()
    logps = variant.head(part, weight, targets[:rows])
    logps.backward(grad_logps[:rows].to(logps.dtype))
    wide = hidden[:rows].detach().double().requires_grad_()
    truth = naive(wide, weight.double(), targets[:rows])
    truth.backward(grad_logps[:rows].double())
    difference = (part.grad.double() - wide.grad).norm() / wide.grad.norm()
    worst = (logps.double() - truth).abs().max()
    hidden.grad = None
    return {"logps_error": worst.item(), "gradient_error": difference.item()}


def reduction_rates(inputs: Inputs, device: str) -> dict[str, float]:
    """Bytes/s of what stands between ours' products, on one chunk of logits.

    Counted are the bytes that must move: each logit read once, and each gradient written once.
    """
    hidden, weight, targets, _ = inputs
    hidden = hidden.detach()
    rows, logits = next(iter(chunks(hidden, weight, WORKSPACE_BYTES)))
    stats, targets = empty_stats(hidden[rows]), targets[rows]
    gradient = gradient_memory(logits, hidden.dtype)
    read, written = (logits.numel() * x.dtype.itemsize for x in (logits, gradient))

    def rate(moved: int, gradient: Tensor | None) -> float:
        run = lambda: reduce_rows(logits, targets, stats, gradient, None, None, "auto")  # noqa: E731
        return moved / best_seconds(run, device)

    return {
        "reduction bytes/s": rate(read, None),
        "reduction and gradient bytes/s": rate(read + written, gradient),
    }


# ------------------------------------------------------------------------------------------------
# what is said of it


def head_flop(rows: int, width: int, vocab: int, products: int) -> int:
    """A product of (C, D) with (D, V), or of (C, V) with (V, D), takes 2 C D V."""
    return products * 2 * rows * width * vocab


def add_ratios(results: dict[str, dict[str, Any]], config: SpeedLogpsConfig) -> None:
    """Time over naive's and over the bare products', memory over naive's, FLOP/s of the least."""
    for result in results.values():
        median, memory = result["both"]["median"], result["extra_peak_bytes"]
        for name in ("naive", "bare"):
            other = results.get(name, {})
            result[f"time/{name}"] = over(median, other.get("both", {}).get("median"))
        result["memory/naive"] = over(memory, results.get("naive", {}).get("extra_peak_bytes"))
        result["flop_per_s"] = head_flop(config.rows, config.width, config.vocab, 2) / median


def table(results: dict[str, dict[str, Any]]) -> str:
    columns = ["head", "forward ms", "both ms", "quartiles", "/ naive", "/ bare", "extra MiB",
               "/ naive", "logp error", "gradient error", "GFLOP/s"]  # fmt: skip
    rows = []
    for name, r in results.items():
        both, memory = r["both"], None if name == "bare" else r["extra_peak_bytes"]
        rows.append([
            name,
            f"{1e3 * r['forward']['median']:.4g}",
            f"{1e3 * both['median']:.4g}",
            f"{1e3 * both['low']:.4g} to {1e3 * both['high']:.4g}",
            shown(r["time/naive"], "{:.2f}"),
            shown(r["time/bare"], "{:.2f}"),
            shown(over(memory, 2**20), "{:.0f}"),
            shown(None if memory is None else r["memory/naive"], "{:.2f}"),
            shown(r["logps_error"], "{:.0e}"),
            shown(r["gradient_error"], "{:.0e}"),
            f"{r['flop_per_s'] / 1e9:.4g}",
        ])  # fmt: skip
    return markdown_table(columns, rows)


def rate_lines(rates: dict[str, float], results: dict[str, dict[str, Any]]) -> str:
    matrix, copy = rates["matrix FLOP/s"], rates["copy bytes/s"]
    lines = [f"large square product {matrix / 1e9:.4g} GFLOP/s, large copy {copy / 1e9:.4g} GB/s"]
    for name in ("ours", "bare"):
        if name in results:
            share = results[name]["flop_per_s"] / matrix
            lines.append(f"{name}: two products at {share:.0%} of the large product's rate")
    for name in ("reduction bytes/s", "reduction and gradient bytes/s"):
        lines.append(f"ours, {name[:-8]}: {rates[name] / 1e9:.4g} GB/s, {rates[name] / copy:.0%}"
                     " of the copy's")  # fmt: skip
    return "\n".join(lines)
