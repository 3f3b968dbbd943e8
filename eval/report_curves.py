"""The curves of a study: held-out evaluations over steps, and pass@k over k.

No command of its own. A line is a setting, its band an interval; `rows` are those of one part of a
study, see eval/report_rows.py. A chart for which the rows have nothing is left out.
"""

# ruff: noqa: RUF001 signs of mathematics in captions

import math
from collections.abc import Sequence

import numpy as np

from eval.metrics import powers_of_two
from eval.report_charts import Chart, Colour, Panel, Point, Series
from eval.report_rows import (
    BASE,
    MARKERS,
    SPL,
    TEMPERATURE,
    Row,
    by_tau,
    colour,
    difficulties,
    estimate,
    family_colour,
    is_chosen,
    of_family,
    samples_of,
    setting_title,
    settings,
    spread,
    title,
    trained,
)

GREY: Colour = ("#8a9099", "#868d97")
LINES = ("-", "--", "-.", ":")
CURVES = {  # of the held-out evaluations: title, y axis
    "loss": ("Held-out loss", "nats"),
    "rewards/accuracies": ("Held-out accuracy", "share of pairs"),
    "rewards/margins": ("Margin", "nats"),
    "terms/policy": ("The policy's term", "nats"),
    "terms/reference": ("The reference's term", "nats"),
    "rewards/chosen": ("Reward of chosen", "nats"),
    "rewards/rejected": ("Reward of rejected", "nats"),
    "logps/chosen": ("log π of chosen", "nats per completion"),
    "logps/rejected": ("log π of rejected", "nats per completion"),
    "entropy": ("Next-token entropy on pairs", "nats per token"),
    "mass/policy": ("Mass on the two answers", "probability"),
    "guarded": ("Guarded exponentials", "share of completions"),
}
BY_RATE = {  # of the end of a training: title, y axis
    "validation_entropy": ("Entropy, validation problems", "nats per completion"),
    "validation:pass@1": ("pass@1, validation problems", "fraction of problems"),
    "eval/rewards/accuracies": ("Held-out accuracy", "share of pairs"),
    "eval/loss": ("Held-out loss", "nats"),
}
RATE_COLOURS: Sequence[Colour] = (("#E69F00", "#F0BE4E"), ("#0072B2", "#56B4E9"),
                                  ("#CC79A7", "#E3A6C6"))  # fmt: skip


# ------------------------------------------------------------------------------------------------
# training


def training(rows: Sequence[Row]) -> list[Panel]:
    """The held-out evaluations of each tau, and of the other objectives, at the chosen rate."""
    tried = [row for row in trained(rows) if row["seed"] == 0]
    rows = [row for row in trained(rows) if row.get("curves") and is_chosen(row, rows)]
    tau = list(by_tau(rows).values())
    rest = [same for same in settings(rows).values() if same not in tau]
    seeds = count(len({row["seed"] for row in rows}), "seed")
    caption = (
        f"Mean over {seeds}, band from the lowest to the highest, at the chosen learning rate. The "
        "two terms are the halves of the margin; for τ ≠ 1 the loss does not start at log 2, nor "
        "the margin at 0, and losses of different τ are no ranking."
    )
    return [
        Panel("training", "Held-out evaluations by τ", step_charts(tau), caption),
        Panel("training-controls", "The same for the other objectives", step_charts(rest), caption,
              folded=True),
        Panel("rates", "τ and the learning rate, apart", rate_charts(tried),
              "Seed 0 at every learning rate that was tried, at the end of its training."),
    ]  # fmt: skip


def rate_charts(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """Against tau, a line for each learning rate; none where one alone was tried."""
    rates = sorted({row["rate"] for row in rows if row.get("rate")})
    charts, ticks = [], tuple(by_tau(rows))
    for name, (caption, unit) in BY_RATE.items() if len(rates) > 1 and len(ticks) > 1 else ():
        lines = []
        for i, rate in enumerate(rates):
            own = by_tau([row for row in rows if row["rate"] == rate])
            points = [
                Point(tau, y)
                for tau, (row, *_) in own.items()
                if finite(y := last_value(row, name))
            ]
            lines.append(Series(f"{rate:.3g} × default", RATE_COLOURS[i % len(RATE_COLOURS)],
                                tuple(points), MARKERS[i % len(MARKERS)]))  # fmt: skip
        if any(line.points for line in lines):
            charts.append(Chart(caption, "τ", unit, tuple(lines), log_x=True, x_ticks=ticks))
    return tuple(charts)


def last_value(row: Row, name: str) -> object:
    """What the end of a training says; None where it does not."""
    if name in row.get("curves", ()):
        return row["curves"][name][-1]
    return row.get(name, row["metrics"].get(name, {}).get("value"))


def step_charts(groups: Sequence[Sequence[Row]]) -> tuple[Chart, ...]:
    charts = []
    for name, (caption, unit) in CURVES.items():
        lines = [step_series(same, f"eval/{name}", i) for i, same in enumerate(groups)]
        if any(line.points for line in lines):
            charts.append(Chart(caption, "step", unit, tuple(lines)))
    return tuple(charts)


def step_series(rows: Sequence[Row], name: str, at: int) -> Series:
    """Mean of the seeds with their range, at the steps that all of them have."""
    found = [dict(zip(row["curves"]["step"], row["curves"][name], strict=True))
             for row in rows if name in row["curves"]]  # fmt: skip
    points = []
    for step in sorted(set.intersection(*map(set, found))) if found else []:
        here = [numbers[step] for numbers in found if finite(numbers[step])]
        if here:
            ends = (min(here), max(here)) if len(here) > 1 else (None, None)
            points.append(Point(step, float(np.mean(here)), *ends))
    return Series(setting_title(rows[0]), colour(rows[0]), tuple(points),
                  MARKERS[at % len(MARKERS)])  # fmt: skip


def finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def count(number: int, name: str) -> str:
    return f"{number} {name}{'s' * (number != 1)}"


# ------------------------------------------------------------------------------------------------
# pass@k


def passing(rows: Sequence[Row]) -> list[Panel]:
    """pass@k and valid@k by difficulty, a line for each tau; then each family beside DPO."""
    labels = [f"/{label}" for label in difficulties(rows)] or [""]
    tau = list(by_tau(rows).values())
    about = f"{spread(rows)}. " if rows else ""
    made = []
    for name, what in (("pass", "right"), ("valid", "right with every equation true")):
        charts = tuple(pass_chart(label.strip("/") or "all problems", name,
                                  [*lines(tau, name, label), *floors(tau, name, label)])
                       for label in labels)  # fmt: skip
        caption = f"{about}The share of problems of which one of k completions or more is {what}."
        if name == "pass":
            caption += " Dotted: the same, scored against another problem's answer: guessing."
        made.append(Panel(f"{name}-at-k", f"{name}@k by τ and difficulty", charts, caption))
    hard = [label for label in labels if label in ("/hard", "")]
    others = [label for label in labels if label not in hard]
    caption = f"{about}A control's settings beside DPO as it is (τ 1) and the reference policy."
    of = "the hard problems" if hard == ["/hard"] else "all problems"
    made.append(Panel("controls", f"Controls: pass@k on {of}", controls(rows, hard), caption))
    made.append(Panel("controls-others", "Controls on the other problems", controls(rows, others),
                      caption, folded=True))  # fmt: skip
    return [without_empty(panel) for panel in made]


def without_empty(panel: Panel) -> Panel:
    charts = tuple(c for c in panel.charts if any(s.points and s.name for s in c.series))
    return Panel(panel.name, panel.title, charts, panel.caption, panel.folded)


def pass_chart(caption: str, name: str, series: Sequence[Series], legend: bool = False) -> Chart:
    return Chart(caption, "k, completions per problem", f"{name}@k, fraction of problems",
                 tuple(series), log_x=True, from_zero=True, legend=legend)  # fmt: skip


def lines(groups: Sequence[Sequence[Row]], name: str, label: str) -> list[Series]:
    return [pass_series(rows, name, label, i) for i, rows in enumerate(groups)]


def pass_series(rows: Sequence[Row], name: str, label: str, at: int) -> Series:
    points = []
    for k in powers_of_two(samples_of(rows)):
        if found := estimate(rows, f"{name}@{k}{label}"):
            about = f"{setting_title(rows[0])}, k = {k}: {in_words(found)}"
            points.append(Point(k, *found, about=about))
    return Series(setting_title(rows[0]), colour(rows[0]), tuple(points),
                  MARKERS[at % len(MARKERS)])  # fmt: skip


def floors(groups: Sequence[Sequence[Row]], name: str, label: str) -> list[Series]:
    """What guessing earns, a line for each policy, all alike; none beside valid@k."""
    made = []
    for rows in groups if name == "pass" else ():
        found = [(k, estimate(rows, f"arithmetic:floor@{k}{label}"))
                 for k in powers_of_two(samples_of(rows))]  # fmt: skip
        points = tuple(Point(k, row[0]) for k, row in found if row)
        made.append(Series("guessing, each policy", GREY, points, marker="", line=":"))
    return [floor for floor in made if floor.points]


def in_words(found: Sequence[float | None]) -> str:
    value, low, high = found
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f}, {high:.3f})"


def controls(rows: Sequence[Row], labels: Sequence[str]) -> tuple[Chart, ...]:
    """A chart for each family of controls and each difficulty."""
    grid = list(by_tau(rows).values())
    anchors = [same for same in grid if same[0]["tau"] == 1]
    anchors += list(of_family(rows, BASE).values())
    charts = []
    for label in labels:
        families = dict.fromkeys(family for family, _ in settings(rows))
        for family in (f for f in families if f not in (BASE, TEMPERATURE)):
            own = [same for same in of_family(rows, family).values() if same not in grid]
            caption = title(family) if family != SPL else "SPL, other β"
            caption += f", {label[1:]}" if len(labels) > 1 else ""
            series = [*lines(anchors, "pass", label), *shades(lines(own, "pass", label), family)]
            if own:
                charts.append(pass_chart(caption, "pass", series, legend=True))
    return tuple(charts)


def shades(series: Sequence[Series], family: str) -> list[Series]:
    """A family's colour from light to dark, with a marker and a line for each."""
    made = []
    light, dark = family_colour(family)
    for i, one in enumerate(series):
        share = i / max(len(series) - 1, 1)
        look = blend(light, 0.45 - 0.75 * share), blend(dark, 0.55 - 0.6 * share)
        name = one.name.removeprefix(f"{title(family)}, ")
        made.append(Series(name, look, one.points, MARKERS[(i + 2) % len(MARKERS)],
                           LINES[i % len(LINES)]))  # fmt: skip
    return made


def blend(colour: str, white: float) -> str:
    """With a share of white, or below 0 of black."""
    rgb = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(c * (1 - abs(white)) + 255 * max(white, 0)) for c in rgb)
    return "#" + "".join(f"{c:02x}" for c in mixed)
