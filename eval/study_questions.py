"""Questions that neither paper answers: which tau for which problem, temperature, entropy?

    difficulty    the tau that is best for the problems that the reference solves seldom, or often;
                  and whether a rule that chooses tau by the reference's pass rate beats the one tau
                  that is best for all. The rule is made on one half of the problems and judged on
                  the other, and the halves change places
    temperature   the sampling temperature that is best for each tau
    search        the tau that a search went through towards the reference's entropy, and what the
                  last has more than the best tau of a grid

Intervals are those of eval/study_statistics.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eval.study_statistics import (
    Interval,
    clip,
    interval,
    paired_interval,
    seed_and_problem_interval,
    setting_numbers,
)
from eval.study_values import (
    MissingError,
    Setting,
    coordinate,
    find_settings,
    metric_values,
    read_values,
    shared_seeds,
)

EDGES = (0.0, 1 / 16, 1 / 4, 1 / 2, 1.0)  # of the reference's pass rate, between the groups
GRID = {"family": "spl", "beta": 0.1}
HEATED = {"family": "spl, token temperature"}
SEARCH = ", search"  # how the name of a searched process ends, behind that of its grid

Row = Mapping


@dataclass(frozen=True)
class Group:
    """Problems that the reference solves about equally often."""

    low: float
    high: float
    problems: int
    values: dict[float, Interval]  # by tau

    @property
    def best(self) -> float:
        return max(self.values, key=lambda tau: self.values[tau].value)


@dataclass(frozen=True)
class Rule:
    """Tau by group against one tau for all, on problems that chose neither."""

    metric: str
    groups: list[Group]
    chosen: list[list[float]]  # of each half that chose, the tau of each group
    single: list[float]  # and the one tau
    gain: Interval  # the rule's metric minus the one tau's


# ------------------------------------------------------------------------------------------------
# difficulty


def difficulty_rule(rows: Sequence[Row], process: str, metric: str) -> Rule:
    """rows: of a study whose problems come as they are; metric: such as pass@8.

    Raises MissingError without the reference, or with fewer than two tau.
    """
    settings, seeds = tau_grid(rows, process)
    taus = [coordinate(setting, "tau") for setting in settings]
    values = np.stack([read_values(setting, seeds, metric) for setting in settings])  # (M, S, P)
    groups = group_of(reference_rates(rows, values.shape[2]))  # (P,)
    half = np.arange(values.shape[2]) % 2
    ours, theirs = np.empty(values.shape[1:]), np.empty(values.shape[1:])
    chosen, single = [], []
    for side in (0, 1):
        by_group, for_all = choose(values, groups, half == side)
        judged = half != side
        for g, m in enumerate(by_group):
            here = judged & (groups == g)
            ours[:, here] = values[m][:, here]
        theirs[:, judged] = values[for_all][:, judged]
        chosen.append([taus[m] for m in by_group])
        single.append(taus[for_all])
    return Rule(
        metric,
        describe_groups(values, groups, taus),
        chosen,
        single,
        paired_interval(list(ours), list(theirs)),
    )


def tau_grid(rows: Sequence[Row], process: str) -> tuple[list[Setting], list[int]]:
    """SPL's settings at every tau, in order, and the seeds that all of them have."""
    own = [row for row in rows if row.get("process") == process]
    settings = sorted(find_settings(own, GRID), key=lambda setting: coordinate(setting, "tau"))
    if len(settings) < 2:
        raise MissingError(f"two tau of {process}")
    return settings, shared_seeds(settings)


def reference_rates(rows: Sequence[Row], problems: int) -> np.ndarray:
    """(P,) the share of the reference's completions that are right."""
    for row in rows:
        if row["kind"] == "base" and len(row["problems"]["correct"]) == problems:
            return metric_values(row, "pass@1")
    raise MissingError("the reference on the same problems")


def group_of(rates: np.ndarray) -> np.ndarray:
    """(P,) the place of each problem's rate among EDGES; an edge belongs to the group above."""
    return np.clip(np.digitize(rates, EDGES) - 1, 0, len(EDGES) - 2)


def choose(values: np.ndarray, groups: np.ndarray, by: np.ndarray) -> tuple[list[int], int]:
    """The place of the best tau for each group, and for all, among the problems `by` (P,).

    values: (M, S, P). A group without a problem takes the tau for all.
    """
    means = values.mean(axis=1)  # (M, P)
    for_all = int(means[:, by].mean(axis=1).argmax())
    by_group = []
    for g in range(len(EDGES) - 1):
        here = by & (groups == g)
        by_group.append(int(means[:, here].mean(axis=1).argmax()) if here.any() else for_all)
    return by_group, for_all


def describe_groups(values: np.ndarray, groups: np.ndarray, taus: Sequence[float]) -> list[Group]:
    found = []
    for g, (low, high) in enumerate(pairwise(EDGES)):
        here = groups == g
        if here.any():
            intervals = {
                tau: clip(seed_and_problem_interval(list(values[m][:, here])), 0, 1)
                for m, tau in enumerate(taus)
            }
            found.append(Group(low, high, int(here.sum()), intervals))
    return found


# ------------------------------------------------------------------------------------------------
# temperature


def temperature_map(
    rows: Sequence[Row], process: str, metric: str
) -> dict[float, dict[float, Interval]]:
    """tau -> sampling temperature -> a share, such as pass@1. Raises MissingError where none was
    varied."""
    own = [row for row in rows if row.get("process") == process]
    settings = [(setting, 1.0) for setting in find_settings(own, GRID)]
    heated = find_settings(own, HEATED)
    if not heated:
        raise MissingError(f"sampling temperatures of {process}")
    settings += [(setting, coordinate(setting, "t")) for setting in heated]
    found: dict[float, dict[float, Interval]] = {}
    for setting, temperature in sorted(settings, key=lambda one: one[1]):
        seeds = shared_seeds([setting])
        by_temperature = found.setdefault(coordinate(setting, "tau"), {})
        found_here = interval(setting_numbers(setting, seeds, metric))
        by_temperature[temperature] = clip(found_here, 0, 1)
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------------
# search


def search_path(rows: Sequence[Row], process: str) -> list[tuple[float, float]]:
    """(tau, mean entropy on the validation problems) in the order of the search."""
    reached: dict[float, list[float]] = {}
    for row in rows:
        if row["kind"] == "train" and row["process"] == process:
            reached.setdefault(row["tau"], []).append(row["validation_entropy"])
    if not reached:
        raise MissingError(f"a search in {process}")
    return [(tau, float(np.mean(entropies))) for tau, entropies in reached.items()]


def search_gain(rows: Sequence[Row], process: str, metric: str) -> tuple[float, float, Interval]:
    """The tau that a search ended with, its grid's best, and what the first has more of the metric.

    rows: of all processes; the grid's has the name in front of ", search". Its best is chosen by
    the problems on which it is compared, which flatters it. Raises MissingError.
    """
    last = search_path(rows, process)[-1][0]
    own = [row for row in rows if row.get("process") == process]
    found = find_settings(own, GRID | {"tau": last})
    grid, seeds = tau_grid(rows, process.removesuffix(SEARCH))
    seeds = [seed for seed in seeds if found and seed in found[0]]
    if not seeds:
        raise MissingError("a seed that the search and its grid have")
    values = [read_values(setting, seeds, metric) for setting in grid]
    best = max(range(len(grid)), key=lambda i: float(np.mean(values[i])))
    ours, theirs = (setting_numbers(one, seeds, metric) for one in (found[0], grid[best]))
    gain = interval(ours - theirs)
    return last, coordinate(grid[best], "tau"), gain


def search_target(rows: Sequence[Row]) -> float:
    """The reference's entropy on the validation problems."""
    for row in rows:
        if row["kind"] == "base" and "validation_entropy" in row:
            return row["validation_entropy"]
    raise MissingError("the reference on the validation problems")
