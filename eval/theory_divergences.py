"""Does f-DPO reach its optimum, and what is that policy beside SPL's?

With u = pi / pi_ref and the divergence D_f = sum of pi_ref f(u), E[r] - beta D_f is largest at

    pi* = pi_ref (f')^-1((r - lambda) / beta)        [f-DPO]

where lambda makes it sum to 1. It is found by bisection: the sum falls as lambda grows, and with
f'(1) = 0 lambda is between the least reward and the largest.

What another divergence does to the entropy is asked over the 256 sequences of
eval/theory_sequences.py, with every policy KL nats from the reference. Of all policies with the
same E[r] and the same cross-entropy H(., pi_ref), SPL's optimum has the most entropy: both are
linear in pi, and its logarithm is linear in r and log pi_ref. For any other policy q,

    H(s) - H(q) = KL(q || s)        where s is SPL's with the E[r] and H(., pi_ref) of q

so that the tau of s is the temperature that q comes nearest to, and KL(q || s) the entropy that it
gives away for nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.minimise import minimise
from eval.theory_sequences import Task, entropy, make_task
from eval.theory_table import Statement, worst
from eval.theory_tabular import (
    BETA,
    EXACT,
    REFERENCES,
    SHARES,
    Games,
    all_games,
    draw,
    log_odds,
    optimum,
    population,
)
from model.objective import f_dpo_loss

PART = "f-DPO"
Divergence = tuple[str, float]  # as `f_dpo_loss` takes it: its name, and the order of alpha
DIVERGENCES: tuple[Divergence, ...] = (
    ("forward_kl", 1.0),
    ("jensen_shannon", 1.0),
    ("alpha", 0.5),
)
ASCENT_BETA = 0.5  # at BETA some probabilities are so small that E[r] no longer sees them
BISECTIONS = 60
KL = 1.0  # nats from the reference, of the policies that are compared
TAUS = (0.8, 1.0, 1.2, 1.5)
APART = 0.01  # nats of entropy that make another policy
LOG_2 = math.log(2)


# ------------------------------------------------------------------------------------------------
# the optimum in closed form, but for one number


def inverse_slope(slopes: Tensor, divergence: Divergence) -> Tensor:
    """log u where f'(u) = slope; inf where f' nowhere is as large."""
    name, order = divergence
    if name == "jensen_shannon":
        log_half = (slopes - LOG_2).clamp(max=0.0)  # log of u / (1 + u)
        return log_half - torch.log1p(-log_half.exp())
    return -torch.log1p((-order * slopes).clamp(min=-1.0)) / order


def f_optimum(
    reference_logps: Tensor, rewards: Tensor, beta: float, divergence: Divergence
) -> Tensor:
    """(K,) log of pi_ref (f')^-1((r - lambda) / beta)"""

    def policy(normaliser: float) -> Tensor:
        return reference_logps + inverse_slope((rewards - normaliser) / beta, divergence)

    too_much = lambda normaliser: policy(normaliser).logsumexp(0) > 0  # noqa: E731
    return policy(bisect(too_much, rewards.min().item(), rewards.max().item()))


def bisect(is_below: Callable[[float], bool | Tensor], low: float, high: float) -> float:
    """Where a condition ceases to hold between `low` and `high`."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


# ------------------------------------------------------------------------------------------------
# two ways to it


def f_train(reference_logps: Tensor, games: Games, beta: float, divergence: Divergence) -> Tensor:
    """(K,) log pi of the table that has the least expected `f_dpo_loss`, found from pi_ref."""
    reference = (reference_logps[games.winners], reference_logps[games.losers])

    def loss(logits: Tensor) -> Tensor:
        logps = logits.log_softmax(0)
        policy = (logps[games.winners], logps[games.losers])
        losses, _, _ = f_dpo_loss(*policy, *reference, beta, *divergence)
        return games.shares @ losses

    return minimise(loss, reference_logps).log_softmax(0)


def divergence_between(logps: Tensor, reference_logps: Tensor, divergence: Divergence) -> Tensor:
    """() D_f(pi || pi_ref), written without f'; logps, reference_logps: (K,)"""
    (name, order), p, reference = divergence, logps.exp(), reference_logps.exp()
    if name == "forward_kl":
        return reference @ (reference_logps - logps)
    if name == "jensen_shannon":  # twice what goes by the name
        middle = torch.logaddexp(logps, reference_logps) - LOG_2
        return p @ (logps - middle) + reference @ (reference_logps - middle)
    overlap = ((1 - order) * logps + order * reference_logps).exp().sum()
    return (1 - overlap) / (order * (1 - order))


def f_ascend(
    reference_logps: Tensor, rewards: Tensor, beta: float, divergence: Divergence
) -> Tensor:
    """(K,) log pi of the table with the most E[r] - beta D_f; no preference is asked."""

    def cost(logits: Tensor) -> Tensor:
        logps = logits.log_softmax(0)
        paid = beta * divergence_between(logps, reference_logps, divergence)
        return paid - logps.exp() @ rewards

    return minimise(cost, reference_logps).log_softmax(0)


# ------------------------------------------------------------------------------------------------
# beside SPL


@dataclass(frozen=True)
class Compared:
    """An optimum KL nats from the reference; SPL's with its E[r] and H(., pi_ref)."""

    policy: str
    beta: float
    reward: float  # E[r]
    entropy: float
    least: float  # the least log u: what becomes of the sequence that loses most
    tau: float  # of SPL's
    more_entropy: float  # that SPL's has
    divergence: float  # KL(q || s), from this one to SPL's


def compare(seed: int) -> list[Compared]:
    """SPL at each tau, then f-DPO with each divergence."""
    task = make_task(seed)
    both = task.reference_logps, task.rewards
    optima = {
        f"spl, tau {tau}": lambda beta, tau=tau: optimum(*both, tau * beta, beta) for tau in TAUS
    }
    optima |= {
        name_of(one): lambda beta, one=one: f_optimum(*both, beta, one) for one in DIVERGENCES
    }
    return [compare_one(name, make, task) for name, make in optima.items()]


def compare_one(name: str, make: Callable[[float], Tensor], task: Task) -> Compared:
    """`make(beta)` is the optimum (256,): the larger beta, the nearer to the reference."""
    far = lambda log_beta: kl(make(math.exp(log_beta)), task.reference_logps) > KL  # noqa: E731
    beta = math.exp(bisect(far, math.log(1e-3), math.log(10)))
    q = make(beta)
    s, tau = nearest_spl(q, task)
    return Compared(
        name,
        beta,
        (q.exp() @ task.rewards).item(),
        entropy(q),
        (q - task.reference_logps).min().item(),
        tau,
        entropy(s) - entropy(q),
        kl(q, s),
    )


def nearest_spl(logps: Tensor, task: Task) -> tuple[Tensor, float]:
    """SPL's optimum with the same E[r] and H(., pi_ref), and its tau.

    log s = (1 / tau) log pi_ref + r / alpha - log Z; the weights are those where log Z less the
    weighted means under pi is least.
    """
    features = torch.stack([task.reference_logps, task.rewards])  # (2, 256)
    means = features @ logps.exp()

    def cost(weights: Tensor) -> Tensor:
        return (weights @ features).logsumexp(0) - weights @ means

    weights = minimise(cost, torch.tensor([1.0, 1 / BETA], dtype=torch.float64))
    return (weights @ features).log_softmax(0), 1 / weights[0].item()


def kl(logps: Tensor, others: Tensor) -> float:
    return (logps.exp() @ (logps - others)).item()


def name_of(divergence: Divergence) -> str:
    name, order = divergence
    return f"alpha {order}" if name == "alpha" else name


# ------------------------------------------------------------------------------------------------
# statements and table


def statements(compared: Sequence[Compared], seed: int) -> list[Statement]:
    others = compared[len(TAUS) :]
    more, divergences = (
        torch.tensor([getattr(one, name) for one in others], dtype=torch.float64)
        for name in ("more_entropy", "divergence")
    )
    is_one = "f-DPO is SPL at some tau (KL in nats, least of all three)"
    return [
        *(trained(one, sequences) for one in DIVERGENCES for sequences in (2, 5)),
        *(ascended(one, seed) for one in DIVERGENCES),
        worst(PART, "SPL's, of equal E[r] and H(., pi_ref): KL more entropy", more, divergences,
              1e-9),
        Statement(PART, is_one, divergences.min().item(), 0.0, APART, refutes=True),
    ]  # fmt: skip


def trained(divergence: Divergence, sequences: int) -> Statement:
    """On every share of votes, from both references."""
    computed, theory = [], []
    for (count, _), probabilities in REFERENCES.items():
        if count != sequences:
            continue
        reference_logps = torch.tensor(probabilities, dtype=torch.float64).log()
        for share in SHARES:
            rewards = population(share, sequences).log()
            found = f_train(reference_logps, all_games(rewards), BETA, divergence)
            computed.append(log_odds(found))
            theory.append(log_odds(f_optimum(reference_logps, rewards, BETA, divergence)))
    claim = f"{name_of(divergence)}, f_dpo_loss trained, {sequences} sequences (log-odds)"
    return worst(PART, claim, torch.stack(computed), torch.stack(theory), EXACT)


def ascended(divergence: Divergence, seed: int) -> Statement:
    rewards, reference_logps = draw(seed + 2, 2, 5)
    reference_logps = reference_logps.log_softmax(0)
    found = f_ascend(reference_logps, rewards, ASCENT_BETA, divergence)
    theory = f_optimum(reference_logps, rewards, ASCENT_BETA, divergence)
    claim = f"{name_of(divergence)}, E[r] - beta D_f ascended (log-odds)"
    return worst(PART, claim, log_odds(found), log_odds(theory), EXACT)


def to_rows(compared: Sequence[Compared]) -> list[dict]:
    return [asdict(one) for one in compared]


def print_comparison(rows: Sequence[dict]) -> None:
    print(f"\noptima at KL = {KL} from the reference; SPL with the same E[r] and H(., pi_ref)")
    print("  policy            beta     E[r]  entropy  least log u |  SPL's tau  more entropy")
    for row in rows:
        numbers = f"{row['beta']:7.4f} {row['reward']:8.4f} {row['entropy']:8.4f}"
        numbers += f" {row['least']:12.2f} | {row['tau']:10.3f} {row['more_entropy']:13.4f}"
        print(f"  {row['policy']:14} {numbers}")
