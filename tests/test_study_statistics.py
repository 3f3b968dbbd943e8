"""Intervals over seeds and problems against enumeration, Student's table, and simulated truth.

pytest tests/test_study_statistics.py
"""

import math
from itertools import product

import numpy as np
import pytest

from eval.metrics import pass_at_k
from eval.study_statistics import (
    DRAWS,
    MissingError,
    best_numbers,
    check_metric,
    clip,
    coordinate,
    covers,
    find_settings,
    interval,
    matched_numbers,
    mean_numbers,
    metric_values,
    paired_interval,
    pass_table,
    process_rows,
    rank_numbers,
    read_values,
    row_numbers,
    samples_share,
    seed_and_problem_interval,
    seed_row,
    shared_seeds,
)

T = {2: 12.706, 5: 2.776}  # Student's t: 97.5th percentile with S - 1 degrees of freedom


def row(family="spl", setting="tau 1", seed=0, kind="test", **more):
    return {"cell": f"{family}/{setting}/{seed}/{kind}", "kind": kind, "family": family,
            "setting": setting, "seed": seed, **more}  # fmt: skip


def fixed(*numbers: float) -> np.ndarray:
    """One seed: numbers without noise, (..., 1 + DRAWS)."""
    return np.repeat(np.array(numbers, dtype=float)[:, None], 1 + DRAWS, axis=1)


PROBLEMS = {
    "difficulty": ["easy", "hard", "hard"],
    "n": 4,
    "correct": [4, 2, 0],
    "valid": [2, 1, 0],
    "distinct": [1, 2, 4],
    "majority": [1.0, 0.5, 0.0],
    "confidence": [1.0, 0.5, 0.25],
    "brier": [0.0, 0.5, 1.125],
    "entropy": [1.0, 2.0, 6.0],
    "tokens": [10.0, 10.0, 20.0],
}


# ------------------------------------------------------------------------------------------------
# a row -> values


def test_values_by_hand() -> None:
    """2 of 4 right: pass@2 = 1 - C(2, 2) / C(4, 2) = 5/6; 1 of 4: valid@2 = 1 - 3/6."""
    one = row(problems=PROBLEMS, metrics={"opinions:mass": {"value": 0.9}})
    expected = {
        "pass@1": [1, 0.5, 0],
        "pass@2/hard": [5 / 6, 0],
        "valid@2": [5 / 6, 0.5, 0],
        "unique": [0.25, 0.5, 1],
        "majority/easy": [1],
        "brier/hard": [0.5, 1.125],
        "ece": [0, 0, -0.25],
        "entropy": [1, 2, 6],
        "entropy/token": [0.1, 0.2, 0.3],
        "entropy/token/hard": [0.2, 0.3],
        "tokens": [10, 10, 20],
        "opinions:mass": 0.9,
    }
    for name, values in expected.items():
        assert metric_values(one, name) == pytest.approx(np.array(values), abs=1e-12), name


def test_what_a_row_does_not_have() -> None:
    one = row(problems=PROBLEMS, metrics={})
    for name in ("pass@5", "pass@1/medium", "opinions:mass", "votes"):
        with pytest.raises(KeyError):
            metric_values(one, name)
    with pytest.raises(KeyError):
        metric_values(row(metrics={}), "pass@1")  # a row without problems


@pytest.mark.parametrize("name", ["pass", "pass@0", "unique@8", "pass@1/token", "pass@1/hardest",
                                  "tokens/token", "", "Entropy", "opinions:",
                                  "ece/hard"])  # fmt: skip
def test_names_that_are_no_metric(name) -> None:
    with pytest.raises(ValueError, match="test 1: expected pass@K"):
        check_metric(name, "test 1")


@pytest.mark.parametrize("n", [1, 7, 128])
def test_pass_table_is_pass_at_k(n) -> None:
    table = pass_table(n)
    for c, k in product(range(0, n + 1, max(1, n // 9)), range(1, n + 1, max(1, n // 9))):
        assert table[c, k - 1] == pytest.approx(pass_at_k(n, c, k), abs=1e-12)


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
    """y = 1, 1, 2 has ranks 1/2, 1/2, 2 and a correlation of sqrt(3) / 2; all equal has none."""
    tied, equal = rank_numbers([1, 2, 3], np.stack([fixed(1), fixed(1), fixed(2)])), fixed(1)
    assert tied[0, 0] == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(rank_numbers([1, 2, 3], np.stack([equal] * 3))[0, 0])


def test_matched_by_hand() -> None:
    """A family through (0, 0), (1, 2), (3, 4): at x = 2 it has 3. x = 3.5 is beyond it."""
    xs, ys = np.stack([fixed(3), fixed(0), fixed(1)]), np.stack([fixed(4), fixed(0), fixed(2)])
    assert interval(matched_numbers(fixed(2), fixed(4), xs, ys)) == (1, 1, 1)
    assert all(map(math.isnan, interval(matched_numbers(fixed(3.5), fixed(4), xs, ys))))


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


# ------------------------------------------------------------------------------------------------
# settings


def test_settings_of_a_selector() -> None:
    rows = [row(seed=s, tau=1.0, beta=0.1) for s in (0, 1)]
    rows += [row(setting="tau 1, beta 0.3", tau=1.0, beta=0.3)]
    rows += [row(setting="tau 2", tau=2.0, beta=0.1), row(kind="train", tau=1.0, beta=0.1)]
    rows += [row("base", "base", kind="base", tau=None, beta=None)]
    count = [
        ({"family": "spl", "tau": 1, "beta": 0.1}, [2]),
        ({"family": "spl", "beta": 0.1}, [2, 1]),
        ({"family": "spl", "tau": [2, 3]}, [1]),
        ([{"family": "base"}, {"family": "spl", "setting": "tau 2"}], [1, 1]),
        ({"family": "f-dpo"}, []),
    ]
    for selector, sizes in count:
        assert sorted(map(len, find_settings(rows, selector))) == sorted(sizes)
    with pytest.raises(MissingError, match="one row of each seed"):
        find_settings([*rows, rows[0]], {"family": "spl"})


def test_what_depends_on_the_number_of_completions_is_compared_at_equal_ones() -> None:
    """A control with fewer completions than the policies keeps what does not depend on it.

    Nor does it bring a reference measured with as few, which would be a second one.
    """
    few = {**PROBLEMS, "n": 2, "correct": [2, 1, 0], "valid": [1, 1, 0]}
    base, other = (row("base", "base", kind="base", source="tiny", problems=p)
                   for p in (PROBLEMS, few))  # fmt: skip
    own = {"process": "verdict", "source": "tiny"}
    test = row(problems=PROBLEMS, **own)
    control = row("dpo, resampled", "tau 2", kind="decode", problems=few, **own)
    found = process_rows([base, other, test, control], "verdict")
    assert found[:2] == [base, test] and len(found) == 3
    assert metric_values(found[2], "pass@2/hard").tolist() == [1, 0]
    for name in ("unique", "majority", "brier", "ece"):
        with pytest.raises(KeyError):
            metric_values(found[2], name)


def test_seeds_that_all_have_and_the_only_base() -> None:
    ours, theirs = ({s: row(seed=s) for s in some} for some in ((0, 1, 2), (1, 2, 3)))
    base = {0: row("base", "base", kind="base")}
    assert shared_seeds([ours, theirs, base]) == [1, 2]
    assert shared_seeds([base]) == [0]
    assert seed_row(base, 2) is base[0] and seed_row(ours, 2) is ours[2]
    with pytest.raises(MissingError, match="a seed that all settings have"):
        shared_seeds([ours, {9: row(seed=9)}])


def test_coordinates() -> None:
    assert coordinate({0: row(tau=1.2)}, "tau") == 1.2
    assert coordinate({0: row(setting="tau 0.8, t 1.5", tau=0.8)}, "t") == 1.5
    assert coordinate({0: row(setting="beta' 0.2", beta=0.2)}, "beta'") == 0.2
    with pytest.raises(MissingError, match="t of spl/tau 1/0/test"):
        coordinate({0: row()}, "t")


def test_a_metric_that_is_not_there_names_the_cell() -> None:
    with pytest.raises(MissingError, match="pass@9 of spl/tau 1/0/test"):
        read_values({0: row(problems=PROBLEMS)}, [0], "pass@9")
