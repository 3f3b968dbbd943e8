"""The open questions of a study as HTML: tau by difficulty, by sampling temperature, by a search.

Each function gives "" where the rows do not say.
"""

# ruff: noqa: RUF001 signs of mathematics in captions

from collections.abc import Sequence

from eval.page import number, show, table
from eval.report_rows import Row, by_tau, estimate, measured, trained
from eval.report_tables import NONE, numbers_text
from eval.study_questions import (
    SEARCH,
    Rule,
    difficulty_rule,
    search_gain,
    search_path,
    search_target,
    temperature_map,
)
from eval.study_values import MissingError

DIGITS = 3


def questions_html(rows: Sequence[Row], among: Sequence[Row]) -> str:
    """rows: of one process and its reference; among: of the whole study."""
    names = [row["process"] for row in rows if row.get("process")]
    if not names:
        return ""
    process = names[0]
    if process.endswith(SEARCH):  # its tau are steps of one way, no grid
        return search_html(rows, process, among)
    return difficulty_html(rows, process) + temperature_html(rows, process)


def most_tries(rows: Sequence[Row]) -> int:
    """The k of pass@k up to which all rows have it; 0 without problems."""
    return min((row["problems"]["n"] for row in measured(rows) if "problems" in row), default=0)


# ------------------------------------------------------------------------------------------------
# difficulty


def difficulty_html(rows: Sequence[Row], process: str) -> str:
    """pass@1 and pass@n by the reference's pass rate and tau, and what a rule made of it gains."""
    n = most_tries(rows)
    if not n:
        return ""
    ks = dict.fromkeys((1, min(8, n), n))
    try:
        rules = [difficulty_rule(rows, process, f"pass@{k}") for k in ks]
    except MissingError:
        return ""
    tables = "".join(groups_table(rule) for rule in rules)
    gains = table(
        ("metric", "rule − one τ for all", "τ by group, of each half", "one τ, of each half"),
        [
            (
                show(rule.metric),
                numbers_text(rule.gain),
                "; ".join(", ".join(f"{tau:g}" for tau in half) for half in rule.chosen),
                ", ".join(f"{tau:g}" for tau in rule.single),
            )
            for rule in rules
        ],
    )
    about = (
        "<p>Problems by the share of the reference's completions that are right. A rule takes for "
        "each group the τ that was best for it on one half of the problems, and is judged on the "
        "other half against the one τ that was best for all.</p>\n"
    )
    return f"<h3>Which τ for which problem?</h3>\n{about}{tables}{gains}"


def groups_table(rule: Rule) -> str:
    taus = list(rule.groups[0].values)
    rows = []
    for group in rule.groups:
        name = f"{number(group.low, DIGITS)} to {number(group.high, DIGITS)}"
        cells = [
            f"<strong>{numbers_text(group.values[tau])}</strong>"
            if group.values[tau].value == group.values[group.best].value
            else numbers_text(group.values[tau])
            for tau in taus
        ]
        rows.append((show(name), str(group.problems), *cells))
    columns = (f"{rule.metric}: reference's pass rate", "problems", *(f"τ {tau:g}" for tau in taus))
    return table(columns, rows)


# ------------------------------------------------------------------------------------------------
# temperature


def temperature_html(rows: Sequence[Row], process: str) -> str:
    try:
        maps = {
            f"pass@{k}": temperature_map(rows, process, f"pass@{k}")
            for k in (1, most_tries(rows))
            if k
        }
    except MissingError:
        return ""
    html = "<h3>Which sampling temperature for which τ?</h3>\n"
    for metric, found_of in maps.items():
        temperatures = sorted({t for found in found_of.values() for t in found})
        lines = []
        for tau, found in found_of.items():
            best = max(found, key=lambda t: found[t].value)
            cells = [
                ("<strong>{}</strong>" if t == best else "{}").format(numbers_text(found[t]))
                if t in found
                else NONE
                for t in temperatures
            ]
            lines.append((f"{tau:g}", f"{best:g}", *cells))
        html += table((f"{metric}: τ", "best at", *(f"t {t:g}" for t in temperatures)), lines)
    return html


# ------------------------------------------------------------------------------------------------
# search


def search_html(rows: Sequence[Row], process: str, among: Sequence[Row]) -> str:
    """Of a process that was searched: the way, where it ended, and the best of the grid."""
    try:
        path, target = search_path(trained(rows), process), search_target(rows)
    except MissingError:
        return ""
    found, n = by_tau(measured(rows)), most_tries(rows)
    names = ("entropy", "pass@1", f"pass@{n}") if n else ()
    lines = []
    for i, (tau, entropy) in enumerate(path, start=1):
        tested = [estimate(found[tau], name) if tau in found else None for name in names]
        cells = [NONE if one is None else numbers_text(one) for one in tested]
        lines.append((str(i), f"{tau:g}", number(entropy, 4), number(entropy - target, 3), *cells))
    about = (
        f"<p>Towards the reference's entropy on the validation problems, {number(target, 4)} nats "
        "per completion. The last columns are those of the test problems.</p>\n"
    )
    columns = ("step", "τ", "entropy, nats", "minus the reference's", *names)
    html = f"<h3>A search for τ</h3>\n{about}{table(columns, lines)}"
    return html + gain_table(among, process, names[1:])


def gain_table(rows: Sequence[Row], process: str, names: Sequence[str]) -> str:
    try:
        gains = {name: search_gain(rows, process, name) for name in names}
    except MissingError:
        return ""
    about = (
        "<p>Beside the τ of the grid that is best on the same test problems, which is more than a "
        "search can know; 95% intervals, paired.</p>\n"
    )
    lines = [(show(name), f"{found:g}", f"{best:g}", numbers_text(gain))
             for name, (found, best, gain) in gains.items()]  # fmt: skip
    return about + table(("metric", "τ found", "best τ of the grid", "found − best"), lines)
