"""One Gaussian fitted to two modes: where does D_alpha cover them, and where does it seek one?

    D_alpha(q || p) = -alpha H(q) + H(q, p)        [H-DPO]; alpha = 1 is the reverse KL
    q = N(mu, sigma^2),  p = N(-m, 1) / 2 + N(m, 1) / 2

For each alpha and m there may be a covering optimum (mu = 0) and a seeking one (mu near m); each is
looked for from its own side. A fit is stationary where

    mu = E_q[m tanh(m x)],    sigma^2 = alpha / (1 - m^2 E_q[1 / cosh(m x)^2])

so that far from the other mode sigma = sqrt(alpha): a mode is sought with less than its own spread
for alpha < 1, with more for alpha > 1. The picture that the reverse KL covers where alpha < 1 seeks
belongs to a window of distances: near modes are covered at smaller alpha too, and beyond m = 2.80
the reverse KL seeks by itself.

By the envelope theorem a value changes with alpha as d D / d alpha = -H(q); so Newton's method
finds where both optima are equally good.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.minimise import minimise
from eval.theory_table import Statement, worst

ALPHAS = tuple(round(0.1 * i, 1) for i in range(2, 13))
DISTANCES = tuple(round(0.1 * i, 1) for i in range(20, 31))  # m, half of that between the modes
NEWTON_STEPS = 8  # to a tie
LOG_2 = math.log(2)
SHOWN = 2.5  # the m whose optima are printed
FAR = 10.0  # a distance at which the other mode counts for nothing
PART = "one Gaussian for two modes"
Z = torch.linspace(-9, 9, 721, dtype=torch.float64)  # the trapezoid rule, exact to rounding up to
WEIGHTS = torch.exp(-Z * Z / 2) * (Z[1] - Z[0]) / math.sqrt(2 * math.pi)  # m * sigma of about 10


@dataclass(frozen=True)
class Fit:
    """A local optimum."""

    alpha: float
    m: float
    mu: float
    sigma: float
    value: float  # D_alpha
    entropy: float
    kl: float  # D_1

    @property
    def seeks(self) -> bool:
        return abs(self.mu) > self.m / 2


# ------------------------------------------------------------------------------------------------
# the divergence and its optima


def expectation(values: Tensor) -> Tensor:
    """E of values (721,) at mu + sigma * Z"""
    return WEIGHTS @ values


def gaussian_entropy(log_sigma: Tensor) -> Tensor:
    return log_sigma + math.log(2 * math.pi * math.e) / 2


def cross_entropy(mu: Tensor, log_sigma: Tensor, m: float) -> Tensor:
    """H(q, p), where log p(x) = -(x^2 + m^2) / 2 + log cosh(m x) - log sqrt(2 pi)."""
    u = m * (mu + log_sigma.exp() * Z)
    log_cosh = torch.logaddexp(u, -u) - LOG_2
    square = mu * mu + (2 * log_sigma).exp()
    return (square + m * m + math.log(2 * math.pi)) / 2 - expectation(log_cosh)


def divergence(x: Tensor, alpha: float, m: float) -> Tensor:
    """D_alpha of x = (mu, log sigma)."""
    mu, log_sigma = x
    return -alpha * gaussian_entropy(log_sigma) + cross_entropy(mu, log_sigma, m)


def fit(alpha: float, m: float, start: tuple[float, float]) -> Fit:
    """The local optimum that is reached from (mu, sigma)."""
    mu, sigma = start
    x = torch.tensor([mu, math.log(sigma)], dtype=torch.float64)
    x = minimise(lambda x: divergence(x, alpha, m), x)
    values = (divergence(x, alpha, m), gaussian_entropy(x[1]), divergence(x, 1.0, m))
    return Fit(alpha, m, x[0].item(), x[1].exp().item(), *(value.item() for value in values))


def fit_covering(alpha: float, m: float) -> Fit:
    """From the mean and variance of p, a little aside: a saddle point would hold exactly 0."""
    return fit(alpha, m, (0.01, math.hypot(1, m)))


def fit_seeking(alpha: float, m: float) -> Fit:
    return fit(alpha, m, (m, 1.0))


def best(fits: Sequence[Fit]) -> Fit:
    return min(fits, key=lambda one: one.value)


def fit_map() -> list[tuple[Fit, Fit]]:
    """What is reached from the covering and from the seeking side, for every m and alpha."""
    return [(fit_covering(alpha, m), fit_seeking(alpha, m)) for m in DISTANCES for alpha in ALPHAS]


def switch(pairs: Sequence[tuple[Fit, Fit]]) -> float:
    """The alpha at which covering and seeking are equally good: above it q covers.

    pairs: of one m; Newton's method begins where the two optima are nearest to a tie.
    """
    both = [pair for pair in pairs if pair[0].seeks != pair[1].seeks]
    assert both, f"m = {pairs[0][0].m}: nowhere two optima"
    nearest, _ = min(both, key=lambda pair: abs(lead(*pair)))
    m, alpha = nearest.m, nearest.alpha
    for _ in range(NEWTON_STEPS):
        covering, seeking = fit_covering(alpha, m), fit_seeking(alpha, m)
        alpha += lead(covering, seeking) / (covering.entropy - seeking.entropy)
    return alpha


def lead(covering: Fit, seeking: Fit) -> float:
    """How much better seeking is."""
    return covering.value - seeking.value


def seeks_beyond(alpha: float, low: float, high: float) -> float:
    """The m at which both optima are equally good, by the secant rule from two of them."""
    first, second = (lead(fit_covering(alpha, m), fit_seeking(alpha, m)) for m in (low, high))
    for _ in range(NEWTON_STEPS):
        low, high = high, high - second * (high - low) / (second - first)
        first, second = second, lead(fit_covering(alpha, high), fit_seeking(alpha, high))
    return high


# ------------------------------------------------------------------------------------------------
# the statements


def statements(pairs: Sequence[tuple[Fit, Fit]]) -> list[Statement]:
    return [*stationary(pairs), *closed_forms(), *window(), *ties(pairs)]


def stationary(pairs: Sequence[tuple[Fit, Fit]]) -> list[Statement]:
    """Stein's identities at every local optimum."""
    found, expected = [], []
    for one in (one for pair in pairs for one in pair):
        u = one.m * (one.mu + one.sigma * Z)
        mean = expectation(one.m * torch.tanh(u))
        bend = one.m**2 * expectation(1 / torch.cosh(u) ** 2)  # of log cosh(m x)
        found.append(torch.tensor([one.mu, one.sigma**2], dtype=torch.float64))
        expected.append(torch.stack([mean, one.alpha / (1 - bend)]))
    found, expected = torch.stack(found), torch.stack(expected)
    return [
        worst(PART, "mu = E[m tanh(m x)], at every optimum", found[:, 0], expected[:, 0], 1e-8),
        worst(PART, "sigma^2 = alpha / (1 - m^2 E[1 / cosh(m x)^2])",
              found[:, 1], expected[:, 1], 1e-8),
    ]  # fmt: skip


def closed_forms() -> list[Statement]:
    """One mode alone, by itself (m = 0) or with the other out of sight: sigma = sqrt(alpha)."""
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    alone = [fit(alpha, 0.0, (0.5, 2.0)) for alpha in ALPHAS]
    far = [fit(alpha, FAR, (FAR - 0.5, 1.2)) for alpha in ALPHAS]
    value = -alphas * (2 * math.pi * math.e * alphas).log() / 2
    value = value + (math.log(2 * math.pi) + alphas) / 2
    compared = (
        ("sigma = sqrt(alpha), one mode", [one.sigma for one in alone], alphas.sqrt()),
        ("sigma = sqrt(alpha), the other mode far", [one.sigma for one in far], alphas.sqrt()),
        ("value in closed form, one mode", [one.value for one in alone], value),
        ("... and log 2 more, the other mode far", [one.value for one in far], value + LOG_2),
    )
    return [
        worst(PART, claim, torch.tensor(found, dtype=torch.float64), theory, 1e-8)
        for claim, found, theory in compared
    ]


def window() -> list[Statement]:
    """What H-DPO's Figure 1 shows, at a distance at which it is so."""
    result = []
    for alpha, mu, what in ((1.0, 0.0, "the reverse KL covers"), (0.6, 2.5, "alpha = 0.6 seeks")):
        found = best((fit_covering(alpha, 2.5), fit_seeking(alpha, 2.5)))
        result.append(Statement(PART, f"m = 2.5: {what} (mu)", abs(found.mu), mu, 0.05))
    return result


def ties(pairs: Sequence[tuple[Fit, Fit]]) -> list[Statement]:
    """Both optima at the alpha of the switch, and how their values change with alpha."""
    m = 2.5
    tie = switch([pair for pair in pairs if pair[0].m == m])
    covering, seeking = fit_covering(tie, m), fit_seeking(tie, m)
    claim = f"m = 2.5: as good at alpha = {tie:.4f} (value)"
    equal = Statement(PART, claim, covering.value, seeking.value, 1e-9)
    step, rates, entropies = 1e-4, [], []
    for of in (fit_covering, fit_seeking):
        rates.append((of(tie + step, m).value - of(tie - step, m).value) / (2 * step))
        entropies.append(-of(tie, m).entropy)
    rates, entropies = torch.tensor([rates, entropies], dtype=torch.float64)
    return [equal, worst(PART, "d value / d alpha = -H(q)", rates, entropies, 1e-6)]


# ------------------------------------------------------------------------------------------------
# the map


def switches(pairs: Sequence[tuple[Fit, Fit]]) -> dict[float, float]:
    """m -> the alpha of its switch."""
    return {m: switch([pair for pair in pairs if pair[0].m == m]) for m in DISTANCES}


def print_map(pairs: Sequence[tuple[Fit, Fit]], tied: dict[float, float]) -> None:
    print("\nC: the best Gaussian covers both modes, S: it seeks one; *: there is no other optimum")
    print("    m   alpha " + " ".join(f"{alpha:4.1f}" for alpha in ALPHAS) + "   switch")
    for i, m in enumerate(DISTANCES):
        cells = [describe(pair) for pair in pairs[i * len(ALPHAS) : (i + 1) * len(ALPHAS)]]
        print(f"  {m:3.1f}         " + " ".join(f"{c:>4}" for c in cells) + f"   {tied[m]:6.4f}")


def describe(pair: tuple[Fit, Fit]) -> str:
    alone = pair[0].seeks == pair[1].seeks
    return ("S" if best(pair).seeks else "C") + ("*" if alone else "")


def print_optima(pairs: Sequence[tuple[Fit, Fit]]) -> None:
    """Both of m = SHOWN, where there are two."""
    print(f"\nthe optima at m = {SHOWN}         mu   sigma    value  entropy  reverse KL")
    for covering, seeking in (pair for pair in pairs if pair[0].m == SHOWN):
        alone = covering.seeks == seeking.seeks
        better = best((covering, seeking))
        for one in (better,) if alone else (covering, seeking):
            what = ("seeks" if one.seeks else "covers") + (", best" if one is better else "")
            print(f"  alpha {one.alpha:3.1f}  {what:12} {abs(one.mu):7.4f} {one.sigma:7.4f}"
                  f" {one.value:8.4f} {one.entropy:8.4f} {one.kl:11.4f}")  # fmt: skip
