"""eval/speed_logps.py: every head gives the same numbers; ratios by hand; JSON and table.

No test here looks at a clock. python -m pytest tests/test_speed_logps.py
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from eval import speed_logps
from eval.speed_logps import SpeedLogpsConfig, head_flop, make_inputs, make_variants, naive
from model.config import parse_config

SMALL = SpeedLogpsConfig(rows=37, width=16, vocab=101, checked_rows=8)
WORDS = [
    "--threads",
    "1",
    "--rows",
    "37",
    "--width",
    "16",
    "--vocab",
    "101",
    "--device",
    "cpu",
    "--repeats",
    "2",
]
EAGER = [name for name in speed_logps.VARIANTS if name != "compiled"]


@pytest.fixture(autouse=True)
def threads():
    """The command pins the threads of this process; they are put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_flop_by_hand():
    """(2, 3) x (3, 5) takes 2 * 2 * 3 * 5 = 60; forward and backward twice that."""
    assert head_flop(2, 3, 5, 1) == 60
    assert head_flop(2, 3, 5, 2) == 120


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in EAGER if name != "bare"])
def test_all_heads_give_the_same_numbers(name, dtype):
    """Log-probabilities and gradient against float64; bfloat16 inputs are the same for all."""
    inputs = make_inputs(SMALL, dtype, "cpu")
    variants, skipped = make_variants([name], inputs)
    if skipped:
        pytest.skip(f"{name}: {skipped[name]}")
    exact = dtype == torch.float32
    wide = inputs.hidden.detach().double().requires_grad_()
    truth = naive(wide, inputs.weight.double(), inputs.targets)
    truth.backward(inputs.grad_logps.double())
    logps = variants[name].head(inputs.hidden, inputs.weight, inputs.targets)
    tolerance = {"rtol": 0, "atol": 2e-5 if exact else 0.1}
    torch.testing.assert_close(logps.double(), truth, **tolerance)
    variants[name].both()
    difference = (inputs.hidden.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert difference < (1e-5 if exact else 0.05)
    for value in speed_logps.errors(variants[name], inputs, 8).values():
        assert value < (2e-5 if exact else 0.1)
    assert inputs.hidden.grad is None  # memory is measured without one


def test_bare_products_are_those_of_a_head_without_a_softmax(monkeypatch):
    """Every chunk once: its logits, and (the logits taken for their gradient) back."""
    seen = []
    plain = speed_logps.chunks

    def watched(*args):
        for rows, logits in plain(*args):
            seen.append((rows, logits.shape))
            yield rows, logits

    monkeypatch.setattr(speed_logps, "chunks", watched)
    hidden, weight = torch.randn(300, 16), torch.randn(101, 16)
    speed_logps.bare_products(hidden, weight, True)
    assert sum(shape[0] for _, shape in seen) == 300 and {shape[1] for _, shape in seen} == {101}


def test_a_missing_variant_has_its_reason(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    inputs = make_inputs(SMALL, torch.float32, "cpu")
    variants, skipped = make_variants(["naive", "torch"], inputs)
    assert list(variants) == ["naive"] and "linear_cross_entropy" in skipped["torch"]


def run_main(words: list[str], out: Path) -> dict:
    speed_logps.main([*words, "--out", str(out)])
    return json.loads((out / "summary.json").read_text())


def test_command(tmp_path, capsys):
    summary = run_main([*WORDS, "--only", *EAGER], tmp_path)
    text = capsys.readouterr().out
    assert summary["task"] == "speed/logps" and summary["machine"]["threads"] == 1
    assert summary["settings"]["rows"] == 37 and summary["settings"]["dtype"] == "torch.float32"
    ran = [name for name in EAGER if name not in summary["skipped"]]
    assert list(summary["variants"]) == ran
    for name, result in summary["variants"].items():
        assert f"\n| {name} " in text
        assert result["turns"] == 2
        for part in ("forward", "both"):
            times = result[part]
            assert 0 < times["low"] <= times["median"] <= times["high"]
    variants = summary["variants"]
    assert variants["naive"]["time/naive"] == variants["bare"]["time/bare"] == 1.0
    ratio = variants["ours"]["both"]["median"] / variants["naive"]["both"]["median"]
    assert variants["ours"]["time/naive"] == pytest.approx(ratio)
    rate = 4 * 37 * 16 * 101 / variants["ours"]["both"]["median"]
    assert variants["ours"]["flop_per_s"] == pytest.approx(rate)
    assert variants["bare"]["logps_error"] is None
    assert all(rate > 0 for rate in summary["rates"].values())


def test_without_naive_there_is_no_ratio_to_it(tmp_path, capsys):
    summary = run_main([*WORDS, "--only", "ours"], tmp_path)
    ours = summary["variants"]["ours"]
    assert ours["time/naive"] is ours["time/bare"] is ours["memory/naive"] is None
    assert "| ours " in capsys.readouterr().out


def test_a_slow_variant_has_one_turn(tmp_path):
    summary = run_main([*WORDS, "--patience", "0", "--only", "naive", "ours"], tmp_path)
    assert [result["turns"] for result in summary["variants"].values()] == [1, 1]


def test_a_compiler_that_fails_is_said(tmp_path, capsys, monkeypatch):
    def compile(function):
        def fail(*args):
            raise RuntimeError("no compiler\nand much more")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    summary = run_main([*WORDS, "--only", "naive", "compiled"], tmp_path)
    assert summary["skipped"] == {"compiled": "no compiler"}
    assert "compiled is left out: no compiler\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "--rows expects 1 or more, got 0"),
        (["--dtype", "float16"], "--dtype expects float32 or bfloat16, got 'float16'"),
        (["--only", "mine"], "--only expects some of naive .*, got mine"),
        (["--threads", "0"], "--threads expects 1 or more"),
        (["--device", "tpu"], "--device tpu cannot be used"),
    ],
)
def test_bad_words(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        speed_logps.main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_defaults_are_smollm2s_head():
    config = parse_config(SpeedLogpsConfig, [])
    assert (config.rows, config.width, config.vocab) == (1024, 576, 49152)
