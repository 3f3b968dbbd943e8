"""eval/speed_trl.py: trl's trainer on our ids and our adapter has our losses.

python -m pytest tests/test_speed_trl.py
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed")

from eval import speed_trl
from eval.speed_step import SpeedStepConfig, build_policy, run_variant, write_token_pairs
from model.adapter import save_adapter
from tests.conftest import ROOT
from tests.test_transformer import SIZES, random_pairs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' of itself


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SpeedStepConfig:
    folder = tmp_path_factory.mktemp("trl")
    write_token_pairs(random_pairs(500, SIZES[:4], seed=1), folder / "pairs.json")
    config = SpeedStepConfig(
        model=str(ROOT / "data" / "tiny"),
        pairs=str(folder / "pairs.json"),
        adapter=str(folder / "adapter"),
        batch_size=2,
        learning_rate=1e-2,
        threads=1,
    )
    save_adapter(build_policy(config, torch.float32, "cpu"), folder / "adapter", config.model)
    return config


@pytest.fixture(scope="module")
def ours(config) -> dict:
    return run_variant(config)


@pytest.mark.parametrize("name", ["trl", "trl_cached"])
def test_losses_are_ours(name, config, ours):
    """Of two steps: ln 2, and one that Adam's first update at a high rate has moved."""
    before = torch.get_num_threads()
    try:
        theirs = run_variant(replace(config, variant=name))
    finally:
        torch.set_num_threads(before)
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-3)
    assert abs(theirs["losses"][1] - theirs["losses"][0]) > 1e-2
    assert len(theirs["seconds"]) == len(theirs["cpu_seconds"]) == 2
    assert min(theirs["seconds"]) > 0
    if theirs["peak_bytes"] is not None:
        assert theirs["peak_bytes"] >= theirs["begin_bytes"] > 0


def test_options_of_other_versions_are_left_out(config, tmp_path: Path):
    args = speed_trl.dpo_config(replace(config, variant="trl_cached"), 3, str(tmp_path))
    assert args.precompute_ref_log_probs and not args.gradient_checkpointing
    assert (args.max_steps, args.per_device_train_batch_size, args.beta) == (3, 2, 0.1)
