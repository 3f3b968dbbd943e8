"""Sampling: a prompt is read once, its completions are drawn token by token from a key/value cache.

    prefill           a prompt's keys and values, and the logits of the token behind it
    sample_next_token one token for each row: temperature, top-k, top-p, min-p, then one draw
    decode_one_token  the drawn tokens in, the next logits out
    generate          the loop over all of it, in groups that fit a budget for the cache

A completion is a function of the model, its prompt and its seed, and on CPU the same to the last
bit whatever is generated beside it. What that takes: the draw at a position is a hash of (seed,
position); each prompt is read in a row of its own; decode batches have a multiple of ROWS rows,
since smaller matrix products round differently; and attention sums in an order that does not
depend on the batch (`attend_new_token`). It holds for layer sizes in multiples of 4, heads of 8 or
more, and a fixed number of threads. On CUDA the draws are the same, the rounding is not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import SLOTS, KVCache, round_up
from model.transformer import Transformer

ROWS = 8  # a decode batch on CPU is a multiple of this


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the options apply in this order, each to what the last one left."""

    temperature: float = 1.0  # logits are divided by it; 0 takes the most probable token
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the most probable tokens until their mass reaches this; 1 keeps all
    min_p: float = 0.0  # keep tokens at least this times as probable as the first; 0 keeps all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature expects 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"--top_k expects 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p expects a number in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"--min_p expects a number in [0, 1], got {self.min_p}")


@dataclass
class Completion:
    """What was drawn behind a prompt."""

    ids: list[int] = field(default_factory=list)  # a stop token at the end included
    token_logps: list[float] = field(default_factory=list)  # under the policy, at temperature 1
    finish_reason: str | None = None  # "stop" or "length" (no room left); None while it grows

    @property
    def logps(self) -> float:
        """The sum over its tokens, the stop token included."""
        return math.fsum(self.token_logps)


# ------------------------------------------------------------------------------------------------
# random draws: a hash instead of a generator, so that no draw depends on another


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


def uniforms(seeds: Tensor, position: int) -> Tensor:
    """(B,) float64 in [0, 1), multiples of 2^-52: the draw of each seed at a position."""
    return shift_right(hash_pair(seeds, torch.tensor(position)), 12).double() * 2.0**-52


# ------------------------------------------------------------------------------------------------
# one token


def sample_next_token(
    logits: Tensor, sampling: Sampling, seeds: Tensor, position: int
) -> tuple[Tensor, Tensor]:
    """Draw one token for each row by inverting the distribution function.

    logits: (B, V), seeds: (B,) int64, position: tokens drawn before this one
    out: tokens (B,), logps (B,) float32: log-probability of the token before any of the options
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        probs = filter_logits(logits, sampling).softmax(dim=-1)
        cumulative = probs.cumsum(dim=-1, dtype=torch.float64)  # (B, V)
        targets = uniforms(seeds, position)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # NaN logits: the caller sees it in logps
    chosen = logits.gather(1, tokens[:, None]).squeeze(1)
    return tokens, chosen - logits.logsumexp(dim=-1)


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


def prefill(model: Transformer, prompt: list[int]) -> tuple[KVCache, Tensor]:
    """A cache of one sequence, the prompt, and the logits (1, V) of the token behind it."""
    cache = model.new_cache(1, len(prompt))
    return cache, model(torch.tensor([prompt], device=cache.keys.device), cache=cache)


def decode_one_token(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """The tokens (B,) join their sequences in the cache; out: the logits (B, V) behind them."""
    return model(tokens[:, None], cache=cache)


# ------------------------------------------------------------------------------------------------
# many completions


def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_ids: Sequence[int] = (),
    is_stopped: Callable[[list[int]], bool] | None = None,
    on_token: Callable[[int, int], object] | None = None,
    cache_bytes: int = 2**30,
) -> Iterator[Completion]:
    """One completion for each (prompt, seed), in their order, as their groups finish.

    prompts: token ids; to draw several completions of a prompt, repeat it: equal neighbours are
    read once. seeds: see `completion_seeds`. stop_ids: a completion ends behind one of these.
    is_stopped: asked after each token with a completion's ids; True ends it (stop strings).
    on_token: called with (index of the completion, token) for each token, as soon as it is drawn.
    cache_bytes: budget for keys and values; it changes speed and memory, never a result.
    A completion ends with reason "length" at max_new_tokens or at the model's last position.
    Raises ValueError for a prompt that is empty or leaves no position for a completion, and for
    logits that are not finite.
    """
    assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
    if max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens expects 1 or more, got {max_new_tokens}")
    for i, prompt in enumerate(prompts):
        check_prompt(model, prompt, f"prompt {i}")
    positions = model.config.max_position_embeddings
    limits = [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]

    def reason(ids: list[int], limit: int) -> str | None:
        if ids[-1] in stop_ids or (is_stopped is not None and is_stopped(ids)):
            return "stop"
        return "length" if len(ids) == limit else None

    for group in groups(model, prompts, limits, cache_bytes):
        completions = [Completion() for _ in group]

        def record(
            row: int, token: int, logp: float, group: range = group, grown: list = completions
        ) -> bool:
            """Add a token to a completion of the group; True when that finishes it."""
            if not math.isfinite(logp):
                where = f"prompt {group[row]}, new token {len(grown[row].ids)}"
                raise ValueError(f"{where}: the logits are not finite; try --dtype float32")
            completion = grown[row]
            completion.ids.append(token)
            completion.token_logps.append(logp)
            completion.finish_reason = reason(completion.ids, limits[group[row]])
            if on_token is not None:
                on_token(group[row], token)
            return completion.finish_reason is not None

        chosen = slice(group.start, group.stop)
        generate_group(model, prompts[chosen], seeds[chosen], limits[chosen], sampling, record)
        yield from completions


def check_prompt(model: Transformer, prompt: list[int], where: str) -> None:
    """ValueError, naming `where` the prompt is from, if the model cannot take and continue it."""
    if not prompt:
        raise ValueError(f"{where}: expected at least one token, got an empty prompt")
    vocab_size = model.config.vocab_size
    if max(prompt) >= vocab_size:
        raise ValueError(
            f"{where}: token {max(prompt)} is outside the model's vocabulary of {vocab_size}; "
            "is the tokenizer that of the model?"
        )
    positions = model.config.max_position_embeddings
    if len(prompt) >= positions:
        raise ValueError(
            f"{where}: {len(prompt)} tokens leave no room for a completion within the model's "
            f"{positions} positions; shorten the prompt"
        )


def groups(
    model: Transformer, prompts: Sequence[list[int]], limits: Sequence[int], cache_bytes: int
) -> Iterator[range]:
    """Cut the prompts into ranges whose caches fit the budget; one completion always does.

    limits: how many tokens the completion of each prompt may have
    """
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    token_bytes = numbers * (model.compute_dtype or model.embed_tokens.weight.dtype).itemsize
    start, longest = 0, 0
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        slots = round_up(len(prompt) + limit, SLOTS)
        if i > start and (i + 1 - start) * max(longest, slots) * token_bytes > cache_bytes:
            yield range(start, i)
            start, longest = i, 0
        longest = max(longest, slots)
    if prompts:
        yield range(start, len(prompts))


@torch.inference_mode()
def generate_group(
    model: Transformer,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    limits: Sequence[int],
    sampling: Sampling,
    record: Callable[[int, int, float], bool],
) -> None:
    """The decode loop: rows[b] is the completion in row b; one that is finished frees its row.

    record: takes (completion, token, logp), and says whether that completion is finished.
    """
    rows = list(range(len(prompts)))
    capacity = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    cache, logits = prefill_rows(model, prompts, capacity)
    row_seeds = seeds_of(rows, seeds, logits)
    for position in range(max(limits)):
        tokens, logps = sample_next_token(logits, sampling, row_seeds, position)
        drawn = zip(rows, tokens.tolist(), logps.tolist(), strict=False)  # the padding is not read
        alive = [not record(row, token, logp) for row, token, logp in drawn]
        if not any(alive):
            return
        if not all(alive):
            kept = front_rows(alive)
            rows = [rows[b] for b in kept]
            batch = padded(len(rows), cache)
            cache.keep(kept, batch)
            tokens = torch.cat([tokens[kept], tokens.new_zeros(batch - len(rows))])
            row_seeds = seeds_of(rows, seeds, tokens)
        logits = decode_one_token(model, tokens, cache)


def prefill_rows(
    model: Transformer, prompts: Sequence[list[int]], capacity: int
) -> tuple[KVCache, Tensor]:
    """A padded cache with a prompt in each row, and the logits (B, V) behind them.

    Equal neighbours are read once; what the logits of the padding are does not matter.
    """
    cache, logits, start = None, [], 0
    while start < len(prompts):
        stop = start + 1
        while stop < len(prompts) and prompts[stop] == prompts[start]:
            stop += 1
        source, row = prefill(model, prompts[start])
        if cache is None:
            cache = model.new_cache(padded(len(prompts), source), capacity)
        cache.put(slice(start, stop), source)
        logits.append(row.expand(stop - start, -1))
        start = stop
    logits.append(logits[0][:1].expand(len(cache.lengths) - len(prompts), -1))
    return cache, torch.cat(logits)


def padded(rows: int, cache: KVCache) -> int:
    """Rows of a decode batch; the padding holds empty sequences that nobody reads."""
    return round_up(rows, ROWS) if cache.keys.device.type == "cpu" else rows


def seeds_of(rows: list[int], seeds: Sequence[int], like: Tensor) -> Tensor:
    """(B,) int64 on the device of `like` (B, ...), zero for the padding."""
    values = [seeds[row] for row in rows] + [0] * (len(like) - len(rows))
    return torch.tensor(values, device=like.device)


def front_rows(alive: list[bool]) -> list[int]:
    """The rows that go on, for places 0, 1, ...: rows there stay, gaps are filled from behind."""
    places = range(sum(alive))
    behind = [row for row, goes_on in enumerate(alive) if goes_on and row >= len(places)]
    return [place if alive[place] else behind.pop() for place in places]
