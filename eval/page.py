"""A page as one HTML file that needs nothing else and lets no text act.

    text      `show` and `plain`: what others wrote, as text alone; characters that cannot be seen,
              or that turn the order of others around, become a box with their code
    data      `embed`: JSON that JavaScript reads, in a script element that is never run
    figures   `histogram` and `scatter`, inline SVG whose colours are those of page.css
    a page    `write_page`: styles, scripts and data inline; its Content-Security-Policy names the
              hashes of both and forbids all else, so that even a mistake here would load nothing

Functions that give HTML take HTML where the parameter says `html`, and escape all other text. The
same data gives the same bytes.
"""

import base64
import hashlib
import html as html_escapes
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.run import write_text

HERE = Path(__file__).resolve().parent

# Code points without a picture of their own: controls (but tab and newline), line and paragraph
# separators, surrogates, and Unicode's Default_Ignorable_Code_Point, which has the marks of
# direction, zero-width characters, variation selectors and tags. page.js reads them from here.
HIDDEN = (
    (0x0, 0x8), (0xB, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C),
    (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E),
    (0x2060, 0x206F), (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)  # fmt: skip
MINUS = "\N{MINUS SIGN}"
HIDDEN_PATTERN = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in HIDDEN) + "]")

# ------------------------------------------------------------------------------------------------
# text


def plain(text: object) -> str:
    """For attributes: no markup can come of it, hidden characters are [U+202E]."""
    return html_escapes.escape(HIDDEN_PATTERN.sub(lambda m: f"[{code(m)}]", str(text)))


def show(text: object) -> str:
    """For the page: as `plain`, hidden characters in a box, line breaks and tabs marked."""
    safe = html_escapes.escape(str(text))  # first, as it leaves hidden characters alone
    safe = HIDDEN_PATTERN.sub(lambda m: f'<span class="hidden">{code(m)}</span>', safe)
    return safe.replace("\n", mark("↵") + "\n").replace("\t", mark("⇥") + "\t")


def code(match: re.Match) -> str:
    return f"U+{ord(match[0]):04X}"


def mark(sign: str) -> str:
    return f'<span class="mark">{sign}</span>'


def number(value: float, digits: int = 6) -> str:
    """To so many significant digits, with a real minus sign."""
    if not math.isfinite(value):
        return str(float(value)).replace("-", MINUS)
    text = f"{value + 0.0:.{digits}g}"  # -0.0 is 0
    mantissa, e, exponent = text.partition("e")
    text = f"{mantissa}e{int(exponent)}" if e else text
    return text.replace("-", MINUS)


# ------------------------------------------------------------------------------------------------
# data


def to_json(data: Any) -> str:
    """JSON that may stand inside a script element: ASCII, without < > and &.

    A lone surrogate comes back as what it was. Raises ValueError for NaN and infinity, which JSON
    has not.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # they occur in strings alone
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def embed(name: str, data: Any) -> str:
    """An element that JavaScript finds by its id, and that no browser runs."""
    return f'<script type="application/json" id="{plain(name)}">{to_json(data)}</script>\n'


def rounded(values: Iterable[float]) -> list[float | str]:
    """To six significant digits; JSON has no NaN: what is not finite is text, "-inf"."""
    return [float(f"{v:.6g}") if math.isfinite(v) else str(float(v)) for v in values]


# ------------------------------------------------------------------------------------------------
# parts of a page


def heading(title: str) -> str:
    """The page's title and the button that turns light into dark."""
    button = '<button type="button" id="theme">dark</button>'
    return f'<div class="title"><h1>{show(title)}</h1>\n{button}</div>\n'


def section(title: str, html: str, name: str) -> str:
    return f'<section id="{plain(name)}">\n<h2>{show(title)}</h2>\n{html}</section>\n'


def table(columns: Sequence[str], html_rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML; columns are text. Where a table is too wide it scrolls alone."""
    head = "".join(f'<th scope="col">{show(column)}</th>' for column in columns)
    head = f"<thead><tr>{head}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>\n" for row in html_rows)
    table = f'<table class="{plain(kind)}">{head}<tbody>\n{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n'


def figure(title: str, html: str, html_caption: str) -> str:
    return (
        f"<figure><h3>{show(title)}</h3>\n{html}<figcaption>{html_caption}</figcaption></figure>\n"
    )


# ------------------------------------------------------------------------------------------------
# figures

WIDTH, HEIGHT = 480, 280  # of a figure, in its own units: about pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 44  # around what is drawn


@dataclass(frozen=True)
class Axis:
    """Values from low to high, from one place of a figure to another."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def round_step(span: float, about: int) -> float:
    """1, 2 or 5 times a power of ten: the smallest that divides span into `about` or fewer."""
    power = 10.0 ** math.floor(math.log10(span / about))
    return next(m * power for m in (1, 2, 5, 10) if m * power * about >= span * (1 - 1e-9))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values from the last one not above low to the first one not below high."""
    low, high = widened(low, high)
    step = round_step(high - low, about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def widened(low: float, high: float) -> tuple[float, float]:
    """The same ends, or where they are all but one value, some room on both sides of it."""
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    room = size / 2 or 0.5
    return low - room, high + room


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> str:
    """Grid, tick labels and axis labels."""
    parts = []
    for value in ticks(x.low, x.high, 7):
        if x.low <= value <= x.high:
            at = x.place(value)
            parts.append(rule(at, at, y.start, y.end, "grid"))
            parts.append(svg_text(at, y.start + 16, number(value), "middle"))
    for value in ticks(y.low, y.high, 5):
        if y.low <= value <= y.high:
            at = y.place(value)
            parts.append(rule(x.start, x.end, at, at, "grid"))
            parts.append(svg_text(x.start - 6, at + 4, number(value), "end"))
    middle = (y.start + y.end) / 2
    parts.append(svg_text((x.start + x.end) / 2, HEIGHT - 8, x_label, "middle", "label"))
    turn = f' transform="rotate(-90 12 {middle})"'
    parts.append(svg_text(12, middle, y_label, "middle", "label", turn))
    return "\n".join(parts)


def rule(x1: float, x2: float, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def svg_text(x: float, y: float, text: str, anchor: str, kind: str = "tick", more: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}"{more}>{plain(text)}</text>'


def svg(title: str, html: str) -> str:
    """A figure that a screen reader calls by its title."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{plain(title)}"'
    return f'<svg class="figure" {box}>\n{html}\n</svg>\n'


def bins(values: Sequence[float], about: int = 30) -> tuple[list[float], list[int]]:
    """(N + 1 edges at round values, N counts); a bin has its lower edge, the last one both."""
    edges = ticks(min(values), max(values), about)
    counts = [0] * (len(edges) - 1)
    step = edges[1] - edges[0]
    for value in values:
        at = min(int((value - edges[0]) / step), len(counts) - 1)
        at += at + 1 < len(counts) and value >= edges[at + 1]  # where the division has rounded
        at -= value < edges[at]
        counts[at] += 1
    return edges, counts


def histogram(values: Sequence[float], x_label: str, y_label: str) -> str:
    """Bars left of 0 in the colour of what is negative. values: finite, at least one."""
    edges, counts = bins(values)
    top = ticks(0, max(counts), 5)[-1]
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = Axis(0, top, HEIGHT - BOTTOM, TOP)
    bars = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            kind = "positive" if low >= 0 else "negative"
            left, height = x.place(low) + 0.5, y.start - y.place(count)
            size = f'width="{x.place(high) - left - 0.5:.2f}" height="{height:.2f}"'
            title = f"<title>{number(low)} to {number(high)}: {count}</title>"
            bars.append(
                f'<rect class="{kind}" x="{left:.2f}" y="{y.place(count)}" {size}>{title}</rect>'
            )
    return svg(f"{y_label} by {x_label}", frame(x, y, x_label, y_label) + "\n" + "\n".join(bars))


def scatter(
    points: Sequence[tuple[float, float, str, str | None]], x_label: str, y_label: str
) -> str:
    """points: (x, y, what it says, the part of the page it leads to or None), at least one."""
    ends = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        low, high = widened(min(values), max(values))
        room = (high - low) * 0.04
        ends.append((low - room, high + room))
    x, y = Axis(*ends[0], LEFT, WIDTH - RIGHT), Axis(*ends[1], HEIGHT - BOTTOM, TOP)
    zero = []
    if x.low < 0 < x.high:
        zero.append(rule(x.place(0), x.place(0), y.start, y.end, "zero"))
    if y.low < 0 < y.high:
        zero.append(rule(x.start, x.end, y.place(0), y.place(0), "zero"))
    dots = []
    for px, py, text, link in sorted(points, key=lambda point: point[3] is not None):  # links above
        kind, size = ("dot linked", 4) if link else ("dot", 2.5)
        dot = f'<circle class="{kind}" cx="{x.place(px)}" cy="{y.place(py)}" r="{size}">'
        dot += f"<title>{plain(text)}</title></circle>"
        dots.append(f'<a href="#{plain(link)}">{dot}</a>' if link else dot)
    drawn = [frame(x, y, x_label, y_label), *zero, *dots]
    return svg(f"{y_label} by {x_label}", "\n".join(drawn))


# ------------------------------------------------------------------------------------------------
# the page


def digest(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script [CSP Level 3, hash-source]."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def policy(css: str, scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere; the inline style and scripts of this page alone count."""
    allowed = " ".join(digest(script) for script in scripts) or "'none'"
    rules = ("default-src 'none'", f"style-src {digest(css)}", f"script-src {allowed}",
             "base-uri 'none'", "form-action 'none'")  # fmt: skip
    return "; ".join(rules)


def write_page(out: Path, title: str, html: str, scripts: Sequence[str], data: str = "") -> None:
    """Write a page whole or not at all.

    html: the body; scripts: files of JavaScript beside this one, which run in order once all is
    there; data: elements of `embed`. The folder of `out` is made where it is missing.
    """
    css = (HERE / "page.css").read_text(encoding="utf-8")
    sources = [(HERE / name).read_text(encoding="utf-8") for name in scripts]
    assert "</script" not in "".join(sources).lower() and "</style" not in css.lower()
    head = (
        f'<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(css, sources)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{plain(title)}</title>\n<style>{css}</style>\n"
    )
    data = '<svg id="svg" hidden></svg>\n' + embed("hidden-characters", HIDDEN) + data
    run = "".join(f"<script>{source}</script>\n" for source in sources)
    page = f"{head}</head>\n<body>\n{html}{data}{run}</body>\n</html>\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, f'<!doctype html>\n<html lang="en">\n<head>\n{page}')
