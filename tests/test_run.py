"""What a run records and shows: means worked by hand, records after a resume, the warning.

pytest tests/test_run.py
"""

import math

import pytest
import torch

from model.run import (
    Means,
    before_and_after,
    choose_device,
    evaluation_line,
    open_metrics,
    read_records,
    write_record,
)


def test_means_weigh_every_element_alike():
    """Two micro-batches of 1 and 3 pairs: (5 + 1 + 2 + 4) / 4 = 3, not the mean of the means."""
    means = Means()
    means.add({"loss": torch.tensor([5.0]), "mass": torch.tensor([])}, [7])
    means.add({"loss": torch.tensor([1.0, 2.0, 4.0]), "entropy": torch.ones(9)}, [1, 2, 3])
    assert means.read() == {"loss": 3.0, "entropy": 1.0}  # no element, no mean
    assert Means().read() == {}


def test_the_pair_that_is_not_finite_is_found():
    means = Means()
    means.add({"loss": torch.tensor([1.0, 2.0]), "entropy": torch.full((5,), math.nan)}, [4, 5])
    means.add({"loss": torch.tensor([3.0, math.inf]), "logps": torch.tensor([0.0, 1.0])}, [8, 9])
    assert means.non_finite() == [(9, {"loss": math.inf, "logps": 1.0})]


def test_records_after_the_step_of_a_resume_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for step in (0, 1, 2, 2, 3):
        write_record(file, {"step": step, "loss": step / 2})
    open_metrics(file, 2)
    assert [r["step"] for r in read_records(file)] == [0, 1, 2, 2]
    file.write_text(file.read_text() + '{"step": 2, "lo')  # a kill tore the last line
    assert [r["step"] for r in read_records(file)] == [0, 1, 2, 2]
    file.write_text('{"step": 0\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:1: not JSON"):
        read_records(file)
    open_metrics(tmp_path / "new.jsonl", 0)
    assert read_records(tmp_path / "new.jsonl") == []


def test_choices_are_printed_and_impossible_devices_refused(capsys):
    device, _ = choose_device(None, None)
    out = capsys.readouterr().out
    assert f"device: {device} (" in out and "dtype: " in out
    assert choose_device("cpu", "bfloat16") == ("cpu", torch.bfloat16)
    for device in ("abacus", "meta"):
        with pytest.raises(ValueError, match=f"--device {device} cannot be used"):
            choose_device(device, None)


def test_table_and_warning():
    first = {"step": 0, "eval/loss": 0.7, "eval/mass/policy": 0.9, "eval/mass/reference": 0.9}
    kept = {**first, "step": 10, "eval/loss": 0.5, "eval/mass/policy": 0.85}
    assert "warning" not in before_and_after(first, kept)
    drained = {**kept, "eval/mass/policy": 0.2}
    table = before_and_after(first, drained)
    assert "held 0.900 of the reference's" in table and "hold 0.200 of the policy's" in table
    row = next(line for line in table.splitlines() if line.startswith("loss"))
    assert row.split() == ["loss", "0.7000", "0.5000"]
    assert evaluation_line(kept) == "step   10 held-out: loss 0.500, answer mass 0.850"
