"""What do the rows of a study say, and how sure is it? Numbers with intervals over seeds, problems.

A policy is trained from several seeds, and each is measured on the same problems. So a number, be
it a mean, a rank correlation or a comparison at equal entropy, exists once for each seed, and its
value is the mean over the seeds. Two things might have come out otherwise:

    the problems   are drawn anew DRAWS times, as many of each grade as there are, and whatever is
                   measured on these problems, of whichever seed or policy, gets the same draw:
                   what makes a problem hard for all cancels in differences
    the seeds      vary by Student's t, scaled to their standard error. To draw five seeds anew
                   gives too little noise: 95% intervals that hold the truth in 85% of cases

Draw by draw the two are added, and an interval goes from the 2.5th to the 97.5th percentile. What
problems and seeds do together (a run that is lucky on a problem) is in both parts: where that is
all of the noise, intervals are too wide, by a fifth with five seeds. One seed gives an interval
over problems; it says nothing about another seed. Numbers that are not kept for each problem (the
slope of opinions) have an interval over seeds, for these problems; with one seed none.

`numbers` below are always (S, 1 + DRAWS): of each seed the number itself, then its draws.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from eval.calibration import bin_numbers
from eval.study_values import (
    Row,
    Setting,
    metric_values,
    of_grade,
    pass_curves,
    read_values,
    seed_row,
    split_metric,
)

DRAWS = 20_000  # with 2000, verdicts that are near a threshold depend on the draws


class Interval(NamedTuple):
    """NaN for both ends where nothing can be drawn anew, for all where there is no number."""

    value: float
    low: float
    high: float


# ------------------------------------------------------------------------------------------------
# values -> numbers


def setting_numbers(setting: Setting, seeds: Sequence[int], metric: str) -> np.ndarray:
    """(S, 1 + DRAWS), see `row_numbers`; MissingError where a row does not have the metric."""
    read_values(setting, seeds, metric)
    return row_numbers([seed_row(setting, seed) for seed in seeds], metric)


def row_numbers(rows: Sequence[Row], name: str) -> np.ndarray:
    """numbers of a metric; rows: one of each seed. KeyError where one does not have it."""
    if name == "ece":
        return np.stack([ece_numbers(row) for row in rows])
    values = [metric_values(row, name) for row in rows]
    return mean_numbers(values, grades_of(rows[0], name) if values[0].ndim else ())


def grades_of(row: Row, name: str) -> tuple:
    """(P,) the grade of each problem that the metric is of; () for TASK:NAME."""
    if ":" in name:
        return ()
    chosen = of_grade(row, split_metric(name)[2])
    return tuple(np.array(row["problems"]["difficulty"])[chosen].tolist())


def mean_numbers(values: Sequence[np.ndarray], grades: tuple = ()) -> np.ndarray:
    """numbers of a mean over problems; values: of each seed (P,), or a scalar, never drawn anew."""
    one = len(values) == 1
    return np.stack([draw_mean(np.asarray(v, dtype=np.float64), grades, one) for v in values])


def draw_mean(values: np.ndarray, grades: tuple, one: bool) -> np.ndarray:
    """(1 + DRAWS,); one: there is one seed, so that a scalar has no draws at all."""
    if values.ndim == 0:
        return np.append(values, np.full(DRAWS, np.nan if one else values))
    return np.append(values.mean(), problem_weights(grades or (None,) * len(values)) @ values)


def ece_numbers(row: Row) -> np.ndarray:
    """(1 + DRAWS,): the expected calibration error of the vote, see `eval.calibration`.

    Draws have the noise of the problems twice, and are mirrored at the number itself: the basic
    bootstrap of `eval.metrics.basic_interval`.
    """
    gaps = metric_values(row, "ece")
    bins = np.eye(15)[bin_numbers(np.array(row["problems"]["confidence"]), 15, "width")]  # (P, B)
    by_bin = gaps[:, None] * bins
    value = np.abs(by_bin.mean(axis=0)).sum()
    draws = np.abs(problem_weights(grades_of(row, "ece")) @ by_bin).sum(axis=1)
    return np.append(value, 2 * value - draws)


@cache
def problem_weights(grades: tuple) -> np.ndarray:
    """(DRAWS, P): the share of each problem in each draw with replacement among those of its grade.

    grades: (P,) of the problems.
    """
    P = len(grades)
    rng, counts = np.random.default_rng([0, P]), np.empty((DRAWS, P))
    for grade in dict.fromkeys(grades):
        alike = [i for i, other in enumerate(grades) if other == grade]
        n = len(alike)
        counts[:, alike] = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return counts / P


def rank_numbers(x: Sequence[float], y: np.ndarray) -> np.ndarray:
    """numbers of Spearman's correlation over M settings; x: (M,); y: (M, S, 1 + DRAWS).

    Where problems are few, noise lowers the correlation in the draws: its interval may lie below.
    """
    across = ranks(np.asarray(x, dtype=np.float64)[:, None, None])  # (M, 1, 1)
    up = ranks(y)
    across, up = across - across.mean(axis=0), up - up.mean(axis=0)
    with np.errstate(invalid="ignore"):  # all equal: no correlation, NaN
        return (across * up).sum(0) / np.sqrt((across**2).sum(0) * (up**2).sum(0))


def ranks(y: np.ndarray) -> np.ndarray:
    """Ranks along the first axis, from 0; equal ones share theirs."""
    below = (y[None] < y[:, None]).sum(axis=1)
    equal = (y[None] == y[:, None]).sum(axis=1)
    return np.where(np.isnan(y), np.nan, below + (equal - 1) / 2)


def matched_numbers(
    x: np.ndarray, y: np.ndarray, family_x: np.ndarray, family_y: np.ndarray
) -> np.ndarray:
    """numbers of y minus the family's y where its x is the same; NaN beyond the family's reach.

    x, y: (S, 1 + DRAWS); family_x, family_y: (M, S, 1 + DRAWS), of M >= 2 settings, between which
    y is taken for linear in x, in the order of x.
    """
    order = np.argsort(family_x, axis=0)
    xs = np.take_along_axis(family_x, order, axis=0)
    ys = np.take_along_axis(family_y, order, axis=0)
    theirs = np.full(y.shape, np.nan)
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        way = np.divide(x - x0, x1 - x0, out=np.zeros(x.shape), where=x1 > x0)
        theirs = np.where((x0 <= x) & (x <= x1), y0 + way * (y1 - y0), theirs)
    return y - theirs


def best_numbers(x: Sequence[float], y: np.ndarray) -> np.ndarray:
    """numbers of log x where y is largest; x: (M,) above 0; y: (M, S, 1 + DRAWS).

    Equal ones count alike: all at 1 says nothing about the best.
    """
    top = y == y.max(axis=0)
    return (top * np.log(np.asarray(x))[:, None, None]).sum(axis=0) / top.sum(axis=0)


def samples_share(ours: Setting, theirs: Setting, seeds: Sequence[int], metric: str) -> np.ndarray:
    """numbers of the fewest completions with which ours reach pass@K of theirs, over their own.

    metric: pass@K or valid@K. Where ours do not reach it with K completions, K + 1 are counted.
    Theirs may need fewer than K themselves, where each problem that they solve they solve twice.
    """
    for setting in (ours, theirs):
        read_values(setting, seeds, metric)  # MissingError where there are no K completions
    needed = []
    for seed in seeds:
        own, other = (curve_draws(seed_row(one, seed), metric) for one in (ours, theirs))
        goals = other[:, -1:] - 1e-12
        needed.append((1 + (own < goals).sum(axis=1)) / (1 + (other < goals).sum(axis=1)))
    return np.array(needed)


def curve_draws(row: Row, metric: str) -> np.ndarray:
    """(1 + DRAWS, K): the mean of pass@1, ..., pass@K and its draws; never falls with k."""
    name, K, grade = split_metric(metric)
    curves = pass_curves(row, name)[of_grade(row, grade), :K]
    return np.vstack([curves.mean(axis=0), problem_weights(grades_of(row, metric)) @ curves])


# ------------------------------------------------------------------------------------------------
# numbers -> intervals


def interval(numbers: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean over seeds, with seeds and problems varied as the head of this file says."""
    S = len(numbers)
    error = numbers[:, 0].std(ddof=1) / np.sqrt(S) if S > 1 else 0.0
    draws = numbers[:, 1:].mean(axis=0) + error * student(S)
    ends = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(*map(float, (numbers[:, 0].mean(), *ends)))


@cache
def student(S: int) -> np.ndarray:
    """(DRAWS,) of Student's t with S - 1 degrees of freedom, in an order of their own.

    Means of 50 neighbours in a larger sample: the 97.5th percentile is right to about 1%.
    """
    rng = np.random.default_rng([1, S])
    if S == 1:
        return np.zeros(DRAWS)
    sample = np.sort(rng.standard_t(S - 1, size=50 * DRAWS))
    return rng.permutation(sample.reshape(DRAWS, 50).mean(axis=1))


def seed_and_problem_interval(values: Sequence[np.ndarray], confidence: float = 0.95) -> Interval:
    """Of a mean; values: of each seed (P,) for the same problems, drawn whatever their grades, or a
    scalar.
    """
    return interval(mean_numbers(values), confidence)


def paired_interval(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], confidence: float = 0.95
) -> Interval:
    """Of the mean of ours minus theirs; both: as above, seed by seed and problem by problem."""
    check_paired(ours, theirs)
    return interval(mean_numbers(ours) - mean_numbers(theirs), confidence)


def check_paired(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    shapes = [[np.shape(values) for values in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected the same seeds and problems, got {shapes[0]} and {shapes[1]}")


def clip(found: Interval, least: float, most: float) -> Interval:
    return Interval(found.value, *np.clip([found.low, found.high], least, most).tolist())


def covers(values: Sequence[np.ndarray]) -> str:
    """What an interval of these values is over."""
    seeds, problems = len(values) > 1, np.ndim(values[0]) > 0
    if seeds:
        return "seeds and problems" if problems else "seeds"
    return "problems" if problems else "nothing"
