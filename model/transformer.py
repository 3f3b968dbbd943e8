"""A decoder-only transformer: the Llama and Mistral architecture, with Hugging Face's names.

One forward in four forms:

    model(input_ids (B, T))               -> logits (B, T, V)  the plain definition
    model(input_ids (B, T), cache=cache)  -> logits (B, V)     of the last position: generation,
                                             a prompt (1, T) or one new token (B, 1) for each row
    model(batch=packed)                   -> TokenStats (C,)   of the completion tokens alone
    model(batch=packed, cache=read)       -> the same, where all of the row continues a read prompt

A reward model has one number per token in place of logits: (B, T), (B,), and of a packed batch
(2B,) the rewards of its completions, each read at the completion's last token.

Differences from the published code: none in the numbers; the rotary tables are computed from the
positions at each call, in float32, and attention dropout does not exist.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from model.attention import Plan, Segment, attend, attend_batch, plan_attention
from model.cache import PagedCache, PromptKeys
from model.linear import Linear
from model.logps import HeadOptions, TokenStats, token_logps, wide_product, widens


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, in the words of a checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    sliding_window: int | None = None  # a token sees itself and window - 1 tokens before it
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    scalar_head: bool = False  # a reward model: one number from a hidden state, no vocabulary


class PackedBatch(Protocol):
    """What the packed form of the forward reads of a batch; of the last three, a language model
    the first two and a reward model the third."""

    input_ids: Tensor  # (T,)
    positions: Tensor  # (T,)
    segments: list[Segment]
    predictors: Tensor  # (C,) the row of the hidden states that predicts each completion token
    targets: Tensor  # (C,)
    last_rows: Tensor  # (2B,) the row of each completion's last token


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return Normalise.apply(x, self.weight.to(x.dtype), self.eps)


class Normalise(torch.autograd.Function):
    """The norm of (..., D); kept for the backward pass: x and one number per row."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = widen(x)
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
        ctx.save_for_backward(x, weight, inverse_rms)
        return weight * (wide * inverse_rms).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        x, weight, inverse_rms = ctx.saved_tensors
        normalised = widen(x) * inverse_rms
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (widen(grad_out) * normalised).flatten(0, -2).sum(0).to(weight.dtype)
        grad = widen(grad_out * weight)
        along_x = (grad * normalised).mean(-1, keepdim=True)  # what keeps the rms as it is
        grad_x = grad.sub_(normalised.mul_(along_x)).mul_(inverse_rms)
        return grad_x.to(x.dtype), grad_weight, None


def widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# ------------------------------------------------------------------------------------------------
# rotary position embedding (Su et al. 2021), the halves form of Hugging Face


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """(E / 2,) float32 radians per position, with the checkpoint's scaling applied."""
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    scaling = config.rope_scaling
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        return llama3_frequencies(frequencies, scaling)
    return frequencies


def llama3_frequencies(frequencies: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1's rule: long wavelengths divided by the factor, short ones kept, a ramp between."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (ramp + (1 - ramp) / scaling["factor"])


def rotary_tables(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """cos and sin (..., 1, E) of positions (...): one angle for both halves of a head."""
    angles = positions.float()[..., None] * rotary_frequencies(config, positions.device)
    angles = torch.cat([angles, angles], dim=-1)[..., None, :]  # (..., 1, E)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + E/2}) of (..., H, E) by its angle; cos and sin: (..., 1, E)."""
    return Rotation.apply(x, cos, sin)


class Rotation(torch.autograd.Function):
    """Its backward pass is the rotation by the opposite angle: nothing of x is kept."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return rotate_pairs(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        return rotate_pairs(grad_out, *ctx.saved_tensors, -1), None, None


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].sub_(x[..., half:] * sin[..., :half], alpha=direction)
    turned[..., half:].add_(x[..., :half] * sin[..., half:], alpha=direction)
    return turned


# ------------------------------------------------------------------------------------------------
# the blocks


@dataclass
class Context:
    """What every layer of one forward shares."""

    cos: Tensor  # (..., 1, E)
    sin: Tensor  # (..., 1, E)
    plan: Plan | None = None  # packed form
    cache: PagedCache | PromptKeys | None = None  # generation


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key and value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        D, E, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.layer, self.head_dim, self.window = layer, E, config.sliding_window
        self.attend = attend
        self.q_proj = Linear(D, config.num_attention_heads * E, bias=bias)
        self.k_proj = Linear(D, config.num_key_value_heads * E, bias=bias)
        self.v_proj = Linear(D, config.num_key_value_heads * E, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * E, D, bias=bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (..., H, E)
        key = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (..., K, E)
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (..., K, E)
        query, key = rotate(query, context.cos, context.sin), rotate(key, context.cos, context.sin)
        if context.plan is not None:
            if context.cache is not None:
                key, value = context.cache.behind(self.layer, key, value)  # (before + T, K, E)
            out = self.attend(query, key, value, context.plan, self.window)
        elif context.cache is not None:
            out = context.cache.attend(self.layer, query, key, value, self.window)
        else:
            out = attend_batch(query, key, value, self.window)
        return self.o_proj(out.flatten(-2))  # (..., D)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(D, F_, bias=bias)
        self.up_proj = Linear(D, F_, bias=bias)
        self.down_proj = Linear(F_, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(Gated.apply(self.gate_proj(x), self.up_proj(x)))


class Gated(torch.autograd.Function):
    """silu(gate) * up, both (..., F); silu(gate) is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad_out * up, gate)
        return grad_gate, F.silu(gate).mul_(grad_out)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Token ids -> logits, or the log-probabilities of a packed batch's completion tokens; or
    rewards."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None  # of the activations; None: the embedding's
        self.checkpoint_activations = False  # recompute each block in the backward pass
        self.keep_every = 0  # but for every n-th
        self.head = HeadOptions()
        # filled later, as all weights are: nn.Embedding draws its own, which on the meta device
        # imports torch's compiler, a fourth of the time that a short command takes
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(weight, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.scalar_head:
            self.score = Linear(config.hidden_size, 1, bias=False)
        else:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
            if config.tie_word_embeddings:
                self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: PagedCache | PromptKeys | None = None,
        batch: PackedBatch | None = None,
    ) -> Tensor | TokenStats:
        """See the head of this file.

        input_ids: (B, T); rows are independent and causal, so that padding on the right is
        harmless. cache: where these ids continue; their keys and values are added to it, but for
        those of a batch: each of its segments continues the prompt that was read.
        """
        if batch is not None:
            hidden = self.hidden_states(batch.input_ids, batch.positions, batch.segments, cache)
            if self.config.scalar_head:
                return self.read_out(hidden.index_select(0, batch.last_rows))  # (2B,)
            predictors = hidden.index_select(0, batch.predictors)  # (C, D): no other meets the head
            return token_logps(predictors, self.lm_head.weight, batch.targets, options=self.head)
        B, T = input_ids.shape
        if cache is None:
            positions = torch.arange(T, device=input_ids.device).expand(B, T)
            return self.read_out(self.hidden_states(input_ids, positions))  # (B, T, V)
        hidden = self.hidden_states(input_ids, cache.positions(input_ids), cache=cache)
        cache.advance()
        plain = self.config.scalar_head or torch.is_grad_enabled()  # mm to float32 has no backward
        if widens(hidden) and not plain:  # float32 logits, as token_logps has them
            return wide_product(hidden[:, -1], self.lm_head.weight.to(hidden.dtype).T)  # (B, V)
        return self.read_out(hidden[:, -1:])[:, 0]  # (B, V)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.compute_dtype or self.embed_tokens.weight.dtype

    def read_out(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits (..., V); of a reward model (...) float32, or as wide as the input."""
        if self.config.scalar_head:
            return self.score(widen(hidden)).squeeze(-1)
        return self.lm_head(hidden)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: list[Segment] | None = None,
        cache: PagedCache | PromptKeys | None = None,
    ) -> Tensor:
        """(...) ids at (...) positions -> (..., D), after the final norm."""
        x = self.embed_tokens(input_ids)
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype)
        cos, sin = rotary_tables(self.config, positions, x.dtype)
        plan = None
        if segments is not None:
            before = 0 if cache is None else cache.length
            window, head_dim = self.config.sliding_window, self.config.head_dim
            plan = plan_attention(segments, window, x, head_dim, before)
        context = Context(cos, sin, plan, cache)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            if recompute and not (self.keep_every and (i + 1) % self.keep_every == 0):
                x = checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        return self.norm(x)

    def compile_blocks(self) -> None:
        """torch.compile for each block, whatever the lengths; attention's plan stays outside."""
        for layer in self.layers:
            layer.self_attn.attend = torch.compiler.disable(attend)
            layer.compile(dynamic=True)

    def new_cache(self, pages: int) -> PagedCache:
        """An empty cache of so many pages."""
        config, weight = self.config, self.embed_tokens.weight
        mesh = getattr(weight, "device_mesh", None)  # a shard may lie elsewhere than it computes
        return PagedCache(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            pages,
            self.dtype,
            weight.device if mesh is None else mesh.device_type,
        )

    def initial_weights(self, seed: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Values to train from scratch: normal matrices, unit norms, zero biases; in float32."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if ".lora_" in name:
                continue
            if parameter.dim() == 2:
                yield parameter, torch.randn(parameter.shape, generator=generator) * std
            else:
                constant = 1.0 if name.endswith("norm.weight") else 0.0
                yield parameter, torch.full(parameter.shape, constant)
