"""The panels of a report as pictures, PNG and SVG, by matplotlib.

No command of its own. The same charts as on the page with the same axes, ticks and labels, in the
style of eval/plots.py and on light paper.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.plots import GREY, add_legend, save, style
from eval.report_charts import (
    LARGE,
    Chart,
    Panel,
    Scale,
    Series,
    bands,
    drawn,
    place_labels,
    scales,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIT = 0.0135  # inches of a picture for one unit of a chart: text of 11 units is 9 points in both
COLUMNS = 3  # small charts side by side


def draw_pictures(folder: Path, panels: Mapping[str, Panel]) -> None:
    """FOLDER/NAME.png and .svg of each; a line says so where there is no matplotlib."""
    for name, panel in tqdm(panels.items(), unit="picture", leave=False):
        try:
            save(draw_panel(panel), folder / name)
        except ImportError as error:
            print(f"no pictures: {error}")
            return
    print(f"pictures: {folder} ({len(panels)}, each as PNG and SVG)")


def draw_panel(panel: Panel) -> "Figure":
    """The charts side by side, with their legend beneath."""
    columns = min(len(panel.charts), 2 if panel.charts[0].size == LARGE else COLUMNS)
    lines = math.ceil(len(panel.charts) / columns)
    width, height = (UNIT * side for side in panel.charts[0].size)
    with style() as Figure:
        figure = Figure(figsize=(width * columns, height * lines + 0.5))
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        named: set[str] = set()
        for axes, chart in zip(grid, panel.charts, strict=False):
            draw_chart(axes, chart, named)
        for axes in grid[len(panel.charts) :]:
            axes.set_axis_off()
        if len(named) > 1:
            add_legend(figure)
        return figure


def draw_chart(axes: "Axes", chart: Chart, named: set[str]) -> None:
    """named: the series of the panel's legend, to which those of this chart are added."""
    x, y = scales(chart)
    seen = bands(chart)
    for series in (one for one in chart.series if drawn(one)):
        new = bool(series.name) and series.name not in named
        draw_series(axes, series, x, series.name if new else "_")
        draw_intervals(axes, series, x, seen)
        if not chart.legend:
            named.add(series.name)
    if chart.diagonal:
        axes.plot([y.low, y.high], [y.low, y.high], color=GREY, linestyle="--", linewidth=0.8)
    for point, right, up in place_labels(chart):
        side = {1: "left", 0: "center", -1: "right"}[right]
        axes.annotate(point.label, (x.place(point.x), point.y), (right * 5, up * 8),
                      textcoords="offset points", fontsize=7, va="center", ha=side)  # fmt: skip
    axes.set(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=chart.x_label,
             ylabel=chart.y_label, title=chart.title)  # fmt: skip
    axes.set_xticks(*zip(*x.ticks, strict=True))
    axes.set_yticks(*zip(*y.ticks, strict=True))
    if chart.legend:
        axes.legend(fontsize=7)


def draw_series(axes: "Axes", series: Series, x: Scale, label: str) -> None:
    """The points with their line."""
    points = drawn(series)
    axes.plot([x.place(p.x) for p in points], [p.y for p in points], color=series.colour[0],
              label=label, marker=series.marker, linestyle=series.line or "none", markersize=4,
              clip_on=False)  # fmt: skip


def draw_intervals(axes: "Axes", series: Series, x: Scale, seen: Sequence[Series]) -> None:
    """The points' intervals as a band, for those series whose bands are seen, or as bars."""
    points, colour = drawn(series), series.colour[0]
    sure = [p for p in points if p.low is not None]
    at, low, high = ([x.place(p.x) for p in sure], [p.low for p in sure], [p.high for p in sure])
    if series.band:
        if series in seen:
            axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        return
    axes.vlines(at, low, high, color=colour, linewidth=0.7, alpha=0.5)
    wide = [p for p in points if p.left is not None]
    axes.hlines([p.y for p in wide], [x.place(p.left) for p in wide],
                [x.place(p.right) for p in wide], color=colour, linewidth=0.7,
                alpha=0.5)  # fmt: skip
