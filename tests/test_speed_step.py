"""eval/speed_step.py: every layout gives the same numbers, its rows are those that are counted, and
the products that are replayed are those that were made.

No test here looks at a clock. python -m pytest tests/test_speed_step.py
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval import speed_step
from eval.speed_step import ProductRecorder, SpeedStepConfig, lay_out, run_variant
from eval.speed_work import LAYOUTS, count_rows, step_flop
from model.architecture import read_model_config
from model.checkpoint import init_weights
from model.transformer import ModelConfig, Transformer
from tests.conftest import ROOT
from tests.test_transformer import SIZES, padded_logps, random_pairs

OURS = [name for name in LAYOUTS if not name.startswith("trl") and name != "compiled"]
TINY = str(ROOT / "data" / "tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No rate is looked at twice; the threads of this process are put back."""
    monkeypatch.setattr(speed_step, "matrix_rate", lambda dtype, device: 1.0)
    monkeypatch.setattr(speed_step, "REPLAYS", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", OURS)
def test_layouts_give_the_definitions_numbers_and_the_counted_rows(name):
    config = ModelConfig(97, 32, 48, 2, 4, 2, 8, initializer_range=0.3)
    model = Transformer(config)
    init_weights(model, 0)
    model = model.double()
    pairs, layout = random_pairs(97, SIZES), LAYOUTS[name]
    batch = lay_out(pairs, layout)
    with torch.no_grad():
        sums = batch.sum_by_sequence(model(batch=batch).logps)[: 2 * len(pairs)]
        torch.testing.assert_close(sums, padded_logps(model, pairs), rtol=0, atol=1e-9)
    rows = count_rows(SIZES, layout)
    assert (rows.blocks, rows.head) == (len(batch.input_ids), len(batch.predictors))
    seen = sum(n * (n + 1) // 2 + n * (p1 - p0)
               for n, p0, p1 in ((b - a, p0, p1) for a, b, p0, p1 in batch.segments))  # fmt: skip
    assert rows.seen == seen
    assert len(batch) == len(pairs)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("speed") / "pairs.json"
    speed_step.write_token_pairs(random_pairs(500, SIZES[:4], seed=1), path)
    return str(path)


def test_pairs_survive_the_file(pairs_file):
    for one, two in zip(
        random_pairs(500, SIZES[:4], seed=1), speed_step.read_token_pairs(pairs_file), strict=True
    ):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert getattr(one, name).tolist() == getattr(two, name).tolist()


@pytest.fixture(scope="module")
def config(pairs_file) -> SpeedStepConfig:
    """Two steps of two pairs from a learning rate that moves the second loss."""
    return SpeedStepConfig(
        model=TINY, pairs=pairs_file, batch_size=2, learning_rate=1e-2, threads=1
    )


@pytest.fixture(scope="module")
def ours(config) -> dict:
    return run_variant(config)


@pytest.mark.parametrize("name", OURS[1:])
def test_all_variants_have_the_same_losses(name, config, ours):
    dtype = "bfloat16" if name == "bfloat16" else "float32"
    result = run_variant(replace(config, variant=name, dtype=dtype))
    assert len(result["losses"]) == len(result["seconds"]) == len(result["cpu_seconds"]) == 2
    assert ours["losses"][0] == pytest.approx(0.693147, abs=1e-5)
    assert abs(ours["losses"][1] - 0.693147) > 1e-2
    tolerance = 0.1 if name == "bfloat16" else 1e-4
    assert result["losses"] == pytest.approx(ours["losses"], rel=tolerance)


def test_checkpointing_changes_no_loss(config, ours):
    result = run_variant(replace(config, activation_checkpointing=True))
    assert result["losses"] == pytest.approx(ours["losses"], rel=1e-5)


def test_memory_by_part(ours):
    """Trained state: 4 layers of 16 * (3 * 256 + 256 + 2 * 472 + 472) floats, times four."""
    memory = ours["memory"]
    assert memory["trained_state"] == 4 * 4 * 4 * 16 * (4 * 256 + 3 * 472)
    weights = 512 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 344 + 2 * 128) + 128
    assert memory["weights"] == 4 * weights
    if ours["peak_bytes"] is not None:
        assert sum(memory.values()) == ours["peak_bytes"]
        assert memory["program"] > 0 and memory["activations"] > 0


def test_recorder_sees_every_product():
    """Forward (2, 3) x (3, 5) and, for the weight alone, backward (5, 2) x (2, 3)."""
    x, weight = torch.randn(2, 3), torch.randn(5, 3, requires_grad=True)
    with ProductRecorder() as recorder:
        torch.nn.functional.linear(x, weight).sum().backward()
        torch.bmm(torch.ones(4, 2, 3), torch.ones(4, 3, 6))
        torch.addmm(torch.ones(7), torch.ones(2, 8), torch.ones(8, 7))
    shapes = {tuple(operand[0] for operand in product) for product in recorder.products}
    assert ((2, 3), (3, 5)) in shapes
    assert ((4, 2, 3), (4, 3, 6)) in shapes and ((2, 8), (8, 7)) in shapes
    assert len(recorder.products) == 4


def test_replay_counts_by_hand():
    """2 * 2 * 3 * 5, 2 * 4 * 2 * 3 * 6, and three products of a head of 7 rows, width 4, V = 10."""
    model = Transformer(ModelConfig(10, 4, 6, 1, 2, 1, 2))
    f = torch.float32
    products = [
        (((2, 3), (3, 1), f), ((3, 5), (1, 3), f)),  # the second transposed
        (((4, 2, 3), (6, 3, 1), f), ((4, 3, 6), (0, 6, 1), f)),  # and one of them expanded
    ]
    bare = speed_step.replay(products, model, 7, False, f, "cpu")
    assert bare["flop"] == 60 + 288 + 3 * 2 * 7 * 4 * 10
    assert bare["seconds"] > 0
    assert speed_step.replay([], model, 7, True, f, "cpu")["flop"] == 2 * 2 * 7 * 4 * 10


def test_recorded_products_are_the_counted_ones(config, ours):
    """Blocks, adapters and head; less what the first block's embedding has no gradient for."""
    layout = LAYOUTS["ours"]
    counted = step_flop(read_model_config(TINY), count_rows(SIZES[2:4], layout), 16, False)
    flop = sum(counted[part] for part in ("blocks", "adapters", "head"))
    assert 0.95 * flop < ours["bare"]["flop"] <= flop


def test_command(pairs_file, tmp_path: Path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "eval.speed_step", "--model", TINY, "--pairs", pairs_file]
    command += ["--variant", "no_packing", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert len(result["losses"]) == 1 and result["matrix_rate"] > 0
