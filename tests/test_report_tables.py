"""eval/report_tables.py: cells of tables beside numbers worked out by hand, and inert text.

pytest tests/test_report_tables.py
"""

# ruff: noqa: RUF001 signs of mathematics, real minus signs

import re
from dataclasses import replace

import pytest

from eval import study_claims
from eval.report_rows import estimate, parts
from eval.report_tables import (
    cells_html,
    claims_html,
    matched_html,
    numbers_text,
    rates_html,
    samples_html,
)
from tests.study_example import rows


@pytest.fixture(scope="module")
def verdict():
    return parts(rows(seeds=2, problems=6, n=16, taus=(0.8, 1.0, 2.0)))["verdict"]


def body(html: str) -> list[list[str]]:
    """The cells of the rows of a table."""
    lines = re.findall(r"<tr>(.*?)</tr>", html.split("<tbody>")[1], re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", line, re.DOTALL) for line in lines]


CLAIM = {"id": "one", "paper": "SPL", "where": "Table <1>", "statement": "It <grows>.",
         "process": "verdict", "needs_seeds": 5, "rule": "Why these settings.",
         "tests": [{"why": "half of <0.1>"}]}  # fmt: skip


def judged(
    verdict: str, enough: bool = True, cells=("a",), premise=False, **more
) -> study_claims.Verdict:
    result = {"value": 0.06, "low": 0.05123, "high": 0.07, "threshold": 0.05, "outcome": "yes"}
    test = study_claims.TestResult(
        "spl > 0.05", **result | more, over="seeds and problems", confidence=0.975
    )
    return study_claims.Verdict(
        CLAIM, verdict, [test], test if premise else None, list(cells), "a note", 5, enough
    )


def test_a_claim_has_its_source_test_interval_and_outcome():
    html = claims_html([judged("holds")], {"a": "cell-1-0"})
    assert '<b class="badge good">holds</b> 1' in html
    assert "It &lt;grows&gt;." in html and "SPL, Table &lt;1&gt;; labels: verdict" in html
    ((test, measured, outcome),) = body(html)
    assert test == "spl &gt; 0.05<br><small>half of &lt;0.1&gt;</small>"
    assert measured == "0.06 (0.0512,&nbsp;0.07)<br><small>97.5% over seeds and problems</small>"
    assert outcome == "✓&nbsp;yes"
    assert '<a href="#cell-1-0">a</a>' in html and "Why these settings." in html
    assert "too few seeds" not in html


def test_a_claim_says_what_was_changed_and_shows_its_premise():
    more = {"changed": "<late>", "premise": {"why": "none without"}}
    verdict = replace(judged("holds", premise=True), claim=CLAIM | more)
    html = claims_html([verdict], {"a": "cell-1-0"})
    assert "Changed: &lt;late&gt;" in html
    (premise, *_), (test, *_) = body(html)
    assert premise == "premise: spl &gt; 0.05<br><small>none without</small>"
    assert test.startswith("spl")


def test_verdicts_of_too_few_seeds_say_so_and_unmeasured_claims_are_folded():
    missing = judged("not measured", False, (), value=None, low=None, high=None, outcome="missing")
    html = claims_html([missing, judged("contradicted", False)], {"a": "cell-1-0"})
    assert "1 of these verdicts rest on fewer seeds" in html
    assert html.count("too few seeds") == 1
    shown, folded = html.split("<details><summary>1 claims that these cells do not measure")
    assert 'class="badge bad"' in shown and shown.count("<article") == 1
    assert folded.count("<article") == 1 and "·&nbsp;missing" in folded and "<td>–</td>" in folded


def test_numbers_of_a_table():
    assert numbers_text((0.12345, -0.5, 4.4e-12)) == "0.123 (−0.5,&nbsp;0)"
    assert numbers_text((2.0, None, None)) == "2" and numbers_text((float("nan"), 0, 1)) == "–"


def test_every_learning_rate_is_shown_and_the_chosen_one_marked(verdict):
    lines = {cells[0]: cells[1:] for cells in body(rates_html(verdict))}
    assert list(lines)[:3] == ["SPL τ 0.8", "SPL τ 1 (DPO)", "SPL τ 2"]
    assert all(len(cells) == 3 for cells in lines.values())
    low, middle, _ = lines["SPL τ 2"]
    assert "●" in middle and "●" not in low and "flat 2 of 2" in middle and "flat 0 of 2" in low
    tried = [row for row in verdict if row["setting"] == "tau 2" and row["kind"] == "train"]
    value = estimate([row for row in tried if row["rate"] == 1], "validation:pass@1")[0]
    assert f"<b>{value:.3g} ·" in middle


def flat_row(family: str, setting: str, tau: float | None, unique: int, correct: int) -> dict:
    problems = {"difficulty": ["hard", "hard"], "n": 4, "correct": [correct] * 2,
                "valid": [correct] * 2, "distinct": [unique] * 2, "majority": [0, 0],
                "tokens": [1, 1]}  # fmt: skip
    kind = "test" if family == "spl" else "decode"
    return {"cell": setting, "kind": kind, "family": family, "setting": setting, "tau": tau,
            "beta": 0.1, "seed": 0, "problems": problems, "metrics": {}}  # fmt: skip


def test_equal_diversity_by_hand():
    """SPL has pass@1 1/4 at a unique share of 1/4, and 3/4 at 3/4: at 2/4 it would have 2/4.

    A control with a unique share of 2/4 and pass@1 of 1/4 is 0.25 below; beyond 3/4 none is known.
    """
    grid = [flat_row("spl", "tau 1", 1.0, 1, 1), flat_row("spl", "tau 2", 2.0, 3, 3)]
    near = flat_row("dpo, min-p", "m 0.1", None, 2, 1)
    far = flat_row("dpo, min-p", "m 0", None, 4, 1)
    (line,) = body(matched_html([*grid, near, far]))
    assert line[:2] == ["DPO, min-p, m 0.1", "−0.25 (−0.25,&nbsp;−0.25)"]
    assert set(line[3:]) == {"–"}
    assert matched_html(grid) == "" == matched_html([grid[0], near])


def test_seeds_that_a_control_does_not_have_are_left_out():
    """Seed 1 of SPL has 0 and 2/4 where seed 0 has 1/4 and 3/4; the control has seed 0 alone."""
    grid = [flat_row("spl", "tau 1", 1.0, 1, 1), flat_row("spl", "tau 2", 2.0, 3, 3)]
    more = [flat_row("spl", "tau 1", 1.0, 1, 0), flat_row("spl", "tau 2", 2.0, 3, 2)]
    control = flat_row("dpo, min-p", "m 0.1", None, 2, 1)
    (line,) = body(matched_html([*grid, *({**row, "seed": 1} for row in more), control]))
    assert line[:2] == ["DPO, min-p, m 0.1", "−0.25 (−0.25,&nbsp;−0.25)"]


def test_the_reference_is_compared_with_every_seed():
    """Its one row has a unique share of 2/4 and pass@1 of 2/4; SPL there 2/4 and 1/4: 0 and 0.25,
    0.125 on average, with a standard error of 0.125 and Student's t of one degree, 12.7."""
    grid = [flat_row("spl", "tau 1", 1.0, 1, 1), flat_row("spl", "tau 2", 2.0, 3, 3)]
    more = [flat_row("spl", "tau 1", 1.0, 1, 0), flat_row("spl", "tau 2", 2.0, 3, 2)]
    base = {**flat_row("base", "base", None, 2, 2), "kind": "base"}
    (line,) = body(matched_html([base, *grid, *({**row, "seed": 1} for row in more)]))
    assert line[0] == "reference policy" and line[1].startswith("0.125 (−1.4")


def test_completions_stand_side_by_side_and_are_inert(verdict):
    html = samples_html(verdict)
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert heads[:3] == ["reference policy", "SPL τ 0.8", "SPL τ 1 (DPO)"]
    assert len(heads) == 2 * len(body(html)[0])
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert '<span class="hidden">U+202E</span>' in html
    assert html.count("<details open>") == 1


def test_prompts_and_their_grades_are_inert():
    sample = {"prompt": "Is 2 <b> 3?", "difficulty": "<hard>", "completions": ["<i>"]}
    html = samples_html([{**flat_row("spl", "tau 1", 1.0, 1, 1), "samples": [sample]}])
    assert "<summary>Is 2 &lt;b&gt; 3? <small>&lt;hard&gt;</small></summary>" in html
    assert body(html) == [['<p class="text">&lt;i&gt;</p>']]


def test_every_cell_is_a_row_with_its_commands(verdict):
    source = {"cell": "source", "kind": "source", "commands": ["python <x>"], "seconds": 5.0}
    anchors = {row["cell"]: f"cell-1-{i}" for i, row in enumerate([source, *verdict])}
    lines = body(cells_html([source, *verdict], anchors))
    assert len(lines) == len(verdict) + 1
    assert '<span id="cell-1-0">source</span>' in lines[0][0]
    assert "<pre>python &lt;x&gt;</pre>" in lines[0][0] and lines[0][1:-1] == ["–"] * 6
    assert lines[0][-1] == "5"
    at = next(i for i, r in enumerate(verdict, start=1) if r["kind"] == "train" and r["rate"] == 1)
    assert lines[at][1] == "0.0001 ●" and lines[at][2] == "–" != lines[at][6]


def test_columns_that_no_cell_fills_are_left_out():
    """Completions of prompts that are no problems have no pass@1."""
    row = {**flat_row("spl", "tau 2", 2.0, 3, 3), "metrics": {"diversity:entropy/sequence": {
        "value": 2.5, "low": 2.0, "high": 3.0}}}  # fmt: skip
    del row["problems"]
    html = cells_html([row], {"tau 2": "cell-1-0"})
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert heads == ["cell", "learning rate", "entropy", "seconds"]
    assert body(html)[0][1:] == ["–", "2.5", "0"]
