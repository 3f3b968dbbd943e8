"""What a run writes down: means worked by hand, records after a resume, steps, the warning.

pytest tests/test_logbook.py
"""

import math
from types import SimpleNamespace

import pytest
import torch

from model.logbook import (
    Means,
    Step,
    StepLog,
    before_and_after,
    evaluation_line,
    open_metrics,
    read_records,
    show,
    write_record,
)


def test_means_weigh_every_element_alike():
    """Two micro-batches of 1 and 3 pairs: (5 + 1 + 2 + 4) / 4 = 3, not the mean of the means."""
    means = Means()
    means.add({"loss": torch.tensor([5.0]), "mass": torch.tensor([])}, [7])
    means.add({"loss": torch.tensor([1.0, 2.0, 4.0]), "entropy": torch.ones(9)}, [1, 2, 3])
    assert means.read() == {"loss": 3.0, "entropy": 1.0}  # no element, no mean
    weighed = (torch.tensor([0.5, 0.7, 9.0]), torch.tensor([1.0, 1.0, 0.0]))
    means.add({"mass": weighed, "none": (torch.ones(2), torch.zeros(2))}, [1, 2, 3])
    assert means.read()["mass"] == pytest.approx(0.6) and "none" not in means.read()
    assert Means().read() == {}


def test_means_are_taken_in_float64():
    """float32 has no 16777217."""
    means = Means()
    means.add({"loss": torch.tensor([2.0**24 + 1], dtype=torch.float64)}, [0])
    assert means.read() == {"loss": 2.0**24 + 1}


def test_the_pair_that_is_not_finite_is_found():
    means = Means()
    means.add({"loss": torch.tensor([1.0, 2.0]), "entropy": torch.full((5,), math.nan)}, [4, 5])
    means.add({"loss": torch.tensor([3.0, math.inf]), "logps": torch.tensor([0.0, 1.0])}, [8, 9])
    assert means.broken_pairs() == [(9, {"loss": math.inf, "logps": 1.0})]


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
    file.write_text('{"step": 0}\n{}\n')
    with pytest.raises(
        ValueError, match=r"metrics.jsonl:2: expected an object with a whole `step`"
    ):
        read_records(file)
    file.write_text('{"step": 0}\n')
    for new in (tmp_path / "new.jsonl", file):  # a run that starts writes its step 0 itself
        open_metrics(new, 0)
        assert read_records(new) == []


class Bar:
    def set_postfix(self, fields):
        self.fields = fields


def step_of(number: int, loss: float, grad_norm: float = 2.0) -> Step:
    means = Means()
    means.add({"loss": torch.tensor([loss, 1.0])}, [0, 1])
    means.set("grad_norm", torch.tensor(grad_norm))
    return Step(number, means, 1e-3, 100, 2)


def test_what_was_sent_is_what_is_read():
    """Numbers go to the host when a step has been handed over, and are read a step later."""
    means = step_of(1, 3.0).means
    means.send()
    means.add({"loss": torch.tensor([100.0])}, [2])
    assert means.read() == {"loss": 2.0, "grad_norm": 2.0}


@pytest.mark.parametrize(("device", "written"), [("cpu", [1, 2]), ("cuda", [1])])
def test_on_cuda_a_step_is_written_one_step_late(tmp_path, device, written, monkeypatch):
    monkeypatch.setattr("model.logbook.peak_memory_gb", lambda device: 0.0)
    log = StepLog(tmp_path / "metrics.jsonl", Bar(), [], device)
    log.add(step_of(1, 3.0))
    log.add(step_of(2, 5.0))
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == written
    log.flush()
    log.flush()
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2] and [r["loss"] for r in records] == [2.0, 3.0]
    assert records[0]["grad_norm"] == 2.0 and records[0]["tokens_per_s"] > 0


def test_rates_are_those_of_a_step_s_own_time(tmp_path, monkeypatch):
    """100 tokens in 2 s; after an evaluation from 2 s to 10 s, 100 in 5 s; and 100 in 4 s."""
    clock = iter([0.0, 2.0, 10.0, 15.0, 19.0])
    monkeypatch.setattr("model.logbook.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr("model.logbook.peak_memory_gb", lambda device: 0.5)
    log = StepLog(tmp_path / "metrics.jsonl", Bar(), [], "cpu")
    log.add(step_of(1, 3.0))
    log.restart_clock()
    log.add(step_of(2, 3.0))
    log.add(step_of(3, 3.0))
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["tokens_per_s"] for r in records] == [50, 20, 25]
    assert [r["pairs_per_s"] for r in records] == [1, 0.4, 0.5]
    assert {(r["lr"], r["peak_memory_gb"]) for r in records} == {(1e-3, 0.5)}
    assert log.bar.fields == {"loss": "2", "pairs/s": "0.5"}


def test_what_stands_behind_the_bar():
    record = {"rewards/accuracies": 0.75, "rewards/margins": 1.25, "pairs_per_s": 8.0}
    show(bar := Bar(), {"loss": 0.5, **record})
    assert bar.fields == {"loss": "0.5", "acc": "0.75", "margin": "1.25", "pairs/s": "8"}


def test_a_step_that_is_no_number_is_named_and_not_written(tmp_path):
    class Pair:
        source = "pairs.jsonl:3"

    log = StepLog(tmp_path / "metrics.jsonl", Bar(), [Pair, Pair], "cpu")
    broken = step_of(7, math.nan)
    assert broken.means.not_finite().item() == 1.0
    assert step_of(7, 1.0).means.not_finite().item() == 0.0
    assert step_of(7, 1.0, math.inf).means.not_finite().item() == 1.0
    with pytest.raises(ValueError, match=r"step 7: loss nan.*1 pairs: pair 0 \(pairs.jsonl:3\)"):
        log.add(broken)
    assert not read_records(tmp_path / "metrics.jsonl")


def test_three_pairs_of_a_broken_step_are_named(tmp_path):
    step = step_of(7, 1.0)
    step.means.add({"loss": torch.full((4,), math.nan)}, [2, 3, 4, 5])
    data = [SimpleNamespace(source=f"pairs.jsonl:{i + 1}") for i in range(6)]
    with pytest.raises(ValueError, match=r"; 4 pairs: pair 2 \(pairs.jsonl:3\)") as caught:
        StepLog(tmp_path / "metrics.jsonl", Bar(), data, "cpu").add(step)
    assert "; pair 4 (pairs.jsonl:5)" in str(caught.value) and "pair 5" not in str(caught.value)


def test_every_number_of_an_evaluation_has_its_title():
    names = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
             "entropy", "guarded", "mass/policy")  # fmt: skip
    record = {"step": 30} | {f"eval/{name}": i / 2 for i, name in enumerate(names)}
    assert evaluation_line(record) == (
        "step   30 held-out: loss 0.000, accuracy 0.500, margin 1.000, chosen logp 1.500, "
        "rejected logp 2.000, entropy 2.500, guarded 3.000, answer mass 3.500"
    )


def test_table_and_warning():
    first = {"step": 0, "eval/loss": 0.7, "eval/mass/policy": 0.9, "eval/mass/reference": 0.9}
    kept = {**first, "step": 10, "eval/loss": 0.5, "eval/mass/policy": 0.85}
    assert "warning" not in before_and_after(first, kept)
    for mass, warns in ((0.82, False), (0.80, True)):  # 0.9 * 0.9 is 0.81
        assert ("warning" in before_and_after(first, {**kept, "eval/mass/policy": mass})) == warns
    drained = {**kept, "eval/mass/policy": 0.2}
    table = before_and_after(first, drained)
    assert "held 0.900 of the reference's" in table and "hold 0.200 of the policy's" in table
    row = next(line for line in table.splitlines() if line.startswith("loss"))
    assert row.split() == ["loss", "0.7000", "0.5000"]
    assert evaluation_line(kept) == "step   10 held-out: loss 0.500, answer mass 0.850"
