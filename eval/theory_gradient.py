"""What follows from the loss alone, before any training: its gradients, its start, its identities.

    d loss / d log pi(y_w) = -policy_coef * sigmoid(-margin), and the negative for y_l
    margin at step 0       = (policy_coef - reference_coef) * ref_logratios
    h_dpo(alpha, beta)     = spl(alpha * beta, beta);  spl(beta, beta) = h_dpo(1, beta) = dpo(beta)

The same gradient is then looked for in the weights of a transformer, where it is
-policy_coef * sigmoid(-margin) * (grad log pi(y_w) - grad log pi(y_l)).
"""

import torch
from torch import Tensor

from eval.theory_sequences import fresh_transformer, sequence_logps
from eval.theory_table import Statement, worst
from eval.theory_tabular import draw
from model.objective import coefficients, preference_loss

ALPHA, BETA = 0.9, 0.3
PAIRS = 1000
PART = "the loss itself"


def statements(seed: int) -> list[Statement]:
    four = 20 * draw(seed, 4, PAIRS)  # policy chosen, rejected, reference chosen, rejected
    return [*gradients(four), weight_gradient(seed), *step_zero(four[2:]), *identities(four)]


def gradients(four: Tensor) -> list[Statement]:
    """four: (4, B) log-probabilities, in the order of `preference_loss`."""
    policy_coef, reference_coef = coefficients("spl", ALPHA, BETA)
    logps = four[:2].clone().requires_grad_()
    losses, _, _ = preference_loss(*logps, *four[2:], policy_coef, reference_coef)
    chosen, rejected = torch.autograd.grad(losses.sum(), logps)[0]
    expected = ALPHA * torch.sigmoid(-margins_of(four, ALPHA, BETA))
    return [
        worst(PART, "d loss / d log pi(y_w) = -alpha sigmoid(-h)", chosen, -expected, 1e-12),
        worst(PART, "d loss / d log pi(y_l) = +alpha sigmoid(-h)", rejected, expected, 1e-12),
    ]


def margins_of(four: Tensor, policy_coef: float, reference_coef: float) -> Tensor:
    """(B,) h, written down a second time."""
    return policy_coef * (four[0] - four[1]) - reference_coef * (four[2] - four[3])


def weight_gradient(seed: int) -> Statement:
    """Of a pair of sequences, with respect to every weight of a fresh transformer."""
    model = fresh_transformer(seed)
    weights = list(model.parameters())
    with torch.no_grad():
        reference = sequence_logps(fresh_transformer(seed + 1))[[17, 200]]
    pair = sequence_logps(model)[[17, 200]]  # any two of them
    coefs = coefficients("spl", ALPHA, BETA)
    losses, _, _ = preference_loss(pair[:1], pair[1:], reference[:1], reference[1:], *coefs)
    computed = flat_gradient(losses.sum(), weights)
    difference = flat_gradient(pair[0] - pair[1], weights)
    margin = margins_of(torch.cat([pair, reference]).detach(), *coefs)
    theory = -ALPHA * torch.sigmoid(-margin) * difference
    claim = "a transformer's: -alpha sigmoid(-h) grad log pi(y_w)/pi(y_l)"
    return worst(PART, claim, computed, theory, 1e-12)


def flat_gradient(value: Tensor, weights: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(value, weights, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in found])


def step_zero(reference: Tensor) -> list[Statement]:
    """pi = pi_ref; reference: (2, B)"""
    ref_logratios = reference[0] - reference[1]
    nothing = torch.zeros_like(ref_logratios)
    starts = (
        ("spl", "(alpha - beta) ref_logratios", (ALPHA - BETA) * ref_logratios),
        ("h_dpo", "(alpha - 1) beta ref_logratios", (ALPHA - 1) * BETA * ref_logratios),
        ("dpo", "0", nothing),
    )
    result = []
    for objective, formula, expected in starts:
        coefs = coefficients(objective, ALPHA, BETA)
        losses, chosen, rejected = preference_loss(*reference, *reference, *coefs)
        softplus = torch.logaddexp(-expected, nothing)
        claim = f"{objective}: margin at step 0 = {formula}"
        result.append(worst(PART, claim, chosen - rejected, expected, 1e-12))
        claim = f"{objective}: loss at step 0 = softplus of its negative"
        result.append(worst(PART, claim, losses, softplus, 1e-12))
    return result


def identities(four: Tensor) -> list[Statement]:
    """Bit for bit; four: (4, B)"""
    compared = (
        ("h_dpo(alpha, beta) = spl(alpha * beta, beta)", "h_dpo", ALPHA, "spl", ALPHA * BETA),
        ("spl(beta, beta) = dpo(beta)", "spl", BETA, "dpo", 1.0),
        ("h_dpo(1, beta) = dpo(beta)", "h_dpo", 1.0, "dpo", 1.0),
    )
    result = []
    for claim, one, alpha, other, its_alpha in compared:
        ours, _, _ = preference_loss(*four, *coefficients(one, alpha, BETA))
        theirs, _, _ = preference_loss(*four, *coefficients(other, its_alpha, BETA))
        result.append(worst(PART, claim, ours, theirs, 0))
    return result
