"""eval/report_curves.py: what a line shows beside the same number worked out by hand.

pytest tests/test_report_curves.py
"""

import pytest

from eval.metrics import pass_at_k
from eval.report_curves import blend, passing, shades, step_series, training
from eval.report_rows import family_colour, measured, parts
from tests.study_example import rows


@pytest.fixture(scope="module")
def verdict():
    return parts(rows(seeds=2, problems=6, n=16, taus=(0.8, 1.0, 2.0)))["verdict"]


def panels(found) -> dict:
    return {panel.name: panel for panel in found}


def run(seed: int, steps, losses) -> dict:
    return {"family": "spl", "setting": "tau 2", "tau": 2.0, "seed": seed,
            "curves": {"step": steps, "eval/loss": losses}}  # fmt: skip


def test_a_training_line_is_the_mean_of_the_seeds_and_their_range():
    """Steps 0 and 10 are in both seeds, 20 in one alone; a seed that has no number is left out."""
    both = [run(0, [0, 10, 20], [1.0, 0.5, 0.4]), run(1, [0, 10], [2.0, None])]
    points = step_series(both, "eval/loss", 0).points
    assert [(p.x, p.y, p.low, p.high) for p in points] == [
        (0, 1.5, 1.0, 2.0),
        (10, 0.5, None, None),
    ]
    assert step_series(both, "eval/guarded", 0).points == ()


def test_training_shows_the_chosen_rates_and_every_logged_term(verdict):
    found = panels(training(verdict))
    grid = found["training"].charts
    assert [chart.title for chart in grid][:4] == [
        "Held-out loss", "Held-out accuracy", "Margin", "The policy's term"]  # fmt: skip
    assert [s.name for s in grid[0].series] == ["SPL τ 0.8", "SPL τ 1 (DPO)", "SPL τ 2"]
    both = [row for row in verdict if row["setting"] == "tau 2" and row["kind"] == "train"]
    ends = [row["curves"]["eval/loss"][-1] for row in both if row["rate"] == 1]
    assert grid[0].series[2].points[-1].y == pytest.approx((ends[0] + ends[1]) / 2)
    names = {s.name for s in found["training-controls"].charts[0].series}
    assert "f-DPO, forward_kl" in names and found["training-controls"].folded


def test_a_rate_has_a_line_over_tau_of_its_first_seed(verdict):
    verdict = [dict(row) for row in verdict if row["setting"] != "tau 1" or row.get("rate") != 3]
    for row in verdict:
        if row["kind"] == "train":
            row["validation_entropy"] = (row["tau"] or 0) + row["seed"]
    charts = {c.title: c for c in panels(training(verdict))["rates"].charts}
    lines = charts["Entropy, validation problems"].series
    assert [s.name[:5] for s in lines] == ["0.333", "1 \u00d7 d", "3 \u00d7 d"]
    assert [(p.x, p.y) for p in lines[1].points] == [(0.8, 0.8), (1, 1), (2, 2)]
    assert [p.x for p in lines[2].points] == [0.8, 2]  # not tried at tau 1
    (row,) = (row for row in verdict if row["setting"] == "tau 2" and row["kind"] == "train"
              and row["seed"] == 0 and row["rate"] == 3)  # fmt: skip
    assert charts["Held-out loss"].series[2].points[-1].y == row["curves"]["eval/loss"][-1]
    alone = [row for row in verdict if row["kind"] != "train" or row["rate"] == 1]
    assert not panels(training(alone))["rates"].charts


def test_pass_at_k_is_the_mean_of_the_problems_of_that_difficulty(verdict):
    """Against `pass_at_k` of eval.metrics, problem by problem."""
    charts = panels(passing(measured(verdict)))["pass-at-k"].charts
    assert [chart.title for chart in charts] == ["easy", "medium", "hard"]
    line = next(s for s in charts[2].series if s.name == "SPL τ 2")
    assert [p.x for p in line.points] == [1, 2, 4, 8, 16]
    both = [row for row in verdict if row["setting"] == "tau 2" and row["kind"] == "test"]
    hard = [pass_at_k(16, c, 4) for row in both for c in row["problems"]["correct"][2::3]]
    assert line.points[2].y == pytest.approx(sum(hard) / len(hard))
    assert line.points[2].low <= line.points[2].y <= line.points[2].high
    floors = [s for s in charts[2].series if s.line == ":" and not s.marker]
    assert len(floors) == 3 and floors[0].points[0].y == pytest.approx(0.007)


def test_controls_stand_beside_dpo_and_the_base(verdict):
    found = panels(passing(measured(verdict)))
    (temperature,) = (c for c in found["controls"].charts if "temperature" in c.title)
    names = [s.name for s in temperature.series]
    assert names == ["SPL τ 1 (DPO)", "reference policy", "t 0.8", "t 1.1", "t 1.2", "t 1.3",
                     "t 1.5"]  # fmt: skip
    assert found["controls-others"].folded
    assert {c.title.split(", ")[-1] for c in found["controls-others"].charts} == {"easy", "medium"}


def test_shades_go_from_light_to_dark(verdict):
    charts = panels(passing(measured(verdict)))["controls"].charts
    series = shades(charts[0].series, "dpo, min-p")
    luminance = [sum(int(s.colour[0][i : i + 2], 16) for i in (1, 3, 5)) for s in series]
    assert luminance == sorted(luminance, reverse=True) and len(set(luminance)) == len(series)


def test_blends_by_hand():
    """Half white of 0x40 is 0x9f or 0xa0; half black is 0x20."""
    assert blend("#404040", 0.5) == "#a0a0a0" and blend("#404040", -0.5) == "#202020"
    assert blend(family_colour("spl")[0], 0) == "#0072b2"


def test_nothing_is_drawn_of_nothing():
    assert all(not panel.charts for panel in [*training([]), *passing([])])
