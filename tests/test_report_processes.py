"""Processes of one study side by side, on rows whose every number is known.

pytest tests/test_report_processes.py
"""

import pytest

from eval.report_processes import NONE, SLOPE, best_text, processes_html, processes_panels
from tests.study_example import rows as example_rows
from tests.test_page import Reader


def row(process: str, tau: float, seed: int, correct: list[int]) -> dict:
    """Two problems, four completions each; entropy is tau in nats."""
    problems = {"n": 4, "correct": correct, "valid": correct, "difficulty": [None, None],
                "entropy": [tau, tau], "distinct": [2, 2]}  # fmt: skip
    return {"cell": f"{process}/{tau}/{seed}", "kind": "test", "process": process, "family": "spl",
            "setting": f"tau {tau:g}", "tau": tau, "beta": 0.1, "seed": seed, "problems": problems,
            "source": "tiny", "metrics": {SLOPE: {"value": 0.9}}}  # fmt: skip


def study(**processes: list[list[int]]) -> list[dict]:
    """process=[right completions at tau 1, at tau 2], the same for each of two seeds."""
    return [row(process, tau, seed, correct) for process, found in processes.items()
            for tau, correct in zip((1.0, 2.0), found, strict=True) for seed in (0, 1)]  # fmt: skip


def test_a_line_for_each_process():
    rows = study(calm=[[4, 2], [2, 0]], noisy=[[1, 1], [3, 3]])
    (panel,) = processes_panels(rows)
    charts = {chart.title: chart for chart in panel.charts}
    assert "pass@4" in charts and "Mass on the two answers" not in charts
    found = {s.name: [(p.x, p.y) for p in s.points] for s in charts["pass@1"].series}
    assert found == {"calm": [(1, 0.75), (2, 0.25)], "noisy": [(1, 0.25), (2, 0.75)]}
    assert panel.caption == (
        "2 seeds, 2 problems; 95% intervals over seeds alone, and over problems too where numbers "
        "are kept for each. SPL at β 0.1."
    )


def test_the_best_tau_of_each_process_and_all_numbers():
    rows = study(calm=[[4, 4], [2, 2]], noisy=[[1, 1], [3, 3]])
    tables = [cells for cells in table_rows(processes_html(rows)) if len(cells) == 3]
    assert ["pass@1", "1 (1,\xa01)", "2 (2,\xa02)"] in tables
    assert ["SPL τ 2", "0.5 (0.5,\xa00.5)", "0.75 (0.75,\xa00.75)"] in tables
    assert ["SPL τ 2", "2 (2,\xa02)", "2 (2,\xa02)"] in tables  # entropy


def test_a_tie_is_between_both_and_only_seeds_that_all_have_count():
    rows = study(calm=[[2, 2], [2, 2]])
    assert best_text({1.0: rows[:2], 2.0: rows[2:]}, "pass@1") == "1.41 (1.41,&nbsp;1.41)"
    assert best_text({1.0: rows[:1], 2.0: rows[3:]}, "pass@1") == NONE
    assert best_text({1.0: rows[:2]}, "pass@1") == NONE


def test_a_slope_is_shown_where_opinions_were_trained_on():
    rows = study(calm=[[1, 1], [1, 1]], noisy=[[1, 1], [1, 1]])
    curves = {"curves": {"eval/loss": [1.0]}}  # of pairs without questions of opinion
    silent = [rows[0] | {"kind": "train", "cell": "t"} | curves]
    (panel,) = processes_panels(rows + silent)
    assert "Slope of opinions on theory" not in [chart.title for chart in panel.charts]
    lines = table_rows(processes_html(rows + silent))
    assert ["SPL τ 2", NONE, "0.9 (0.9,\xa00.9)"] in lines


@pytest.mark.parametrize("processes", [(), ("verdict",)])
def test_one_process_has_nothing_beside_it(processes):
    rows = example_rows(1, 3, 4, processes, (1.0, 2.0), False)
    assert processes_panels(rows) == [] and processes_html(rows) == ""


def table_rows(html: str) -> list[list[str]]:
    return [[text for _, text in Reader(line).of("td")] for line in html.split("<tr>")]
