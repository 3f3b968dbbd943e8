"""eval/report_figures.py: places of points by hand, and studies that lack most of it.

pytest tests/test_report_figures.py
"""

# ruff: noqa: RUF001 signs of mathematics in captions

import math

import pytest

from eval.metrics import wilson_interval
from eval.report_charts import Panel, panel_html
from eval.report_figures import (
    bins_series,
    frontier,
    frontier_series,
    has_opinions,
    panels,
    tau_series,
)
from eval.report_rows import by_tau, estimate, measured, parts
from tests.study_example import rows


@pytest.fixture(scope="module")
def verdict():
    return parts(rows(seeds=2, problems=6, n=16, taus=(0.8, 1.0, 2.0)))["verdict"]


def test_what_has_a_tau_stands_at_it(verdict):
    """DPO with beta' 0.2 stands at 0.2 / 0.1; the base is a line from end to end."""
    found = {s.name: s for s in tau_series(measured(verdict), "entropy")}
    assert [p.x for p in found["SPL, β 0.1"].points] == [0.8, 1, 2]
    assert [p.x for p in found["SPL, β 0.3"].points] == [1, 1.2]
    beta = found["DPO with β\N{PRIME}"]
    assert [p.x for p in beta.points] == pytest.approx([0.5, 0.8, 1.2, 2, 4])
    assert found["DPO, resampled"].points == ()  # no entropy is known of it
    unique = {s.name: s for s in tau_series(measured(verdict), "unique")}
    assert [p.x for p in unique["DPO, resampled"].points] == [0.8, 1.2, 2]
    base = found["reference policy"].points
    assert [p.x for p in base] == [0.8, 2] and base[0].y == base[1].y


def test_sampling_temperatures_have_a_line_for_each_tau(verdict):
    """tau 2 drawn at t 0.5 and 1.5, and the policy itself at 1; entropy is known at 1 alone."""
    drawn = []
    for t in (0.5, 1.5):
        same = [dict(row) for row in verdict if row["setting"] == "t 1.5"]
        for row in same:
            row |= {"family": "spl, token temperature", "setting": f"tau 2, t {t}", "tau": None}
        drawn += same
    own = [row for row in verdict if row["kind"] != "decode"] + drawn
    made = panels(own)
    (panel,) = (panel for panel in made["tau"] if panel.name == "temperature")
    titles = [chart.title for chart in panel.charts]
    assert "pass@1" in titles and "Entropy of completions" not in titles
    (line,) = panel.charts[titles.index("pass@1")].series
    assert line.name == "τ 2" and [p.x for p in line.points] == [0.5, 1, 1.5]
    assert line.points[1].y == estimate(by_tau(measured(verdict))[2.0], "pass@1")[0]
    names = {s.name for panel in made["frontier"] for c in panel.charts for s in c.series}
    assert "SPL, token temperature" not in names


def test_dpo_stands_in_the_families_that_are_made_of_it(verdict):
    """Token temperature's line goes through DPO, unlabelled: its t is 1."""
    own = measured(verdict)
    series = frontier_series(own, "dpo, token temperature", "unique", "pass@1", 0)
    assert len(series.points) == 6 and sorted(p.label for p in series.points)[0] == ""
    (dpo,) = (p for p in series.points if not p.label)
    x, left, right = estimate(by_tau(own)[1.0], "unique")
    assert (dpo.x, dpo.left, dpo.right) == (x, left, right)
    assert [p.x for p in series.points] == sorted(p.x for p in series.points)
    assert frontier_series(own, "dpo, min-p", "entropy", "pass@1", 0).points == ()


def test_a_policy_at_another_learning_rate_is_named(verdict):
    """What stands apart by its rate is not apart by its tau alone."""
    rows = [{**row, "rate": 3.0} if row["setting"] == "tau 2" else row for row in verdict]
    (tau,) = panels(rows)["tau"]
    assert "learning rates differ: τ 2 at 3 times the default, the others at 1." in tau.caption
    assert "learning rates" not in panels(verdict)["tau"][0].caption
    assert "in truth 0" in tau.caption


def test_an_axis_is_linear_where_an_interval_reaches_below_zero(verdict):
    """Seeds at 0.1 and 0.9 have an interval of 0.5 +- 5 (Student's t of one degree: 12.7)."""
    name = "diversity:input/distinct_2"

    def panel(*of_tau_2: float) -> Panel:
        rows = []
        for row in measured(verdict):
            value = of_tau_2[row["seed"]] if row["setting"] == "tau 2" else 0.1
            rows.append({**row, "metrics": row["metrics"] | {name: {"value": value, "low": value,
                                                                    "high": value}}})  # fmt: skip
        return frontier(rows)[0]

    assert "distinct-2, log scale" in [chart.x_label for chart in panel(0.5, 0.5).charts]
    wide = panel(0.1, 0.9)
    assert "distinct-2" in [chart.x_label for chart in wide.charts]
    assert "distinct-2" in panel_html(wide, "frontier")  # it can be drawn


def test_bins_of_seeds_are_weighed_by_their_counts():
    """3 votes at 0.5 right and 1 at 1: 2.5 of 4; two seeds, so the interval is of 2 votes."""

    def row(seed: int, count: int, accuracy: float) -> dict:
        full = {"low": 0.4, "high": 0.6, "count": count, "confidence": 0.5, "accuracy": accuracy}
        bins = [full, {**full, "low": 0.6, "high": 0.8, "count": 0}]
        return {"family": "spl", "setting": "tau 1", "tau": 1.0, "seed": seed,
                "reliability": {"mmlu": bins}}  # fmt: skip

    (point,) = bins_series([row(0, 3, 0.5), row(1, 1, 1.0)], "", "mmlu").points
    assert (point.x, point.y) == (0.5, pytest.approx(2.5 / 4))
    assert (point.low, point.high) == pytest.approx(wilson_interval([0.625, 0.625]))


def test_every_section_of_a_whole_study_has_its_figures(verdict):
    found = {name: [p.name for p in made] for name, made in panels(verdict).items()}
    assert found == {
        "training": ["training", "training-controls", "rates"],
        "pass": ["pass-at-k", "valid-at-k", "controls", "controls-others"],
        "benchmarks": [],
        "tau": ["tau"],
        "frontier": ["frontier"],
        "reliability": ["calibration", "reliability"],
        "opinions": ["alpha", "opinions"],
    }


def test_theory_is_shown_where_opinions_were_trained_on(verdict):
    """Points of a question and seed: (theory, policy) of the row."""
    assert has_opinions(verdict)
    made = {p.name: p for p in panels(verdict)["opinions"]}
    chart = made["opinions"].charts[2]
    assert chart.title == "α 0.2, τ 2"
    first = next(r for r in verdict if r["setting"] == "tau 2" and r["kind"] == "test")
    question = first["opinions"][0]
    point = chart.series[0].points[0]
    assert (point.x, point.y) == (question["theory_log_odds"], question["policy_log_odds"])
    bare = [dict(row) for row in verdict]
    for row in bare:
        if row["kind"] == "train":
            row["curves"] = {k: v for k, v in row["curves"].items() if "mass" not in k}
    made = panels(bare)["opinions"]
    assert [p.name for p in made] == ["alpha"] and "side effect" in made[0].caption
    assert [chart.title for chart in made[0].charts] == ["Mass on the two answers"]


@pytest.mark.parametrize("tau", [(1.0,), (2.0,)])
def test_one_seed_and_one_tau_crash_nothing(tau):
    own = parts(rows(seeds=1, problems=3, n=4, taus=tau, controls=False))["verdict"]
    found = panels(own)
    assert found["tau"] == [] and found["pass"] and found["training"]
    assert "over problems only" in found["pass"][0].caption


def test_studies_without_a_base_without_training_or_without_problems(verdict):
    assert panels([row for row in verdict if row["kind"] != "base"])["frontier"]
    tests = panels([row for row in verdict if row["kind"] in ("test", "decode")])
    assert not tests["training"] and tests["pass"]
    chat = [{k: v for k, v in row.items() if k not in ("problems", "reliability", "opinions")}
            for row in measured(verdict)]  # fmt: skip
    found = panels(chat)
    assert not found["pass"] and not found["reliability"]
    titles = [chart.title for chart in found["tau"][0].charts]
    assert "Entropy of completions" in titles and "pass@1" not in titles
    assert panels([]) == {name: [] for name in panels(verdict)}


def test_all_points_are_finite(verdict):
    for made in panels(verdict).values():
        for chart in (chart for panel in made for chart in panel.charts):
            for point in (point for series in chart.series for point in series.points):
                known = [v for v in (point.x, point.y, point.low, point.high) if v is not None]
                assert all(map(math.isfinite, known)), chart.title
