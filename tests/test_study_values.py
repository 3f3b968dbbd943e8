"""Rows by setting, and the values of a row, beside numbers worked out by hand.

pytest tests/test_study_values.py
"""

from itertools import product

import numpy as np
import pytest

from eval.metrics import pass_at_k
from eval.study_values import (
    MissingError,
    check_metric,
    coordinate,
    find_settings,
    metric_values,
    on_plateau,
    pass_table,
    process_rows,
    read_values,
    seed_row,
    shared_seeds,
)


def row(family="spl", setting="tau 1", seed=0, kind="test", **more):
    return {"cell": f"{family}/{setting}/{seed}/{kind}", "kind": kind, "family": family,
            "setting": setting, "seed": seed, **more}  # fmt: skip


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


def test_the_reference_is_that_of_the_process_s_source() -> None:
    """Two have as many problems and completions."""
    base, other = (row("base", "base", kind="base", source=source, problems=PROBLEMS)
                   for source in ("tiny", "width 64"))  # fmt: skip
    test = row(problems=PROBLEMS, process="verdict", source="tiny")
    assert process_rows([base, other, test], "verdict") == [base, test]


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
    with pytest.raises(MissingError, match="m of spl/m 1e-05/0/test"):  # and not 1
        coordinate({0: row(setting="m 1e-05")}, "m")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.7, 0.6, 0.50, 0.495, 0.491), True),  # falls by 0.2, then by 0.009 < 0.05 * 0.2
        ((0.7, 0.6, 0.50, 0.495, 0.489), False),  # by 0.011
        ((0.7, 0.6, 0.50, 0.505, 0.509), True),  # rises by 0.009
        ((0.7, 0.6, 0.50, 0.52, 0.55), False),  # rises on
        ((0.7, 0.7, 0.71, 0.70, 0.69), False),  # has not fallen by the middle
    ],
)
def test_plateau(losses, expected) -> None:
    assert on_plateau({"curves": {"step": [0, 10, 20, 30, 40], "eval/loss": losses}}) is expected
    assert on_plateau({}) is False and on_plateau({"curves": {}}) is False


def test_the_middle_of_a_plateau_is_half_of_the_steps() -> None:
    """Of 100 steps, 40 is nearest to the middle, whose loss falls on by 0.2 of 0.5; 80 is not."""
    curves = {"step": [0, 40, 80, 90, 100], "eval/loss": [1.0, 0.5, 0.3, 0.3, 0.3]}
    assert on_plateau({"curves": curves}) is False


def test_a_metric_that_is_not_there_names_the_cell() -> None:
    with pytest.raises(MissingError, match="pass@9 of spl/tau 1/0/test"):
        read_values({0: row(problems=PROBLEMS)}, [0], "pass@9")
