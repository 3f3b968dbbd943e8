"""What is said of the two papers, in summaries and notes, and is not so: each refuted by number.

The papers say none of it. alpha = beta and alpha = 1 are taken for each other, an exponent lands on
the wrong symbol, a table slips by a row, one picture is taken for all distances. Each statement
here has what the misreading predicts where the others have theory, and must NOT hold.
"""

import math

import torch

from eval.theory_modes import best, fit_covering, fit_seeking
from eval.theory_table import Statement
from eval.theory_tabular import trained_share
from model.objective import coefficients, preference_loss

BETA = 0.1
SHARE = 0.8  # of the population that prefers the first of two answers
REFERENCE = 0.2  # its probability under a reference that is not flat
APART = 0.01  # a misreading has to be wrong by more


def statements() -> list[Statement]:
    return [refute(*found) for found in (*representation(), *optimum(), start(), *modes())]


def refute(claim: str, computed: float, said: float) -> Statement:
    return Statement("misreadings (`theory`: what they say)", claim, computed, said, APART, True)


def representation() -> list[tuple[str, float, float]]:
    """Which alpha is proportional representation, and what the others give."""
    return [
        ("alpha / beta = 1 is proportional (share at 0.1 / 0.1)",
         trained_share(BETA, BETA, SHARE), SHARE),
        ("alpha = 1 is, whatever the reference (share at pi_ref = 0.2)",
         trained_share(1.0, BETA, SHARE, REFERENCE), SHARE),
        ("shares 0.8, 0.941, 0.999 are those of alpha = 0.5, 0.2, 0.1",
         trained_share(0.5, BETA, SHARE), SHARE),
        ("shares 0.941, 0.999, ... are those of alpha = 1, 0.5, ...",
         trained_share(1.0, BETA, SHARE), 0.941),
    ]  # fmt: skip


def optimum() -> list[tuple[str, float, float]]:
    """RLHF's optimum is pi_ref * p^(1/beta), and not pi_ref^(p^(1/beta))."""
    first, second = REFERENCE ** (SHARE ** (1 / BETA)), 0.8 ** (0.2 ** (1 / BETA))
    found = trained_share(BETA, BETA, SHARE, REFERENCE)
    return [("RLHF's optimum is pi_ref^(p^(1/beta)) (share)", found, first / (first + second))]


def start() -> tuple[str, float, float]:
    """A pair of which the reference likes the winner e^5 times as much as the loser."""
    pair = torch.tensor([[-10.0], [-15.0]], dtype=torch.float64)
    losses, _, _ = preference_loss(*pair, *pair, *coefficients("spl", 2 * BETA, BETA))
    return ("training starts at a loss of log 2 (tau = 2)", losses.item(), math.log(2))


def modes() -> list[tuple[str, float, float]]:
    """The picture of one Gaussian and two modes, at distances at which it is another one."""
    result = []
    for claim, alpha, m, said in (
        ("the reverse KL covers modes, whatever m (mu at m = 3)", 1.0, 3.0, 0.0),
        ("alpha < 1 seeks one, whatever m (mu at alpha = 0.8, m = 2)", 0.8, 2.0, 2.0),
    ):
        found = best((fit_covering(alpha, m), fit_seeking(alpha, m)))
        result.append((claim, abs(found.mu), said))
    return result
