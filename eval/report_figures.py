"""The figures of a study beyond its curves: against tau, frontiers, calibration, opinions.

No command of its own. A panel or a chart for which the rows have nothing is left out: none needs
more than one seed, one tau, or a control. `rows` are those of one part of a study, see
eval/report_rows.py.
"""

# ruff: noqa: RUF001 signs of mathematics in captions

from collections.abc import Iterator, Mapping, Sequence

from eval.metrics import wilson_interval
from eval.report_benchmarks import NAMES, shown_metrics
from eval.report_charts import LARGE, Chart, Panel, Point, Series
from eval.report_curves import count, finite, in_words, passing, training
from eval.report_rows import (
    BASE,
    KL,
    MARKERS,
    SPL,
    TEMPERATURE,
    Row,
    by_tau,
    colour,
    estimate,
    family_colour,
    main_beta,
    measured,
    of_family,
    samples_of,
    setting_title,
    settings,
    signs,
    spread,
    tau_colour,
    title,
    trained,
    values,
)
from eval.study_values import rates_note

BETA_DPO, RESAMPLED = "dpo with beta'", "dpo, resampled"
PALE = ("#7aa7cf", "#4a7dab")
BY_TAU = (  # metric, title, y axis; N stands for the completions of a problem
    ("entropy", "Entropy of completions", "nats per completion"),
    ("entropy/token", "Entropy per token", "nats per token"),
    ("tokens", "Length", "tokens per completion"),
    (KL, "KL to the reference", "nats per completion"),
    ("pass@1", "pass@1", "fraction of problems"),
    ("pass@N/hard", "pass@N, hard problems", "fraction of problems"),
    ("majority", "Majority vote", "fraction of problems"),
    ("valid@1", "valid@1: every equation true", "fraction of completions"),
    ("arithmetic:no_answer", "Without an answer", "share of completions"),
    ("unique", "Unique completions", "share of completions"),
    ("diversity:input/distinct_2", "distinct-2", "share of bigrams"),
    ("diversity:input/self_bleu", "self-BLEU (low is diverse)", "BLEU-4, 0 to 1"),
    ("diversity:input/cosine_distance", "Embedding distance", "1 − cosine"),
    ("diversity:reference_cross_entropy/sequence", "Cross-entropy, reference", "nats"),
    ("opinions:mass", "Mass on the two answers", "probability"),
)
BY_ALPHA = (
    ("opinions:mass", "Mass on the two answers", "probability"),
    ("opinions:slope", "Slope of policy on theory", "slope; theory: 1"),
    ("opinions:log_odds_error", "Error of the log-odds", "nats"),
    ("opinions:share_error", "Error of the share", "probability"),
)
FRONTIERS = (  # x, its axis, y, its axis; of what is decoded otherwise no entropy is known
    ("unique", "unique completions, share", "pass@1", "pass@1"),
    ("unique", "unique completions, share", "pass@N/hard", "pass@N on hard problems"),
    ("diversity:input/distinct_2", "distinct-2", "valid@1", "valid@1"),
    (
        "diversity:reference_cross_entropy/sequence",
        "cross-entropy under the reference, nats per completion",
        "pass@1",
        "pass@1",
    ),
    ("diversity:input/cosine_distance", "embedding distance", "reward:reward@1", "mean reward"),
    ("diversity:input/distinct_2", "distinct-2", "reward:reward@1", "mean reward"),
    ("entropy", "entropy, nats per completion", "pass@1", "pass@1"),
    (KL, "KL to the reference, nats per completion", "pass@1", "pass@1"),
)
BINNED = {  # what confidence is -> in words
    axis: f"Problems in bins by the {what}, all seeds together; Wilson's 95% interval for the "
    "problems of one seed. On the dashed line confidence is accuracy. Grey: the reference policy."
    for axis, what in {
        "share of the vote": "share of completions that give the commonest answer",
        "probability of the letter": "probability of the likeliest letter",
    }.items()
}


def panels(rows: Sequence[Row]) -> dict[str, list[Panel]]:
    """section -> its panels, none for a section without data."""
    made = {
        "training": training(rows),
        "pass": passing(measured(rows)),
        "benchmarks": benchmarks(measured(rows)),
        "tau": over_tau(measured(rows)),
        "frontier": frontier(measured(rows)),
        "reliability": calibration(measured(rows)),
        "opinions": opinions(rows),
    }
    return {name: [p for p in found if p.charts] for name, found in made.items()}


# ------------------------------------------------------------------------------------------------
# benchmarks


def benchmarks(rows: Sequence[Row]) -> list[Panel]:
    """What the benchmarks of a study on a real checkpoint say of each tau."""
    shown = tuple(shown_metrics(rows))
    over = spread(rows, [name for name, *_ in shown]) if rows else ""
    caption = f"{over}. Controls stand in the tables below." if rows else ""
    return [Panel("benchmarks", "Benchmarks by τ", tau_charts(rows, shown), caption)]


# ------------------------------------------------------------------------------------------------
# tau


def over_tau(rows: Sequence[Row]) -> list[Panel]:
    """Each measurement against tau, with what acts like a tau beside it."""
    names = [[text.replace("@N", f"@{samples_of(rows)}") for text in names] for names in BY_TAU]
    over = spread(rows, [name for name, *_ in names]) if rows else ""
    if rates := rates_note([row for row in rows if row["kind"] == "test"]):
        over += f"; {signs(rates)}"
    caption = (
        f"{over}. DPO with β′ stands at τ = β′ / β: the same weight on the policy's term, "
        "the reference left as it is. Resampled DPO is DPO's own distribution to the power 1 / τ, "
        "without training. Entropy: −log π of plain draws, which resampled ones are not."
    ) if rows else ""  # fmt: skip
    if any(values(row, KL) is not None for row in rows):
        caption += (
            " KL: −log π_ref of the texts less that entropy. A text that was drawn as other tokens "
            "than it is read as costs nats: the reference's own KL, in truth 0, says how many."
        )
    return [Panel("tau", "What τ does", tau_charts(rows, names), caption),
            Panel("temperature", "Sampling temperature", temperature_charts(rows, names),
                  f"{over}. Policies of each τ, drawn from at token temperatures; t 1 is the "
                  "policy itself." if rows else "")]  # fmt: skip


def tau_charts(rows: Sequence[Row], names: Sequence[Sequence[str]]) -> tuple[Chart, ...]:
    """names: (metric, title, y axis) of each chart; a chart needs two tau."""
    charts, ticks = [], tuple(by_tau(rows))
    for name, caption, unit in names:
        series = [s for s in tau_series(rows, name) if s.points] if len(ticks) > 1 else []
        if series and len(series[0].points) > 1:
            charts.append(Chart(caption, "τ", unit, tuple(series), log_x=True, x_ticks=ticks))
    return tuple(charts)


def tau_series(rows: Sequence[Row], name: str) -> Iterator[Series]:
    """SPL's grid, then SPL at each other beta, the two controls that have a tau, the base."""
    beta, grid = main_beta(rows), by_tau(rows)
    yield Series(f"SPL, β {beta:g}", family_colour(SPL), points_at(grid, name))
    others: dict[float, dict] = {}
    for same in of_family(rows, SPL).values():
        if same not in grid.values():
            others.setdefault(same[0]["beta"], {})[same[0]["tau"]] = same
    for i, (other, groups) in enumerate(sorted(others.items())):
        yield Series(f"SPL, β {other:g}", PALE, points_at(groups, name), MARKERS[1 + i % 5], ":",
                     band=False)  # fmt: skip
    resampled = {same[0]["tau"]: same for same in of_family(rows, RESAMPLED).values()}
    dpo = {same[0]["beta"] / beta: same for same in of_family(rows, BETA_DPO).values()}
    for family, groups, shape in ((BETA_DPO, dpo, "D"), (RESAMPLED, resampled, "X")):
        yield Series(title(family), family_colour(family), points_at(groups, name), shape, "--",
                     band=False)  # fmt: skip
    for same in of_family(rows, BASE).values():
        ends = {tau: same for tau in (min(grid), max(grid))}
        yield Series(title(BASE), family_colour(BASE), points_at(ends, name), "", ":", band=False)


def temperature_charts(rows: Sequence[Row], names: Sequence[Sequence[str]]) -> tuple[Chart, ...]:
    """Against the token temperature, a line for each tau; t = 1 is the policy itself."""
    drawn: dict[float, dict[float, Sequence[Row]]] = {}
    for setting, same in of_family(rows, TEMPERATURE).items():
        tau, t = (float(part.split()[1]) for part in setting.split(", "))
        drawn.setdefault(tau, {1.0: by_tau(rows).get(tau, ())})[t] = same
    charts = []
    for name, caption, unit in names if drawn else ():
        series = tuple(
            Series(
                f"τ {tau:g}", tau_colour(tau), points_at(groups, name), MARKERS[i % len(MARKERS)]
            )
            for i, (tau, groups) in enumerate(sorted(drawn.items()))
        )
        if any(len(one.points) > 1 for one in series):
            charts.append(Chart(caption, "t, token temperature", unit, series))
    return tuple(charts)


def points_at(groups: Mapping[float, Sequence[Row]], name: str) -> tuple[Point, ...]:
    """A point for each setting, at the x that it stands under."""
    points = []
    for x, rows in sorted(groups.items()):
        if found := estimate(rows, name):
            points.append(Point(x, *found, about=f"{setting_title(rows[0])}: {in_words(found)}"))
    return tuple(points)


# ------------------------------------------------------------------------------------------------
# frontier


def frontier(rows: Sequence[Row]) -> list[Panel]:
    """Quality against diversity: a series for each family, a point for each setting."""
    charts = []
    for names in FRONTIERS:
        x, x_label, y, y_label = (text.replace("@N", f"@{samples_of(rows)}") for text in names)
        families = dict.fromkeys(family for family, _ in settings(rows) if family != TEMPERATURE)
        series = tuple(frontier_series(rows, f, x, y, i) for i, f in enumerate(families))
        points = [point for one in series for point in one.points]
        at = [point.x for point in points]
        if len(at) > 1:
            caption = f"{y_label} against {x_label.partition(',')[0]}"
            least = min(end for p in points for end in (p.x, p.left) if end is not None)
            log = x != KL and least > 0 and max(at) > 4 * min(at)  # few seeds: it may be below 0
            charts.append(Chart(caption, x_label + ", log scale" * log, y_label,
                                tuple(s for s in series if s.points), log_x=log,
                                size=LARGE))  # fmt: skip
    caption = (
        f"{spread(rows)}. SPL at τ 1 is DPO, and stands in every family that is made of it. "
        "Differences between policies are surer than these intervals say: the problems are the "
        "same for all. What is decoded otherwise than plainly has no entropy here, and no KL. "
        "Labels that find no room are left out; the table of cells has all."
    ) if rows else ""  # fmt: skip
    return [Panel("frontier", "Quality against diversity", tuple(charts), caption)]


def frontier_series(rows: Sequence[Row], family: str, x: str, y: str, at: int) -> Series:
    """The family's settings by x, SPL's of the grid alone; DPO among those made of it."""
    groups = list(of_family(rows, family).values())
    if family == SPL:
        groups = list(by_tau(rows).values())
    elif family.startswith("dpo"):
        groups += [same for tau, same in by_tau(rows).items() if tau == 1]
    points = []
    for same in groups:
        across, up = estimate(same, x), estimate(same, y)
        if across and up:
            label = signs(same[0]["setting"]) if same[0]["family"] == family != BASE else ""
            about = f"{setting_title(same[0])}: {in_words(up)} at {in_words(across)}"
            points.append(Point(across[0], *up, *across[1:], label, about))
    points.sort(key=lambda point: point.x)
    own = any(point.label for point in points) or family == BASE
    line = "" if family in (BASE, "f-dpo") else "-"
    return Series(title(family), family_colour(family), tuple(points) if own else (),
                  MARKERS[at % len(MARKERS)], line, band=False)  # fmt: skip


# ------------------------------------------------------------------------------------------------
# calibration


def calibration(rows: Sequence[Row]) -> list[Panel]:
    """Calibration error and Brier score by tau; how often the vote is right, by its share."""
    errors = tau_charts(rows, (("ece", "Calibration error", "ECE"),
                               ("brier", "Brier score", "Brier score")))  # fmt: skip
    about = f"{spread(rows)}. Less is better." if rows else ""
    made = [Panel("calibration", "Calibration by τ", errors, about)]
    tasks = dict.fromkeys(task for row in rows for task in row.get("reliability", ()))
    for task in tasks:
        own = [row for row in rows if task in row.get("reliability", ())]
        base = [bins_series(same, title(BASE), task) for same in of_family(own, BASE).values()]
        axis = "share of the vote" if task == "arithmetic" else "probability of the letter"
        charts = [
            Chart(setting_title(same[0]), f"confidence: {axis}", "accuracy, fraction right",
                  (*base, bins_series(same, "", task)), diagonal=True)
            for same in by_tau(own).values()
        ]  # fmt: skip
        of = "" if task == "arithmetic" else f", {NAMES.get(task, task)}"
        name = "reliability" if task == "arithmetic" else f"reliability-{task}"
        made.append(Panel(name, f"Reliability by τ{of}", tuple(charts), BINNED[axis]))
    return made


def bins_series(rows: Sequence[Row], name: str, task: str) -> Series:
    """Bins of all seeds together: those with the same edges, weighed by their counts."""
    found: dict[tuple[float, float], list] = {}
    for one in (one for row in rows for one in row["reliability"][task] if one["count"]):
        found.setdefault((one["low"], one["high"]), []).append(one)
    points = []
    for (low, high), bins in sorted(found.items()):
        total = sum(one["count"] for one in bins)
        x, y = (sum(one[key] * one["count"] for one in bins) / total
                for key in ("confidence", "accuracy"))  # fmt: skip
        ends = wilson_interval([y] * max(round(total / len(rows)), 1))
        about = f"{setting_title(rows[0])}: {count(total, 'problem')} in ({low:.3g}, {high:.3g}]"
        points.append(Point(x, y, *ends, about=about))
    return Series(name, colour(rows[0]), tuple(points), band=False)


# ------------------------------------------------------------------------------------------------
# opinions


def opinions(rows: Sequence[Row]) -> list[Panel]:
    """What alpha does to opinions; their log-odds beside theory, for each alpha of the grid."""
    theory, rows = has_opinions(rows), measured(rows)
    grid = by_tau([row for row in rows if row.get("opinions")])
    seeds = count(len({row["seed"] for same in grid.values() for row in same}), "seed")
    caption = (
        f"{seeds}, a point for each question and seed. Theory: (β · the reference's log-odds + "
        "logit of the share of labels) / α. On the dashed line the policy is where theory has it."
    )
    about = f"{spread(rows, [name for name, *_ in BY_ALPHA])}." if rows else ""
    if not theory:
        about += " The pairs have no questions of opinion: what is seen is a side effect."
    charts = (chart for same in grid.values() for chart in theory_charts(same))
    return [Panel("alpha", "Opinions by α", alpha_charts(rows, theory), about),
            Panel("opinions", "Opinions against theory", tuple(charts) if theory else (),
                  caption)]  # fmt: skip


def has_opinions(rows: Sequence[Row]) -> bool:
    """Whether some held-out pairs are closed questions: train.py logs the mass of those alone."""
    curves = [row["curves"] for row in trained(rows) if row.get("curves")]
    return not curves or any("eval/mass/policy" in curve for curve in curves)


def theory_charts(rows: Sequence[Row]) -> Iterator[Chart]:
    questions = [question for row in rows for question in row["opinions"]]
    points = tuple(
        Point(question["theory_log_odds"], question["policy_log_odds"], about=question["prompt"])
        for question in questions
        if finite(question.get("theory_log_odds"))
    )
    if points:
        name = f"α {rows[0]['alpha']:.3g}, τ {rows[0]['tau']:g}"
        series = Series("", colour(rows[0]), points, line="", band=False)
        yield Chart(name, "theory, log-odds", "policy, log-odds", (series,), diagonal=True)


def alpha_charts(rows: Sequence[Row], theory: bool) -> tuple[Chart, ...]:
    """Against alpha, which SPL and DPO with another beta both have, and the base as a line."""
    spl = {same[0]["alpha"]: same for same in by_tau(rows).values()}
    dpo = {same[0]["beta"]: same for same in of_family(rows, BETA_DPO).values()}
    charts = []
    for name, caption, unit in BY_ALPHA[: None if theory else 1] if len(spl) > 1 else ():
        made = [Series(title(family), family_colour(family), points_at(groups, name), shape)
                for family, groups, shape in ((SPL, spl, "o"), (BETA_DPO, dpo, "D"))]  # fmt: skip
        for same in of_family(rows, BASE).values():
            points = points_at({alpha: same for alpha in (min(spl), max(spl))}, name)
            made.append(Series(title(BASE), family_colour(BASE), points, "", ":", band=False))
        if len(made[0].points) > 1:
            charts.append(Chart(caption, "α, weight of the policy's term", unit,
                                tuple(s for s in made if s.points), log_x=True,
                                x_ticks=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)))  # fmt: skip
    return tuple(charts)
