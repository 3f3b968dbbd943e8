"""Sampling against transformers (options, greedy text), the plain forward, and itself.

Itself: a completion alone is bit for bit the completion in any batch. transformers is the witness
of the definitions. pytest tests/test_generate.py
"""

import math

import pytest
import torch
import transformers

from data.tokenizer import load_tokenizer
from model import generate as module
from model.cache import PAGE, Row
from model.checkpoint import init_weights, load_model
from model.generate import Completion, decode_one_token, front_rows, generate, prefill
from model.lora import add_lora, lora_layers
from model.sampling import Sampling, completion_seeds
from model.transformer import ModelConfig, Transformer


def random_model(dtype: torch.dtype = torch.float32, **changes) -> Transformer:
    """Odd sizes, grouped heads, and logits spread far enough to be worth sampling."""
    sizes = dict(
        vocab_size=77,
        hidden_size=48,
        intermediate_size=92,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
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
# whole completions


def complete(model, prompts, seeds, *settings, **options) -> list[Completion]:
    """The completions in the order of their prompts; each has to come once."""
    drawn = list(generate(model, prompts, seeds, *settings, **options))
    assert sorted(i for i, _ in drawn) == list(range(len(prompts)))
    return [completion for _, completion in sorted(drawn, key=lambda pair: pair[0])]


def test_greedy_text_is_that_of_transformers(stories, stories_dir):
    model, tokenizer = stories
    other = transformers.AutoModelForCausalLM.from_pretrained(stories_dir, dtype=torch.float32)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("Once", "Lily and Tom")]
    ours = complete(model, prompts, [0, 0], 150, Sampling(temperature=0))
    for prompt, completion in zip(prompts, ours, strict=True):
        ids = other.generate(
            torch.tensor([prompt]), max_new_tokens=150, do_sample=False, eos_token_id=None
        )
        assert completion.ids == ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("window", [None, 5])
def test_the_cached_path_is_the_plain_forward(window):
    """Log-probabilities of 100 drawn tokens, in float64, from the forward without a cache."""
    model = random_model(torch.float64, sliding_window=window)
    for prompt, completion in zip(PROMPTS, complete(model, PROMPTS, [1, 2, 3], 100), strict=True):
        logits = model(torch.tensor([prompt + completion.ids]))[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        drawn = torch.tensor(completion.token_logps, dtype=torch.float64)
        torch.testing.assert_close(drawn, logps, rtol=0, atol=2e-5)  # ours are float32
        assert completion.logps == pytest.approx(logps.sum().item(), abs=1e-4)


@pytest.mark.gpu
@torch.inference_mode()
def test_half_precision_draws_from_float32_logits_on_a_gpu():
    """The products' float32 sums, not rounded: as near to float64 as the hidden states allow."""
    model = random_model(torch.bfloat16).to("cuda")
    prompt = torch.randint(77, (1, 9), device="cuda")
    cache = model.new_cache(pages=4)
    _, logits = prefill(model, prompt[0].tolist(), cache)
    assert logits.dtype == torch.float32 and logits.is_cuda
    torch.testing.assert_close(logits, model(prompt)[:, -1].float(), rtol=0.02, atol=0.02)
    assert not torch.equal(logits, logits.bfloat16().float())


@torch.inference_mode()
def test_decoding_continues_a_prompt():
    """Prompts of 3 and of 70 tokens (two pages), 2 rows and 1 row, in float64."""
    model = random_model(torch.float64)
    cache = model.new_cache(pages=10)
    short, long = torch.randint(77, (1, 5)), torch.randint(77, (1, 72))
    first, logits = prefill(model, short[0, :3].tolist(), cache)
    torch.testing.assert_close(logits, model(short)[:, 2], rtol=0, atol=1e-12)
    second, logits = prefill(model, long[0, :70].tolist(), cache)
    torch.testing.assert_close(logits, model(long)[:, 69], rtol=0, atol=1e-12)
    cache.set_rows([Row(first), Row(second), Row(first)])
    for i in range(2):
        tokens = torch.stack([short[0, 3 + i], long[0, 70 + i], short[0, 3 + i]])
        logits = decode_one_token(model, tokens, cache)
        wanted = torch.cat([model(short)[:, 3 + i], model(long)[:, 70 + i], model(short)[:, 3 + i]])
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-12)


def check_batches(model, prompts, max_new_tokens, stop_ids, sampling) -> None:
    """Completions alone, in one batch, with little room, in few rows, and in another order."""
    flat = [prompt for prompt in prompts for _ in range(5)]
    seeds = [seed for i in range(len(prompts)) for seed in completion_seeds(0, i, 5)]
    settings = (max_new_tokens, sampling, stop_ids)
    together = complete(model, flat, seeds, *settings)
    alone = [complete(model, [p], [s], *settings)[0] for p, s in zip(flat, seeds, strict=True)]
    assert alone == together
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = complete(model, [flat[i] for i in order], [seeds[i] for i in order], *settings)
    assert shuffled == [together[i] for i in order]
    for pages in (1, 8, 12):  # completions wait, and wait again from their beginning
        budget = pages * page_bytes(model)
        assert complete(model, flat, seeds, *settings, cache_bytes=budget) == together
    assert len({tuple(completion.ids) for completion in together}) > 10
    lengths = {len(completion.ids) for completion in together}
    assert not stop_ids or len(lengths) > 4, f"rows were to end at different times: {lengths}"


def page_bytes(model: Transformer) -> int:
    """Keys and values of PAGE tokens, in float32."""
    c = model.config
    return 2 * c.num_hidden_layers * c.num_key_value_heads * PAGE * c.head_dim * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_completion_is_the_same_in_any_batch(dtype):
    """Bit for bit, log-probabilities included; prompts of 7, 1 and 60 tokens."""
    check_batches(random_model(dtype), PROMPTS, 90, [5, 6], Sampling())


def test_a_completion_of_an_adapter_is_the_same_in_any_batch():
    model = random_model()
    add_lora(model, 3, 3.0)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(2))
    check_batches(model.eval(), PROMPTS, 40, [5, 6], Sampling())


def test_weights_lie_in_blocks_until_all_is_drawn_or_given_up():
    model, told = random_model(), []
    layer = model.layers[0].mlp.up_proj
    drawn = generate(model, [[1], [2]], [3, 4], 5, on_tokens=lambda *_: told.append(layer.packed))
    next(drawn)
    assert len(told) == 5 and not any(packed is None for packed in told)
    drawn.close()
    assert layer.packed is None and layer.weight.shape == (92, 48)


def test_a_completion_is_the_same_in_any_batch_under_all_options():
    check_batches(
        random_model(sliding_window=20),
        PROMPTS,
        40,
        [5, 6, 7],
        Sampling(1.3, top_k=20, top_p=0.9, min_p=0.05),
    )


def test_a_story_is_the_same_in_any_batch(stories):
    model, tokenizer = stories
    texts = ("Once upon a time", "Lily and Ben went to the park and saw a", "A")
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    check_batches(model, prompts, 70, tokenizer.encode("."), Sampling())


def test_seeds_decide():
    model = random_model()
    same, other = (
        [c.ids for c in complete(model, PROMPTS, completion_seeds(seed, 0, 3), 20)]
        for seed in (1, 2)
    )
    again = [c.ids for c in complete(model, PROMPTS, completion_seeds(1, 0, 3), 20)]
    assert again == same and all(a != b for a, b in zip(same, other, strict=True))


def test_a_longer_limit_goes_on_from_the_same_tokens():
    model = random_model()
    short, long = (complete(model, PROMPTS, [3] * 3, limit)[0] for limit in (10, 40))
    assert long.ids[:10] == short.ids and long.token_logps[:10] == short.token_logps


def test_stop_tokens_end_a_completion():
    model = random_model()
    [free] = complete(model, [[1]], [5], 30)
    assert (free.finish_reason, len(free.ids)) == ("length", 30)
    stop = free.ids[12]
    first = free.ids.index(stop)
    [stopped] = complete(model, [[1]], [5], 30, stop_ids=[stop])
    assert stopped == Completion(free.ids[: first + 1], free.token_logps[: first + 1], "stop")
    assert complete(model, [[1]], [5], first + 1, stop_ids=[stop]) == [stopped]  # at its limit too


@pytest.mark.parametrize("kept", [1, 2, 7, 8, 9, 16, 17, 29, 30])
def test_a_stop_rule_ends_a_completion_with_the_first_token_that_meets_it(kept):
    """Looked for every 8 tokens and at the end, found where it was."""
    model = random_model()
    [free] = complete(model, [[1]], [5], 30)
    [ruled] = complete(model, [[1]], [5], 30, find_stop=lambda ids: len(ids) >= kept)
    assert ruled == Completion(free.ids[:kept], free.token_logps[:kept], "stop")


def test_a_stop_rule_before_a_stop_token_comes_first():
    model = random_model()
    [free] = complete(model, [[1]], [5], 30)
    stop = free.ids[12]
    cut = free.ids.index(stop) - 1
    rule = {"find_stop": lambda ids: len(ids) >= cut}
    [ruled] = complete(model, [[1]], [5], 30, stop_ids=[stop], **rule)
    assert ruled == Completion(free.ids[:cut], free.token_logps[:cut], "stop")


def test_tokens_are_told_as_they_are_drawn():
    model, told = random_model(), [[], [], []]

    def tell(indices: list[int], tokens: torch.Tensor) -> None:
        for i, token in zip(indices, tokens.tolist(), strict=True):
            told[i].append(token)

    drawn = generate(model, PROMPTS, [1, 2, 3], 9, on_tokens=tell, stop_ids=[5])
    for i, completion in drawn:
        assert told[i] == completion.ids
    assert all(told)


def test_a_finished_row_makes_room_at_once(monkeypatch):
    """Two places. Positions end the first completion after 6 tokens and the others after 2.

    The three short ones follow each other beside the long one: 6 steps.
    """
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    model, steps = random_model(max_position_embeddings=12), []
    prompts = [[1] * 6, [2] * 10, [3] * 10, [4] * 10]
    drawn = generate(model, prompts, [0] * 4, 99, on_tokens=lambda rows, _: steps.append(rows))
    assert sorted(i for i, _ in drawn) == [0, 1, 2, 3]
    assert steps == [[0, 1], [0, 1], [0, 2], [0, 2], [0, 3], [0, 3]]


@pytest.mark.parametrize("lengths", [(10, 10), (300, 20, 20, 20)])
def test_the_prompt_read_last_gives_its_pages_before_a_completion_does(lengths):
    """Room for the longest completion and no more: it is drawn to its end beside a prompt that no
    row continues any more."""
    model = random_model(max_position_embeddings=600)
    prompts = [[i + 1] * length for i, length in enumerate(lengths)]
    settings = (prompts, [1] * len(prompts), 240)
    assert complete(model, *settings, cache_bytes=0) == complete(model, *settings)


def test_equal_neighbours_are_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        module, "prefill", lambda m, ids, cache: read.append(ids) or prefill(m, ids, cache)
    )
    complete(random_model(), [[1, 2], [1, 2], [3], [1, 2]], [1, 2, 3, 4], 2)
    assert read == [[1, 2], [3], [1, 2]]


def test_front_rows_by_hand():
    """Of rows 0-5, 1, 4 and 5 go on: 1 stays, 5 and 4 take the places 0 and 2."""
    assert front_rows([False, True, False, False, True, True]) == [5, 1, 4]
    assert front_rows([True, True, False]) == [0, 1]


@pytest.mark.parametrize(
    "prompt, max_new_tokens, message",
    [
        ([], 5, "completion 0: expected at least one token"),
        ([1], 0, "--max_new_tokens expects 1 or more"),
        ([1] * 400, 5, "400 tokens leave no room for a completion within the model's 400 pos"),
        ([77], 5, "token 77 is outside the model's vocabulary of 77"),
    ],
)
def test_prompts_that_cannot_be_continued(prompt, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        complete(random_model(), [prompt], [0], max_new_tokens)


def test_the_last_position_ends_a_completion():
    """A prompt of 390 tokens leaves ten of 400 positions; its neighbour is not cut."""
    model = random_model()
    long, short = complete(model, [[1] * 390, [1]], [0, 0], 30)
    assert (len(long.ids), long.finish_reason) == (10, "length")
    assert short == complete(model, [[1]], [0], 30)[0] and len(short.ids) == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(temperature):
    model = random_model()
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(ValueError, match=r"^completion 0, new token 0: the logits are not finite"):
        complete(model, [[1]], [0], 5, Sampling(temperature))


def test_errors_name_a_completion_as_the_caller_does():
    """Four completions of each prompt; token 7, which the third prompt alone has, is broken."""
    model = random_model()
    model.embed_tokens.weight.data[7] = math.nan
    prompts = [prompt for prompt in ([1], [2], [7]) for _ in range(4)]
    with pytest.raises(ValueError, match=r"^completion 8, new token 0: the logits are not finite"):
        list(generate(model, prompts, range(12), 1))
    name = "prompt {0[0]}, completion {0[1]}".format
    drawn = generate(model, prompts, range(12), 1, name=lambda i: name(divmod(i, 4)))
    with pytest.raises(ValueError, match=r"^prompt 2, completion 0, new token 0: the logits"):
        list(drawn)
    with pytest.raises(ValueError, match=r"^row 1: expected at least one token"):
        list(generate(model, [[1], []], [0, 1], 1, name="row {}".format))


def test_no_prompts_no_completions():
    assert list(generate(random_model(), [], [], 5)) == []


@pytest.mark.gpu
def test_the_cached_path_is_the_plain_forward_on_cuda():
    model = random_model().cuda()
    for prompt, completion in zip(PROMPTS, complete(model, PROMPTS, [1, 2, 3], 100), strict=True):
        ids = torch.tensor([prompt + completion.ids], device="cuda")
        logits = model(ids)[0, len(prompt) - 1 : -1].double()
        chosen = ids[0, len(prompt) :, None]
        logps = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        assert completion.logps == pytest.approx(logps.sum().item(), abs=1e-2)
