r"""eval/answers.py against readings written down by hand, recorded verdicts, and brute force.

python -m pytest tests/test_answers.py

The recorded solutions of GSM8K come with their authors' verdicts (`is_correct`) and have no other
marker than a last line "A: number".
"""

import gzip
import json
import re
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest

from eval.answers import (
    FLEXIBLE,
    flexible_number,
    guessing_floors,
    is_correct,
    strict_number,
    vote,
)
from eval.metrics import pass_at_k

EXACT, NEAR = Fraction(0), Fraction(1, 1000)
SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 18", 18),
        ("#### 18.00", 18),
        ("#### 1,000", 1000),
        ("#### $1,234.50", Fraction(2469, 2)),
        ("#### -5", -5),
        ("#### - 5", -5),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### \u22125", -5),
        ("#### .5", Fraction(1, 2)),
        ("#### 3/4", Fraction(3, 4)),
        ("#### 1.5e+06", 1_500_000),
        ("#### 50%", 50),
        ("####18.", 18),
        ("#### 18 apples", 18),
    ],
)
def test_spellings_of_a_number(text: str, value: Fraction) -> None:
    assert strict_number(text, "####") == value
    assert flexible_number(text) == (value, "####")


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("#### 3\nNext problem:\n#### 4", 4, "####"),  # the first was recited
        ("#### 7 and \\boxed{8}, the answer is 9", 7, "####"),
        ("#### **$18** a day, of 20", 18, "####"),
        ("#### $\\boxed{-\\frac{1}{2}}$", Fraction(-1, 2), "####"),
        ("#### \\(1{,}000\\)", 1000, "####"),
        ("#### = -5", -5, "####"),
        ("#### 18. So 18", 18, "last number"),  # or the heading of step 18
        # headings of markdown
        ("#### Step 1: a\n#### Step 2: Subtract 4\nThe answer is 6.", 6, "answer"),
        ("#### 1. Sum\n#### **2.** Subtract 4\nThe answer is 6.", 6, "answer"),
        ("#### Step 2: b\n\n\\boxed{18}", 18, "boxed"),
        ("#### 16\n\n#### Explanation: 3 steps", 16, "####"),
        ("#### Answer: 18\n\nIn 3 steps", 18, "answer"),
        ("so $\\boxed{1{,}234}$; the answer is 9", 1234, "boxed"),
        ("\\boxed{18\\text{ apples}}", 18, "boxed"),
        ("\\boxed{-\\frac{1}{2}}", Fraction(-1, 2), "boxed"),
        ("**Answer: $18**, of 20", 18, "answer"),
        ("**Final Answer:** 18 of 20", 18, "answer"),
        ("Answer:\n\n18\n20", 18, "answer"),
        ("The answer is $-\\frac{1}{2}$ m, not 2.", Fraction(-1, 2), "answer"),
        ("The answer is 18. I hope the answer is correct.", 18, "answer"),
        ("He answers questions 4 and 5.", 5, "last number"),
        ("2 + 3 = 5\nA: 5 of 6", 5, "A:"),
        ("Job A: 5 hours, so 6", 6, "last number"),  # no line of its own
        ("10 - 5", 5, "last number"),
        ("10-5", 5, "last number"),
        ("that is = - 5", -5, "last number"),
        ("It falls by -5", -5, "last number"),
        ("Costs:\n- 5 pens", 5, "last number"),
        ("It costs $3.50.", Fraction(7, 2), "last number"),
        ("18, and then ..., or $ .", 18, "last number"),  # no digit: no number
        ("She has $1{,}000$ dollars", 1000, "last number"),
        ("So it is $\\frac{70}{3}$", Fraction(70, 3), "last number"),
        # an equation behind a marker
        ("#### 80 + 50 = $130", 130, "####"),
        ("The answer is 12 + 6 = 18.", 18, "answer"),
        ("Answer: 12 x 3 = 36 pens, 3 each", 36, "answer"),
        ("\\boxed{5 \\times 4 = 20}", 20, "boxed"),
        ("A: $5*4 = **20**", 20, "A:"),
        ("The answer is 10 - 15 = -5", -5, "answer"),
        ("The answer is 1.5 * 2 = 6 / 2 = 3", 3, "answer"),
        ("The answer is 18 (= 3 * 6).", 18, "answer"),
        ("The answer is 18 = 3 * 6 = 18.0", 18, "answer"),
        ("The answer is $12 + $6 = $18", 18, "answer"),
        ("The answer is 10 - 15 = - 5", -5, "answer"),
        ("#### 3\\frac{1}{2}", Fraction(7, 2), "####"),
        # and one with units
        ("#### 5 apples + 3 apples = 8 apples", 8, "####"),
        ("The answer is $5/hour * 8 hours = $40.", 40, "answer"),
        ("The answer is 60 minutes / 5 minutes = 12", 12, "answer"),
        ("The answer is 20% of 50 = 10", 10, "answer"),
        ("Answer: 3 pounds per week x 4 weeks = 12 pounds, not 3", 12, "answer"),
        ("The answer is 18 apples - 3 of them red", 18, "answer"),
        ("The answer is 12 + 6 = 18 and x = 3", 18, "answer"),
        ("The answer is 18 eggs, 6 a day - 3 days = 18 / 6", 18, "answer"),
        # a reason, and a list
        ("The answer is 18. This answer is reasonable, since 9 eggs are $18.", 18, "answer"),
        ("The answer is right because 9 > 4: 18", 18, "last number"),
        ("A: 10 + 5 = 15\nB: 20\nTogether they have 35.", 35, "last number"),
        ("Answer: After 4 weeks she has $80.", 4, "answer"),  # wrongly: the first of a sentence
        # and a number that something else is said of
        ("The answer is 18 = 3(6)", 18, "answer"),
        ("The answer is 24 = 2 dozen", 24, "answer"),
        ("#### 20 = 4 hours * 5 dollars", 20, "####"),
        ("The answer is 7 = 10 \u2013 3", 7, "answer"),
        ("#### 100 = 50 % of 200", 100, "####"),
        ("#### 50% = 0.5", 50, "####"),
        ("The answer is 10 (5 = 10/2)", 10, "answer"),
        ("The answer is 70/3 = 23.33", Fraction(70, 3), "answer"),
        ("The answer is 18, x = 3.", 18, "answer"),
        ("The answer is 18 because 6 = 3 + 3", 18, "answer"),
        ("The answer is 18. 6 = 3 + 3", 18, "answer"),
    ],
)
def test_flexible_rules_in_their_order(text: str, value: Fraction, rule: str) -> None:
    assert flexible_number(text) == (value, rule)


@pytest.mark.parametrize("text", ["", "no number", "$,.. and ..", "#### none", "\\boxed{x}", "4/0"])
def test_no_answer(text: str) -> None:
    assert flexible_number(text) == (None, None)


def test_strict_is_the_number_right_behind_the_last_marker() -> None:
    assert strict_number("#### 3\n\n#### 4", "####") == 4
    assert strict_number("#### about 4", "####") is None
    assert strict_number("the answer is 4", "####") is None
    assert strict_number("So the answer is 21 - 15 = 6. The answer is 6.", "the answer is") == 6
    assert strict_number("**Answer: $18**", "####") is None  # right, but not as asked for
    assert strict_number("#### 80 + 50 = 130", "####") == 80  # the authors' pattern reads it so
    assert strict_number("#### 1{,}000", "####") == 1000


@pytest.mark.parametrize("number", ["9" * 101, "1e100", "1e-100", "1e999999999", "1e" + "9" * 5000])
def test_a_number_that_would_grow_is_no_answer(number: str) -> None:
    start = time.process_time()
    assert flexible_number(f"#### {number}") == (None, None)
    assert strict_number(f"#### {number}", "####") is None
    assert time.process_time() - start < 1


def test_the_longest_numbers_are_answers() -> None:
    """Of 100 digits, and with an exponent of 99."""
    assert strict_number("#### " + "9" * 100, "####") == 10**100 - 1
    assert strict_number("#### 1e99", "####") == 10**99
    assert strict_number("#### 1e-99", "####") == Fraction(1, 10**99)


def test_no_number_is_cut_in_two() -> None:
    """200 characters behind a marker are read; a number that begins there and goes on is not."""
    text = "The answer is " + "x " * 98 + "123456"
    assert flexible_number(text) == (123456, "last number")
    assert flexible_number("The answer is " + "x " * 50 + "123456 " + "7 " * 90)[0] == 123456
    assert strict_number("####" + " " * 197 + "123456", "####") is None
    assert strict_number("####" + " " * 198 + "42", "####") == 42  # where the text ends too
    assert flexible_number("####\n18\n" + "x" * 300) == (18, "####")


PIECES = ["9", "9,", "-", "- 9", "= ", "=     ", "####", "A:\n", "\\boxed{", "\\boxed ", "9/", "9e"]
PIECES += [
    "9=",
    "9 + ",
    "9 a per b + ",
    "9 % of ",
    "9 a",
    "x 9",
    "answer is 9+",
    "answer is ",
    "answer:$",
    "the answer is ",
    "\\frac{",
    "{",
    "\n",
    " ",
    "$",
    "(",
    "*",
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    """Ten times as long a text may take some ten times as long; a quadratic search takes 100."""
    start = time.process_time()
    for marker in ("####", "the answer is"):
        strict_number(piece * (100_000 // len(piece)), marker)
    flexible_number(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 4


def test_recorded_solutions_get_their_recorded_verdicts(shared_data) -> None:
    """All 2,660 verdicts, and from them the unbiased pass@1, 2, 4 of four samples a problem.

    The oracle of pass@k is the count over all subsets of the recorded verdicts.
    """
    path = shared_data / "gsm8k" / "example_model_solutions.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 665
    estimates, oracle, rules = Counter(), Counter(), Counter()
    for row in rows:
        truth, rule = flexible_number(row["ground_truth"])
        assert rule == "A:"
        verdicts = []
        for system in SYSTEMS:
            answer, rule = flexible_number(row[system]["solution"])
            verdicts.append(is_correct(answer, truth, EXACT))
            assert verdicts[-1] == row[system]["is_correct"], row[system]["solution"]
            rules[rule] += 1
        for k in (1, 2, 4):
            subsets = list(combinations([row[s]["is_correct"] for s in SYSTEMS], k))
            oracle[k] += sum(map(any, subsets)) / len(subsets) / len(rows)
            estimates[k] += pass_at_k(4, sum(verdicts), k) / len(rows)
    assert rules == {"A:": 2654, "last number": 3, None: 3}
    assert dict(estimates) == pytest.approx(dict(oracle), abs=1e-9)
    assert dict(estimates) == pytest.approx({1: 0.363158, 2: 0.511529, 4: 0.652632}, abs=5e-7)


def test_gold_answers_are_those_of_the_authors_pattern(shared_data) -> None:
    r"""Their reading: `#### (\-?[0-9\.\,]+)` without its commas; ours is by value."""
    with gzip.open(shared_data / "gsm8k" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = [json.loads(line)["answer"] for line in file]
    golds += [
        json.loads(line)["answer"]
        for line in (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(golds) == 7473 + 665
    for gold in golds:
        theirs = re.search(r"#### (\-?[0-9\.\,]+)", gold)[1].replace(",", "")
        assert strict_number(gold, "####") == Fraction(theirs)


def test_is_correct_within_the_tolerance() -> None:
    assert is_correct(Fraction(18), Fraction("18.00"), EXACT)
    assert not is_correct(Fraction("23.33"), Fraction(70, 3), EXACT)
    assert is_correct(Fraction("23.333"), Fraction(70, 3), NEAR)
    assert not is_correct(Fraction("23.33"), Fraction(70, 3), NEAR)
    assert not is_correct(None, Fraction(0), NEAR)


def test_guessing_floor_by_hand() -> None:
    """Answers 3, 3, 5 and none; truths of the five problems: 7 (ours), 3, 5, 5 and 8.

    k = 1: the others' truths find 2, 1, 1 and 0 of the 4 answers: (2 + 1 + 1 + 0) / 4 / 4 = 1/4.
    k = 2: 1 - C(2,2)/C(4,2) = 5/6 once and 1 - C(3,2)/C(4,2) = 1/2 twice: (5/6 + 1) / 4.
    """
    answers = [Fraction(3), Fraction(3), Fraction(5), None]
    truths = Counter(map(Fraction, (7, 3, 5, 5, 8)))
    floors = guessing_floors(answers, Fraction(7), truths, [1, 2], EXACT)
    assert floors == pytest.approx([1 / 4, (5 / 6 + 1) / 4])


@pytest.mark.parametrize("tolerance", [EXACT, Fraction(1, 2)])
def test_guessing_floor_is_the_mean_over_the_other_problems(tolerance: Fraction) -> None:
    answers = [Fraction(n, 4) for n in (1, 2, 2, 6, 8, 9, 30)]
    truths = [Fraction(n, 4) for n in (2, 2, 1, 6, 7, 8, 8, 40)]
    for k in (1, 3):
        hits = [sum(is_correct(a, other, tolerance) for a in answers) for other in truths[1:]]
        expected = sum(pass_at_k(7, c, k) for c in hits) / 7
        floor = guessing_floors(answers, truths[0], Counter(truths), [k], tolerance)[0]
        assert floor == pytest.approx(expected, abs=1e-12)


def test_votes_of_an_item() -> None:
    """One answer of two of the first three is right, both of the first four's leaders are not."""
    item = {
        "answer": "5",
        "answers": ["5", "5.0001", "4", "4", None, "4"],
        "correct": [True, True, False, False, False, False],
    }
    assert vote(item, 2) == 1.0  # a tie of two that are right
    assert vote(item, 3) == pytest.approx(2 / 3)
    assert vote(item, 4) == 0.0  # 4 leads: right ones are not united, as little as wrong ones are
    assert vote(item, 6) == 0.0


def test_the_rules_are_the_documented_ones() -> None:
    assert FLEXIBLE == ("####", "boxed", "answer", "A:", "last number")
