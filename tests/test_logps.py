"""The fused head against float64 and autograd on its one-screen definition.

pytest tests/test_logps.py
"""

import math

import pytest
import torch

from model import logps
from model.logps import token_logps, token_logps_ref


def problem(C: int, D: int, V: int, dtype: torch.dtype, scale: float = 1.0):
    generator = torch.Generator().manual_seed(C * 1000 + V)
    hidden = (torch.randn(C, D, generator=generator, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(V, (C,), generator=generator)
    return hidden, weight, targets


def gradients(function, hidden, weight, targets, train_head: bool):
    """logps, entropy and the gradients of sum(w * logps) for fixed row weights w."""
    hidden = hidden.clone().requires_grad_()
    weight = weight.clone().requires_grad_(train_head)
    stats = function(hidden, weight, targets)
    rows = torch.linspace(-1, 2, len(targets), dtype=stats.logps.dtype)
    (stats.logps * rows).sum().backward()
    return stats.logps.detach(), stats.entropy, hidden.grad, weight.grad


def test_hand_worked():
    """Logits log 1, log 2, log 5: p = 1/8, 2/8, 5/8; the entropy is 0.900256 nats.

    -(1/8 ln 1/8 + 2/8 ln 2/8 + 5/8 ln 5/8) = 0.259930 + 0.346574 + 0.293752
    d logp_2 / d hidden = (1[y] - p) @ W = (-1/8, -2/8, 3/8), as W is the identity.
    """
    hidden = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64)
    out = gradients(token_logps, hidden, torch.eye(3).double(), torch.tensor([2]), False)
    assert out[0].item() == pytest.approx(math.log(5 / 8), abs=1e-12)
    assert out[1].item() == pytest.approx(0.900256, abs=1e-6)
    # the row's weight is linspace(-1, 2, 1) = -1
    torch.testing.assert_close(out[2], -torch.tensor([[-1 / 8, -2 / 8, 3 / 8]]).double())


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize(("C", "V"), [(1, 3), (5, 129), (300, 1134), (513, 2003)])
def test_float64_matches_the_definition(C, V, train_head):
    data = problem(C, 16, V, torch.float64)
    ours = gradients(token_logps, *data, train_head)
    theirs = gradients(token_logps_ref, *data, train_head)
    for one, two in zip(ours, theirs, strict=True):
        if two is None:
            assert one is None
        else:
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("train_head", [False, True])
def test_float32_is_within_rounding_of_float64(train_head):
    hidden, weight, targets = problem(300, 64, 5003, torch.float32)
    ours = gradients(token_logps, hidden, weight, targets, train_head)
    exact = gradients(token_logps_ref, hidden.double(), weight.double(), targets, train_head)
    for one, two in zip(ours, exact, strict=True):
        if two is not None:
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), two, rtol=2e-5, atol=2e-5)


def test_bfloat16_sums_in_float32():
    """The hidden states and weights are rounded; logps are float32 and no worse than a bfloat16
    product's own rounding (2^-8 of the largest logit)."""
    hidden, weight, targets = problem(64, 32, 301, torch.bfloat16, scale=0.5)
    stats = token_logps(hidden, weight, targets)
    exact = token_logps_ref(hidden.double(), weight.double(), targets)
    largest = (hidden.double() @ weight.double().T).abs().max().item()
    assert stats.logps.dtype == stats.entropy.dtype == torch.float32
    assert (stats.logps.double() - exact.logps).abs().max().item() < largest * 2**-8


@pytest.mark.parametrize("gap", [math.log(999), math.log(1e6 - 1)])
def test_gradient_where_the_target_is_nearly_certain(gap):
    """p_y = 0.999 and 1 - 1e-6: 1 - p_y survives, as it is formed before rounding to bfloat16.

    What remains is float32's own spacing below 1 (2^-24), and bfloat16's 2^-8 of the value; a p
    rounded to bfloat16 first would leave 0 or 2^-8.
    """
    hidden = torch.tensor([[gap, 0.0]], dtype=torch.bfloat16).requires_grad_()
    token_logps(hidden, torch.eye(2, dtype=torch.bfloat16), torch.tensor([0])).logps.backward()
    p_other = torch.sigmoid(-hidden.detach().double()[0, 0]).item()
    assert hidden.grad[0, 0].item() == pytest.approx(p_other, rel=2**-8, abs=2**-23)
    assert hidden.grad[0, 1].item() == pytest.approx(-p_other, rel=2**-8, abs=2**-23)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size):
    stats = token_logps(torch.tensor([[size, 0.0]]), torch.eye(2), torch.tensor([0]))
    assert stats.logps.item() == (0.0 if size > 0 else -1e4)
    assert stats.entropy.item() == 0.0


def test_no_rows():
    hidden = torch.zeros(0, 4, requires_grad=True)
    stats = token_logps(hidden, torch.ones(3, 4), torch.zeros(0, dtype=torch.long))
    stats.logps.sum().backward()
    assert stats.logps.shape == stats.entropy.shape == (0,) and hidden.grad.shape == (0, 4)


def test_gradient_is_made_only_when_it_is_wanted(monkeypatch):
    made = []
    real = logps.target_minus_p
    monkeypatch.setattr(logps, "target_minus_p", lambda *args: made.append(1) or real(*args))
    hidden, weight, targets = problem(3, 4, 5, torch.float32)
    with torch.no_grad():
        token_logps(hidden.requires_grad_(), weight, targets)
    assert not made
    token_logps(hidden, weight, targets)
    assert len(made) == 1


def test_whole_logits_never_exist(monkeypatch):
    """With chunks of 8 rows no tensor of more than 8 x V elements is made, forward or backward."""
    monkeypatch.setattr(logps, "CHUNK_ROWS", 8)
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    hidden, weight, targets = problem(64, 4, 1000, torch.float32)
    with Watch():
        gradients(token_logps, hidden, weight, targets, True)
    assert max(sizes) == 8 * 1000


def test_chunks_do_not_change_the_numbers(monkeypatch):
    data = problem(100, 8, 77, torch.float64)
    one = gradients(token_logps, *data, True)
    monkeypatch.setattr(logps, "CHUNK_ROWS", 7)
    two = gradients(token_logps, *data, True)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
