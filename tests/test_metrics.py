"""eval/metrics.py against values worked by hand, brute force over subsets, and its own coverage.

python -m pytest tests/test_metrics.py
"""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from eval.metrics import (
    basic_interval,
    bootstrap_interval,
    label_values,
    majority_vote,
    paired_difference,
    pass_at_k,
    pass_values,
    powers_of_two,
    split_weights,
    weighted_mean,
    wilson_interval,
)


def test_pass_at_k_by_hand() -> None:
    """5 samples, 2 correct: two drawn are both wrong in C(3,2) = 3 of C(5,2) = 10 cases."""
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5, abs=1e-15)
    assert pass_at_k(5, 2, 2) == pytest.approx(7 / 10, abs=1e-15)
    assert pass_at_k(5, 2, 3) == pytest.approx(9 / 10, abs=1e-15)
    assert pass_at_k(5, 2, 4) == pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    for samples, correct in [(1, 0), (1, 1), (6, 3), (7, 1), (8, 5)]:
        marks = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(combinations(marks, k))
            expected = Fraction(sum(any(s) for s in subsets), len(subsets))
            assert pass_at_k(samples, correct, k) == pytest.approx(float(expected), abs=1e-14)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    """10,000 samples, one correct: the chance that it is among k is k / 10,000."""
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, rel=1e-10)


def test_pass_at_k_refuses_more_than_there_is() -> None:
    for k in (0, 9):
        with pytest.raises(ValueError, match="1 <= k <= 8"):
            pass_at_k(8, 3, k)


def test_powers_of_two_up_to_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]
    assert powers_of_two(15) == [1, 2, 4, 8]


def test_pass_values_by_hand() -> None:
    """2 right of 6, 1 of 3: pass@2 is 1 - C(4,2)/C(6,2) = 3/5 and 1 - C(2,2)/C(3,2) = 2/3.

    The second has three samples, so that there is no pass@4.
    """
    verdicts = [[True, True, False, False, False, False], [False, True, False]]
    values = pass_values("valid", verdicts)
    assert values.keys() == {"valid@1", "valid@2"}
    assert values["valid@1"] == pytest.approx([1 / 3, 1 / 3])
    assert values["valid@2"] == pytest.approx([3 / 5, 2 / 3])


def test_label_values_by_hand() -> None:
    values = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}
    assert label_values(values, ["x", "y", "x"]) == {
        "share/x": [1, 0, 1], "a/x": [1, 3], "b/x": [4, 6],
        "share/y": [0, 1, 0], "a/y": [2], "b/y": [5],
    }  # fmt: skip
    assert label_values(values, []) == {}


def test_majority_vote_by_hand() -> None:
    assert majority_vote([7, 7, 3], {7}) == 1.0
    assert majority_vote([7, 7, 3], {3}) == 0.0
    assert majority_vote([7, 3, None, None, None], {3}) == 0.5  # a tie of two; None has no vote
    assert majority_vote([None, None], {3}) == 0.0
    assert majority_vote([], {3}) == 0.0


def test_bootstrap_interval_is_the_normal_one_for_many_values() -> None:
    """400 values, half 0 and half 1: the mean is 0.5 and its standard error 0.5 / 20 = 0.025."""
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)


def test_bootstrap_interval_covers_the_mean() -> None:
    """300 data sets of 60 values: a 90% interval covers in 270, give or take 3 * 5.2, less bias."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.exponential(size=60), confidence=0.9, resamples=300)
        covered += low <= 1.0 <= high
    assert 245 <= covered <= 286, covered


def test_bootstrap_interval_is_a_function_of_the_seed() -> None:
    values = list(range(30))
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_paired_difference_cancels_what_problems_share() -> None:
    """Problems differ widely, the policies by 0.1 on each: the paired interval has no width."""
    baseline = np.linspace(0, 0.9, 50)
    difference, low, high = paired_difference(baseline + 0.1, baseline)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)
    alone = bootstrap_interval(baseline + 0.1)
    assert alone[1] - alone[0] > 0.1


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="one value per problem"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="the same problems, got 2 and 3"):
        paired_difference([0, 1], [0, 1, 1])


# ------------------------------------------------------------------------------------------------
# weights


def test_weights_by_hand() -> None:
    """(1/2, weight 1), (1, weight 2), (0, weight 3): (1/2 + 2 + 0) / 6; without weights 1/2."""
    assert weighted_mean([(0.5, 1), (1, 2), (0, 3)]) == pytest.approx(2.5 / 6, abs=1e-15)
    assert weighted_mean([0.5, 1, 0]) == 0.5
    numbers, weights = split_weights([(0.5, 1), (1, 2)])
    assert (numbers.tolist(), weights.tolist()) == ([0.5, 1], [1, 2])
    numbers, weights = split_weights([0.5, 1])
    assert (numbers.tolist(), weights.tolist()) == ([0.5, 1], [1, 1])


def test_weighted_bootstrap_by_hand() -> None:
    """0 with weight 1 and 1 with weight 3: of four resamples the means are 0, 3/4, 3/4 and 1.

    So the middle half is 3/4 and the outer quarters are 0 and 1; without weights it is 1/2.
    """
    pairs = [(0, 1), (1, 3)]
    assert bootstrap_interval(pairs, confidence=0.4) == pytest.approx((0.75, 0.75))
    assert bootstrap_interval(pairs, confidence=0.6) == (0, 1)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_equal_weights_are_none() -> None:
    values = np.random.default_rng(0).random(30)
    pairs = [(value, 7) for value in values]
    assert weighted_mean(pairs) == pytest.approx(weighted_mean(values), abs=1e-15)
    assert bootstrap_interval(pairs) == pytest.approx(bootstrap_interval(values), abs=1e-15)


def test_weighted_paired_difference_by_hand() -> None:
    """Differences 1 with weight 1 and -1/2 with weight 3: (1 - 3/2) / 4; resampled, -1/2 to 1."""
    ours, theirs = [(1, 1), (0, 3)], [(0, 1), (0.5, 3)]
    assert paired_difference(ours, theirs) == pytest.approx((-1 / 8, -1 / 2, 1))
    with pytest.raises(ValueError, match="the same problems, got other weights"):
        paired_difference(ours, [(0, 1), (0.5, 2)])


def test_a_problem_without_weight_is_left_out() -> None:
    with pytest.raises(AssertionError, match="leave it out"):
        weighted_mean([(0.5, 0)])


# ------------------------------------------------------------------------------------------------
# intervals of proportions, and of numbers that are no mean


def test_wilson_interval_by_hand() -> None:
    """z^2 = 3.8415. None of 10: from 0 to z^2 / (10 + z^2) = 3.8415 / 13.8415 = 0.27753.

    5 of 10: half = z / 1.38415 * sqrt(0.025 + 3.8415 / 400) = 0.26341 on either side of 1/2.
    """
    assert wilson_interval([0] * 10) == (0, pytest.approx(0.27753, abs=5e-6))
    assert wilson_interval([1] * 10) == pytest.approx((1 - 0.27753, 1), abs=5e-6)
    halves = pytest.approx((0.5 - 0.26341, 0.5 + 0.26341), abs=5e-6)
    assert wilson_interval([0, 1] * 5) == halves
    low, high = wilson_interval([1, 0], z=0)
    assert (low, high) == (0.5, 0.5)


@pytest.mark.parametrize(("right", "N"), [(0, 1), (1, 2), (3, 7), (64, 65), (900, 1134)])
def test_wilson_interval_holds_what_the_normal_test_does_not_reject(right: int, N: int) -> None:
    """Its ends are the two p with |share - p| = z sqrt(p (1 - p) / N): the roots of

    (1 + z^2 / N) p^2 - (2 share + z^2 / N) p + share^2.
    """
    z, share = 1.959963984540054, right / N
    roots = np.roots([1 + z * z / N, -(2 * share + z * z / N), share * share])
    found = wilson_interval([1] * right + [0] * (N - right))
    assert found == pytest.approx(sorted(roots.real), abs=1e-12)


def test_wilson_interval_covers_the_share() -> None:
    """On the mean over p it covers 95%, also at N = 10: every count, weighted by its chance."""
    N, covered = 10, []
    for p in np.linspace(0.005, 0.995, 199):
        ends = [wilson_interval([1] * k + [0] * (N - k)) for k in range(N + 1)]
        chances = [comb(N, k) * p**k * (1 - p) ** (N - k) for k in range(N + 1)]
        covered.append(sum(c for c, (low, high) in zip(chances, ends, strict=True)
                           if low <= p <= high))  # fmt: skip
    assert np.mean(covered) == pytest.approx(0.95, abs=0.006)


def test_basic_interval_by_hand() -> None:
    """The larger of 0 and 1 is 1; of resamples 0 in one of four: quantiles 0 and 1.

    From 2 * 1 - 1 to 2 * 1 - 0, while the percentiles are 0 and 1.
    """
    assert basic_interval(np.array([0.0, 1.0]), np.max, confidence=0.6) == (1, 2)
    assert basic_interval(np.array([3.0] * 4), np.max) == (3, 3)


def test_basic_interval_mirrors_the_percentiles() -> None:
    """At the number itself: of a mean, from the same resamples, both can be had."""
    values = np.random.default_rng(0).exponential(size=40)
    low, high = bootstrap_interval(values, resamples=300, seed=5)
    mirrored = basic_interval(values, np.mean, resamples=300, seed=5)
    assert mirrored == pytest.approx((2 * values.mean() - high, 2 * values.mean() - low), abs=1e-12)
    assert mirrored != pytest.approx((low, high), abs=1e-3)


def test_basic_interval_resamples_whole_rows() -> None:
    """The slope of y = 3x is 3 in every resample; rows may have any shape."""
    x = np.arange(1.0, 9)
    rows = np.stack([x, 3 * x], axis=1)
    assert basic_interval(rows, lambda r: (r[:, 0] @ r[:, 1]) / (r[:, 0] @ r[:, 0])) == (3, 3)
    assert basic_interval(rows[:, :, None], lambda r: float(r.shape == (8, 2, 1))) == (1, 1)


def test_a_share_lies_in_its_interval():
    """Centre and half for 10 of 10 add up to an ulp less than 1."""
    for n in range(1, 50):
        assert wilson_interval([0] * n)[0] == 0 and wilson_interval([1] * n)[1] == 1
