"""What `eval.speed train` says of its turns: rates, ratios, the factors of the counted work.

Ratios are over the first variant, ours if it is among them. Each step counts by the median of its
seconds over the rounds; the first step of a process warms up and is not counted. CPU seconds are
those of all threads of the process: other programs lengthen them less than the time that passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.speed import device_name, installed, markdown_table, over, shown, spread
from eval.speed_work import LAYOUTS, Layout, Lengths, count_rows, total_flop, work_factors
from model.transformer import ModelConfig

AGREE = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of losses
PEAK_FLOP_PER_S = {  # dense bfloat16, from NVIDIA's data sheets (SXM)
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
PEERS = (("all_off", "ours"), ("trl", "ours"), ("trl_cached", "cached"))

Turn = dict[str, Any]  # what one process of eval.speed_step wrote
Results = dict[str, dict[str, Any]]  # variant -> its numbers


@dataclass(frozen=True)
class Run:
    """What the variants had in common."""

    model: ModelConfig
    rank: int  # of the adapters
    steps: Sequence[Lengths]  # of each step's pairs, the warm-up's first
    dtype: str
    device: str

    def dtype_of(self, variant: str) -> str:
        return "bfloat16" if variant == "bfloat16" else self.dtype

    def layout_of(self, variant: str) -> Layout:
        """trl's head takes all rows, but through Triton (on CUDA) the completions' alone."""
        compact = self.device.startswith("cuda") and installed("triton") is not None
        if variant.startswith("trl") and compact:
            return replace(LAYOUTS[variant], whole_head=False)
        return LAYOUTS[variant]


def summarize(run: Run, turns: Mapping[str, Sequence[Turn]]) -> Results:
    """{variant: its numbers}."""
    peaks = {}
    for name, some in turns.items():
        rates = [turn["matrix_rate"] for turn in some]
        dtype = run.dtype_of(name)
        peaks[dtype] = max([peaks.get(dtype, 0.0), *rates])
    results = {name: numbers(run, name, some, peaks) for name, some in turns.items()}
    first = next(iter(results))
    for name, result in results.items():
        compare(result, turns[name], results[first], turns[first], run.dtype_of(name))
    return results


def numbers(
    run: Run, name: str, turns: Sequence[Turn], measured: Mapping[str, float]
) -> dict[str, Any]:
    """Rates of one variant. measured: FLOP/s of a large product, by dtype."""
    layout, steps, dtype = run.layout_of(name), run.steps[1:], run.dtype_of(name)
    seconds = np.array([turn["seconds"][1:] for turn in turns])  # (turns, steps)
    total = float(np.median(seconds, axis=0).sum())
    flop = total_flop(run.model, steps, run.rank, layout)
    rows = [count_rows(step, layout) for step in steps]
    peak, source = peak_rate(dtype, run.device, measured[dtype])
    bytes_held = [turn["peak_bytes"] for turn in turns if turn["peak_bytes"] is not None]
    return {
        "seconds": spread(seconds.flatten()),
        "cpu_seconds": spread([s for turn in turns for s in turn["cpu_seconds"][1:]]),
        "pairs_per_s": sum(map(len, steps)) / total,
        "pair_tokens_per_s": sum(sum(map(sum, step)) for step in steps) / total,
        "tokens_per_s": sum(r.real for r in rows) / total,
        "rows_per_step": sum(r.blocks for r in rows) / len(rows),
        "head_rows_per_step": sum(r.head for r in rows) / len(rows),
        "flop_per_step": flop / len(steps),
        "flop_per_s": flop / total,
        "mfu": flop / total / peak,
        "peak_flop_per_s": peak,
        "peak_source": source,
        "peak_bytes": max(bytes_held, default=None),
        "memory": turns[0].get("memory"),
        "losses": turns[0]["losses"],
        "share_of_bare": share_of_bare(run, turns, layout),
    }


def peak_rate(dtype: str, device: str, measured: float) -> tuple[float, str]:
    """FLOP/s that a utilisation is a share of: the data sheet's, or else the best measured."""
    if device.startswith("cuda") and dtype == "bfloat16":
        name = device_name(device)
        for known, rate in PEAK_FLOP_PER_S.items():
            if known in name:
                return rate, "data sheet"
    return measured, "a large square product, measured"


def share_of_bare(run: Run, turns: Sequence[Turn], layout: Layout) -> float | None:
    """The last step's FLOP/s over that of its own products replayed bare (median over the turns).

    The products of attention run inside the library's kernel and are not replayed; in the step
    they are counted, as if they could run at the others' rate.
    """
    if "bare" not in turns[0]:
        return None
    flop = total_flop(run.model, run.steps[-1:], run.rank, layout)
    shares = [(flop / t["seconds"][-1]) / (t["bare"]["flop"] / t["bare"]["seconds"]) for t in turns]
    return float(np.median(shares))


def compare(
    result: dict[str, Any],
    turns: Sequence[Turn],
    first: dict[str, Any],
    first_turns: Sequence[Turn],
    dtype: str,
) -> None:
    """Add time, memory, work and losses over those of the first variant."""
    result["time_ratio"] = first["pairs_per_s"] / result["pairs_per_s"]
    result["memory_ratio"] = over(result["peak_bytes"], first["peak_bytes"])
    result["work_ratio"] = result["flop_per_step"] / first["flop_per_step"]
    result["efficiency_ratio"] = result["time_ratio"] / result["work_ratio"]
    losses, others = np.array(first_turns[0]["losses"]), np.array([t["losses"] for t in turns])
    result["loss_deviation"] = float((np.abs(others - losses) / np.abs(losses)).max())
    result["losses_agree"] = result["loss_deviation"] <= AGREE[dtype]


def break_down(run: Run, results: Results) -> dict[str, dict[str, float]]:
    """The factor in time of each peer over ours: padding x sharing x head x efficiency."""
    factors = {}
    for peer, ours in PEERS:
        if peer in results and ours in results:
            parts = work_factors(run.model, run.steps[1:], run.rank, run.layout_of(peer))
            work = float(np.prod(list(parts.values())))
            time = results[ours]["pairs_per_s"] / results[peer]["pairs_per_s"]
            parts |= {"efficiency": time / work}
            factors[f"{peer} / {ours}"] = {"time": time, "work": work, **parts}
    return factors


# ------------------------------------------------------------------------------------------------
# what is printed


def table(results: Results) -> str:
    columns = ["step", "s", "quartiles", "CPU s", "pairs/s", "pair tokens/s", "time", "work",
               "efficiency", "peak MiB", "memory", "GFLOP/s", "MFU", "loss deviation"]  # fmt: skip
    rows = []
    for name, r in results.items():
        s = r["seconds"]
        rows.append([
            name,
            f"{s['median']:.3g}",
            f"{s['low']:.3g} to {s['high']:.3g}",
            f"{r['cpu_seconds']['median']:.3g}",
            f"{r['pairs_per_s']:.3g}",
            f"{r['pair_tokens_per_s']:.4g}",
            f"{r['time_ratio']:.2f}",
            f"{r['work_ratio']:.2f}",
            f"{r['efficiency_ratio']:.2f}",
            shown(over(r["peak_bytes"], 2**20), "{:.0f}"),
            shown(r["memory_ratio"], "{:.2f}"),
            f"{r['flop_per_s'] / 1e9:.4g}",
            f"{r['mfu']:.0%}",
            f"{r['loss_deviation']:.0e}" + ("" if r["losses_agree"] else " !"),
        ])  # fmt: skip
    return markdown_table(columns, rows)


def notes(
    results: Results, factors: Mapping[str, Mapping[str, float]], skipped: Mapping[str, str]
) -> list[str]:
    """What the table has no room for."""
    first, r = next(iter(results.items()))
    rate = f"{r['peak_flop_per_s'] / 1e9:.4g} GFLOP/s ({r['peak_source']})"
    lines = [f"time, work, efficiency and memory over those of `{first}`; MFU over {rate}"]
    lines += [f"{name} is left out: {reason}" for name, reason in skipped.items()]
    for name, f in factors.items():
        parts = [f"{part} {f[part]:.2f}" for part in ("padding", "sharing", "head", "efficiency")]
        counted = f"counted work {f['work']:.2f}"
        lines.append(f"{name}: time {f['time']:.2f} = {' x '.join(parts)} ({counted})")
    for name, r in results.items():
        if not r["losses_agree"]:
            lines.append(f"warning: {name} has other losses than {first}: {r['losses']}")
        if name in ("ours", "bfloat16"):
            lines.append(f"{name}: {r['share_of_bare']:.0%} of its own products' rate bare")
            parts = [f"{part.replace('_', ' ')} {b / 2**20:.0f}" for part, b in r["memory"].items()]
            lines.append(f"{name}, MiB at the peak: {', '.join(parts)}")
    lines.append(
        f"largest deviation of a loss: {max(r['loss_deviation'] for r in results.values()):.0e}"
    )
    return lines
