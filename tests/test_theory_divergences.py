"""eval/theory_divergences.py: optima by hand and by scipy, SPL against itself, wrong losses.

python -m pytest tests/test_theory_divergences.py
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from eval import theory_divergences as module
from eval.theory_divergences import (
    DIVERGENCES,
    KL,
    TAUS,
    compare,
    divergence_between,
    f_ascend,
    f_optimum,
    f_train,
    inverse_slope,
    kl,
    name_of,
    nearest_spl,
    print_comparison,
    statements,
    to_rows,
)
from eval.theory_sequences import entropy, make_task
from eval.theory_table import Statement
from eval.theory_tabular import all_games, optimum
from model.objective import divergence_slopes, f_dpo_loss, preference_loss

FORWARD, SHANNON, ALPHA = DIVERGENCES
R5 = np.array([0.9, 0.1, -0.4, 0.3, -1.2])
REF5 = np.array([0.1, 0.3, 0.05, 0.35, 0.2])


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def failing(statements: list[Statement]) -> set[str]:
    return {one.claim for one in statements if not one.holds}


@pytest.fixture(scope="module")
def compared() -> list[module.Compared]:
    return compare(seed=0)


# ------------------------------------------------------------------------------------------------
# optima


@pytest.mark.parametrize(
    ("divergence", "difference", "expected"),
    [
        (FORWARD, 3 / 4, (2 / 3, 1 / 3)),
        (SHANNON, math.log(9 / 5), (3 / 4, 1 / 4)),
        (ALPHA, 2 * (math.sqrt(2) - math.sqrt(2 / 3)), (3 / 4, 1 / 4)),
    ],
    ids=map(name_of, DIVERGENCES),
)
def test_two_sequences_by_hand(divergence, difference, expected):
    """A flat reference; the rewards differ by beta times f'(u_1) - f'(u_2).

    1 - 1/u at 4/3 and 2/3: 1/4 and -1/2. log(2u / (1 + u)) at 3/2 and 1/2: log(6/5) and log(2/3).
    2 (1 - 1/sqrt(u)) at 3/2 and 1/2: the difference 2 (sqrt(2) - sqrt(2/3)).
    """
    flat, rewards = tensor([0.5, 0.5]).log(), tensor([7 + 0.3 * difference, 7.0])
    games = all_games(rewards)
    for found in (
        f_optimum(flat, rewards, 0.3, divergence),
        f_train(flat, games, 0.3, divergence),
        f_ascend(flat, rewards, 0.3, divergence),
    ):
        assert found.exp().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
def test_five_sequences_by_scipy(divergence):
    """lambda by Brent's method, with (f')^-1 in numpy; SLSQP on the simplex, D_f as a sum of f."""
    beta, (name, _) = 0.4, divergence
    inverse = {
        "forward_kl": lambda s: 1 / (1 - s),
        "jensen_shannon": lambda s: 1 / (2 * np.exp(-s) - 1),
        "alpha": lambda s: (1 - s / 2) ** -2,
    }[name]
    f = {
        "forward_kl": lambda u: u - 1 - np.log(u),
        "jensen_shannon": lambda u: u * np.log(u) - (1 + u) * np.log((1 + u) / 2),
        "alpha": lambda u: 2 * (np.sqrt(u) - 1) ** 2,
    }[name]
    edge = {"forward_kl": 1.0, "jensen_shannon": math.log(2), "alpha": 2.0}[name]  # f' < edge
    excess = lambda x: (REF5 * inverse((R5 - x) / beta)).sum() - 1  # noqa: E731
    normaliser = brentq(excess, max(R5) - beta * edge + 1e-9, max(R5), xtol=1e-14)
    by_root = REF5 * inverse((R5 - normaliser) / beta)

    def cost(p: np.ndarray) -> float:
        return beta * (REF5 * f(p / REF5)).sum() - p @ R5

    simplex = {"type": "eq", "fun": lambda p: p.sum() - 1}
    limits = {"bounds": [(1e-9, 1)] * 5, "constraints": simplex, "options": {"ftol": 1e-15}}
    by_reward = minimize(cost, np.full(5, 0.2), method="SLSQP", **limits).x
    reference_logps, rewards = tensor(REF5).log(), tensor(R5)
    theory = f_optimum(reference_logps, rewards, beta, divergence)
    assert theory.exp().tolist() == pytest.approx(by_root.tolist(), abs=1e-12)
    assert theory.exp().tolist() == pytest.approx(by_reward.tolist(), abs=1e-5)
    trained = f_train(reference_logps, all_games(rewards), beta, divergence)
    torch.testing.assert_close(trained, theory, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        f_ascend(reference_logps, rewards, beta, divergence), theory, rtol=0, atol=1e-10
    )
    distance = divergence_between(theory, reference_logps, divergence).item()
    assert distance == pytest.approx((REF5 * f(by_root / REF5)).sum(), rel=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=name_of)
def test_slopes_are_inverted_and_have_an_upper_edge(divergence):
    log_ratios = torch.linspace(-25, 5, 31, dtype=torch.float64)
    slopes = divergence_slopes(log_ratios, *divergence)
    torch.testing.assert_close(inverse_slope(slopes, divergence), log_ratios, rtol=0, atol=1e-9)
    assert inverse_slope(tensor([2.0]), divergence).item() == math.inf


# ------------------------------------------------------------------------------------------------
# beside SPL


def test_spl_is_its_own_neighbour():
    task = make_task(seed=0)
    s = optimum(task.reference_logps, task.rewards, 0.15, 0.1)
    found, tau = nearest_spl(s, task)
    torch.testing.assert_close(found, s, rtol=0, atol=1e-9)
    assert tau == pytest.approx(1.5, abs=1e-9)


def test_the_neighbour_has_the_means_asked_for_and_the_most_entropy():
    """Any policy with the same two means has less: 0.005 E[n^2] less at s (1 + n / 10), to second
    order, for each noise n without a part along the means."""
    task = make_task(seed=0)
    q = f_optimum(task.reference_logps, task.rewards, 0.2, FORWARD)
    logps, _ = nearest_spl(q, task)
    s = logps.exp()
    kept = torch.stack([task.reference_logps, task.rewards, torch.ones(256)])  # (3, 256)
    torch.testing.assert_close(kept @ s, kept @ q.exp(), rtol=0, atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(20, 256, generator=generator, dtype=torch.float64) - 0.5
    noise -= noise * s @ kept.T @ torch.linalg.inv(kept * s @ kept.T) @ kept
    for n in noise:
        other = s * (1 + n / 10)
        torch.testing.assert_close(kept @ other, kept @ s, rtol=0, atol=1e-12)
        lost = entropy(logps) - entropy(other.log())
        assert lost == pytest.approx(0.005 * (s @ n**2).item(), rel=0.01)


def test_all_are_as_far_and_their_numbers_are_their_own(compared):
    task = make_task(seed=0)
    assert [one.policy for one in compared[len(TAUS) :]] == [*map(name_of, DIVERGENCES)]
    for one, tau in zip(compared, TAUS, strict=False):
        assert one.tau == pytest.approx(tau, abs=1e-6) and abs(one.more_entropy) < 1e-9
        logps = optimum(task.reference_logps, task.rewards, tau * one.beta, one.beta)
        assert kl(logps, task.reference_logps) == pytest.approx(KL, abs=1e-9)
    for one, divergence in zip(compared[len(TAUS) :], DIVERGENCES, strict=True):
        logps = f_optimum(task.reference_logps, task.rewards, one.beta, divergence)
        assert kl(logps, task.reference_logps) == pytest.approx(KL, abs=1e-9)
        assert entropy(logps) == pytest.approx(one.entropy)
        assert (logps.exp() @ task.rewards).item() == pytest.approx(one.reward)
        assert (logps - task.reference_logps).min().item() == pytest.approx(one.least)


def test_at_an_equal_kl_other_divergences_buy_entropy_with_reward(compared):
    """The reverse KL has the most reward of all at its KL; SPL at 1.2 has more than f-DPO has."""
    by_name = {one.policy: one for one in compared}
    dpo, spread = by_name["spl, tau 1.0"], by_name["spl, tau 1.5"]
    for divergence in DIVERGENCES:
        other = by_name[name_of(divergence)]
        assert dpo.reward > spread.reward > other.reward
        assert dpo.entropy < other.entropy < spread.entropy


def test_the_table_is_printed(compared, capsys):
    print_comparison(to_rows(compared))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(compared) and lines[1].startswith("optima at KL = 1.0 from")
    numbers = lines[-3].split()
    assert numbers[0] == "forward_kl" and float(numbers[3]) == round(compared[-3].entropy, 4)


def test_each_number_has_its_column(capsys):
    row = {"policy": "alpha 0.5", "beta": 0.25, "reward": 1.5, "entropy": 2.5, "least": -3.25}
    print_comparison([row | {"tau": 1.125, "more_entropy": 0.0625, "divergence": 0.0625}])
    *_, line = capsys.readouterr().out.replace("|", "").splitlines()
    assert line.split() == "alpha 0.5 0.2500 1.5000 2.5000 -3.25 1.125 0.0625".split()


# ------------------------------------------------------------------------------------------------
# the statements, and wrong losses


def test_every_statement_holds(compared):
    found = statements(compared, seed=0)
    assert len(found) == len({one.claim for one in found}) == 11 and failing(found) == set()
    assert failing([module.ascended(one, seed) for one in DIVERGENCES for seed in (1, 2)]) == set()


def dpo(*x):
    return preference_loss(*x[:4], x[4], x[4])


def doubled(*x):
    """beta twice as large."""
    return f_dpo_loss(*x[:4], 2 * x[4], *x[5:])


def turned(*x):
    """pi_ref / pi in the place of pi / pi_ref."""
    return f_dpo_loss(*x[2:4], *x[:2], *x[4:])


def of_logps(*x):
    """f' of pi instead of pi / pi_ref: right where the reference is flat."""
    return f_dpo_loss(*x[:2], torch.zeros_like(x[2]), torch.zeros_like(x[3]), *x[4:])


@pytest.mark.parametrize("wrong", [dpo, doubled, turned, of_logps], ids=lambda one: one.__name__)
def test_a_wrong_loss_is_seen_under_every_divergence(wrong, monkeypatch):
    monkeypatch.setattr(module, "f_dpo_loss", wrong)
    found = [module.trained(one, sequences) for one in DIVERGENCES for sequences in (2, 5)]
    assert len(failing(found)) == 6


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "alpha"])
def test_a_divergence_in_another_s_place_is_seen(name, monkeypatch):
    others = {"forward_kl": 0.9, "jensen_shannon": 1e-6, "alpha": 0.49}
    other = ("alpha", others[name])
    monkeypatch.setattr(module, "f_dpo_loss", lambda *x: f_dpo_loss(*x[:5], *other))
    (divergence,) = (one for one in DIVERGENCES if one[0] == name)
    assert len(failing([module.trained(divergence, sequences) for sequences in (2, 5)])) == 2


def test_an_entropy_that_is_not_given_away_is_seen(compared):
    """Half of KL(q || s), and policies that are SPL's."""
    most, is_one = (one.claim for one in statements(compared, seed=0)[-2:])
    half = [replace(one, more_entropy=one.more_entropy / 2) for one in compared]
    assert failing(statements(half, seed=0)) == {most}
    same = [replace(one, more_entropy=0.0, divergence=0.0) for one in compared]
    assert failing(statements(same, seed=0)) == {is_one}
