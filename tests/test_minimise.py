"""eval/minimise.py against minima that are known, and scipy's root.

python -m pytest tests/test_minimise.py
"""

import math

import pytest
import torch
from scipy.optimize import brentq

from eval.minimise import minimise


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_quadratic_in_closed_form():
    """(x - 1)^2 + 4 (y + 2)^2 + x y: the gradient is 0 where 2x + y = 2 and x + 8y = -16.

    15 x = 32, so x = 32/15 and y = 2 - 64/15 = -34/15.
    """
    found = minimise(lambda v: (v[0] - 1) ** 2 + 4 * (v[1] + 2) ** 2 + v[0] * v[1], numbers(9, 9))
    torch.testing.assert_close(found, numbers(32 / 15, -34 / 15), rtol=0, atol=1e-14)


def test_a_curved_valley():
    """Rosenbrock's, whose minimum is (1, 1)."""
    found = minimise(lambda v: (1 - v[0]) ** 2 + 100 * (v[1] - v[0] ** 2) ** 2, numbers(-1.2, 1))
    torch.testing.assert_close(found, numbers(1, 1), rtol=0, atol=1e-13)


def test_the_gradient_decides_where_values_cannot():
    """1e6 + cosh(x - 1): values tell x apart to about 1e-5, since 1e6 is rounded to 1e-10."""
    found = minimise(lambda v: 1e6 + torch.cosh(v - 1).sum(), numbers(3))
    assert found.item() == pytest.approx(1, abs=1e-14)


def test_a_direction_without_slope_is_left_alone():
    """Cross-entropy of a softmax: a constant added to all logits changes nothing."""
    p = numbers(0.7, 0.2, 0.1)
    start = numbers(5, 6, 7)
    found = minimise(lambda v: -(p @ v.log_softmax(0)), start)
    torch.testing.assert_close(found.softmax(0), p, rtol=0, atol=1e-14)
    assert found.sum().item() == pytest.approx(18, abs=1e-9)


@pytest.mark.parametrize("share", [0.6, 0.999, 1 - 1e-9])
def test_a_logistic_loss_far_from_its_start(share):
    """-p log s(x) - (1 - p) log s(-x) is least at log(p / (1 - p)), here by scipy's root finder.

    1 - p is taken as it is after rounding.
    """
    other = 1 - share

    def loss(v: torch.Tensor) -> torch.Tensor:
        sigmoid = torch.nn.functional.logsigmoid
        return -(share * sigmoid(v) + other * sigmoid(-v)).sum()

    expected = brentq(lambda x: other - share * math.exp(-x), -40, 40, xtol=1e-14)
    assert minimise(loss, numbers(-3)).item() == pytest.approx(expected, abs=1e-7)


def test_where_the_function_curves_down_steps_still_go_down():
    """log(1 + x^2) has its minimum at 0 and curves down beyond 1: there by -0.16 at 3."""
    found = minimise(lambda v: torch.log1p(v * v).sum(), numbers(3.5))
    assert found.item() == pytest.approx(0, abs=1e-14)


def test_no_step_is_longer_than_1():
    """From 0 to the minimum of (x - 40)^2 by 40 of them; each point beyond the last is asked for.

    One step of that parabola would have been enough.
    """
    asked = []

    def parabola(v: torch.Tensor) -> torch.Tensor:
        asked.append(v.item())
        return ((v - 40) ** 2).sum()

    assert minimise(parabola, numbers(0)).item() == 40
    assert sorted({round(x) for x in asked}) == list(range(41))


def test_what_is_no_number_ends_where_it_began():
    assert minimise(lambda v: (math.nan * v * v).sum(), numbers(1, 2)).tolist() == [1, 2]


def test_float32_is_refused():
    with pytest.raises(AssertionError, match="float32"):
        minimise(lambda v: (v * v).sum(), torch.ones(2))
