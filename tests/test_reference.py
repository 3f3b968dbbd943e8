"""The reference policy: adapters off, and a cache whose key holds all that it depends on.

pytest tests/test_reference.py
"""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data.packing import epoch_batches, pack_pairs
from data.pairs import TokenPair
from model.lora import add_lora
from model.reference import (
    cached_reference_logps,
    hash_weights,
    reference_key,
    reference_logps,
)
from tests.test_lora import scatter, small_model
from tests.test_transformer import padded_logps, random_pairs

SIZES = [(3, 5, 2), (9, 1, 4), (1, 1, 7), (20, 8, 8)]


def test_reference_is_the_base_model():
    model, pairs = small_model(), random_pairs(97, SIZES)
    with torch.no_grad():
        base = padded_logps(model, pairs)
    add_lora(model, rank=4, alpha=8.0)
    scatter(model)
    batch = pack_pairs(pairs, [0, 1, 2, 3])
    reference = reference_logps(model, batch)
    assert not reference.requires_grad
    torch.testing.assert_close(reference, base, rtol=1e-5, atol=0)
    assert not torch.allclose(batch.sum_by_sequence(model(batch=batch).logps), base, rtol=1e-3)


def test_cache_is_written_by_pair_whatever_the_batches(tmp_path):
    model, pairs = small_model(), random_pairs(97, SIZES)
    with torch.no_grad():
        expected = padded_logps(model, pairs).view(2, 4).T
    for budget in (1, 30, 1000):
        batches = list(epoch_batches(pairs, budget))
        folder = tmp_path / str(budget)
        logps = cached_reference_logps(model, "weights", pairs, batches, folder, "cpu")
        torch.testing.assert_close(logps, expected, rtol=1e-5, atol=0)
        again = cached_reference_logps(
            model, "weights", pairs, [], folder, "cpu"
        )  # nothing is computed
        assert torch.equal(logps, again)


def test_a_cache_that_is_whole_and_not_what_was_written_is_computed_again(tmp_path, capsys):
    model, pairs = small_model(), random_pairs(97, SIZES)
    given = model, "weights", pairs, list(epoch_batches(pairs, 1000)), tmp_path, "cpu"
    logps = cached_reference_logps(*given)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, framework="pt") as reader:
        about = reader.metadata()
    save_file({"logps": logps + 1}, file, about)
    assert torch.equal(cached_reference_logps(*given), logps)
    assert "it is not what was written" in capsys.readouterr().out


def test_a_pair_that_no_batch_holds_is_noticed(tmp_path):
    model, pairs = small_model(), random_pairs(97, SIZES)
    batches = [pack_pairs(pairs[:3], [0, 1, 2])]
    with pytest.raises(AssertionError, match=r"computed other than once: \[\[3\]\]"):
        cached_reference_logps(model, "weights", pairs, batches, tmp_path, "cpu")


def test_key_changes_with_all_that_the_numbers_depend_on():
    pairs = random_pairs(97, SIZES)
    model = small_model()
    weights = hash_weights(model)
    key = reference_key(weights, pairs)
    assert key == reference_key(hash_weights(small_model()), random_pairs(97, SIZES))
    others = {reference_key(weights, pairs[:3]), reference_key(weights, pairs[::-1])}
    others.add(reference_key(weights, random_pairs(97, SIZES, seed=1)))
    others.add(reference_key(hash_weights(small_model(1)), pairs))
    others.add(reference_key(hash_weights(small_model().bfloat16()), pairs))
    model.compute_dtype = torch.bfloat16
    others.add(reference_key(hash_weights(model), pairs))
    assert len(others) == 6 and key not in others
    ids = np.array([1, 2, 3, 4], dtype=np.int32)
    cuts = [TokenPair(ids[:i], ids[i:3], ids[3:], "made") for i in (1, 2)]
    assert reference_key(weights, cuts[:1]) != reference_key(weights, cuts[1:])


def test_adapters_are_not_part_of_the_reference():
    model = small_model()
    weights = hash_weights(model)
    add_lora(model, rank=4, alpha=8.0)
    one = hash_weights(model)
    scatter(model)
    assert hash_weights(model) == one == weights


def test_the_adapters_are_part_of_the_policy():
    model = small_model()
    add_lora(model, rank=4, alpha=8.0)
    one = hash_weights(model, adapters=True)
    assert one == hash_weights(model, adapters=True) != hash_weights(model)
    scatter(model)
    other = hash_weights(model, adapters=True)
    assert other != one
    model.lm_head.weight.data[0, 0] += 1
    assert hash_weights(model, adapters=True) not in (one, other)
