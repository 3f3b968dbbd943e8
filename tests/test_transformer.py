"""The transformer against transformers' Llama and Mistral; the packed form against the plain one.

pytest tests/test_transformer.py
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from data.packing import PairBatch, pack_pairs
from data.pairs import TokenPair
from model.checkpoint import init_weights, load_model
from model.lora import adapters_disabled, add_lora, lora_layers
from model.transformer import (
    Gated,
    ModelConfig,
    Normalise,
    Transformer,
    rotary_tables,
    rotate,
)

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OPTIONS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one_key_head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20, "num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "rope_theta": {"rope_theta": 500000.0},
    "rope_linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "rope_linear_old": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "rope_parameters": {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}
    },
}
MISTRAL = {
    "mistral": {"num_key_value_heads": 2},
    "mistral_window": {"num_key_value_heads": 2, "sliding_window": 7},
    "mistral_head_dim": {"head_dim": 16, "sliding_window": 33},
}


def save_witness(folder: Path, options: dict, mistral: bool = False, seed: int = 0):
    """A random model of transformers', saved in the folder with a config.json of our own words."""
    torch.manual_seed(seed)
    config_class = transformers.MistralConfig if mistral else transformers.LlamaConfig
    model_class = transformers.MistralForCausalLM if mistral else transformers.LlamaForCausalLM
    defaults = {"sliding_window": None} if mistral else {}
    fields = {**BASE, **defaults, **options}
    witness = model_class._from_config(
        config_class(**json.loads(json.dumps(fields))), attn_implementation="eager"
    )
    for parameter in witness.parameters():
        if parameter.dim() == 1:  # biases and norms away from their trivial start
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    witness.eval().save_pretrained(folder)
    name = "mistral" if mistral else "llama"
    architecture = [type(witness).__name__]
    fields = {"architectures": architecture, "model_type": name, "hidden_act": "silu", **fields}
    (folder / "config.json").write_text(json.dumps(fields))
    return witness


@pytest.mark.parametrize("name", [*OPTIONS, *MISTRAL])
def test_logits_equal_those_of_transformers(name, tmp_path):
    options = {**OPTIONS, **MISTRAL}[name]
    witness = save_witness(tmp_path, options, mistral=name in MISTRAL)
    model = load_model(tmp_path)
    input_ids = torch.randint(97, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(input_ids), witness(input_ids).logits
    assert (ours - theirs).abs().max().item() < 1e-4
    assert theirs.std().item() > 0.1  # the comparison is about something


@pytest.mark.parametrize("fixture", ["stories_dir", "smollm2_dir"])
def test_real_models_equal_transformers(fixture, request):
    folder = request.getfixturevalue(fixture)
    model = load_model(folder)
    witness = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    V = model.config.vocab_size
    input_ids = torch.randint(3, V, (2, 64), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (model(input_ids) - witness(input_ids).logits).abs().max().item() < 1e-4


# ------------------------------------------------------------------------------------------------
# the packed form: prompts shared, no padding, only completion rows at the head


def random_pairs(vocab: int, sizes: list[tuple[int, int, int]], seed: int = 0) -> list[TokenPair]:
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(vocab, size=n).astype(np.int32)  # noqa: E731
    return [TokenPair(draw(p), draw(c), draw(r), f"made:{i}") for i, (p, c, r) in enumerate(sizes)]


def padded_logps(model: Transformer, pairs: list[TokenPair]) -> torch.Tensor:
    """The definition: each completion with its own copy of the prompt in a padded batch, whole
    logits, log_softmax, gather, shift by one, mask, sum. (2B,), chosen first."""
    rows = [(p.prompt_ids, p.chosen_ids) for p in pairs]
    rows += [(p.prompt_ids, p.rejected_ids) for p in pairs]
    T = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.zeros(len(rows), T, dtype=torch.long)
    mask = torch.zeros(len(rows), T - 1)
    for i, (prompt, completion) in enumerate(rows):
        whole = np.concatenate([prompt, completion]).astype(np.int64)
        input_ids[i, : len(whole)] = torch.from_numpy(whole)
        mask[i, len(prompt) - 1 : len(whole) - 1] = 1
    logits = model(input_ids)[:, :-1]
    logps = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    return (logps * mask).sum(1)


def packed_logps(model: Transformer, batch: PairBatch) -> torch.Tensor:
    return batch.sum_by_sequence(model(batch=batch).logps)


def weighted_gradients(model: Transformer, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1.7, len(logps), dtype=logps.dtype)
    (logps * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


SIZES = [(1, 1, 1), (40, 3, 60), (2, 90, 1), (17, 30, 29), (60, 1, 2)]


@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_and_shared_equal_padded_and_unshared_in_float64(window, checkpointing):
    config = ModelConfig(97, 32, 48, 2, 4, 2, 8, sliding_window=window, initializer_range=0.3)
    model = Transformer(config)
    init_weights(model, 0)
    model = model.double()
    model.checkpoint_activations = checkpointing
    pairs = random_pairs(97, SIZES)
    padded = padded_logps(model, pairs)
    packed = packed_logps(model, pack_pairs(pairs, list(range(5))))
    torch.testing.assert_close(packed, padded, rtol=1e-9, atol=0)

    ours, theirs = weighted_gradients(model, packed), weighted_gradients(model, padded)
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 9 + 3
    for name in ours:
        error = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert error.item() < 1e-9, (name, error)


@pytest.mark.parametrize(("keep_every", "recomputed"), [(0, 6), (2, 3), (3, 4), (1, 0)])
def test_every_nth_block_keeps_its_activations(keep_every, recomputed):
    """Of 6 blocks, those that run a second time in the backward pass."""
    model = Transformer(ModelConfig(97, 32, 48, 6, 4, 2, 8, initializer_range=0.3))
    init_weights(model, 0)
    batch = pack_pairs(random_pairs(97, SIZES), list(range(5)))
    exact = weighted_gradients(model, packed_logps(model, batch))
    model.checkpoint_activations, model.keep_every = True, keep_every
    runs = []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    gradients = weighted_gradients(model, packed_logps(model, batch))
    assert len(runs) == 6 + recomputed
    for name in exact:
        assert torch.equal(gradients[name], exact[name]), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_numbers():
    """Two batches of different lengths, with adapters and without: float32's rounding apart."""
    model = Transformer(ModelConfig(97, 32, 48, 1, 4, 2, 8, initializer_range=0.3))
    init_weights(model, 0)
    add_lora(model, rank=2, alpha=4.0)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(1))
    batches = [pack_pairs(random_pairs(97, SIZES[:n]), list(range(n))) for n in (5, 2)]

    def numbers() -> list[torch.Tensor]:
        found = []
        for batch in batches:
            with torch.no_grad(), adapters_disabled(model):
                found.append(packed_logps(model, batch))
            found += weighted_gradients(model, packed_logps(model, batch)).values()
        return found

    plain = numbers()
    model.compile_blocks()
    torch.testing.assert_close(numbers(), plain, rtol=1e-4, atol=1e-4)


def random_float64(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_hand_written_backward_passes_are_those_of_finite_differences():
    x, weight = random_float64(3, 2, 8), random_float64(8)
    torch.autograd.gradcheck(lambda *xs: Normalise.apply(*xs, 1e-5), (x, weight))
    config = ModelConfig(97, 32, 48, 2, 4, 2, 8)
    cos, sin = rotary_tables(config, torch.tensor([0, 3, 700]), torch.float64)
    torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (random_float64(3, 2, 8),))
    torch.autograd.gradcheck(Gated.apply, (random_float64(3, 8), random_float64(3, 8) * 2))


def test_positions_are_exact_in_half_precision():
    """bfloat16 has neither 1001 nor 1003; their angles are rounded once, behind the cosine."""
    config = ModelConfig(97, 32, 48, 2, 4, 2, 8)
    positions = torch.tensor([1001, 1003])
    rough = rotary_tables(config, positions, torch.bfloat16)
    exact = rotary_tables(config, positions, torch.float32)
    for one, two in zip(rough, exact, strict=True):
        torch.testing.assert_close(one.float(), two, rtol=0, atol=2**-8)


def test_the_norm_of_half_precision_is_taken_in_float32():
    """Forward and backward within bfloat16's rounding of float64 on the same rounded inputs."""
    x, weight = random_float64(5, 64).detach(), random_float64(64).detach()
    grads = []
    for dtype in (torch.bfloat16, torch.float64):
        one = (x * 300).bfloat16().to(dtype).requires_grad_()
        two = weight.bfloat16().to(dtype).requires_grad_()
        out = Normalise.apply(one, two, 1e-5)
        (out * x.bfloat16().to(dtype)).sum().backward()
        grads.append([out, one.grad, two.grad])
    for rough, exact in zip(*grads, strict=True):
        assert ((rough.double() - exact).norm() / exact.norm()).item() < 2**-7


def test_the_norm_of_half_precision_is_that_of_transformers_to_the_last_bit():
    """What it normalises is rounded before the weight multiplies it."""
    x, weight = random_float64(50, 64).bfloat16(), random_float64(64).bfloat16()
    theirs = transformers.models.llama.modeling_llama.LlamaRMSNorm(64, 1e-5).bfloat16()
    theirs.weight.data.copy_(weight)
    assert torch.equal(Normalise.apply(x, weight, 1e-5), theirs(x))


def test_packed_equals_padded_on_a_real_model(smollm2_dir):
    """Pairs of very different lengths: sums in float32, 1e-5 relative; gradients in float64, 1e-9.

    In float32 these gradients carry errors up to 4e-4 of their norm themselves, by CPU (the padded
    ones more than the packed ones).
    """
    model = load_model(smollm2_dir)
    names = ("embed_tokens.weight", "layers.0.self_attn.k_proj.weight", "norm.weight")
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    pairs = random_pairs(49152, [(12, 30, 3), (3, 10, 35), (15, 1, 1)])
    batch = pack_pairs(pairs, [0, 1, 2])
    with torch.no_grad():
        per_token = model(batch=batch).logps
        first = per_token[batch.sequence_id == 0]
        whole = np.concatenate([pairs[0].prompt_ids, pairs[0].chosen_ids]).astype(np.int64)
        logps = model(torch.from_numpy(whole)[None])[0, :-1].log_softmax(-1)
        expected = logps.gather(1, torch.from_numpy(whole)[1:, None])[-len(first) :, 0]
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
        packed, padded = packed_logps(model, batch), padded_logps(model, pairs)
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=0)
    model.double()
    ours = weighted_gradients(model, packed_logps(model, batch))
    theirs = weighted_gradients(model, padded_logps(model, pairs))
    assert sorted(ours) == sorted(theirs) == sorted(names)
    for name in names:
        assert ((ours[name] - theirs[name]).norm() / theirs[name].norm()).item() < 1e-9, name


def test_trained_float32_weights_compute_in_bfloat16():
    """Full fine-tuning in bfloat16: float32 parameters and gradients, bfloat16 activations."""
    model = Transformer(ModelConfig(97, 32, 48, 2, 4, 2, 8, initializer_range=0.2))
    init_weights(model, 0)
    batch = pack_pairs(random_pairs(97, SIZES), list(range(5)))
    exact = packed_logps(model, batch)
    model.compute_dtype = torch.bfloat16
    assert model.hidden_states(batch.input_ids, batch.positions, batch.segments).dtype == (
        torch.bfloat16
    )
    rough = packed_logps(model, batch)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.02)
    rough.sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_policy_that_rests_on_the_host_has_its_cache_where_it_computes():
    """--cpu_offload: a shard lies on the CPU and names the mesh on which it is gathered."""
    model = Transformer(ModelConfig(97, 32, 48, 2, 4, 2, 8))
    assert model.new_cache(2).keys.device.type == "cpu"
    model.embed_tokens.weight.device_mesh = SimpleNamespace(device_type="meta")
    assert model.new_cache(2).keys.device.type == "meta"


def test_init_is_a_function_of_the_seed():
    config = ModelConfig(97, 32, 48, 2, 4, 2, 8, attention_bias=True)
    models = [Transformer(config) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        init_weights(model, seed)
    one, two, three = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert models[0].embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    attention = models[0].layers[0].self_attn
    assert not attention.q_proj.bias.any() and (models[0].norm.weight == 1).all()
