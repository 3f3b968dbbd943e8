r"""Results as pictures, each a PNG and an SVG: a frontier, reliability diagrams, pass@k curves.

    python -m eval.plots --kind frontier --results runs/frontier --out frontier
    python -m eval.plots --kind pass_at_k --results runs/dpo-gsm8k runs/spl-gsm8k \
        --labels DPO SPL --metric pass@k/hard --out pass_at_k
    python -m eval.plots --kind reliability --results runs/dpo-mmlu runs/spl-mmlu --out reliability

What is drawn stands in the results folders: frontier.json of eval.pareto, the summary's `name@k`,
reliability.json beside the summary's `ece` (eval.truthfulqa's: `letters/ece`). Needs matplotlib.

Runs differ by marker and line as well as by colour (those of Okabe and Ito 2008, which the
colour-blind can tell apart), so that a grey copy says the same. Text has 9 points where the picture
is printed at its own width, and stays text in the SVG. The same numbers give the same bytes, under
the same matplotlib.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.config import parse_config
from model.flags import refuse_given
from model.run import run_main

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

KINDS = ("frontier", "reliability", "pass_at_k")
PANELS = 4  # reliability diagrams side by side: more are too small to read
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
CORNERS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))  # of a point
NEAR = 9  # pixels: a label this near to a point would be taken for its own
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "results",  # else the ids in an SVG are drawn at random
}


@dataclass(frozen=True)
class PlotsConfig:
    kind: str | None = None  # frontier, reliability or pass_at_k
    results: tuple[str, ...] = ()  # results folders, in the order of the legend
    labels: tuple[str, ...] = ()  # what they are called; none: the folders' names
    metric: str = "pass@k"  # of pass_at_k: also pass@k/hard, strict@k, floor@k, ...
    out: str | None = None  # path of the pictures; .png and .svg are added


def main() -> None:
    config = parse_config(PlotsConfig)
    check_config(config)
    folders = [Path(folder) for folder in config.results]
    labels = config.labels or [folder.resolve().name for folder in folders]
    if config.kind == "frontier":
        frontier = read_json(file := folders[0] / "frontier.json", dict)
        try:
            figure = draw_frontier(frontier)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: not a frontier.json of eval.pareto: {error!r}") from error
    elif config.kind == "reliability":
        figure = draw_reliability([read_reliability(f) for f in folders], labels)
    else:
        curves = [read_curve(folder, config.metric) for folder in folders]
        figure = draw_pass_at_k(curves, labels, config.metric)
    for file in save(figure, config.out):
        print(file)


def check_config(config: PlotsConfig) -> None:
    """ValueError for flags that are missing or contradict each other."""
    if config.kind not in KINDS:
        raise ValueError(f"--kind expects one of {', '.join(KINDS)}, got {config.kind}")
    if not config.results or (config.kind == "frontier" and len(config.results) > 1):
        expected = "one results folder" if config.kind == "frontier" else "results folders"
        raise ValueError(f"--results expects {expected}, got {len(config.results)}")
    if config.kind == "reliability" and len(config.results) > PANELS:
        raise ValueError(
            f"--results expects at most {PANELS} folders for a row of diagrams, got "
            f"{len(config.results)}; draw several pictures"
        )
    if config.labels and len(config.labels) != len(config.results):
        raise ValueError(
            f"--labels expects one for each of {len(config.results)} results, "
            f"got {len(config.labels)}"
        )
    if config.kind != "pass_at_k":
        refuse_given(config, ("metric",), f"with --kind {config.kind}")
    if config.kind == "frontier":
        refuse_given(config, ("labels",), "with --kind frontier, whose points have their own")
    if config.out is None:
        raise ValueError("--out expects the path of the pictures, got none")


# ------------------------------------------------------------------------------------------------
# results


def read_json(file: Path, kind: type) -> Any:
    """A JSON file that holds an object (dict) or a list."""
    if not file.is_file():
        raise FileNotFoundError(f"expected a results folder with {file.name}; {file} is not there")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{file}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def read_summary(folder: Path) -> dict:
    """summary.json of a results folder, with its metrics."""
    summary = read_json(folder / "summary.json", dict)
    metrics, ends = summary.get("metrics"), ("value", "low", "high")
    if not isinstance(metrics, dict) or not all(
        isinstance(row, dict) and all(type(row.get(end)) in (int, float) for end in ends)
        for row in metrics.values()
    ):
        raise ValueError(f"{folder / 'summary.json'}: expected `metrics` with value, low and high")
    return summary


def read_curve(folder: Path, metric: str) -> list[tuple[int, float, float, float]]:
    """(k, value, low, high) by k, of the summary's metrics that `metric` names, such as pass@k."""
    pattern = re.compile(re.escape(metric).replace("@k", r"@(\d+)"))
    metrics = read_summary(folder)["metrics"]
    found = [(pattern.fullmatch(name), row) for name, row in metrics.items()]
    curve = [(int(match[1]), row["value"], row["low"], row["high"])
             for match, row in found if match and "@k" in metric]  # fmt: skip
    if not curve:
        raise ValueError(f"{folder / 'summary.json'}: no metric like --metric {metric}; it has "
                         f"{', '.join(metrics)}")  # fmt: skip
    return sorted(curve)


def read_reliability(folder: Path) -> tuple[list[dict], Mapping]:
    """(bins that hold a question, the summary's ECE of them) of a results folder."""
    file = folder / "reliability.json"
    keys = {"low", "high", "count", "confidence", "accuracy", "accuracy_low", "accuracy_high"}
    bins = read_json(file, list)
    if not all(isinstance(row, dict) and keys <= set(row) for row in bins):
        raise ValueError(f"{file}: expected a list of bins with {', '.join(sorted(keys))}")
    metrics = read_summary(folder)["metrics"]
    found = metrics.get("ece") or metrics.get("letters/ece")
    if found is None:
        raise ValueError(f"{folder / 'summary.json'}: no metric `ece` in it")
    return [row for row in bins if row["count"]], found


# ------------------------------------------------------------------------------------------------
# pictures


@contextmanager
def style() -> "Iterator[type[Figure]]":
    """matplotlib's own defaults and STYLE, whatever the user has set; gives its Figure."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need the package matplotlib: pip install matplotlib") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure


def save(figure: "Figure", out: str | Path) -> list[Path]:
    """OUT.png and OUT.svg, without dates or versions."""
    out = Path(out)
    out = out.with_suffix("") if out.suffix in (".png", ".svg") else out
    out.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        file = out.with_name(f"{out.name}.{suffix}")
        partial = file.with_name(file.name + ".partial")
        with style():
            figure.savefig(partial, format=suffix, metadata=metadata)
        figure.set_layout_engine("none")  # what the first has laid out is good for the second
        files.append(partial.replace(file))
    return files


def look(i: int) -> dict[str, str]:
    """How the i-th run looks: 8 differ in the marker alone, 28 in colour and line."""
    shape = {"marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}
    return {"color": COLOURS[i % len(COLOURS)], **shape}


def draw_pass_at_k(
    curves: Sequence[Sequence[tuple[int, float, float, float]]],
    labels: Sequence[str],
    metric: str = "pass@k",
) -> "Figure":
    """A line with its 95% band for each curve of (k, value, low, high)."""
    with style() as Figure:
        figure = Figure(figsize=(4.5, 3.4))
        axes = figure.add_subplot()
        for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            k, value, low, high = np.array(curve).T
            axes.plot(k, value, **look(i), label=label)
            axes.fill_between(k, low, high, color=look(i)["color"], alpha=0.15, linewidth=0)
        ticks = sorted({point[0] for curve in curves for point in curve})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k, completions per problem")
        axes.set_ylabel(f"{metric} (fraction of problems)")
        add_legend(figure)
        return figure


def add_legend(figure: "Figure") -> None:
    """Beneath the axes, in as many columns, up to three, as the figure is wide enough for."""
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        if legend.get_window_extent().width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def draw_reliability(
    tables: Sequence[tuple[Sequence[Mapping], Mapping]], labels: Sequence[str]
) -> "Figure":
    """A diagram for each (bins, ece), their counts beneath."""
    with style() as Figure:
        figure = Figure(figsize=(max(3.4, 1.75 * len(tables)), 3.8))
        grid = {"sharex": True, "sharey": "row", "squeeze": False, "height_ratios": (3, 1)}
        upper, lower = figure.subplots(2, len(tables), **grid)
        for i, ((bins, ece), label) in enumerate(zip(tables, labels, strict=True)):
            draw_bins(upper[i], lower[i], bins, look(i))
            interval = f"({ece['low']:.3f}, {ece['high']:.3f})"
            upper[i].set_title(f"{label}\nECE {ece['value']:.3f}\n{interval}")
        upper[0].set_ylabel("accuracy (fraction right)")
        lower[0].set_ylabel("questions")
        figure.supxlabel("confidence (probability of the answer)", fontsize=9)
        return figure


def draw_bins(upper: "Axes", lower: "Axes", bins: Sequence[Mapping], look: Mapping) -> None:
    column = {key: np.array([row[key] for row in bins], dtype=float) for key in bins[0]}
    accuracy = column["accuracy"]
    error = [accuracy - column["accuracy_low"], column["accuracy_high"] - accuracy]
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8)
    bars = {"linewidth": 0.8, "capsize": 2}
    upper.errorbar(column["confidence"], accuracy, np.maximum(error, 0), **bars, **look)
    upper.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    upper.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    width = column["high"] - column["low"]
    lower.bar(column["low"], column["count"], width, align="edge", color="#bbbbbb", edgecolor=GREY)


# ------------------------------------------------------------------------------------------------
# the frontier


def draw_frontier(frontier: Mapping) -> "Figure":
    """Every setting with its intervals, joined by family, and the frontier as a staircase.

    frontier: of eval.pareto. Better is up and to the right; what is on the frontier is filled.
    """
    points, names = frontier["points"], list(dict.fromkeys(p["family"] for p in frontier["points"]))
    with style() as Figure:
        figure = Figure(figsize=(5.5, 4.6))
        axes = figure.add_subplot()
        for i, family in enumerate(names):
            draw_family(axes, family, [p for p in points if p["family"] == family], look(i))
        draw_staircase(axes, frontier)
        for axis, place in (("diversity", axes.xaxis), ("quality", axes.yaxis)):
            about = frontier["axes"][axis]
            place.set_label_text(about["label"] + about["minimise"] * " (less is better)")
            place.set_inverted(about["minimise"])
        add_legend(figure)
        place_labels(axes, points)
        return figure


def draw_family(axes: "Axes", family: str, points: Sequence[Mapping], look: Mapping) -> None:
    (x, dx), (y, dy) = (coordinates(points, axis) for axis in ("diversity", "quality"))
    bars = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.7, "alpha": 0.6}
    axes.errorbar(x, y, dy, dx, **bars)
    axes.plot(x, y, **look, linewidth=0.8, label=family)
    hollow = [i for i, point in enumerate(points) if not point["on_frontier"]]
    axes.plot(x[hollow], y[hollow], **look | {"linestyle": "none"}, markerfacecolor="white")


def coordinates(points: Sequence[Mapping], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(P,) values and (2, P), how far the interval reaches below and above them."""
    rows = [(p[axis]["value"], p[axis]["low"], p[axis]["high"]) for p in points]
    value, low, high = np.array(rows, dtype=float).T
    return value, np.maximum([value - low, high - value], 0)


def draw_staircase(axes: "Axes", frontier: Mapping) -> None:
    """The edge of what the frontier's points dominate, down to the reference point."""
    best = [point for point in frontier["points"] if point["on_frontier"]]
    sign = -1 if frontier["axes"]["diversity"]["minimise"] else 1
    best.sort(key=lambda point: sign * point["diversity"]["value"])
    (x, _), (y, _) = (coordinates(best, axis) for axis in ("diversity", "quality"))
    x = [frontier["reference"]["diversity"], *x, x[-1]]
    y = [y[0], *y, frontier["reference"]["quality"]]
    stairs = {"color": "#bbbbbb", "linewidth": 2.5, "zorder": 1}
    axes.step(x, y, where="pre", label="frontier (its points are filled)", **stairs)


def place_labels(axes: "Axes", points: Sequence[Mapping]) -> None:
    """Each label at the corner of its point where it covers the fewest lines, or not at all.

    It touches no other label, stays inside the axes, and near no point but its own; points on the
    frontier choose first. A label that finds no place is left out: the table has it.
    """
    axes.figure.draw_without_rendering()  # the layout, and with it where things are
    at, ink = (axes.transData.transform(some) for some in (places(points), lines(points)))
    labels = np.empty((0, 4))  # left, bottom, right, top
    for i in sorted(range(len(points)), key=lambda i: not points[i]["on_frontier"]):
        others = at[(at != at[i]).any(axis=1)]  # a run in two families has two labels
        taken = np.vstack([np.hstack([others - NEAR, others + NEAR]), labels])
        text = axes.annotate(
            points[i]["label"], places(points)[i], (0, 0), textcoords="offset points"
        )
        free = []
        for corner in CORNERS:
            set_corner(text, *corner)
            box = text.get_window_extent().extents
            if inside(box, axes.bbox.extents) and not touch(box, taken).any():
                free.append((touch(box, np.hstack([ink, ink])).sum(), len(free), corner, box))
        if free:
            *_, corner, box = min(free, key=lambda place: place[:2])
            set_corner(text, *corner)
            text.set_in_layout(False)
            labels = np.vstack([labels, box])
        else:
            text.remove()


def places(points: Sequence[Mapping]) -> np.ndarray:
    """(P, 2)"""
    return np.stack([coordinates(points, axis)[0] for axis in ("diversity", "quality")], axis=1)


def lines(points: Sequence[Mapping]) -> np.ndarray:
    """(M, 2) places along the points' bars and the lines between points of a family."""
    segments = []
    for one, after in zip(points, [*points[1:], None], strict=True):
        x, y = one["diversity"], one["quality"]
        segments.append([(x["low"], y["value"]), (x["high"], y["value"])])
        segments.append([(x["value"], y["low"]), (x["value"], y["high"])])
        if after is not None and after["family"] == one["family"]:
            segments.append(places([one, after]))
    start, end = np.array(segments, dtype=float).swapaxes(0, 1)[:, :, None]  # (S, 1, 2) each
    return (start + np.linspace(0, 1, 40)[:, None] * (end - start)).reshape(-1, 2)


def set_corner(text: "Annotation", right: int, up: int) -> None:
    """Some points away from its point, to the right (1) or left (-1), above (1) or below (-1)."""
    away = 4 if right and up else 6
    text.set_position((away * right, away * up))
    text.set_ha({1: "left", 0: "center", -1: "right"}[right])
    text.set_va({1: "bottom", 0: "center", -1: "top"}[up])


def touch(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) whether a box (4,) and each of others (N, 4) have a point in common."""
    return ((box[:2] <= boxes[:, 2:]) & (boxes[:, :2] <= box[2:])).all(axis=1)


def inside(box: np.ndarray, frame: np.ndarray) -> bool:
    return bool((frame[:2] <= box[:2]).all() and (box[2:] <= frame[2:]).all())


if __name__ == "__main__":
    run_main(main)
