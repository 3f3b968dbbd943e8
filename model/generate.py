"""Completions: a prompt is read once, its completions are drawn token by token behind it.

    prefill           a prompt's keys and values into the cache, and the logits behind it
    decode_one_token  the drawn tokens in, the next logits out
    generate          the loop over all of it: rows come and go, each step draws one token for each

A completion is a function of the model, its prompt and its seed, and on CPU the same to the last
bit whatever is generated beside it. What that takes: the draw at a position is a hash of (seed,
position); each prompt is read in a forward of its own; a batch has a multiple of ROWS rows, since
smaller matrix products round differently; and attention sums page by page (`model/cache.py`). It
holds for layers and heads in multiples of 4, and a fixed number of threads. On CUDA
the draws are the same, the rounding is not.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cache import PAGE, PagedCache, Prompt, PromptKeys, Row, pages_of
from model.linear import packed_linears
from model.sampling import PLAIN, Sampling, sample_next_token
from model.transformer import Transformer

MOST_ROWS = 256  # of a batch: products gain little beyond
STOP_EVERY = 8  # tokens between two looks for stop texts; what was drawn too much is dropped


@dataclass
class Completion:
    """What was drawn behind a prompt."""

    ids: list[int] = field(default_factory=list)  # a stop token at the end included
    token_logps: list[float] = field(default_factory=list)  # under the policy, at temperature 1
    finish_reason: str | None = None  # "stop" or "length" (no room left)

    @property
    def logps(self) -> float:
        """The sum over its tokens, the stop token included."""
        return math.fsum(self.token_logps)


def prefill(model: Transformer, prompt: list[int], cache: PagedCache) -> tuple[Prompt, Tensor]:
    """The prompt in the cache, and the logits (1, V) of the token behind it."""
    read = PromptKeys()
    logits = model(torch.tensor([prompt], device=cache.keys.device), cache=read)
    return cache.add_prompt(read), logits


def decode_one_token(model: Transformer, tokens: Tensor, cache: PagedCache) -> Tensor:
    """The tokens (B,) join the rows of the cache; out: the logits (B, V) behind them."""
    padding = cache.batch - len(tokens)
    return model(F.pad(tokens, (0, padding))[:, None], cache=cache)[: len(tokens)]


def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = PLAIN,
    stop_ids: Sequence[int] = (),
    find_stop: Callable[[list[int]], bool] | None = None,
    on_tokens: Callable[[list[int], Tensor], object] | None = None,
    cache_bytes: int = 10**9,
    name: Callable[[int], str] = "completion {}".format,
) -> Iterator[tuple[int, Completion]]:
    """(i, completion) for each (prompt, seed), as they finish.

    prompts: token ids; to draw several completions of a prompt, repeat it: equal neighbours are
    read once and share its keys and values. seeds: see `completion_seeds`. stop_ids: a completion
    ends behind one of these. find_stop: whether ids hold a text that ends a completion; it ends
    with the first token for which this is true. on_tokens: called at each step with which
    completions drew a token, and the tokens; a completion may draw up to STOP_EVERY tokens more
    than it keeps, or be drawn again from its beginning. cache_bytes: budget for keys and values;
    it changes speed and memory, never a result. name: what errors call the i-th completion. A
    completion ends with reason "length" at max_new_tokens or at the model's last position. Until
    all have come, or this is closed, the model may be called but its weights not be read: they lie
    in `packed_linears`. Raises ValueError for a prompt that is empty or leaves no position for a
    completion, and for logits that are not finite.
    """
    assert len(prompts) == len(seeds), f"{len(prompts)} prompts, {len(seeds)} seeds"
    if max_new_tokens < 1:
        raise ValueError(f"--max_new_tokens expects 1 or more, got {max_new_tokens}")
    for i, prompt in enumerate(prompts):
        check_prompt(model, prompt, name(i))
    if not prompts:
        return
    positions = model.config.max_position_embeddings
    limits = [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]
    batch = Batch(model, prompts, seeds, limits, sampling, stop_ids, find_stop, cache_bytes, name)
    with packed_linears(model, model.dtype):
        while batch.rows or batch.queue:
            with torch.inference_mode():
                drawn = batch.step()
            if on_tokens is not None and drawn[0]:
                on_tokens(*drawn)
            with torch.inference_mode():
                finished = batch.take_finished()
            yield from finished


def check_prompt(model: Transformer, prompt: list[int], where: str) -> None:
    """ValueError, naming `where` the prompt is from, if the model cannot take and continue it."""
    if not prompt:
        raise ValueError(f"{where}: expected at least one token, got an empty prompt")
    check_ids(model, prompt, where)
    positions = model.config.max_position_embeddings
    if len(prompt) >= positions:
        raise ValueError(
            f"{where}: {len(prompt)} tokens leave no room for a completion within the model's "
            f"{positions} positions; shorten the prompt"
        )


def check_ids(model: Transformer, ids: list[int], where: str) -> None:
    """ValueError, naming `where` the ids are from, for one that the model has no embedding of."""
    vocab_size = model.config.vocab_size
    if max(ids) >= vocab_size:
        raise ValueError(
            f"{where}: token {max(ids)} is outside the model's vocabulary of {vocab_size}; "
            "is the tokenizer that of the model?"
        )


# ------------------------------------------------------------------------------------------------
# rows that come and go


class Batch:
    """The completions that are being drawn, and those that wait."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        limits: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
        find_stop: Callable[[list[int]], bool] | None,
        cache_bytes: int,
        name: Callable[[int], str],
    ) -> None:
        self.model, self.prompts, self.sampling, self.find_stop, self.name = (
            model, prompts, sampling, find_stop, name,
        )  # fmt: skip
        self.queue = deque(range(len(prompts)))  # completions that wait, in order
        self.cache = model.new_cache(pages=pool_size(model, prompts, limits, cache_bytes))
        self.rows: list[Row] = []
        self.indices: list[int] = []  # the completion in each row
        self.changed = False  # whether the cache knows of these rows
        self.front: tuple[list[int], Prompt, Tensor] | None = None  # the prompt read last
        self.held: list[Prompt] = []  # prompts in the cache
        device = self.cache.keys.device
        self.all_seeds = torch.tensor(seeds, device=device)
        self.all_limits = torch.tensor(limits, device=device)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
        most = min(MOST_ROWS, len(prompts))
        self.counts = torch.zeros(most, dtype=torch.long, device=device)  # tokens drawn
        self.seeds, self.limits = torch.zeros_like(self.counts), torch.zeros_like(self.counts)
        self.ids = torch.zeros(most, max(limits), dtype=torch.long, device=device)
        self.logps = torch.zeros(most, max(limits), device=device)

    def step(self) -> tuple[list[int], Tensor]:
        """Draw a token for each row, then begin what there is room for.

        out: the completions that drew a token, and their tokens
        """
        tokens = [self.decode()] if self.rows else []
        while (prompt := self.next_prompt()) is not None:
            tokens.append(self.begin(prompt))
        return list(self.indices), torch.cat(tokens)

    def decode(self) -> Tensor:
        if self.changed or self.cache.is_full:
            self.make_room()
            self.cache.set_rows(self.rows)
            self.changed = False
        B = len(self.rows)
        last = self.ids[:B].gather(1, self.counts[:B, None] - 1).squeeze(1)
        return self.draw(decode_one_token(self.model, last, self.cache), slice(0, B))

    def draw(self, logits: Tensor, rows: slice) -> Tensor:
        """Draw the next token of these rows from their logits (B, V), and note it."""
        counts = self.counts[rows]
        tokens, logps = sample_next_token(logits, self.sampling, self.seeds[rows], counts)
        if not logps.isfinite().all():
            b = int((~logps.isfinite()).nonzero()[0])
            where = f"{self.name(self.indices[rows.start + b])}, new token {int(counts[b])}"
            raise ValueError(f"{where}: the logits are not finite; try --dtype float32")
        self.ids[rows].scatter_(1, counts[:, None], tokens[:, None])
        self.logps[rows].scatter_(1, counts[:, None], logps[:, None])
        counts += 1
        return tokens

    # --------------------------------------------------------------------------------------------
    # rows that begin

    def next_prompt(self) -> list[int] | None:
        """The prompt of the completion that is to begin, if there is room for it.

        A page is left free for each row that is at work: most need another one soon.
        """
        if not self.queue or len(self.rows) == len(self.counts):
            return None
        prompt = self.prompts[self.queue[0]]
        known = self.front is not None and self.front[0] == prompt
        needed = 1 + (0 if known else pages_of(len(prompt)))
        waiting = self.cache.pages_needed(self.rows)
        if self.rows and len(self.cache.free) - needed - waiting < len(self.rows):
            return None
        return prompt

    def begin(self, prompt: list[int]) -> Tensor:
        """Rows for the next completions of a prompt, each with its first token; out: the tokens."""
        if self.front is None or self.front[0] != prompt:
            self.front = None
            self.drop_prompts()
            self.front = (prompt, *prefill(self.model, prompt, self.cache))
            self.held.append(self.front[1])
        start = len(self.rows)
        while self.next_prompt() == prompt:
            self.rows.append(Row(self.front[1]))
            self.indices.append(self.queue.popleft())
        rows = slice(start, len(self.rows))
        begun = torch.tensor(self.indices[rows], device=self.counts.device)
        self.counts[rows] = 0
        self.seeds[rows], self.limits[rows] = self.all_seeds[begun], self.all_limits[begun]
        self.changed = True
        return self.draw(self.front[2].expand(len(begun), -1), rows)

    def drop_prompts(self) -> None:
        """Give back the prompts that no row continues."""
        used = {row.prompt for row in self.rows} | ({self.front[1]} if self.front else set())
        for prompt in self.held:
            if prompt not in used:
                self.cache.drop(prompt)
        self.held = [prompt for prompt in self.held if prompt in used]

    def make_room(self) -> None:
        """Until the pages suffice, let go of a prompt that no row continues; then let the last
        completions wait again, from their beginning."""
        while self.cache.pages_needed(self.rows) > len(self.cache.free):
            if self.front and all(row.prompt is not self.front[1] for row in self.rows):
                self.front = None
            else:
                b = self.indices.index(max(self.indices))
                self.queue.appendleft(self.indices[b])
                self.remove([b])
            self.drop_prompts()

    # --------------------------------------------------------------------------------------------
    # rows that end

    def take_finished(self) -> list[tuple[int, Completion]]:
        """(i, completion) of each row that is finished; their places are free at once."""
        B = len(self.rows)
        counts = self.counts[:B]
        last = self.ids[:B].gather(1, counts[:, None] - 1).squeeze(1)
        stopped = torch.isin(last, self.stop_ids)
        done = stopped | (counts == self.limits[:B])
        looked_at = done | (counts % STOP_EVERY == 0) if self.find_stop is not None else done
        finished, ended = [], []
        for b in looked_at.nonzero().flatten().tolist():
            ids = self.ids[b, : int(counts[b])].tolist()
            kept = self.first_stop(ids)
            if kept is None and not done[b]:
                continue
            reason = "length" if kept is None and not stopped[b] else "stop"
            ids = ids[:kept]
            logps = self.logps[b, : len(ids)].tolist()
            finished.append((self.indices[b], Completion(ids, logps, reason)))
            ended.append(b)
        self.remove(ended)
        if ended:
            self.forget_front()
        return finished

    def forget_front(self) -> None:
        """Let go of the prompt read last, unless another completion of it comes next."""
        if self.front and not (self.queue and self.prompts[self.queue[0]] == self.front[0]):
            self.front = None
        self.drop_prompts()

    def first_stop(self, ids: list[int]) -> int | None:
        """How many of the ids, at least, hold a stop text; those before the last look do not."""
        if self.find_stop is None or not self.find_stop(ids):
            return None
        looked_at = (len(ids) - 1) // STOP_EVERY * STOP_EVERY
        return next(m for m in range(looked_at + 1, len(ids) + 1) if self.find_stop(ids[:m]))

    def remove(self, ended: list[int]) -> None:
        """Take rows out; the last rows move into the gaps."""
        if not ended:
            return
        for b in ended:
            self.cache.drop(self.rows[b])
        gone = set(ended)
        kept = front_rows([b not in gone for b in range(len(self.rows))])
        targets = [place for place, b in enumerate(kept) if place != b]
        sources = [kept[place] for place in targets]
        for state in (self.counts, self.seeds, self.limits, self.ids, self.logps):
            state[targets] = state[sources]
        self.rows = [self.rows[b] for b in kept]
        self.indices = [self.indices[b] for b in kept]
        self.changed = True


def front_rows(alive: list[bool]) -> list[int]:
    """The rows that go on, for places 0, 1, ...: rows there stay, gaps are filled from behind."""
    places = range(sum(alive))
    behind = [row for row, goes_on in enumerate(alive) if goes_on and row >= len(places)]
    return [place if alive[place] else behind.pop() for place in places]


def pool_size(
    model: Transformer, prompts: Sequence[list[int]], limits: Sequence[int], cache_bytes: int
) -> int:
    """Pages within the budget, enough for any one completion, and not more than all can use."""
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * PAGE * config.head_dim
    wide = torch.promote_types(model.dtype, torch.float32)
    budget = cache_bytes // (numbers * wide.itemsize)
    each = [pages_of(len(p)) + pages_of(limit) for p, limit in zip(prompts, limits, strict=True)]
    return 1 + max(max(each), min(budget - 1, sum(each) + len(each)))  # one is kept free for each
