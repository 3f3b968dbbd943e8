"""eval/theory.py as it is run: the files, the tables, the exit code.

The transformers' training alone is left out, which tests/test_theory_sequences.py has: policies
stand there that have reached their optimum. python -m pytest tests/test_theory.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval import theory as module
from eval import theory_sequences, theory_tabular
from eval.theory_sequences import Policy, make_task
from eval.theory_tabular import TAUS, optimum
from model.objective import preference_loss

ROOT = Path(__file__).resolve().parents[1]


def trained(seed: int) -> list[Policy]:
    task = make_task(seed)
    found = []
    for tau in TAUS:
        theory = optimum(task.reference_logps, task.rewards, tau * 0.1, 0.1)
        found.append(Policy(tau, theory, theory, (0.5, 0.1, 0.05, 0.01, 0.0), 0.0, 0.0))
    return found


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(theory_sequences, "train_policies", trained)
    monkeypatch.setattr(sys, "argv", ["theory", "--out", str(tmp_path / "new" / "theory")])
    return tmp_path / "new" / "theory" / "theory.json"


def test_a_run(quick, capsys):
    module.main()
    out = capsys.readouterr().out
    result = json.loads(quick.read_text())
    rows = result["statements"]
    assert len(rows) == 78 and all(row["holds"] for row in rows)
    assert sum(row["refutes"] for row in rows) == 10
    assert "78 of 78 statements are as they have to be" in out
    assert "the reverse KL seeks one beyond m = 2.8001" in out
    assert result["task"] == "theory" and result["settings"]["seed"] == 0
    assert [row["tau"] for row in result["training"]] == list(TAUS)
    assert [row["tau"] for row in result["temperatures"]] == [0.5, 0.8, 1.2, 2.0]
    taus = ["0.8", "1.0", "1.2", "1.5"]
    assert [row["policy"] for row in result["divergences"]] == [
        *(f"spl, tau {tau}" for tau in taus), "forward_kl", "jensen_shannon", "alpha 0.5",
    ]  # fmt: skip
    assert len(result["fits"]) == 121 and len(result["switches"]) == 11
    assert set(result["fits"][0][0]) == {"alpha", "m", "mu", "sigma", "value", "entropy", "kl"}


def test_a_wrong_loss_ends_with_1_and_leaves_the_results(quick, capsys, monkeypatch):
    wrong = lambda *x: preference_loss(*x[:4], x[5], x[4])  # noqa: E731
    monkeypatch.setattr(theory_tabular, "preference_loss", wrong)
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out
    assert not all(row["holds"] for row in json.loads(quick.read_text())["statements"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--out expects a folder for the results, got none"),
        (["--out", "x", "--seed", "-1"], "--seed expects 0 or more, got -1"),
        (["--out", "x", "--sead", "1"], "unknown flag --sead (did you mean --seed?)"),
    ],
)
def test_a_wrong_flag_is_named(argv, message):
    command = [sys.executable, "-m", "eval.theory", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
