"""Keys and values for generation, in pages: a prompt's are held once for all of its completions.

A page holds PAGE tokens of one sequence. Pages of completions are taken from the beginning of the
pool and pages of prompts from its end, so that each kind is multiplied where it lies: a page of a
completion with the query of its row, a page of a prompt with the queries of all its rows. A page
gives a part of the answer (largest score, sum, weighted values), and the parts of a row are put
together in the order of its tokens.

So a row's numbers are, to the last bit, the same whatever lies beside it: every product has the
shape of a page, and what is masked adds zeros.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import attend_batch

PAGE = 64  # tokens
ROWS = 8  # products of a multiple of this many rows round alike; smaller ones do not
LOWEST = -1e30  # stands for the largest score where nothing is seen
NOWHERE = 2**40  # a position that no row has reached


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class PromptKeys:
    """Keys and values of every layer, as a forward over one prompt leaves them behind."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []  # (1, P, K, E) each

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1] if self.layers else 0

    def positions(self, input_ids: Tensor) -> Tensor:
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]

    def behind(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (T, K, E) of a packed row behind those of the prompt."""
        read_key, read_value = self.layers[layer]
        return torch.cat([read_key[0], key]), torch.cat([read_value[0], value])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Tensor:
        assert layer == len(self.layers), f"layer {layer} after {len(self.layers)} others"
        self.layers.append((key, value))
        return attend_batch(query, key, value, window)

    def advance(self) -> None:
        """All layers have stored the prompt; nothing is to be counted."""


@dataclass(eq=False)
class Prompt:
    """A prompt in the cache."""

    length: int
    pages: list[int]


@dataclass(eq=False)
class Row:
    """A sequence of the batch, which grows behind its prompt."""

    prompt: Prompt
    pages: list[int] = field(default_factory=list)
    grown: int = 0  # tokens held behind the prompt


@dataclass(frozen=True)
class Layout:
    """Where B rows (padding included) find what they see: O pages of rows, Q pages of prompts."""

    lengths: Tensor  # (B,) the position of the next token
    pages: Tensor  # (B,) the page it will lie on
    starts: Tensor  # (B,) the position of that page's first slot
    own_rows: Tensor  # (O,) the row that each page belongs to
    own_starts: Tensor  # (O,) the position of its first slot
    prompt_starts: Tensor  # (Q,) the position of the first slot of each page of a prompt
    prompt_stops: Tensor  # (Q,) the length of its prompt
    query_rows: Tensor  # (Q, C) the rows whose queries meet the page, and others as a filling
    queries: Tensor  # (Q * K, C) these queries among all (K * B * H/K)
    parts: Tensor  # (B, N, H) which parts make up each row, in order


class PagedCache:
    """A pool of pages, and the rows of a batch that lie in it.

    num_heads H, key_heads K and head_dim E are those of the model. Keys and values are kept in
    float32 or wider.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        key_heads: int,
        head_dim: int,
        pages: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.num_heads, self.key_heads = num_heads, key_heads
        shape = (num_layers, pages, key_heads, PAGE, head_dim)
        wide = torch.promote_types(dtype, torch.float32)
        self.keys = torch.empty(shape, dtype=wide, device=device)  # on CPU it takes no memory yet
        self.values = torch.empty(shape, dtype=wide, device=device)
        self.free = set(range(pages))
        self.padding = self.take(min)  # all rows of padding write here
        self.rows: Sequence[Row] = ()
        self.layout: Layout | None = None
        self.parts: Parts | None = None
        self.steps = 0  # tokens that every row has got and that its `grown` does not count yet
        self.room = 0  # steps until a row needs another page

    @property
    def batch(self) -> int:
        """B: the rows, and the padding behind them."""
        return round_up(len(self.rows), ROWS)

    # --------------------------------------------------------------------------------------------
    # pages

    def take(self, choose: Callable[[set[int]], int]) -> int:
        """A free page, the first (min) or the last (max), filled with zeros.

        Slots that are not seen count 0 times what lies there.
        """
        page = choose(self.free)
        self.free.remove(page)
        self.keys[:, page] = 0
        self.values[:, page] = 0
        return page

    def add_prompt(self, read: PromptKeys) -> Prompt:
        """Store what a forward over a prompt has left; it takes `pages_of(length)` pages."""
        length = read.length
        prompt = Prompt(length, [self.take(max) for _ in range(pages_of(length))])
        for layer, (key, value) in enumerate(read.layers):
            for pool, tokens in ((self.keys[layer], key[0]), (self.values[layer], value[0])):
                for page, held in zip(prompt.pages, tokens.split(PAGE), strict=True):
                    pool[page, :, : len(held)] = held.transpose(0, 1).to(pool.dtype)
        return prompt

    def drop(self, holder: Prompt | Row) -> None:
        """Give back the pages of a prompt or a row."""
        self.free.update(holder.pages)
        holder.pages = []

    def count_steps(self) -> None:
        """Bring the rows' `grown` up to date."""
        for row in self.rows if self.steps else ():
            row.grown += self.steps
        self.steps = 0

    def pages_needed(self, rows: Sequence[Row]) -> int:
        """How many free pages `set_rows` will take for these rows."""
        self.count_steps()
        return sum(map(needs_page, rows))

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Make these the rows of the batch, each with a page for its next token.

        There have to be `pages_needed` free pages.
        """
        self.count_steps()
        for row in rows:
            if needs_page(row):
                row.pages.append(self.take(min))
        self.rows = list(rows)
        self.layout = self.lay_out() if rows else None
        self.parts = Parts(self.layout, self.keys, self.num_heads) if rows else None
        self.room = min((len(row.pages) * PAGE - row.grown for row in rows), default=0)

    @property
    def is_full(self) -> bool:
        """Whether a row has no slot left for its next token."""
        return self.room == 0

    # --------------------------------------------------------------------------------------------
    # the layout

    def lay_out(self) -> Layout:
        rows, B, pages = self.rows, self.batch, self.keys.shape[1]
        padding = B - len(rows)
        places: dict[Prompt, list[int]] = {}
        for b, row in enumerate(rows):
            places.setdefault(row.prompt, []).append(b)
        O = max(page for row in rows for page in row.pages) + 1
        first = min(page for prompt in places for page in prompt.pages)
        R = max(map(len, places.values()))

        own_rows, own_starts = [0] * O, [NOWHERE] * O
        if padding:
            own_rows[self.padding], own_starts[self.padding] = B - 1, 0
        for b, row in enumerate(rows):
            for i, page in enumerate(row.pages):
                own_rows[page], own_starts[page] = b, row.prompt.length + i * PAGE
        seen_by = [[0] * R for _ in range(first, pages)]  # (Q, R)
        starts, stops = [0] * len(seen_by), [0] * len(seen_by)
        for prompt, members in places.items():
            for i, page in enumerate(prompt.pages):
                seen_by[page - first][: len(members)] = members
                starts[page - first], stops[page - first] = i * PAGE, prompt.length

        def tensor(values: list) -> Tensor:
            return torch.tensor(values, device=self.keys.device)

        query_rows, queries = self.queries_of(tensor(seen_by))
        last = [row.pages[-1] for row in rows] + [self.padding] * padding
        return Layout(
            lengths=tensor([row.prompt.length + row.grown for row in rows] + [0] * padding),
            pages=tensor(last),
            starts=tensor([own_starts[page] for page in last]),
            own_rows=tensor(own_rows),
            own_starts=tensor(own_starts),
            prompt_starts=tensor(starts),
            prompt_stops=tensor(stops),
            query_rows=query_rows,
            queries=queries,
            parts=self.number_parts(places, O, first, queries.shape[1]),
        )

    def queries_of(self, prompt_rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (Q, R) that see each page -> rows (Q, C) and queries (Q * K, C).

        C columns, a multiple of ROWS: the H/K heads of each row, for every key head.
        """
        G, B = self.num_heads // self.key_heads, self.batch
        heads = torch.arange(G, device=prompt_rows.device)
        columns = (prompt_rows[:, :, None] * G + heads).flatten(1)  # (Q, R * H/K)
        columns = F.pad(columns, (0, -columns.shape[1] % ROWS))  # (Q, C)
        key_heads = torch.arange(self.key_heads, device=prompt_rows.device)[:, None] * (B * G)
        return columns // G, (columns[:, None] + key_heads).flatten(0, 1)

    def number_parts(
        self, places: dict[Prompt, list[int]], own_pages: int, first: int, columns: int
    ) -> Tensor:
        """(B, N, H): the parts of each row and head: prompt pages, own pages, then nothing.

        Parts are numbered (page, key head, head) for pages of rows and, behind them, (page, key
        head, column) for pages of prompts; the last one is nothing.
        """
        K, repeats = self.key_heads, self.num_heads // self.key_heads
        per_own, per_prompt = self.num_heads, K * columns
        behind = own_pages * per_own
        nothing = behind + (self.keys.shape[1] - first) * per_prompt
        starts = [[] for _ in self.rows]  # of the parts of key head 0
        strides = [[] for _ in self.rows]  # from a key head to the next
        for prompt, members in places.items():
            for place, b in enumerate(members):
                for page in prompt.pages:
                    starts[b].append(behind + (page - first) * per_prompt + place * repeats)
                    strides[b].append(columns)
        for b, row in enumerate(self.rows):
            starts[b] += [page * per_own for page in row.pages]
            strides[b] += [repeats] * len(row.pages)
        padding = self.batch - len(self.rows)
        starts += [[self.padding * per_own] for _ in range(padding)]
        strides += [[repeats] for _ in range(padding)]
        N = max(map(len, starts))
        device = self.keys.device
        begin = torch.tensor([s + [-1] * (N - len(s)) for s in starts], device=device)[..., None]
        step = torch.tensor([s + [0] * (N - len(s)) for s in strides], device=device)[..., None]
        head = torch.arange(self.num_heads, device=device)
        parts = begin + head // repeats * step + head % repeats  # (B, N, H)
        return torch.where(begin < 0, nothing, parts)

    # --------------------------------------------------------------------------------------------
    # one token for every row: what the model's forward calls

    def positions(self, input_ids: Tensor) -> Tensor:
        """(B, 1): where the new tokens (B, 1) will lie."""
        assert input_ids.shape == (self.batch, 1), (input_ids.shape, self.batch)
        assert not self.is_full, "a row has no slot for its token: set_rows comes first"
        return self.layout.lengths[:, None]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Tensor:
        """Store the new keys and values of a layer, and attend to all that its rows see.

        query: (B, 1, H, E), key and value: (B, 1, K, E); out: (B, 1, H, E)
        """
        at, keys, values = self.layout, self.keys[layer], self.values[layer]
        slots = at.lengths - at.starts  # (B,)
        keys[at.pages, :, slots] = key[:, 0].to(keys.dtype)
        values[at.pages, :, slots] = value[:, 0].to(values.dtype)
        parts = self.parts
        if layer == 0:
            parts.unseen = unseen_slots(at, self.num_heads, window)
        B, E = len(query), query.shape[-1]
        rows = (query[:, 0].to(keys.dtype) * E**-0.5).reshape(B, self.key_heads, -1, E)
        parts.score(rows, keys, at)
        parts.weigh(values)
        return parts.put_together(at.parts)[:, None].to(query.dtype)

    def advance(self) -> None:
        """Count the new token of every row, once all layers have stored it."""
        self.layout.lengths[: len(self.rows)] += 1
        self.steps += 1
        self.room -= 1


class Parts:
    """What the pages give in one layer: O * H parts of rows, Q * K * C of prompts, and nothing.

    Pages of rows come first, then those of prompts, then the one part of nothing at all.
    """

    def __init__(self, at: Layout, keys: Tensor, num_heads: int) -> None:
        K, E = keys.shape[2], keys.shape[4]
        own, (shared, columns) = len(at.own_rows), at.queries.shape
        total = own * num_heads + shared * columns + 1
        self.scores = keys.new_empty(total, PAGE)
        self.values = keys.new_zeros(total, E)  # weighted sums of values
        self.unseen: Tensor | None = None  # (parts, PAGE) bool
        sizes = [own * num_heads, shared * columns, 1]
        self.own_scores, self.shared_scores, _ = self.scores.split(sizes)
        self.own_values, self.shared_values, _ = self.values.split(sizes)
        self.own_scores = self.own_scores.view(own * K, -1, PAGE)  # (O * K, H/K, PAGE)
        self.own_values = self.own_values.view(own * K, -1, E)
        self.shared_scores = self.shared_scores.view(shared, columns, PAGE)  # (Q * K, C, PAGE)
        self.shared_values = self.shared_values.view(shared, columns, E)

    def score(self, rows: Tensor, keys: Tensor, at: Layout) -> None:
        """rows: (B, K, H/K, E) scaled queries, keys: (pages, K, PAGE, E)."""
        own_keys, prompt_keys = self.split(keys)
        queries = rows[at.own_rows].flatten(0, 1)  # (O * K, H/K, E)
        torch.bmm(queries, own_keys.transpose(1, 2), out=self.own_scores)
        queries = rows.transpose(0, 1).reshape(-1, rows.shape[-1])[at.queries]  # (Q * K, C, E)
        torch.bmm(queries, prompt_keys.transpose(1, 2), out=self.shared_scores)

    def weigh(self, values: Tensor) -> None:
        """values: (pages, K, PAGE, E); the scores become weights."""
        self.scores.masked_fill_(self.unseen, -torch.inf)
        self.tops = self.scores.amax(-1, keepdim=True).clamp_(min=LOWEST)
        self.sums = self.scores.sub_(self.tops).exp_().sum(-1)
        own_values, prompt_values = self.split(values)
        torch.bmm(self.own_scores, own_values, out=self.own_values)
        torch.bmm(self.shared_scores, prompt_values, out=self.shared_values)

    def split(self, pool: Tensor) -> tuple[Tensor, Tensor]:
        """The pages of rows (O * K, PAGE, E) and of prompts (Q * K, PAGE, E), where they lie."""
        pages = pool.flatten(0, 1)
        return pages[: len(self.own_scores)], pages[len(pages) - len(self.shared_scores) :]

    def put_together(self, parts: Tensor) -> Tensor:
        """(B, N, H) numbers of parts -> (B, H, E)."""
        tops = self.tops[parts].squeeze(-1)  # (B, N, H)
        weights = tops.sub_(tops.amax(1, keepdim=True)).exp_()
        total = (weights * self.sums[parts]).sum(1)  # (B, H)
        values = self.values[parts].mul_(weights[..., None]).sum(1)  # (B, H, E)
        return values.div_(total[..., None])


def unseen_slots(at: Layout, num_heads: int, window: int | None) -> Tensor:
    """(parts, PAGE) bool: slots that the queries of a part do not see.

    They lie behind the new token of the page's row or behind the prompt's end, or out of window.
    """
    slots = torch.arange(PAGE, device=at.lengths.device)
    positions = at.own_starts[:, None] + slots  # (O, PAGE)
    last = at.lengths[at.own_rows][:, None]
    own = positions > last
    if window is not None:
        own |= positions <= last - window
    positions = at.prompt_starts[:, None] + slots  # (Q, PAGE)
    Q, C = at.query_rows.shape
    shared = (positions >= at.prompt_stops[:, None])[:, None].expand(Q, C, PAGE)
    if window is not None:
        shared = shared | (positions[:, None] <= at.lengths[at.query_rows][..., None] - window)
    key_heads = len(at.queries) // Q
    return torch.cat(
        [
            own.repeat_interleave(num_heads, dim=0),
            shared[:, None].expand(Q, key_heads, C, PAGE).reshape(-1, PAGE),
            own.new_ones(1, PAGE),
        ]
    )


def pages_of(tokens: int) -> int:
    return -(-tokens // PAGE)


def needs_page(row: Row) -> bool:
    """Whether the next token of a row lies on a page that it does not have yet."""
    return row.grown == len(row.pages) * PAGE
