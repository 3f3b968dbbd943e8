"""eval/theory_sequences.py: enumeration against the plain forward, and training that must fail.

python -m pytest tests/test_theory_sequences.py
"""

import math

import pytest
import torch

from eval import theory_sequences as module
from eval import theory_tabular
from eval.theory_sequences import (
    PROMPT,
    all_sequences,
    entropy,
    fresh_transformer,
    make_task,
    sequence_logps,
    statements,
    total_variation,
    train_policy,
)
from model.objective import preference_loss


def test_sequences_are_all_there_is():
    sequences = all_sequences()
    assert sequences.shape == (256, 4)
    assert sequences[27].tolist() == [0, 1, 2, 3]  # 16 + 8 + 3
    assert len({tuple(one) for one in sequences.tolist()}) == 256


def test_logps_are_those_of_the_plain_forward():
    """Each sequence by itself behind the prompt: the sum of its four tokens' log-probabilities."""
    model, sequences = fresh_transformer(3), all_sequences()
    with torch.no_grad():
        found = sequence_logps(model)
        ids = torch.cat([torch.tensor([PROMPT]).expand(256, -1), sequences], dim=1)
        logps = model(ids)[:, 1:-1].log_softmax(-1)
    expected = logps.gather(2, sequences[..., None]).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert found.dtype == torch.float64
    assert sum(weight.numel() for weight in model.parameters()) == 20896


def test_behind_one_token_a_transformer_cannot_count():
    """0, 00, 000 and 0000 are followed by the same distribution; 01, 010, 0100 are not."""
    model = fresh_transformer(0)
    with torch.no_grad():
        same = model(torch.tensor([[0, 0, 0, 0]]))[0].log_softmax(-1)
        other = model(torch.tensor([[0, 1, 1, 1]]))[0].log_softmax(-1)
    torch.testing.assert_close(same, same[:1].expand(4, -1), rtol=0, atol=1e-12)
    assert (other[1:] - other[1]).abs().amax(1)[1:].min() > 1e-3


def test_distance_and_entropy_by_hand():
    """(1/2, 1/2, 0) and (1/4, 1/4, 1/2) are 1/2 apart; entropies log 2 and 1.5 log 2."""
    p = torch.tensor([0.5, 0.5, 0.0]).double().log()
    q = torch.tensor([0.25, 0.25, 0.5]).double().log()
    assert total_variation(p, q) == pytest.approx(0.5, abs=1e-15)
    assert entropy(p) == pytest.approx(math.log(2), abs=1e-15)
    assert entropy(q) == pytest.approx(1.5 * math.log(2), abs=1e-15)


@pytest.fixture
def short(monkeypatch):
    """As many steps as tau = 2 needs, from weights that it is easy for."""
    monkeypatch.setattr(module, "STEPS", 400)
    return make_task(seed=1)


def test_training_reaches_the_optimum(short):
    policy = train_policy(short, 2.0, seed=1)
    assert policy.distances[0] > 0.3 and policy.distances[-1] < 0.02
    assert policy.distances[-1] == total_variation(policy.logps, policy.theory)
    assert 0 <= policy.excess < 1e-4
    optimum = short.reference_logps / 2 + short.rewards / (2 * 0.1)  # beta / alpha = 1/2
    torch.testing.assert_close(policy.theory, optimum.log_softmax(0), rtol=0, atol=1e-12)
    (one,) = statements([policy])
    assert one.holds and one.computed == policy.distances[-1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda *x: preference_loss(*x[:4], x[5], x[4]),
        lambda *x: preference_loss(*x[:2], x[3], x[2], *x[4:]),
        lambda *x: preference_loss(*x[:4], x[5], x[5]),
    ],
    ids=["coefficients swapped", "sign of the reference", "coupled"],
)
def test_a_wrong_loss_leads_elsewhere(wrong, short, monkeypatch):
    monkeypatch.setattr(theory_tabular, "preference_loss", wrong)
    monkeypatch.setattr(module, "STEPS", 200)
    (one,) = statements([train_policy(short, 2.0, seed=1)])
    assert not one.holds and one.computed > 0.15
