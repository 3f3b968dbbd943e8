"""The numbers of the audit: by hand, by autograd, by finite differences; sums that do not close.

pytest tests/test_audit_terms.py
"""

import math

import pytest
import torch

from eval.audit_terms import TOLERANCE, Objective, chains, close, pair_logps, shares, token_numbers
from model.objective import TWO_TERMS, objective_loss
from tests.test_generate import random_model
from tests.test_transformer import padded_logps, random_pairs

POLICY = torch.tensor([[-4.0, -6.0], [-9.0, -3.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-5.0, -5.0], [-8.0, -6.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[2, 4], [3, 3]])


def test_a_chain_by_hand():
    """SPL, alpha 0.5, beta 0.25. Log ratios 2 and 0: terms 1 and 0, margin 1. Then -6 and -2:
    terms -3 and -0.5, margin -2.5. The gradient to log pi(chosen) is -alpha * sigmoid(-margin).
    """
    first, second = chains(Objective("spl", 0.5, 0.25), POLICY, REFERENCE, LENGTHS)
    assert (first["pi_logratios"], first["ref_logratios"]) == (2, 0)
    assert (first["terms/policy"], first["terms/reference"], first["margin"]) == (1, 0, 1)
    assert (second["terms/policy"], second["terms/reference"]) == (-3, -0.5)
    for row in (first, second):
        h = row["margin"]
        assert row["sigmoid"] == pytest.approx(1 / (1 + math.exp(-h)), rel=1e-12)
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-h)), rel=1e-12)
        expected = 0.5 / (1 + math.exp(h))
        assert row["gradient/chosen"] == pytest.approx(-expected, rel=1e-12)
        assert row["gradient/rejected"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", TWO_TERMS)
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_gradients_of_every_objective_by_finite_differences(name, sft_weight):
    smoothing = 0.1 if name in ("robust", "dpo") else 0.0
    objective = Objective(name, 0.5, 0.25, smoothing, sft_weight)
    rows, step = chains(objective, POLICY, REFERENCE, LENGTHS), 1e-6
    for i in range(2):
        for side, key in enumerate(("gradient/chosen", "gradient/rejected")):
            ends = []
            for move in (step, -step):
                moved = POLICY.clone()
                moved[i, side] += move
                ends.append(chains(objective, moved, REFERENCE, LENGTHS)[i]["loss"])
            assert rows[i][key] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


def test_chains_are_those_of_training():
    """The loss is `objective_loss`; with --sft_weight, -log pi(chosen) / |chosen| more."""
    flat = (x.T.flatten() for x in (POLICY, REFERENCE, LENGTHS.double()))
    losses, _ = objective_loss("h_dpo", *flat, 0.9, 0.1)
    rows = chains(Objective("h_dpo", 0.9, 0.1), POLICY, REFERENCE, LENGTHS)
    assert [row["loss"] for row in rows] == losses.tolist()
    more = chains(Objective("h_dpo", 0.9, 0.1, 0.0, 0.5), POLICY, REFERENCE, LENGTHS)
    extra = [b["loss"] - a["loss"] for a, b in zip(rows, more, strict=True)]
    assert extra == pytest.approx([0.5 * 4 / 2, 0.5 * 9 / 3])


def test_token_numbers_by_autograd():
    """Entropy and log-probability from whole logits; the push on the logits is what autograd says,
    p - 1[y], of each row."""
    model = random_model(torch.float64)
    prompt, completion = [1, 2, 3], [4, 5, 6, 7, 4]
    numbers = token_numbers(model, prompt, completion)
    logits = model(torch.tensor([prompt + completion]))[0, 2:-1].detach().requires_grad_()
    logps = logits.log_softmax(-1)
    own = logps[range(5), completion]
    (gradient,) = torch.autograd.grad(own.sum(), logits)
    torch.testing.assert_close(numbers.logps, own.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(numbers.gradient, gradient.norm(dim=-1), rtol=1e-10, atol=0)
    entropy = torch.distributions.Categorical(logits=logits.detach()).entropy()
    torch.testing.assert_close(numbers.entropy, entropy, rtol=1e-10, atol=0)
    assert numbers.likeliest.tolist() == logits.argmax(-1).tolist()
    assert numbers.likeliest_p.tolist() == pytest.approx(logps.exp().amax(-1).tolist())


def test_the_push_keeps_its_precision_where_a_token_is_certain():
    """Logits 40 and 0: p_y = 1 - e^-40, so || 1[y] - p || = sqrt(2) e^-40, far below 1e-16."""
    from eval.audit_terms import rows_numbers

    _, _, gradient, *_ = rows_numbers(torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
    assert gradient.item() == pytest.approx(math.sqrt(2) * math.exp(-40), rel=1e-6)


def test_pair_logps_are_those_of_the_padded_forward():
    model = random_model(torch.float64)
    pairs = random_pairs(model.config.vocab_size, [(3, 5, 2), (9, 1, 4), (1, 1, 7)])
    with torch.no_grad():
        expected = padded_logps(model, pairs).view(2, 3).T
    for budget in (1, 1000):
        logps = pair_logps(model, pairs, budget, "cpu", "x")
        torch.testing.assert_close(logps, expected, rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------------------
# closing sums


def split_shares(objective: Objective, pair: int) -> tuple[dict, dict]:
    """A pair's log-probabilities spread unevenly over its tokens."""
    parts = []
    for side, sign in ((0, 1), (1, -1)):
        count = int(LENGTHS[pair, side])
        weights = torch.arange(1.0, count + 1, dtype=torch.float64)
        weights /= weights.sum()
        own, other = (x[pair, side] * weights for x in (POLICY, REFERENCE))
        parts.append(shares(objective, sign, own, other))
    return parts[0], parts[1]


@pytest.mark.parametrize("name", ["dpo", "spl", "h_dpo", "ipo", "robust"])
def test_shares_of_all_tokens_close(name):
    objective = Objective(name, 0.5, 0.25)
    for pair, chain in enumerate(chains(objective, POLICY, REFERENCE, LENGTHS)):
        closing = close(chain, *split_shares(objective, pair))
        assert closing["closes"] and closing["residual"] < 1e-14
        assert closing["from_tokens"] == pytest.approx(chain["margin"], abs=1e-12)


@pytest.mark.parametrize("share", ["policy_share", "reference_share", "margin_share"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_share_that_is_wrong_does_not_close(share, side):
    """By 0.001 of what is summed; NaN does not close either."""
    objective = Objective("spl", 0.5, 0.25)
    chain = chains(objective, POLICY, REFERENCE, LENGTHS)[0]
    for wrong in (0.01, math.nan):
        parts = split_shares(objective, 0)
        parts[side][share] = parts[side][share].clone()
        parts[side][share][0] += wrong
        assert not close(chain, *parts)["closes"]


def test_what_cancels_near_the_reference_still_closes():
    """DPO before its policy has moved: terms of 12, margins of 1e-7, sums in float32."""
    objective = Objective("dpo", 0.1, 0.1)
    reference = torch.full((40,), -3.0, dtype=torch.float64)
    policy = reference + 1e-7
    parts = [
        shares(objective, 1, policy, reference),
        shares(objective, -1, policy[:30], reference[:30]),
    ]
    exact = {name: sum(part[name].sum().item() for part in parts) for name in parts[0]}
    chain = {"terms/policy": exact["policy_share"], "terms/reference": exact["reference_share"],
             "margin": exact["margin_share"] + 1e-6}  # fmt: skip
    assert close(chain, *parts)["closes"]  # 1e-6 of 42
    chain["margin"] += 1e-2
    assert not close(chain, *parts)["closes"]


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
)
def test_what_a_dtype_rounds_off_still_closes(dtype, most):
    """Of terms that sum to 0.5 * (6 + 8) + 0.25 * (5 + 7) = 10 a margin may be off by 10 * most."""
    objective = Objective("spl", 0.5, 0.25)
    policy, reference = torch.tensor([6.0, 8.0]), torch.tensor([5.0, 7.0])
    parts = [
        shares(objective, sign, -policy[i : i + 1].double(), -reference[i : i + 1].double())
        for i, sign in enumerate((1, -1))
    ]
    exact = {"terms/policy": 1.0, "terms/reference": 0.5, "margin": 0.5}
    for off, closes in ((0.9, True), (1.1, False)):
        chain = exact | {"margin": exact["margin"] + off * 10 * most}
        closing = close(chain, *parts, TOLERANCE[dtype])
        assert closing["closes"] == closes
        assert closing["residual"] == pytest.approx(off * most)


def test_a_sign_that_is_wrong_does_not_close():
    objective = Objective("spl", 0.5, 0.25)
    chain = chains(objective, POLICY, REFERENCE, LENGTHS)[0]
    chosen, _ = split_shares(objective, 0)
    own = torch.tensor([-6.0 / 4] * 4, dtype=torch.float64)
    other = torch.tensor([-5.0 / 4] * 4, dtype=torch.float64)
    assert close(chain, chosen, shares(objective, -1, own, other))["closes"]
    assert not close(chain, chosen, shares(objective, 1, own, other))["closes"]
