"""Sampling against transformers (options, greedy text), the plain forward, and itself.

Itself: a completion alone is bit for bit the completion in any batch. transformers is the witness
of the definitions. pytest tests/test_generate.py
"""

import math

import pytest
import torch
import transformers
from transformers.generation import logits_process as witness

from data.tokenizer import load_tokenizer
from model import generate as module
from model.checkpoint import init_weights, load_model
from model.generate import (
    Completion,
    Sampling,
    completion_seeds,
    decode_one_token,
    filter_logits,
    front_rows,
    generate,
    prefill,
    sample_next_token,
    splitmix64,
    uniforms,
)
from model.transformer import ModelConfig, Transformer

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


def random_model(dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    """Odd sizes, grouped heads, and logits spread far enough to be worth sampling."""
    sizes = dict(
        vocab_size=77,
        hidden_size=48,
        intermediate_size=92,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=400,
        initializer_range=0.25,
    )
    model = Transformer(ModelConfig(**(sizes | changes)))
    init_weights(model, 1)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def stories(stories_dir):
    return load_model(stories_dir), load_tokenizer(stories_dir)


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], list(range(60))]


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
        u = torch.stack([uniforms(seeds, position) for position in positions], 1).flatten()
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
    """40 000 seeds against transformers' probabilities: chi-square, rare tokens pooled."""
    model, draws = random_model(), 40_000
    _, logits = prefill(model, PROMPTS[0])
    tokens, logps = sample_next_token(logits.expand(draws, -1), sampling, torch.arange(draws), 0)
    probs = transformers_logits(logits, sampling).softmax(-1)[0].double()
    counts = tokens.bincount(minlength=77).double()
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
    tokens, _ = sample_next_token(logits, Sampling(top_k=3), torch.tensor([0, 0]), 0)
    assert tokens.tolist() == [1, 3]


@pytest.mark.parametrize(
    "options, flag",
    [
        ({"temperature": -0.1}, "--temperature"),
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


# ------------------------------------------------------------------------------------------------
# whole completions


def test_greedy_text_is_that_of_transformers(stories, stories_dir):
    model, tokenizer = stories
    other = transformers.AutoModelForCausalLM.from_pretrained(stories_dir, dtype=torch.float32)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("Once", "Lily and Tom")]
    ours = generate(model, prompts, [0, 0], 150, Sampling(temperature=0))
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = other.generate(
            torch.tensor([prompt]), max_new_tokens=150, do_sample=False, eos_token_id=None
        )
        assert completion.ids == ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("window", [None, 5])
def test_the_cached_path_is_the_plain_forward(window):
    """Log-probabilities of 100 drawn tokens, in float64, from the forward without a cache."""
    model = random_model(torch.float64, sliding_window=window)
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, [1, 2, 3], 100), strict=True):
        logits = model(torch.tensor([prompt + completion.ids]))[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        drawn = torch.tensor(completion.token_logps, dtype=torch.float64)
        torch.testing.assert_close(drawn, logps, rtol=0, atol=2e-5)  # ours are float32
        assert completion.logps == pytest.approx(logps.sum().item(), abs=1e-4)


@torch.inference_mode()
def test_decoding_continues_a_prompt():
    model = random_model(torch.float64)
    whole = torch.tensor([[1, 2, 3, 4, 5]])
    cache, logits = prefill(model, [1, 2, 3])
    torch.testing.assert_close(logits, model(whole)[:, 2], rtol=0, atol=1e-12)
    for i in (3, 4):
        logits = decode_one_token(model, whole[:, i], cache)
        torch.testing.assert_close(logits, model(whole)[:, i], rtol=0, atol=1e-12)
    assert cache.longest == 5


def check_batches(model, prompts, max_new_tokens, stop_ids, sampling) -> None:
    """Completions alone, in one batch, in groups of every size and in another order."""
    flat = [prompt for prompt in prompts for _ in range(5)]
    seeds = [seed for i in range(len(prompts)) for seed in completion_seeds(0, i, 5)]
    settings = (max_new_tokens, sampling, stop_ids)
    together = list(generate(model, flat, seeds, *settings))
    alone = [next(generate(model, [p], [s], *settings)) for p, s in zip(flat, seeds, strict=True)]
    assert alone == together
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = list(generate(model, [flat[i] for i in order], [seeds[i] for i in order], *settings))
    assert shuffled == [together[i] for i in order]
    for cache_bytes in (1, 150_000):
        assert list(generate(model, flat, seeds, *settings, cache_bytes=cache_bytes)) == together
    assert len({tuple(completion.ids) for completion in together}) > 10
    lengths = {len(completion.ids) for completion in together}
    assert not stop_ids or len(lengths) > 4, f"rows were to end at different times: {lengths}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_completion_is_the_same_in_any_batch(dtype):
    """Bit for bit, log-probabilities included; prompts of 7, 1 and 60 tokens."""
    check_batches(random_model(dtype), PROMPTS, 90, [5, 6], Sampling())


def test_a_completion_is_the_same_in_any_batch_under_all_options():
    check_batches(random_model(sliding_window=20), PROMPTS, 40, [5, 6, 7], OPTIONS[-1])


def test_a_story_is_the_same_in_any_batch(stories):
    model, tokenizer = stories
    texts = ("Once upon a time", "Lily and Ben went to the park and saw a", "A")
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    check_batches(model, prompts, 70, tokenizer.encode("."), Sampling())


def test_seeds_decide():
    model = random_model()
    same, other = (
        [c.ids for c in generate(model, PROMPTS, completion_seeds(seed, 0, 3), 20)]
        for seed in (1, 2)
    )
    again = [c.ids for c in generate(model, PROMPTS, completion_seeds(1, 0, 3), 20)]
    assert again == same and all(a != b for a, b in zip(same, other, strict=True))


def test_a_longer_limit_goes_on_from_the_same_tokens():
    model = random_model()
    short, long = (next(generate(model, PROMPTS, [3] * 3, limit)) for limit in (10, 40))
    assert long.ids[:10] == short.ids and long.token_logps[:10] == short.token_logps


def test_stop_tokens_and_stop_rules_end_a_completion():
    model = random_model()
    free = next(generate(model, [[1]], [5], 30))
    assert (free.finish_reason, len(free.ids)) == ("length", 30)
    stop = free.ids[12]
    first = free.ids.index(stop)
    stopped = next(generate(model, [[1]], [5], 30, stop_ids=[stop]))
    assert stopped == Completion(free.ids[: first + 1], free.token_logps[: first + 1], "stop")
    ruled = next(generate(model, [[1]], [5], 30, is_stopped=lambda ids: len(ids) == 4))
    assert ruled == Completion(free.ids[:4], free.token_logps[:4], "stop")


def test_tokens_are_told_as_they_are_drawn():
    model, told = random_model(), [[], [], []]
    drawn = generate(
        model, PROMPTS, [1, 2, 3], 9, on_token=lambda i, t: told[i].append(t), cache_bytes=1
    )
    first = next(drawn)
    assert told == [first.ids, [], []]  # the next group has not begun
    assert [first.ids, *(c.ids for c in drawn)] == told


def test_equal_neighbours_are_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(module, "prefill", lambda m, ids: read.append(ids) or prefill(m, ids))
    list(generate(random_model(), [[1, 2], [1, 2], [3], [1, 2]], [1, 2, 3, 4], 2))
    assert read == [[1, 2], [3], [1, 2]]


def test_front_rows_by_hand():
    """Of rows 0-5, 1, 4 and 5 go on: 1 stays, 5 and 4 take the places 0 and 2."""
    assert front_rows([False, True, False, False, True, True]) == [5, 1, 4]
    assert front_rows([True, True, False]) == [0, 1]


@pytest.mark.parametrize(
    "prompt, max_new_tokens, message",
    [
        ([], 5, "prompt 0: expected at least one token"),
        ([1], 0, "--max_new_tokens expects 1 or more"),
        ([1] * 400, 5, "400 tokens leave no room for a completion within the model's 400 pos"),
        ([77], 5, "token 77 is outside the model's vocabulary of 77"),
    ],
)
def test_prompts_that_cannot_be_continued(prompt, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        next(generate(random_model(), [prompt], [0], max_new_tokens))


def test_the_last_position_ends_a_completion():
    """A prompt of 390 tokens leaves ten of 400 positions; its neighbour is not cut."""
    model = random_model()
    long, short = generate(model, [[1] * 390, [1]], [0, 0], 30)
    assert (len(long.ids), long.finish_reason) == (10, "length")
    assert short == next(generate(model, [[1]], [0], 30)) and len(short.ids) == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(temperature):
    model = random_model()
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(ValueError, match="prompt 0, new token 0: the logits are not finite"):
        next(generate(model, [[1]], [0], 5, Sampling(temperature)))


def test_no_prompts_no_completions():
    assert list(generate(random_model(), [], [], 5)) == []
