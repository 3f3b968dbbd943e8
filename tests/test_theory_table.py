"""eval/theory_table.py: when a statement holds, and what the table says of it.

python -m pytest tests/test_theory_table.py
"""

import math

import pytest
import torch

from eval.theory_table import Statement, print_statements, to_rows, worst


@pytest.mark.parametrize(
    ("computed", "holds", "refuted"),
    [(1.0, True, False), (1.5, True, False), (0.4, False, True), (1.75, False, True)],
)
def test_within_the_tolerance_or_beyond_it(computed, holds, refuted):
    """0.5 around 1; the bound itself is within."""
    assert Statement("part", "claim", computed, 1.0, 0.5).holds is holds
    assert Statement("part", "claim", computed, 1.0, 0.5, refutes=True).holds is refuted


@pytest.mark.parametrize("refutes", [False, True])
def test_what_is_no_number_neither_holds_nor_refutes(refutes):
    assert not Statement("part", "claim", math.nan, 1.0, 0.5, refutes).holds


def test_verdicts():
    verdicts = [
        Statement("part", "claim", computed, 1.0, 0.5, refutes).verdict
        for refutes in (False, True)
        for computed in (1.0, 2.0)
    ]
    assert verdicts == ["holds", "DOES NOT HOLD", "NOT REFUTED", "refuted"]


def test_the_worst_of_many_is_told():
    """Differences 0.1, 0.7 and 0.2: the second; against one number, 3 is furthest from 1."""
    ours, theirs = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.1, 2.7, 2.8]])
    found = worst("part", "claim", ours, theirs, 0.5)
    assert (found.computed, found.theory) == (2.0, pytest.approx(2.7))
    assert not found.holds
    assert worst("part", "claim", ours, torch.tensor(1.0), 2.0).computed == 3.0


def test_nan_is_the_worst():
    found = worst("part", "claim", torch.tensor([9.0, math.nan]), torch.tensor(0.0), 100.0)
    assert math.isnan(found.computed) and not found.holds


def test_rows_and_the_printed_table(capsys):
    both = [
        Statement("first", "one is one", 1.0, 1.0, 1e-9),
        Statement("second", "one is two", 1.0, 2.0, 1e-9, refutes=True),
    ]
    assert to_rows(both)[1] == {
        "part": "second", "claim": "one is two", "computed": 1.0, "theory": 2.0,
        "tolerance": 1e-9, "refutes": True, "difference": 1.0, "holds": True,
        "verdict": "refuted",
    }  # fmt: skip
    print_statements(both)
    _, first, one, _, second, two = capsys.readouterr().out.splitlines()
    assert first.split() == ["first", "computed", "theory", "difference", "tolerance"]
    assert one.split() == ["one", "is", "one", "1", "1", "0.0e+00", "1e-09", "holds"]
    assert second.split()[0] == "second" and two.split()[-1] == "refuted"
