"""Sampling one token against transformers' definitions; draws against published numbers.

transformers is the witness of the options, a chi-square test that of the draws.
pytest tests/test_sampling.py
"""

import math

import pytest
import torch
from transformers.generation import logits_process as witness

from model import sampling as module
from model.sampling import (
    Sampling,
    completion_seeds,
    filter_logits,
    sample_next_token,
    splitmix64,
    uniforms,
)
from tests.test_generate import PROMPTS, random_model

OPTIONS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.6, top_k=5),
    Sampling(top_k=1000),
    Sampling(top_p=0.8),
    Sampling(top_p=1e-9),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.05),
]


# ------------------------------------------------------------------------------------------------
# random draws


def test_splitmix64_gives_its_published_numbers():
    """The first outputs of the generator seeded with 1234567 (and 0)."""
    state, gamma = 1234567, 0x9E3779B97F4A7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for i, number in enumerate(expected, start=1):
        assert splitmix64(torch.tensor(signed(state + i * gamma))).item() == signed(number)
    assert splitmix64(torch.tensor(signed(gamma))).item() == signed(0xE220A8397B1DCDAF)


def signed(x: int) -> int:
    return (x + 2**63) % 2**64 - 2**63


def test_uniforms_are_uniform_over_seeds_and_positions():
    """Mean 1/2, variance 1/12, no correlation between neighbours; 1 is never reached."""
    for seeds, positions in ((torch.arange(20_000), [0]), (torch.arange(4), range(5000))):
        u = torch.stack([uniforms(seeds, torch.tensor(p)) for p in positions], 1).flatten()
        assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
        deviations = u - 0.5
        assert abs(deviations.mean()) < 4 * math.sqrt(1 / 12 / 20_000)
        assert abs(deviations.square().mean() - 1 / 12) < 0.002
        assert abs((deviations[1:] * deviations[:-1]).mean()) < 4 / 12 / math.sqrt(20_000)
        assert len(u.unique()) == 20_000


def test_seeds_name_run_prompt_and_sample():
    seeds = [
        s for run in range(3) for prompt in range(20) for s in completion_seeds(run, prompt, 9)
    ]
    assert len(set(seeds)) == 3 * 20 * 9
    assert (
        completion_seeds(7, 3, 2) == completion_seeds(7, 3, 9)[:2]
    )  # more samples: the same first
    assert completion_seeds(2**63 - 1, 0, 1)
    for bad in (-1, 2**63):
        with pytest.raises(ValueError, match="--seed expects"):
            completion_seeds(bad, 0, 1)


# ------------------------------------------------------------------------------------------------
# one token


def transformers_logits(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """transformers' warpers in the order of its generate."""
    warpers = [witness.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(witness.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(witness.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(witness.MinPLogitsWarper(sampling.min_p))
    for warper in warpers:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("sampling", OPTIONS, ids=str)
def test_options_are_those_of_transformers(sampling):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 300, generator=generator) * torch.linspace(0.1, 8, 50)[:, None]
    logits[:10] = logits[:10].round()  # ties
    ours, theirs = filter_logits(logits, sampling), transformers_logits(logits, sampling)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_options_by_hand():
    """p = (1/2, 1/4, 1/8, 1/8) at temperature 1.

    top_p 0.7 keeps 1/2 and the 1/4 that crosses it; top_k 3 keeps all four, as two tie for third;
    min_p 0.5 keeps what has at least 1/4; temperature 1/2 squares: (16, 4, 1, 1) / 22.
    """
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert kept(logits, Sampling(top_p=0.7)) == [True, True, False, False]
    assert kept(logits, Sampling(top_k=3)) == [True, True, True, True]
    assert kept(logits, Sampling(top_k=2)) == [True, True, False, False]
    assert kept(logits, Sampling(min_p=0.499)) == [True, True, False, False]
    squared = filter_logits(logits, Sampling(temperature=0.5)).softmax(-1)
    torch.testing.assert_close(squared, torch.tensor([[16.0, 4, 1, 1]]) / 22)


def kept(logits: torch.Tensor, sampling: Sampling) -> list[bool]:
    return filter_logits(logits, sampling).isfinite()[0].tolist()


@pytest.mark.parametrize("sampling", OPTIONS, ids=str)
def test_first_token_has_the_distribution_of_transformers(sampling):
    """40 000 seeds, a model of 700 tokens (three blocks): chi-square, rare tokens pooled."""
    draws, model = 40_000, random_model(vocab_size=700)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0]]))[:, -1]
    seeds, positions = torch.arange(draws), torch.zeros(draws, dtype=torch.long)
    tokens, logps = sample_next_token(logits.expand(draws, -1), sampling, seeds, positions)
    probs = transformers_logits(logits, sampling).softmax(-1)[0].double()
    counts = tokens.bincount(minlength=700).double()
    assert counts[probs == 0].sum() == 0, "a token that is left out was drawn"
    common = probs * draws >= 5
    observed = torch.cat([counts[common], counts[~common].sum(0, keepdim=True)])
    expected = torch.cat([probs[common], probs[~common].sum(0, keepdim=True)]) * draws
    expected = expected.clamp(min=1e-9)
    chi_square = ((observed - expected).square() / expected.clamp(min=1)).sum().item()
    freedom = int(common.sum())
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom), f"{chi_square} at {freedom}"
    torch.testing.assert_close(logps, logits.log_softmax(-1)[0, tokens], rtol=0, atol=2e-6)


def test_the_ends_of_the_unit_interval_draw_the_first_and_last_token_left(monkeypatch):
    logits = torch.tensor([[-9.0, 3.0, 2.0, 2.5, -9.0]]).repeat(2, 1)
    ends = torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64)
    monkeypatch.setattr(module, "uniforms", lambda seeds, position: ends)
    zeros = torch.tensor([0, 0])
    tokens, _ = sample_next_token(logits, Sampling(top_k=3), zeros, zeros)
    assert tokens.tolist() == [1, 3]


@pytest.mark.parametrize(
    "options, flag",
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": 1e-40}, r"--temperature expects 0 \(the most probable token\) or 1e-06"),
        ({"temperature": math.inf}, "--temperature"),
        ({"top_k": -1}, "--top_k"),
        ({"top_p": 0.0}, "--top_p"),
        ({"top_p": 1.1}, "--top_p"),
        ({"min_p": -0.1}, "--min_p"),
        ({"min_p": 1.5}, "--min_p"),
    ],
)
def test_options_out_of_range_name_their_flag(options, flag):
    with pytest.raises(ValueError, match=flag):
        Sampling(**options)
