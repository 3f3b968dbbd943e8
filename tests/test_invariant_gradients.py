"""Every invariant of precision and gradients is seen to break, alone, by what it guards.

pytest tests/test_invariant_gradients.py
"""

import pytest
import torch

import model.transformer
from eval.invariant_gradients import difference_error, distance, probed_parameters
from model.lora import LoRAProduct, add_lora
from model.transformer import Normalise
from tests.test_invariants import check, not_passed, small, sums_of
from tests.test_lora import small_model

LOGPS, PRODUCT, NORM = model.transformer.token_logps, LoRAProduct.backward, Normalise.backward


def rounded_logps(hidden, *args, **options):
    """A log-softmax in bfloat16, where the run is in float32."""
    stats = LOGPS(hidden, *args, **options)
    rounded = stats.logps.bfloat16().float() if hidden.dtype == torch.float32 else stats.logps
    return stats._replace(logps=rounded)


def shrunk_A(ctx, grad_out):
    grad_x, *none, grad_A, grad_B, last = PRODUCT(ctx, grad_out)
    return grad_x, *none, 0.99 * grad_A, grad_B, last


def no_B(ctx, grad_out):
    *others, grad_B, last = PRODUCT(ctx, grad_out)
    return *others, torch.zeros_like(grad_B), last


def no_norm(ctx, grad_out):
    """The gradient of x is right, that of the norm's weight is missing."""
    grad_x, grad_weight, last = NORM(ctx, grad_out)
    return grad_x, None if grad_weight is None else torch.zeros_like(grad_weight), last


def coarse_B(ctx, grad_out):
    *others, grad_B, last = PRODUCT(ctx, grad_out)
    return *others, 1.1 * grad_B if grad_B.dtype == torch.float32 else grad_B, last


SABOTAGES = {
    "log-softmax in bfloat16": (
        (model.transformer, "token_logps", rounded_logps),
        {},
        {"logps in float32": "fail"},
        "float32 gives other numbers than float64; pass --dtype float32",
    ),
    "1% off in lora_A": (
        (LoRAProduct, "backward", staticmethod(shrunk_A)),
        {},
        {"gradient": "fail"},
        "the gradient is not the slope of the loss: a backward pass is wrong",
    ),
    "no gradient of lora_B": (
        (LoRAProduct, "backward", staticmethod(no_B)),
        {},
        {"gradient": "fail"},
        "the gradient is not the slope of the loss",
    ),
    "no gradient of the norms": (
        (Normalise, "backward", staticmethod(no_norm)),
        {"lora_rank": 0},
        {"gradient": "fail"},
        "the gradient is not the slope of the loss",
    ),
    "10% off in the run's dtype": (
        (LoRAProduct, "backward", staticmethod(coarse_B)),
        {},
        {"gradient in float32": "fail"},
        "float32 gives another gradient than float64; pass --dtype float32",
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_what_is_broken_is_found_and_nothing_else(name, tmp_path, capsys, monkeypatch):
    patch, flags, expected, mend = SABOTAGES[name]
    monkeypatch.setattr(*patch)
    ready, verdicts, text = check(small(tmp_path, **flags), capsys)
    assert not ready and not_passed(verdicts) == expected
    assert mend in text


def test_gradients_are_taken_where_no_loss_is_flat(tmp_path, capsys):
    """The rejected is twice as long, so that at alpha 500 every loss starts at 0, as its slope."""
    rows = [row | {"rejected": f"{row['rejected']} " * 2} for row in sums_of(4)]
    ready, verdicts, text = check(small(tmp_path, rows, alpha=500.0), capsys)
    assert "4 of 4 pairs saturated" in text
    assert ready and verdicts["gradient"] == verdicts["gradient in float32"] == "pass"


def test_the_error_is_in_parts_of_the_slope():
    """f(x) = x^2 / 2 at 3: the slope is 3; against 3.3, the error is 0.3 / 3.3 = 1/11."""
    x = torch.nn.Parameter(torch.tensor([3.0]))
    loss = lambda: (x.double() ** 2).sum() / 2  # noqa: E731
    assert difference_error(loss, [x], [torch.tensor([3.0])]) < 1e-9
    wrong = difference_error(loss, [x], [torch.tensor([3.3])])
    assert wrong == pytest.approx(1 / 11, rel=1e-5)
    assert x.item() == 3.0  # as it was
    assert difference_error(loss, [x], [torch.zeros(1)]) == float("inf")


def test_distance_by_hand():
    """(3, 4) + (0) against (3, 3) + (4): sqrt(1 + 16) / sqrt(9 + 9 + 16)."""
    found, exact = [torch.tensor([3.0, 4.0]), torch.zeros(1)], [torch.full((2,), 3.0),
                                                               torch.tensor([4.0])]  # fmt: skip
    assert distance(found, exact) == pytest.approx((17 / 34) ** 0.5)
    assert distance(exact, exact) == 0.0
    assert distance(found, [torch.zeros(2), torch.zeros(1)]) == float("inf")


def test_what_is_probed():
    """All adapters; or, of a model trained whole, the outer blocks, the last norm and the head."""
    whole, adapted = small_model(), small_model()
    whole.requires_grad_(True)
    names = {id(p): name for name, p in whole.named_parameters()}
    probed = {names[id(p)] for p in probed_parameters(whole)}
    assert probed == {name for name in names.values() if name != "embed_tokens.weight"}
    add_lora(adapted, rank=2, alpha=4.0)
    assert len(probed_parameters(adapted)) == 2 * 7 * 2
