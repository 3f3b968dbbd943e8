"""eval/speed_decode.py: what each engine draws, the bounds against what the model multiplies.

No test here looks at a clock. python -m pytest tests/test_speed_decode.py
"""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from eval import speed_decode
from eval.speed_decode import Drawn, draw_ours, draw_transformers, load_ours
from model.cache import Row
from model.checkpoint import init_weights
from model.generate import decode_one_token, prefill
from model.linear import Linear
from model.transformer import ModelConfig, Transformer
from tests.conftest import ROOT

STOPS = [464, 500]  # the first is frequent, the second is not


def make_job(lengths=(3, 9, 5), **fields) -> dict:
    rng = np.random.default_rng(0)
    job = {
        "prompts": [rng.integers(512, size=length).tolist() for length in lengths],
        "stop_ids": STOPS,
        "n": 4,
        "dtype": "float32",
        "model": str(ROOT / "data" / "tiny"),
        "max_new_tokens": 20,
        "hf_batch": 5,
        "cache_bytes": 10**9,
        "threads": 1,
        "device": "cpu",
        "seed": 0,
    }
    return job | fields


def tiny() -> Transformer:
    """2 layers, 6 heads of 4 on 2 key heads: linear layers of 24 x 24, 8 x 24, 40 x 24, ..."""
    model = Transformer(ModelConfig(50, 24, 40, 2, 6, 2, 4))
    init_weights(model, 0)
    return model.eval()


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("transformers")
    return speed_decode.load_transformers(make_job())


# ------------------------------------------------------------------------------------------------
# drawing


def check_ends(drawn: Drawn, job: dict) -> None:
    """Each completion ends with its first stop token, or at 20 tokens; both kinds are there."""
    assert len(drawn.ids) == len(job["prompts"]) * job["n"]
    for ids in drawn.ids:
        inner, last = set(ids[:-1]), ids[-1]
        assert not inner & set(STOPS)
        assert last in STOPS or len(ids) == 20
    lengths = set(map(len, drawn.ids))
    assert 20 in lengths and min(lengths) < 20


def test_ours_ends_at_stop_tokens():
    """12 rows fit one batch: few steps beyond the 20 of the longest, as a row may have to wait."""
    job = make_job()
    drawn = draw_ours(load_ours(job), job)
    check_ends(drawn, job)
    assert 20 <= drawn.steps < 30


def test_transformers_ends_at_stop_tokens(peer):
    """12 rows in batches of 5: 3 batches, each of 20 steps at most and more than 1."""
    job = make_job()
    drawn = draw_transformers(peer, job)
    check_ends(drawn, job)
    assert 3 < drawn.steps <= 60


def test_transformers_does_not_see_its_padding(peer):
    """Almost greedy, behind prompts of 2 and 30 tokens: the same in one batch and in two."""
    before = peer.generation_config.temperature
    peer.generation_config.temperature = 1e-4
    peer.generation_config.eos_token_id = None
    job = make_job((2, 30), n=1, stop_ids=[])
    try:
        one, two = (draw_transformers(peer, job | {"hf_batch": size}).ids for size in (2, 1))
    finally:
        peer.generation_config.temperature = before
        peer.generation_config.eos_token_id = STOPS
    assert one == two and one[0] != one[1]
    greedy = load_ours(job)
    assert one[0][0] == int(greedy(torch.tensor([job["prompts"][0]]))[0, -1].argmax())


def test_transformers_draws_from_the_whole_vocabulary(peer):
    """Its defaults keep the 50 most probable tokens; 4000 draws find many more, as ours do."""
    job = make_job((9,), n=4000, max_new_tokens=1, hf_batch=4000)
    ours = {ids[0] for ids in draw_ours(load_ours(job), job).ids}
    theirs = {ids[0] for ids in draw_transformers(peer, job).ids}
    assert min(len(ours), len(theirs)) > 60, (len(ours), len(theirs))


def test_up_to_stop():
    assert speed_decode.up_to_stop([5, 6, 7, 0, 0], {7, 6}) == [5, 6]
    assert speed_decode.up_to_stop([7], {7}) == [7]
    assert speed_decode.up_to_stop([1, 2], {7}) == speed_decode.up_to_stop([1, 2], set()) == [1, 2]


def test_stop_tokens_come_as_often_as_asked():
    """32 probes of 20 tokens are 640; one in 40 of them is 16, and no chosen token has more."""
    job = make_job([10] * 32)
    chosen = speed_decode.choose_stop_ids(job, 40.0)
    probe = np.concatenate(draw_ours(load_ours(job), job | {"n": 1, "stop_ids": []}).ids)
    assert len(probe) == 640 and np.isin(probe, chosen).sum() == 16
    assert chosen == sorted(set(chosen)) and chosen != speed_decode.choose_stop_ids(
        job | {"seed": 1}, 40.0
    )


# ------------------------------------------------------------------------------------------------
# bounds


def test_step_products_are_those_of_the_decode_step():
    """Which layers compute in a step of 16 new tokens, and of how many rows each."""
    model, fed = tiny(), []
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            note = partial(lambda name, layer, x: fed.append((name, x[0].numel())), name)
            layer.register_forward_pre_hook(note)
    with torch.inference_mode():
        cache = model.new_cache(pages=20)
        prompt, _ = prefill(model, [1, 2, 3], cache)
        cache.set_rows([Row(prompt) for _ in range(16)])
        fed.clear()
        decode_one_token(model, torch.arange(16), cache)
        step = list(fed)
        fed.clear()
        speed_decode.step_products(model, 16)()
    assert fed == step and len(fed) == 2 * 7 + 1


def test_least_bytes_by_hand():
    """2 prompts of 3 and 5 tokens, completions of 1, 4 and 2, 2 tokens, in 4 steps.

    Own tokens met: 0 + (1 + 2 + 3) + 1 + 1 = 8. Prompts: 3 x 3 steps + 5 x 1 = 14. A token has
    keys and values of 2 layers x 2 heads x 4 in float32, 128 bytes: 22 x 128 = 2816. A step's
    weights: 2 layers of 2 x 24 x 24 + 2 x 8 x 24 + 3 x 40 x 24 = 4416, a head of 50 x 24 = 1200:
    10032 numbers, 40128 bytes.
    """
    model = tiny()
    drawn = Drawn([[1], [1, 2, 3, 4], [1, 2], [3, 4]], 4)
    job = {"prompts": [[1] * 3, [2] * 5], "n": 2}
    assert speed_decode.least_bytes(model, job, drawn) == 4 * 40128 + 2816
    model.bfloat16()  # half the weights; the cache stays in float32
    assert speed_decode.least_bytes(model, job, drawn) == 4 * 20064 + 2816


def test_bounds_by_hand(monkeypatch):
    """9 tokens in 4 steps of 0.5 s: 4.5 tokens/s; 163328 bytes at 326656 a second: 18 tokens/s.

    2.25 rows a step, of which the engine makes 8.
    """
    asked = []
    monkeypatch.setattr(speed_decode, "best_seconds", lambda run, device: 0.5)
    monkeypatch.setattr(speed_decode, "copy_rate", lambda device: 2.0 * 163328)
    monkeypatch.setattr(speed_decode, "step_products", lambda model, rows: asked.append(rows))
    drawn = Drawn([[1], [1, 2, 3, 4], [1, 2], [3, 4]], 4)
    job = {"prompts": [[1] * 3, [2] * 5], "n": 2, "device": "cpu"}
    assert speed_decode.bounds(tiny(), job, drawn) == {"bare_rate": 4.5, "copy_rate": 18.0}
    assert asked == [8]


def test_identical_share_counts_completions():
    """On CPU all are the same in a smaller batch; with one of three changed, 2 of 3 are."""
    job = make_job()
    model = load_ours(job)
    drawn = draw_ours(model, job)
    assert speed_decode.identical_share(model, job, drawn) == 1.0
    drawn.ids[4][-1] += 1
    assert speed_decode.identical_share(model, job, drawn) == pytest.approx(2 / 3)


def test_alone_it_names_the_command():
    command = [sys.executable, "-m", "eval.speed_decode"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "python -m eval.speed generate" in done.stderr
