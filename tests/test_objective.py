"""The objectives against values worked by hand, identities, limits, and finite differences.

pytest tests/test_objective.py
"""

import math

import pytest
import torch

from model.objective import (
    DIVERGENCES,
    LARGEST_EXPONENT,
    answer_mass,
    coefficients,
    divergence_slopes,
    f_dpo_loss,
    fill_alpha,
    guarded_share,
    ipo_loss,
    objective_loss,
    preference_loss,
    reward_loss,
    reward_objective,
    robust_loss,
    sft_term,
)

LOG_2 = math.log(2)


def logps(seed: int = 0, pairs: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(4, B): policy chosen, policy rejected, reference chosen, reference rejected."""
    generator = torch.Generator().manual_seed(seed)
    return -50 * torch.rand(4, pairs, generator=generator, dtype=dtype) - 1


def test_hand_worked_spl():
    """log pi = -10, -12; log pi_ref = -11, -12.5; alpha 0.2, beta 0.1.

    pi_logratios = 2, ref_logratios = 1.5; margin = 0.2 * 2 - 0.1 * 1.5 = 0.25
    loss = log(1 + e^-0.25) = log 2 - 0.125 + 0.25^2 / 8 - 0.25^4 / 192 = 0.5759394
    rewards = 0.2 * -10 - 0.1 * -11 = -0.9, 0.2 * -12 - 0.1 * -12.5 = -1.15;
    their difference is the margin.
    """
    four = torch.tensor([[-10.0], [-12.0], [-11.0], [-12.5]], dtype=torch.float64)
    losses, chosen, rejected = preference_loss(*four, *coefficients("spl", 0.2, 0.1))
    assert losses.item() == pytest.approx(0.5759394, abs=1e-7)
    assert chosen.item() == pytest.approx(-0.9, abs=1e-12)
    assert rejected.item() == pytest.approx(-1.15, abs=1e-12)


def test_hand_worked_h_dpo():
    """The same logps, alpha 0.9, beta 0.1: margin = 0.09 * 2 - 0.1 * 1.5 = 0.03.

    loss = log(1 + e^-0.03) = log 2 - 0.015 + 0.03^2 / 8 = 0.6782597
    """
    four = torch.tensor([[-10.0], [-12.0], [-11.0], [-12.5]], dtype=torch.float64)
    losses, _, _ = preference_loss(*four, *coefficients("h_dpo", 0.9, 0.1))
    assert losses.item() == pytest.approx(LOG_2 - 0.015 + 0.03**2 / 8, abs=1e-8)


def test_hand_worked_conservative_and_robust():
    """DPO at beta 0.1 on the same logps: margin 0.05; softplus(-0.05), softplus(0.05).

    softplus(-0.05) = 0.6684597, softplus(0.05) = 0.7184597 (they differ by the margin).
    conservative, eps 0.1: 0.9 * 0.6684597 + 0.1 * 0.7184597 = 0.6734597
    robust, eps 0.1: (0.9 * 0.6684597 - 0.1 * 0.7184597) / 0.8 = 0.6622097
    """
    four = torch.tensor([[-10.0], [-12.0], [-11.0], [-12.5]], dtype=torch.float64)
    kept = LOG_2 - 0.025 + 0.05**2 / 8
    conservative, _, _ = preference_loss(*four, 0.1, 0.1, label_smoothing=0.1)
    robust, _, _ = robust_loss(*four, 0.1, 0.1)
    assert conservative.item() == pytest.approx(kept + 0.1 * 0.05, abs=1e-7)
    assert robust.item() == pytest.approx(kept - 0.1 * 0.05 / 0.8, abs=1e-7)


def test_hand_worked_ipo():
    """Per-token logps -1, -1.5 against -1.1, -1.4: ratio difference 0.5 - 0.3 = 0.2.

    beta 0.5: (0.2 - 1 / (2 * 0.5))^2 = 0.64
    """
    four = torch.tensor([[-1.0], [-1.5], [-1.1], [-1.4]], dtype=torch.float64)
    losses, chosen, _ = ipo_loss(*four, 0.5)
    assert losses.item() == pytest.approx(0.64, abs=1e-12)
    assert chosen.item() == pytest.approx(0.05, abs=1e-12)


def test_spl_h_dpo_and_dpo_agree_bit_for_bit_where_they_must():
    four = logps(dtype=torch.float32)
    beta = 0.1
    dpo = preference_loss(*four, *coefficients("dpo", 123.0, beta))
    spl = preference_loss(*four, *coefficients("spl", beta, beta))
    h_dpo = preference_loss(*four, *coefficients("h_dpo", 1.0, beta))
    for one, two, three in zip(dpo, spl, h_dpo, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    for alpha in (0.8, 0.95, 1.2):
        one = preference_loss(*four, *coefficients("h_dpo", alpha, beta))
        two = preference_loss(*four, *coefficients("spl", alpha * beta, beta))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("tau", [0.5, 0.9, 1.0, 1.2, 11.0])
def test_step_zero_has_its_closed_form(tau):
    """pi = pi_ref: the margin is (policy_coef - reference_coef) * ref_logratios."""
    _, _, chosen, rejected = logps()
    beta = 0.1
    losses, _, _ = preference_loss(chosen, rejected, chosen, rejected, tau * beta, beta)
    expected = torch.nn.functional.softplus(-(tau - 1) * beta * (chosen - rejected))
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)
    if tau == 1.0:
        assert torch.equal(losses, torch.full_like(losses, LOG_2))


def test_scaled_reference_makes_spl_from_dpo():
    """SPL(alpha, beta) is DPO(alpha) on reference logps multiplied by beta / alpha."""
    four = logps()
    alpha, beta = 0.13, 0.1
    spl, _, _ = preference_loss(*four, alpha, beta)
    scaled, _, _ = preference_loss(four[0], four[1], *(four[2:] * beta / alpha), alpha, alpha)
    torch.testing.assert_close(spl, scaled, rtol=1e-12, atol=0)


def test_limits_of_label_smoothing_and_symmetry():
    four = logps()
    plain, _, _ = preference_loss(*four, 0.1, 0.1)
    torch.testing.assert_close(robust_loss(*four, 0.1, 0.0)[0], plain, rtol=0, atol=0)
    half, _, _ = preference_loss(*four, 0.1, 0.1, label_smoothing=0.5)
    swapped = four[[1, 0, 3, 2]]
    half_swapped, _, _ = preference_loss(*swapped, 0.1, 0.1, label_smoothing=0.5)
    torch.testing.assert_close(half, half_swapped, rtol=1e-12, atol=0)
    _, metrics = objective_loss(
        "spl", four[:2].flatten(), four[2:].flatten(), torch.ones(14), 0.2, 0.1
    )
    _, mirror = objective_loss(
        "spl", swapped[:2].flatten(), swapped[2:].flatten(), torch.ones(14), 0.2, 0.1
    )
    assert torch.equal(metrics["rewards/margins"], -mirror["rewards/margins"])


def test_robust_loss_is_unbiased_under_flipped_labels():
    """E over labels flipped with probability eps of the robust loss = the clean DPO loss."""
    four, eps = logps(), 0.2
    kept, _, _ = robust_loss(*four, 0.1, eps)
    flipped, _, _ = robust_loss(*four[[1, 0, 3, 2]], 0.1, eps)
    clean, _, _ = preference_loss(*four, 0.1, 0.1)
    torch.testing.assert_close((1 - eps) * kept + eps * flipped, clean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", ["dpo", "spl", "h_dpo", "ipo", "robust"])
def test_gradients_are_those_of_finite_differences(objective):
    four = logps(seed=3, pairs=5)
    policy, reference = four[:2].flatten().requires_grad_(), four[2:].flatten()
    lengths = torch.arange(3, 13, dtype=torch.float64)

    def total(policy_logps: torch.Tensor) -> torch.Tensor:
        smoothing = 0.1 if objective in ("dpo", "robust") else 0.0
        return objective_loss(objective, policy_logps, reference, lengths, 0.3, 0.1, smoothing)[0]

    assert torch.autograd.gradcheck(total, (policy,), eps=1e-5, atol=1e-8, rtol=1e-6)


def test_spl_gradient_by_hand():
    """d loss / d log pi(y_w) = -alpha * sigmoid(-margin), and its negative for y_l."""
    four = logps()
    alpha, beta = 0.2, 0.1
    policy = four[:2].clone().requires_grad_()
    losses, _, _ = preference_loss(*policy, *four[2:], alpha, beta)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    margins = alpha * (four[0] - four[1]) - beta * (four[2] - four[3])
    expected = -alpha * torch.sigmoid(-margins)
    torch.testing.assert_close(gradient, torch.stack([expected, -expected]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", ["dpo", "spl", "h_dpo", "ipo", "robust"])
def test_logged_terms_add_up(objective):
    four = logps()
    policy, reference = four[:2].flatten(), four[2:].flatten()
    lengths = torch.full((14,), 5.0, dtype=torch.float64)
    policy.requires_grad_()
    losses, terms = objective_loss(objective, policy, reference, lengths, 0.3, 0.1)
    assert losses.requires_grad and not any(value.requires_grad for value in terms.values())
    losses = losses.detach()
    assert set(terms) == {
        "loss", "logps/chosen", "logps/rejected", "terms/policy", "terms/reference",
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    }  # fmt: skip
    margins = terms["rewards/margins"]
    torch.testing.assert_close(terms["terms/policy"] - terms["terms/reference"], margins)
    torch.testing.assert_close(terms["rewards/chosen"] - terms["rewards/rejected"], margins)
    assert torch.equal(terms["rewards/accuracies"], (margins > 0).double())
    assert torch.equal(terms["logps/chosen"], four[0]) and torch.equal(terms["loss"], losses)


def test_ipo_is_per_token():
    """Sums -10 over 5 tokens and -6 over 2 against -5 and -8: means -2, -3 and -1, -4. The ratios
    are -1 and 1, their difference -2: at beta 0.5 the loss is (-2 - 1)^2 = 9."""
    policy, reference = torch.tensor([-10.0, -6.0]), torch.tensor([-5.0, -8.0])
    losses, _ = objective_loss("ipo", policy, reference, torch.tensor([5.0, 2.0]), None, 0.5)
    assert losses.tolist() == pytest.approx([9])


def test_a_margin_of_0_is_not_accurate():
    logps = torch.tensor([-3.0, -4.0])
    _, terms = objective_loss("dpo", logps, logps, torch.ones(2), None, 0.1)
    assert terms["rewards/accuracies"].tolist() == [0]
    assert reward_objective(torch.ones(2))[1]["rewards/accuracies"].tolist() == [0]


# ------------------------------------------------------------------------------------------------
# f-DPO


def near(seed: int = 0, pairs: int = 7) -> torch.Tensor:
    """(4, B) as `logps`, the policy within 2 nats of the reference."""
    four = logps(seed, pairs)
    generator = torch.Generator().manual_seed(seed + 1)
    moves = 4 * torch.rand(2, pairs, generator=generator, dtype=torch.float64) - 2
    return torch.cat([four[2:] + moves, four[2:]])


@pytest.mark.parametrize(
    ("divergence", "rewards"),
    [
        ("forward_kl", (0.05, -0.1)),
        ("jensen_shannon", (0.1 * math.log(4 / 3), 0.1 * math.log(2 / 3))),
        ("alpha", (0.1 * (2 - math.sqrt(2)), 0.1 * (2 - 2 * math.sqrt(2)))),
    ],
)
def test_hand_worked_f_dpo(divergence, rewards):
    """u_w = 2, u_l = 1/2, beta 0.1.

    1 - 1/u: 1/2 and -1, margin 0.15. log(2u / (1 + u)): log(4/3) and log(2/3), margin 0.1 log 2.
    Order 1/2, 2 (1 - 1/sqrt(u)): 2 - sqrt(2) and 2 - 2 sqrt(2), margin 0.1 sqrt(2).
    The loss is log 2 - m/2 + m^2/8 - m^4/192 + ...
    """
    four = torch.tensor([[-10.0], [-12.0], [-10.0], [-12.0]], dtype=torch.float64)
    four[:2] += torch.tensor([[math.log(2)], [-math.log(2)]])
    losses, chosen, rejected = f_dpo_loss(*four, 0.1, divergence, 0.5)
    assert (chosen.item(), rejected.item()) == pytest.approx(rewards, abs=1e-8)
    m = rewards[0] - rewards[1]
    assert losses.item() == pytest.approx(LOG_2 - m / 2 + m**2 / 8 - m**4 / 192, abs=1e-7)


def test_orders_of_the_alpha_divergence_lead_from_dpo_to_forward_kl():
    """(1 - u^-a) / a = log u - a (log u)^2 / 2 + ...: 2e-7 off at a = 1e-7, less by beta."""
    four = near()
    dpo = preference_loss(*four, 0.1, 0.1)
    for one, two in zip(f_dpo_loss(*four, 0.1, "alpha", 1e-7), dpo, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)
    forward = f_dpo_loss(*four, 0.1, "forward_kl", 0.5)
    for one, two in zip(f_dpo_loss(*four, 0.1, "alpha", 1.0), forward, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(forward[1], 0.1 * (1 - (four[2] - four[0]).exp()))
    half = f_dpo_loss(*four, 0.1, "alpha", 0.5)[0]
    assert not torch.allclose(half, dpo[0]) and not torch.allclose(half, forward[0])


def test_jensen_shannon_is_dpo_for_small_u_and_log_2_for_large():
    slopes = divergence_slopes(torch.tensor([-200.0, -40.0, 0.0, 40.0]), "jensen_shannon", 1.0)
    assert slopes.tolist() == pytest.approx([LOG_2 - 200, LOG_2 - 40, 0, LOG_2], abs=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_dpo_where_policy_is_reference(divergence, dtype):
    """The loss is log 2, the rewards 0; the gradient to log pi(y_w) is -beta u f''(u) / 2 at u = 1,
    where f'' is 1, of Jensen-Shannon 1 / (u (1 + u)) = 1/2."""
    four = logps(dtype=dtype)
    policy = four[2:].clone().requires_grad_()
    losses, chosen, rejected = f_dpo_loss(*policy, *four[2:], 0.1, divergence, 0.3)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert not chosen.any() and not rejected.any()
    assert not chosen.requires_grad and not rejected.requires_grad
    torch.testing.assert_close(losses, torch.full_like(losses, LOG_2))
    slope = 0.025 if divergence == "jensen_shannon" else 0.05
    expected = torch.tensor([[-slope], [slope]], dtype=dtype).expand(2, 7)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_of_f_dpo_are_those_of_finite_differences(divergence):
    four = near(seed=3, pairs=5)
    policy, reference = four[:2].flatten().requires_grad_(), four[2:].flatten()
    args = (torch.ones(10), 1.0, 0.3, 0.0, divergence, 0.3)
    total = lambda x: objective_loss("f_dpo", x, reference, *args)[0]  # noqa: E731
    assert torch.autograd.gradcheck(total, (policy,), eps=1e-5, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize(("divergence", "order"), [("forward_kl", 1.0), ("alpha", 0.25)])
def test_the_guard_continues_the_power_by_its_tangent(divergence, order):
    """With e = -order log u, f' = (1 - exp(e)) / order up to e = 30, and from there on
    (1 - e^30 (1 + e - 30)) / order: at log u = -200 and order 1, 1 - 171 e^30."""
    exponents = torch.tensor([29.0, 30 - 1e-9, 30 + 1e-9, 31.0, 50.0], dtype=torch.float64)
    log_ratios = (-exponents / order).requires_grad_()
    slopes = divergence_slopes(log_ratios, divergence, order)
    (steepness,) = torch.autograd.grad(slopes.sum(), log_ratios)
    top = math.exp(30)
    growth = torch.tensor([math.exp(29), top, top, 2 * top, 21 * top], dtype=torch.float64)
    torch.testing.assert_close(slopes, (1 - growth) / order, rtol=1e-8, atol=0)
    expected = torch.tensor([math.exp(29), top, top, top, top], dtype=torch.float64)
    torch.testing.assert_close(steepness, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_completion_has_a_finite_gradient_in_float32(divergence, lost):
    """log u = -200: lost as chosen, it pulls hard, but the square of its pull is a number; lost as
    rejected, the pair is won."""
    reference = torch.tensor([[-300.0], [-300.0]])
    policy = reference.clone()
    policy[lost] -= 200
    losses, chosen, rejected = f_dpo_loss(
        *policy.requires_grad_(), *reference, 0.1, divergence, 0.5
    )
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.isfinite() and chosen.isfinite() and rejected.isfinite()
    assert gradient.square().isfinite().all()
    if lost == 0:
        assert losses > 10 and gradient[0] < -0.09
    else:
        assert losses < 1e-8 and gradient.abs().max() < 1e-8


def test_what_the_guard_met_is_counted():
    """Orders 1 and 1/2 meet it at log u below -30 and -60; Jensen-Shannon never does."""
    assert LARGEST_EXPONENT == 30
    log_ratios = torch.tensor([-29.0, -31.0, 5.0, -31.0, -61.0, -200.0])  # pairs (0, 3), (1, 4), ..
    shares = {name: guarded_share(log_ratios, name, 0.5).tolist() for name in DIVERGENCES}
    assert shares["forward_kl"] == [0.5, 1.0, 0.5]
    assert shares["alpha"] == [0.0, 0.5, 0.5]
    assert shares["jensen_shannon"] == [0.0, 0.0, 0.0]
    gained = guarded_share(torch.tensor([40.0, 0.0]), "forward_kl", 0.5)
    assert gained.tolist() == [0.0]  # u is above 1: the power is small


def test_logged_terms_of_f_dpo():
    """Rewards, margin and the guard; the margin does not split into a policy's and a reference's
    term, so that there are none."""
    four = near()
    four[1, 2] -= 100
    policy, reference, ones = four[:2].flatten(), four[2:].flatten(), torch.ones(14)
    losses, terms = objective_loss("f_dpo", policy, reference, ones, 1.0, 0.1, 0.0, "forward_kl")
    assert set(terms) == {
        "loss", "logps/chosen", "logps/rejected", "guarded",
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    }  # fmt: skip
    _, chosen, rejected = f_dpo_loss(*four, 0.1, "forward_kl", 0.5)
    assert torch.equal(terms["rewards/chosen"], chosen)
    assert torch.equal(terms["rewards/margins"], chosen - rejected)
    assert torch.equal(terms["rewards/accuracies"], (chosen > rejected).double())
    assert terms["guarded"].tolist() == [0, 0, 0.5, 0, 0, 0, 0]
    assert torch.equal(terms["loss"], losses) and torch.equal(terms["logps/rejected"], four[1])


def test_divergences_that_are_none_are_refused():
    four = near()
    with pytest.raises(ValueError, match="expected --divergence to be one of forward_kl, jensen"):
        f_dpo_loss(*four, 0.1, "js", 0.5)
    for order in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"expected --divergence_order in \(0, 1\], got"):
            f_dpo_loss(*four, 0.1, "alpha", order)
    with pytest.raises(ValueError, match="expected --divergence to be one of"):
        objective_loss("f_dpo", four[:2].flatten(), four[2:].flatten(), torch.ones(14), 1.0, 0.1)
    with pytest.raises(ValueError, match="a policy's term minus a reference's; got f_dpo"):
        coefficients("f_dpo", 1.0, 0.1)


# ------------------------------------------------------------------------------------------------
# reward models and what is logged beside


def test_hand_worked_reward_loss():
    """r(y_w) = 1.3, r(y_l) = 1.05: margin 0.25 as in SPL's example, the same loss 0.5759394.

    Smoothed by 0.1, 0.9 * 0.5759394 + 0.1 * 0.8259394 = 0.6009394: softplus(m) = softplus(-m) + m.
    """
    chosen, rejected = torch.tensor([[1.3], [1.05]], dtype=torch.float64)
    assert reward_loss(chosen, rejected).item() == pytest.approx(0.5759394, abs=1e-7)
    assert reward_loss(chosen, rejected, 0.1).item() == pytest.approx(0.6009394, abs=1e-7)
    moved = reward_loss(chosen + 70, rejected + 70)  # a constant of the prompt is free
    assert moved.item() == pytest.approx(0.5759394, abs=1e-7)


def test_dpo_is_the_reward_loss_of_its_implicit_rewards():
    four = logps()
    for smoothing in (0.0, 0.2):
        losses, chosen, rejected = preference_loss(*four, 0.1, 0.1, smoothing)
        torch.testing.assert_close(reward_loss(chosen, rejected, smoothing), losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_reward_gradient_is_that_of_finite_differences(smoothing):
    rewards = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    losses = lambda values: reward_objective(values, smoothing)[0]  # noqa: E731
    assert torch.autograd.gradcheck(losses, (rewards.requires_grad_(),), eps=1e-5, atol=1e-8)
    _, terms = reward_objective(rewards, smoothing)
    assert not any(values.requires_grad for values in terms.values())
    margins = rewards.detach()[:5] - rewards.detach()[5:]
    assert torch.equal(terms["rewards/margins"], margins)
    assert torch.equal(terms["rewards/accuracies"], (margins > 0).double())


def test_extreme_margins_stay_finite():
    wide = torch.tensor([[300.0, -300.0], [-300.0, 300.0]])
    assert reward_loss(*wide).tolist() == [0.0, 600.0]
    far = torch.tensor([[-1e4], [-1e-3], [-1e-3], [-1e4]])
    losses, _, _ = preference_loss(*far, 1.1, 0.1)
    assert losses.item() == pytest.approx(1.1 * 1e4 + 0.1 * 1e4, rel=1e-5)
    losses, _, _ = preference_loss(*far[[1, 0, 3, 2]], 1.1, 0.1)
    assert losses.item() == 0.0


def test_sft_term_is_the_mean_negative_logp():
    assert sft_term(torch.tensor([-6.0]), torch.tensor([4.0])).item() == 1.5


def test_answer_mass_counts_closed_pairs_alone():
    """Reference: 0.5 + 0.1 is closed, 0.4 + 0.05 is not. The policy keeps 0.2 + 0.1 of it. No graph
    hangs on what is logged."""
    reference = torch.tensor([0.5, 0.4, 0.1, 0.05]).log()
    policy = torch.tensor([0.2, 0.01, 0.1, 0.02]).log().requires_grad_()
    mass = answer_mass(policy, reference)
    closed = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(mass["mass/policy"], (torch.tensor([0.3, 0.03]), closed))
    torch.testing.assert_close(mass["mass/reference"], (torch.tensor([0.6, 0.45]), closed))
    assert not mass["mass/policy"][0].requires_grad


def test_an_alpha_that_is_not_given_follows_beta_or_is_asked_for():
    assert fill_alpha("spl", None, 0.1) == 0.12 and fill_alpha("spl", 0.3, 0.1) == 0.3
    assert fill_alpha("spl", 0.0, 0.1) == 0.0  # given, and refused by what follows
    assert fill_alpha("spl", None, 0.01) == pytest.approx(0.012)
    assert fill_alpha("dpo", None, 0.1) is None and coefficients("dpo", None, 0.1) == (0.1, 0.1)
    with pytest.raises(ValueError, match="--objective h_dpo expects --alpha"):
        fill_alpha("h_dpo", None, 0.1)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="--alpha above 0, got 0"):
        coefficients("spl", 0.0, 0.1)
    with pytest.raises(ValueError, match="--alpha above 0, got None"):
        coefficients("h_dpo", None, 0.1)
    with pytest.raises(ValueError, match="--beta above 0, got -1"):
        coefficients("dpo", None, -1)
    with pytest.raises(ValueError, match="--objective to be one of"):
        coefficients("none", 1.0, 0.1)
