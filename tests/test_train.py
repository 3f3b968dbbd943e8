"""train.py end to end on small random models: what it trains, leaves, resumes and refuses.

pytest tests/test_train.py
"""

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sample
import train
from data.chat import stop_ids
from data.packing import pack_pairs, pack_step, step_indices
from data.pairs import TokenPair
from model import objective
from model.adapter import load_policy
from model.checkpoint import load_model
from model.config import parse_config
from model.flags import check_flags
from model.logbook import read_records
from model.lora import lora_layers
from model.objective import WITH_ALPHA
from model.run import write_run_config
from model.sampling import completion_seeds
from tests.conftest import ROOT
from tests.test_lora import scatter
from tests.test_transformer import random_pairs, save_witness
from train import (
    TrainConfig,
    build_policy,
    compute_losses,
    learning_rate,
    loss_normaliser,
    number_of_steps,
)

SHARD = "shard-00000-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    save_witness(tmp_path / "model", {"num_key_value_heads": 2, "initializer_range": 0.1})
    return tmp_path


def settings(folder: Path, **changes) -> TrainConfig:
    fields = {
        "model": str(folder / "model"),
        "out_dir": str(folder / "run"),
        "objective": "dpo",
        "batch_size": 4,
        "max_steps": 5,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "lora_rank": 4,
        "eval_every": 0,
        "save_every": 2,
    }
    fields |= changes
    if fields["objective"] in WITH_ALPHA:
        fields = {"alpha": 0.12} | fields
    config = TrainConfig(**fields)
    check_flags(config)
    return config


def run(config: TrainConfig, pairs: list[TokenPair], held_out: list[TokenPair] | None = None):
    """The loop on given token ids; returns the policy and its records."""
    out_dir = Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    model = build_policy(config, torch.float32, "cpu")
    train.train(config, model, pairs, held_out or [], out_dir, "cpu")
    return model, read_records(out_dir / "metrics.jsonl")


def pairs_of(count: int = 10, seed: int = 0) -> list[TokenPair]:
    sizes = np.random.default_rng(seed).integers(1, 30, size=(count, 3))
    return random_pairs(97, [tuple(row) for row in sizes.tolist()], seed)


def without_rejected(pairs: list[TokenPair]) -> list[TokenPair]:
    return [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids[:0], p.source) for p in pairs]


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_close(one: dict, two: dict, rtol: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=rtol, atol=rtol, msg=name)


# ------------------------------------------------------------------------------------------------
# the objective in the loop


DIVERGENCES = [
    {"divergence": "forward_kl"},
    {"divergence": "jensen_shannon"},
    {"divergence": "alpha", "divergence_order": 0.3},
]


@pytest.mark.parametrize("objective", ["dpo", "spl", "h_dpo", "ipo", "robust", "sft", "reward"])
def test_loss_falls(folder, objective):
    weight = {"h_dpo": {"alpha": 0.9}}.get(objective, {})
    config = settings(folder, objective=objective, max_steps=12, batch_size=8, **weight)
    pairs = pairs_of(8)
    if objective == "sft":
        pairs = without_rejected(pairs)
    _, records = run(config, pairs, pairs)
    first, last = (r["eval/loss"] for r in records if "eval/loss" in r)
    assert last < first
    assert [r["step"] for r in records] == [0, *range(1, 13), 12]


@pytest.mark.parametrize("flags", DIVERGENCES, ids=lambda flags: flags["divergence"])
def test_loss_of_f_dpo_falls_from_log_2(folder, flags):
    """Its margin is no difference of two terms: none are logged, and what the guard met is."""
    pairs = pairs_of(8)
    config = settings(folder, objective="f_dpo", max_steps=12, batch_size=8, **flags)
    _, records = run(config, pairs, pairs)
    first, last = (r for r in records if "eval/loss" in r)
    assert first["eval/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert last["eval/loss"] < first["eval/loss"] - 1e-3
    assert last["eval/rewards/accuracies"] > 0.5
    assert not any("terms/" in name for record in records for name in record)
    assert all(record["guarded"] == 0 for record in records if "guarded" in record)
    assert sum("guarded" in record for record in records) == 12 and last["eval/guarded"] == 0


def test_step_zero_of_dpo_is_log_2_and_of_spl_its_closed_form(folder):
    pairs = pairs_of()
    _, records = run(settings(folder, out_dir=str(folder / "a"), batch_size=10, max_steps=1), pairs)
    assert records[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert records[0]["rewards/margins"] == records[0]["rewards/accuracies"] == 0

    model = load_model(folder / "model")
    changes = {"objective": "spl", "alpha": 0.2, "batch_size": 10, "max_steps": 1}
    _, records = run(settings(folder, out_dir=str(folder / "b"), **changes), pairs)
    with torch.no_grad():
        logps = torch.tensor([
            [total_logp(model, p.prompt_ids, ids) for ids in (p.chosen_ids, p.rejected_ids)]
            for p in pairs
        ])  # fmt: skip
    margins = (0.2 - 0.1) * (logps[:, 0] - logps[:, 1])
    expected = torch.nn.functional.softplus(-margins).mean().item()
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert records[0]["logps/chosen"] == pytest.approx(logps[:, 0].mean().item(), rel=1e-5)
    assert records[0]["terms/reference"] == pytest.approx(
        0.1 * (logps[:, 0] - logps[:, 1]).mean().item(), rel=1e-4, abs=1e-5
    )


def total_logp(model, prompt, completion) -> float:
    whole = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    logps = model(whole)[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None]).squeeze(1)
    return logps[len(prompt) - 1 :].sum().item()


def test_what_is_logged_of_a_batch_by_hand(folder):
    """The first batch of seed 3, which is not that of seed 0: lengths, and how often a completion's
    token is the likeliest one."""
    pairs = pairs_of()
    _, (record,) = run(settings(folder, seed=3, max_steps=1, batch_size=4), pairs)
    own, other = (step_indices(0, len(pairs), 4, seed) for seed in (3, 0))
    batch = [pairs[i] for i in own]
    assert sorted(own) != sorted(other)
    assert record["lengths/chosen"] == sum(len(p.chosen_ids) for p in batch) / 4
    assert record["lengths/rejected"] == sum(len(p.rejected_ids) for p in batch) / 4
    model, hits = load_model(folder / "model"), []
    for pair in batch:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            whole = torch.from_numpy(np.concatenate([pair.prompt_ids, ids]).astype(np.int64))[None]
            with torch.no_grad():
                likeliest = model(whole)[0, len(pair.prompt_ids) - 1 : -1].argmax(-1)
            hits += (likeliest == whole[0, len(pair.prompt_ids) :]).tolist()
    tokens = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in batch)
    assert record["tokens_per_s"] / record["pairs_per_s"] == pytest.approx(tokens / 4)
    assert record["token_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert 0 < sum(hits) < len(hits) / 2  # and its complement is not


def test_the_reference_s_mass_stays_and_the_policy_s_moves(folder, monkeypatch):
    """All pairs taken as closed; each completion is one token."""
    monkeypatch.setattr(objective, "CLOSED", 0.0)
    pairs = random_pairs(97, [(3, 1, 1)] * 6)
    _, records = run(settings(folder, eval_every=5), pairs, pairs)
    first, last = (r for r in records if "eval/loss" in r)
    model = load_model(folder / "model")
    with torch.no_grad():
        mass = sum(math.exp(total_logp(model, p.prompt_ids, ids))
                   for p in pairs for ids in (p.chosen_ids, p.rejected_ids)) / 6  # fmt: skip
    for found in (first["eval/mass/policy"], first["eval/mass/reference"],
                  last["eval/mass/reference"]):  # fmt: skip
        assert found == pytest.approx(mass, rel=1e-5)
    assert last["eval/mass/policy"] != pytest.approx(mass, rel=1e-2)


def test_sft_loss_is_the_mean_over_the_tokens_of_the_batch(folder):
    pairs = without_rejected(pairs_of())
    changes = {"objective": "sft", "batch_size": 10, "max_steps": 1, "micro_batch_tokens": 40}
    _, records = run(settings(folder, **changes), pairs)
    model = load_model(folder / "model")
    with torch.no_grad():
        total = -sum(total_logp(model, p.prompt_ids, p.chosen_ids) for p in pairs)
    tokens = sum(len(p.chosen_ids) for p in pairs)
    assert records[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert records[0]["lengths/chosen"] == tokens / 10


@pytest.mark.parametrize("objective", ["spl", "sft"])
def test_micro_batches_do_not_change_the_step(folder, objective):
    """One micro-batch, or one for each pair: the same mean over the global batch."""
    pairs = pairs_of()
    if objective == "sft":
        pairs = without_rejected(pairs)
    finals = []
    for budget in (10_000, 1):
        changes = {"micro_batch_tokens": budget, "out_dir": str(folder / str(budget))}
        model, records = run(settings(folder, objective=objective, **changes), pairs)
        logged = [[record[name] for name in ("loss", "grad_norm")] for record in records]
        finals.append((trained(model), logged))
    assert_close(finals[0][0], finals[1][0], rtol=1e-4)
    for one, two in zip(finals[0][1], finals[1][1], strict=True):
        assert one == pytest.approx(two, rel=1e-4)


def test_a_short_last_step_is_a_mean_over_the_pairs_that_it_has(folder):
    """10 pairs in a batch of 10, and of 16: the same step."""
    norms = []
    for size in (10, 16):
        config = settings(folder, batch_size=size, max_steps=1, out_dir=str(folder / str(size)))
        norms.append(run(config, pairs_of(10))[1][0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0


def test_the_speed_of_a_short_step_counts_the_pairs_that_it_has(folder):
    """Pairs of 6 tokens: 4, 4 and 2 of them."""
    _, records = run(settings(folder, max_steps=3), random_pairs(97, [(3, 2, 1)] * 10))
    speeds = [record["tokens_per_s"] / record["pairs_per_s"] for record in records]
    assert speeds == pytest.approx([6, 6, 6])


def test_evaluations_and_checkpoints_are_no_part_of_a_step_s_time(folder, monkeypatch):
    """A step of 4 pairs takes a second; each checkpoint, after 2, 4 and 5, and each evaluation,
    after 0, 3 and 5, takes 100."""
    now = [0.0]
    monkeypatch.setattr("model.logbook.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds, real):
        def timed(*args):
            now[0] += seconds
            return real(*args)

        return timed

    for name, seconds in (("compute_losses", 1), ("evaluate", 100), ("save_training_state", 100)):
        monkeypatch.setattr(train, name, takes(seconds, getattr(train, name)))
    _, records = run(settings(folder, eval_every=3), pairs_of(8), pairs_of(3))
    assert [r["pairs_per_s"] for r in records if "loss" in r] == [4.0] * 5
    assert now[0] == 5 + 3 * 100 + 3 * (100 + 1)  # an evaluation computes losses too


def test_gradients_are_not_clipped_to_a_norm_of_0(folder):
    """--max_grad_norm 0 is none: the step is that of a norm beyond reach, and there is one."""
    made = []
    for norm in (0.0, 1e9):
        config = settings(folder, max_grad_norm=norm, max_steps=1, out_dir=str(folder / str(norm)))
        made.append(trained(run(config, pairs_of())[0]))
    assert_close(*made, rtol=0)
    assert any(value.any() for name, value in made[0].items() if "lora_B" in name)


def test_the_first_step_of_adamw_by_hand(folder):
    """Both moments are of one gradient g, and B starts at 0: it becomes -0.01 g / (|g| + 1e-8)."""
    changes = {"max_steps": 1, "warmup_steps": 0, "schedule": "constant", "max_grad_norm": 0.0}
    config, pairs = settings(folder, batch_size=10, **changes), pairs_of()
    model = build_policy(config, torch.float32, "cpu")
    (batch,) = pack_step(pairs, step_indices(0, 10, 10, config.seed), config.micro_batch_tokens)
    (compute_losses(config, model, batch, None)[0].sum() / 10).backward()
    end, small = trained(run(config, pairs)[0]), 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            g = parameter.grad
            torch.testing.assert_close(end[name], -0.01 * g / (g.abs() + 1e-8))
            small += ((g.abs() > 0) & (g.abs() < 1e-4)).sum().item()
    assert small > 10  # where another epsilon would show


def test_weight_decay_of_one_step_by_hand(folder):
    """B = 0 leaves A without a gradient: A becomes A - 0.01 * 1 * A, and stays without decay."""
    made = []
    for decay in (0.0, 1.0):
        changes = {"max_steps": 1, "warmup_steps": 0, "schedule": "constant"}
        changes |= {"weight_decay": decay, "out_dir": str(folder / str(decay))}
        made.append(trained(run(settings(folder, **changes), pairs_of())[0]))
    for name, plain in made[0].items():
        if "lora_A" in name:
            torch.testing.assert_close(made[1][name], 0.99 * plain)


def test_weight_decay_leaves_the_norms_alone(folder):
    """AdamW's decay adds to the step, whatever the gradient: matrices shrink, norms do not."""
    made = []
    for decay in (0.0, 1.0):
        changes = {"max_steps": 1, "warmup_steps": 0, "schedule": "constant", "objective": "sft"}
        changes |= {"weight_decay": decay, "out_dir": str(folder / str(decay)), "lora_rank": 0}
        config = settings(folder, **changes)
        made.append(trained(run(config, without_rejected(pairs_of()))[0]))
    start = trained(build_policy(config, torch.float32, "cpu"))
    for name, plain in made[0].items():
        expected = plain if plain.dim() == 1 else plain - 0.01 * start[name]
        torch.testing.assert_close(made[1][name], expected, msg=name)


def test_norms_follow_the_schedule_too(folder):
    """AdamW's first step has the length of the learning rate, here a tenth of 1e-2."""
    changes = {"max_steps": 1, "warmup_steps": 10, "objective": "sft", "lora_rank": 0}
    config = settings(folder, **changes)
    start = trained(build_policy(config, torch.float32, "cpu"))
    end = trained(run(config, without_rejected(pairs_of()))[0])
    for name in start:
        assert (end[name] - start[name]).abs().max() == pytest.approx(1e-3, rel=0.01), name


def test_the_reference_of_held_out_pairs_is_computed_once(folder, monkeypatch):
    """5 steps of one micro-batch each, six evaluations: the loop asks for the batches' alone."""
    asked, real = [], train.reference_logps
    monkeypatch.setattr(train, "reference_logps", lambda *a: asked.append(a) or real(*a))
    config = settings(folder, eval_every=1)
    _, records = run(config, pairs_of(), pairs_of(6, seed=1))
    assert len(asked) == 5
    evaluated = [r["eval/terms/reference"] for r in records if "eval/loss" in r]
    assert len(evaluated) == 6 and len(set(evaluated)) == 1


def test_a_run_that_ends_within_its_warm_up_says_so(folder, capsys):
    run(settings(folder, warmup_steps=6), pairs_of())
    assert "5 steps end within its --warmup_steps 6" in capsys.readouterr().out
    run(settings(folder, warmup_steps=5, out_dir=str(folder / "b")), pairs_of())
    assert "warmup" not in capsys.readouterr().out


def test_held_out_pairs_are_evaluated_without_dropout(folder):
    changes = {"objective": "sft", "lora_dropout": 0.5, "max_steps": 3}
    held_out = without_rejected(pairs_of(6, seed=1))
    config = settings(folder, **changes)
    model, records = run(config, without_rejected(pairs_of()), held_out)
    stats = model.eval()(batch=pack_pairs(held_out, list(range(6))))
    assert records[-1]["eval/loss"] == pytest.approx(-stats.logps.mean().item(), rel=1e-5)


def test_cached_reference_equals_online(folder):
    pairs = pairs_of()
    online, one = run(settings(folder, out_dir=str(folder / "a")), pairs, pairs)
    config = settings(folder, out_dir=str(folder / "b"), reference="cached")
    cached, two = run(config, pairs, pairs)
    assert_close(trained(online), trained(cached), rtol=1e-4)
    assert one[-1]["eval/loss"] == pytest.approx(two[-1]["eval/loss"], rel=1e-5)
    assert len(list((folder / "b" / "reference").glob("*.safetensors"))) == 1  # the same pairs


def test_runs_share_a_cache(folder, capsys):
    pairs, cache = pairs_of(), folder / "cache"
    for name in ("a", "b"):
        options = {"reference": "cached", "reference_cache": str(cache), "max_steps": 1}
        run(settings(folder, out_dir=str(folder / name), **options), pairs)
    out = capsys.readouterr().out
    assert "10 pairs cached in" in out and "10 pairs read from" in out
    assert len(list(cache.iterdir())) == 1 and not (folder / "a" / "reference").exists()


def test_the_adapters_a_run_starts_from_are_no_part_of_the_cache_s_name(folder, capsys):
    """Another seed draws other adapters, beside the same reference."""
    for seed in (0, 1):
        options = {"reference": "cached", "reference_cache": str(folder / "cache"), "seed": seed}
        run(settings(folder, out_dir=str(folder / str(seed)), max_steps=1, **options), pairs_of())
    assert "10 pairs read from" in capsys.readouterr().out


def test_cache_is_read_again_and_never_trusted_on_a_mismatch(folder, capsys):
    pairs = pairs_of()
    config = settings(folder, reference="cached", max_steps=1)
    run(config, pairs)
    run(config, pairs)
    assert "10 pairs read from" in capsys.readouterr().out
    file = max((folder / "run" / "reference").iterdir(), key=lambda f: f.stat().st_size)
    run(config, pairs[:9])
    assert "9 pairs cached in" in capsys.readouterr().out  # other pairs, another file
    file.write_bytes(file.read_bytes()[:-3])
    run(config, pairs)
    out = capsys.readouterr().out
    assert "it is corrupt" in out and "10 pairs cached in" in out


def test_full_fine_tuning_trains_every_weight(folder):
    changes = {"lora_rank": 0, "reference": "cached", "learning_rate": 1e-3, "max_steps": 3}
    model, records = run(settings(folder, **changes), pairs_of(), pairs_of())
    base = load_model(folder / "model")
    for (name, now), before in zip(model.named_parameters(), base.parameters(), strict=True):
        assert not torch.equal(now, before), name
    assert records[0]["eval/loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_sft_weight_adds_the_mean_likelihood(folder):
    pairs = pairs_of()
    changes = {"batch_size": 10, "max_steps": 1}
    _, plain = run(settings(folder, out_dir=str(folder / "a"), **changes), pairs)
    config = settings(folder, out_dir=str(folder / "b"), sft_weight=0.5, **changes)
    _, weighted = run(config, pairs)
    expected = plain[0]["loss"] + 0.5 * weighted[0]["terms/sft"]
    assert weighted[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_activation_checkpointing_changes_no_number(folder):
    one, _ = run(settings(folder, out_dir=str(folder / "a")), pairs_of())
    config = settings(folder, out_dir=str(folder / "b"), activation_checkpointing=True)
    two, _ = run(config, pairs_of())
    assert_close(trained(one), trained(two), rtol=0)


@pytest.mark.parametrize("rank", [4, 0])
def test_bfloat16_on_cpu_trains_float32_parameters(folder, rank):
    """Frozen weights load in bfloat16; what is trained, and the optimiser's state, are float32."""
    changes = {"lora_rank": rank, "reference": "cached", "max_steps": 3, "learning_rate": 1e-3}
    config = settings(folder, dtype="bfloat16", **changes)
    Path(config.out_dir).mkdir()
    model = build_policy(config, torch.bfloat16, "cpu")
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert kinds == {torch.float32} and frozen == ({torch.bfloat16} if rank else set())
    before = trained(model)
    train.train(config, model, pairs_of(), pairs_of(), Path(config.out_dir), "cpu")
    records = read_records(Path(config.out_dir) / "metrics.jsonl")
    assert records[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(r.get("loss", 0.0)) for r in records)
    assert any(not torch.equal(before[name], now) for name, now in trained(model).items())
    state = load_file(Path(config.out_dir) / "checkpoints" / "step-000002" / SHARD)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_an_adapter_to_start_from_is_the_reference(folder):
    """--adapter: merged into the base, so that the fresh adapter starts at margin 0; and what is
    saved in the end is one adapter of the original base."""
    first = settings(folder, out_dir=str(folder / "first"))
    one, _ = run(first, pairs_of())
    train.save_policy(first, one, None, None, folder / "first")
    second = settings(folder, out_dir=str(folder / "second"), adapter=str(folder / "first"))
    two, records = run(second, pairs_of(), pairs_of())
    assert records[0]["eval/rewards/margins"] == 0
    assert records[0]["eval/logps/chosen"] != pytest.approx(
        load_and_score(folder / "model", None), rel=1e-4
    )
    train.save_policy(second, two, None, None, folder / "second")
    assert records[-1]["eval/logps/chosen"] == pytest.approx(
        load_and_score(folder / "model", folder / "second"), rel=1e-4
    )


def load_and_score(model: Path, adapter: Path | None) -> float:
    policy = load_policy(model, adapter, torch.float32, "cpu")
    with torch.no_grad():
        logps = [total_logp(policy, p.prompt_ids, p.chosen_ids) for p in pairs_of()]
    return sum(logps) / len(logps)


def test_the_likelihood_term_is_trained(folder):
    """At the reference the loss's slope in log pi(y_w) is -beta / 2 of DPO and -0.5 / |y_w|."""
    config, pairs = settings(folder, sft_weight=0.5), pairs_of(3)
    model, batch = build_policy(config, torch.float32, "cpu"), pack_pairs(pairs, [0, 1, 2])
    compute_losses(config, model, batch, None)[0].sum().backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()  # to none: the tensors above stay
    chosen, rejected = batch.sum_by_sequence(model(batch=batch).logps).chunk(2)
    (-0.05 * (chosen - rejected) - 0.5 * chosen / batch.lengths[:3]).sum().backward()
    for name in ours:
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5)


def test_what_losses_are_divided_by(folder):
    """Pairs; for sft the tokens of the chosen completions."""
    pairs = random_pairs(97, [(3, 5, 0), (9, 1, 0), (1, 7, 0)])
    assert loss_normaliser(settings(folder, objective="sft"), pairs, [0, 2]) == 12
    assert loss_normaliser(settings(folder), pairs, [0, 2]) == 2


def test_each_step_has_its_own_dropout(folder):
    """The same pairs twice with next to no learning rate: the gradients differ by masks alone,
    though held-out pairs are evaluated, without any, before either step."""
    changes = {"objective": "sft", "batch_size": 10, "max_steps": 2, "learning_rate": 1e-12}
    norms, pairs = {}, without_rejected(pairs_of())
    for share in (0.0, 0.5):
        out_dir = str(folder / str(share))
        config = settings(folder, **changes, lora_dropout=share, eval_every=1, out_dir=out_dir)
        _, records = run(config, pairs, pairs)
        norms[share] = [record["grad_norm"] for record in records if "grad_norm" in record]
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-5)
    assert norms[0.5][0] != pytest.approx(norms[0.5][1], rel=1e-3)


def test_dropout_depends_on_the_seed(folder):
    """One step on all pairs, whose order then does not count; B is not 0."""
    losses = []
    for seed in (0, 1):
        changes = {"objective": "sft", "lora_dropout": 0.5, "batch_size": 10, "max_steps": 1}
        config = settings(folder, **changes, seed=seed, out_dir=str(folder / str(seed)))
        model = build_policy(dataclasses.replace(config, seed=0), torch.float32, "cpu")
        scatter(model)
        Path(config.out_dir).mkdir()
        train.train(config, model, without_rejected(pairs_of()), [], Path(config.out_dir), "cpu")
        losses.append(read_records(Path(config.out_dir) / "metrics.jsonl")[0]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_each_rank_has_its_own_dropout(folder, monkeypatch):
    """As the second of two: seed, step, rank."""
    asked = []
    monkeypatch.setattr(train, "dropout_seed", lambda *given: asked.append(given) or 0)
    monkeypatch.setattr(train, "save_training_state", lambda *given: None)  # the first rank's part
    monkeypatch.setattr(train.parallel, "rank", lambda: 1)
    monkeypatch.setattr(train.parallel, "world_size", lambda: 2)
    run(settings(folder, seed=7, max_steps=2), pairs_of())
    assert asked == [(7, 0, 1), (7, 1, 1)]


# ------------------------------------------------------------------------------------------------
# resuming, interrupts, numbers that are not finite


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(folder, monkeypatch):
    pairs = pairs_of()
    whole, records = run(settings(folder, out_dir=str(folder / "a")), pairs, pairs)

    class Killed(Exception):
        pass

    add = train.StepLog.add

    def die(self, step):
        if step.number == 4:
            raise Killed
        add(self, step)

    monkeypatch.setattr(train.StepLog, "add", die)  # dies in step 4; the checkpoint is of step 2
    with pytest.raises(Killed):
        run(settings(folder, out_dir=str(folder / "b")), pairs, pairs)
    monkeypatch.undo()
    config = settings(folder, out_dir=str(folder / "b"), resume=True)
    resumed, again = run(config, pairs, pairs)
    assert_close(trained(whole), trained(resumed), rtol=0)
    assert [r["step"] for r in again] == [r["step"] for r in records] == [0, 1, 2, 3, 4, 5, 5]
    assert [r.get("loss") for r in again] == [r.get("loss") for r in records]


def test_a_run_without_a_checkpoint_is_still_that_run(folder):
    """Killed before its first checkpoint, it begins again, and no other run in its place."""
    _, records = run(settings(folder), pairs_of())
    write_run_config(settings(folder), folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints")
    with pytest.raises(ValueError, match=r"run belongs to another run: --beta was 0.1, is 0.3"):
        run(settings(folder, resume=True, beta=0.3), pairs_of())
    assert read_records(folder / "run" / "metrics.jsonl") == records
    _, again = run(settings(folder, resume=True), pairs_of())
    assert [r["loss"] for r in again] == [r["loss"] for r in records]


def test_a_run_that_torchrun_starts_again_goes_on(folder, monkeypatch, capsys):
    """Without --resume, from the checkpoint of step 4: step 5 is made again, to the bit."""
    pairs = pairs_of()
    whole, records = run(settings(folder), pairs)
    shutil.rmtree(folder / "run" / "checkpoints" / "step-000005")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again, lines = run(settings(folder), pairs)
    assert f"resuming {folder / 'run'} after step 4" in capsys.readouterr().out
    assert_close(trained(whole), trained(again), rtol=0)
    assert [r["loss"] for r in lines] == [r["loss"] for r in records]


def test_the_newest_checkpoints_stay(folder):
    """5 are made; --keep 2."""
    run(settings(folder, save_every=1), pairs_of())
    names = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000005"]


def test_a_checkpoint_names_what_its_bits_depend_on(folder):
    run(settings(folder, max_steps=1), pairs_of())
    state = folder / "run" / "checkpoints" / "step-000001" / "state.json"
    of = json.loads(state.read_text())["run"]
    assert (of["number of ranks"], of["number of threads"]) == (1, torch.get_num_threads())
    assert (of["version of torch"], of["kind of device"]) == (torch.__version__, "cpu")
    assert of["dtype in use"] == "torch.float32"


def test_an_evaluation_that_a_kill_has_cost_is_made_up_for(folder, monkeypatch):
    """The checkpoint of step 2 is written before its evaluation, in which the run dies."""
    pairs, evaluate = pairs_of(), train.evaluate
    _, records = run(settings(folder, out_dir=str(folder / "a"), eval_every=2), pairs, pairs)

    def die(*args):
        if args[4] == 2:
            raise KeyboardInterrupt
        evaluate(*args)

    monkeypatch.setattr(train, "evaluate", die)
    config = settings(folder, out_dir=str(folder / "b"), eval_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, pairs, pairs)
    monkeypatch.undo()
    for _ in range(2):  # the second has nothing left to do
        _, again = run(dataclasses.replace(config, resume=True), pairs, pairs)
        assert [r["step"] for r in again] == [r["step"] for r in records]
        assert [r.get("eval/loss") for r in again] == [r.get("eval/loss") for r in records]
    assert [r["step"] for r in again if "eval/loss" in r] == [0, 2, 4, 5]


def test_resume_refuses_another_configuration_or_other_data(folder):
    run(settings(folder), pairs_of())
    with pytest.raises(ValueError, match=r"belongs to another run: data \(token ids\) was"):
        run(settings(folder, resume=True), pairs_of(9))
    rounds = settings(folder, resume=True, micro_batch_tokens=50)
    with pytest.raises(
        ValueError, match=r"not go on bit for bit: --micro_batch_tokens was 8192, i"
    ):
        run(rounds, pairs_of())
    run(dataclasses.replace(rounds, inexact_resume=True), pairs_of())
    other = build_policy(settings(folder), torch.float32, "cpu")
    other.embed_tokens.weight.data[3] += 1e-3
    with pytest.raises(ValueError, match=r"weights \(SHA-256\) was"):
        train.train(settings(folder, resume=True), other, pairs_of(), [], folder / "run", "cpu")
    config = settings(folder, resume=True, beta=0.3, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"--beta was 0.1, is 0.3; --learning_rate was 0.01"):
        run(config, pairs_of())
    with pytest.raises(FileNotFoundError, match="--resume expects a whole checkpoint in"):
        run(settings(folder, out_dir=str(folder / "new"), resume=True), pairs_of())
    with pytest.raises(ValueError, match=r"held-out data \(token ids\) was"):
        run(settings(folder, resume=True), pairs_of(), pairs_of(3))


def test_a_loss_that_is_not_finite_stops_before_the_step(folder):
    pairs = pairs_of()
    config = settings(folder, batch_size=10)
    model = build_policy(config, torch.float32, "cpu")
    before = trained(model)
    with torch.no_grad():  # only pairs that hold token 13 meet a NaN
        model.embed_tokens.weight[13] = math.nan
    (folder / "run").mkdir()
    with pytest.raises(ValueError, match=r"step 1: loss nan.*nothing was updated.*made:\d") as stop:
        train.train(config, model, pairs, [], folder / "run", "cpu")
    guilty = {p.source for p in pairs if 13 in [*p.prompt_ids, *p.chosen_ids, *p.rejected_ids]}
    assert guilty and any(source in str(stop.value) for source in guilty)
    assert_close(before, trained(model), rtol=0)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(folder):
    script = folder / "forever.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.test_train import *
from model.run import run_main
folder = Path({str(folder)!r})
run_main(lambda: run(settings(folder, max_steps=100000, save_every=0), pairs_of()))
""")
    process = subprocess.Popen([sys.executable, script], stdout=-1, stderr=-1, text=True)
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "nothing is lost. To go on:\n  python train.py --config" in out
    steps = read_records(metrics)[-1]["step"]
    assert (folder / "run" / "checkpoints" / f"step-{steps:06d}" / "state.json").exists()
    assert "Traceback" not in err


def test_ctrl_c_in_the_last_step_ends_the_run_as_ever(folder, monkeypatch):
    """There is nothing to go on with; afterwards Ctrl-C is what it was before the run."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    add = train.StepLog.add

    def press(self, step):
        add(self, step)
        if step.number == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.StepLog, "add", press)
    _, records = run(settings(folder), pairs_of(), pairs_of(3))
    assert records[-1]["step"] == 5 and "eval/loss" in records[-1]
    monkeypatch.undo()
    run(settings(folder, out_dir=str(folder / "again")), pairs_of())
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_to_another_rank_stops_this_one_too(folder, monkeypatch):
    """SIGTERM is 15; all ranks save behind the same step."""
    monkeypatch.setattr(train, "Interrupt", lambda: SimpleNamespace(asked=0))
    monkeypatch.setattr(train.parallel, "max_over_ranks", lambda own: max(own, 15.0))
    with pytest.raises(SystemExit) as stop:
        run(settings(folder, save_every=0), pairs_of())
    assert stop.value.code == 143
    assert [r["step"] for r in read_records(folder / "run" / "metrics.jsonl")] == [1]
    assert (folder / "run" / "checkpoints" / "step-000001" / "state.json").exists()


# ------------------------------------------------------------------------------------------------
# the whole script


def main(flags: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train.main()


def test_the_embedded_default_trains_shows_and_is_sampled(tmp_path, monkeypatch, capsys):
    """`python train.py`, cut to two steps: numbered folders, answers, and sample.py behind it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    for _ in range(2):
        main(["--max_steps", "2", "--eval_every", "0"], monkeypatch)
    out = capsys.readouterr().out
    assert "chat format: plain" in out and "max_length: 256 (the model's positions)" in out
    assert "spl: policy_coef 0.12, reference_coef 0.1, tau 1.2\n" in out
    assert "policy: 1.01M parameters, 0.16M trained, torch.float32 on cpu" in out
    assert "answer mass" in out and out.count("a held-out prompt and the policy's answer") == 6
    assert "saved in runs/tiny-spl;" in out and "saved in runs/tiny-spl-2;" in out
    assert "python sample.py --model data/tiny --adapter runs/tiny-spl\n" in out
    assert "train.py --objective h_dpo --alpha 0.9    the other side of tau = 1" in out
    assert "held-out pairs       step 0      step 2\n" in out
    marks = json.loads((tmp_path / "runs/tiny-spl/tokenizer_config.json").read_text())
    assert marks == {"chat_format": "plain"}

    records = read_records(tmp_path / "runs/tiny-spl/metrics.jsonl")
    assert records[0]["eval/mass/policy"] == pytest.approx(records[0]["eval/mass/reference"])
    assert records[0]["eval/mass/reference"] > 0.95  # the answers of opinion hold nearly all
    assert (tmp_path / "runs/tiny-spl/adapter_model.safetensors").stat().st_size < 10**6

    flags = ["--adapter", "runs/tiny-spl", "--prompt", "Which is better, tea or coffee?"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *flags, "--temperature", "0"])
    sample.main()
    assert capsys.readouterr().out in ("Tea\n", "Coffee\n")


def test_the_path_of_a_zephyr_user(tmp_path, mistral_tokenizer_dir, shared_data, monkeypatch):
    """Zephyr's shape cut to 2 thin layers, Mistral's tokenizer, UltraFeedback in Zephyr's format;
    with no base on disk, what is left is a whole model."""
    fields = {
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    shutil.copy(mistral_tokenizer_dir / "tokenizer.model", tmp_path)
    rows = shared_data / "ultrafeedback_binarized" / "train_clean.jsonl.gz"
    flags = ["--init", tmp_path / "config.json", "--data", rows, "--chat_format", "zephyr"]
    flags += ["--batch_size", 2, "--max_steps", 2, "--eval_fraction", 0.01, "--max_length", 256]
    flags += ["--max_prompt_length", 128, "--sample_prompts", 0, "--out_dir", tmp_path / "run"]
    main([str(flag) for flag in flags], monkeypatch)
    assert (tmp_path / "run" / "model" / "tokenizer.model").exists()
    assert load_model(tmp_path / "run" / "model").config.sliding_window == 4096
    record = read_records(tmp_path / "run" / "metrics.jsonl")[0]
    assert record["eval/entropy"] == pytest.approx(math.log(32000), abs=0.1)  # random weights


def test_a_run_never_overwrites_a_model(folder, monkeypatch):
    before = (folder / "model" / "config.json").read_text()
    with pytest.raises(ValueError, match="is the folder of an input"):
        main(["--model", str(folder / "model"), "--out_dir", str(folder / "model")], monkeypatch)
    assert (folder / "model" / "config.json").read_text() == before


def test_a_run_is_named_after_what_it_starts_from(tmp_path, monkeypatch):
    """Its folder is none of an input's, and goes on where torchrun starts it again."""
    monkeypatch.chdir(tmp_path)
    for folder in ("zephyr", "pairs"):
        Path(folder).mkdir()
    asked = []

    def stop(*given):
        asked.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "choose_out_dir", stop)
    flags = ["--init", "a/zephyr/config.json", "--tokenizer", "b", "--objective", "sft"]
    for words in (
        flags,
        ["--init", "zephyr", "--data", "pairs", "p.jsonl", "--lora_rank", "2"],
        ["--model", "a/zephyr", "--adapter", "c", "--device", "cpu", "--eval_data", "pairs"],
    ):
        with pytest.raises(KeyboardInterrupt):
            main(words, monkeypatch)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert asked == [
        (None, "zephyr-sft", False, ["data/tiny", "a/zephyr/config.json", "b"]),
        (None, "zephyr-spl", True, ["data/tiny", "zephyr", "pairs"]),
        (None, "zephyr-spl", True, ["a/zephyr", "c", "pairs"]),
    ]


@pytest.mark.parametrize("lora_rank", ["0", "2"])
def test_what_no_run_has_written_is_not_overwritten(folder, monkeypatch, lora_rank):
    """OUT_DIR/model is where a whole model goes: here it is the one that is trained."""
    flags = ["--model", str(folder / "model"), "--reference", "cached", "--lora_rank", lora_rank]
    with pytest.raises(ValueError, match="holds a model that no run has written"):
        main([*flags, "--out_dir", str(folder)], monkeypatch)
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ValueError, match=r"holds a config.json that no run has written"):
        main([*flags, "--out_dir", str(folder / "other")], monkeypatch)
    assert (folder / "other" / "config.json").read_text() == '{"hidden_size": 8}'


def test_the_default_alpha_follows_the_beta_of_a_config_that_is_used_again(tmp_path, monkeypatch):
    """tau 1.2 at beta 0.1, and at beta 0.2 with the first run's config.json."""
    monkeypatch.chdir(ROOT)
    flags = ["--max_steps", "1", "--eval_every", "0", "--sample_prompts", "0", "--batch_size", "2"]
    main([*flags, "--out_dir", str(tmp_path / "a")], monkeypatch)
    first = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (first["alpha"], first["_alpha"]) == (None, pytest.approx(0.12))
    config = ["--config", str(tmp_path / "a" / "config.json"), "--out_dir", str(tmp_path / "b")]
    main([*config, "--beta", "0.2"], monkeypatch)
    again = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (again["alpha"], again["_alpha"]) == (None, pytest.approx(0.24))
    records = read_records(tmp_path / "b" / "metrics.jsonl")
    steps = [r for r in records if "terms/policy" in r]
    assert len(steps) == 1
    share = steps[0]["terms/policy"] / steps[0]["terms/reference"]
    assert share == pytest.approx(1.2, rel=1e-4)  # at step 0, where both log ratios are equal


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = ["--out_dir", str(tmp_path / "r"), "--eval_every", "0", "--sample_prompts", "0"]
    main([*flags, "--max_steps", "1"], monkeypatch)
    before = (tmp_path / "r" / "config.json").read_text()
    config = ["--config", str(tmp_path / "r" / "config.json"), "--resume"]
    with pytest.raises(ValueError, match=r"--beta was 0.1, is 0.3"):
        main([*config, "--beta", "0.3"], monkeypatch)
    main(config, monkeypatch)  # nothing left to do
    assert (tmp_path / "r" / "config.json").read_text() == before
    assert '"resume": false' in before


# ------------------------------------------------------------------------------------------------
# small parts


def test_how_to_go_on_names_the_ranks(monkeypatch):
    command = "train.py --config 'runs/a b/config.json' --resume"
    assert train.resume_command(Path("runs/a b")) == f"python {command}"
    monkeypatch.setattr(train.parallel, "world_size", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert train.resume_command(Path("runs/a b")) == f"torchrun --nproc_per_node=16 {command}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    nodes = "torchrun --nnodes=2 --nproc_per_node=8"
    assert train.resume_command(Path("runs/a b")) == f"{nodes} {command}"


def test_an_epoch_ends_with_a_short_step():
    pairs = pairs_of(10)
    assert number_of_steps(TrainConfig(batch_size=4, epochs=2), pairs) == 6
    assert number_of_steps(TrainConfig(batch_size=4, epochs=2, max_steps=4), pairs) == 4


def read(file: Path, *words: str) -> tuple[list[TokenPair], list[TokenPair]]:
    """Training and held-out pairs of the first 40 embedded rows with a prompt of their own."""
    rows = (ROOT / "data" / "tiny" / "train.jsonl").read_text().splitlines()[:200]
    turns = {json.loads(row)["prompt"]: row for row in reversed(rows)}
    file.write_text("\n".join(list(turns.values())[:40]) + "\n")
    flags = ["--model", str(ROOT / "data" / "tiny"), "--data", str(file), *words]
    config = parse_config(TrainConfig, flags)
    return train.load_pairs(config, *train.load_formats(config))


def test_what_is_held_out_and_flipped_follows_the_flags(tmp_path):
    """About half of 40 turns; of these 3; others by another seed; 0.4 of the labels flipped."""
    half = ("--eval_fraction", "0.5")
    pairs, held_out = read(tmp_path / "a.jsonl", *half)
    assert len(pairs) + len(held_out) == 40 and 10 < len(held_out) < 30
    some = read(tmp_path / "a.jsonl", *half, "--eval_pairs", "3")[1]
    sources = [{pair.source for pair in some} for some in (some, held_out)]
    assert len(some) == 3 and sources[0] < sources[1]
    others = read(tmp_path / "a.jsonl", *half, "--seed", "1")[1]
    assert {pair.source for pair in others} != sources[1]
    noisy, again = read(tmp_path / "a.jsonl", *half, "--label_noise", "0.4")
    flipped = [a.chosen_ids.tolist() == b.rejected_ids.tolist()
               for a, b in zip(pairs, noisy, strict=True)]  # fmt: skip
    assert sum(flipped) == round(0.4 * len(pairs))
    assert all(a.chosen_ids.tolist() == b.chosen_ids.tolist()
               for a, b in zip(held_out, again, strict=True))  # fmt: skip


def test_lengths_follow_the_flags_and_the_positions(tmp_path, capsys):
    """Prompts give way first, down to half of --max_length or to --max_prompt_length; the model has
    256 positions."""
    for more, prompt in (((), 20), (("--max_prompt_length", "10"), 10)):
        pairs, _ = read(tmp_path / "a.jsonl", "--max_length", "40", *more)
        sizes = [(len(p.prompt_ids), max(len(p.chosen_ids), len(p.rejected_ids))) for p in pairs]
        assert max(map(sum, sizes)) == 40 and (prompt, 40 - prompt) in sizes
        assert "positions" not in capsys.readouterr().out
    read(tmp_path / "a.jsonl", "--max_length", "256")
    assert "positions" not in capsys.readouterr().out
    read(tmp_path / "a.jsonl", "--max_length", "257")
    assert "max_length: 256 (the model's positions), not 257" in capsys.readouterr().out
    line = {"prompt": "Which?", "chosen": "two " * 400, "rejected": "Coffee"}
    (tmp_path / "b.jsonl").write_text(json.dumps(line) + "\n")
    flags = ("--data", str(tmp_path / "a.jsonl"), "--eval_data", str(tmp_path / "b.jsonl"))
    config = parse_config(TrainConfig, ["--model", str(ROOT / "data" / "tiny"), *flags])
    (long,) = train.load_pairs(config, *train.load_formats(config))[1]
    size = len(long.prompt_ids) + max(len(long.chosen_ids), len(long.rejected_ids))
    assert size == 256


def test_the_embedded_pairs_have_held_out_ones_of_their_own(monkeypatch):
    """For sft they are texts, of which a share is held out, as of any other data."""
    asked = []

    def stop(data, eval_data, *more):
        asked.append((data, eval_data))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "read_split", stop)
    monkeypatch.chdir(ROOT)
    for words in ([], ["--objective", "sft"], ["--data", "a.jsonl"], ["--eval_data", "b.jsonl"]):
        with pytest.raises(KeyboardInterrupt):
            train.load_pairs(parse_config(TrainConfig, words), None, None)
    own, other = ("data/tiny/train.jsonl",), ("data/tiny/eval.jsonl",)
    expected = [(own, other), (own, None), (("a.jsonl",), None), (own, ("b.jsonl",))]
    assert asked == expected


def test_answers_are_to_distinct_prompts_with_room_for_one(monkeypatch, capsys):
    """256 positions less 100 of the answer: the prompt of 157 tokens is passed over."""
    monkeypatch.chdir(ROOT)
    config = TrainConfig(sample_prompts=2, seed=5)
    tokenizer, chat_format = train.load_formats(config)
    model, asked = load_model(ROOT / "data" / "tiny").train(), []

    def answer(model, prompts, seeds, tokens, stop_ids):
        asked.append((model.training, prompts, seeds, tokens, stop_ids))
        return list(enumerate([SimpleNamespace(ids=[]) for _ in prompts]))

    monkeypatch.setattr(train, "generate", answer)
    sizes = [(3, 1, 1), (157, 1, 1), (156, 1, 1), (4, 1, 1)]
    pairs = random_pairs(512, sizes)
    train.print_answers(config, model, tokenizer, chat_format, [pairs[0], *pairs])
    prompts = [pairs[i].prompt_ids.tolist() for i in (0, 2)]
    seeds = [completion_seeds(5, i, 1)[0] for i in (0, 1)]
    assert asked == [(False, prompts, seeds, 100, stop_ids(chat_format, tokenizer))]
    assert seeds[0] != seeds[1] and asked[0][4]
    assert capsys.readouterr().out.count("a held-out prompt and the policy's answer") == 2


@pytest.mark.parametrize("flags, adapter, whole", [
    ({"objective": "reward"}, "--reward_model M --reward_adapter ", "--reward_model "),
    ({}, "--model M --adapter ", "--model "),
])  # fmt: skip
def test_what_to_run_next_names_the_adapter_or_the_whole_model(
    tmp_path, capsys, flags, adapter, whole
):
    out = tmp_path / "a run"
    for folder, words in ((out, f"{adapter}'{out}'"), (out / "model", f"{whole}'{out}/model'")):
        folder.mkdir()
        config = TrainConfig(model="M", data=("a",), **flags)
        train.report(config, None, None, None, [], out)
        (command,) = [line for line in capsys.readouterr().out.splitlines() if "python" in line]
        assert f"{words} " in f"{command} "


def test_learning_rates_by_hand():
    """Two steps of warm-up to 1, then down to 0 over eight: linear 1, 7/8, ...; the cosine of a
    quarter of a half turn is 0.707."""
    make = lambda name: TrainConfig(schedule=name, warmup_steps=2, learning_rate=1.0)  # noqa: E731
    rates = [learning_rate(make("linear"), step, 10) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(make("cosine"), 4, 10) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate(make("cosine"), 6, 10) == pytest.approx(0.5)
    assert learning_rate(make("constant"), 9, 10) == 1.0


def test_a_plan_reads_no_weights_and_leaves_nothing(folder, monkeypatch, capsys):
    """The embedded run on 4 ranks, for a GPU that is not there; the same on fewer holds more."""
    config = json.loads((folder / "model" / "config.json").read_text())
    config["vocab_size"] = 512  # that of the tokenizer
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "model" / "model.safetensors").unlink()
    monkeypatch.chdir(ROOT)
    peaks = []
    for ranks in ("1", "4"):
        words = ["--plan", "--world_size", ranks, "--init", str(folder / "model" / "config.json"),
                 "--tokenizer", "data/tiny", "--data", "data/tiny/eval.jsonl",
                 "--out_dir", str(folder / "run")]  # fmt: skip
        main(words, monkeypatch)
        text = capsys.readouterr().out
        assert "torch.bfloat16 on cuda" in text and f"one of {ranks} ranks" in text
        peaks.append(float(text.split("peak on one rank")[1].split()[0]))
    assert peaks[0] > peaks[1] > 0 and not (folder / "run").exists()


@pytest.mark.parametrize("flags, expected, dtype", [
    ("--world_size 6 --replicas 3 --cpu_offload", (6, 3, True, True, "cuda"), "bfloat16 on cuda"),
    ("--reference cached --device cpu", (1, 1, False, False, "cpu"), "float32 on cpu"),
    ("--objective sft --device cuda:3", (1, 1, False, False, "cuda"), "bfloat16 on cuda"),
    ("--objective dpo --dtype float32", (1, 1, False, True, "cuda"), "float32 on cuda"),
])  # fmt: skip
def test_a_plan_is_of_the_run_that_the_flags_describe(
    tmp_path, monkeypatch, capsys, flags, expected, dtype
):
    """Ranks, replicas, offload, whether there is a reference beside the policy, device.

    12 pairs a step in micro-batches of one: 12 of them on one rank, 2 on each of 6.
    """
    rows = (ROOT / "data" / "tiny" / "eval.jsonl").read_text().splitlines()[:12]
    if "sft" in flags:
        rows = [json.dumps({"prompt": "a", "completion": "b c"})] * 12
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    asked = []

    def plan(model, batch, micro_steps, *more, online_reference, device_type):
        asked.append((*more, online_reference, device_type))

    monkeypatch.setattr(train, "plan_run", plan)
    monkeypatch.setattr(train, "render", lambda plan: "")
    words = ["--plan", "--model", str(ROOT / "data" / "tiny"), "--data", str(tmp_path / "a.jsonl")]
    words += ["--eval_fraction", "0", "--batch_size", "12", "--micro_batch_tokens", "1"]
    main([*words, *flags.split()], monkeypatch)
    assert asked == [expected]
    said = f"{12 // expected[0]} micro-steps a step, the heaviest with 1 pairs, "
    out = capsys.readouterr().out
    assert said in out and f"predicted; torch.{dtype}\n" in out


def test_the_policy_is_shaped_by_the_flags(folder):
    """Of 21 linear layers 6 have an adapter, scaled by 6 / 4."""
    flags = {"lora_alpha": 6.0, "lora_targets": ("q_proj", "v_proj"), "keep_every": 2}
    flags |= {"activation_checkpointing": True, "head_workspace_mib": 3, "head_kernel": "torch"}
    model = build_policy(settings(folder, **flags), torch.float32, "cpu")
    assert model.checkpoint_activations and model.keep_every == 2
    assert model.head == (3 * 2**20, "torch")
    layers = dict(lora_layers(model))
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "v_proj"}
    assert len(layers) == 6 and all(layer.scale == 1.5 for layer in layers.values())


def test_the_adapters_are_drawn_by_the_seed(folder):
    """A; all of B is 0."""
    made = [trained(build_policy(settings(folder, seed=s), torch.float32, "cpu")) for s in (0, 1)]
    for name, values in made[0].items():
        assert torch.equal(values, made[1][name]) == ("lora_B" in name), name


def test_blocks_are_compiled_where_it_is_asked(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(train.Transformer, "compile_blocks", lambda self: asked.append(self))
    train.shape_policy(settings(folder), torch.float32)
    assert not asked
    assert asked == [train.shape_policy(settings(folder, compile=True), torch.float32)]


def test_run_folder_explains_itself(folder, monkeypatch):
    config = settings(folder)
    monkeypatch.setattr("model.run.world_size", lambda: 3)
    (folder / "run").mkdir()
    write_run_config(config, folder / "run")
    fields = json.loads((folder / "run" / "config.json").read_text())
    assert fields["beta"] == 0.1 and {"_argv", "_commit", "_versions"} <= fields.keys()
    assert fields["_world_size"] == 3 and fields["_threads"] == torch.get_num_threads()
    assert parse_config(TrainConfig, ["--config", str(folder / "run" / "config.json")]) == config


def test_checkpoints_hold_trained_tensors_alone(folder):
    run(settings(folder, max_steps=2), pairs_of())
    tensors = load_file(folder / "run" / "checkpoints" / "step-000002" / SHARD)
    assert len(tensors) == 3 * 7 * 2 * 4  # each with two moments and a step count
    assert all(".lora_" in name for name in tensors)
