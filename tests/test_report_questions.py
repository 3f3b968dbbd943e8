"""The open questions of a study on its page.

python -m pytest tests/test_report_questions.py
"""

from eval.page import number
from eval.report_questions import NONE, questions_html
from tests.test_study_questions import base, spl


def test_a_study_without_them_has_no_such_section():
    assert questions_html([], []) == ""
    assert questions_html([spl(1.0, [1, 2])], []) == ""


def test_difficulty_marks_the_best_tau_of_each_group_and_the_gain():
    rows = [base([0] * 4 + [4] * 4), spl(1.0, [1] * 4 + [4] * 4), spl(2.0, [3] * 8)]
    html = questions_html(rows, rows)
    assert "<strong>0.75 (0.75,&nbsp;0.75)</strong>" in html  # tau 2 on the hard ones
    assert "<strong>1 (1,&nbsp;1)</strong>" in html  # tau 1 on the easy ones
    assert (
        "0.125 (" in html and "2, 2, 2, 1; 2, 2, 2, 1" in html
    )  # groups without problems: for all
    assert "temperature" not in html and "search" not in html
    even = [base([2] * 8), spl(1.0, [4] * 8), spl(2.0, [4] * 8)]
    row = "<td>8</td><td><strong>1 (1,&nbsp;1)</strong></td><td><strong>1 (1,&nbsp;1)</strong></td>"
    assert row in questions_html(even, even)  # both are best


def test_temperatures_name_the_best_of_each_tau():
    heated = {"family": "spl, token temperature", "kind": "decode"}
    rows = [spl(1.0, [1, 1]), spl(2.0, [2, 2])]
    rows.append(spl(1.0, [3, 3]) | heated | {"setting": "tau 1, t 0.4"})
    html = questions_html(rows, rows)
    assert "Which sampling temperature" in html
    assert "<td>1</td><td>0.4</td><td><strong>0.75 (0.75,&nbsp;0.75)</strong></td>" in html
    assert f"<td>2</td><td>1</td><td>{NONE}</td>" in html  # tau 2 was not sampled at 0.4


def test_a_search_shows_its_way_and_what_it_ended_with():
    process = {"process": "verdict, search"}
    rows = [base([1, 1]) | {"validation_entropy": 6.0, "process": None}]
    for tau, entropy in ((1.0, 5.0), (2.0, 6.25)):
        rows.append(spl(tau, [2, 2]) | process)
        train = {"kind": "train", "validation_entropy": entropy, "family": "spl", "tau": tau}
        rows.append(train | process)
    html = questions_html(rows, rows)
    assert "<td>2</td><td>2</td><td>6.25</td><td>0.25</td>" in html and "6 nats" in html
    assert "<td>0.5 (0.5,&nbsp;0.5)</td>" in html
    assert "τ found" not in html  # there is no grid
    assert "Which τ for which problem?" not in html
    grid = [spl(0.5, [1, 1]) | {"process": "verdict"}, spl(1.0, [3, 3]) | {"process": "verdict"}]
    html = questions_html(rows, rows + grid)
    assert f"<td>pass@1</td><td>2</td><td>1</td><td>{number(-0.25, 3)} (" in html
