"""Where a preference loss comes from: the chain of each pair, and what each token adds to it.

A pair's chain goes through the forward of training (packed, the prompt shared) and through
`objective_loss`; the numbers of its tokens come from plain forwards over one completion at a time,
with whole logits in float64. So that the shares of the tokens sum to the pair's margin says that
two ways through the model agree, and that nothing is left out between a token and the loss.

With c the completion, w = 1 (for ipo 1 / |c|), and + for chosen, - for rejected, a token adds

    +- policy_coef    * w * log pi(y_t | ...)        to the policy term
    +- reference_coef * w * log pi_ref(y_t | ...)    to the reference term

and their difference to the margin. It pushes on the logits that predict it with the gradient
(d loss / d log pi(c)) * (1[y_t] - p); the first factor is the same for all tokens of c.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data.packing import PairBatch, epoch_batches
from data.pairs import TokenPair
from model.objective import coefficients, objective_loss, sft_term
from model.transformer import Transformer

TOLERANCE = {  # of a closing sum, relative to the sizes of the terms: two forwards round apart
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
ROWS = 512  # of whole logits at a time


@dataclass(frozen=True)
class Objective:
    name: str
    alpha: float | None  # of spl and h_dpo
    beta: float
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    @property
    def coefficients(self) -> tuple[float, float]:
        return coefficients(self.name, self.alpha, self.beta)


@torch.no_grad()
def pair_logps(
    model: Transformer, pairs: Sequence[TokenPair], budget: int, device: str, label: str
) -> Tensor:
    """(N, 2) float64 log-probabilities of chosen and rejected, through the forward of training."""
    logps = torch.zeros(len(pairs), 2, dtype=torch.float64)
    batches: Iterator[PairBatch] = epoch_batches(list(pairs), budget)
    with tqdm(total=len(pairs), desc=label, unit=" pairs", leave=False) as bar:
        for batch in batches:
            sums = batch.to(device)
            sums = sums.sum_by_sequence(model(batch=sums).logps).cpu().double()
            logps[batch.pair_ids] = torch.stack(sums.chunk(2), dim=1)
            bar.update(len(batch))
    if not logps.isfinite().all():
        bad = (~logps.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise ValueError(
            f"the {label} gives {len(bad)} pairs no finite log-probability, the first is "
            f"{pairs[bad[0]].source}; try --dtype float32"
        )
    return logps


def chains(
    objective: Objective, policy: Tensor, reference: Tensor, lengths: Tensor
) -> list[dict[str, float]]:
    """Every number from the log-probabilities of each pair to its loss and gradient, in float64.

    policy, reference: (N, 2) chosen and rejected; lengths: (N, 2) tokens.
    """
    flat = policy.T.flatten().double().requires_grad_()  # (2N,), chosen first
    losses, terms = objective_loss(
        objective.name,
        flat,
        reference.T.flatten().double(),
        lengths.T.flatten().double(),
        objective.alpha,
        objective.beta,
        objective.label_smoothing,
    )
    if objective.sft_weight:
        likelihood = sft_term(flat.chunk(2)[0], lengths[:, 0].double())
        losses = losses + objective.sft_weight * likelihood
    (gradient,) = torch.autograd.grad(losses.sum(), flat)
    margins = terms["rewards/margins"]
    columns = {
        "policy_chosen_logps": policy[:, 0],
        "policy_rejected_logps": policy[:, 1],
        "reference_chosen_logps": reference[:, 0],
        "reference_rejected_logps": reference[:, 1],
        "pi_logratios": terms["terms/policy"] / objective.coefficients[0],
        "ref_logratios": terms["terms/reference"] / objective.coefficients[1],
        "terms/policy": terms["terms/policy"],
        "terms/reference": terms["terms/reference"],
        "margin": margins,
        "sigmoid": margins.sigmoid(),
        "loss": losses.detach(),
        "gradient/chosen": gradient.chunk(2)[0],
        "gradient/rejected": gradient.chunk(2)[1],
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


# ------------------------------------------------------------------------------------------------
# tokens


@dataclass(frozen=True)
class TokenNumbers:
    """Of each token of a completion, (C,) float64 but for the ids."""

    logps: Tensor
    entropy: Tensor
    gradient: Tensor  # || 1[y] - p ||, of the logits that predict it
    likeliest: Tensor  # (C,) int64, the token that the model holds likeliest
    likeliest_p: Tensor


@torch.no_grad()
def token_numbers(
    model: Transformer, prompt: Sequence[int], completion: Sequence[int]
) -> TokenNumbers:
    """By the plain forward over [prompt | completion], log-softmax in float64."""
    device = model.norm.weight.device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    logits = model(ids)[0, len(prompt) - 1 : -1]  # (C, V)
    targets = torch.tensor(list(completion), device=device)
    parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
    columns = zip(*(rows_numbers(*part) for part in parts), strict=True)
    return TokenNumbers(*(torch.cat(column).cpu() for column in columns))


def rows_numbers(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logps = logits.double().log_softmax(-1)  # (rows, V)
    p = logps.exp()
    own = logps.gather(1, targets[:, None]).squeeze(1)
    entropy = -(p * logps).sum(-1)
    # || 1[y] - p ||^2 = (1 - p_y)^2 + sum over the others of p_j^2
    others = p.scatter(1, targets[:, None], 0.0)
    missing = others.sum(-1)  # 1 - p_y as a sum, which keeps its precision near p_y = 1
    gradient = (missing.square() + others.square().sum(-1)).sqrt()
    best_p, best = p.max(-1)
    return own, entropy, gradient, best, best_p


def shares(objective: Objective, sign: int, policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """What each token of a completion adds to the two terms and to the margin; (C,) each.

    sign: 1 for chosen, -1 for rejected; policy, reference: its tokens' log-probabilities.
    """
    policy_coef, reference_coef = objective.coefficients
    weight = sign / len(policy) if objective.name == "ipo" else sign
    own, other = policy_coef * weight * policy, reference_coef * weight * reference
    return {"policy_share": own, "reference_share": other, "margin_share": own - other}


def close(
    chain: dict[str, float],
    chosen: dict[str, Tensor],
    rejected: dict[str, Tensor],
    tolerance: float = TOLERANCE[torch.float32],
) -> dict[str, float | bool]:
    """Whether the shares of all tokens sum to the pair's terms and margin, within the tolerance.

    The residual is the largest of the three, over the size of what is summed: the tokens' shares
    without their signs, for the margin those of both terms. (Near the reference the terms cancel
    token by token, and what is left of them says nothing of the size of the sums.)
    """
    parts = {"policy_share": "terms/policy", "reference_share": "terms/reference",
             "margin_share": "margin"}  # fmt: skip
    tokens = {share: torch.cat([chosen[share], rejected[share]]) for share in parts}
    sizes = {share: values.abs().sum().item() for share, values in tokens.items()}
    sizes["margin_share"] = sizes["policy_share"] + sizes["reference_share"]
    tiny = torch.finfo(torch.float64).tiny
    residuals = [abs(tokens[share].sum().item() - chain[term]) / max(sizes[share], tiny)
                 for share, term in parts.items()]  # fmt: skip
    residual = torch.tensor(residuals).max().item()  # NaN where one of them is
    total = torch.cat([chosen["margin_share"], rejected["margin_share"]]).sum().item()
    closes = residual <= tolerance
    return {"from_tokens": total, "margin": chain["margin"], "residual": residual, "closes": closes}
