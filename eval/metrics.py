"""Pure numbers: from counts and per-problem values to the metrics that the evaluations report."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

import numpy as np


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k samples drawn without replacement is correct.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of pass@k, as the product of Chen et al. 2021
    ("Evaluating Large Language Models Trained on Code", section 2.1), which does not overflow.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"expected 1 <= k <= {samples} samples, got k = {k}; raise --n")
    assert 0 <= correct <= samples, (correct, samples)
    if samples - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)))


def powers_of_two(n: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... up to n."""
    return [2**i for i in range(n.bit_length())]


def pass_values(name: str, verdicts: Sequence[Sequence[bool]]) -> dict[str, list[float]]:
    """name@k -> one value per problem, from the verdicts on its samples; k up to the fewest."""
    return {
        f"{name}@{k}": [pass_at_k(len(marks), sum(marks), k) for marks in verdicts]
        for k in powers_of_two(min(map(len, verdicts)))
    }


def label_values(
    values: Mapping[str, Sequence[float]], labels: Sequence[str]
) -> dict[str, list[float]]:
    """share/label: 1 for each problem that has the label, else 0; name/label: its values there.

    labels: one for each problem.
    """
    found: dict[str, list[float]] = {}
    for label in dict.fromkeys(labels):
        found[f"share/{label}"] = [float(other == label) for other in labels]
        for name, numbers in values.items():
            pairs = zip(numbers, labels, strict=True)
            found[f"{name}/{label}"] = [number for number, other in pairs if other == label]
    return found


def majority_vote(answers: Sequence[Hashable | None], truths: Collection[Hashable]) -> float:
    """1 if the commonest answer is a true one; of a tie the share that is, None does not vote.

    Majority voting is "self-consistency" (Wang et al. 2022).
    """
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in truths for answer in winners) / len(winners) if winners else 0.0


def weighted_mean(values: Sequence[float] | Sequence[tuple[float, float]]) -> float:
    """The mean of one value per problem, or of (value, weight) pairs."""
    numbers, weights = split_weights(values)
    return float((numbers * weights).sum() / weights.sum())


def split_weights(
    values: Sequence[float] | Sequence[tuple[float, float]],
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) values and (N,) weights, which are 1 where none are given."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) == 0:
        raise ValueError(f"expected one value per problem, got an array of shape {array.shape}")
    if array.ndim == 1:
        return array, np.ones(len(array))
    numbers, weights = array.T
    assert (weights > 0).all(), "a problem without weight does not count: leave it out"
    return numbers, weights


def bootstrap_interval(
    values: Sequence[float] | Sequence[tuple[float, float]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap of the mean (Efron 1979), one value per problem.

    values: (N,), or (N, 2) with weights; problems are drawn N at a time with replacement. Never
    wider than the range of the values, and too narrow below some 20 of them; values that are all
    equal give a width of 0.
    """
    numbers, weights = split_weights(values)
    rng = np.random.default_rng(seed)
    N, means = len(numbers), np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(N, size=N)
        means[i] = (numbers[drawn] * weights[drawn]).sum() / weights[drawn].sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def basic_interval(
    rows: np.ndarray,
    compute: Callable[[np.ndarray], float],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high): the basic bootstrap of a number that is no mean (Davison and Hinkley 1997).

    rows: (N, ...), one per problem; compute: rows -> the number. What the number of a resample
    exceeds that of the rows by, the latter may exceed the truth by: low = 2 * compute(rows) - the
    upper quantile. Where noise makes the number larger, as it does a calibration error, resamples
    have that noise twice and their percentiles lie above the truth; this takes it off the number
    instead. The number itself may then lie outside, as it may outside of the percentiles.
    """
    rng, N, value = np.random.default_rng(seed), len(rows), compute(rows)
    numbers = [compute(rows[rng.integers(N, size=N)]) for _ in range(resamples)]
    low, high = np.quantile(numbers, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(2 * value - high), float(2 * value - low)


def wilson_interval(values: Sequence[float], z: float = 1.959963984540054) -> tuple[float, float]:
    """(low, high): Wilson's interval for a proportion (1927), from N values that are 0 or 1.

    z: quantile of the normal distribution, here for 95%. It has a width also where all are equal.
    """
    N, share = len(values), float(np.mean(values))
    centre = (share + z * z / (2 * N)) / (1 + z * z / N)
    half = z / (1 + z * z / N) * np.sqrt(share * (1 - share) / N + z * z / (4 * N * N))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(min(low, share)), float(max(high, share))  # of all ones it would end an ulp below


def paired_difference(
    values: Sequence[float] | Sequence[tuple[float, float]],
    baseline: Sequence[float] | Sequence[tuple[float, float]],
) -> tuple[float, float, float]:
    """(difference of means, low, high) where both have one value for each of the same problems.

    The problems are resampled and both values go with them, so that what makes a problem hard for
    both cancels: the interval is that of the mean of the differences.
    """
    if len(values) != len(baseline):
        raise ValueError(f"expected the same problems, got {len(values)} and {len(baseline)}")
    (ours, weights), (theirs, others) = split_weights(values), split_weights(baseline)
    if not np.array_equal(weights, others):
        raise ValueError("expected the same problems, got other weights")
    pairs = list(zip(ours - theirs, weights, strict=True))
    return weighted_mean(pairs), *bootstrap_interval(pairs)
