"""Is a trained transformer where theory says? All its sequences enumerated, all pairs compared.

Four tokens and length four make 256 sequences, so that log pi(y), its distance from the optimum and
the loss of every pair are known exactly. A fresh transformer is the reference; copies of it are
trained by `preference_loss` on the exact preferences over all 65280 ordered pairs, at several
tau = policy_coef / reference_coef. Every sequence has a reward of its own, drawn at random: there
is nothing to generalise from, and nothing between the policy and the optimum but its training.

The prompt is two different tokens. Behind one token alone, 0, the model could not tell 0, 00 and
000 apart: attention averages equal values, whatever the positions, so that the next token has the
same distribution behind each. No training can mend that (a total variation of 0.42 was left at
tau = 0.5, and 0.15 at tau = 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from eval.theory_table import Statement
from eval.theory_tabular import BETA, TAUS, Games, all_games, draw, expected_loss, optimum
from model.objective import coefficients
from model.transformer import ModelConfig, Transformer

VOCABULARY, LENGTH = 4, 4
PROMPT = (0, 1)
REWARD_SPREAD = 0.1  # standard deviation; DPO's factor exp(r / beta) has one of 1 in its logarithm
STEPS, EVERY = 800, 200  # of L-BFGS, and how often the distance is noted
HISTORY = 40  # steps that L-BFGS remembers
CLOSE = 0.02  # total variation; the reference is at 0.2 to 0.7


@dataclass(frozen=True)
class Task:
    reference_logps: Tensor  # (256,)
    rewards: Tensor  # (256,)
    games: Games


@dataclass(frozen=True)
class Policy:
    """A transformer's distribution after training, and the way there."""

    tau: float
    logps: Tensor  # (256,)
    theory: Tensor  # (256,) the optimum's
    distances: tuple[float, ...]  # total variation from it, at step 0 and every EVERY steps
    excess: float  # expected loss above the optimum's, the least there is
    steepest: float  # largest component of the loss's gradient at the end


# ------------------------------------------------------------------------------------------------
# sequences


def all_sequences(length: int = LENGTH) -> Tensor:
    """(4^length, length), in the order of counting."""
    return torch.tensor(list(product(range(VOCABULARY), repeat=length)))


def fresh_transformer(seed: int) -> Transformer:
    """Two layers in float64, 20896 random weights."""
    config = ModelConfig(VOCABULARY, 32, 64, 2, 2, 2, 16, initializer_range=0.15)
    model = Transformer(config).double()
    with torch.no_grad():
        for parameter, values in model.initial_weights(seed):
            parameter.copy_(values)
    return model


def sequence_logps(model: Transformer) -> Tensor:
    """(256,) log pi(y | PROMPT); a forward over the 64 beginnings of three tokens has them all."""
    beginnings = all_sequences(LENGTH - 1)  # (64, 3)
    prompts = torch.tensor([PROMPT]).expand(len(beginnings), -1)
    logits = model(torch.cat([prompts, beginnings], dim=1))  # (64, prompt + 3, V)
    logps = logits[:, len(PROMPT) - 1 :].log_softmax(-1)  # (64, 4, V)
    before = logps[:, :-1].gather(2, beginnings[..., None]).sum((1, 2))  # (64,)
    return (before[:, None] + logps[:, -1]).flatten()  # (64, V) -> (256,)


def total_variation(logps: Tensor, others: Tensor) -> float:
    """Half the sum of |p - q|: the most by which the two differ on any set of sequences."""
    return (logps.exp() - others.exp()).abs().sum().item() / 2


def entropy(logps: Tensor) -> float:
    """In nats."""
    return torch.special.entr(logps.exp()).sum().item()


# ------------------------------------------------------------------------------------------------
# training


def make_task(seed: int) -> Task:
    rewards = REWARD_SPREAD * draw(seed, VOCABULARY**LENGTH)
    with torch.no_grad():
        reference_logps = sequence_logps(fresh_transformer(seed))
    return Task(reference_logps, rewards, all_games(rewards))


def train_policy(task: Task, tau: float, seed: int) -> Policy:
    """From the reference's weights, by STEPS of L-BFGS on the expected loss."""
    coefs = coefficients("spl", tau * BETA, BETA)
    model = fresh_transformer(seed)
    theory = optimum(task.reference_logps, task.rewards, tau * BETA, BETA)
    optimiser = torch.optim.LBFGS(
        model.parameters(),
        max_iter=EVERY,
        tolerance_grad=1e-10,
        tolerance_change=0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def loss_of(logps: Tensor) -> Tensor:
        return expected_loss(logps, task.reference_logps, task.games, coefs)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of(sequence_logps(model))
        loss.backward()
        return loss

    distances = [total_variation(task.reference_logps, theory)]
    for _ in range(STEPS // EVERY):
        optimiser.step(closure)
        with torch.no_grad():
            logps = sequence_logps(model)
        distances.append(total_variation(logps, theory))
    excess = (loss_of(logps) - loss_of(theory)).item()
    steepest = max(weight.grad.abs().max().item() for weight in model.parameters())
    return Policy(tau, logps, theory, tuple(distances), excess, steepest)


def train_policies(seed: int) -> list[Policy]:
    """One for each of TAUS."""
    task = make_task(seed)
    taus = tqdm(TAUS, "transformers", leave=False, unit=" trained")
    return [train_policy(task, tau, seed) for tau in taus]


def statements(policies: Sequence[Policy]) -> list[Statement]:
    part = "a transformer, 256 sequences"
    claim = "total variation from theory, tau = {}"
    return [
        Statement(part, claim.format(policy.tau), policy.distances[-1], 0.0, CLOSE)
        for policy in policies
    ]


def to_rows(policies: Sequence[Policy]) -> list[dict]:
    return [
        {
            "tau": policy.tau,
            "entropy": entropy(policy.logps),
            "entropy_theory": entropy(policy.theory),
            "distances": policy.distances,
            "excess_loss": policy.excess,
            "steepest": policy.steepest,
        }
        for policy in policies
    ]


def print_training(rows: Sequence[dict]) -> None:
    print("\na transformer's total variation from the optimum, by step of L-BFGS")
    steps = "".join(f"{step:9d}" for step in range(0, STEPS + 1, EVERY))
    print(f"  tau{steps}   entropy  (theory)  excess loss  gradient")
    for row in rows:
        distances = "".join(f"{distance:9.4f}" for distance in row["distances"])
        print(f"  {row['tau']:3.1f}{distances}  {row['entropy']:8.4f}  {row['entropy_theory']:8.4f}"
              f"  {row['excess_loss']:11.1e}  {row['steepest']:8.1e}")  # fmt: skip
