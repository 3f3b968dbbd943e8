"""The audit's command: a page and an exit code; what it refuses; what it says when sums are wrong.

pytest tests/test_audit.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval import audit as module
from eval import audit_pairs
from eval.audit import (
    check_config,
    check_flags,
    check_objective,
    check_out,
    command_of,
    main,
)
from eval.audit_run import AuditConfig, Settings
from model.adapter import save_adapter
from model.checkpoint import load_model
from model.lora import add_lora
from tests.conftest import ROOT
from tests.test_lora import scatter

TINY = str(ROOT / "data" / "tiny")
ROWS = [
    {"prompt": "Tom has 3 apples.", "chosen": "Good.", "rejected": "Poor </script><b>Tom."},
    {"prompt": "Lily has 1.", "chosen": "Yes \u202e so.", "rejected": "No."},
]


@pytest.fixture
def flags(tmp_path) -> list[str]:
    """Two pairs and an adapter that is no reference."""
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    model = load_model(TINY)
    add_lora(model, rank=2, alpha=4.0)
    scatter(model)
    save_adapter(model, tmp_path / "adapter", TINY)
    return ["--model", TINY, "--adapter", str(tmp_path / "adapter"), "--data",
            str(tmp_path / "pairs.jsonl"), "--device", "cpu"]  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.audit", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command(flags, tmp_path):
    out = tmp_path / "audit.html"
    done = run(*flags, "--objective", "dpo", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "the tokens of all 2 pairs sum to their margins" in done.stdout
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "http" not in page.replace("http-equiv", "")
    assert "</script><b>" not in page and "\u202e" not in page


def test_sums_that_do_not_close_are_loud(flags, tmp_path, monkeypatch, capsys):
    """The reference's share with the wrong sign: no pair closes, and the exit code is 1."""
    right = audit_pairs.shares

    def wrong(*args):
        parts = right(*args)
        return parts | {"reference_share": -parts["reference_share"]}

    monkeypatch.setattr(audit_pairs, "shares", wrong)
    out = tmp_path / "audit.html"
    monkeypatch.setattr(sys, "argv", ["audit", *flags, "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and out.is_file()
    said = capsys.readouterr().out
    assert "THE TOKENS DO NOT SUM TO THE MARGIN for 2 of 2 pairs: 0, 1 (largest residual" in said
    assert "of the terms' size; 1e-04 is allowed in float32)" in said


def test_check_is_asked_with_the_flags(monkeypatch):
    """--check hands over what is to be trained, and its verdict is the exit code."""
    asked = []
    monkeypatch.setattr(module, "check_run", lambda config: asked.append(config) or len(asked) == 1)
    words = ["--check", "true", "--data", "x.jsonl", "--objective", "h_dpo", "--alpha", "0.9"]
    for code in (0, 1):
        monkeypatch.setattr(sys, "argv", ["audit", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
    assert (asked[0].objective, asked[0].alpha, asked[0].data) == ("h_dpo", 0.9, ("x.jsonl",))
    assert asked[0] == check_config(
        AuditConfig(), Settings(data=("x.jsonl",), objective="h_dpo", alpha=0.9)
    )


@pytest.mark.parametrize(
    "config, message",
    [
        (AuditConfig(), "expected --run, or the policy"),
        (AuditConfig(adapter="a", policy="b"), "exclude each other"),
        (AuditConfig(run="r", on="x"), "--on expects eval or train, got 'x'"),
        (AuditConfig(run="r", worst=-1), "--worst expects 0 or more"),
        (AuditConfig(run="r", limit=0), "--limit expects 1 or more"),
        (AuditConfig(run="r", pairs=("1", "x")), "--pairs expects numbers .* 'x'"),
        (AuditConfig(run="r", eval_data=("x",)), "--eval_data has no meaning without --check"),
        (AuditConfig(run="r", lora_rank=4), "--lora_rank has no meaning without --check"),
        (AuditConfig(check=True, worst=3), "--worst has no meaning with --check"),
        (AuditConfig(check=True, policy="p"), "--policy has no meaning with --check"),
        (AuditConfig(run="r", dtype="int7"), "--dtype expects one of float32, .*, got 'int7'"),
    ],
)
def test_flags_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        check_flags(config)


@pytest.mark.parametrize(
    "config, settings, message",
    [
        ({}, {"label_smoothing": 0.5}, r"--label_smoothing expects a share in \[0, 0.5\), got 0.5"),
        ({}, {"label_smoothing": -0.1}, r"--label_smoothing expects .* got -0.1"),
        ({}, {"objective": "ipo", "label_smoothing": 0.1}, "no meaning for ipo, got 0.1; pass"),
        ({"alpha": 0.2}, {"objective": "dpo"}, "--alpha has no meaning for --objective dpo, which"),
        ({"alpha": 0.2}, {"objective": "ipo"}, "--alpha has no meaning for --objective ipo"),
        ({"alpha": 0.2}, {"objective": "robust"}, "--alpha has no meaning for --objective robust"),
    ],
)
def test_what_an_objective_has_no_use_for_is_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        check_objective(AuditConfig(run="r", **config), Settings(**settings))


def test_an_alpha_that_a_run_holds_is_not_refused():
    check_objective(AuditConfig(run="r"), Settings(objective="dpo", alpha=0.12))
    check_objective(AuditConfig(alpha=0.2), Settings(objective="spl", alpha=0.2))


def test_a_page_in_the_place_of_what_is_read_is_refused(tmp_path):
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("{}\n")
    train, held_out = (str(tmp_path / name) for name in ("train.jsonl", "eval.jsonl"))
    settings = Settings(data=(train,), eval_data=(held_out,))
    for out in (train, held_out, f"{tmp_path}/x/../train.jsonl"):
        with pytest.raises(ValueError, match=r"--out .* would overwrite .*\.jsonl, which is read"):
            check_out(Path(out), settings)
    with pytest.raises(ValueError, match="--out expects a file for the page, got the folder"):
        check_out(tmp_path, settings)
    check_out(tmp_path / "audit.html", settings)


def test_what_is_checked_is_what_would_be_trained():
    """An adapter to start from and the size of a forward; random weights are no checkpoint."""
    asked = check_config(AuditConfig(adapter="a", micro_batch_tokens=99), Settings())
    assert (asked.adapter, asked.micro_batch_tokens) == ("a", 99)
    assert check_config(AuditConfig(), Settings(adapter="b")).adapter == "b"
    with pytest.raises(ValueError, match="--check is of a checkpoint, and r began with random"):
        check_config(AuditConfig(run="r"), Settings(init="config.json"))


def test_a_mistake_is_one_line(tmp_path):
    done = run("--run", str(tmp_path), "--out", str(tmp_path / "x.html"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--run expects a folder of train.py" in done.stderr
    assert not Path(tmp_path / "x.html").exists()


def test_the_command_on_the_page_is_the_one_that_was_given():
    config = AuditConfig(run="r", pairs=("1", "2"), worst=3)
    assert command_of(config) == "python -m eval.audit --run r --pairs 1 2 --worst 3"
