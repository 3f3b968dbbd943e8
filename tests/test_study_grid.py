"""Cells of a plan: a pure function of the rows that are there.

python -m pytest tests/test_study_grid.py
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from eval.study_grid import (
    base_name,
    chosen_rate,
    count_cells,
    methods_of,
    next_cells,
    next_tau,
    train_name,
)
from eval.study_plans import PLANS, POPULATION, VERDICT, Control, Grid, Plan, dpo, spl

OUT = Path("runs/x")
PLAN = Plan(
    "small",
    "for the tests",
    (
        Grid(
            VERDICT,
            (spl(1.0), spl(2.0)),
            (
                Control("dpo, top-p", "p 0.9", "tau 1", ("--top_p", "0.9")),
                Control("dpo, resampled", "tau 2", "tau 1", tau=2.0),
                Control("dpo, resampled", "tau 0.8", "tau 1", tau=0.8),
            ),
            rates=(0.5, 1.0),
            seeds=2,
            n=4,
        ),
        Grid(POPULATION, (spl(1.0),), rates=(0.5, 1.0), seeds=1, n=4),
    ),
)


def trained(grid, method, rate, seed=0, score=0.0):
    name = train_name(grid.process, method, rate, seed)
    curves = {"eval/loss": [1, score]}
    return {"cell": name, "kind": "train", "validation": [score, score + 0.1], "curves": curves}


def names(rows, kind=None):
    cells = next_cells(PLAN, rows, OUT)
    assert len({cell.name for cell in cells}) == len(cells)
    return [cell.name for cell in cells if kind in (None, cell.labels["kind"])]


def test_before_any_row_each_method_is_tried_at_each_rate_at_seed_0():
    assert len(names([], "train")) == 6 and not names([], "test") and not names([], "decode")
    assert names([])[:2] == ["source/tiny", "base/tiny/graded/n 4"]


def test_the_best_rate_goes_on_to_all_seeds_tests_and_controls():
    grid, method = PLAN.grids[0], PLAN.grids[0].methods[0]
    rows = [trained(grid, method, 0.5, score=0.4)]
    assert chosen_rate(grid, method, {row["cell"]: row for row in rows}) is None
    rows.append(trained(grid, method, 1.0, score=0.3))
    assert chosen_rate(grid, method, {row["cell"]: row for row in rows}) == 0.5
    tests = names(rows, "test")
    assert tests == [f"verdict/spl/tau 1/rate 0.5/seed {seed}/test" for seed in (0, 1)]
    assert "verdict/spl/tau 1/rate 0.5/seed 1/train" in names(rows, "train")
    assert "verdict/spl/tau 1/rate 1/seed 1/train" not in names(rows, "train")
    assert len(names(rows, "decode")) == 6 and len(names(rows, "draws")) == 2


@pytest.mark.parametrize(
    ("ahead", "rate"),
    [
        ((0.1, 0.3), 0.5),  # mean 0.2, standard error 0.1
        ((0.02, 0.2), 0.5),  # 0.11, 0.09; the standard deviation is 0.127
        ((-0.1, 0.3), 1.0),  # 0.1, 0.2
        ((-0.3, -0.1), 1.0),
        ((0.0, 0.0), 1.0),
    ],
)
def test_another_rate_has_to_be_better_by_a_standard_error(ahead, rate):
    grid, method = PLAN.grids[0], PLAN.grids[0].methods[0]
    rows = {rate: trained(grid, method, rate) for rate in grid.rates}
    rows[1.0]["validation"], rows[0.5]["validation"] = [0.5, 0.4], [0.5 + ahead[0], 0.4 + ahead[1]]
    assert chosen_rate(grid, method, {row["cell"]: row for row in rows.values()}) == rate


@pytest.mark.parametrize(
    ("losses", "rate"),  # at half of the default rate, and at the default: from 1
    [
        ((0.57, 0.6), 0.5),  # 0.03 lower, and a twentieth of the fall of 0.4 is 0.02
        ((0.59, 0.6), 1.0),
        ((0.7, 0.6), 1.0),
        ((1.1, 1.2), 0.5),  # the default makes it worse, the other less so
        ((1.2, 1.1), 1.0),
    ],
)
def test_the_population_chooses_by_held_out_loss_where_that_is_certain(losses, rate):
    grid, method = PLAN.grids[1], PLAN.grids[1].methods[0]
    rows = [
        trained(grid, method, r, score=loss) for r, loss in zip((0.5, 1.0), losses, strict=True)
    ]
    assert chosen_rate(grid, method, {row["cell"]: row for row in rows}) == rate


def test_every_need_stands_before_and_the_count_is_right():
    rows = [
        trained(grid, method, rate, seed, 0.1)
        for grid in PLAN.grids
        for method in grid.methods
        for rate in grid.rates
        for seed in range(grid.seeds)
    ]
    seen, kinds = set(), {}
    for cell in next_cells(PLAN, rows, OUT):
        assert seen.issuperset(cell.needs), cell.name
        seen.add(cell.name)
        kind = cell.labels["kind"]
        kinds[kind] = kinds.get(kind, 0) + 1
    # source, base; labels 2 + 1; train 2 methods x (2 rates + 1 seed) + 2 rates; test 4 + 1; ...
    assert kinds == {"source": 1, "base": 1, "labels": 3, "train": 8, "test": 5, "draws": 2,
                     "decode": 6}  # fmt: skip
    assert count_cells(PLAN) == kinds


def flags(command):
    return dict(zip(command[1::2], command[2::2], strict=False))


def test_what_a_training_and_its_test_are_told():
    rows = [trained(PLAN.grids[0], spl(2.0), rate, score=1 - rate) for rate in (0.5, 1.0)]
    cells = {cell.name: cell for cell in next_cells(PLAN, rows, OUT)}
    train = cells["verdict/spl/tau 2/rate 0.5/seed 1/train"]
    given = flags(train.commands[0])
    assert train.needs == ("verdict/labels of tiny/seed 1",)
    assert (given["--alpha"], given["--beta"], given["--learning_rate"]) == (
        "0.2",
        "0.1",
        "0.0001",
    )
    assert given["--data"] == "runs/x/cells/verdict/labels_of_tiny/seed_1/train.jsonl"
    assert given["--seed"] == "1" and train.labels["learning_rate"] == 1e-4
    test = cells["verdict/spl/tau 2/rate 0.5/seed 1/test"]
    assert test.needs == (train.name,)
    assert flags(test.commands[0])["--adapter"] == given["--out_dir"]
    assert flags(test.commands[0])["--seed"] == "1001" and test.labels["tau"] == 2.0
    labels = cells["population/labels of tiny/seed 0"].commands
    assert "--votes" not in labels[0] and labels[1][-2:] == ("--votes", "20")


def test_draws_are_shared_by_the_controls_that_resample_them():
    rows = [trained(PLAN.grids[0], spl(1.0), rate) for rate in (0.5, 1.0)]
    cells = {cell.name: cell for cell in next_cells(PLAN, rows, OUT)}
    for tau in ("0.8", "2"):
        cell = cells[f"verdict/dpo, resampled/tau {tau}/seed 1"]
        assert cell.needs == ("verdict/dpo, resampled/draws/seed 1",)
        assert flags(cell.commands[0][1:])["--tau"] == tau
        assert flags(cell.commands[0][1:])["--seed"] == "1"


def test_a_judge_learns_from_other_coins_than_the_pairs_that_it_orders():
    grid = Grid(replace(POPULATION, judge="verdict"), (spl(1.0),), seeds=2, n=4)
    cells = {cell.name: cell for cell in next_cells(Plan("judged", "", (grid,)), [], OUT)}
    for seed, coins in (("0", "100"), ("1", "101")):
        labels, train = cells[f"judge/verdict/seed {seed}"].commands
        assert flags(labels[1:])["--seed"] == coins and flags(train)["--seed"] == seed
        first, *_ = cells[f"population/labels of tiny/seed {seed}"].commands
        assert flags(first[1:])["--seed"] == seed


@pytest.mark.parametrize("plan", PLANS.values(), ids=lambda plan: plan.name)
def test_every_plan_has_the_cells_that_it_counts_once_all_rates_are_tried(plan):
    rows = [
        trained(grid, method, rate, 0, 0.1)
        for grid in plan.grids
        for method in grid.methods
        for rate in grid.rates
    ]
    kinds = Counter(cell.labels["kind"] for cell in next_cells(plan, rows, OUT))
    counts = Counter(count_cells(plan))
    for grid in plan.grids:
        if grid.search:  # its later methods are named when rows have entropies
            counts.subtract({"train": 4 * grid.seeds, "test": 4 * grid.seeds})
    assert kinds == counts


def test_a_search_goes_towards_the_entropy_of_the_reference():
    # entropies 5 at tau 1, target 6: one nat a doubling at first, so tau 2; there 5.5, so 0.5 nats
    # a doubling and one doubling more; there 6.1, so 0.6 a doubling and 0.1 / 0.6 of one back
    assert next_tau([1.0], [5.0], 6.0) == 2.0
    assert next_tau([1.0, 2.0], [5.0, 5.5], 6.0) == 4.0
    assert next_tau([1.0, 2.0, 4.0], [5.0, 5.5, 6.1], 6.0) == 3.56  # 4 / 2^(1 / 6)
    assert next_tau([1.0], [5.0], 60.0) == 2.0  # at most one doubling
    assert (
        next_tau([1.0, 2.0], [5.0, 4.0], 6.0) == 2.02
    )  # noise: a step of 1 / 0.25, bounded, taken


def test_noise_that_turns_a_search_around_does_not_carry_it_far():
    """Entropy fell from 5 to 4.9 where tau doubled: at 0.25 nats a doubling, the 0.1 nats that are
    missing at tau 1 are 0.4 doublings, 1.32."""
    assert next_tau([1.0, 2.0], [5.0, 4.9], 5.1) == 1.32


def test_a_search_waits_for_all_seeds_and_ends():
    grid = replace(PLAN.grids[0], methods=(spl(1.0),), controls=(), rates=(1.0,), search=True)
    rows = {base_name(grid): {"validation_entropy": 6.0}}
    assert [m.tau for m in methods_of(grid, rows)] == [1.0]
    for tau, entropy in ((1.0, 5.0), (2.0, 5.5), (4.0, 6.1), (3.56, 6.0), (3.6, 6.0)):
        for seed in range(grid.seeds):
            name = train_name(grid.process, spl(tau), 1.0, seed)
            rows[name] = {"validation_entropy": entropy + (-0.1, 0.1)[seed],
                          "validation": [0.4, 0.4]}  # fmt: skip
        if tau == 1.0:
            missing = rows.pop(name)
            assert [m.tau for m in methods_of(grid, rows)] == [1.0]
            rows[name] = missing
    assert [m.tau for m in methods_of(grid, rows)] == [1.0, 2.0, 4.0, 3.56, 3.6]


def test_methods_say_what_they_are():
    assert spl(1.2, 0.03).setting == "tau 1.2, beta 0.03" and spl(1.2).setting == "tau 1.2"
    assert spl(1.2, 0.03).flags[2:] == ("--alpha", "0.036", "--beta", "0.03")
    assert dpo(0.2).family == "dpo with beta'" and dpo(0.2).flags == (
        "--objective", "dpo", "--beta", "0.2",
    )  # fmt: skip
