"""eval/theory_modes.py against scipy's integrals and minima, a grid's table, and wrong divergences.

python -m pytest tests/test_theory_modes.py
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, simpson
from scipy.optimize import brentq, minimize
from scipy.stats import norm

from eval import theory_modes as module
from eval.theory_modes import (
    ALPHAS,
    DISTANCES,
    Fit,
    best,
    closed_forms,
    cross_entropy,
    describe,
    divergence,
    fit,
    fit_covering,
    fit_map,
    fit_seeking,
    gaussian_entropy,
    print_map,
    print_optima,
    seeks_beyond,
    statements,
    stationary,
    switch,
    switches,
    ties,
    window,
)

X = np.linspace(-30, 30, 6001)


@pytest.fixture(scope="module")
def pairs():
    return fit_map()


def scipy_cross_entropy(mu: float, sigma: float, m: float) -> float:
    """-E log p by adaptive quadrature."""

    def inner(x: float) -> float:
        log_p = np.logaddexp(norm.logpdf(x, -m), norm.logpdf(x, m)) - math.log(2)
        return -norm.pdf(x, mu, sigma) * log_p

    points = sorted({mu, 0.0, -m, m})
    return quad(inner, mu - 12 * sigma, mu + 12 * sigma, points=points, limit=400, epsabs=1e-12)[0]


def scipy_divergence(x: np.ndarray, alpha: float, m: float) -> float:
    """Simpson's rule over x itself, where the module's sum goes over (x - mu) / sigma."""
    mu, sigma = x[0], math.exp(x[1])
    log_p = np.logaddexp(-((X + m) ** 2) / 2, -((X - m) ** 2) / 2) - math.log(8 * math.pi) / 2
    cross = -simpson(np.exp(-(((X - mu) / sigma) ** 2) / 2) * log_p, X)
    cross /= sigma * math.sqrt(2 * math.pi)
    return -alpha * (math.log(sigma) + math.log(2 * math.pi * math.e) / 2) + cross


def scipy_fit(alpha: float, m: float, start: tuple[float, float]) -> tuple[float, float, float]:
    """(mu, sigma, value)"""
    x = (start[0], math.log(start[1]))
    options = {"xatol": 1e-7, "fatol": 1e-13}
    found = minimize(scipy_divergence, x, (alpha, m), "Nelder-Mead", options=options)
    return abs(found.x[0]), math.exp(found.x[1]), found.fun


@pytest.mark.parametrize(
    ("mu", "sigma", "m"), [(0.0, 1.0, 2.0), (0.0, 2.81, 3.0), (2.5, 0.45, 2.5), (1.1, 3.0, 2.2)]
)
def test_the_cross_entropy_is_that_of_scipy(mu, sigma, m):
    x = torch.tensor([mu, math.log(sigma)], dtype=torch.float64)
    expected = scipy_cross_entropy(mu, sigma, m)
    assert cross_entropy(*x, m).item() == pytest.approx(expected, abs=1e-9)
    by_rule = scipy_divergence(x.numpy(), 0.0, m)
    assert by_rule == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("alpha", "m"), [(1.2, 2.0), (0.6, 2.5), (1.0, 3.0)])
def test_both_optima_are_those_of_scipy(alpha, m):
    for of, start in ((fit_covering, (0.01, math.hypot(1, m))), (fit_seeking, (m, 1.0))):
        found, (mu, sigma, value) = of(alpha, m), scipy_fit(alpha, m, start)
        assert abs(found.mu) == pytest.approx(mu, abs=1e-4)
        assert found.sigma == pytest.approx(sigma, abs=1e-4)
        assert found.value == pytest.approx(value, abs=1e-8)
        assert found.kl == pytest.approx(scipy_divergence((mu, math.log(sigma)), 1, m), abs=1e-4)
        assert found.entropy == pytest.approx(norm.entropy(mu, sigma), abs=1e-4)


TABLE = {  # (mu, sigma) of the best q by Gauss-Hermite sums and a grid, computed elsewhere
    2.0: {1.2: (0, 2.11), 1.0: (0, 2.06), 0.9: (0, 2.01), 0.8: (0, 1.96), 0.6: (0, 1.87),
          0.4: (1.95, 0.66)},
    2.5: {1.2: (0, 2.45), 1.0: (0, 2.39), 0.9: (0, 2.36), 0.8: (0, 2.33), 0.6: (2.50, 0.79),
          0.4: (2.50, 0.63)},
    3.0: {1.2: (0, 2.81), 1.0: (3.00, 1.01), 0.9: (3.00, 0.96), 0.8: (3.00, 0.89),
          0.6: (3.00, 0.77), 0.4: (3.00, 0.63)},
}  # fmt: skip


@pytest.mark.parametrize("m", TABLE)
def test_a_table_of_best_fits(m):
    """Its cells are within 0.02 of the optima, and their values within 0.001, never below."""
    for alpha, (mu, sigma) in TABLE[m].items():
        found = best((fit_covering(alpha, m), fit_seeking(alpha, m)))
        assert abs(found.mu) == pytest.approx(mu, abs=0.02)
        assert found.sigma == pytest.approx(sigma, abs=0.02)
        cell = divergence(torch.tensor([mu, math.log(sigma)], dtype=torch.float64), alpha, m)
        assert 0 <= cell.item() - found.value < 1e-3


def test_a_switch_is_that_of_scipy():
    """m = 3: Brent's root of the difference of Nelder-Mead's two minima."""

    def difference(alpha: float) -> float:
        cover, seek = scipy_fit(alpha, 3.0, (0.01, 3.16)), scipy_fit(alpha, 3.0, (3.0, 1.0))
        return cover[2] - seek[2]

    expected = brentq(difference, 1.1, 1.2, xtol=1e-5)
    pair = (fit_covering(1.1, 3.0), fit_seeking(1.1, 3.0))
    assert switch([pair]) == pytest.approx(expected, abs=2e-5)
    assert expected == pytest.approx(1.16, abs=1e-3)


def test_where_the_reverse_kl_begins_to_seek():
    """At m = 2.7 it covers, at 2.9 it seeks, and between them both are as good at 2.8001."""
    m = seeks_beyond(1.0, 2.7, 2.9)
    cover, seek = fit_covering(1.0, m), fit_seeking(1.0, m)
    assert cover.value == pytest.approx(seek.value, abs=1e-12)
    assert not cover.seeks and seek.seeks
    assert m == pytest.approx(2.8001, abs=1e-4)


def test_the_map_is_of_one_piece(pairs, capsys):
    """Covering begins at a larger alpha for a larger m, and the map agrees with the switches."""
    tied = switches(pairs)
    assert list(tied.values()) == sorted(tied.values())
    assert tied[2.0] == pytest.approx(0.45, abs=0.005) and tied[2.5] == pytest.approx(
        0.7774, abs=1e-4
    )
    for pair in pairs:
        assert best(pair).seeks == (pair[0].alpha < tied[pair[0].m])
        assert math.isfinite(best(pair).value)
    print_map(pairs, tied)
    print_optima(pairs)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.split()[:1] == ["2.5"])
    assert row.split()[1:-1] == ["S"] * 6 + ["C"] * 3 + ["C*"] * 2
    assert "  alpha 0.6  seeks, best   2.4888  0.7902   1.2113   1.1835      0.7379" in lines


def test_each_distance_has_its_switch(capsys):
    one = Fit(1.0, 2.5, 0.0, 1.0, 0.0, 0.0, 0.0)  # covers
    print_map([(one, one)] * len(DISTANCES) * len(ALPHAS), {m: m / 10 for m in DISTANCES})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [(row[0], row[-1]) for row in rows] == [(f"{m}", f"{m / 10:.4f}") for m in DISTANCES]


def test_what_stands_in_the_map():
    cover, seek = fit_covering(0.6, 2.5), fit_seeking(0.6, 2.5)
    assert (describe((cover, seek)), describe((cover, cover))) == ("S", "C*")


def test_every_statement_holds(pairs):
    assert [one.claim for one in statements(pairs) if not one.holds] == []


def wrong_fits(monkeypatch, name: str, wrong) -> set[str]:
    """The claims that do not hold, of those that are made where only one optimum is left, too."""
    monkeypatch.setattr(module, name, wrong)
    some = [(fit_covering(alpha, 2.5), fit_seeking(alpha, 2.5)) for alpha in (0.7, 0.8)]
    found = [*stationary(some), *closed_forms(), *window()]
    return {one.claim for one in found if not one.holds}


def test_alpha_on_the_wrong_half_is_seen(monkeypatch):
    """-H(q) + alpha H(q, p)"""

    def wrong(x, alpha, m):
        return -gaussian_entropy(x[1]) + alpha * cross_entropy(x[0], x[1], m)

    seen = wrong_fits(monkeypatch, "divergence", wrong)
    assert "sigma^2 = alpha / (1 - m^2 E[1 / cosh(m x)^2])" in seen
    assert {"sigma = sqrt(alpha), one mode", "m = 2.5: alpha = 0.6 seeks (mu)"} <= seen


def test_alpha_squared_is_seen_at_the_tie(pairs, monkeypatch):
    """Then d value / d alpha = -2 alpha H(q)."""
    monkeypatch.setattr(module, "divergence", lambda x, alpha, m: divergence(x, alpha**2, m))
    tie, rate = ties([(fit_covering(0.8, 2.5), fit_seeking(0.8, 2.5))])
    assert not tie.holds and not rate.holds
    assert [one.holds for one in ties(pairs)] == [False, False]


def test_an_entropy_without_its_constant_is_seen(monkeypatch):
    seen = wrong_fits(monkeypatch, "gaussian_entropy", lambda log_sigma: 1.0 * log_sigma)
    assert seen == {"value in closed form, one mode", "... and log 2 more, the other mode far"}


def test_a_mixture_that_is_not_halved_is_seen(monkeypatch):
    def wrong(mu, log_sigma, m):
        return cross_entropy(mu, log_sigma, m) - math.log(2)

    assert "... and log 2 more, the other mode far" in wrong_fits(
        monkeypatch, "cross_entropy", wrong
    )


def test_alpha_that_does_nothing_is_seen(monkeypatch):
    seen = wrong_fits(monkeypatch, "divergence", lambda x, alpha, m: divergence(x, 1.0, m))
    assert "m = 2.5: alpha = 0.6 seeks (mu)" in seen and "sigma = sqrt(alpha), one mode" in seen


def test_one_mode_in_closed_form():
    """m = 0: q is N(0, alpha) and D = alpha / 2 + log(2 pi) / 2 - alpha log(2 pi e alpha) / 2."""
    for alpha in ALPHAS:
        found = fit(alpha, 0.0, (0.3, 1.0))
        assert (found.mu, found.sigma) == pytest.approx((0, math.sqrt(alpha)), abs=1e-12)
        expected = alpha / 2 + math.log(2 * math.pi) / 2
        expected -= alpha * math.log(2 * math.pi * math.e * alpha) / 2
        assert found.value == pytest.approx(expected, abs=1e-12)
