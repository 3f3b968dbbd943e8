"""eval/theory_tabular.py: scipy's optima, arithmetic by hand, and losses that are wrong.

A wrong loss takes the place of `preference_loss`, and the statements that see it must not hold.
python -m pytest tests/test_theory_tabular.py
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from eval import theory_tabular as module
from eval.theory_table import Statement
from eval.theory_tabular import (
    all_games,
    ascend,
    decomposition,
    expected_loss,
    finite_batches,
    log_odds,
    optimum,
    proportional_representation,
    sampled_games,
    temperatures,
    train,
    trained_share,
    two_ways_to_one_optimum,
)
from model.objective import preference_loss

R5 = np.array([0.9, 0.1, -0.4, 0.3, -1.2])
REF5 = np.array([0.1, 0.3, 0.05, 0.35, 0.2])


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def failing(statements: list[Statement]) -> set[str]:
    return {one.claim for one in statements if not one.holds}


# ------------------------------------------------------------------------------------------------
# the numbers


def test_two_sequences_by_hand():
    """Rewards log 4 and 0: the first wins 4/5 of the games.

    pi = (1/2, 1/2) and pi_ref = (1/5, 4/5) at coefficients 1 and 1/2: the margin is
    -log(1/4) / 2 = log 2 where the first wins, so sigmoid = 2/3, and 1/3 where the second does;
    the loss is -0.8 log(2/3) - 0.2 log(1/3) = 0.544094.
    """
    games = all_games(tensor([math.log(4), 0.0]))
    assert games.winners.tolist() == [0, 1] and games.losers.tolist() == [1, 0]
    torch.testing.assert_close(games.shares, tensor([0.8, 0.2]))
    loss = expected_loss(tensor([0.5, 0.5]).log(), tensor([0.2, 0.8]).log(), games, (1.0, 0.5))
    assert loss.item() == pytest.approx(-0.8 * math.log(2 / 3) - 0.2 * math.log(1 / 3), abs=1e-14)
    assert loss.item() == pytest.approx(0.544094, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.8, (0.999999, 0.999, 0.941, 0.800)), (0.6, (0.983, 0.884, 0.692, 0.600))],
)
def test_shares_that_are_printed_of_the_theory(share, expected):
    """p^(1/alpha): 0.8^10 / (0.8^10 + 0.2^10) = 1 / (1 + 4^-10) = 0.99999905; 1 / (1 + 1/16)..."""
    found = [trained_share(alpha, 0.1, share) for alpha in (0.1, 0.2, 0.5, 1.0)]
    assert found[0] == pytest.approx(expected[0], abs=5e-7 if share == 0.8 else 5e-4)
    assert found[1:] == pytest.approx(expected[1:], abs=5e-4)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("reference", [0.5, 0.2])
def test_two_sequences_by_a_root_finder(alpha, reference):
    """The slope of the expected loss in the log-odds x, written out, is zero where scipy says."""
    p, beta = 0.95, 0.1
    offset = beta * math.log(reference / (1 - reference))

    def slope(x: float) -> float:
        h = alpha * x - offset
        return -p / (1 + math.exp(h)) + (1 - p) / (1 + math.exp(-h))

    expected = brentq(slope, -100, 100, xtol=1e-13)
    share = trained_share(alpha, beta, p, reference)
    reference_logps = tensor([reference, 1 - reference]).log()
    games = all_games(tensor([p, 1 - p]).log())
    found = log_odds(train(reference_logps, games, "spl", alpha, beta)).item()
    assert found == pytest.approx(expected, abs=1e-9)
    assert share == pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-12)


def test_five_sequences_by_scipy():
    """BFGS in numpy on the written-out loss, and SLSQP on the simplex for the RLHF form."""
    alpha, beta = 0.5, 0.3
    wins = 1 / (1 + np.exp(R5[None, :] - R5[:, None]))  # of the row's sequence

    def loss(x: np.ndarray) -> float:
        h = alpha * (x[:, None] - x[None, :]) - beta * np.subtract.outer(*[np.log(REF5)] * 2)
        return (wins * np.logaddexp(0, -h) * (1 - np.eye(5))).sum() / 10

    def cost(p: np.ndarray) -> float:
        return -(p @ (R5 - alpha * np.log(p) + beta * np.log(REF5)))

    by_pairs = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    simplex = {"type": "eq", "fun": lambda p: p.sum() - 1}
    limits = {"bounds": [(1e-9, 1)] * 5, "constraints": simplex, "options": {"ftol": 1e-15}}
    by_reward = minimize(cost, np.full(5, 0.2), method="SLSQP", **limits).x
    args = (tensor(REF5).log(), tensor(R5))
    trained = train(args[0], all_games(args[1]), "spl", alpha, beta)
    ascended, theory = ascend(*args, alpha, beta), optimum(*args, alpha, beta)
    assert log_odds(trained).tolist() == pytest.approx(by_pairs[0] - by_pairs[1:], abs=1e-5)
    assert ascended.exp().tolist() == pytest.approx(by_reward, abs=1e-6)
    torch.testing.assert_close(trained, theory, rtol=0, atol=1e-10)
    torch.testing.assert_close(ascended, theory, rtol=0, atol=1e-10)


def test_votes_are_drawn_with_the_share_and_counted():
    """The policy of a batch with k of n votes has the log-odds log(k / (n - k)) / alpha."""
    games = sampled_games(0.8, seed=3)
    k = int((games.winners == 0).sum())
    assert abs(k - 800) < 4 * math.sqrt(1000 * 0.16)
    assert torch.equal(games.winners + games.losers, torch.ones(1000, dtype=torch.long))
    found = log_odds(train(tensor([0.5, 0.5]).log(), games, "spl", 0.2, 0.1)).item()
    assert found == pytest.approx(math.log(k / (1000 - k)) / 0.2, abs=1e-9)


# ------------------------------------------------------------------------------------------------
# the statements, and wrong losses


def test_every_statement_holds():
    found = module.statements(seed=0)
    assert failing(found) == set()
    assert len({one.claim for one in found}) == len(found)


def test_another_seed_holds_too():
    """Of seed 5's votes exactly 800 are for the first: an error of 0."""
    assert sampled_games(0.8, 5).winners.sum() == 200
    assert failing([decomposition(5), *two_ways_to_one_optimum(5), *finite_batches(5)]) == set()


@pytest.mark.parametrize("seed", [18, 38, 76, 143])
def test_the_ascent_does_not_end_where_a_softmax_is_flat(seed):
    """A long step from these references leads to one sequence alone, where no gradient is left."""
    assert failing(two_ways_to_one_optimum(seed)) == set()


def swapped(*x):
    """The two coefficients in each other's place."""
    return preference_loss(*x[:4], x[5], x[4])


def plus(*x):
    """The reference's term with the wrong sign."""
    return preference_loss(*x[:2], x[3], x[2], *x[4:])


def coupled(*x):
    """DPO, whatever alpha."""
    return preference_loss(*x[:4], x[5], x[5])


def halved(*x):
    """A policy's term half as large."""
    return preference_loss(*x[:4], x[4] / 2, x[5])


def upside_down(*x):
    """The loser preferred."""
    return preference_loss(x[1], x[0], x[3], x[2], *x[4:])


WRONG = [swapped, plus, coupled, halved, upside_down]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: one.__name__)
def test_a_wrong_loss_is_seen_by_every_part(wrong, monkeypatch):
    """A flat reference cannot see the reference's sign; half a policy's term is still a DPO."""
    monkeypatch.setattr(module, "preference_loss", wrong)
    assert "preference_loss, trained (log-odds)" in failing(two_ways_to_one_optimum(0))
    shares = failing(proportional_representation())
    assert {claim for claim in shares if "not flat" in claim} == {
        f"pi_ref^(b/a) p^(1/a), {k} sequences, not flat (log-odds)" for k in (2, 5)
    }
    assert (wrong is plus) != any(", flat" in claim for claim in shares)
    batches = failing(finite_batches(0))
    assert (wrong is plus) != (
        "alpha * the policy's error = the votes' error (log-odds)" in batches
    )
    if wrong in (swapped, coupled):
        assert len(failing(temperatures(0))) == 2


def test_h_dpo_with_the_coefficients_of_spl_is_seen(monkeypatch):
    real = module.coefficients

    def wrong(objective: str, alpha: float, beta: float) -> tuple[float, float]:
        return real("spl" if objective == "h_dpo" else objective, alpha, beta)

    monkeypatch.setattr(module, "coefficients", wrong)
    assert [one.holds for one in temperatures(0)] == [True, False]


def test_a_coupled_entropy_is_seen(monkeypatch):
    """RLHF's form with one weight for both halves: E[r] - beta KL."""

    def reverse_kl(logps, reference_logps, rewards, alpha, beta):
        return logps.exp() @ (rewards - beta * (logps - reference_logps))

    monkeypatch.setattr(module, "regularised_reward", reverse_kl)
    seen = failing(two_ways_to_one_optimum(0))
    assert seen == {
        "E[r] + alpha H - beta H(pi, pi_ref), ascended (log-odds)",
        "the one against the other (log-odds)",
        "largest value = alpha log sum pi_ref^(b/a) exp(r/a)",
    }


def test_rewards_of_another_kind_are_seen(monkeypatch):
    """beta (log pi - log pi_ref), as DPO logs it, is not the implicit reward of SPL."""

    def dpo_rewards(pc, pr, rc, rr, a, b):
        return preference_loss(pc, pr, rc, rr, a, b)[0], a * (pc - rc), a * (pr - rr)

    monkeypatch.setattr(module, "preference_loss", dpo_rewards)
    claims = failing(two_ways_to_one_optimum(0))
    assert claims == {"differences of implicit rewards = those of rewards"}


def test_the_forward_divergence_is_seen(monkeypatch):
    forward = torch.nn.functional.kl_div
    monkeypatch.setattr(module.F, "kl_div", lambda a, b, **more: forward(b, a, **more))
    assert not decomposition(0).holds
