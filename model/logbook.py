"""What a run writes down: means over pairs and tokens, metrics.jsonl, the progress bar, tables."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.parallel import gather_json, is_main, max_over_ranks, sum_over_ranks
from model.run import peak_memory_gb, write_text

KEPT_MASS = 0.9  # of the reference's mass on closed pairs; below it there is a warning

Metrics = dict[str, Tensor | tuple[Tensor, Tensor]]  # {name: values (N,), or values and weights}


class Means:
    """Means over all elements that were added under a name, as sums and weights on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | int] = {}
        self.sent: tuple[Tensor, torch.cuda.Event | None] | None = None
        self.added: list[tuple[list[int], Metrics]] = []

    def add(self, metrics: Metrics, pair_ids: list[int]) -> None:
        """pair_ids: (B,) the pairs that the metrics are about."""
        self.added.append((pair_ids, metrics))
        for name, values in metrics.items():
            values, weights = values if isinstance(values, tuple) else (values, None)
            total = values.sum() if weights is None else (values * weights).sum()
            weight = values.numel() if weights is None else weights.sum()
            self.sums[name] = self.sums.get(name, 0.0) + total
            self.weights[name] = self.weights.get(name, 0) + weight

    def set(self, name: str, value: Tensor) -> None:
        """A number () that every rank has whole already."""
        device = next(iter(self.sums.values())).device
        self.sums[name], self.weights[name] = value.to(device), 1

    def reduce(self) -> None:
        """Take in what the other ranks have added, in one sum; every rank has the same names."""
        totals = sum_over_ranks(self.stack())
        self.sums = dict(zip(self.sums, totals[0], strict=True))
        self.weights = dict(zip(self.weights, totals[1], strict=True))

    def send(self) -> None:
        """Have the numbers brought to the host; what is added later is not read."""
        self.sent = self.to_host()

    def to_host(self) -> tuple[Tensor, torch.cuda.Event | None]:
        """The numbers in one piece, which are there when the event has come to pass."""
        both, event = self.stack(), None
        numbers = both.to("cpu", non_blocking=True)
        if both.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(both.device))
        return numbers, event

    def read(self) -> dict[str, float]:
        """{name: mean} of every name with an element."""
        if not self.sums:
            return {}
        numbers, event = self.sent or self.to_host()
        if event is not None:  # of what is queued behind them nothing is waited for
            event.synchronize()
        rows = zip(self.sums, *numbers.tolist(), strict=True)
        return {name: total / weight for name, total, weight in rows if weight}

    def stack(self) -> Tensor:
        """(2, names) float64: the sums, and the weights."""
        device = next(iter(self.sums.values())).device
        weights = [  # a number is filled in: to copy one would make the host wait for the device
            w if isinstance(w, Tensor) else torch.full((), float(w), device=device)
            for w in self.weights.values()
        ]
        both = torch.stack([v.double() for v in (*self.sums.values(), *weights)])
        return both.view(2, -1)

    def not_finite(self) -> Tensor:
        """1.0 where the loss or the gradient is no finite number, else 0.0, left on the device."""
        return 1.0 - (self.sums["loss"] + self.sums["grad_norm"]).isfinite().float()

    def broken_pairs(self) -> list[tuple[int, dict[str, float]]]:
        """(pair, its terms) of every pair of this rank with a term that is no finite number."""
        bad = []
        for pair_ids, metrics in self.added:
            plain = {name: v for name, v in metrics.items() if isinstance(v, Tensor)}
            per_pair = {name: v.tolist() for name, v in plain.items() if len(v) == len(pair_ids)}
            for row, pair in enumerate(pair_ids):
                terms = {name: values[row] for name, values in per_pair.items()}
                if not all(map(math.isfinite, terms.values())):
                    bad.append((pair, terms))
        return bad


@dataclass(frozen=True)
class Step:
    """What is known of a step when its work has been handed to the device."""

    number: int
    means: Means  # grad_norm among them
    lr: float
    tokens: int
    pairs: int


class StepLog:
    """One line of metrics.jsonl for each step; every rank keeps one, the first one writes.

    On CUDA a step is written when the next one has been handed over, so that the host never waits
    for numbers while the device has nothing else to do.
    """

    def __init__(self, file: Path, bar: tqdm, data: Sequence[Any], device: str) -> None:
        self.file, self.bar, self.data, self.device = file, bar, data, device
        self.waiting: Step | None = None
        self.since = time.perf_counter()

    def add(self, step: Step) -> None:
        step.means.send()
        self.flush()
        self.waiting = step
        if not self.device.startswith("cuda"):
            self.flush()

    def flush(self) -> None:
        """Write the step that waits; ValueError if its loss or gradient is no finite number."""
        step, self.waiting = self.waiting, None
        if step is None:
            return
        record = step.means.read()
        what = f"step {step.number}: loss {record['loss']}, gradient norm {record['grad_norm']}"
        check_finite(f"{what}; nothing was updated", record, step.means, self.data)
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        record |= {"lr": step.lr, "tokens_per_s": step.tokens / seconds}
        record |= {"pairs_per_s": step.pairs / seconds}
        record |= {"peak_memory_gb": max_over_ranks(peak_memory_gb(self.device))}
        write_record(self.file, {"step": step.number, **record})
        show(self.bar, record)

    def restart_clock(self) -> None:
        """An evaluation or a checkpoint that went before is not part of the next step's time."""
        self.since = time.perf_counter()


def check_finite(what: str, record: dict[str, float], means: Means, data: Sequence[Any]) -> None:
    """Stop at a loss or a gradient that is no number, naming the pairs; ValueError, on all ranks.

    record: the numbers that have to be finite, `loss` and perhaps `grad_norm`, among others.
    """
    if all(math.isfinite(record.get(name, 0.0)) for name in ("loss", "grad_norm")):
        return
    broken = [pair for rank in gather_json(means.broken_pairs()) for pair in rank]
    bad = [f"pair {i} ({data[i].source}): {terms}" for i, terms in broken]
    blamed = "; ".join(bad[:3]) or "every pair's own terms are finite"
    raise ValueError(
        f"{what}; {len(bad)} pairs: {blamed}. What was saved is untouched. Terms: {record}"
    )


def open_metrics(file: Path, step: int) -> Path:
    """Keep the records up to `step` alone, as a resumed run will write the later ones again.

    A run that starts writes all of them, that of its first evaluation at step 0 too.
    """
    kept = [record for record in read_records(file) if record["step"] <= step] if step else []
    if is_main():
        write_text(file, "".join(json.dumps(record) + "\n" for record in kept))
    return file


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Append a record; on the first rank alone."""
    if is_main():
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill has torn is left out."""
    lines = file.read_text().split("\n") if file.exists() else []
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(f"{file}:{number}: expected an object with a whole `step`")
        records.append(record)
    return records


# ------------------------------------------------------------------------------------------------
# what is shown

SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "chosen logp",
    "logps/rejected": "rejected logp",
    "entropy": "entropy",
    "guarded": "guarded",
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
