"""eval/bradley_terry.py: closed forms, statsmodels' and scipy's numbers, and the limits.

Gradients are torch's, of the penalised likelihood written down a second time.
python -m pytest tests/test_bradley_terry.py
"""

import math

import numpy as np
import pytest
import torch

from eval.bradley_terry import fit_logistic

X10 = np.column_stack([np.ones(10), [-0.6, -0.4, -0.3, -0.1, 0, 0.1, 0.2, 0.35, 0.5, 0.7]])
Y10 = np.array([0, 0.5, 0, 0.25, 1, 0, 0.75, 1, 0.5, 1])


@pytest.mark.parametrize(
    ("wins", "ties", "losses", "odds"),
    [(7, 1, 2, 8 / 3), (3, 0, 3, 1), (0, 5, 0, 1), (4, 0, 0, 9), (0, 0, 4, 1 / 9), (0, 1, 0, 1)],
)
def test_two_players_in_closed_form(wins, ties, losses, odds):
    """(wins + ties/2 + 1/2) / (losses + ties/2 + 1/2): 8/3 of 7, 1 and 2; 9 of four wins."""
    outcomes = np.array([1.0] * wins + [0.5] * ties + [0.0] * losses)
    fitted = fit_logistic(np.ones((len(outcomes), 1)), outcomes)
    assert fitted == pytest.approx([math.log(odds)], abs=1e-9)


def test_a_group_for_each_column_is_two_players_each():
    """3 of 4 won and 0 of 2 won: odds 7/3 and 1/5, each as if the other were not there."""
    features = np.repeat(np.eye(2), [4, 2], axis=0)
    fitted = fit_logistic(features, [1, 1, 1, 0, 0, 0])
    assert fitted == pytest.approx([math.log(7 / 3), math.log(1 / 5)], abs=1e-9)


def test_three_players_by_hand():
    """Odds 2 to 1 of a over b and b over c, 4 to 1 of a over c: strengths 4, 2 and 1.

    A column for a and one for b, each against c, whose strength is the unit. So many games that
    half a game counts for nothing; every outcome is then its expectation.
    """
    features = np.array([[1, -1], [0, 1], [-1, 0]])  # a against b, b against c, c against a
    fitted = fit_logistic(features, np.array([2 / 3, 2 / 3, 1 / 5]), np.array([3e9, 6e9, 5e9]))
    assert fitted == pytest.approx([math.log(4), math.log(2)], abs=1e-8)


def test_a_cycle_has_no_strongest():
    features = np.array([[1, -1], [0, 1], [-1, 0]])
    assert fit_logistic(features, np.ones(3)) == pytest.approx([0, 0], abs=1e-9)


def test_the_numbers_of_statsmodels_and_scipy():
    """statsmodels 0.15.0, GLM(Binomial): the likelihood alone, which many copies leave.

    scipy 1.17.1, minimize(Nelder-Mead) of the penalised likelihood: one copy of each row.
    """
    many = fit_logistic(X10, Y10, np.full(10, 1e9))
    assert many == pytest.approx([-0.14844393592506347, 3.3113908186245853], rel=1e-7)
    fitted = fit_logistic(X10, Y10)
    assert fitted == pytest.approx([-0.10613815221542212, 2.3742971835334203], rel=1e-7)


@pytest.mark.parametrize(("N", "K"), [(7, 1), (40, 3), (129, 5)])
def test_the_gradient_of_the_penalised_likelihood_is_zero_there(N, K):
    rng = np.random.default_rng(N)
    X = np.column_stack([np.ones(N), rng.normal(0, 0.5, (N, K - 1))])
    y, w = rng.choice([0, 0.25, 0.5, 0.75, 1], N), rng.integers(1, 4, N)
    beta = torch.tensor(fit_logistic(X, y, w), requires_grad=True)
    features, outcomes, weights = map(torch.tensor, (X, y, w))
    p = torch.sigmoid(features @ beta)
    likelihood = weights * (outcomes * torch.log(p) + (1 - outcomes) * torch.log(1 - p))
    information = (features.T * (weights * p * (1 - p))) @ features
    (likelihood.sum() + torch.logdet(information) / 2).backward()
    assert beta.grad.abs().max() < 1e-6


def test_a_weight_is_a_number_of_copies():
    weights = np.array([1, 2, 3, 1, 1, 2, 1, 4, 1, 1])
    copies = fit_logistic(np.repeat(X10, weights, axis=0), np.repeat(Y10, weights))
    assert fit_logistic(X10, Y10, weights) == pytest.approx(copies, rel=1e-7)


def test_units_change_the_coefficients_in_proportion():
    scale = np.array([1, 1e-4])
    assert fit_logistic(X10 * scale, Y10) * scale == pytest.approx(fit_logistic(X10, Y10), rel=1e-7)


def test_sides_exchanged_change_the_sign():
    assert fit_logistic(-X10, 1 - Y10) == pytest.approx(fit_logistic(X10, Y10), rel=1e-7)
    both = fit_logistic(np.concatenate([X10, X10 * [1, -1]]), np.concatenate([Y10, 1 - Y10]))
    assert both[0] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("N", [4, 30, 253])
def test_separated_outcomes_cross_one_half_within_the_gap(N):
    """Positive differences win, others lose: no likelihood is largest, and this is finite."""
    x = np.random.default_rng(N).normal(0.1, 0.3, N)
    x[:2] = -0.2, 0.25
    intercept, slope = fit_logistic(np.column_stack([np.ones(N), x]), x > 0)
    assert math.isfinite(slope) and slope > 1
    assert x[x < 0].max() < -intercept / slope < x[x > 0].min()


def test_columns_that_depend_on_each_other_share_their_coefficient():
    X = np.column_stack([X10, np.zeros(10), X10[:, 1]])
    intercept, slope = fit_logistic(X10, Y10)
    assert fit_logistic(X, Y10) == pytest.approx([intercept, slope / 2, 0, slope / 2], abs=1e-8)


def test_one_row_of_all_ones():
    """One win with two coefficients: log(3) in all, shared."""
    assert fit_logistic(np.ones((1, 2)), [1]) == pytest.approx([math.log(3) / 2] * 2, abs=1e-9)
