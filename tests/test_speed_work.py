"""eval/speed_work.py: counts worked by hand, and against the products that a real step makes.

python -m pytest tests/test_speed_work.py
"""

import math

import pytest

from eval.speed_work import (
    LAYOUTS,
    PEER,
    Layout,
    Rows,
    causal,
    count_rows,
    step_flop,
    total_flop,
    work_factors,
)
from model.transformer import ModelConfig

#                    V   D  F  L  H  K  E
CONFIG = ModelConfig(10, 4, 6, 2, 2, 1, 2)
PAIR = (3, 2, 1)  # prompt, chosen, rejected tokens


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        # 3 + 2 + 1 rows; 15 pairs in prompt and chosen, the rejected token sees 3 and itself
        (Layout(), Rows(6, 6, 3, 15 + 3 + 1)),
        # the last prompt token meets the head for either completion
        (Layout(whole_head=True), Rows(6, 6, 7, 19)),
        # 3 + 2 and 3 + 1 rows
        (Layout(share=False), Rows(9, 9, 3, 15 + 10)),
        # two rows of 5, one row of padding
        (Layout(share=False, pad=True), Rows(10, 9, 3, 15 + 15)),
        (PEER, Rows(10, 9, 10, 30)),
    ],
)
def test_rows_by_hand(layout, rows):
    assert count_rows([PAIR], layout) == rows


def test_pairs_add_up_but_for_the_padding():
    """Alone (3, 2, 1) is padded to 5; beside (1, 7, 1) to 8, and there are four rows of it."""
    shared = count_rows([PAIR, (1, 7, 1)], Layout())
    assert shared == Rows(6 + 9, 6 + 9, 3 + 8, 19 + causal(8) + 1 + 1)
    padded = count_rows([PAIR, (1, 7, 1)], PEER)
    assert padded == Rows(32, 5 + 4 + 8 + 2, 32, 4 * causal(8))


def test_flop_by_hand():
    """Weights of a block: 16 + 8 + 8 + 16 + 3 * 24 = 120, of both 240. Adapters, in + out:
    8 + 6 + 6 + 8 + 3 * 10 = 58 a block, 58 * 3 * 2 = 348 in all at rank 3.

    6 rows: 6 * (2 + 2 + 2) * 240, 6 * (2 + 4) * 348; 19 seen in 2 * 2 heads of size 2 at
    4 + 8 + 4 each; 3 rows at the head: 3 * 3 products * 2 * 4 * 10.
    """
    rows = count_rows([PAIR], Layout())
    assert step_flop(CONFIG, rows, rank=3, cached=False) == {
        "blocks": 8640,
        "adapters": 12528,
        "attention": 19 * 4 * 2 * 16,
        "head": 720,
    }
    assert step_flop(CONFIG, rows, rank=3, cached=True) == {
        "blocks": 5760,
        "adapters": 12528,
        "attention": 19 * 4 * 2 * 12,
        "head": 480,
    }
    assert total_flop(CONFIG, [[PAIR], [PAIR]], 3, Layout()) == 2 * (8640 + 12528 + 2432 + 720)


def test_factors_multiply_to_the_whole():
    steps = [[PAIR, (1, 7, 1)], [(5, 5, 5), (2, 9, 4)]]
    for peer in (PEER, LAYOUTS["trl_cached"], Layout(share=False, pad=True)):
        factors = work_factors(CONFIG, steps, 3, peer)
        ours = Layout(cached=peer.cached)
        whole = total_flop(CONFIG, steps, 3, peer) / total_flop(CONFIG, steps, 3, ours)
        assert math.prod(factors.values()) == pytest.approx(whole)
        assert factors["padding"] > 1 and factors["sharing"] > 1
        assert (factors["head"] > 1) == peer.whole_head


def test_layouts_by_hand():
    """Rows in the blocks and at the head, and whether the reference is there before the step."""
    found = {name: count_rows([PAIR], layout) for name, layout in LAYOUTS.items()}
    rows = {name: (count.blocks, count.head) for name, count in found.items()}
    alike = ("ours", "cached", "bfloat16", "compiled")
    assert {rows[name] for name in alike} == {(6, 3)}
    assert (rows["no_sharing"], rows["no_packing"], rows["whole_head"]) == ((9, 3), (10, 3), (6, 7))
    assert rows["all_off"] == rows["trl"] == rows["trl_cached"] == (10, 10)
    assert {name for name, one in LAYOUTS.items() if one.cached} == {"cached", "trl_cached"}


def test_equal_lengths_have_no_padding_to_save():
    steps = [[(64, 128, 128)] * 4]
    assert work_factors(CONFIG, steps, 3, PEER)["padding"] == 1.0
