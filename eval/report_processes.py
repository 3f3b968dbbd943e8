"""A study's processes side by side: does what tau does depend on who labels, or on the model?

No command of its own. A process is one kind of labels, or one reference policy, see
eval/study_plans.py. There is nothing to see for a study that has only one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.page import show, table
from eval.report_charts import Chart, Colour, Panel, Series
from eval.report_figures import has_opinions, points_at
from eval.report_rows import (
    BASE,
    FAMILIES,
    MARKERS,
    Row,
    by_tau,
    estimate,
    main_beta,
    measured,
    numbers,
    parts,
    samples_of,
    setting_title,
    settings,
    spread,
    values,
)
from eval.report_tables import NONE, numbers_text
from eval.study_statistics import best_numbers, interval

SLOPE = "opinions:slope"
SHOWN = (  # metric, title, y axis; N stands for the completions of a problem
    ("entropy", "Entropy of completions", "nats per completion"),
    ("pass@1", "pass@1", "fraction of problems"),
    ("pass@N", "pass@N", "fraction of problems"),
    ("valid@1", "valid@1: every equation true", "fraction of completions"),
    ("arithmetic:no_answer", "Without an answer", "share of completions"),
    ("unique", "Unique completions", "share of completions"),
    ("opinions:mass", "Mass on the two answers", "probability"),
    (SLOPE, "Slope of opinions on theory", "slope; theory: 1"),
)
SOLVED = ("pass@1", "pass@N")  # a best tau is looked for
COLOURS: Sequence[Colour] = [pair for family, pair in FAMILIES.items() if family != BASE]


def processes_panels(rows: Sequence[Row]) -> list[Panel]:
    """rows: of a whole study. A line for each process, against tau."""
    found = by_process(rows)
    charts = []
    for name, title, unit in named(rows) if len(found) > 1 else ():
        series = tuple(
            Series(process, COLOURS[i % len(COLOURS)], points_at(by_tau(measured(own)), name),
                   MARKERS[i % len(MARKERS)])
            for i, (process, own) in enumerate(found.items()) if says(own, name)
        )  # fmt: skip
        shown = tuple(one for one in series if one.points)
        ticks = tuple(sorted({point.x for one in shown for point in one.points}))
        if len(shown) > 1 and len(ticks) > 1:
            charts.append(Chart(title, "τ", unit, shown, log_x=True, x_ticks=ticks))
    if not charts:
        return []
    over = spread(measured(rows), [name for name, *_ in named(rows)])
    caption = f"{over}. SPL at β {main_beta(measured(rows)):g}."
    return [Panel("processes", "What τ does, by process", tuple(charts), caption)]


def processes_html(rows: Sequence[Row]) -> str:
    """The numbers: settings that two processes have in common, and the best tau of each."""
    found = by_process(rows)
    if len(found) < 2:
        return ""
    grouped = {process: settings(measured(own)) for process, own in found.items()}
    held = [key for groups in grouped.values() for key in groups]
    common = [key for key in dict.fromkeys(held) if held.count(key) > 1]
    html = best_table(rows, found)
    for name, title, _ in named(rows):
        lines = []
        for key in common:
            own = [groups.get(key) if says(found[process], name) else None
                   for process, groups in grouped.items()]  # fmt: skip
            cells = [numbers_text(estimate(some, name) or (None,) * 3) if some else NONE
                     for some in own]  # fmt: skip
            if any(cell != NONE for cell in cells):
                heading = show(setting_title(next(filter(None, own))[0]))
                lines.append([heading, *cells])
        if lines:
            html += (f"<details><summary>{show(title)}, in numbers</summary>\n"
                     f"{table([name, *found], lines, 'matched')}</details>\n")  # fmt: skip
    return html


def best_table(rows: Sequence[Row], found: Mapping[str, Sequence[Row]]) -> str:
    """The tau that is best for right answers; its interval, like its mean, is of log tau."""
    lines = []
    for name, *_ in named(rows, SOLVED):
        cells = [best_text(by_tau(measured(own)), name) for own in found.values()]
        if any(cell != NONE for cell in cells):
            lines.append([show(name), *cells])
    if not lines:
        return ""
    about = (
        "<p>Where each metric is largest: mean of log τ over the seeds, 95% interval, as τ. Wide "
        "where the metric hardly depends on τ.</p>\n"
    )
    return f"<h3>The best τ</h3>\n{about}{table(['best for', *found], lines, 'matched')}"


def best_text(groups: Mapping[float, Sequence[Row]], name: str) -> str:
    """groups: tau -> rows by seed; seeds that all tau have count, and no others."""
    seeds = set.intersection(*({row["seed"] for row in same} for same in groups.values()))
    same = [[row for row in some if row["seed"] in seeds] for some in groups.values()]
    known = all(values(row, name) is not None for some in same for row in some)
    if len(groups) < 2 or not seeds or not known:
        return NONE
    at = best_numbers(list(groups), np.stack([numbers(some, name) for some in same]))
    value, low, high = np.exp(interval(at))
    low, high = (float(np.clip(end, min(groups), max(groups))) for end in (low, high))
    return numbers_text((value, low, high))


def by_process(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """process -> its rows and its reference's, where two tau or more were measured."""
    return {process: own for process, own in parts(rows).items() if len(by_tau(measured(own))) > 1}


def says(rows: Sequence[Row], name: str) -> bool:
    """Whether a process says something about a metric: no opinions in its pairs, no theory."""
    return name != SLOPE or has_opinions(rows)


def named(rows: Sequence[Row], only: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """What is shown, with the number of completions that every process has in its place."""
    n = min((samples_of(measured(own)) for own in by_process(rows).values()), default=0)
    return [(name.replace("@N", f"@{n}"), title.replace("@N", f"@{n}"), unit)
            for name, title, unit in SHOWN if not only or name in only]  # fmt: skip
