"""eval/speed_report.py: rates, ratios, factors and flags from turns made by hand.

python -m pytest tests/test_speed_report.py
"""

import copy

import pytest

from eval import speed_report
from eval.speed_report import Run, break_down, notes, summarize, table
from eval.speed_work import Layout, total_flop, work_factors
from model.transformer import ModelConfig

CONFIG = ModelConfig(10, 4, 6, 2, 2, 1, 2)
STEPS = [[(9, 9, 9)], [(3, 2, 1), (1, 7, 1)], [(5, 5, 5), (2, 9, 4)]]  # the first warms up
RUN = Run(CONFIG, 3, STEPS, "float32", "cpu")


def turn(seconds: list[float], losses: list[float], **more) -> dict:
    memory = {"weights": 2**20, "trained_state": 2 * 2**20}
    base = {"begin_bytes": 1, "peak_bytes": 100, "matrix_rate": 1e4, "memory": memory}
    base |= {"seconds": seconds, "cpu_seconds": [s / 2 for s in seconds], "losses": losses}
    return base | more


BARE = {"bare": {"seconds": 0.5, "flop": 1000}}
TURNS = {
    "ours": [
        turn([9.0, 1.0, 2.0], [0.7, 0.6, 0.5], **BARE),
        turn([9.0, 3.0, 2.0], [0.7, 0.6, 0.5], **BARE),
    ],
    "trl": [
        turn([9.0, 6.0, 8.0], [0.7, 0.6, 0.5], peak_bytes=300),
        turn([9.0, 6.0, 8.0], [0.7, 0.6, 0.5001], peak_bytes=250, matrix_rate=2e4),
    ],
}


def test_rates_and_ratios_by_hand():
    """Steps of ours: median(1, 3) + 2 = 4 s for 4 pairs of 6 + 9 + 15 + 15 tokens; trl's: 14 s."""
    results = summarize(RUN, TURNS)
    ours, trl = results["ours"], results["trl"]
    assert ours["pairs_per_s"] == 1.0 and trl["pairs_per_s"] == pytest.approx(4 / 14)
    assert ours["pair_tokens_per_s"] == 45 / 4
    assert ours["seconds"] == {"median": 2.0, "low": 1.75, "high": 2.25}
    assert ours["cpu_seconds"]["median"] == 1.0
    assert trl["time_ratio"] == pytest.approx(3.5) and trl["memory_ratio"] == 3.0
    flop = total_flop(CONFIG, STEPS[1:], 3, Layout())
    assert ours["flop_per_step"] == flop / 2
    assert ours["mfu"] == pytest.approx(flop / 4 / 2e4)  # the best rate that any process measured
    last = total_flop(CONFIG, STEPS[2:], 3, Layout())
    assert ours["share_of_bare"] == pytest.approx((last / 2.0) / (1000 / 0.5))
    assert trl["share_of_bare"] is None
    assert ours["flop_per_s"] == pytest.approx(flop / 4)
    # rows: (3 + 2 + 1) + (1 + 7 + 1) and 15 + 15; padded, four of 8 and four of 11
    assert ours["rows_per_step"] == (15 + 30) / 2 and trl["rows_per_step"] == (32 + 44) / 2
    # of ours meet the head 2 + 1 + 7 + 1 and 5 + 5 + 9 + 4; of trl's are no padding 19 and 37
    assert ours["head_rows_per_step"] == (11 + 23) / 2
    assert trl["tokens_per_s"] == pytest.approx((19 + 37) / 14)


def test_the_order_of_the_turns_does_not_matter():
    """The best rate of a product, 2e4, and the most memory, 300 bytes, may be of any turn."""
    results = summarize(RUN, {name: some[::-1] for name, some in reversed(TURNS.items())})
    assert results["ours"]["peak_flop_per_s"] == 2e4 and results["trl"]["peak_bytes"] == 300


def test_each_step_counts_by_its_own_median():
    """Steps of 1, 2, 6 s and of 5, 2, 1 s: 2 + 2 s for 4 pairs. The median of the sums is 6 s."""
    some = [turn([9.0, *s], [0.7, 0.6, 0.5], **BARE) for s in ((1.0, 5.0), (2.0, 2.0), (6.0, 1.0))]
    ours = summarize(RUN, {"ours": some})["ours"]
    assert ours["pairs_per_s"] == 1.0
    last = total_flop(CONFIG, STEPS[2:], 3, Layout())
    assert ours["share_of_bare"] == pytest.approx((last / 2.0) / (1000 / 0.5))


def test_units_of_what_is_printed():
    """50 and 100 MiB; a step of `flop` operations in 0.5 us is 2 flop / 1e3 GFLOP/s."""
    memory = {"weights": 50 * 2**20, "trained_state": 100 * 2**20}
    flop = total_flop(CONFIG, STEPS[2:], 3, Layout())
    run = Run(CONFIG, 3, [STEPS[0], STEPS[2]], "float32", "cpu")
    one = turn([9.0, 5e-7], [0.7, 0.6], memory=memory, peak_bytes=150 * 2**20, **BARE)
    results = summarize(run, {"ours": [one]})
    cells = [cell.strip() for cell in table(results).splitlines()[2].split("|")]
    assert "150" in cells and f"{flop / 500:.4g}" in cells
    assert "ours, MiB at the peak: weights 50, trained state 100" in notes(results, {}, {})


def test_factors_multiply_to_the_time():
    results = summarize(RUN, TURNS)
    factors = break_down(RUN, results)["trl / ours"]
    parts = work_factors(CONFIG, STEPS[1:], 3, RUN.layout_of("trl"))
    assert {name: factors[name] for name in parts} == parts
    assert factors["time"] == pytest.approx(3.5)
    assert factors["work"] * factors["efficiency"] == pytest.approx(3.5)
    assert factors["work"] == pytest.approx(results["trl"]["work_ratio"])
    ours = summarize(RUN, {"trl": TURNS["trl"]})
    assert break_down(RUN, ours) == {}  # nothing to compare with


def test_other_losses_are_flagged():
    """2e-4 relative is too much in float32, and nothing in bfloat16."""
    results = summarize(RUN, TURNS)
    assert results["ours"]["losses_agree"] and not results["trl"]["losses_agree"]
    assert results["trl"]["loss_deviation"] == pytest.approx(2e-4)
    text = "\n".join([table(results), *notes(results, break_down(RUN, results), {"cached": "so"})])
    assert "| 2e-04 ! |".replace(" ", "") in text.replace(" ", "")
    assert "warning: trl has other losses than ours" in text
    assert "cached is left out: so" in text and "largest deviation of a loss: 2e-04" in text
    renamed = {"ours": TURNS["ours"], "bfloat16": copy.deepcopy(TURNS["trl"])}
    for some in renamed["bfloat16"]:
        some.update(BARE)
    assert summarize(RUN, renamed)["bfloat16"]["losses_agree"]


def test_without_memory_there_are_dashes():
    turns = copy.deepcopy(TURNS)
    for some in turns.values():
        for one in some:
            one["peak_bytes"] = None
    results = summarize(RUN, turns)
    assert results["trl"]["memory_ratio"] is None and results["ours"]["peak_bytes"] is None
    assert table(results).splitlines()[2].count(" - |") == 2


def test_peak_rates(monkeypatch):
    monkeypatch.setattr(speed_report, "device_name", lambda device: "NVIDIA H200 NVL")
    assert speed_report.peak_rate("bfloat16", "cuda", 5.0) == (989e12, "data sheet")
    assert speed_report.peak_rate("float32", "cuda", 5.0)[0] == 5.0
    monkeypatch.setattr(speed_report, "device_name", lambda device: "another")
    assert speed_report.peak_rate("bfloat16", "cuda", 5.0)[0] == 5.0


def test_trls_head_takes_completions_alone_through_triton(monkeypatch):
    assert RUN.layout_of("trl").whole_head
    monkeypatch.setattr(speed_report, "installed", lambda package: "3.5")
    cuda = Run(CONFIG, 3, STEPS, "bfloat16", "cuda")
    assert not cuda.layout_of("trl").whole_head and cuda.layout_of("all_off").whole_head
