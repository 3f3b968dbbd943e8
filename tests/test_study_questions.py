"""Difficulty, temperature and search, on rows small enough to work out.

python -m pytest tests/test_study_questions.py
"""

import numpy as np
import pytest

from eval.study_questions import (
    difficulty_rule,
    group_of,
    search_gain,
    search_path,
    search_target,
    temperature_map,
)
from eval.study_values import MissingError


def measured(kind, correct, n=4, seed=0, **labels):
    problems = {"n": n, "correct": correct, "valid": correct, "difficulty": [None] * len(correct)}
    row = {"cell": f"{kind} {labels} {seed}", "kind": kind, "seed": seed, "problems": problems}
    row |= {"process": "p", "family": "spl", "beta": 0.1, "alpha": None, "setting": str(labels)}
    return row | labels


def spl(tau, correct, seed=0, **more):
    return measured("test", correct, seed=seed, tau=tau, setting=f"tau {tau:g}", **more)


def base(correct, **more):
    return measured("base", correct, family="base", tau=None, setting="tiny", **more)


def test_groups_by_the_pass_rate_of_the_reference():
    rates = np.array([0.0, 0.0624, 0.0625, 0.249, 0.25, 0.49, 0.5, 1.0])
    assert group_of(rates).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_rule_where_hard_problems_want_another_tau():
    # problems 0 to 3 are never solved by the reference, 4 to 7 always; of 4 completions tau 1
    # solves (1, 4), tau 2 solves (3, 3): each half chooses tau 2 for the hard, tau 1 for the easy
    # group, and tau 2 for all (mean 3 against 2.5); so the rule gains 1/4 on half of the problems
    rows = [base([0] * 4 + [4] * 4)]
    for seed in (0, 1):
        rows += [spl(1.0, [1] * 4 + [4] * 4, seed), spl(2.0, [3] * 8, seed)]
    rule = difficulty_rule(rows, "p", "pass@1")
    assert [(g.low, g.high, g.problems, g.best) for g in rule.groups] == [
        (0, 1 / 16, 4, 2.0), (1 / 2, 1, 4, 1.0)
    ]  # fmt: skip
    assert rule.groups[0].values[1.0].value == 0.25 and rule.groups[1].values[2.0].value == 0.75
    assert rule.single == [2.0, 2.0] and [c[0] for c in rule.chosen] == [2.0, 2.0]
    assert [c[3] for c in rule.chosen] == [1.0, 1.0] and rule.gain.value == pytest.approx(1 / 8)
    assert rule.gain.low < 1 / 8 < rule.gain.high


def test_the_rule_is_judged_on_the_half_that_did_not_choose_it():
    # even problems prefer tau 2, odd ones tau 1: each choice is wrong on the other half
    rows = [base([0] * 4), spl(1.0, [0, 4, 0, 4]), spl(2.0, [4, 0, 4, 0])]
    rule = difficulty_rule(rows, "p", "pass@1")
    assert rule.single == [2.0, 1.0] and rule.gain.value == 0
    assert [c[0] for c in rule.chosen] == [2.0, 1.0]


def test_what_is_missing_is_named():
    with pytest.raises(MissingError, match="two tau of p"):
        difficulty_rule([base([0]), spl(1.0, [0])], "p", "pass@1")
    with pytest.raises(MissingError, match="the reference on the same problems"):
        difficulty_rule([base([0, 1]), spl(1.0, [0]), spl(2.0, [0])], "p", "pass@1")
    with pytest.raises(MissingError, match="sampling temperatures of p"):
        temperature_map([spl(1.0, [0])], "p", "pass@1")
    with pytest.raises(MissingError, match="a search in p"):
        search_path([], "p")
    with pytest.raises(MissingError, match="the reference on the validation"):
        search_target([base([0])])


def test_temperatures_of_each_tau():
    heated = {"family": "spl, token temperature", "kind": "decode"}
    rows = [spl(2.0, [2, 2]), spl(1.0, [4, 2])]
    rows.append(spl(1.0, [1, 1]) | heated | {"setting": "tau 1, t 1.5"})
    rows.append(spl(1.0, [3, 3]) | heated | {"setting": "tau 1, t 0.4"})
    found = temperature_map(rows, "p", "pass@1")
    assert list(found) == [1.0, 2.0] and list(found[1.0]) == [0.4, 1.0, 1.5]
    assert [one.value for one in found[1.0].values()] == [0.75, 0.75, 0.25]
    assert found[2.0][1.0].value == 0.5


def test_the_way_of_a_search():
    train = [
        {"kind": "train", "process": "s", "tau": tau, "validation_entropy": entropy}
        for tau, entropy in ((1.0, 5.0), (1.0, 5.2), (2.0, 6.0), (2.0, 6.2))
    ]
    assert search_path(train, "s") == [(1.0, pytest.approx(5.1)), (2.0, pytest.approx(6.1))]
    rows = [base([0]) | {"validation_entropy": 6.5}]
    assert search_target(rows) == 6.5


def test_what_a_search_found_beside_the_best_of_its_grid():
    """The last tau, in seeds that both have; the grid's best is that of the metric."""
    rows = [spl(tau, correct, seed) | {"process": "v"} for seed in (0, 1)
            for tau, correct in ((1.0, [4, 0]), (2.0, [1, 1]))]  # fmt: skip
    for tau, correct in ((1.0, [0, 0]), (1.5, [2, 1])):
        process = {"process": "v, search"}
        rows.append({"kind": "train", "tau": tau, "validation_entropy": 1.0, "seed": 0} | process)
        rows += [spl(tau, correct, seed) | process for seed in (0, 1, 2)]
    found, best, gain = search_gain(rows, "v, search", "pass@1")
    assert (found, best, gain.value) == (1.5, 1.0, pytest.approx(-1 / 8))
    assert gain.low < -1 / 8 < gain.high  # the two problems differ by -1/2 and 1/4
    assert search_gain(rows, "v, search", "pass@4")[1] == 2.0  # solves both problems
    with pytest.raises(MissingError, match="a search in w, search"):
        search_gain(rows, "w, search", "pass@1")
    other = [row for row in rows if row["process"] == "v" or row["kind"] == "train"]
    with pytest.raises(MissingError, match="a seed that the search"):
        search_gain(other, "v, search", "pass@1")
