r"""Which settings of which method are on the frontier of quality and diversity, and is it noise?

    python -m eval.pareto --runs runs.jsonl --quality gsm8k:pass@1 \
        --diversity diversity:input/cosine_distance --out runs/frontier

--runs has one row for each run that was evaluated:

    {"family": "spl", "label": "tau 1.2", "results": ["runs/spl-1.2-gsm8k", "runs/spl-1.2-div"]}
    {"family": "dpo + temperature", "label": "1.1", "results": ["runs/dpo-1.1-gsm8k", ...]}
    {"family": "dpo resampled", "label": "tau 1.2", "results": [...]}

A family is what is compared: SPL at every tau, DPO at every token temperature, DPO with min-p, DPO
with beta' = tau * beta, DPO resampled (eval/resample.py). A metric is looked up in whichever of the
run's results folders has it; TASK:NAME says which where several do. Rows with the same family and
label are the same setting from other training seeds: their mean counts.

A point dominates another that is nowhere better and somewhere worse. To tell what of this is noise,
the whole comparison is made 2000 times over, each time with problems drawn anew. All numbers that
were measured on the same file of problems (one `data_sha256` in summary.json) get the same draw, so
that what makes a problem hard for every setting cancels. Two tasks have draws of their own, even on
the same prompts. This takes the values of each problem (values.json). Where these are missing, or
all equal, which does not make the value certain, and for what is no mean over problems, the
summary's interval stands in: normal noise, above and below as wide as the interval is there,
independent of all else, which is too cautious where settings share problems. With several training
seeds, seeds are drawn anew too (fewer than five of them give too little noise).

OUT/frontier.json, and the tables, have

    on frontier    whether no point dominates this one, and the share of draws in which none does
    hypervolume    the area that a family dominates, above the reference point: the worst end of all
                   intervals unless it is given. Basic bootstrap, since noise enlarges the area;
                   more settings enlarge it too: give families as many
    dominates      the share of draws in which each point of the other family is dominated by one of
                   this family, or equalled; `dominated`: the other way around

and OUT/frontier.png and .svg are the picture (where matplotlib is there).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

from data.rows import check_text, read_rows
from eval.metrics import split_weights, weighted_mean
from eval.plots import draw_frontier, read_json, read_summary, save
from eval.results import Row, data_digest
from model.config import parse_config
from model.run import run_main, write_text

AXES = ("quality", "diversity")
DRAWS = 2000


@dataclass(frozen=True)
class ParetoConfig:
    runs: str | None = None  # .jsonl or .json file: family, label, results of each run
    quality: str | None = None  # metric, NAME or TASK:NAME
    diversity: str | None = None  # metric, NAME or TASK:NAME
    minimise: tuple[str, ...] = ()  # quality, diversity: of which of them less is better
    quality_label: str | None = None  # of the axis, with the unit; none: the metric's name
    diversity_label: str | None = None  # of the axis, with the unit; none: the metric's name
    reference_quality: float | None = None  # of the hypervolume; none: the worst end of an interval
    reference_diversity: float | None = None  # of the hypervolume; none: the worst such end
    seed: int = 0  # of the draws
    out: str | None = None  # folder for the results


@dataclass(frozen=True)
class Measured:
    """One metric of one run."""

    row: Row
    problems: str | None  # `data_sha256` of the summary: one file, one set of draws
    values: np.ndarray | None  # (N,) or, with weights, (N, 2); None: unknown or all equal


@dataclass(frozen=True)
class Point:
    """One setting. Numbers: the estimate, then DRAWS draws of it, (1 + DRAWS,)."""

    family: str
    label: str
    runs: int
    quality: np.ndarray
    diversity: np.ndarray


def main() -> None:
    config = parse_config(ParetoConfig)
    check_config(config)
    runs = read_runs(config)
    frontier = compare(make_points(runs, config.seed), config)
    settings = asdict(config) | {"runs_sha256": data_digest(config.runs)}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    result = {"task": "pareto", "settings": settings, "draws": count_draws(runs), **frontier}
    write_text(out / "frontier.json", json.dumps(result, indent=2) + "\n")
    print_tables(result)
    print(f"95% intervals; details in {out}")
    try:
        save(draw_frontier(frontier), out / "frontier")
    except ImportError as error:
        print(f"no picture: {error}")


# ------------------------------------------------------------------------------------------------
# runs -> points


def check_config(config: ParetoConfig) -> None:
    """ValueError or FileNotFoundError for flags that are missing or out of range."""
    if config.runs is None or not Path(config.runs).is_file():
        raise FileNotFoundError(f"--runs expects a file of runs, got {config.runs}")
    for axis in AXES:
        if getattr(config, axis) is None:
            raise ValueError(f"--{axis} expects the name of a metric, got none")
    if not set(config.minimise) <= set(AXES):
        raise ValueError(f"--minimise expects quality or diversity, got {config.minimise}")
    if config.seed < 0:
        raise ValueError(f"--seed expects 0 or more, got {config.seed}")
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")


def read_runs(config: ParetoConfig) -> dict[tuple[str, str], list[dict[str, Measured]]]:
    """(family, label) -> for each of its runs, axis -> what was measured."""
    runs: dict[tuple[str, str], list] = {}
    seen = set()
    for where, row in read_rows(Path(config.runs)):
        key = tuple(check_text(row.get(name), name, where) for name in ("family", "label"))
        folders = row.get("results")
        if not isinstance(folders, list) or not folders:
            raise ValueError(f"{where}: expected `results`, a list of results folders")
        folders = tuple(check_text(name, "results", where) for name in folders)
        if (key, folders) in seen:
            raise ValueError(f"{where}: the run stands there twice")
        seen.add((key, folders))
        run = {axis: find_metric(folders, getattr(config, axis), where) for axis in AXES}
        runs.setdefault(key, []).append(run)
    if not runs:
        raise ValueError(f"--runs {config.runs}: no run in it")
    return runs


def find_metric(folders: Sequence[str], name: str, where: str) -> Measured:
    """The metric NAME or TASK:NAME in the one of these folders that has it."""
    task, _, of_task = name.partition(":")
    found, known = [], []
    for folder in map(Path, folders):
        summary = read_summary(folder)
        metrics = summary["metrics"]
        known += [f"{summary.get('task')}:{metric}" for metric in metrics]
        metric = of_task if summary.get("task") == task and of_task in metrics else name
        if metric in metrics:
            found.append((folder, summary, metric))
    if len(found) != 1:
        count = "no folder" if not found else " and ".join(str(folder) for folder, *_ in found)
        raise ValueError(
            f"{where}: expected one folder with the metric {name}, got {count}; "
            f"there is {', '.join(known)}"
        )
    return read_measured(*found[0])


def read_measured(folder: Path, summary: Mapping, metric: str) -> Measured:
    row, settings = summary["metrics"][metric], summary.get("settings") or {}
    if not np.isfinite([row[key] for key in ("value", "low", "high")]).all():
        raise ValueError(f"{folder / 'summary.json'}: expected a finite {metric}, got {row}")
    file, values = folder / "values.json", None
    if file.is_file() and metric in (known := read_json(file, dict)):
        values = np.array(known[metric], dtype=np.float64)
        if not np.isclose(weighted_mean(values), row["value"], rtol=1e-9, atol=1e-12):
            raise ValueError(f"{file}: the values of {metric} are not those of summary.json")
        if np.ptp(split_weights(values)[0]) == 0:  # drawn anew they would have no noise
            values = None
    return Measured(row, settings.get("data_sha256"), values)


def make_points(runs: Mapping[tuple[str, str], Sequence], seed: int) -> list[Point]:
    """The mean over the runs of each setting; in each draw, over runs drawn with replacement.

    Settings with as many runs share their draws, so that a run in two families is one point.
    """
    points = []
    for (family, label), some in runs.items():
        S = len(some)
        picks = generator(seed, S).integers(S, size=(S, DRAWS))
        picks = np.hstack([np.arange(S)[:, None], picks])  # the estimate takes each run once
        means = {}
        for axis in AXES:
            numbers = np.stack([draw_numbers(run[axis], seed) for run in some])  # (S, 1 + DRAWS)
            means[axis] = np.take_along_axis(numbers, picks, axis=0).mean(axis=0)
        points.append(Point(family, label, S, **means))
    return points


def draw_numbers(measured: Measured, seed: int) -> np.ndarray:
    """(1 + DRAWS,) the estimate; then the mean over problems drawn anew, or normal noise around it.

    The sd of the noise above and below is such that 95% of the draws are in the interval: at its
    end, such as 10 right of 10, half of them are the value itself.
    """
    value, low, high = (measured.row[key] for key in ("value", "low", "high"))
    if measured.values is None:
        noise = generator(seed, measured.problems, value, low, high).standard_normal(DRAWS)
        sd = np.where(noise > 0, max(high - value, 0.0), max(value - low, 0.0)) / 1.96
        draws = value + sd * noise
    else:
        numbers, weights = split_weights(measured.values)
        counts = draw_problems(measured.problems, len(numbers), seed)
        draws = counts @ (numbers * weights) / (counts @ weights)
    return np.append(value, draws)


@cache
def draw_problems(problems: str | None, N: int, seed: int) -> np.ndarray:
    """(DRAWS, N) how often each problem is in each draw of N with replacement."""
    return generator(seed, problems, N).multinomial(N, np.full(N, 1 / N), size=DRAWS)


def generator(seed: int, *key: object) -> np.random.Generator:
    """The same key has the same draws."""
    return np.random.default_rng([seed, *hashlib.sha256(json.dumps(key).encode()).digest()])


def count_draws(runs: Mapping[tuple[str, str], Sequence]) -> dict[str, int]:
    """How many numbers there are, by how they are drawn."""
    measured = [run[axis] for some in runs.values() for run in some for axis in AXES]
    known = sum(one.values is not None for one in measured)
    return {"draws": DRAWS, "problems_resampled": known, "normal": len(measured) - known}


# ------------------------------------------------------------------------------------------------
# points -> the frontier


def compare(points: Sequence[Point], config: ParetoConfig) -> dict:
    """frontier.json, without what it was made from."""
    signs = {axis: -1 if axis in config.minimise else 1 for axis in AXES}
    x, y = (signs[axis] * np.stack([getattr(p, axis) for p in points]) for axis in AXES)
    corner = []  # more is better here: in x and y, (P, 1 + DRAWS), and in the corner
    for axis, numbers in zip(AXES, (x, y), strict=True):
        given = getattr(config, f"reference_{axis}")
        corner.append(worst_end(numbers) if given is None else signs[axis] * given)
    covers = cover(x, y)
    members: dict[str, list[int]] = {}
    for i, point in enumerate(points):
        members.setdefault(point.family, []).append(i)
    areas = {name: hypervolume(x[own], y[own], *corner) for name, own in members.items()}
    return {
        "axes": {axis: describe_axis(axis, config) for axis in AXES},
        "points": [describe_point(*pair) for pair in zip(points, ~dominated(covers), strict=True)],
        "reference": {axis: signs[axis] * end for axis, end in zip(AXES, corner, strict=True)},
        "families": {name: {"hypervolume": basic(area, least=0.0)} for name, area in areas.items()},
        "pairs": [
            {
                "family": a,
                "other": b,
                "dominates_share": share(better(covers, members[a], members[b])),
                "dominated_share": share(better(covers, members[b], members[a])),
                "hypervolume_difference": basic(areas[a] - areas[b]),
            }
            for a, b in combinations(members, 2)
        ],
    }


def describe_point(point: Point, on_frontier: np.ndarray) -> dict:
    about = {"family": point.family, "label": point.label, "runs": point.runs}
    about |= {axis: percentiles(getattr(point, axis)) for axis in AXES}
    return about | {"on_frontier": bool(on_frontier[0]), "frontier_share": share(on_frontier)}


def describe_axis(axis: str, config: ParetoConfig) -> dict:
    metric, label = getattr(config, axis), getattr(config, f"{axis}_label")
    return {"metric": metric, "label": label or metric, "minimise": axis in config.minimise}


def share(holds: np.ndarray) -> float:
    """Of the draws, (1 + DRAWS,) without the estimate, in which something holds."""
    return float(holds[1:].mean())


def cover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(P, P, D): whether point a is nowhere worse than point b; x, y: (P, D), more is better."""
    return (x[:, None] >= x) & (y[:, None] >= y)


def dominated(covers: np.ndarray) -> np.ndarray:
    """(P, D): whether a point covers this one that is not covered by it; equals do not dominate."""
    return (covers & ~covers.swapaxes(0, 1)).any(axis=0)


def better(covers: np.ndarray, A: Sequence[int], B: Sequence[int]) -> np.ndarray:
    """(D,): whether points A cover each of B, and not the other way around.

    "A is better than B", A ◁ B, of Zitzler et al. 2003.
    """
    over, under = covers[np.ix_(A, B)], covers[np.ix_(B, A)]
    return over.any(axis=0).all(axis=0) & ~under.any(axis=0).all(axis=0)


def hypervolume(x: np.ndarray, y: np.ndarray, least_x: float, least_y: float) -> np.ndarray:
    """(D,) the area above and to the right of (least_x, least_y) that points (P, D) dominate.

    Strips between one point's x and the next one's, as high as the highest point that far right.
    """
    order = np.argsort(-x, axis=0)
    x = np.take_along_axis(np.maximum(x, least_x), order, axis=0)
    y = np.take_along_axis(np.maximum(y, least_y), order, axis=0)
    heights = np.maximum.accumulate(y, axis=0) - least_y
    widths = -np.diff(x, axis=0, append=least_x)
    return (heights * widths).sum(axis=0)


def worst_end(numbers: np.ndarray) -> float:
    """The lowest end of the points' intervals, or the lowest estimate; numbers: (P, 1 + DRAWS)."""
    return float(min(np.quantile(numbers[:, 1:], 0.025, axis=1).min(), numbers[:, 0].min()))


def percentiles(numbers: np.ndarray) -> Row:
    """value, low, high of an estimate and its draws."""
    low, high = np.quantile(numbers[1:], [0.025, 0.975])
    return {"value": float(numbers[0]), "low": float(low), "high": float(high)}


def basic(numbers: np.ndarray, least: float = -np.inf) -> Row:
    """The same by the basic bootstrap, for what is no mean: see `eval.metrics.basic_interval`."""
    row = percentiles(numbers)
    low, high = (max(2 * row["value"] - row[end], least) for end in ("high", "low"))
    return {"value": row["value"], "low": low, "high": high}


# ------------------------------------------------------------------------------------------------
# tables


def print_tables(result: Mapping) -> None:
    axes, reference = result["axes"], result["reference"]
    for axis in AXES:
        less = ", less is better" if axes[axis]["minimise"] else ""
        print(f"{axis}: {axes[axis]['metric']}{less}; reference {reference[axis]:.4g}")
    points = [
        [p["family"], p["label"], str(p["runs"]), *(show(p[axis]) for axis in AXES),
         "yes" if p["on_frontier"] else "no", f"{p['frontier_share']:.3f}"]
        for p in result["points"]
    ]  # fmt: skip
    print_table(["family", "label", "runs", *AXES, "on frontier", "in draws"], points)
    areas = [[name, show(row["hypervolume"])] for name, row in result["families"].items()]
    print_table(["family", "hypervolume"], areas)
    if result["pairs"]:
        print_table(["family", "other", "dominates", "dominated", "hypervolume difference"], [
            [p["family"], p["other"], f"{p['dominates_share']:.3f}",
             f"{p['dominated_share']:.3f}", show(p["hypervolume_difference"])]
            for p in result["pairs"]
        ])  # fmt: skip
    draws = result["draws"]
    print(
        f"{draws['draws']} draws: problems drawn anew for {draws['problems_resampled']} numbers, "
        f"normal noise of the summary's interval for {draws['normal']}"
    )


def show(row: Row) -> str:
    return f"{row['value']:.4g} ({row['low']:.4g}, {row['high']:.4g})"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    print()
    for row in [head, *rows]:
        print("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    run_main(main)
