"""The policy before its first step: dtypes, what is trained, what its numbers are.

What ranks hold of it is in tests/test_parallel.py. pytest tests/test_policy.py
"""

import pytest
import torch

from model.adapter import save_adapter
from model.checkpoint import load_model
from model.lora import add_lora
from model.policy import fill_policy, shape_policy
from tests.conftest import ROOT
from tests.test_lora import scatter

TINY = str(ROOT / "data" / "tiny")
IDS = torch.tensor([[1, 5, 9, 7]])


def build(dtype=torch.float32, rank=2, adapter=None, seed=0, folder=TINY, reward=False):
    model = shape_policy(TINY, dtype, rank, 4.0, reward=reward)
    fill_policy(model, folder, adapter, seed, dtype, "cpu")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_is_float32_and_what_is_frozen_has_the_load_dtype(dtype):
    """Adapters beside a frozen base; or all weights, computed in the load dtype."""
    for rank in (2, 0):
        model = build(dtype, rank)
        for name, parameter in model.named_parameters():
            trained = rank == 0 or ".lora_" in name
            assert parameter.requires_grad == trained
            assert parameter.dtype == (torch.float32 if trained else dtype), name
        assert model.compute_dtype == (dtype if rank == 0 else None)


def test_it_begins_as_the_checkpoint():
    """Fresh adapters add nothing, to the bit; another seed gives other matrices."""
    expected = load_model(TINY)(IDS)
    model, other = build(), build(seed=1)
    assert torch.equal(model(IDS), expected) and torch.equal(other(IDS), expected)
    matrices = [
        {name: p for name, p in m.named_parameters() if name.endswith("lora_A")}
        for m in (model, other, build())
    ]
    for name in matrices[0]:
        assert not torch.equal(matrices[0][name], matrices[1][name])
        assert torch.equal(matrices[0][name], matrices[2][name])


def test_an_adapter_is_merged_below_fresh_ones(tmp_path):
    model = load_model(TINY)
    add_lora(model, rank=2, alpha=4.0)
    scatter(model)
    save_adapter(model, tmp_path, TINY)
    merged = build(rank=3, adapter=tmp_path)
    torch.testing.assert_close(merged(IDS), model(IDS), rtol=0, atol=1e-3)
    assert not torch.allclose(merged(IDS), load_model(TINY)(IDS), atol=0.1)
    with pytest.raises(ValueError, match="--adapter needs --dtype float32"):
        build(torch.bfloat16, adapter=tmp_path)


def test_random_weights_are_drawn_by_the_seed():
    one, two, other = (build(rank=0, folder=None, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one(IDS), two(IDS)) and not torch.equal(one(IDS), other(IDS))
    for layer in (one.layers[0].mlp.up_proj, one.layers[0].mlp.down_proj,
                  one.layers[0].self_attn.o_proj):  # fmt: skip
        deviation = layer.weight.std().item()
        assert deviation == pytest.approx(one.config.initializer_range, rel=0.05)


def test_a_reward_model_trains_its_head_beside_the_adapters():
    model = build(reward=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in trained and all(".lora_" in n for n in trained - {"score.weight"})
    assert not model.score.weight.any(), "of a language model: zero"
