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
"""

import torch.nn.functional as F
from torch import Tensor

SIGMOID_FAMILY = ("dpo", "spl", "h_dpo")
CLOSED = 0.5  # probability that both completions of a closed pair have together, at least
OBJECTIVES = ("sft", *SIGMOID_FAMILY, "ipo", "robust", "reward")

Losses = tuple[Tensor, Tensor, Tensor]  # losses (B,), chosen rewards (B,), rejected rewards (B,)


def coefficients(objective: str, alpha: float, beta: float) -> tuple[float, float]:
    """(policy_coef, reference_coef) of an objective; `alpha` counts for spl and h_dpo alone.

    alpha, beta: positive. spl with alpha = 1 represents a population's preferences in proportion
    [SPL Cor. 3.1]; alpha = beta is DPO. h_dpo with alpha < 1 seeks a mode, alpha > 1 spreads.
    Raises ValueError for another objective or a weight that is not positive.
    """
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"expected --alpha and --beta above 0, got alpha={alpha}, beta={beta}")
    if objective == "spl":
        return alpha, beta  # [SPL Prop. A.2]
    if objective == "h_dpo":
        return alpha * beta, beta  # [H-DPO]
    if objective in ("dpo", "ipo", "robust"):
        return beta, beta  # [DPO Eq. 7]
    raise ValueError(f"expected --objective to be one of {', '.join(OBJECTIVES)}, got {objective}")


def preference_terms(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    policy_coef: float,
    reference_coef: float,
) -> Losses:
    """The margin and its two implicit rewards, all (B,).

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


def objective_loss(
    objective: str,
    policy_logps: Tensor,
    reference_logps: Tensor,
    lengths: Tensor,
    alpha: float,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of a preference objective and every term of them.

    policy_logps, reference_logps: (2B,) sums over tokens, chosen first, rejected second
    lengths: (2B,) completion tokens
    out: losses (B,), {name: (B,)} without gradient
    """
    policy_coef, reference_coef = coefficients(objective, alpha, beta)
    sums = policy_logps.detach()
    if objective == "ipo":
        policy_logps, reference_logps = policy_logps / lengths, reference_logps / lengths
    logps = (*policy_logps.chunk(2), *reference_logps.chunk(2))

    if objective == "ipo":
        losses, *rewards = ipo_loss(*logps, beta)
    elif objective == "robust":
        losses, *rewards = robust_loss(*logps, beta, label_smoothing)
    else:
        losses, *rewards = preference_loss(*logps, policy_coef, reference_coef, label_smoothing)

    metrics = preference_metrics(*logps, *rewards, policy_coef, reference_coef)
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
