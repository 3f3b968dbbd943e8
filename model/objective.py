"""Every term of every objective, as pure functions of (B,) tensors: no model, device or batch.

Notation: y_w is the chosen and y_l the rejected completion; log pi(y|x) is a **sum** over the
tokens of the completion, the end-of-turn token included.

    pi_logratios  = log pi(y_w|x)     - log pi(y_l|x)
    ref_logratios = log pi_ref(y_w|x) - log pi_ref(y_l|x)
    margins       = policy_coef * pi_logratios - reference_coef * ref_logratios

The three objectives differ in the two coefficients alone:

    dpo    (beta,         beta)    Rafailov et al. 2023, arXiv 2305.18290
    h_dpo  (alpha * beta, beta)    H-DPO, arXiv 2411.07595: alpha scales the entropy of pi
    spl    (alpha,        beta)    Soft Preference Learning, arXiv 2511.08594: alpha weighs the
                                   entropy, beta the cross-entropy with the reference

so that h_dpo(alpha, beta) = spl(alpha * beta, beta), and both are dpo where the coefficients are
equal. The optimum is pi* ∝ pi_ref^(reference_coef / policy_coef) * exp(r / policy_coef); the ratio
tau = policy_coef / reference_coef is a temperature of whole sequences. At step 0 (pi = pi_ref) the
margin is (policy_coef - reference_coef) * ref_logratios: zero for dpo, not for tau != 1.

f_dpo replaces the KL of DPO by another divergence; its margin is no difference of two such terms.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMOID_FAMILY = ("dpo", "spl", "h_dpo")
TWO_TERMS = (*SIGMOID_FAMILY, "ipo", "robust")  # their margin: a policy's term minus a reference's
WITH_ALPHA = ("spl", "h_dpo")  # those that weigh the policy's entropy by itself
OBJECTIVES = ("sft", *TWO_TERMS, "f_dpo", "reward")
ONE_MODEL = ("sft", "reward")  # without a reference policy
DIVERGENCES = ("forward_kl", "jensen_shannon", "alpha")
DEFAULT_TAU = 1.2  # of spl, in the range of the paper's study of chat
LARGEST_EXPONENT = 30.0  # of u^-order; e^30 is 1e13, of which float32 still holds the square
CLOSED = 0.5  # probability that both completions of a closed pair have together, at least

Losses = tuple[Tensor, Tensor, Tensor]  # losses (B,), chosen rewards (B,), rejected rewards (B,)


def coefficients(objective: str, alpha: float | None, beta: float) -> tuple[float, float]:
    """(policy_coef, reference_coef) of an objective; `alpha` counts for spl and h_dpo alone.

    alpha, beta: positive. spl with alpha = 1 represents a population's preferences in proportion
    [SPL Cor. 3.1]; alpha = beta is DPO. h_dpo with alpha < 1 seeks a mode, alpha > 1 spreads.
    Raises ValueError for an objective without them or a weight that is not positive.
    """
    weights = {"beta": beta} | ({"alpha": alpha} if objective in WITH_ALPHA else {})
    for name, weight in weights.items():
        if weight is None or not weight > 0:
            raise ValueError(f"expected --{name} above 0, got {weight}")
    if objective == "spl":
        return alpha, beta  # [SPL Prop. A.2]
    if objective == "h_dpo":
        return alpha * beta, beta  # [H-DPO]
    if objective in TWO_TERMS:
        return beta, beta  # [DPO Eq. 7]
    raise ValueError(
        f"expected --objective to be one of {', '.join(TWO_TERMS)}, whose margins are a policy's "
        f"term minus a reference's; got {objective}"
    )


def fill_alpha(objective: str, alpha: float | None, beta: float) -> float | None:
    """A run's alpha where none is given: SPL's, so that tau = 1.2; ValueError for H-DPO's.

    Neither weight means anything without the other: an alpha that does not follow --beta makes
    another objective of every beta.
    """
    if alpha is None and objective == "h_dpo":
        raise ValueError(
            "--objective h_dpo expects --alpha, the temperature of whole sequences: 1 is DPO, and "
            "less seeks a mode; got none"
        )
    return DEFAULT_TAU * beta if alpha is None and objective == "spl" else alpha


def preference_terms(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_coef: float,
    reference_coef: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out: margins, chosen rewards and rejected rewards, all (B,); margins alone have a gradient.

    reward(y) = policy_coef * log pi(y|x) - reference_coef * log pi_ref(y|x), up to a constant of x;
    the margin is written from the log ratios, so that equal terms cancel before they are scaled.
    """
    pi_logratios = policy_chosen_logps - policy_rejected_logps
    ref_logratios = reference_chosen_logps - reference_rejected_logps
    margins = policy_coef * pi_logratios - reference_coef * ref_logratios

    chosen_rewards = policy_coef * policy_chosen_logps - reference_coef * reference_chosen_logps
    rejected_rewards = (
        policy_coef * policy_rejected_logps - reference_coef * reference_rejected_logps
    )
    return margins, chosen_rewards.detach(), rejected_rewards.detach()


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_coef: float,
    reference_coef: float,
    label_smoothing: float = 0.0,
) -> Losses:
    """The sigmoid family: dpo, h_dpo and spl; with label smoothing, conservative DPO.

    all inputs: (B,) float32 or float64; policy_coef -> 0 ignores the policy, reference_coef -> 0
    the reference. label_smoothing: the share of labels taken to be flipped, in [0, 0.5).
    out: losses (B,), chosen rewards (B,), rejected rewards (B,); the rewards carry no gradient.
    """
    margins, chosen_rewards, rejected_rewards = preference_terms(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        policy_coef,
        reference_coef,
    )
    losses = -F.logsigmoid(margins)  # [DPO Eq. 7] [SPL Prop. A.2] [H-DPO]
    if label_smoothing:
        flipped = -F.logsigmoid(-margins)
        losses = (1 - label_smoothing) * losses + label_smoothing * flipped  # [cDPO Eq. 3]
    return losses, chosen_rewards, rejected_rewards


def robust_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float,
) -> Losses:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): unbiased under flipped labels.

    label_smoothing: the known share of flipped labels, in [0, 0.5); 0 is DPO. Where conservative
    DPO averages the two labels' losses, this one takes their difference, divided by 1 - 2 eps.
    """
    margins, chosen_rewards, rejected_rewards = preference_terms(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
        beta,
    )
    eps = label_smoothing
    kept, flipped = -F.logsigmoid(margins), -F.logsigmoid(-margins)
    losses = ((1 - eps) * kept - eps * flipped) / (1 - 2 * eps)  # [rDPO]
    return losses, chosen_rewards, rejected_rewards


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> Losses:
    """IPO (Azar et al. 2023, arXiv 2310.12036); beta is the paper's tau.

    all inputs: (B,) log-probabilities **divided by the completion's length**, as its authors and
    TRL have them in practice.
    """
    margins, chosen_rewards, rejected_rewards = preference_terms(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta,
        beta,
    )
    losses = (margins / beta - 1 / (2 * beta)) ** 2  # [IPO Eq. 17]
    return losses, chosen_rewards, rejected_rewards


def divergence_slopes(log_ratios: Tensor, divergence: str, order: float) -> Tensor:
    """f'(u), where log u is `log_ratios`, of any shape; the constant is chosen for f'(1) = 0.

    A constant added to f' changes nothing, as u has the mean 1 under the reference: where the
    source has -1/u for the forward KL, this is 1 - 1/u. order: of the alpha-divergence, in (0, 1];
    -> 0 is DPO's log u, 1 is forward_kl. log u is a sum over tokens and can be -200: beyond
    e^LARGEST_EXPONENT the power is continued by its tangent, so that the gradient neither vanishes
    nor becomes inf; `guarded_share` counts how often.
    Raises ValueError for an unknown divergence or an order out of range.
    """
    order = growth_order(divergence, order)
    if divergence == "jensen_shannon":
        return math.log(2) + F.logsigmoid(log_ratios)  # log(2u / (1 + u)) [f-DPO]
    exponents = -order * log_ratios
    powers = torch.expm1(exponents.clamp(max=LARGEST_EXPONENT))
    beyond = F.relu(exponents - LARGEST_EXPONENT)  # a branch of its own: no large gradients cancel
    powers = powers + math.exp(LARGEST_EXPONENT) * beyond
    return -powers / order  # (1 - u^-order) / order [f-DPO]


def growth_order(divergence: str, order: float) -> float:
    """The power of 1/u with which f' falls as u -> 0; 0 for Jensen-Shannon's logarithm."""
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"expected --divergence to be one of {', '.join(DIVERGENCES)}, got {divergence}"
        )
    if not 0 < order <= 1:
        raise ValueError(f"expected --divergence_order in (0, 1], got {order}")
    return {"forward_kl": 1.0, "jensen_shannon": 0.0, "alpha": order}[divergence]


def f_dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    divergence: str,
    order: float,
) -> Losses:
    """f-DPO (Wang et al. 2023, arXiv 2309.16240): DPO with another divergence than the reverse KL.

    all inputs: (B,) float32 or float64. With u = pi(y|x) / pi_ref(y|x), a completion's implicit
    reward is beta * f'(u); the optimum is pi_ref * (f')^-1((r - lambda) / beta), where lambda
    normalises. divergence, order: as in `divergence_slopes`.
    """
    chosen_ratios = policy_chosen_logps - reference_chosen_logps
    rejected_ratios = policy_rejected_logps - reference_rejected_logps
    chosen_rewards = beta * divergence_slopes(chosen_ratios, divergence, order)
    rejected_rewards = beta * divergence_slopes(rejected_ratios, divergence, order)
    losses = -F.logsigmoid(chosen_rewards - rejected_rewards)  # [f-DPO]
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def guarded_share(log_ratios: Tensor, divergence: str, order: float) -> Tensor:
    """(2B,) log u, chosen first -> (B,) the share of a pair's completions beyond the exponent."""
    meets = -growth_order(divergence, order) * log_ratios > LARGEST_EXPONENT
    return meets.to(log_ratios.dtype).view(2, -1).mean(dim=0)


def sft_term(chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """-log pi(y_w|x) / |y_w|, (B,): the likelihood term that --sft_weight adds to a loss.

    Divided by the length, as in RPO (Pang et al. 2024, arXiv 2404.19733).
    """
    return -chosen_logps / chosen_lengths


def reward_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The loss of a reward model (Stiennon et al. 2020, arXiv 2009.01325), (B,).

    all inputs: (B,) float32 or float64. The negative log-likelihood of the labels where people
    choose y_w with probability sigmoid(r(x, y_w) - r(x, y_l)), the model of Bradley and Terry: only
    differences count, a constant of x is free. label_smoothing: the share of labels taken to be
    flipped, in [0, 0.5).
    """
    margins = chosen_rewards - rejected_rewards
    losses = -F.logsigmoid(margins)  # [BT]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-margins)
    return losses


# ------------------------------------------------------------------------------------------------
# the named objective and what is logged of it
#
# A new one on the margin of two terms needs its function, its name in TWO_TERMS and its branch
# beside ipo's; another kind its name in OBJECTIVES (in ONE_MODEL without a reference) and a branch
# before `coefficients`. Flags that it has no use for are in UNUSED of model/flags.py; a flag of its
# own is a field of TrainConfig, handed on by compute_losses. The audit wants its equation too
# (eval/audit_equations.py).


def objective_loss(
    objective: str,
    policy_logps: Tensor,
    reference_logps: Tensor,
    lengths: Tensor,
    alpha: float | None,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: str | None = None,
    divergence_order: float = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of a preference objective and every term of them.

    policy_logps, reference_logps: (2B,) sums over tokens, chosen first, rejected second
    lengths: (2B,) completion tokens
    divergence, divergence_order: of f_dpo
    out: losses (B,), {name: (B,)} without gradient
    """
    sums = policy_logps.detach()
    if objective == "ipo":
        policy_logps, reference_logps = policy_logps / lengths, reference_logps / lengths
    logps = (*policy_logps.chunk(2), *reference_logps.chunk(2))

    if objective == "f_dpo":
        losses, *rewards = f_dpo_loss(*logps, beta, divergence, divergence_order)
        metrics = reward_metrics(*rewards, rewards[0] - rewards[1])
        log_ratios = policy_logps.detach() - reference_logps
        metrics["guarded"] = guarded_share(log_ratios, divergence, divergence_order)
    else:
        coefs = coefficients(objective, alpha, beta)
        if objective == "ipo":
            losses, *rewards = ipo_loss(*logps, beta)
        elif objective == "robust":
            losses, *rewards = robust_loss(*logps, beta, label_smoothing)
        else:
            assert objective in SIGMOID_FAMILY, objective
            losses, *rewards = preference_loss(*logps, *coefs, label_smoothing)
        metrics = preference_metrics(*logps, *rewards, *coefs)
    metrics["loss"] = losses.detach()
    metrics["logps/chosen"], metrics["logps/rejected"] = sums.chunk(2)
    return losses, metrics


def reward_objective(
    rewards: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of a reward model and what is logged of them.

    rewards: (2B,), chosen first, rejected second; out: losses (B,), {name: (B,)} without gradient
    """
    losses = reward_loss(*rewards.chunk(2), label_smoothing)
    chosen, rejected = rewards.detach().chunk(2)
    margins = chosen - rejected
    return losses, {"loss": losses.detach()} | reward_metrics(chosen, rejected, margins)


def reward_metrics(chosen: Tensor, rejected: Tensor, margins: Tensor) -> dict[str, Tensor]:
    """Rewards, implicit or a model's, their margin, and where it has the right sign; all (B,)."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).to(margins.dtype),
    }


def preference_metrics(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    policy_coef: float,
    reference_coef: float,
) -> dict[str, Tensor]:
    """The two terms of the margin, the margin and the implicit rewards: {name: (B,)}.

    rewards/margins = terms/policy - terms/reference; a pair is accurate where it is above zero.
    """
    policy_term = policy_coef * (policy_chosen_logps - policy_rejected_logps).detach()
    reference_term = reference_coef * (reference_chosen_logps - reference_rejected_logps)
    metrics = reward_metrics(chosen_rewards, rejected_rewards, policy_term - reference_term)
    return metrics | {"terms/policy": policy_term, "terms/reference": reference_term}


def answer_mass(policy_logps: Tensor, reference_logps: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """pi(y_w|x) + pi(y_l|x) of the closed pairs, under the policy and under the reference.

    policy_logps, reference_logps: (2B,), chosen first. A pair is closed where its two completions
    hold CLOSED or more of what the reference would answer; there may be none. The accuracy of pairs
    can rise while this mass drains away to answers that no pair holds.
    out: {name: (mass (B,), weight (B,)) with weight 1 where the pair is closed, else 0}
    """
    policy_mass = sum(policy_logps.detach().exp().chunk(2))
    reference_mass = sum(reference_logps.exp().chunk(2))
    closed = (reference_mass >= CLOSED).to(reference_mass.dtype)
    return {"mass/policy": (policy_mass, closed), "mass/reference": (reference_mass, closed)}
