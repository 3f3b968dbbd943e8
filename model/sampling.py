"""One token: how it is drawn from its logits, as a function of a seed and a position.

Temperature, top-k, top-p and min-p are defined as transformers defines them, in float32. The draw
is a hash of (seed, position) instead of a generator's next number, so that no draw depends on
another.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # tokens whose weights are summed together
CACHED = 2**18  # logits at a time on a CPU: what is made of them stays in its cache
LEAST_TEMPERATURE = 1e-6  # logits divided by less would leave float32


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the options apply in this order, each to what the last one left."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most probable token
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the most probable tokens until their mass reaches this; 1 keeps all
    min_p: float = 0.0  # keep tokens at least this times as probable as the first; 0 keeps all

    def __post_init__(self) -> None:
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"--temperature expects 0 (the most probable token) or {LEAST_TEMPERATURE:g} and "
                f"more, got {self.temperature}"
            )
        if self.top_k < 0:
            raise ValueError(f"--top_k expects 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p expects a number in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min_p expects a number in [0, 1], got {self.min_p}")


PLAIN = Sampling()  # from the model's own distribution

# ------------------------------------------------------------------------------------------------
# random draws


def splitmix64(x: Tensor) -> Tensor:
    """The 64-bit mixer of SplitMix64 (Steele, Lea and Flood 2014); int64 in, int64 out."""
    x = (x ^ shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """As if x were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_pair(state: Tensor, index: Tensor) -> Tensor:
    """Number `index` of the stream that SplitMix64 makes of a state, the state mixed first."""
    return splitmix64(splitmix64(state) + (index + 1) * (0x9E3779B97F4A7C15 - 2**64))


def completion_seeds(seed: int, prompt: int, samples: int) -> list[int]:
    """The seeds of a prompt's first completions, from the run's seed and the prompt's index.

    seed: in [0, 2^63), else ValueError.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed expects a number from 0 to 2^63 - 1, got {seed}")
    state = hash_pair(torch.tensor(seed), torch.tensor(prompt))
    return hash_pair(state, torch.arange(samples)).tolist()


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """(B,) float64 in [0, 1), multiples of 2^-52: the draw of each seed at its position."""
    return shift_right(hash_pair(seeds, positions), 12).double() * 2.0**-52


# ------------------------------------------------------------------------------------------------
# one token


def sample_next_token(
    logits: Tensor, sampling: Sampling, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one token for each row by inverting the distribution function.

    logits: (B, V), seeds and positions: (B,) int64, how many tokens were drawn before this one
    out: tokens (B,), logps (B,) float32: log-probability of the token before any of the options
    """
    B, V = logits.shape
    some = B if logits.is_cuda else max(1, CACHED // V)
    parts = zip(logits.split(some), seeds.split(some), positions.split(some), strict=True)
    drawn = [draw_tokens(rows, sampling, *draws) for rows, *draws in parts]
    tokens, logps = zip(*drawn, strict=True)
    return torch.cat(tokens), torch.cat(logps)


def draw_tokens(
    logits: Tensor, sampling: Sampling, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, of all rows at once."""
    logits = logits.float().contiguous()  # sums of a row run the same way, however it came
    top = logits.amax(dim=-1, keepdim=True)  # (B, 1)
    weights = in_blocks((logits - top).exp_())  # (B, V / BLOCK, BLOCK)
    sums = weights.sum(dim=-1).double()  # (B, V / BLOCK)
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
    elif sampling == PLAIN:
        tokens = invert(weights, sums, uniforms(seeds, positions))
    else:
        left = in_blocks(filter_logits(logits, sampling).softmax(dim=-1))
        tokens = invert(left, left.sum(dim=-1).double(), uniforms(seeds, positions))
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # NaN logits: the caller sees it in logps
    chosen = (logits.gather(1, tokens[:, None]) - top).squeeze(1)
    return tokens, chosen - sums.sum(dim=-1).log().float()


def in_blocks(weights: Tensor) -> Tensor:
    """(B, V) -> (B, ceil(V / BLOCK), BLOCK), zeros behind the last token."""
    missing = -weights.shape[1] % BLOCK
    padded = F.pad(weights, (0, missing)) if missing else weights  # not a copy for nothing
    return padded.unflatten(1, (-1, BLOCK))


def invert(weights: Tensor, sums: Tensor, draws: Tensor) -> Tensor:
    """(B,): where the running sum of the weights passes the draw's share of their total.

    weights: (B, N, BLOCK) float32, not negative; sums: (B, N) float64, of the blocks; draws: (B,)
    in [0, 1). The running sum goes over the blocks, then over the tokens of one: next to no
    arithmetic beside the sums.
    """
    before = sums.cumsum(dim=-1)
    target = draws[:, None] * before[:, -1:]  # (B, 1)
    block = last_nonzero(sums, torch.searchsorted(before, target, right=True))
    rest = target - (before.gather(1, block) - sums.gather(1, block))
    inside = weights.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1)  # (B, BLOCK)
    cumulative = inside.cumsum(dim=-1, dtype=torch.float64)
    token = last_nonzero(inside, torch.searchsorted(cumulative, rest, right=True))
    return (block * BLOCK + token).squeeze(1)


def last_nonzero(weights: Tensor, index: Tensor) -> Tensor:
    """The index (B, 1), or the nearest one below it whose weight (B, N) is not zero.

    Rounding can carry a draw near 1 past the last weight.
    """
    places = torch.arange(weights.shape[1], device=weights.device)
    below = (weights != 0) & (places <= index)
    return torch.where(below, places, 0).amax(dim=-1, keepdim=True)


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) float32 -> the same over temperature, -inf for the tokens that are left out.

    Ties with the last token that top-k keeps are kept; top-p leaves out the least probable tokens
    whose mass together is at most 1 - top_p, so that the token which crosses top_p is kept.
    """
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        left_out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        left_out[:, -1] = False  # the most probable token always stays
        logits = logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)
    if sampling.min_p:
        probs = logits.softmax(dim=-1)
        threshold = sampling.min_p * probs.amax(dim=-1, keepdim=True)
        logits = logits.masked_fill(probs < threshold, -torch.inf)
    return logits
