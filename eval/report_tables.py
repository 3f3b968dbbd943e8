"""The tables of a study's report: claims, learning rates, equal entropy, completions, cells.

No command of its own. Functions give HTML; what models wrote is escaped by `show`.
"""

# ruff: noqa: RUF001 signs of mathematics in captions

from collections.abc import Mapping, Sequence

import numpy as np

from eval.page import number, plain, show, table
from eval.report_rows import (
    BASE,
    KL,
    MEASURED,
    Row,
    by_tau,
    estimate,
    is_chosen,
    measured,
    numbers,
    samples_of,
    setting_title,
    settings,
    trained,
    values,
)
from eval.study_claims import NOT_MEASURED, TestResult, Verdict
from eval.study_statistics import interval, matched_numbers
from eval.study_values import on_plateau

MATCHED = {
    "unique": "equal unique share",
    "diversity:input/distinct_2": "equal distinct-2",
    "entropy": "equal entropy",
    KL: "equal KL",
}  # what is made equal: metric -> in words
NONE = "–"
KINDS = {"holds": "good", "holds in part": "part", "contradicted": "bad"}  # else: plain
SIGN = {"yes": "✓", "no": "✗"}


# ------------------------------------------------------------------------------------------------
# claims


def claims_html(verdicts: Sequence[Verdict], anchors: Mapping[str, str]) -> str:
    """How many verdicts of which kind, then a block for each claim; "" for none.

    anchors: cell -> its id
    """
    if not verdicts:
        return ""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.verdict] = counts.get(verdict.verdict, 0) + 1
    chips = " ".join(f"<span>{badge(name)} {count}</span>" for name, count in counts.items())
    few = sum(too_few(verdict) for verdict in verdicts)
    caution = (
        f'<p class="caution">{few} of these verdicts rest on fewer seeds than the claim asks for, '
        "and say so: they are no findings.</p>\n"
    ) if few else ""  # fmt: skip
    about = (
        "<p>Metric, contrast and threshold of each test were written down before the runs "
        "(<code>eval/claims.json</code>), but for what a claim says was changed. A test says yes "
        "where its interval lies wholly on the expected side of the threshold, no where it lies "
        "wholly on the other; neither where one policy leaves the other no room. A claim holds if "
        "every test says yes, and its premise if it has one.</p>\n"
    )
    html = f'{about}<p class="chips">{chips}</p>\n{caution}'
    html += blocks([verdict for verdict in verdicts if verdict.verdict != NOT_MEASURED], anchors)
    rest = [verdict for verdict in verdicts if verdict.verdict == NOT_MEASURED]
    if rest:
        html += f"<details><summary>{len(rest)} claims that these cells do not measure</summary>\n"
        html += f"{blocks(rest, anchors)}</details>\n"
    return html


def blocks(verdicts: Sequence[Verdict], anchors: Mapping[str, str]) -> str:
    html = "".join(claim_html(verdict, anchors) for verdict in verdicts)
    return f'<div class="claims">\n{html}</div>\n'


def too_few(verdict: Verdict) -> bool:
    return not verdict.enough_seeds and verdict.verdict != NOT_MEASURED


def badge(verdict: str) -> str:
    return f'<b class="badge {KINDS.get(verdict, "none")}">{show(verdict)}</b>'


def claim_html(verdict: Verdict, anchors: Mapping[str, str]) -> str:
    claim = verdict.claim
    source = ", ".join(str(claim[key]) for key in ("paper", "where") if claim.get(key))
    of = f"labels: {claim['process']}" if "process" in claim else f"plan {claim['plan']}"
    few = " <small>too few seeds</small>" if too_few(verdict) else ""
    changed = f"Changed: {claim['changed']}" if "changed" in claim else ""
    notes = [note for note in (claim.get("rule"), changed, verdict.note) if note]
    below = "".join(f"<p><small>{show(note)}</small></p>\n" for note in notes)
    rows = [outcome_cells(*both) for both in zip(verdict.tests, claim["tests"], strict=True)]
    if verdict.premise is not None:
        rows.insert(0, outcome_cells(verdict.premise, claim["premise"], "premise: "))
    columns = ["test, and why this threshold", "measured", "outcome"]
    return (
        '<article class="claim">\n'
        f"<div><p>{badge(verdict.verdict)}{few}</p>\n<p><strong>{show(claim['statement'])}"
        f"</strong></p>\n<p><small>{show(source)}; {show(of)}</small></p>\n"
        f"{below}{cells_used(verdict.cells, anchors)}</div>\n"
        f"{table(columns, rows, 'tests')}</article>\n"
    )


def outcome_cells(test: TestResult, written: Mapping, before: str = "") -> list[str]:
    """What is compared with which threshold and why; the number with its interval; the outcome."""
    measured = numbers_text((test.value, test.low, test.high))
    if measured != NONE and test.low is not None:
        measured += f"<br><small>{100 * test.confidence:.3g}% over {show(test.over)}</small>"
    outcome = f"{SIGN.get(test.outcome, '·')}&nbsp;{show(test.outcome)}"
    compared = f"{before}{show(test.text)}<br><small>{show(written['why'])}</small>"
    return [compared, measured, outcome]


def numbers_text(found: Sequence[float | None]) -> str:
    """HTML: value (low, high), to four places at most, or a dash where there is none."""
    shown = [None if v is None or np.isnan(v) else number(round(v, 4), 3) for v in found]
    value, low, high = shown
    if value is None:
        return NONE
    return value if None in (low, high) else f"{value} ({low},&nbsp;{high})"


def cells_used(cells: Sequence[str], anchors: Mapping[str, str]) -> str:
    """Links to the cells that the numbers come from; each has its commands there."""
    if not cells:
        return ""
    links = " ".join(f'<a href="#{plain(anchors[cell])}">{show(cell)}</a>' for cell in cells)
    name = f"{len(cells)} cells, each with its commands"
    return f'<details><summary>{name}</summary>\n<p class="links">{links}</p></details>\n'


# ------------------------------------------------------------------------------------------------
# learning rates


def rates_html(rows: Sequence[Row]) -> str:
    """Every learning rate of every setting: what held-out problems and pairs said of it."""
    tried_at_all = [row for row in trained(rows) if row.get("rate")]
    rates = sorted({row["rate"] for row in tried_at_all})
    lines = []
    for same in settings(tried_at_all).values():
        tried = [[row for row in same if row["rate"] == rate] for rate in rates]
        lines.append([show(setting_title(same[0])), *(rate_cell(some, rows) for some in tried)])
    if not lines:
        return ""
    columns = ["setting", *(f"{rate:.3g} × default" for rate in rates)]
    validated = any(values(row, "validation:pass@1") is not None for row in tried_at_all)
    first = "pass@1 on validation problems, the" if validated else "The"
    about = (
        f"<p>{first} last held-out loss, and how often that loss had settled (of seeds); "
        "● the rate that was chosen.</p>\n"
    )
    return f"<h3>Learning rates, all that were tried</h3>\n{about}{table(columns, lines, 'rates')}"


def rate_cell(tried: Sequence[Row], rows: Sequence[Row]) -> str:
    """One setting at one rate, all seeds; rows: all, of which tests say what was chosen."""
    if not tried:
        return NONE
    found = estimate(tried, "validation:pass@1")
    ends = [row["curves"]["eval/loss"][-1] for row in tried if row.get("curves")]
    flat = sum(map(on_plateau, tried))
    text = [number(found[0], 3)] if found else []
    text += [f"loss {number(float(np.mean(ends)), 4)}"] if ends else []
    text.append(f"flat {flat} of {len(tried)}")
    chosen = any(is_chosen(row, rows) for row in tried)
    inside = " · ".join(text)
    return f"<b>{inside} ●</b>" if chosen else inside


# ------------------------------------------------------------------------------------------------
# equal entropy, equal divergence


def matched_html(rows: Sequence[Row]) -> str:
    """Each control's quality minus SPL's where SPL, between its settings, has the same x."""
    rows = measured(rows)
    spl = list(by_tau(rows).values())
    quality = ("pass@1", f"pass@{samples_of(rows)}/hard")
    pairs = [(x, y) for x in MATCHED for y in quality]
    lines = []
    for same in settings(rows).values() if len(spl) > 1 else ():
        cells = [matched_cell(same, spl, x, y) for x, y in pairs if same not in spl]
        if any(cell != NONE for cell in cells):
            lines.append([show(setting_title(same[0])), *cells])
    if not lines:
        return ""
    columns = ["control", *(f"{y}, {MATCHED[x]}" for x, y in pairs)]
    about = (
        "<p>The control minus SPL at the same x, SPL interpolated between its settings of τ; 95% "
        "intervals. Above 0 the control is better. A dash: beyond SPL's reach, or not known: what "
        "is decoded otherwise than plainly has no entropy and no KL here.</p>\n"
    )
    title = "Controls against SPL at equal diversity"
    return f"<h3>{title}</h3>\n{about}{table(columns, lines, 'matched')}"


def matched_cell(rows: Sequence[Row], family: Sequence[Sequence[Row]], x: str, y: str) -> str:
    """Seeds that the control and all settings of the family have count, and no others; the
    reference's only row goes with each of them."""
    groups = [rows, *family]
    if rows[0]["family"] == BASE:
        groups[0] = [{**rows[0], "seed": row["seed"]} for row in family[0]]
    seeds = set.intersection(*({row["seed"] for row in group} for group in groups))
    of = {}
    for name in (x, y):
        found = [[row for row in group if row["seed"] in seeds] for group in groups]
        if not seeds or any(values(row, name) is None for group in found for row in group):
            return NONE
        of[name] = [numbers(group, name) for group in found]
    (own_x, *their_x), (own_y, *their_y) = of[x], of[y]
    found = matched_numbers(own_x, own_y, np.stack(their_x), np.stack(their_y))
    if np.isnan(found[:, 0]).any():
        return NONE
    return numbers_text(interval(found))


# ------------------------------------------------------------------------------------------------
# completions


def samples_html(rows: Sequence[Row]) -> str:
    """The same prompts, a column for each setting at its first seed."""
    rows = [row for row in measured(rows) if row.get("samples")]
    firsts = [same[0] for same in settings(rows).values()]
    columns = [setting_title(row) for row in firsts]
    parts = []
    for i, sample in enumerate(firsts[0]["samples"] if firsts else ()):
        cells = [completions(row, sample["prompt"]) for row in firsts]
        grade = f" <small>{show(sample['difficulty'])}</small>" if sample.get("difficulty") else ""
        parts.append(f"<details{' open' * (i == 0)}><summary>{show(sample['prompt'])}{grade}"
                     f"</summary>\n{table(columns, [cells], 'samples')}</details>\n")  # fmt: skip
    return "".join(parts)


def completions(row: Row, prompt: str) -> str:
    texts = [t for s in row["samples"] if s["prompt"] == prompt for t in s["completions"]]
    return "".join(f'<p class="text">{show(text)}</p>' for text in texts) or NONE


# ------------------------------------------------------------------------------------------------
# cells


def cells_html(rows: Sequence[Row], anchors: Mapping[str, str]) -> str:
    """Every cell with the numbers that any has, its learning rate, seconds and commands."""
    names = ("pass@1", f"pass@{samples_of(rows)}/hard", "entropy", "unique", "validation:pass@1")
    found = {name: [cell_number(row, name) for row in rows] for name in names}
    found = {name: cells for name, cells in found.items() if {*cells} - {NONE}}
    lines = []
    for i, row in enumerate(rows):
        rate = row.get("learning_rate")
        chosen = row["kind"] == "train" and is_chosen(row, rows)
        lines.append([
            f'<span id="{plain(anchors[row["cell"]])}">{show(row["cell"])}</span>{commands(row)}',
            f"{number(rate, 3)}{' ●' * chosen}" if rate else NONE,
            *(cells[i] for cells in found.values()),
            number(row.get("seconds") or 0.0, 4),
        ])  # fmt: skip
    columns = ["cell", "learning rate", *(name.replace(":", " ") for name in found), "seconds"]
    return table(columns, lines, "cells")


def cell_number(row: Row, name: str) -> str:
    """A cell's mean over its problems, or a dash where it measures no such thing."""
    found = values(row, name) if row["kind"] in (*MEASURED, "train") else None
    return NONE if found is None else number(float(np.mean(found)), 3)


def commands(row: Row) -> str:
    lines = "\n".join(map(str, row.get("commands") or ()))
    if not lines:
        return ""
    return f"<details><summary>commands</summary><pre>{show(lines)}</pre></details>"
