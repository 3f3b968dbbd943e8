"""What a run leaves and shows: config.json, metrics.jsonl, its means, and how it is interrupted."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import DTYPES
from model.config import to_json

KEPT_MASS = 0.9  # of the reference's mass on closed pairs; below it there is a warning
PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors")


def choose_device(device: str | None, dtype: str | None) -> tuple[str, torch.dtype]:
    """The device and the dtype of a run; a choice left to us is printed with its reason."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reason = "a GPU is there" if device == "cuda" else "torch sees no GPU"
        print(f"device: {device} ({reason})")
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("it is neither cpu nor cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {reason}") from None
    if dtype is None:
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
        print(f"dtype: {dtype} (the default on {device})")
    return device, DTYPES[dtype]


def choose_out_dir(asked: str | None, name: str, resume: bool, inputs: Sequence[str]) -> Path:
    """The run folder: the one that was asked for, or a new one under runs/, numbered where taken.

    Raises ValueError for a folder that holds a run already, unless it is to be resumed, and for
    the folder of an input, whose config.json the run's own would overwrite.
    """
    if asked is None:
        number, out_dir = 1, Path("runs") / name
        while out_dir.exists():
            number += 1
            out_dir = Path("runs") / f"{name}-{number}"
        return out_dir
    out_dir = Path(asked)
    folders = {Path(p).resolve() if Path(p).is_dir() else Path(p).resolve().parent for p in inputs}
    if out_dir.resolve() in folders:
        raise ValueError(f"--out_dir {out_dir} is the folder of an input; pass another folder")
    if (out_dir / "metrics.jsonl").exists() and not resume:
        raise ValueError(f"--out_dir {out_dir} holds a run; pass --resume or another folder")
    return out_dir


def write_run_config(config: Any, out_dir: Path) -> None:
    """config.json: every field, and how the run was started (names with an underscore)."""
    about = {
        "_argv": sys.argv,
        "_commit": git_commit(),
        "_python": sys.version.split()[0],
        "_versions": {name: version(name) for name in PACKAGES},
        "_threads": torch.get_num_threads(),
    }
    text = json.dumps({**to_json(config), **about}, indent=2)
    (out_dir / "config.json").write_text(text + "\n")


def git_commit() -> str | None:
    """The commit of this code, with a plus sign where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ------------------------------------------------------------------------------------------------
# metrics


class Means:
    """Means over all elements that were added under a name, as sums and counts."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.added: list[tuple[list[int], dict[str, Tensor]]] = []

    def add(self, metrics: dict[str, Tensor], pair_ids: list[int]) -> None:
        """metrics: {name: (N,)}; pair_ids: (B,) the pairs they are about."""
        self.added.append((pair_ids, metrics))
        for name, values in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.sum()
            self.counts[name] = self.counts.get(name, 0) + values.numel()

    def read(self) -> dict[str, float]:
        """{name: mean} of every name with an element, brought to the host in one piece."""
        names = [name for name, count in self.counts.items() if count]
        if not names:
            return {}
        sums = torch.stack([self.sums[name].float() for name in names]).tolist()
        return {name: total / self.counts[name] for name, total in zip(names, sums, strict=True)}

    def non_finite(self) -> list[tuple[int, dict[str, float]]]:
        """(pair, its terms) of every pair with a term that is not a finite number."""
        bad = []
        for pair_ids, metrics in self.added:
            per_pair = {name: v for name, v in metrics.items() if v.numel() == len(pair_ids)}
            for row, pair in enumerate(pair_ids):
                terms = {name: values[row].item() for name, values in per_pair.items()}
                if not all(torch.tensor(list(terms.values())).isfinite()):
                    bad.append((pair, terms))
        return bad

    def check_finite(
        self, step: int, record: dict[str, float], grad_norm: float, pairs: Sequence[Any]
    ) -> None:
        """Stop before the optimiser takes a step from a loss or a gradient that is no number."""
        if math.isfinite(record["loss"]) and math.isfinite(grad_norm):
            return
        bad = [f"pair {i} ({pairs[i].source}): {terms}" for i, terms in self.non_finite()]
        blamed = "; ".join(bad[:3]) or "every pair's own terms are finite"
        raise ValueError(
            f"step {step}: loss {record['loss']}, gradient norm {grad_norm}; nothing was updated, "
            f"and what was saved is untouched. {len(bad)} pairs: {blamed}. Terms: {record}"
        )


def open_metrics(file: Path, step: int) -> Path:
    """Keep the records up to `step` alone, as a resumed run will write the later ones again."""
    kept = [record for record in read_records(file) if record["step"] <= step]
    file.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return file


def write_record(file: Path, record: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill has torn is left out."""
    lines = file.read_text().split("\n") if file.exists() else []
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error}") from None
    return records


def peak_memory_gb(device: str) -> float:
    """The most memory this process has held on the device so far, in 10^9 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ------------------------------------------------------------------------------------------------
# what is shown

SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "chosen logp",
    "logps/rejected": "rejected logp",
    "entropy": "entropy",
    "mass/policy": "answer mass",
}


def show(bar: tqdm, record: dict[str, float]) -> None:
    """Loss, accuracy, margin and speed behind the progress bar."""
    fields = {"loss": record["loss"]}
    if "rewards/margins" in record:
        fields |= {"acc": record["rewards/accuracies"], "margin": record["rewards/margins"]}
    fields["pairs/s"] = record["pairs_per_s"]
    bar.set_postfix({name: f"{value:.3g}" for name, value in fields.items()})


def evaluation_line(record: dict[str, float]) -> str:
    named = {title: record.get(f"eval/{name}") for name, title in SHOWN.items()}
    values = [f"{title} {value:.3f}" for title, value in named.items() if value is not None]
    return f"step {record['step']:4d} held-out: " + ", ".join(values)


def before_and_after(first: dict[str, float], last: dict[str, float]) -> str:
    """A table of two evaluations, and a warning where the answers of closed pairs lose mass."""
    lines = [f"{'held-out pairs':<15}{'step ' + str(first['step']):>12}"
             f"{'step ' + str(last['step']):>12}"]  # fmt: skip
    for name, title in SHOWN.items():
        if f"eval/{name}" in last:
            values = (first[f"eval/{name}"], last[f"eval/{name}"])
            lines.append(f"{title:<15}" + "".join(f"{value:>12.4f}" for value in values))
    before, after = last.get("eval/mass/reference"), last.get("eval/mass/policy")
    if before is not None and after < KEPT_MASS * before:
        lines.append(
            f"warning: the two answers of closed pairs held {before:.3f} of the reference's "
            f"probability and hold {after:.3f} of the policy's: mass drains to answers that no "
            "pair speaks of. Lower --learning_rate, raise --beta, or add --sft_weight."
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------
# interrupts


class Interrupt:
    """The first Ctrl-C asks the loop to finish its step; the second stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.previous = signal.signal(signal.SIGINT, self.handle)

    def restore(self) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self.restore()
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")
