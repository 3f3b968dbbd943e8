"""How far is a policy's confidence in its answers from how often they are right? Pure numbers.

A question has K options, and the policy a log-probability for each. Its probabilities are the
softmax over the options, its answer is the likeliest one, its confidence the probability of that.

The expected calibration error (ECE; Naeini et al. 2015, Guo et al. 2017) puts the questions into
bins by confidence: sum over bins of count_b / N * |accuracy_b - confidence_b|. Which bins is a
convention:

    width   B of the same width on [0, 1], (lo, hi], and 0 in the first, as Guo et al. have them
    mass    B of the same count, to within one, (lo, hi]; equal confidences are never parted, so
            that the order of the questions does not matter

Chance alone makes every |accuracy - confidence| larger, so that no policy has an ECE of 0, and more
bins or fewer questions mean a larger one. Two numbers say by how much; both take the accuracy of a
bin for normally distributed, which from 100 questions on errs by some percent at most:

    ece_calibrated   the ECE to be expected of a policy with these confidences that is calibrated
    ece_debiased     the ECE less the bias of each bin, estimated from its own accuracy
"""

import math
from collections.abc import Sequence

import numpy as np

from eval.metrics import wilson_interval
from eval.results import Metrics, Statistic

SCHEMES = ("width", "mass")


def calibration_metrics(
    logps: Sequence[Sequence[float]], truths: Sequence[int], bins: int = 15, scheme: str = "width"
) -> Metrics:
    """accuracy, confidence, overconfidence, ece..., brier and nll, see `eval/results.py`.

    logps: of each question those of its options, K may differ; truths: the index of the right one.
    overconfidence: confidence - accuracy; nll: -log of the probability of the right option, in
    nats. `ece_mass` has bins of equal mass whatever the scheme. Near perfect calibration `ece` may
    lie above its interval, and the interval holds the true value about half of the time only:
    compare `ece` with `ece_calibrated`, not with 0.
    """
    check_questions(logps, truths)
    questions = [judge(*question) for question in zip(logps, truths, strict=True)]
    confidence, correct, brier, nll = np.array(questions).T  # (N,) each
    values = {"accuracy": correct.tolist()} | confidence_metrics(confidence, correct, bins, scheme)
    return values | {"brier": brier.tolist(), "nll": nll.tolist()}


def confidence_metrics(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width"
) -> Metrics:
    """confidence, overconfidence and ece...; of (N,) confidences, and how far each was right."""
    rows = np.stack([confidence, correct], axis=1)  # (N, 2)
    return {
        "confidence": confidence.tolist(),
        "overconfidence": (confidence - correct).tolist(),
        "ece": Statistic(rows, lambda r: expected_calibration_error(*r.T, bins, scheme), 0, 1),
        "ece_calibrated": Statistic(rows, lambda r: calibrated_error(r[:, 0], bins, scheme), 0, 1),
        "ece_debiased": Statistic(rows, lambda r: debiased_calibration_error(*r.T, bins, scheme)),
        "ece_mass": Statistic(rows, lambda r: expected_calibration_error(*r.T, bins, "mass"), 0, 1),
    }


def check_questions(logps: Sequence[Sequence[float]], truths: Sequence[int]) -> None:
    if len(logps) != len(truths) or len(truths) == 0:
        raise ValueError(f"expected questions, got {len(logps)} and {len(truths)} right answers")
    for i, (options, truth) in enumerate(zip(logps, truths, strict=True)):
        if not 0 <= truth < len(options):
            raise ValueError(f"question {i}: expected one of {len(options)} options, got {truth}")
        if not np.isfinite(options).all():
            raise ValueError(f"question {i}: expected finite log-probabilities, got {options}")


# ------------------------------------------------------------------------------------------------
# one question


def judge(logps: Sequence[float], truth: int) -> tuple[float, float, float, float]:
    """(confidence, correct, Brier score, negative log-likelihood); logps: (K,)."""
    logps = np.asarray(logps, dtype=np.float64)
    probs = renormalise(logps)
    nll = float(np.logaddexp.reduce(logps) - logps[truth])  # finite where exp underflows
    return float(probs.max()), correctness(logps, truth), brier_score(probs, truth), nll


def renormalise(logps: np.ndarray) -> np.ndarray:
    """(K,) probabilities that sum to 1: the softmax over the options alone.

    What they held before is sum(exp(logps)): a policy that does not answer is not seen here.
    """
    weights = np.exp(logps - logps.max())
    return weights / weights.sum()


def correctness(logps: np.ndarray, truth: int) -> float:
    """1 where the right option is the likeliest, else 0; 1/m where it is one of m that are equal.

    That is what drawing among the m earns, so that no place in the order of the options helps.
    """
    best = logps == logps.max()
    return float(best[truth] / best.sum())


def brier_score(probs: np.ndarray, truth: int) -> float:
    """sum_k (p_k - y_k)^2 over all options, in [0, 2]: the form of Brier 1950.

    Not the form in [0, 1] that asks for the confidence in one answer; with two options this is
    twice that one.
    """
    return float(((probs - (np.arange(len(probs)) == truth)) ** 2).sum())


# ------------------------------------------------------------------------------------------------
# bins; confidences and correct are (N,), in [0, 1]


def upper_edges(confidences: np.ndarray, bins: int, scheme: str) -> np.ndarray:
    """(B,) the largest confidence that each bin takes."""
    if bins < 1:
        raise ValueError(f"expected 1 or more bins, got {bins}")
    if scheme not in SCHEMES:
        raise ValueError(f"expected bins of the same {' or '.join(SCHEMES)}, got {scheme!r}")
    numbers = np.arange(1, bins + 1)
    if scheme == "width":
        return numbers / bins
    last = -(-numbers * len(confidences) // bins) - 1  # ceil(b N / B) questions up to bin b
    return np.sort(confidences)[last]


def bin_numbers(confidences: np.ndarray, bins: int, scheme: str) -> np.ndarray:
    """(N,) the bin of each, 0, ..., B - 1."""
    return np.searchsorted(upper_edges(confidences, bins, scheme), confidences)


def bin_means(
    confidences: np.ndarray, bins: int, scheme: str, *values: np.ndarray
) -> tuple[np.ndarray, ...]:
    """(count, mean of each of the values), (B',) each, of the B' bins that are not empty."""
    number = bin_numbers(confidences, bins, scheme)
    counts = np.bincount(number)
    filled = np.flatnonzero(counts)
    sums = (np.bincount(number, weights=value)[filled] for value in values)
    return counts[filled], *(total / counts[filled] for total in sums)


def expected_calibration_error(
    confidences: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width"
) -> float:
    """The mean over questions of |accuracy - confidence| of their bin."""
    counts, confidence, accuracy = bin_means(confidences, bins, scheme, confidences, correct)
    return float(np.average(np.abs(accuracy - confidence), weights=counts))


def calibrated_error(confidences: np.ndarray, bins: int = 15, scheme: str = "width") -> float:
    """The expected ECE of a policy that is right with the probability that it says.

    In a bin of n the accuracy then has the variance mean(c (1 - c)) / n about the confidence. By
    chance one such policy in twenty has an ECE of 1.4 times this or more, with some 10 bins filled.
    """
    variances = confidences * (1 - confidences)
    counts, variance = bin_means(confidences, bins, scheme, variances)
    return float(np.average(noise_bias(0.0, np.sqrt(variance / counts)), weights=counts))


def debiased_calibration_error(
    confidences: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width"
) -> float:
    """The ECE less its estimated bias, as in the package of Kumar, Liang and Ma 2019.

    ("Verified Uncertainty Calibration".) They draw the accuracy a of a bin of n again, from a
    normal distribution about a of variance a (1 - a) / n; this is the limit of many draws. Chance
    has moved a already, so that the correction is not exact: of a calibrated policy's bias
    2 - sqrt(2) = 59% is left, and true gaps of one or two sigma come out 0.09 sigma too small at
    most. It may be below 0; cut off there, its mean would be too large again.
    """
    counts, confidence, accuracy = bin_means(confidences, bins, scheme, confidences, correct)
    gap = accuracy - confidence
    bias = noise_bias(gap, np.sqrt(accuracy * (1 - accuracy) / counts))
    return float(np.average(np.abs(gap) - bias, weights=counts))


def noise_bias(gap: np.ndarray | float, sigma: np.ndarray) -> np.ndarray:
    """E|gap + sigma * z| - |gap| for z standard normal: from the mean of the folded normal."""
    x = np.abs(gap) / np.maximum(sigma, 1e-12)  # a sigma of 0 makes no bias
    tail = np.array([math.erfc(value) for value in np.broadcast_to(x, sigma.shape) / math.sqrt(2)])
    return sigma * (math.sqrt(2 / math.pi) * np.exp(-x * x / 2) - x * tail)


def reliability_table(
    confidences: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width"
) -> list[dict[str, float]]:
    """low, high, count, confidence, accuracy, and Wilson's accuracy_low, accuracy_high.

    A row for each bin that is not empty.
    """
    edges = upper_edges(confidences, bins, scheme)
    number = np.searchsorted(edges, confidences)
    table = []
    for b in np.unique(number):
        inside = number == b
        row = {"low": float(edges[b - 1]) if b else 0.0, "high": float(edges[b])}
        row |= {"count": int(inside.sum()), "confidence": float(confidences[inside].mean())}
        row |= {"accuracy": float(correct[inside].mean())}
        row["accuracy_low"], row["accuracy_high"] = wilson_interval(correct[inside])
        table.append(row)
    return table
