"""eval/theory_gradient.py: finite differences, numbers by hand, and losses that are wrong.

python -m pytest tests/test_theory_gradient.py
"""

import math

import pytest
import torch

from eval import theory_gradient as module
from eval.theory_gradient import flat_gradient, margins_of, statements, step_zero
from eval.theory_sequences import fresh_transformer, sequence_logps
from model.objective import preference_loss


def failing() -> set[str]:
    return {one.claim for one in statements(seed=0) if not one.holds}


def test_every_statement_holds():
    assert failing() == set()


def test_a_margin_by_hand():
    """0.2 * (-10 + 12) - 0.1 * (-11 + 12.5) = 0.25"""
    four = torch.tensor([[-10.0], [-12.0], [-11.0], [-12.5]], dtype=torch.float64)
    assert margins_of(four, 0.2, 0.1).item() == pytest.approx(0.25, abs=1e-15)


def test_the_start_by_hand():
    """ref_logratios = 5: margins 0.6 * 5 = 3, (0.9 - 1) * 0.3 * 5 = -0.15, and 0."""
    found = step_zero(torch.tensor([[-10.0], [-15.0]], dtype=torch.float64))
    margins = [one.computed for one in found[::2]]
    losses = [one.computed for one in found[1::2]]
    assert margins == pytest.approx([3.0, -0.15, 0.0], abs=1e-14)
    assert losses == pytest.approx([math.log1p(math.exp(-m)) for m in margins], abs=1e-14)


def test_the_weights_gradient_is_that_of_finite_differences():
    model = fresh_transformer(2)
    weights = list(model.parameters())
    ratio = lambda: sequence_logps(model)[[17, 200]] @ torch.tensor([1.0, -1.0]).double()  # noqa: E731
    gradient = flat_gradient(ratio(), weights)
    direction = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0)).double()
    moved = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            parts = direction.split([weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight += step * part.view_as(weight)
            moved.append(ratio().item())
            for weight, part in zip(weights, parts, strict=True):
                weight -= step * part.view_as(weight)
    assert (gradient @ direction).item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-7)


GRADIENTS = {
    "d loss / d log pi(y_w) = -alpha sigmoid(-h)",
    "d loss / d log pi(y_l) = +alpha sigmoid(-h)",
    "a transformer's: -alpha sigmoid(-h) grad log pi(y_w)/pi(y_l)",
}


def starts(*objectives: str) -> set[str]:
    formulas = {"spl": "(alpha - beta) ref_logratios", "h_dpo": "(alpha - 1) beta ref_logratios",
                "dpo": "0"}  # fmt: skip
    margins = {f"{one}: margin at step 0 = {formulas[one]}" for one in objectives}
    return margins | {f"{one}: loss at step 0 = softplus of its negative" for one in objectives}


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        (lambda *x: preference_loss(*x[:4], x[5], x[4]), GRADIENTS | starts("spl", "h_dpo")),
        (lambda *x: preference_loss(*x[:2], x[3], x[2], *x[4:]),
         GRADIENTS | starts("spl", "h_dpo", "dpo")),
        (lambda *x: preference_loss(*x[:4], x[5], x[5]), GRADIENTS | starts("spl", "h_dpo")),
        (lambda *x: preference_loss(x[1], x[0], x[3], x[2], *x[4:]),
         GRADIENTS | starts("spl", "h_dpo")),
    ],
    ids=["coefficients swapped", "sign of the reference", "coupled", "loser preferred"],
)  # fmt: skip
def test_a_wrong_loss_is_seen(wrong, seen, monkeypatch):
    monkeypatch.setattr(module, "preference_loss", wrong)
    assert failing() == seen


def test_wrong_coefficients_are_seen(monkeypatch):
    real = module.coefficients

    def wrong(objective: str, alpha: float, beta: float) -> tuple[float, float]:
        return (alpha, beta) if objective == "h_dpo" else real(objective, alpha, beta)

    monkeypatch.setattr(module, "coefficients", wrong)
    identities = {"h_dpo(alpha, beta) = spl(alpha * beta, beta)", "h_dpo(1, beta) = dpo(beta)"}
    assert failing() == starts("h_dpo") | identities
