"""eval/theory_temperature.py against a real model's tempered logits, sums by hand, and wrong parts.

python -m pytest tests/test_theory_temperature.py
"""

import math

import numpy as np
import pytest
import torch

from eval import theory_temperature as module
from eval.theory_sequences import (
    PROMPT,
    Policy,
    all_sequences,
    entropy,
    fresh_transformer,
    make_task,
    sequence_logps,
)
from eval.theory_tabular import TAUS, optimum
from eval.theory_temperature import (
    compare,
    differing,
    drawn_share,
    effective_share,
    print_comparison,
    same_entropy,
    share_error,
    statements,
    temper,
    temper_tokens,
    uncertainty,
)


@pytest.fixture(scope="module")
def policies() -> list[Policy]:
    """As if training had reached every optimum."""
    task = make_task(seed=0)
    found = []
    for tau in TAUS:
        theory = optimum(task.reference_logps, task.rewards, tau * 0.1, 0.1)
        found.append(Policy(tau, theory, theory, (0.5, 0.0), 0.0, 0.0))
    return found


def failing(policies: list[Policy]) -> set[str]:
    return {one.claim for one in statements(policies, seed=0) if not one.holds}


def model_logits(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    sequences = all_sequences()
    ids = torch.cat([torch.tensor([PROMPT]).expand(256, -1), sequences], dim=1)
    with torch.no_grad():
        return model(ids)[:, 1:-1], sequences  # (256, 4, V)


@pytest.mark.parametrize("t", [0.5, 1.0, 1.7])
def test_a_temperature_of_tokens_is_that_of_a_models_logits(t):
    model = fresh_transformer(4)
    logits, sequences = model_logits(model)
    expected = (logits / t).log_softmax(-1).gather(2, sequences[..., None]).sum((1, 2))
    with torch.no_grad():
        found = temper_tokens(sequence_logps(model), t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_uncertainty_is_the_sum_of_a_models_entropies():
    model = fresh_transformer(4)
    logps = model_logits(model)[0].log_softmax(-1)
    expected = -(logps.exp() * logps).sum((1, 2))
    with torch.no_grad():
        found = uncertainty(sequence_logps(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    mean = (sequence_logps(model).exp() @ found).item()  # the chain rule of entropy
    assert mean == pytest.approx(entropy(sequence_logps(model)), abs=1e-10)


def test_tempering_sequences_by_hand():
    """(0.8, 0.2) at tau = 2: sqrt 0.8 and sqrt 0.2 are 2 to 1."""
    p = torch.tensor([0.8, 0.2]).double()
    expected = torch.tensor([2 / 3, 1 / 3]).double()
    torch.testing.assert_close(temper(p.log(), 2.0).exp(), expected, rtol=0, atol=1e-7)


def test_independent_tokens_have_one_temperature(policies):
    """Where no token depends on those before it, both temperatures are the same."""
    token = torch.tensor([0.5, 0.3, 0.15, 0.05]).double().log()
    logps = token[all_sequences()].sum(1)
    logps = logps - logps.logsumexp(0)
    torch.testing.assert_close(temper_tokens(logps, 1.7), temper(logps, 1.7), rtol=0, atol=1e-12)
    assert same_entropy(logps, entropy(temper(logps, 1.7))) == pytest.approx(1.7, abs=1e-9)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_entropy_is_matched(policies, tau):
    pi = policies[2].logps
    target = entropy(temper(pi, tau))
    found = temper_tokens(pi, same_entropy(pi, target))
    assert entropy(found) == pytest.approx(target, abs=1e-10)


def test_the_effective_share_by_hand():
    """(0.8, 0.2), tau = 2: (sqrt 0.8 + sqrt 0.2)^2 / 2 = (1 + 2 * 0.4) / 2 = 0.9.

    tau = 1/2: weights 0.8 and 0.2; 0.68^2 / (0.512 + 0.008) = 0.4624 / 0.52.
    """
    p = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    assert effective_share(p, 2.0) == pytest.approx(0.9, abs=1e-14)
    assert effective_share(p, 0.5) == pytest.approx(0.4624 / 0.52, abs=1e-14)
    assert effective_share(p, 1.0) == pytest.approx(1.0, abs=1e-14)


def test_the_standard_error_is_the_spread_of_many_draws(policies, monkeypatch):
    """Of 400 shares; their standard deviation is known to 3.5% (one standard error), held to 4."""
    monkeypatch.setattr(module, "DRAWS", 2000)
    pi = policies[2].logps
    shares = np.array([drawn_share(pi, 2.0, seed) for seed in range(400)])
    assert shares.std(ddof=1) == pytest.approx(share_error(pi, 2.0), rel=4 / math.sqrt(800))


def test_every_statement_holds(policies):
    assert failing(policies) == set()


def test_untempered_policies_are_seen(policies):
    """DPO's own policy in the place of SPL's at every tau."""
    dpo = policies[2].logps
    wrong = [Policy(one.tau, dpo, one.theory, one.distances, 0.0, 0.0) for one in policies]
    assert failing(wrong) == {
        f"SPL to DPO^(1/tau) / Z, both trained (distance, tau = {tau})" for tau in TAUS if tau != 1
    }


def test_wrong_weights_are_seen(policies, monkeypatch):
    """pi^(1/tau) in place of pi^(1/tau - 1): the draws' own probability counted twice."""
    monkeypatch.setattr(
        module, "log_weights", lambda x, tau: x / tau - np.logaddexp.reduce(x / tau)
    )
    seen = failing(policies)
    assert "the weights of resample give pi^(1/tau) / Z (log)" in seen
    assert sum("effective share" in claim for claim in seen) == 4


def test_another_entropy_is_seen(policies, monkeypatch):
    monkeypatch.setattr(module, "same_entropy", lambda logps, target: 1.5)
    assert failing(policies) == {"same entropy: E_s[log pi] - E_q[log pi] = tau KL(q || s)"}


def test_a_temperature_of_sequences_in_tokens_name_is_seen(policies, monkeypatch):
    monkeypatch.setattr(module, "temper_tokens", temper)
    assert failing(policies) == {
        "a temperature of tokens is one of sequences (distance, tau = 2.0)"
    }


def test_what_tokens_favour_is_sorted():
    """q - s = +0.3 at 5, -0.2 at 9 and -0.1 at 20, in a distribution that is else the same."""
    s = torch.full((256,), 0.5 / 253).double()
    s[[5, 9, 20]] = torch.tensor([0.1, 0.25, 0.15]).double()
    q = s.clone()
    q[[5, 9, 20]] = torch.tensor([0.4, 0.05, 0.05]).double()
    rows = differing(s.log(), s.log(), q.log())
    assert [rows[0]["tokens"], rows[-1]["tokens"]] == [[0, 0, 1, 1], [0, 0, 2, 1]]
    assert rows[0]["token_temperature"] == pytest.approx(0.4)
    assert rows[-1]["sequence_temperature"] == pytest.approx(0.25)


def test_the_table(policies, capsys):
    rows = compare(policies)
    assert [row["tau"] for row in rows] == [0.5, 0.8, 1.2, 2.0]
    for row in rows:
        assert row["distance_spl"] < 1e-12 and row["distance_tokens"] > 0.02
        assert row["price_nats"] > 0
        assert (row["correlation_uncertainty"] > 0) == (row["tau"] < 1)
        assert (row["token_temperature"] > 1) == (row["tau"] > 1)
    print_comparison(rows)
    assert "most favoured by tokens: [" in capsys.readouterr().out


def test_each_number_has_its_column(capsys):
    one = {"tokens": [0, 1], "dpo": 0.1, "sequence_temperature": 0.2, "token_temperature": 0.3}
    row = {"tau": 0.5, "entropy": 1.25, "distance_spl": 0.0625, "token_temperature": 1.5}
    row |= {"distance_tokens": 0.125, "price_nats": 0.75, "correlation_uncertainty": -0.5}
    print_comparison([row | {"effective_share": 0.375, "sequences": [one, one | {"dpo": 0.4}]}])
    *_, numbers, favoured, neglected = capsys.readouterr().out.replace("|", "").splitlines()
    expected = "0.5 1.250 0.0625 1.500 0.1250 0.7500 -0.50 0.375"
    assert numbers.split() == expected.split()
    assert favoured.strip() == "most favoured by tokens: [0, 1], 0.3000 for 0.2000; DPO 0.1000"
    assert neglected.strip() == "most neglected by tokens: [0, 1], 0.3000 for 0.2000; DPO 0.4000"
