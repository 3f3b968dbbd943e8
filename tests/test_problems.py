"""data/problems.py: the checker on solutions judged by hand, and the generator against the checker.

python -m pytest tests/test_problems.py
"""

import random
from collections import Counter

import pytest

from data.problems import (
    LARGEST,
    Problem,
    check_solution,
    draw_numbers,
    draw_problem,
    draw_solution,
    expression_value,
    extract_answer,
    is_held_out,
)

SEVEN = {"answer": 7}

JUDGED = {  # solution of a problem whose answer is 7: (correct, valid)
    "3 + 4 = 7\n#### 7": (True, True),
    "That is 3 + 4 = 7.\n#### 7": (True, True),
    "2 * 5 = 10 pens\n10 - 3 = 7 pens\n#### 7": (True, True),
    "Mia has 2 + 2 = 4, then 4 + 3 = 7.\n#### 7": (True, True),
    "1 + 2 * 3 = 7\n#### 7": (True, True),
    "14 / 2 = 7\n#### 7\n": (True, True),
    "3+4=7\n####7": (True, True),
    "3 + 4 = 007\n#### 07": (True, True),
    "3 - 5 = -2\n-2 + 9 = 7\n#### 7": (True, True),
    # a false or a malformed equation before the right answer
    "3 + 5 = 7\n#### 7": (True, False),
    "3 + 5 = 8\n8 - 2 = 7\n#### 7": (True, False),
    "7 / 0 = 7\n#### 7": (True, False),
    "3 + = 7\n#### 7": (True, False),
    "3 + + 4 = 7\n#### 7": (True, False),
    "3 + 4 = 7 = 7\n#### 7": (True, False),
    "1.5 + 2 = 7\n#### 7": (True, False),
    "(1 + 6) = 7\n#### 7": (True, False),
    "= 7\n#### 7": (True, False),
    "7\n#### 7": (True, False),
    "#### 7": (True, False),
    "3 + 4 = 7\n7 + 1 = 8\n#### 7": (True, False),
    # true equations before a wrong answer
    "3 + 5 = 8\n#### 8": (False, True),
    "3 - 10 = -7\n#### -7": (False, True),
    "3 + 4 = 7\n#### 8": (False, False),
    # no answer in its place
    "3 + 4 = 7": (False, False),
    "3 + 4 = 7\n7": (False, False),
    "3 + 4 = 7\n#### 7 pens": (False, False),
    "3 + 4 = 7\n#### 7\nIs that so?": (False, False),
    "3 + 4 = 7\n#### 7\n#### 7": (False, False),
    "3 + 4 = 7 #### 7": (False, False),
    "3 + 4 = 7\n#### 7.0": (False, False),
    "3 + 4 = 7\n#### seven": (False, False),
    "3 + 4 = 7\n#### \u0667": (False, False),
    "3 + 4 = 7\n#### " + "0" * 5000 + "7": (False, False),
    "": (False, False),
    "####": (False, False),
}


@pytest.mark.parametrize("text", JUDGED, ids=lambda text: repr(text[:40]))
def test_checker_judges_as_by_hand(text: str) -> None:
    assert check_solution(SEVEN, text) == JUDGED[text]


def test_extract_answer_and_expression_value_by_hand() -> None:
    assert extract_answer("x\n#### -12") == -12
    assert extract_answer("x\n### 12") is None
    assert expression_value("2 + 3 * 4 - 6 / 4") == 12.5
    assert expression_value("-2 - 3") == -5
    assert expression_value("5 / 0") is None


def test_every_drawn_solution_is_right_and_true() -> None:
    rng = random.Random(1)
    for _ in range(500):
        problem = draw_problem(rng, held_out=False)
        for _ in range(4):
            text = draw_solution(problem, rng)
            assert check_solution({"answer": problem.answer}, text) == (True, True), text
            numbers = [int(word) for word in text.replace(".", " ").split() if word.isdigit()]
            assert 0 <= min(numbers) and max(numbers) <= LARGEST, text


def test_a_problem_has_the_ways_that_algebra_gives_it() -> None:
    """2 * (3 + 5): the brackets first, or the products first, each with its orders: 2*2 + 8*2."""
    problem = Problem("", ((1, (2, 3)), (1, (2, 5))), "pens")
    rng, seen = random.Random(0), Counter()
    for _ in range(3000):
        lines = draw_solution(problem, rng).removesuffix("\n#### 16").split("\n")
        equations = [line.removeprefix("That is ").rstrip(".pens ") for line in lines]
        seen["; ".join(equations)] += 1
    bracket = {f"{s} = 8; {p} = 16" for s in ("3 + 5", "5 + 3") for p in ("2 * 8", "8 * 2")}
    assert bracket <= set(seen)
    three, five, total = ("2 * 3", "3 * 2"), ("2 * 5", "5 * 2"), ("6 + 10", "10 + 6")
    spread = {f"{x} = 6; {y} = 10; {t} = 16" for x in three for y in five for t in total}
    spread |= {f"{y} = 10; {x} = 6; {t} = 16" for x in three for y in five for t in total}
    assert set(seen) == bracket | spread
    assert min(seen.values()) > 50


def test_tens_before_ones_is_one_of_the_ways() -> None:
    problem, rng = Problem("", ((1, (34,)), (1, (27,))), "pens"), random.Random(0)
    texts = {draw_solution(problem, rng) for _ in range(200)}
    assert "34 + 20 = 54\n54 + 7 = 61\n#### 61" in texts
    assert "27 + 34 = 61\n#### 61" in texts


def test_whole_tens_are_added_in_one_line() -> None:
    """Not as 40 + 20 = 60 and 60 + 0 = 60."""
    problem, rng = Problem("", ((1, (40,)), (1, (20,))), "pens"), random.Random(0)
    assert all(draw_solution(problem, rng).count("=") == 1 for _ in range(200))


def test_key_forgets_story_and_order() -> None:
    """4*7 + 12 - 9 and 12 - 9 + 7*4 are the same problem; 4*7 - 12 + 9 is not."""
    a = Problem("x", ((1, (4, 7)), (1, (12,)), (-1, (9,))), "pens")
    b = Problem("y", ((1, (12,)), (-1, (9,)), (1, (7, 4))), "eggs")
    c = Problem("x", ((1, (4, 7)), (-1, (12,)), (1, (9,))), "pens")
    assert a.key == b.key == "+12+4*7-9" != c.key
    assert (a.answer, a.steps) == (31, 3)
    assert Problem("", ((1, (2, 3)), (1, (2, 5))), "").steps == 2


def test_held_out_by_hash_alone() -> None:
    """A tenth of the keys, pinned: sha256("+12+4*7-9")'s first eight bytes modulo 10."""
    share = sum(is_held_out(f"+{a}+{b}") for a in range(100) for b in range(100)) / 10_000
    assert share == pytest.approx(0.1, abs=0.01)
    rng = random.Random(2)
    assert all(is_held_out(draw_problem(rng, held_out=True).key) for _ in range(50))
    assert not any(is_held_out(draw_problem(rng, held_out=False).key) for _ in range(50))


def test_who_has_fewer_has_some() -> None:
    """Of "Mia has 5 pens. Tom has 3 fewer than Mia." Tom has 2; with 5 fewer he would have none."""
    rng = random.Random(4)
    drawn = [draw_numbers("a+a-b", "", rng)[0] for _ in range(1000)]
    assert all(numbers["b"] < numbers["a"] for numbers in drawn)
    assert any(numbers["b"] == numbers["a"] - 1 for numbers in drawn)


def test_stories_have_one_to_three_steps_and_all_numbers() -> None:
    rng = random.Random(3)
    problems = [draw_problem(rng, held_out=False) for _ in range(600)]
    assert {p.steps for p in problems} == {1, 2, 3}
    for problem in problems:
        words = problem.question.replace(".", " ").replace(",", " ").split()
        told = Counter(int(word) for word in words if word.isdigit())
        used = Counter(x for _, factors in problem.terms for x in factors)
        assert set(told) == set(used), problem
        assert 0 < problem.answer <= LARGEST
        assert "{" not in problem.question
