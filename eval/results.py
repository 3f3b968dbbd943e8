"""What every evaluation leaves behind: numbers with their intervals, settings, items, a table.

    summary.json   every metric with its 95% interval over problems, and the settings
    items.jsonl    one problem a line: what was found there, and why
    values.json    of each metric that is a mean, the value of each problem

A metric is a value for each problem, whose mean is reported, or a `Statistic` that is no mean. Its
interval is Wilson's where it is a share and every value is 0 or 1, a basic bootstrap for a
statistic, and a percentile bootstrap otherwise.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.rows import read_rows
from eval.metrics import (
    basic_interval,
    bootstrap_interval,
    paired_difference,
    weighted_mean,
    wilson_interval,
)
from model.run import write_text

Values = Sequence[float] | Sequence[tuple[float, float]]  # per problem, with weights or without


@dataclass(frozen=True)
class Statistic:
    """A number that is no mean over problems, such as a calibration error."""

    rows: np.ndarray  # (N, ...) what it is computed from, one row per problem
    compute: Callable[[np.ndarray], float]  # any number of such rows -> the number
    least: float = -np.inf  # it cannot be smaller
    most: float = np.inf  # it cannot be larger

    def __len__(self) -> int:
        return len(self.rows)


Metrics = Mapping[str, Values | Statistic]
Row = dict[str, float]  # value, low, high
MANY = 30  # metrics of one kind: where there are more, the table only counts them
AMOUNTS = re.compile(
    r"words|tokens|(bytes|headers|lists|bold)/.*|logical|content|surface|reward.*|margin|input/ead"
    r"|(.*/)?(brier|nll|overconfidence)"
)  # names of metrics that are no shares, though their values may happen to be 0 and 1


def report(
    out: Path,
    task: str,
    settings: Mapping,
    items: Sequence[Mapping],
    metrics_of: Callable[[Sequence[Mapping]], Metrics],
    baseline: Metrics | None = None,
) -> dict[str, Row]:
    """Write the results of an evaluation and print its table; out: its metrics.

    settings: JSON, with `data_sha256`; metrics_of: items -> metrics; baseline: of `read_baseline`,
    for paired differences.
    """
    values = metrics_of(items)
    metrics = summarize(values) | differences(values, baseline or {})
    write_results(out, task, settings, items, metrics)
    write_values(out, values)
    print_table(metrics)
    print(f"{len(items)} problems, 95% intervals over problems; details in {out}")
    return metrics


def summarize(values: Metrics) -> dict[str, Row]:
    """name -> value, low, high."""
    return {name: interval_row(rows, name) for name, rows in values.items()}


def interval_row(values: Values | Statistic, name: str = "") -> Row:
    if isinstance(values, Statistic):
        value = values.compute(values.rows)
        low, high = basic_interval(values.rows, values.compute)
        low, high = np.clip([low, high], values.least, values.most).tolist()
    else:
        value = weighted_mean(values)
        share = not AMOUNTS.fullmatch(name) and np.ndim(values) == 1 and set(values) <= {0, 1}
        low, high = wilson_interval(values) if share else bootstrap_interval(values)
    return {"value": value, "low": low, "high": high}


def differences(values: Metrics, baseline: Metrics) -> dict[str, Row]:
    """Ours minus the baseline's, paired by problem, for each metric that both have."""
    result = {}
    for name, ours in values.items():
        theirs = baseline.get(name)
        if theirs is None or len(ours) != len(theirs):
            continue
        if isinstance(ours, Statistic):
            both = np.stack([ours.rows, theirs.rows], axis=1)  # (N, 2, ...), resampled together

            def difference(rows: np.ndarray, compute=ours.compute) -> float:
                return compute(rows[:, 0]) - compute(rows[:, 1])

            value = difference(both)
            low, high = basic_interval(both, difference)
        else:
            value, low, high = paired_difference(ours, theirs)
        result[f"{name} - baseline"] = {"value": value, "low": low, "high": high}
    return result


# ------------------------------------------------------------------------------------------------
# files


def read_results(folder: Path) -> tuple[dict, list[dict]]:
    """(summary, items) that an earlier run left in a folder."""
    for name in ("summary.json", "items.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"--baseline expects the results folder of an earlier run; {folder} has no {name}"
            )
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict) or not isinstance(summary.get("settings"), dict):
        raise ValueError(f"{folder / 'summary.json'}: expected the summary of an earlier run")
    return summary, [row for _, row in read_rows(folder / "items.jsonl")]


def read_baseline(
    folder: str | None,
    out: str | None,
    task: str,
    data_sha256: str,
    problems: int,
    metrics_of: Callable[[Sequence[Mapping]], Metrics],
    n: int | None = None,
) -> Metrics:
    """The metrics of an earlier run, none without a folder.

    out: where the new results go; n: completions of each problem, where there are any. Raises
    ValueError unless the earlier run is elsewhere and had the same task and problems, and as many
    completions where it says how many.
    """
    if folder is None:
        return {}
    refuse_results(out, folder, "--baseline")
    summary, items = read_results(Path(folder))
    here = (task, data_sha256, problems)
    there = (summary.get("task"), summary["settings"].get("data_sha256"), len(items))
    if here != there:
        raise ValueError(
            f"--baseline {folder}: expected results of {task} on the same problems "
            f"({problems} of --data), got {there[0]} on {there[2]}, or of another file"
        )
    if n is not None and (other := summary["settings"].get("n")) not in (None, n):
        raise ValueError(
            f"--baseline {folder}: expected {n} completions of each problem as here, got {other}; "
            "votes, calibration and distinct depend on how many there are: take as many of both"
        )
    try:
        return metrics_of(items)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        file = Path(folder) / "items.jsonl"
        raise ValueError(f"{file}: not the items of an earlier run: {error!r}") from error


def refuse_results(out: str | None, folder: str | Path, flag: str) -> None:
    """ValueError where an evaluation would overwrite the results that it reads."""
    if out is not None and Path(out).resolve() == Path(folder).resolve():
        raise ValueError(
            f"--out {out} is the folder of {flag}, whose results it would overwrite; pass another"
        )


def data_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder."""
    path, digest = Path(path), hashlib.sha256()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def json_digest(value: object) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_results(
    out: Path, task: str, settings: Mapping, items: Sequence[Mapping], metrics: Mapping
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    write_text(out / "items.jsonl", "".join(lines))
    summary = {"task": task, "settings": settings, "problems": len(items), "metrics": metrics}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_values(out: Path, values: Metrics) -> None:
    means = {name: rows for name, rows in values.items() if not isinstance(rows, Statistic)}
    text = json.dumps({name: np.asarray(rows).tolist() for name, rows in means.items()})
    write_text(out / "values.json", text + "\n")


def print_table(metrics: Mapping[str, Row]) -> None:
    """A line for each metric; of kinds with many (accuracy/SUBJECT), only how many they are."""
    kinds = Counter(name.partition("/")[0] for name in metrics if "/" in name)
    many = {kind: count for kind, count in kinds.items() if count > MANY}
    shown = {name: row for name, row in metrics.items() if name.partition("/")[0] not in many
             or "/" not in name}  # fmt: skip
    width = max(map(len, shown))
    print(f"{'':{width}}    value      low     high")
    for name, row in shown.items():
        print(f"{name:{width}}  {row['value']:7.4f}  {row['low']:7.4f}  {row['high']:7.4f}")
    for kind, count in many.items():
        print(f"{kind}/...: {count} in summary.json")
