"""A temperature of whole sequences, a temperature of tokens, and resampling: what differs.

All from one policy pi, a transformer trained with DPO, over all of its 256 sequences.

    sequences   s = pi^(1/tau) / Z: what SPL at alpha / beta = tau is to be
    tokens      q: each next-token distribution raised to 1 / t and normalised behind every
                beginning by itself, with the t at which q has the entropy of s

Of all distributions with its entropy, s has the likeliest sequences under pi:

    E_s[log pi] - E_q[log pi] = tau * KL(q || s)        where H(q) = H(s)

so that a temperature of tokens pays tau * KL(q || s) nats for the same entropy. Which sequences it
moves follows from its normalisers, one behind each beginning and large behind an uncertain one:
for tau > 1 it favours sequences all of whose beginnings are certain, and for tau < 1 those that
pass through uncertain ones, since it looks at the next token and not at what can follow.

The control that needs no training: draws from pi with the weights pi^(1/tau - 1) of
eval/resample.py are draws from s. What is lost is their number; of very many, the share

    (sum of pi^(1/tau))^2 / sum of pi^(2/tau - 1)

counts (Kish's effective size).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eval.resample import effective_size, log_weights
from eval.theory_sequences import (
    CLOSE,
    LENGTH,
    VOCABULARY,
    Policy,
    all_sequences,
    entropy,
    total_variation,
)
from eval.theory_table import Statement, worst

PART = "temperatures of one policy"
DRAWS = 100_000
SHOWN = 3  # sequences that a temperature of tokens favours, and as many that it neglects
APART = 0.01  # in total variation, at tau = 2: more is another distribution


def temper(logps: Tensor, tau: float) -> Tensor:
    """(N,) log of pi^(1/tau) / Z over whole sequences."""
    return (logps / tau).log_softmax(0)


def next_token_logps(logps: Tensor) -> list[Tensor]:
    """For each place of the sequence log pi(token | beginning): (4, 1, 1, 1), (4, 4, 1, 1), ..."""
    tree = logps.reshape([VOCABULARY] * LENGTH)
    beginnings = [
        tree.logsumexp(tuple(range(place + 1, LENGTH)), keepdim=True) for place in range(LENGTH - 1)
    ]
    return [some.log_softmax(place) for place, some in enumerate([*beginnings, tree])]


def temper_tokens(logps: Tensor, t: float) -> Tensor:
    """(256,) log-probabilities after each token was drawn at temperature t."""
    steps = enumerate(next_token_logps(logps))
    return sum((step / t).log_softmax(place) for place, step in steps).flatten()


def uncertainty(logps: Tensor) -> Tensor:
    """(256,) the next-token entropies, in nats, summed over the beginnings of each sequence."""
    steps = enumerate(next_token_logps(logps))
    entropies = [torch.special.entr(step.exp()).sum(place, keepdim=True) for place, step in steps]
    return sum(one.expand([VOCABULARY] * LENGTH) for one in entropies).flatten()


def same_entropy(logps: Tensor, target: float) -> float:
    """The temperature of tokens that gives the sequences an entropy of `target` nats."""
    low, high = math.log(0.02), math.log(50.0)
    for _ in range(60):
        middle = (low + high) / 2
        if entropy(temper_tokens(logps, math.exp(middle))) < target:
            low = middle
        else:
            high = middle
    return math.exp(low)


# ------------------------------------------------------------------------------------------------
# resampling


def effective_share(logps: Tensor, tau: float) -> float:
    """Of very many draws, the share that counts after they were weighted."""
    mean, square = moments(logps, tau)
    return mean**2 / square


def moments(logps: Tensor, tau: float) -> tuple[float, float]:
    """E[w] and E[w^2] of a draw's weight w = pi^(1/tau - 1)."""
    mean = (logps / tau).logsumexp(0).exp()
    square = (logps * (2 / tau - 1)).logsumexp(0).exp()
    return mean.item(), square.item()


def share_error(logps: Tensor, tau: float) -> float:
    """The standard error of the effective share of DRAWS draws, to first order."""
    mean, square = moments(logps, tau)
    weights = ((1 / tau - 1) * logps).exp()
    influence = 2 * mean / square * weights - mean**2 / square**2 * weights**2  # (256,)
    p = logps.exp()
    variance = p @ influence**2 - (p @ influence) ** 2
    return math.sqrt(variance.item() / DRAWS)


def drawn_share(logps: Tensor, tau: float, seed: int) -> float:
    """The effective share of DRAWS draws, by eval/resample.py."""
    rng = np.random.default_rng(seed)
    p = logps.exp().numpy()
    drawn = rng.choice(logps.numpy(), size=DRAWS, p=p / p.sum())
    return effective_size(log_weights(drawn, tau)) / DRAWS


def reweighted(logps: Tensor, tau: float) -> Tensor:
    """(256,) log of pi times the weights of eval/resample.py, normalised."""
    weights = torch.from_numpy(log_weights(logps.numpy(), tau))
    return (logps + weights).log_softmax(0)


# ------------------------------------------------------------------------------------------------
# the statements


def statements(policies: Sequence[Policy], seed: int) -> list[Statement]:
    pi, others = split(policies)
    taus = [policy.tau for policy in others]
    sequences = torch.stack([temper(pi, tau) for tau in taus])
    weighted = torch.stack([reweighted(pi, tau) for tau in taus])
    prices, theory, distance = [], [], 0.0
    for tau, s in zip(taus, sequences, strict=True):
        q = temper_tokens(pi, same_entropy(pi, entropy(s)))
        prices.append((s.exp() - q.exp()) @ pi)
        theory.append(tau * q.exp() @ (q - s))
        distance = total_variation(q, s)
    prices, theory = torch.stack(prices), torch.stack(theory)
    is_one = f"a temperature of tokens is one of sequences (distance, tau = {taus[-1]})"
    return [
        *(spl_is_tempered_dpo(pi, policy) for policy in others),
        worst(
            PART, "the weights of resample give pi^(1/tau) / Z (log)", weighted, sequences, 1e-12
        ),
        *(resampled(pi, tau, seed) for tau in taus),
        worst(
            PART, "same entropy: E_s[log pi] - E_q[log pi] = tau KL(q || s)", prices, theory, 1e-9
        ),
        Statement(PART, is_one, distance, 0.0, APART, refutes=True),
    ]


def split(policies: Sequence[Policy]) -> tuple[Tensor, list[Policy]]:
    """(256,) log-probabilities of the policy with tau = 1, which is DPO's; the other policies."""
    (dpo,) = (policy.logps for policy in policies if policy.tau == 1)
    return dpo, [policy for policy in policies if policy.tau != 1]


def spl_is_tempered_dpo(pi: Tensor, policy: Policy) -> Statement:
    distance = total_variation(policy.logps, temper(pi, policy.tau))
    claim = f"SPL to DPO^(1/tau) / Z, both trained (distance, tau = {policy.tau})"
    return Statement(PART, claim, distance, 0.0, CLOSE)


def resampled(pi: Tensor, tau: float, seed: int) -> Statement:
    claim = f"effective share of {DRAWS} draws, tau = {tau}, 4 standard errors"
    share, error = effective_share(pi, tau), share_error(pi, tau)
    return Statement(PART, claim, drawn_share(pi, tau, seed), share, 4 * error)


# ------------------------------------------------------------------------------------------------
# the table


def compare(policies: Sequence[Policy]) -> list[dict]:
    """For each tau but 1, what stands beside s = pi^(1/tau) / Z, all over the same sequences."""
    pi, others = split(policies)
    rows = []
    for policy in others:
        s = temper(pi, policy.tau)
        t = same_entropy(pi, entropy(s))
        q = temper_tokens(pi, t)
        rows.append({
            "tau": policy.tau,
            "entropy": entropy(s),
            "distance_spl": total_variation(policy.logps, s),
            "token_temperature": t,
            "distance_tokens": total_variation(q, s),
            "price_nats": ((s.exp() - q.exp()) @ pi).item(),
            "correlation_uncertainty": correlation(q - s, uncertainty(pi)),
            "effective_share": effective_share(pi, policy.tau),
            "sequences": differing(pi, s, q),
        })  # fmt: skip
    return rows


def correlation(x: Tensor, y: Tensor) -> float:
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


def differing(pi: Tensor, s: Tensor, q: Tensor) -> list[dict]:
    """The sequences that q favours most over s, then those that it neglects most."""
    order = (q.exp() - s.exp()).argsort(descending=True).tolist()
    tokens = all_sequences()
    return [
        {
            "tokens": tokens[i].tolist(),
            "dpo": pi[i].exp().item(),
            "sequence_temperature": s[i].exp().item(),
            "token_temperature": q[i].exp().item(),
        }
        for i in order[:SHOWN] + order[-SHOWN:]
    ]


def print_comparison(rows: Sequence[dict]) -> None:
    """Distances are total variations; `uncertain`: how log(q / s) goes with `uncertainty`."""
    print("\nbeside s = DPO^(1/tau) / Z, of one entropy: SPL, a temperature of tokens, resampling")
    print("  tau  entropy | SPL distance | tokens at t  distance  price, nats  uncertain |"
          " resampled: share that counts")  # fmt: skip
    for row in rows:
        print(f"  {row['tau']:3.1f}  {row['entropy']:7.3f} | {row['distance_spl']:12.4f} |"
              f" {row['token_temperature']:11.3f}  {row['distance_tokens']:8.4f}"
              f"  {row['price_nats']:11.4f}  {row['correlation_uncertainty']:9.2f} |"
              f" {row['effective_share']:28.3f}")  # fmt: skip
        favoured, *_, neglected = row["sequences"]
        for what, one in (("favoured", favoured), ("neglected", neglected)):
            s, q, pi = (one[key] for key in ("sequence_temperature", "token_temperature", "dpo"))
            print(
                f"      most {what} by tokens: {one['tokens']}, {q:.4f} for {s:.4f}; DPO {pi:.4f}"
            )
