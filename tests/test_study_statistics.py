"""Intervals over seeds and problems against enumeration, Student's table, and simulated truth.

pytest tests/test_study_statistics.py
"""

import math

import numpy as np
import pytest

from eval.study_statistics import (
    DRAWS,
    best_numbers,
    clip,
    covers,
    interval,
    matched_numbers,
    mean_numbers,
    paired_interval,
    rank_numbers,
    row_numbers,
    samples_share,
    seed_and_problem_interval,
)
from eval.study_values import MissingError
from tests.test_study_values import PROBLEMS, row

T = {2: 12.706, 5: 2.776}  # Student's t: 97.5th percentile with S - 1 degrees of freedom


def fixed(*numbers: float) -> np.ndarray:
    """One seed: numbers without noise, (..., 1 + DRAWS)."""
    return np.repeat(np.array(numbers, dtype=float)[:, None], 1 + DRAWS, axis=1)


# ------------------------------------------------------------------------------------------------
# intervals


def test_one_seed_by_enumeration() -> None:
    """Values 0, 0, 1 drawn anew: means 0, 1/3, 2/3, 1 in 8, 12, 6, 1 of 27 draws.

    The 97.5th percentile is 1, since 1 has more than 2.5%; the 95th is 2/3.
    """
    assert seed_and_problem_interval([np.array([0.0, 0, 1])]) == pytest.approx((1 / 3, 0, 1))
    narrow = seed_and_problem_interval([np.array([0.0, 0, 1])], confidence=0.9)
    assert narrow == pytest.approx((1 / 3, 0, 2 / 3))


@pytest.mark.parametrize("S", T)
def test_seeds_alone_are_students(S) -> None:
    """Numbers that are not drawn anew: mean +- t * sd / sqrt(S)."""
    values = [0.1 * s * s for s in range(S)]
    value, low, high = seed_and_problem_interval([np.array(v) for v in values])
    half = T[S] * np.std(values, ddof=1) / math.sqrt(S)
    assert value == pytest.approx(np.mean(values))
    assert (value - low, high - value) == pytest.approx((half, half), rel=0.02)


def test_two_seeds_and_two_problems_by_enumeration() -> None:
    """Seeds (0, 1) and (0.2, 1.2): problem means 0.1, 0.6, 1.1 in 1, 2, 1 of 4 draws.

    To each comes Cauchy noise (t of one degree) of scale sd / sqrt(2) = 0.1, whose distribution is
    1/2 + atan(x / 0.1) / pi: the percentiles of the sum solve an equation.
    """
    found = seed_and_problem_interval([np.array([0, 1.0]), np.array([0.2, 1.2])])

    def below(x: float) -> float:
        return sum(w * (0.5 + math.atan((x - m) / 0.1) / math.pi)
                   for m, w in ((0.1, 0.25), (0.6, 0.5), (1.1, 0.25)))  # fmt: skip

    assert found.value == pytest.approx(0.6)
    assert below(found.low) == pytest.approx(0.025, abs=0.006)
    assert below(found.high) == pytest.approx(0.975, abs=0.006)


def test_what_problems_share_cancels() -> None:
    """Ours is theirs and 0.1, of problems that differ by much: no noise is left."""
    theirs = [np.array([0.0, 5, 9]), np.array([1.0, 6, 8])]
    ours = [values + 0.1 for values in theirs]
    assert paired_interval(ours, theirs) == pytest.approx((0.1, 0.1, 0.1))
    for other in (theirs[:1], [values[:2] for values in theirs]):
        with pytest.raises(ValueError, match="same seeds and problems"):
            paired_interval(ours, other)


def test_paired_interval_by_enumeration() -> None:
    """One seed, differences 1, 1, -1: means -1, -1/3, 1/3, 1 in 1, 6, 12, 8 of 27 draws."""
    found = paired_interval([np.array([2.0, 1, 0])], [np.array([1.0, 0, 1])])
    assert found == pytest.approx((1 / 3, -1, 1))


def test_a_scalar_of_one_seed_has_no_interval() -> None:
    value, low, high = seed_and_problem_interval([np.array(0.3)])
    assert value == 0.3 and math.isnan(low) and math.isnan(high)


def test_what_intervals_cover() -> None:
    many, one = np.zeros(3), np.array(0.0)
    assert [covers([many] * 2), covers([many]), covers([one] * 2), covers([one])] == [
        "seeds and problems", "problems", "seeds", "nothing"]  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "problems", "both", "least", "most"),
    [(1, 0, 0, 0.93, 0.97), (0, 1, 0, 0.91, 0.97), (0.1, 0.5, 0.5, 0.93, 1)],
)
def test_intervals_hold_the_truth(seeds, problems, both, least, most) -> None:
    """Five seeds, fifty problems, effects of seeds, of problems and of both: the mean is 0."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        effects = seeds * rng.standard_normal((5, 1)) + problems * rng.standard_normal(50)
        found = seed_and_problem_interval(list(effects + both * rng.standard_normal((5, 50))))
        held.append(found.low < 0 < found.high)
    assert least < np.mean(held) < most


def test_as_many_problems_of_each_grade_are_drawn() -> None:
    """Grades 0, 0 and 1, 1 have no noise at all; drawn from all four, they would have."""
    graded = row(problems={**PROBLEMS, "difficulty": ["easy", "easy", "hard", "hard"],
                           "correct": [4, 4, 0, 0]})  # fmt: skip
    assert (row_numbers([graded], "pass@1") == 0.5).all()
    alike = row(problems={**graded["problems"], "difficulty": [None] * 4})
    spread = row_numbers([alike], "pass@1")[0, 1:].std()  # sqrt(1/4 / 4)
    assert spread == pytest.approx(0.25, abs=0.01)
    grade = row_numbers([graded], "pass@1/hard")
    assert grade.shape == (1, 1 + DRAWS) and (grade == 0).all()


def test_calibration_error_by_hand() -> None:
    """Confidence 1, 1, 0.5: right 1, 0 and 1. Bins of (14/15, 1] and (7/15, 8/15].

    (|1 - 2| + |1 - 0.5|) / 3 = 0.5. Draws of one grade: that with the first problem alone has 0,
    with the second alone 1, and mirrored at 0.5 these are 1 and 0.
    """
    one = row(problems={**PROBLEMS, "difficulty": [None] * 3, "majority": [1.0, 0.0, 1.0],
                        "confidence": [1.0, 1.0, 0.5]})  # fmt: skip
    found = row_numbers([one], "ece")
    assert found[0, 0] == pytest.approx(0.5)
    assert (found.min(), found.max()) == pytest.approx((0, 1))
    assert found[0, 1:].mean() == pytest.approx(0.5, abs=0.02)  # no bin can cancel: no bias


def test_the_calibration_error_has_fifteen_bins_of_one_width() -> None:
    """0.31 in the fifth, (4/15, 5/15], and 0.34 and 0.36 together in the sixth: (0.31 + |0.66 -
    0.36|) / 3. One of ten bins would hold all three, bins of one mass each alone."""
    one = row(problems={**PROBLEMS, "difficulty": [None] * 3, "majority": [0.0, 1.0, 0.0],
                        "confidence": [0.31, 0.34, 0.36]})  # fmt: skip
    assert row_numbers([one], "ece")[0, 0] == pytest.approx(0.61 / 3)


def test_draws_of_the_calibration_error_are_mirrored() -> None:
    """Confidence 1 thrice, right 1, 1 and 0: 1/3. Drawn from the last alone it is 1, mirrored at
    1/3 that is -1/3; from the others alone 0, mirrored 2/3."""
    one = row(problems={**PROBLEMS, "difficulty": [None] * 3, "majority": [1.0, 1.0, 0.0],
                        "confidence": [1.0] * 3})  # fmt: skip
    found = row_numbers([one], "ece")
    assert found[0, 0] == pytest.approx(1 / 3)
    assert (found.min(), found.max()) == pytest.approx((-1 / 3, 2 / 3))


# ------------------------------------------------------------------------------------------------
# comparisons


def correlate(x, y):
    """Interval of the rank correlation of x and y: of each seed, for each setting, its values."""
    numbers = rank_numbers(x, np.stack([mean_numbers(some) for some in zip(*y, strict=True)]))
    return clip(interval(numbers), -1, 1)


def test_rank_correlation_by_hand() -> None:
    """Ranks 0, 2, 1 against 0, 1, 2: 1 - 6 * 2 / (3 * 8) = 0.5; and 1; their mean is 0.75."""
    y = [[np.array(v) for v in some] for some in ([1.0, 9.0, 2.0], [1.0, 2.0, 3.0])]
    found = correlate([0.5, 1, 11], y)
    assert found.value == pytest.approx(0.75)
    assert (found.low, found.high) == (-1, 1)  # 0.75 +- 12.7 * 0.25, and no correlation is beyond


def test_rank_correlation_of_problems_that_agree() -> None:
    """Every problem grows with x, so every draw does."""
    y = [[np.arange(4) + x + 0.1 * seed for x in (1, 2, 3)] for seed in range(3)]
    assert correlate([1, 2, 3], y) == pytest.approx((1, 1, 1))


def test_ties_share_a_rank() -> None:
    """y = 1, 1, 2 has ranks 1/2, 1/2, 2 and a correlation of sqrt(3) / 2, y = 1, 2, 2, 3 has 0,
    3/2, 3/2, 3 and 3 / sqrt(10); all equal has none."""
    tied, equal = rank_numbers([1, 2, 3], np.stack([fixed(1), fixed(1), fixed(2)])), fixed(1)
    assert tied[0, 0] == pytest.approx(math.sqrt(3) / 2)
    inner = rank_numbers([1, 2, 3, 4], np.stack([fixed(1), fixed(2), fixed(2), fixed(3)]))
    assert inner[0, 0] == pytest.approx(3 / math.sqrt(10))
    assert math.isnan(rank_numbers([1, 2, 3], np.stack([equal] * 3))[0, 0])


def test_matched_by_hand() -> None:
    """A family through (0, 0), (1, 2), (3, 4): at x = 2 it has 3. 3.5 and -0.5 are beyond it."""
    xs, ys = np.stack([fixed(3), fixed(0), fixed(1)]), np.stack([fixed(4), fixed(0), fixed(2)])
    assert interval(matched_numbers(fixed(2), fixed(4), xs, ys)) == (1, 1, 1)
    assert interval(matched_numbers(fixed(0), fixed(4), xs, ys)) == (4, 4, 4)  # at its ends too
    assert interval(matched_numbers(fixed(3), fixed(4), xs, ys)) == (0, 0, 0)
    for beyond in (3.5, -0.5):
        assert all(map(math.isnan, interval(matched_numbers(fixed(beyond), fixed(4), xs, ys))))


def test_best_by_hand() -> None:
    """Best at x = 4; of equals at 1 and 4 the mean of the logs."""
    assert best_numbers([1, 2, 4], np.stack([fixed(0), fixed(1), fixed(3)])) == pytest.approx(
        fixed(math.log(4))
    )
    tied = best_numbers([1, 2, 4], np.stack([fixed(3), fixed(1), fixed(3)]))
    assert tied == pytest.approx(fixed(math.log(2)))


def test_best_in_every_draw_for_itself() -> None:
    """Problem 0 is best at x = 1, by 1; the other two at x = e, by 0.6 each.

    The mean is best at e unless problem 0 comes at least 2 times in 3: 7 of 27 draws.
    """
    at_1, at_e = mean_numbers([np.array([1.0, 0, 0])]), mean_numbers([np.array([0, 0.6, 0.6])])
    found = best_numbers([1, math.e], np.stack([at_1, at_e]))
    assert found[0, 0] == 1 and found[0, 1:].mean() == pytest.approx(20 / 27, abs=0.03)


def test_completions_needed_as_a_share() -> None:
    """pass@k of the hard: 3 and 0 of 4 right 3/8, 1/2, 1/2, 1/2; 2 and 0: 1/4, 5/12, 1/2, 1/2;

    1 and 0: 1/8, ..., 1/2. 1/2 takes 2, 3 and 4 completions; 3 right of 2 problems is more than
    any of these reach: 5. A policy needs as many as it does itself, in every draw. Fewer than the
    four completions that it is to reach cannot be asked.
    """
    some = {c: {0: row(problems={**PROBLEMS, "correct": [0, c, 0]})} for c in (1, 2, 3)}
    both = {0: row(problems={**PROBLEMS, "correct": [0, 3, 3]})}
    theirs = some[2]
    for mine, share in ((3, 2 / 3), (2, 1), (1, 4 / 3)):
        found = samples_share(some[mine], theirs, [0], "pass@4/hard")
        assert found[0, 0] == pytest.approx(share)
    assert samples_share(theirs, both, [0], "pass@4/hard")[0, 0] == 5 / 2
    assert (samples_share(both, both, [0], "pass@4/hard") == 1).all()
    short = {0: row(problems={**PROBLEMS, "n": 3, "correct": [0, 3, 0]})}
    with pytest.raises(MissingError, match="pass@4/hard of spl/tau 1/0/test"):
        samples_share(short, theirs, [0], "pass@4/hard")


def test_draws_have_as_many_of_each_grade_whatever_is_compared() -> None:
    """Of an easy and a hard problem all draws are the same: no interval where grades part.

    Ours, 4 and 0 of 4 right, have pass@k 1/2; theirs, 2 and 2, have 1/2, 5/6, 1, 1. They need 3
    completions for pass@4, ours never get there and count 5. Gaps of 0 and -1 make an ECE of 1/2.
    """
    two = {**PROBLEMS, "difficulty": ["easy", "hard"]}
    ours, theirs = ({0: row(problems={**two, "correct": c})} for c in ([4, 0], [2, 2]))
    assert samples_share(ours, theirs, [0], "pass@4") == pytest.approx(5 / 3)
    sure = row(problems={**two, "majority": [1.0, 0.0], "confidence": [1.0, 1.0]})
    assert row_numbers([sure], "ece") == pytest.approx(0.5)


def test_means_that_differ_in_their_last_bits_are_equal() -> None:
    """2, 3 and 8 of 9 right, and 8, 3 and 2: pass@1 is 13/27 of both."""
    three = {**PROBLEMS, "difficulty": [None] * 3, "n": 9}
    ours, theirs = ({0: row(problems={**three, "correct": c})} for c in ([2, 3, 8], [8, 3, 2]))
    assert samples_share(ours, theirs, [0], "pass@1")[0, 0] == 1
