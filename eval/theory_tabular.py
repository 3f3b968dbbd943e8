"""Policies that are tables: a few whole sequences, every expectation exact, trained to rounding.

The preferences are Bradley and Terry's: y wins against y' with probability sigmoid(r(y) - r(y')).
With r = log p that is p(y) / (p(y) + p(y')): the votes of a population divided p(y) to p(y').
The expected loss over all ordered pairs goes through `preference_loss`; what it leads to is
compared with the optimum in closed form,

    pi* ∝ pi_ref^(reference_coef / policy_coef) * exp(r / policy_coef)
    SPL:  pi_ref^(beta / alpha) * p^(1 / alpha)             [SPL Prop. 3.2]

in log-odds, and not in probability, where an answer near 1 hides its errors.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.minimise import minimise
from eval.theory_table import Statement, worst
from model.objective import coefficients, preference_loss

BETA = 0.1
ALPHAS = (0.1, 0.2, 0.5, 1.0)
SHARES = (0.6, 0.8, 0.95)  # of the population that prefers the first sequence
TAUS = (0.5, 0.8, 1.0, 1.2, 2.0)
LABELS = 1000  # in a finite batch
EXACT = 1e-6  # in log-odds
REFERENCES = {  # by the number of sequences; not flat: against the majority
    (2, "flat"): (0.5, 0.5),
    (2, "not flat"): (0.2, 0.8),
    (5, "flat"): (0.2, 0.2, 0.2, 0.2, 0.2),
    (5, "not flat"): (0.05, 0.1, 0.15, 0.3, 0.4),
}


@dataclass(frozen=True)
class Games:
    """Pairs of sequences with a winner."""

    winners: Tensor  # (P,) which sequence of K
    losers: Tensor  # (P,)
    shares: Tensor  # (P,) how much of the data is this; they sum to 1


# ------------------------------------------------------------------------------------------------
# preferences, losses, policies


def all_games(rewards: Tensor) -> Games:
    """Every ordered pair of K sequences, as often as Bradley and Terry expect it; rewards: (K,)"""
    winners, losers = (~torch.eye(len(rewards), dtype=torch.bool)).nonzero(as_tuple=True)
    wins = torch.sigmoid(rewards[winners] - rewards[losers])  # (K * (K - 1),)
    return Games(winners, losers, wins / wins.sum())


def sampled_games(share: float, seed: int) -> Games:
    """LABELS votes between two sequences; the first wins each with probability `share`."""
    generator = torch.Generator().manual_seed(seed)
    losers = (torch.rand(LABELS, generator=generator, dtype=torch.float64) < share).long()
    return Games(1 - losers, losers, torch.full((LABELS,), 1 / LABELS, dtype=torch.float64))


def expected_loss(
    logps: Tensor, reference_logps: Tensor, games: Games, coefs: tuple[float, float]
) -> Tensor:
    """() the mean of `preference_loss` over games between K sequences; logps, ...: (K,)"""
    policy = (logps[games.winners], logps[games.losers])
    reference = (reference_logps[games.winners], reference_logps[games.losers])
    losses, _, _ = preference_loss(*policy, *reference, *coefs)
    return games.shares @ losses


def train(
    reference_logps: Tensor, games: Games, objective: str, alpha: float, beta: float
) -> Tensor:
    """(K,) log pi of the table that has the least expected loss, found from the reference."""
    coefs = coefficients(objective, alpha, beta)

    def loss(logits: Tensor) -> Tensor:
        return expected_loss(logits.log_softmax(0), reference_logps, games, coefs)

    return minimise(loss, reference_logps).log_softmax(0)


def regularised_reward(
    logps: Tensor, reference_logps: Tensor, rewards: Tensor, alpha: float, beta: float
) -> Tensor:
    """() E[r] + alpha H(pi) - beta H(pi, pi_ref): what RLHF maximises, its two halves apart."""
    return logps.exp() @ (rewards - alpha * logps + beta * reference_logps)


def ascend(reference_logps: Tensor, rewards: Tensor, alpha: float, beta: float) -> Tensor:
    """(K,) log pi of the table with the most regularised reward; no preference is asked."""

    def cost(logits: Tensor) -> Tensor:
        logps = logits.log_softmax(0)
        return -regularised_reward(logps, reference_logps, rewards, alpha, beta)

    return minimise(cost, reference_logps).log_softmax(0)


def optimum(reference_logps: Tensor, rewards: Tensor, alpha: float, beta: float) -> Tensor:
    """(K,) log of pi_ref^(beta / alpha) exp(r / alpha) / Z"""
    return ((beta * reference_logps + rewards) / alpha).log_softmax(0)


def log_odds(logps: Tensor) -> Tensor:
    """(K - 1,) of the first sequence against each other one."""
    return logps[0] - logps[1:]


# ------------------------------------------------------------------------------------------------
# the statements


def statements(seed: int) -> list[Statement]:
    return [
        decomposition(seed),
        *two_ways_to_one_optimum(seed),
        *proportional_representation(),
        *finite_batches(seed),
        *temperatures(seed),
    ]


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decomposition(seed: int) -> Statement:
    """The identity that both papers begin with, on 100 pairs of distributions over 7 sequences."""
    logps, reference_logps = (3 * draw(seed, 2, 100, 7)).log_softmax(-1)
    divergence = F.kl_div(reference_logps, logps, reduction="none", log_target=True).sum(-1)
    entropy = torch.special.entr(logps.exp()).sum(-1)
    cross_entropy = -(logps.exp() * reference_logps).sum(-1)
    claim = "KL(pi || pi_ref) = -H(pi) + H(pi, pi_ref)"
    return worst("decomposition", claim, divergence, cross_entropy - entropy, 1e-12)


def two_ways_to_one_optimum(seed: int) -> list[Statement]:
    """RLHF's form ascended directly, and the preference form, at four pairs of weights."""
    rewards, reference_logps = draw(seed, 2, 5)
    reference_logps = reference_logps.log_softmax(0)
    games = all_games(rewards)
    found = {"theory": [], "ascended": [], "trained": [], "most": [], "value": [], "implied": []}
    for alpha, beta in ((0.5, 0.1), (1.0, 0.1), (0.3, 0.3), (0.3, 0.6)):
        ascended = ascend(reference_logps, rewards, alpha, beta)
        trained = train(reference_logps, games, "spl", alpha, beta)
        found["theory"].append(log_odds(optimum(reference_logps, rewards, alpha, beta)))
        found["ascended"].append(log_odds(ascended))
        found["trained"].append(log_odds(trained))
        found["most"].append(alpha * ((beta * reference_logps + rewards) / alpha).logsumexp(0))
        found["value"].append(regularised_reward(ascended, reference_logps, rewards, alpha, beta))
        found["implied"].append(implied_rewards(trained, reference_logps, games, alpha, beta))
    found = {name: torch.stack(values) for name, values in found.items()}
    margins = rewards[games.winners] - rewards[games.losers]
    compared = (
        ("E[r] + alpha H - beta H(pi, pi_ref), ascended (log-odds)", "ascended", found["theory"]),
        ("preference_loss, trained (log-odds)", "trained", found["theory"]),
        ("the one against the other (log-odds)", "ascended", found["trained"]),
        ("largest value = alpha log sum pi_ref^(b/a) exp(r/a)", "value", found["most"]),
        ("differences of implicit rewards = those of rewards", "implied", margins),
    )
    return [worst("optimum", claim, found[name], to, EXACT) for claim, name, to in compared]


def implied_rewards(
    logps: Tensor, reference_logps: Tensor, games: Games, alpha: float, beta: float
) -> Tensor:
    """(P,) what `preference_loss` says that the winner's reward is above the loser's."""
    policy = (logps[games.winners], logps[games.losers])
    reference = (reference_logps[games.winners], reference_logps[games.losers])
    coefs = coefficients("spl", alpha, beta)
    _, chosen, rejected = preference_loss(*policy, *reference, *coefs)
    return chosen - rejected


def population(share: float, sequences: int) -> Tensor:
    """(K,) p: the first sequence has the share, each further one half as much as that before."""
    rest = 0.5 ** torch.arange(1, sequences, dtype=torch.float64)
    return torch.cat([torch.tensor([share], dtype=torch.float64), (1 - share) * rest / rest.sum()])


def proportional_representation() -> list[Statement]:
    part = "proportional representation"
    result = []
    for (sequences, shape), probabilities in REFERENCES.items():
        reference_logps = torch.tensor(probabilities, dtype=torch.float64).log()
        computed, theory = [], []
        for share in SHARES:
            p = population(share, sequences)
            for alpha in ALPHAS:
                trained = train(reference_logps, all_games(p.log()), "spl", alpha, BETA)
                computed.append(log_odds(trained))
                theory.append(log_odds(BETA / alpha * reference_logps + p.log() / alpha))
        claim = f"pi_ref^(b/a) p^(1/a), {sequences} sequences, {shape} (log-odds)"
        result.append(worst(part, claim, torch.stack(computed), torch.stack(theory), EXACT))
    for alpha in ALPHAS:
        share = trained_share(alpha, BETA, 0.8)
        claim = f"share at p = 0.8, flat, alpha = {alpha}"
        result.append(Statement(part, claim, share, shares_power(0.8, alpha), 1e-9))
    return result


def trained_share(alpha: float, beta: float, share: float, reference: float = 0.5) -> float:
    """pi of the first of two sequences after SPL; reference: pi_ref of the first."""
    reference_logps = torch.tensor([reference, 1 - reference], dtype=torch.float64).log()
    games = all_games(population(share, 2).log())
    return train(reference_logps, games, "spl", alpha, beta)[0].exp().item()


def shares_power(share: float, alpha: float) -> float:
    """p^(1/alpha) / (p^(1/alpha) + (1 - p)^(1/alpha))"""
    return 1 / (1 + (1 / share - 1) ** (1 / alpha))


def finite_batches(seed: int) -> list[Statement]:
    """One batch of votes instead of the expectation: the same batch at each alpha.

    The batch's own log-odds are those of its share of votes, with the standard error
    1 / sqrt(n p (1 - p)); the policy's error is 1 / alpha times the batch's. (In probability, that
    of the share is pi (1 - pi) times this: largest where people are evenly divided.)
    """
    share, part = 0.8, f"one batch of {LABELS} votes"
    flat = torch.full((2,), 0.5, dtype=torch.float64).log()
    games = sampled_games(share, seed)
    error = 1 / math.sqrt(LABELS * share * (1 - share))
    won = games.shares[games.winners == 0].sum()
    batch_error = torch.logit(won) - math.log(share / (1 - share))
    result, errors = [], []
    for alpha in ALPHAS:
        found = log_odds(train(flat, games, "spl", alpha, BETA))
        expected = math.log(share / (1 - share)) / alpha
        claim = f"log-odds at p = 0.8, alpha = {alpha}, within 4 standard errors"
        result.append(Statement(part, claim, found.item(), expected, 4 * error / alpha))
        errors.append((found - expected) * alpha)
    claim = "alpha * the policy's error = the votes' error (log-odds)"
    result.append(worst(part, claim, torch.cat(errors), batch_error, EXACT))
    return result


def temperatures(seed: int) -> list[Statement]:
    """SPL and H-DPO at a temperature of tau, against DPO's policy raised to 1 / tau."""
    rewards, reference_logps = draw(seed + 1, 2, 5)
    reference_logps = reference_logps.log_softmax(0)
    games = all_games(rewards)
    tempered = log_odds(train(reference_logps, games, "dpo", 1.0, BETA))
    result = []
    for objective, beta_times in (("spl", BETA), ("h_dpo", 1.0)):
        found = [
            log_odds(train(reference_logps, games, objective, tau * beta_times, BETA))
            for tau in TAUS
        ]
        theory = [tempered / tau for tau in TAUS]
        claim = f"{objective} = DPO^(1/tau) / Z, tau from 0.5 to 2 (log-odds)"
        found, theory = torch.stack(found), torch.stack(theory)
        result.append(worst("temperature of a table", claim, found, theory, EXACT))
    return result
