"""The paged cache against the definition of attention in float64, and against itself, bit for bit.

Rows share prompts, come and go, and cross pages. pytest tests/test_cache.py
"""

import pytest
import torch
from torch import Tensor

from model.cache import PAGE, ROWS, PagedCache, PromptKeys, Row, needs_page, pages_of
from tests.test_attention import HEADS, TOLERANCE, attention_ref, random_qkv, sees

LAYERS = 2


def new_cache(heads, pages: int = 40, E: int = 8, dtype=torch.float64) -> PagedCache:
    return PagedCache(LAYERS, *heads, E, pages, dtype, "cpu")


def read_prompt(cache: PagedCache, sequence: list[Tensor], length: int, window: int | None):
    """The first `length` tokens of a sequence as a prompt; out: the prompt, the answers."""
    read = PromptKeys()
    query, key, value = (x[None, :length] for x in sequence)
    out = [read.attend(layer, query, key * (layer + 1), value, window) for layer in range(LAYERS)]
    return cache.add_prompt(read), out[-1][0]


def step(cache: PagedCache, sequences: list[list[Tensor]], at: list[int], window) -> Tensor:
    """Token at[b] of each sequence in row b; out: the answers (rows, H, E) of the last layer."""
    if cache.is_full:
        cache.set_rows(cache.rows)
    ids = torch.zeros(cache.batch, 1, dtype=torch.long)
    positions = cache.positions(ids)
    assert positions[: len(at), 0].tolist() == at
    new = []
    for i in range(3):
        rows = torch.stack([sequence[i][n] for sequence, n in zip(sequences, at, strict=True)])
        padding = rows.new_ones(cache.batch - len(rows), *rows.shape[1:])
        new.append(torch.cat([rows, padding])[:, None])
    query, key, value = new
    for layer in range(LAYERS):
        out = cache.attend(layer, query, key * (layer + 1), value, window)
    cache.advance()
    return out[: len(at), 0]


def check(out: Tensor, sequence: list[Tensor], n: int, window: int | None) -> None:
    query, key, value = sequence
    seen = sees(torch.tensor([n]), torch.arange(n + 1), window)
    key = key[: n + 1] * LAYERS  # of the last layer
    expected = attention_ref(query[n : n + 1], key, value[: n + 1], seen)[0]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[out.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 7, 70])
@pytest.mark.parametrize("heads", HEADS)
def test_rows_see_their_prompt_and_themselves(heads, window, dtype):
    """Prompts of 130 and 3 tokens, rows that go on differently, 70 steps over a page's end.

    After 5 steps a row leaves, and another one begins behind the long prompt.
    """
    of_prompt = [random_qkv(130, heads=heads, dtype=dtype, seed=s) for s in range(2)]
    prompts, lengths = [], (130, 3)
    cache = new_cache(heads, dtype=dtype)
    for sequence, length in zip(of_prompt, lengths, strict=True):
        prompt, answers = read_prompt(cache, sequence, length, window)
        check(answers[-1], [x[:length] for x in sequence], length - 1, window)
        prompts.append(prompt)

    def continued(which: int, seed: int) -> list[Tensor]:
        own = random_qkv(80, heads=heads, dtype=dtype, seed=seed)
        head = [x[: lengths[which]] for x in of_prompt[which]]
        return [torch.cat(parts) for parts in zip(head, own, strict=True)]

    which = [0, 1, 0]
    sequences = [continued(prompt, seed) for prompt, seed in zip(which, (5, 6, 7), strict=True)]
    rows, grown = [Row(prompts[p]) for p in which], [0, 0, 0]
    cache.set_rows(rows)
    for number in range(70):
        if number == 5:
            cache.drop(rows[0])
            rows[0], sequences[0], grown[0] = Row(prompts[0]), continued(0, 8), 0
            cache.set_rows(rows)
        at = [lengths[p] + n for p, n in zip(which, grown, strict=True)]
        out = step(cache, sequences, at, window)
        grown = [n + 1 for n in grown]
        if number in (0, 1, 4, 5, 6, 62, 63, 64, 69):
            for b in range(3):
                check(out[b], sequences[b], at[b], window)


@pytest.mark.parametrize("heads, E", [((9, 3), 64), ((8, 8), 8), ((8, 2), 128), ((6, 1), 16)])
@pytest.mark.parametrize("window", [None, 90])
def test_a_row_does_not_feel_its_neighbours(heads, E, window):
    """Bit for bit, over 70 steps: alone; between 40 rows of three prompts; in another order."""
    sequences = [random_qkv(250, heads=heads, E=E, dtype=torch.float32, seed=s) for s in range(3)]
    lengths = (100, 64, 7)

    def run(of_prompt: list[int], row: int) -> Tensor:
        cache = new_cache(heads, pages=100, E=E, dtype=torch.float32)
        prompts = [read_prompt(cache, sequences[p], lengths[p], window)[0] for p in range(3)]
        cache.set_rows([Row(prompts[p]) for p in of_prompt])
        outs = []
        for n in range(70):
            at = [lengths[p] + n for p in of_prompt]
            outs.append(step(cache, [sequences[p] for p in of_prompt], at, window)[row])
        return torch.stack(outs)

    for mine in range(3):
        alone = run([mine], 0)
        crowd = [0] * 23 + [1] * 9 + [2] * 8
        assert torch.equal(run([mine, *crowd], 0), alone)
        assert torch.equal(run([*crowd, mine], 40), alone)


def test_pages_by_hand():
    """A prompt of 65 tokens takes two pages from the end, a row takes its first from the front."""
    cache = new_cache((2, 1), pages=6)
    sequence = random_qkv(200, heads=(2, 1))
    prompt, _ = read_prompt(cache, sequence, 65, None)
    assert (cache.padding, prompt.pages, cache.free) == (0, [5, 4], {1, 2, 3})
    rows = [Row(prompt), Row(prompt)]
    assert all(map(needs_page, rows)) and cache.pages_needed(rows) == 2
    cache.set_rows(rows)
    assert [row.pages for row in rows] == [[1], [2]] and cache.room == PAGE
    assert cache.batch == ROWS
    for n in range(PAGE):
        assert not cache.is_full
        step(cache, [sequence] * 2, [65 + n] * 2, None)
    assert cache.is_full and cache.pages_needed(rows) == 2
    cache.drop(rows[1])
    cache.set_rows(rows[:1])
    assert rows[0].pages == [1, 2] and cache.free == {3}
    cache.drop(prompt)
    assert cache.free == {3, 4, 5}
    assert [pages_of(n) for n in (1, 64, 65)] == [1, 1, 2]


def test_a_full_cache_is_our_mistake():
    cache = new_cache((2, 1))
    with pytest.raises(AssertionError, match="set_rows comes first"):
        cache.positions(torch.zeros(0, 1))


def test_a_page_that_is_taken_again_is_empty():
    """What a dropped row has left, infinities even, does not reach the next one."""
    cache, sequence = new_cache((2, 1), pages=3), random_qkv(20, heads=(2, 1))
    prompt, _ = read_prompt(cache, sequence, 3, None)
    row = Row(prompt)
    cache.set_rows([row])
    cache.values[:, row.pages[0]] = torch.inf
    cache.drop(row)
    cache.set_rows([Row(prompt)])
    check(step(cache, [sequence], [3], None)[0], sequence, 3, None)
