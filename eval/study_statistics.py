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

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from eval.calibration import bin_numbers

DRAWS = 2000
MEASURED = ("test", "decode", "base")  # kinds of rows
SELECTED = ("family", "setting", "tau", "alpha", "beta")  # keys of a selector
COUNTED = {"pass": "correct", "valid": "valid"}  # NAME@k -> the counts that it is computed from
OF_N = ("distinct", "distinct_correct", "majority", "confidence", "brier")  # depend on how many
# completions were drawn
METRIC = re.compile(
    r"(?P<name>entropy/token|[a-z_]+)(@(?P<k>[1-9]\d*))?(/(?P<grade>easy|medium|hard))?"
)
SHARES = re.compile(
    r"([a-z_\d]+:(letters/)?)?"
    r"(pass|valid|floor|majority|unique|distinct|no_answer|ece|mass|share|accuracy|mc\d|prompt_"
    r"|instruction_).*"
    r"|diversity:input/(distinct|unique|self_bleu).*"
)  # names of metrics in [0, 1]

Row = Mapping[str, Any]
Setting = dict[int, Row]  # seed -> row
Selector = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class MissingError(Exception):
    """What is asked for is not among the rows."""


class Interval(NamedTuple):
    """NaN for both ends where nothing can be drawn anew, for all where there is no number."""

    value: float
    low: float
    high: float


# ------------------------------------------------------------------------------------------------
# rows -> settings


def process_rows(rows: Sequence[Row], process: str) -> list[Row]:
    """Its reference's rows, then its own.

    The reference has seen no labels, and processes share its rows. A study may have several: those
    of this process have its source, and as many problems and completions as its policies. A row
    with fewer completions than these is without what depends on their number.
    """
    own = [row for row in rows if row.get("process") == process]
    alike = {shape_of(row) for row in own if row["kind"] == "test"}
    sources = {row.get("source") for row in own if row["kind"] == "test"}
    base = [row for row in rows if row["kind"] == "base" and row.get("process") is None]
    base = [row for row in base if shape_of(row) in alike and row.get("source") in sources]
    return base + [row if shape_of(row) in {None, *alike} else without_n(row) for row in own]


def without_n(row: Row) -> Row:
    problems = {name: value for name, value in row["problems"].items() if name not in OF_N}
    return {**row, "problems": problems}


def shape_of(row: Row) -> tuple[int, int] | None:
    """How many problems a policy was measured on, and by how many completions of each."""
    problems = row.get("problems")
    return (len(problems["correct"]), problems["n"]) if problems else None


def find_settings(rows: Sequence[Row], selector: Selector) -> list[Setting]:
    """The measured settings that a selector, or any of several, names, in the order of the rows.

    Raises MissingError if a setting has two rows of one seed.
    """
    parts = selector if isinstance(selector, list) else [selector]
    found: dict[tuple[str, str], Setting] = {}
    for row in rows:
        if row["kind"] in MEASURED and any(selects(part, row) for part in parts):
            setting = found.setdefault((row["family"], row["setting"]), {})
            if row["seed"] in setting:
                twice = f"{setting[row['seed']]['cell']} and {row['cell']}"
                raise MissingError(f"one row of each seed: there are {twice}")
            setting[row["seed"]] = row
    return list(found.values())


def selects(part: Mapping, row: Row) -> bool:
    """Whether a row has, under each key, the value or one of the values."""
    return all(
        any(same(row.get(key), one) for one in (value if isinstance(value, list) else [value]))
        for key, value in part.items()
    )


def same(found: object, wanted: str | float) -> bool:
    if isinstance(wanted, str) or not isinstance(found, int | float):
        return found == wanted
    return math.isclose(found, wanted, rel_tol=1e-9)


def shared_seeds(settings: Sequence[Setting]) -> list[int]:
    """Seeds that every setting has; the base policy's only row goes with each of them."""
    trained = [setting for setting in settings if not is_only_base(setting)] or settings
    seeds = sorted(set.intersection(*map(set, trained)))
    if not seeds:
        raise MissingError("a seed that all settings have")
    return seeds


def is_only_base(setting: Setting) -> bool:
    return len(setting) == 1 and next(iter(setting.values()))["family"] == "base"


def seed_row(setting: Setting, seed: int) -> Row:
    return next(iter(setting.values())) if is_only_base(setting) else setting[seed]


def rates_note(rows: Sequence[Row]) -> str:
    """Which policies have another learning rate than most of these, if any has."""
    by_rate: dict[float, list[str]] = {}
    for row in rows:
        if row.get("rate"):
            family = "" if row["family"] == "spl" else f"{row['family']}, "
            by_rate.setdefault(row["rate"], []).append(family + row["setting"])
    if len(by_rate) < 2:
        return ""
    common = max(by_rate, key=lambda rate: len(by_rate[rate]))
    others = [f"{', '.join(dict.fromkeys(names))} at {rate:.3g} times"
              for rate, names in sorted(by_rate.items()) if rate != common]  # fmt: skip
    return f"learning rates differ: {'; '.join(others)} the default, the others at {common:.3g}"


def coordinate(setting: Setting, x: str) -> float:
    """tau, alpha or beta of a setting, or the number behind a name in its label: "t" of "t 1.2"."""
    row = next(iter(setting.values()))
    if isinstance(row.get(x), int | float):
        return float(row[x])
    found = re.search(rf"(?:^|\s){re.escape(x)} (\d+(?:\.\d+)?)(?:,|$)", row["setting"])
    if found is None:
        raise MissingError(f"{x} of {row['cell']}")
    return float(found[1])


def read_values(setting: Setting, seeds: Sequence[int], metric: str) -> list[np.ndarray]:
    """The metric of each seed, see `metric_values`; MissingError where a row does not have it."""
    values = []
    for seed in seeds:
        row = seed_row(setting, seed)
        try:
            values.append(metric_values(row, metric))
        except KeyError:
            raise MissingError(f"{metric} of {row['cell']}") from None
    return values


def setting_numbers(setting: Setting, seeds: Sequence[int], metric: str) -> np.ndarray:
    """(S, 1 + DRAWS), see `row_numbers`; MissingError where a row does not have the metric."""
    read_values(setting, seeds, metric)
    return row_numbers([seed_row(setting, seed) for seed in seeds], metric)


# ------------------------------------------------------------------------------------------------
# a row -> values


def check_metric(name: str, where: str) -> None:
    """ValueError for the name of a metric that `metric_values` does not know."""
    if re.fullmatch(r"[a-z_\d]+:\S.*", name):  # a level of MATH has a space
        return
    parts = METRIC.fullmatch(name)
    whole = parts is not None and (parts["name"] != "ece" or name == "ece")
    if not whole or (parts["name"] in COUNTED) != (parts["k"] is not None):
        raise ValueError(
            f"{where}: expected pass@K, valid@K, unique, majority, brier, entropy, entropy/token, "
            "tokens, each with /easy, /medium, /hard or none of these, ece, or TASK:NAME, got "
            f"{name!r}"
        )


def split_metric(name: str) -> tuple[str, int | None, str | None]:
    """pass@128/hard -> pass, 128, hard; None for what is not there."""
    parts = METRIC.fullmatch(name)
    return parts["name"], int(parts["k"]) if parts["k"] else None, parts["grade"]


def metric_values(row: Row, name: str) -> np.ndarray:
    """A value for each problem, (P,), of a grade if `name` ends with one.

    TASK:NAME: where the row has none for each problem, () of their mean or whatever it is;
    pass@K and valid@K: the unbiased estimate from n completions; unique: different completions / n;
    entropy: -log pi of a completion, in nats, for plain draws of the policy; entropy/token: over
    its tokens; ece: accuracy - confidence of the vote, see `ece_numbers`; other names: as the row
    has them. KeyError where the row does not have it.
    """
    check_metric(name, "metric")
    if ":" in name:
        values = row.get("values", {}).get(name, row["metrics"][name]["value"])
        return np.array(values, dtype=np.float64)
    problems, (base, k, grade) = row["problems"], split_metric(name)
    if k is not None:
        if k > problems["n"]:
            raise KeyError(name)
        values = pass_curves(row, base)[:, k - 1]
    elif base == "unique":
        values = np.array(problems["distinct"]) / problems["n"]
    elif base == "ece":
        values = np.array(problems["majority"]) - np.array(problems["confidence"])
    elif base == "entropy/token":
        values = np.array(problems["entropy"]) / np.array(problems["tokens"])
    else:
        values = np.array(problems[base], dtype=np.float64)
    return values[of_grade(row, grade)]


def of_grade(row: Row, grade: str | None) -> np.ndarray:
    """(P,) which problems are of this grade, all for None; KeyError if none is."""
    difficulty = np.array(row["problems"]["difficulty"])
    chosen = difficulty == grade if grade else np.full(len(difficulty), True)
    if not chosen.any():
        raise KeyError(grade)
    return chosen


def pass_curves(row: Row, name: str = "pass") -> np.ndarray:
    """(P, n): pass@k of each problem, or valid@k, for k = 1, ..., n."""
    return pass_table(row["problems"]["n"])[row["problems"][COUNTED[name]]]


@cache
def pass_table(n: int) -> np.ndarray:
    """(n + 1, n): pass@k for each count c of right ones among n completions, k = 1, ..., n.

    1 - C(n - c, k) / C(n, k), a product over k as in `eval.metrics.pass_at_k`.
    """
    c, k = np.arange(n + 1)[:, None], np.arange(1, n + 1)
    return 1 - np.cumprod(np.maximum(n - c - k + 1, 0) / (n - k + 1), axis=1)


# ------------------------------------------------------------------------------------------------
# values -> numbers


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

    Means of 500 neighbours in a larger sample: the 97.5th percentile is right to about 1%.
    """
    rng = np.random.default_rng([1, S])
    if S == 1:
        return np.zeros(DRAWS)
    sample = np.sort(rng.standard_t(S - 1, size=500 * DRAWS))
    return rng.permutation(sample.reshape(DRAWS, 500).mean(axis=1))


def seed_and_problem_interval(values: Sequence[np.ndarray], confidence: float = 0.95) -> Interval:
    """Of a mean; values: of each seed (P,) for the same problems, or a scalar."""
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
