"""How fast is it, side by side with what others do, and how much memory does it take?

    python -m eval.speed logps                      the head: hidden states -> log-probabilities
    python -m eval.speed logps --rows 8192 --width 4096 --vocab 128256 --device cuda
    python -m eval.speed train                      training steps, ours and those of trl
    python -m eval.speed train --model DIR --data PAIRS.jsonl --threads 2 --out runs/speed-train
    python -m eval.speed generate                   completions, ours and those of transformers
    python -m eval.speed generate --model DIR --mixed 64
    python -m eval.speed choices --model DIR --data mmlu/test --dev mmlu/dev      beside lm-eval

The first word is the question; `python -m eval.speed logps --help` lists its options. All variants
run in one command and take turns (A B C, B C A, ...), so that noise hits all alike; what is
reported is a median over the turns. OUT/summary.json holds all that is printed, and more.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from model.run import git_commit, one_gpu, run_main

QUESTIONS = ("logps", "train", "generate", "choices")
PACKAGES = ("torch", "triton", "trl", "transformers", "peft", "accelerate", "lm_eval")
BUSY = 0.25  # load of other programs, per core, from which on a machine is called busy
SLOW = 5e9  # FLOP/s of a dtype that a device emulates

Result = TypeVar("Result")


def main() -> None:
    question, *words = sys.argv[1:] or [""]
    if question in ("--help", "-h"):
        print(__doc__)
    elif question == "logps":
        from eval import speed_logps  # here, as it imports the tools below

        speed_logps.main(words)
    elif question == "train":
        from eval import speed_train

        speed_train.main(words)
    elif question == "generate":
        from eval import speed_generate

        speed_generate.main(words)
    elif question == "choices":
        from eval import speed_choices

        speed_choices.main(words)
    else:
        known = " or ".join(QUESTIONS)
        raise ValueError(f"expected a question, {known}, got {question!r}; see --help")


# ------------------------------------------------------------------------------------------------
# turns and time


def take_turns(variants: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list]:
    """{name: its results}: every variant once a round, each round beginning with the next one."""
    names = list(variants)
    results: dict[str, list] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(variants[name]())
    return results


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """How long one call takes: by events on CUDA, by the clock elsewhere."""
    if not device.startswith("cuda"):
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    torch.cuda.synchronize(device)
    begin.record(stream)
    run()
    end.record(stream)
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def run_module(module: str, words: Sequence[str], threads: int | None, device: str) -> str | None:
    """`python -m module words` in a fresh process; out: the last line of its complaint, if any.

    device: of which a GPU is the only one that the process sees, its `cuda`; others would take all.
    """
    pinned = {} if threads is None else {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment = os.environ | {name: str(value) for name, value in pinned.items()}
    if device.startswith("cuda"):
        environment |= one_gpu(torch.device(device).index or 0)
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def best_seconds(run: Callable[[], Any], device: str, repeats: int = 5) -> float:
    """Of one call, the shortest of some: for a rate that is a bound. One more call warms up.

    On CUDA ten calls are timed together, so that launching one hides behind the one before.
    """
    calls = 10 if device.startswith("cuda") else 1

    def burst() -> None:
        for _ in range(calls):
            run()

    run()
    return min(seconds_of(burst, device) for _ in range(repeats)) / calls


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large square product: 2 n^3 for n rows; a slow device gets a smaller one."""
    rate = 0.0
    for n in (256, 8192 if device.startswith("cuda") else 1024):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rate = 2 * n**3 / best_seconds(partial(torch.mm, a, b, out=torch.empty_like(a)), device, 3)
        if rate < SLOW:
            break
    return rate


def copy_rate(device: str) -> float:
    """Bytes/s of a large copy, read and written bytes both counted."""
    size = 2**30 if device.startswith("cuda") else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device)


# ------------------------------------------------------------------------------------------------
# memory


def extra_peak_memory(run: Callable[[], Any], device: str) -> int | None:
    """Bytes that one call takes at its peak beyond those held before; None where none can tell."""
    before = begin_peak(device)
    run()
    peak = peak_bytes(device)
    return None if before is None or peak is None else peak - before


def begin_peak(device: str) -> int | None:
    """Bytes held now; the peak counts from here.

    On CUDA the allocator's bytes. Elsewhere the resident pages of the process, whose maximum Linux
    lets it reset; None where there is no such thing.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return resident_bytes("VmRSS") if reset_peak_memory() else None


def peak_bytes(device: str) -> int | None:
    """The most bytes held since `begin_peak`."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes("VmHWM")


def reset_peak_memory() -> bool:
    """Give free heap pages back and begin VmHWM anew; False where the system has no such thing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def resident_bytes(field: str) -> int | None:
    """VmRSS (now) or VmHWM (at the peak) of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None  # "VmHWM:  1234 kB"


# ------------------------------------------------------------------------------------------------
# the machine


def pin_threads(threads: int | None) -> None:
    """All products of this process on so many threads; None: one for each core."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads expects 1 or more, got {threads}")
    torch.set_num_threads(threads or os.cpu_count() or 1)


def describe_machine(device: str, command: str) -> dict[str, Any]:
    """What a number depends on beside the code: device, cores, threads, versions, load."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": sys.version.split()[0],
        "versions": {name: v for name in PACKAGES if (v := installed(name)) is not None},
        "commit": git_commit(),
        "command": command,
        "load_before": load_average(),
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_average() -> float | None:
    """Programs that want a core, on average over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def header(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['date'][:10]}, {machine['device']} ({machine['cpu_capability']}), "
        f"{machine['cores']} cores, {machine['threads']} threads, load {machine['load_before']}, "
        f"{versions}, commit {machine['commit']}\n`{machine['command']}`\n"
    )


def warn_if_busy(load: float | None, cores: int, own: int = 0) -> None:
    """own: threads of ours that the load counts."""
    if load is not None and load - own > BUSY * cores:
        print(f"warning: the machine is busy: load {load} on {cores} cores, of it ours {own}; "
              "times are too long, ratios are noisy")  # fmt: skip


# ------------------------------------------------------------------------------------------------
# what is printed and written


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can be pasted into a README: names to the left, numbers to the right."""
    widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return (
            "| " + " | ".join([f"{first[0]:<{first[1]}}", *(f"{c:>{w}}" for c, w in others)]) + " |"
        )

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(columns), rule, *(line(row) for row in rows)])


def shown(value: float | None, pattern: str = "{:.3g}") -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else pattern.format(value)


def over(value: float | None, other: float | None) -> float | None:
    """The ratio of two numbers; None where one is missing."""
    return value / other if value is not None and other else None


def choose_variants(known: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The variants asked for, in our order; ValueError names one that there is not."""
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        raise ValueError(f"--only expects some of {' '.join(known)}, got {' '.join(unknown)}")
    return [name for name in known if only is None or name in only]


def write_summary(out: str | Path, summary: Mapping[str, Any]) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"\ndetails in {folder / 'summary.json'}")


if __name__ == "__main__":
    run_main(main)
