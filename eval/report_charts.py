"""Charts of a report in numbers, their layout, and inline SVG made of it.

No command of its own. A `Chart` holds what is to be seen: series of points with their intervals.
Where its axes end and their ticks stand, and where labels find room, is decided here for the page
and for the pictures of eval/report_pictures.py alike. Colours are a pair each, for light paper and
for dark; series differ by marker and line as well. Charts that belong together are a `Panel`: one
legend, one caption, one picture.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from eval.page import Axis, number, plain, rule, show, svg_text, ticks, widened

LEFT, RIGHT, TOP, BOTTOM = 60, 14, 10, 42  # around what is drawn, in a chart's units: pixels
SMALL, LARGE = (360, 250), (430, 330)  # width and height of a chart
LETTER, LINE = 6.4, 12.0  # about the width of a letter of a label and the height of a line
CORNERS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
SHAPES = {  # of a marker, about its centre; matplotlib has the same under the same letters
    "s": "M-3-3H3V3H-3Z",
    "^": "M0-4L3.8 3H-3.8Z",
    "v": "M0 4L3.8-3H-3.8Z",
    "D": "M0-4.2L4.2 0L0 4.2L-4.2 0Z",
    "P": "M-1.3-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z",
    "X": "M-3.8-2L-2-3.8L0-1.8L2-3.8L3.8-2L1.8 0L3.8 2L2 3.8L0 1.8L-2 3.8L-3.8 2L-1.8 0Z",
}
DASHES = {"-": "", "--": "6 3", "-.": "7 3 1.5 3", ":": "1.5 3"}

Colour = tuple[str, str]  # on light paper, on dark paper
INK: Colour = ("#1c1f23", "#e7e7e4")


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float | None = None  # of y
    high: float | None = None
    left: float | None = None  # of x
    right: float | None = None
    label: str = ""  # beside it, where there is room
    about: str = ""  # what it says when pointed at


Box = tuple[float, float, float, float]  # left, top, right, bottom
Placed = Sequence[tuple[float, float, Point]]  # where each point is drawn


@dataclass(frozen=True)
class Series:
    name: str  # in the legend; "" for none
    colour: Colour
    points: tuple[Point, ...]
    marker: str = "o"  # a circle, or a key of SHAPES; "" for none
    line: str = "-"  # a key of DASHES; "" for none
    band: bool = True  # intervals as a band, else as bars


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    x_ticks: tuple[float, ...] = ()  # none: round values
    from_zero: bool = False  # the y axis begins at 0
    legend: bool = False  # has its own, else its panel has one for all
    diagonal: bool = False  # the line y = x, and equal axes
    size: tuple[int, int] = SMALL


@dataclass(frozen=True)
class Panel:
    """Charts side by side; name: of the picture's file, in the page's address too."""

    name: str
    title: str
    charts: tuple[Chart, ...]
    caption: str
    folded: bool = False  # shown when it is asked for


# ------------------------------------------------------------------------------------------------
# layout


@dataclass(frozen=True)
class Scale:
    """An axis: where it ends, its ticks by their place on it, and whether places are log2."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        return math.log2(value) if self.log else value


def scales(chart: Chart) -> tuple[Scale, Scale]:
    """The x and the y axis of a chart: they hold every point that is drawn and every interval."""
    points = [point for series in chart.series for point in series.points]
    across = ends(v for p in points for v in (p.x, p.left, p.right))
    up = ends(v for p in points for v in (p.y, p.low, p.high))
    if chart.diagonal:
        across = up = min(across[0], up[0]), max(across[1], up[1])
    x = log_scale(chart, *across) if chart.log_x else linear_scale(*across, 6, tight=True)
    up = (min(0.0, up[0]), up[1]) if chart.from_zero else up
    y = linear_scale(*up, 5, tight=False)
    return (y, y) if chart.diagonal else (x, y)


def ends(values: Iterator[float | None]) -> tuple[float, float]:
    found = [v for v in values if v is not None and math.isfinite(v)]
    return (min(found), max(found)) if found else (0.0, 1.0)


def linear_scale(low: float, high: float, about: int, tight: bool) -> Scale:
    """Round ticks; a tight axis ends a little beyond its values, else it ends at ticks."""
    low, high = widened(low, high)
    at = ticks(low, high, about)
    room = 0.03 * (high - low)
    low, high = (low - room, high + room) if tight else (at[0], at[-1])
    return Scale(low, high, tuple((v, number(v, 4)) for v in at if low <= v <= high))


def log_scale(chart: Chart, low: float, high: float) -> Scale:
    """In doublings; ticks that would touch the one before are left out, but not 1.

    Where no tick lies within the range, its two ends are ticks.
    """
    wanted = chart.x_ticks or [2.0**i for i in range(math.floor(math.log2(low)),
                                                     math.ceil(math.log2(high)) + 1)]  # fmt: skip
    start, end = widened(math.log2(low), math.log2(high))
    room = 0.04 * (end - start)
    unit = (chart.size[0] - LEFT - RIGHT) / (end - start + 2 * room)
    kept: list[tuple[float, str]] = []
    for value in sorted(wanted, key=lambda value: (value != 1, value)):
        at, text = math.log2(value), number(value, 4)
        reach = (len(text) + 4) * LETTER / 2
        if start - room <= at <= end + room and all(
            abs(at - other) * unit > reach + len(name) * LETTER / 2 for other, name in kept
        ):
            kept.append((at, text))
    kept = kept or [(math.log2(value), number(value, 4)) for value in {low, high}]
    return Scale(start - room, end + room, tuple(sorted(kept)), log=True)


def axes_of(chart: Chart) -> tuple[Scale, Scale, Axis, Axis]:
    (width, height), (x, y) = chart.size, scales(chart)
    return (
        x, y, Axis(x.low, x.high, LEFT, width - RIGHT), Axis(y.low, y.high, height - BOTTOM, TOP)
    )  # fmt: skip


def drawn(series: Series) -> list[Point]:
    return [p for p in series.points if math.isfinite(p.x) and math.isfinite(p.y)]


def bands(chart: Chart) -> list[Series]:
    """Series whose intervals are a band; of those that lie exactly on each other, the uppermost."""
    found = {tuple((p.x, p.low, p.high) for p in drawn(s)): s for s in chart.series if s.band}
    return list(found.values())


def place_labels(chart: Chart) -> list[tuple[Point, int, int]]:
    """(point, right, up) of each label that finds room: where it covers the fewest lines.

    It covers no point and no other label; what stands first chooses first.
    """
    if not any(point.label for series in chart.series for point in series.points):
        return []
    x, _, across, up = axes_of(chart)
    places = [[(across.place(x.place(p.x)), up.place(p.y), p) for p in drawn(s)]
              for s in chart.series]  # fmt: skip
    ink = [
        dot for s, at in zip(chart.series, places, strict=True)
        for dot in [*(dots(at) if s.line else ()), *(() if s.band else bar_dots(at, x, across, up))]
    ]  # fmt: skip
    at = [place for some in places for place in some]
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py, _ in at]
    placed = []
    for i, (px, py, point) in enumerate(at):
        free = []
        for right, above in CORNERS if point.label else ():
            box = label_box(px, py, right, above, point.label)
            others = [other for j, other in enumerate(taken) if j != i]
            if within(box, chart.size) and not any(overlap(box, other) for other in others):
                covered = sum(overlap(box, (dx, dy, dx, dy)) for dx, dy in ink)
                free.append((covered, len(free), right, above, box))
        if free:
            *_, right, above, box = min(free)
            taken.append(box)
            placed.append((point, right, above))
    return placed


def dots(at: Placed) -> list[tuple[float, float]]:
    """Places along the lines between points, 3 units apart."""
    found = []
    for (x0, y0, _), (x1, y1, _) in pairwise(at):
        many = int(math.hypot(x1 - x0, y1 - y0) / 3) + 1
        shares = [i / many for i in range(1, many)]
        found += [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]
    return found


def bar_dots(at: Placed, x: Scale, across: Axis, up: Axis) -> list[tuple[float, float]]:
    """The same along the bars of the points' intervals."""
    found = []
    for px, py, p in at:
        if p.low is not None:
            found += dots([(px, up.place(p.low), p), (px, up.place(p.high), p)])
        if p.left is not None:
            ends = (across.place(x.place(value)) for value in (p.left, p.right))
            found += dots([(end, py, p) for end in ends])
    return found


def label_box(x: float, y: float, right: int, up: int, text: str) -> Box:
    width, gap = len(text) * LETTER, 6
    left = {1: x + gap, 0: x - width / 2, -1: x - gap - width}[right]
    top = y - up * (LINE / 2 + gap - 1) - LINE / 2
    return left, top, left + width, top + LINE


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(box: Box, size: tuple[int, int]) -> bool:
    return box[0] > LEFT and box[1] > 0 and box[2] < size[0] and box[3] < size[1] - BOTTOM


# ------------------------------------------------------------------------------------------------
# inline SVG


def panel_html(panel: Panel, name: str) -> str:
    """The charts with their titles, a legend for all of them, a caption. name: of its place."""
    charts = "".join(
        f"<div><h4>{show(chart.title)}</h4>\n{chart_svg(chart)}"
        f"{legend([chart]) if chart.legend else ''}</div>\n"
        for chart in panel.charts
    )
    kind = "charts large" if panel.charts[0].size == LARGE else "charts"
    shared = legend([chart for chart in panel.charts if not chart.legend])
    caption = f"{shared}<figcaption>{show(panel.caption)}</figcaption>"
    body = f'<div class="{kind}">\n{charts}</div>\n{caption}\n'
    if panel.folded:
        body = f"<details><summary>{show(panel.title)}</summary>\n{body}</details>"
    else:
        body = f"<h3>{show(panel.title)}</h3>\n{body}"
    return f'<figure class="panel" id="{plain(name)}">{body}</figure>\n'


def chart_svg(chart: Chart) -> str:
    """A chart as one element; colours follow the page's light or dark."""
    x, y, across, up = axes_of(chart)
    width, height = chart.size
    parts = [frame(chart, x, y, across, up)]
    if chart.diagonal:
        parts.append(rule(across.start, across.end, up.start, up.end, "diagonal"))
    places = [
        [(across.place(x.place(p.x)), up.place(p.y), p) for p in drawn(series)]
        for series in chart.series
    ]
    draw = list(zip(chart.series, places, strict=True))
    seen = bands(chart)
    parts += [band(series, at, up) for series, at in draw if series in seen]
    for series, at in draw:
        inside = line(series, at) + ("" if series.band else bars(x, at, across, up))
        inside += "".join(marker(series.marker, px, py, p.about) for px, py, p in at)
        parts.append(f"<g {coloured(series.colour)}>{inside}</g>")
    for point, right, above in place_labels(chart):
        at = across.place(x.place(point.x)), up.place(point.y)
        left, top, end, _ = label_box(*at, right, above, point.label)
        anchor = {1: "start", 0: "middle", -1: "end"}[right]
        from_x = {1: left, 0: (left + end) / 2, -1: end}[right]
        parts.append(svg_text(round(from_x, 2), round(top + 9.5, 2), point.label, anchor))
    title = plain(f"{chart.title}: {chart.y_label} by {chart.x_label}")
    box = f'viewBox="0 0 {width} {height}" role="img" aria-label="{title}"'
    return f'<svg class="figure chart" {box}>\n' + "\n".join(parts) + "\n</svg>\n"


def frame(chart: Chart, x: Scale, y: Scale, across: Axis, up: Axis) -> str:
    """Grid, tick labels and axis labels."""
    parts = []
    for value, text in x.ticks:
        at = across.place(value)
        parts.append(rule(at, at, up.start, up.end, "grid"))
        parts.append(svg_text(at, up.start + 15, text, "middle"))
    for value, text in y.ticks:
        at = up.place(value)
        parts.append(rule(across.start, across.end, at, at, "grid"))
        parts.append(svg_text(across.start - 6, at + 4, text, "end"))
    middle = (up.start + up.end) / 2
    centre = (across.start + across.end) / 2
    parts.append(svg_text(centre, chart.size[1] - 8, chart.x_label, "middle", "label"))
    turn = f' transform="rotate(-90 11 {middle})"'
    parts.append(svg_text(11, middle, chart.y_label, "middle", "label", turn))
    return "\n".join(parts)


def coloured(colour: Colour) -> str:
    return f'color="light-dark({colour[0]}, {colour[1]})"'


def line(series: Series, at: Placed) -> str:
    if not series.line or len(at) < 2:
        return ""
    path = "M" + "L".join(f"{px} {py}" for px, py, _ in at)
    dash = f' stroke-dasharray="{DASHES[series.line]}"' if DASHES[series.line] else ""
    return f'<path class="curve" d="{path}"{dash}/>'


def band(series: Series, at: Placed, up: Axis) -> str:
    at = [place for place in at if place[2].low is not None]
    if len(at) < 2:
        return ""
    over = [f"{px} {up.place(p.high)}" for px, _, p in at]
    under = [f"{px} {up.place(p.low)}" for px, _, p in reversed(at)]
    path = "M" + "L".join([*over, *under]) + "Z"
    return f'<path class="band" {coloured(series.colour)} d="{path}"/>'


def bars(x: Scale, at: Placed, across: Axis, up: Axis) -> str:
    parts = []
    for px, py, p in at:
        if p.low is not None:
            parts.append(rule(px, px, up.place(p.low), up.place(p.high), "bars"))
        if p.left is not None:
            ends = (across.place(x.place(value)) for value in (p.left, p.right))
            parts.append(rule(*ends, py, py, "bars"))
    return "".join(parts)


def marker(shape: str, x: float, y: float, about: str = "") -> str:
    if not shape:
        return ""
    title = f"<title>{plain(about)}</title>" if about else ""
    if shape == "o":
        return f'<circle class="point" cx="{x}" cy="{y}" r="3.2">{title}</circle>'
    place = f'transform="translate({x} {y})"'
    return f'<path class="point" {place} d="{SHAPES[shape]}">{title}</path>'


def legend(charts: Sequence[Chart]) -> str:
    """A swatch and a name for each series of the charts; none where all are of one name."""
    found = {series.name: series for chart in charts for series in chart.series}
    if len(found) < 2:
        return ""
    found.pop("", None)
    items = []
    for name, series in found.items():
        at = [(2.0, 7.0, Point(0, 0)), (24.0, 7.0, Point(0, 0))]
        inside = line(series, at) + marker(series.marker, 13, 7)
        swatch = f'<svg viewBox="0 0 26 14" aria-hidden="true" {coloured(series.colour)}>'
        items.append(f"<span>{swatch}{inside}</svg>{show(name)}</span>")
    return f'<p class="legend">{" ".join(items)}</p>\n'
