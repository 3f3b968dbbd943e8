"""The plans: every flag that they pass exists, and the grids are those of the papers.

python -m pytest tests/test_study_plans.py
"""

import dataclasses
from pathlib import Path

import pytest

from eval.study_grid import next_cells
from eval.study_plans import PLANS
from model.config import parse_config
from model.flags import check_flags
from tests.test_readme import flags_of
from tests.test_study_grid import trained
from train import TrainConfig

CELLS = {
    cell.name: cell
    for plan in PLANS.values()
    for cell in next_cells(
        plan,
        [trained(g, m, rate) for g in plan.grids for m in g.methods for rate in g.rates],
        Path("runs") / plan.name,
    )
}
COMMANDS = sorted({command for cell in CELLS.values() for command in cell.commands})


def test_every_flag_of_every_command_exists():
    for command in COMMANDS:
        script = command[1] if command[0] == "-m" else command[0]
        given = {word[2:] for word in command if word.startswith("--")}
        assert given <= flags_of(script), command


def test_train_accepts_every_method():
    for command in COMMANDS:
        if command[0] == "train.py":
            check_flags(parse_config(TrainConfig, list(command[1:])))


def test_full_has_both_papers_grids():
    verdict, population = PLANS["full"].grids
    for grid in (verdict, population):
        taus = [m.tau for m in grid.methods if m.family == "spl" and m.beta == 0.1]
        assert taus == [0.5, 0.8, 0.9, 0.95, 1, 1.1, 1.2, 1.5, 2, 4, 10, 11]
        assert grid.seeds == 5 and grid.rates == (1 / 3, 1, 3)
    others = {(m.tau, m.beta) for m in verdict.methods if m.family == "spl" and m.beta != 0.1}
    assert others == {(tau, beta) for tau in (1, 1.2) for beta in (0.01, 0.03, 0.3)}
    assert verdict.n == 128


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLANS["quick"].name = "slow"
