"""eval/theory_misreadings.py: each number by hand, and code in which a misreading would be so.

python -m pytest tests/test_theory_misreadings.py
"""

import math

import pytest

from eval import theory_misreadings as module
from eval.theory_misreadings import statements


def test_each_is_refuted_by_its_number():
    """Shares 1 / (1 + 4^-10), 0.8 * 0.2^0.1 / (0.8 * 0.2^0.1 + 0.2 * 0.8^0.1), 16/17, 4/5, and

    0.2 * 0.8^10 / (0.2 * 0.8^10 + 0.8 * 0.2^10) = 1 / (1 + 4^-9); the loss softplus(-0.1 * 5).
    """
    found = statements()
    assert all(one.refutes and one.holds for one in found)
    second = 4 * 4**-0.1  # the odds 4 to 1, times (1/4)^0.1 of the reference
    shares = [1 / (1 + 4**-10), second / (1 + second), 16 / 17, 0.8, 1 / (1 + 4**-9)]
    assert [one.computed for one in found[:5]] == pytest.approx(shares, abs=1e-9)
    assert found[5].computed == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-12)
    assert [one.computed for one in found[6:]] == pytest.approx([2.9843, 0.0], abs=1e-3)


def test_what_they_say_is_what_they_say():
    """0.2^(0.8^10) = 0.8413 and 0.8^(0.2^10) = 1.0000: a share of 0.4569."""
    said = [one.theory for one in statements()]
    assert said[:4] == [0.8, 0.8, 0.8, 0.941] and said[6:] == [0.0, 2.0]
    assert said[4] == pytest.approx(0.4569, abs=1e-4)
    assert said[5] == pytest.approx(0.6931, abs=1e-4)


def test_a_misreading_that_came_true_would_be_told(monkeypatch):
    """A policy that always represents in proportion."""
    monkeypatch.setattr(module, "trained_share", lambda *setting: 0.8)
    found = statements()
    assert [one.holds for one in found[:5]] == [False, False, False, True, True]
    assert found[0].verdict == "NOT REFUTED"


def test_a_loss_that_starts_at_log_2_would_be_told(monkeypatch):
    monkeypatch.setattr(module, "coefficients", lambda objective, alpha, beta: (beta, beta))
    assert not statements()[5].holds
