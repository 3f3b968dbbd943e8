"""Invariants of a policy's log-probabilities and losses before its first step.

Most are of the first micro-step, as training takes it: in the run's dtype, packed, with gradients.
What is exact by definition is held against the definition in float64, on the shortest pairs alone:
the weights are taken as they are and the activations widened, layer by layer, so that a model of
any size has its numbers in float64 without a copy of it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from data.packing import PairBatch, num_tokens, pack_pairs, pack_step
from data.pairs import TokenPair
from eval.audit_terms import Objective
from eval.findings import FAIL, NOTE, PASS, Finding, count_finding, error_finding
from model.lora import lora_layers
from model.objective import SIGMOID_FAMILY, objective_loss
from model.reference import reference_logps
from model.transformer import Transformer

PROBE_PAIRS = 2
NUDGE = 0.01  # standard deviation of what takes the policy away from the reference
EXACT = 1e-9  # float64 against float64
LOSS_TOLERANCE = 1e-4  # float32 sums of hundreds of nats against float64
SUM_TOLERANCE = 1e-5  # float32 sums of 10^4 terms of one sign, against float64
SATURATED = 20.0  # |margin| where sigmoid(-margin), the weight of a pair's gradient, is 2e-9 or 1
KNOWN = 0.75  # of log 1/V: a mean log-probability below it is no better than another tokenizer's
UNTRAINED = 0.1  # of the median norm of the embeddings: a row below it was never trained


@dataclass(frozen=True)
class FirstStep:
    """What the first micro-step of training computes of a batch, on CPU."""

    batch: PairBatch
    token_logps: Tensor  # (C,)
    entropy: Tensor  # (C,)
    policy: Tensor  # (2B,)
    reference: Tensor  # (2B,)


def number_findings(
    model: Transformer,
    pairs: Sequence[TokenPair],
    objective: Objective,
    special_ids: Sequence[int],
    end: int,
    budget: int,
    device: str,
) -> Iterator[Finding]:
    """All of them, on some pairs; none behind a log-probability that is no number.

    model: as train.py builds it; special_ids: of the chat format, `end` closes a turn; budget:
    tokens of a micro-batch.
    """
    yield trained_rows(model, special_ids)
    batches = pack_step(list(pairs), list(range(len(pairs))), budget)
    steps = [first_step(model, batch, device) for batch in batches]
    finite = finite_numbers(steps, pairs)
    yield finite
    if finite.verdict == FAIL:
        return
    yield texts_are_known(model, steps)
    yield end_is_known(model, steps, end)
    yield policy_is_reference(steps, pairs)
    yield loss_at_step_0(steps, objective)
    yield margin_at_step_0(steps, objective)
    yield sums(steps)
    probe = shortest(pairs)
    yield packed_is_plain(model, probe, device)
    yield swap(model, probe, objective, device)


# ------------------------------------------------------------------------------------------------
# the first step, as training takes it


def first_step(model: Transformer, batch: PairBatch, device: str) -> FirstStep:
    moved = batch.to(device)
    reference = reference_logps(model, moved)
    with computing_in(model, model.compute_dtype):
        stats = model(batch=moved)  # with gradients, as in training
    numbers = stats.logps, stats.entropy, moved.sum_by_sequence(stats.logps), reference
    return FirstStep(batch, *(values.detach().cpu() for values in numbers))


def shortest(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The pairs that are taken through float64."""
    return sorted(pairs, key=num_tokens)[:PROBE_PAIRS]


@contextmanager
def computing_in(model: Transformer, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, activations have a dtype, and a backward pass keeps those of one block at a time."""
    before = model.compute_dtype, model.checkpoint_activations
    model.compute_dtype, model.checkpoint_activations = dtype, True
    try:
        yield
    finally:
        model.compute_dtype, model.checkpoint_activations = before


def trained_rows(model: Transformer, special_ids: Sequence[int]) -> Finding:
    """The embeddings of the format's special tokens are those of tokens that were trained."""
    weight = model.embed_tokens.weight.detach()
    norms = weight.float().norm(dim=1)
    least = UNTRAINED * norms.median()
    rows = weight[list(special_ids)]
    bad = []
    for i, id in enumerate(special_ids):
        twin = any(torch.equal(rows[i], rows[j]) for j in range(len(rows)) if j != i)
        if twin or not norms[id] >= least:
            bad.append(f"token {id}")
    mend = (
        "its embedding is equal to another's, or below a tenth of the median norm: it was never "
        "trained, and adapters leave it so; take the instruct model, or --lora_rank 0"
    )
    total = len(special_ids)
    return count_finding("special tokens trained", bad, total, "rows are not", mend, 1.0)


def finite_numbers(steps: Sequence[FirstStep], pairs: Sequence[TokenPair]) -> Finding:
    bad = set()
    for step in steps:
        broken = ~(step.token_logps.isfinite() & step.entropy.isfinite())
        bad |= pairs_of(step, step.batch.sequence_id[broken])
    mend = (
        "no finite log-probability; are the weights of --model or --adapter broken? else pass "
        "--dtype float32"
    )
    sources = [pairs[i].source for i in sorted(bad)]
    return count_finding("finite numbers", sources, len(pairs), "pairs without", mend)


def pairs_of(step: FirstStep, sequences: Tensor) -> set[int]:
    """The pairs of some completions (in [0, 2B)) of a batch."""
    return {step.batch.pair_ids[i] for i in (sequences % len(step.batch)).tolist()}


def texts_are_known(model: Transformer, steps: Sequence[FirstStep]) -> Finding:
    """The reference finds the completions far likelier than tokens drawn at random."""
    mean = torch.cat([step.token_logps for step in steps]).double().mean().item()
    mend = (
        "the model does not know these completions' tokens; are --tokenizer and --chat_format "
        "those that it was trained with?"
    )
    verdict = PASS if mean > least_known(model) else FAIL
    found, expected = f"{mean:.3f} nats a token", f"above {least_known(model):.3f}"
    return Finding("the texts are known", verdict, found, expected, "none", mend)


def least_known(model: Transformer) -> float:
    """What a token has to have that a model knows: tokens at random have log 1/V, and those of
    another model's tokenizer a tenth less of it."""
    return -KNOWN * math.log(model.config.vocab_size)


def end_is_known(model: Transformer, steps: Sequence[FirstStep], end: int) -> Finding:
    """A note where the reference would not end a turn where the completions do."""
    logps = torch.cat([step.token_logps[step.batch.targets == end] for step in steps]).double()
    mean = logps.mean().item() if len(logps) else math.nan  # all may be cut
    mend = (
        f"the model does not end its turns with token {end}; if it was trained to chat, "
        "--chat_format is another one than its own"
    )
    verdict = NOTE if mean <= least_known(model) else PASS
    found, expected = f"{mean:.3f} nats at the end", f"above {least_known(model):.3f}"
    return Finding("the end of turn is known", verdict, found, expected, "all, as a note", mend)


def policy_is_reference(steps: Sequence[FirstStep], pairs: Sequence[TokenPair]) -> Finding:
    """To the last bit: fresh adapters add zero."""
    bad, largest = set(), 0.0
    for step in steps:
        gap = (step.policy - step.reference).abs()
        largest = max(largest, gap.max().item())
        bad |= pairs_of(step, gap.nonzero().flatten())
    mend = (
        f"policy and reference differ by up to {largest:.1e} nats before the first step; the "
        "adapters start elsewhere than at zero, or change more than they add: see model/lora.py"
    )
    sources = [pairs[i].source for i in sorted(bad)]
    return count_finding("policy is reference", sources, len(pairs), "pairs differ", mend)


def loss_at_step_0(steps: Sequence[FirstStep], objective: Objective) -> Finding:
    """The losses of the first step against `closed_form`, where the policy is the reference."""
    found, expected = [], []
    for step in steps:
        losses, _ = losses_of(objective, step.policy, step.reference, step.batch.lengths)
        ratios = logratios(objective, step.reference, step.batch.lengths)
        found += losses.tolist()
        expected += [closed_form(objective, ratio, ratio) for ratio in ratios]
    errors = [abs(a - b) / max(1.0, b) for a, b in zip(found, expected, strict=True)]
    verdict = PASS if all(error <= LOSS_TOLERANCE for error in errors) else FAIL
    mend = (
        f"the loss of --objective {objective.name} is not its formula at policy = reference; "
        "see model/objective.py, and run pytest tests/test_objective.py"
    )
    mean, exact = (f"{sum(x) / len(x):.6f}" for x in (found, expected))
    name, tolerance = "loss at step 0", f"{LOSS_TOLERANCE:.0e}"
    return Finding(name, verdict, mean, f"{exact}, its closed form", tolerance, mend)


def losses_of(
    objective: Objective, policy: Tensor, reference: Tensor, lengths: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(2B,) of policy and reference -> losses (B,) and the terms, as in training."""
    weights = objective.alpha, objective.beta, objective.label_smoothing
    return objective_loss(objective.name, policy, reference, lengths.to(policy.device), *weights)


def logratios(objective: Objective, logps: Tensor, lengths: Tensor) -> list[float]:
    """Chosen minus rejected of (2B,), in float64; of ipo, the means over tokens."""
    logps = logps.double().cpu()
    chosen, rejected = (logps / lengths.cpu() if objective.name == "ipo" else logps).chunk(2)
    return (chosen - rejected).tolist()


def closed_form(objective: Objective, pi_logratio: float, ref_logratio: float) -> float:
    """The loss of a pair by the formulas of model/objective.py, written anew on Python's floats.

    Where both ratios are equal: log 2 for dpo and robust, 1 / (4 beta^2) for ipo; the margin of
    spl and h_dpo is (alpha - beta) and beta (alpha - 1) times the ratio.
    """
    alpha, beta, eps = objective.alpha, objective.beta, objective.label_smoothing
    weight = (
        alpha * beta if objective.name == "h_dpo" else alpha if objective.name == "spl" else beta
    )
    margin = weight * pi_logratio - beta * ref_logratio
    if objective.name == "ipo":
        return ((margin - 0.5) / beta) ** 2
    kept = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))  # -log sigmoid(margin)
    flipped = kept + margin
    if objective.name == "robust":
        return ((1 - eps) * kept - eps * flipped) / (1 - 2 * eps)
    assert objective.name in SIGMOID_FAMILY, objective
    return (1 - eps) * kept + eps * flipped


def margin_at_step_0(steps: Sequence[FirstStep], objective: Objective) -> Finding:
    """A note where most pairs start where sigmoid is flat: some at full weight, others at none."""
    margins = []
    for step in steps:
        _, terms = losses_of(objective, step.policy, step.reference, step.batch.lengths)
        margins += terms["rewards/margins"].tolist()
    far = sum(abs(margin) > SATURATED for margin in margins)
    policy_coef, reference_coef = objective.coefficients
    one = "1, a smaller --beta" if objective.name == "h_dpo" else "--beta"
    mend = (
        f"margins start beyond {SATURATED:.0f} at tau = {policy_coef / reference_coef:.3g}: such a "
        f"pair is learned at full weight or not at all; take --alpha nearer to {one}, or shorter "
        "completions"
    )
    found = f"{far} of {len(margins)} pairs saturated"
    verdict, expected = NOTE if 2 * far > len(margins) else PASS, "half or fewer"
    return Finding("margin at step 0", verdict, found, expected, "all, as a note", mend)


def sums(steps: Sequence[FirstStep]) -> Finding:
    error = 0.0
    for step in steps:
        tokens, places = step.token_logps.double(), step.batch.sequence_id
        exact = torch.stack([tokens[places == k].sum() for k in range(len(step.policy))])
        error = max(error, relative(step.policy, exact))
    mend = "the sums over tokens are rounded; see sum_by_sequence in data/packing.py"
    of = "the same sums in float64"
    return error_finding("sums in float32", error, SUM_TOLERANCE, of, mend)


def relative(found: Tensor, exact: Tensor) -> float:
    """The largest error; in parts of a number, or of 1 nat where that is more."""
    return ((found.double() - exact).abs() / exact.abs().clamp(min=1.0)).max().item()


# ------------------------------------------------------------------------------------------------
# the definition, in float64


@torch.no_grad()
def packed_is_plain(model: Transformer, pairs: Sequence[TokenPair], device: str) -> Finding:
    """Pairs in one row that share their prompts, against a row of its own for each completion."""
    with computing_in(model, torch.float64):
        packed = packed_logps(model, pack(pairs, device)).cpu()
        chosen = [plain_logp(model, p.prompt_ids.tolist(), p.chosen_ids.tolist()) for p in pairs]
        rejected = [
            plain_logp(model, p.prompt_ids.tolist(), p.rejected_ids.tolist()) for p in pairs
        ]
    plain = torch.tensor(chosen + rejected, dtype=torch.float64)
    mend = (
        "the packed row gives other log-probabilities than plain rows; see data/packing.py and "
        "model/attention.py, and run pytest tests/test_transformer.py"
    )
    of = "logps of plain rows, float64"
    return error_finding("packed is plain", relative(packed, plain), EXACT, of, mend)


def plain_logp(model: Transformer, prompt: list[int], completion: list[int]) -> float:
    """log pi(completion | prompt) by the definition: whole logits of one row."""
    device = model.norm.weight.device
    logits = model(torch.tensor([prompt + completion], device=device))[0]  # (T, V)
    predictions = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)  # shifted by one
    targets = torch.tensor(completion, device=device)
    return predictions.gather(1, targets[:, None]).sum().item()


def pack(pairs: Sequence[TokenPair], device: str) -> PairBatch:
    return pack_pairs(list(pairs), list(range(len(pairs)))).to(device)


def packed_logps(model: Transformer, batch: PairBatch) -> Tensor:
    """(2B,)"""
    return batch.sum_by_sequence(model(batch=batch).logps)


@torch.no_grad()
def swap(
    model: Transformer, pairs: Sequence[TokenPair], objective: Objective, device: str
) -> Finding:
    """Chosen and rejected exchanged, the margin changes its sign and nothing else.

    Seen in the losses: as the pairs stand and exchanged, they are `closed_form` of the log ratios
    and of their negatives.
    """
    swapped = [TokenPair(p.prompt_ids, p.rejected_ids, p.chosen_ids, p.source) for p in pairs]
    ratios, losses = [], []
    with computing_in(model, torch.float64):
        for some in (pairs, swapped):
            batch = pack(some, device)
            reference = reference_logps(model, batch)
            with nudged(model):
                logps = packed_logps(model, batch), reference
            ratios.append([logratios(objective, values, batch.lengths) for values in logps])
            losses.append(losses_of(objective, *logps, batch.lengths)[0].tolist())
    straight = [closed_form(objective, *pair) for pair in zip(*ratios[0], strict=True)]
    turned = [closed_form(objective, -pi, -ref) for pi, ref in zip(*ratios[0], strict=True)]
    found, exact = (torch.tensor(x, dtype=torch.float64) for x in (losses, [straight, turned]))
    mend = (
        "exchanging chosen and rejected does more or less than turn the margin's sign; see "
        "model/objective.py, and run pytest tests/test_objective.py"
    )
    of = "losses at margin and -margin"
    return error_finding("swap turns the sign", relative(found, exact), EXACT, of, mend)


@contextmanager
def nudged(model: Transformer) -> Iterator[None]:
    """Inside, the policy is not the reference: noise is added to every lora_B, or to the last
    norm's weight where there is no adapter."""
    moved = [layer.lora_B for _, layer in lora_layers(model)] or [model.norm.weight]
    generator = torch.Generator().manual_seed(0)
    kept = [parameter.detach().clone() for parameter in moved]
    try:
        for parameter in moved:
            noise = torch.randn(parameter.shape, generator=generator) * NUDGE
            parameter.data.add_(noise.to(parameter.device))
        yield
    finally:
        for parameter, values in zip(moved, kept, strict=True):
            parameter.data.copy_(values)
