"""eval/report_benchmarks.py: which numbers of a benchmark are shown, and their table by hand.

pytest tests/test_report_benchmarks.py
"""

import pytest

from eval.report_benchmarks import NAMES, SHOWN, benchmarks_html, shown_metrics
from eval.report_figures import panels
from eval.report_tables import NONE
from eval.study_models import MODEL_PLANS


def row_of(tau: float, **metrics) -> dict:
    """TASK__NAME=value, with 0.1 to each side."""
    found = {
        name.replace("__", ":"): {"value": v, "low": v - 0.1, "high": v + 0.1}
        for name, v in metrics.items()
    }
    return {"cell": f"tau {tau:g}", "kind": "test", "family": "spl", "setting": f"tau {tau:g}",
            "tau": tau, "alpha": tau * 0.1, "beta": 0.1, "seed": 0, "metrics": found}  # fmt: skip


def gsm8k(once: float, most: float, hard: float) -> dict:
    return {"gsm8k__pass@1": once, "gsm8k__pass@2": 0.5, "gsm8k__pass@128": most,
            "gsm8k__pass@128/hard": hard, "gsm8k__floor@128": 0.1}  # fmt: skip


def test_the_most_completions_stand_for_n_and_the_rest_is_left_out():
    rows = [row_of(1.0, **gsm8k(0.25, 0.75, 0.5), mmlu__ece=0.125, diversity__tokens=9.0)]
    assert list(shown_metrics(rows)) == [
        ("gsm8k:pass@1", "GSM8K, pass@1", "fraction of problems"),
        ("gsm8k:pass@128", "GSM8K, pass@128", "fraction of problems"),
        ("gsm8k:pass@128/hard", "GSM8K, pass@128/hard", "fraction of problems"),
        ("mmlu:ece", "MMLU, ece", "ECE"),
    ]
    greedy = [row_of(1.0, **{"gsm8k__pass@1": 0.25})]
    assert [name for name, *_ in shown_metrics(greedy)] == ["gsm8k:pass@1"]  # once


def test_a_setting_has_a_line_and_what_it_lacks_is_a_dash():
    rows = [row_of(1.0, **gsm8k(0.25, 0.75, 0.5)), row_of(2.0, **{"gsm8k__pass@1": 0.125})]
    html = benchmarks_html(rows)
    assert html.count("<h4>") == 1 and "<h4>GSM8K</h4>" in html
    lines = html.split("<tbody>")[1].strip().split("\n")
    assert "SPL τ 1 (DPO)" in lines[0] and "0.25 (0.15,&nbsp;0.35)" in lines[0]
    assert "0.5 (0.4,&nbsp;0.6)" in lines[0]
    assert "0.125 (0.025,&nbsp;0.225)" in lines[1] and lines[1].count(f"<td>{NONE}</td>") == 2
    assert benchmarks_html([row_of(1.0, diversity__tokens=9.0)]) == ""


def test_each_tau_has_a_point_and_letters_have_a_reliability_diagram():
    rows = [row_of(1.0, **gsm8k(0.25, 0.75, 0.5)), row_of(2.0, **gsm8k(0.125, 0.875, 0.75))]
    (panel,) = panels(rows)["benchmarks"]
    assert [chart.title for chart in panel.charts] == [
        "GSM8K, pass@1", "GSM8K, pass@128", "GSM8K, pass@128/hard",
    ]  # fmt: skip
    assert [(p.x, p.y) for p in panel.charts[1].series[0].points] == [(1, 0.75), (2, 0.875)]
    bins = [{"low": 0.4, "high": 0.6, "count": 3, "confidence": 0.5, "accuracy": 1 / 3}]
    rows[1]["reliability"] = {"mmlu": bins}
    (panel,) = panels(rows)["reliability"]
    assert panel.title == "Reliability by τ, MMLU"
    (chart,) = panel.charts  # of the tau that has bins
    (point,) = chart.series[0].points
    assert (point.x, point.y) == (0.5, pytest.approx(1 / 3))


def test_every_benchmark_of_the_plans_is_shown():
    tasks = {name for plan in MODEL_PLANS.values() for name in plan.benchmarks}
    assert tasks | {"reward"} == set(SHOWN) == set(NAMES)
