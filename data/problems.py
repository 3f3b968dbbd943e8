"""Arithmetic word problems: drawn at random, solved in many ways, every line checked by program.

A problem is a sum of signed products, 7*4 + 12 - 9, told as a story. Its key forgets the story and
the order of the terms, and the hash of the key decides whether the problem is held out: no wording
of a held-out sum is ever trained on. A solution shortens the sum one random lawful step at a time,
so a problem has many right solutions: other orders, other groupings, tens before ones.
"""

import hashlib
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

LARGEST = 50  # no number in a problem or in a solution exceeds it
HELDOUT_SHARE = 10  # one key in so many is held out
STEP_WEIGHTS = {1: 0.25, 2: 0.40, 3: 0.35}  # shares of problems with so many operations
SPLIT_SHARE = 0.2  # of solutions that take one sum in two lines, tens first

NAMES = ("Mia", "Tom", "Ana", "Ben", "Zoe", "Sam", "Lea", "Max")
ITEMS = ("pens", "eggs", "cards", "books", "coins", "shells", "apples", "stars")
HOLDERS = ("bags", "boxes", "jars")

# Stories begin with an opener (letters are numbers) and go on with events (x is a number).
OPENERS = {
    "a": ("{n} has {a} {i}.", "{n} starts with {a} {i}.", "There are {a} {i} on the table."),
    "a+b": ("{n} has {a} {i} and {m} has {b} {i}.", "{n} has {a} red {i} and {b} blue {i}."),
    "a*b": ("{n} has {a} {h} of {b} {i}.", "There are {a} {h} with {b} {i} in each."),
    "a+a+b": (
        "{n} has {a} {i}. {m} has {b} more than {n}.",
        "{n} has {a} {i}, which is {b} fewer than {m} has.",
    ),
    "a+a-b": (
        "{n} has {a} {i}. {m} has {b} fewer than {n}.",
        "{n} has {a} {i}, which is {b} more than {m} has.",
    ),
    "a+a*b": ("{n} has {a} {i}. {m} has {b} times as many.",),
    "a*b+a*c": (
        "{n} has {a} {h} with {b} red and {c} blue {i} in each.",
        "{a} friends each have {b} red and {c} blue {i}.",
    ),
    "a*b+c*d": ("{n} has {a} {h} of {b} {i} and {m} has {c} {h} of {d} {i}.",),
}
EVENTS = {
    "+": ("{n} buys {x} more.", "{n} finds {x} more.", "Then {x} more are added."),
    "-": ("{n} sells {x}.", "{n} loses {x}.", "Then {x} are taken away."),
}
QUESTIONS = ("How many {i} are there in all?", "How many {i} is that?", "How many {i} now?")
STYLES = ("{e}", "{e}", "{e} {i}", "That is {e}.")

Term = tuple[int, tuple[int, ...]]  # sign, factors: (-1, (9,)) is - 9, (1, (7, 4)) is + 7 * 4


# ---------------------------------------------------------------------------------------------
# problems
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    question: str
    terms: tuple[Term, ...]  # the answer is the sum of sign * product of factors
    item: str  # what is counted

    @property
    def answer(self) -> int:
        return sum(sign * math.prod(factors) for sign, factors in self.terms)

    @property
    def steps(self) -> int:
        """Operations of the shortest solution that needs no new number."""
        products = [factors for _, factors in self.terms if len(factors) > 1]
        shared = len(products) == 2 and len({factors[0] for factors in products}) == 1
        return len(self.terms) - 1 + len(products) - shared

    @property
    def key(self) -> str:
        """The sum without story and order: +12+4*7-9. Problems with equal keys are the same."""
        texts = ("*".join(map(str, sorted(factors))) for _, factors in self.terms)
        signs = ("+" if sign > 0 else "-" for sign, _ in self.terms)
        return "".join(sorted(sign + text for sign, text in zip(signs, texts, strict=True)))


def is_held_out(key: str) -> bool:
    """Decided by the key's SHA-256 alone: the same on every machine, seed and corpus size."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELDOUT_SHARE == 0


def shape_steps(opener: str, events: str) -> int:
    distributive = opener == "a*b+a*c"
    return sum(opener.count(operator) for operator in "+-*") - distributive + len(events)


SHAPES = {
    steps: [
        (opener, events)
        for opener in OPENERS
        for events in ("", "+", "-", "++", "+-", "-+", "--")
        if shape_steps(opener, events) == steps
    ]
    for steps in STEP_WEIGHTS
}


def draw_numbers(opener: str, events: str, rng: random.Random) -> tuple[dict[str, int], list[int]]:
    """Numbers for the letters of the opener and for the events, small enough and never below 0."""
    factors = {letter for product in re.findall(r"\w(?:\*\w)+", opener) for letter in product}
    while True:
        letters = sorted(set(re.findall(r"\w", opener)))
        numbers = {x: rng.randint(2, 9) if x in factors else rng.randint(2, 30) for x in letters}
        changes = [rng.randint(2, 20) for _ in events]
        terms = signed_terms(opener, events, numbers, changes)
        values = [sign * math.prod(product) for sign, product in terms]
        running = [sum(values[: i + 1]) for i in range(len(values))]
        fewer = opener == "a+a-b" and numbers["b"] >= numbers["a"]
        if sum(v for v in values if v > 0) <= LARGEST and min(running) > 0 and not fewer:
            return numbers, changes


def signed_terms(
    opener: str, events: str, numbers: Mapping[str, int], changes: list[int]
) -> tuple[Term, ...]:
    opening = re.findall(r"([+-]?)([^+-]+)", opener)
    terms = [
        (-1 if sign == "-" else 1, tuple(numbers[letter] for letter in product.split("*")))
        for sign, product in opening
    ]
    terms += [(1 if e == "+" else -1, (x,)) for e, x in zip(events, changes, strict=True)]
    return tuple(terms)


def draw_problem(rng: random.Random, held_out: bool) -> Problem:
    while True:
        steps = rng.choices(list(STEP_WEIGHTS), weights=list(STEP_WEIGHTS.values()))[0]
        opener, events = rng.choice(SHAPES[steps])
        numbers, changes = draw_numbers(opener, events, rng)
        name, other = rng.sample(NAMES, 2)
        words = {"n": name, "m": other, "i": rng.choice(ITEMS), "h": rng.choice(HOLDERS)}
        story = [rng.choice(OPENERS[opener]).format(**words, **numbers)]
        for event, x in zip(events, changes, strict=True):
            story.append(rng.choice(EVENTS[event]).format(**words, x=x))
        story.append(rng.choice(QUESTIONS).format(**words))
        problem = Problem(
            " ".join(story), signed_terms(opener, events, numbers, changes), words["i"]
        )
        if is_held_out(problem.key) == held_out:
            return problem


# ---------------------------------------------------------------------------------------------
# solutions
# ---------------------------------------------------------------------------------------------


def lawful_steps(terms: list[Term]) -> Iterator[tuple[int, int, str]]:
    """Every (position, position, kind) that makes the sum shorter without a number below 0."""
    for i, (sign, factors) in enumerate(terms):
        if len(factors) == 2:
            yield i, i, "multiply"
        for j in range(i + 1, len(terms)):
            other_sign, others = terms[j]
            if len(factors) == len(others) == 2:
                if sign == other_sign and factors[0] == others[0]:
                    yield i, j, "factor"
            elif len(factors) == len(others) == 1:
                if sign == other_sign:
                    yield i, j, "add"
                elif factors[0] != others[0] and (factors[0] > others[0]) == (sign > 0):
                    yield i, j, "subtract"


def take_step(terms: list[Term], rng: random.Random) -> tuple[list[Term], tuple[int, str, int]]:
    """One random lawful step: the shorter sum, and the operation (x, operator, y) that it took."""
    i, j, kind = rng.choice(list(lawful_steps(terms)))
    (sign, factors), (_, others) = terms[i], terms[j]
    rest = [term for k, term in enumerate(terms) if k not in (i, j)]
    if kind == "multiply":
        x, y = rng.sample(factors, 2)
        return [*rest[:i], (sign, (x * y,)), *rest[i:]], (x, "*", y)
    if kind == "factor":
        x, y = rng.sample((factors[1], others[1]), 2)
        return [*rest, (sign, (factors[0], x + y))], (x, "+", y)
    if kind == "add":
        x, y = rng.sample((factors[0], others[0]), 2)
        return [*rest, (sign, (x + y,))], (x, "+", y)
    x, y = max(factors[0], others[0]), min(factors[0], others[0])
    return [*rest, (1, (x - y,))], (x, "-", y)


def calculate(x: int, operator: str, y: int) -> int:
    return {"+": x + y, "-": x - y, "*": x * y}[operator]


def draw_solution(problem: Problem, rng: random.Random) -> str:
    """One of the problem's right solutions: an equation a line, then `#### answer`."""
    terms, operations = list(problem.terms), []
    while len(terms) > 1 or len(terms[0][1]) > 1:
        terms, operation = take_step(terms, rng)
        operations.append(operation)
    long = [k for k, (_, op, y) in enumerate(operations) if op != "*" and y > 10 and y % 10]
    if long and rng.random() < SPLIT_SHARE:  # 34 + 27 as 34 + 20 = 54 and 54 + 7 = 61
        k = rng.choice(long)
        x, operator, y = operations[k]
        between = calculate(x, operator, y - y % 10)
        operations[k : k + 1] = [(x, operator, y - y % 10), (between, operator, y % 10)]
    style = rng.choice(STYLES)
    lines = [
        style.format(e=f"{x} {operator} {y} = {calculate(x, operator, y)}", i=problem.item)
        for x, operator, y in operations
    ]
    return "\n".join([*lines, f"#### {problem.answer}"])


# ---------------------------------------------------------------------------------------------
# the checker
# ---------------------------------------------------------------------------------------------

NUMBER = r"[0-9]{1,9}"
ANSWER = re.compile(rf"####[ ]*(-?{NUMBER})")
# a stretch around an equals sign; that none begins inside one keeps the search linear
ARITHMETIC = re.compile(r"(?<![-0-9+*/(). ,])[-0-9+*/(). ,]*=[-0-9+*/()=. ,]*")
EQUATION = re.compile(rf"(-?{NUMBER}(?: *[-+*/] *{NUMBER})+) *= *(-?{NUMBER})")


def extract_answer(text: str) -> int | None:
    """The number after `####`, which stands once, alone on the last line; None if it does not."""
    last_line = text.strip().rsplit("\n", 1)[-1].strip()
    match = ANSWER.fullmatch(last_line)
    return int(match[1]) if match and text.count("####") == 1 else None


def expression_value(text: str) -> Fraction | None:
    """The value of numbers joined by + - * /, products first; None for a division by zero."""
    total = Fraction(0)
    for sign, product in re.findall(r"([+-]?)([^+-]+)", text.replace(" ", "")):
        value = Fraction(1)
        for operator, number in re.findall(r"([*/]?)([0-9]+)", product):
            if operator == "/" and int(number) == 0:
                return None
            value = value / int(number) if operator == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


def check_solution(problem: Mapping, text: str) -> tuple[bool, bool]:
    """Judge a solution of a row that has the integer `answer`: (correct, valid).

    correct: the last line is `#### answer`. valid: there is an equation, every equation on the way
    is well formed and true, and the last one ends in the stated answer (right or wrong). The two
    are independent: a false equation can stand before the right answer, and true ones before a
    wrong one. Numbers count by value (007 is 7). Not checked: that the numbers are the problem's.
    """
    answer = extract_answer(text)
    correct = answer is not None and answer == problem["answer"]
    stretches = [match[0].strip(" .,") for match in ARITHMETIC.finditer(text)]
    equations = [EQUATION.fullmatch(stretch) for stretch in stretches]
    if answer is None or not equations or None in equations:
        return correct, False
    true = all(expression_value(equation[1]) == int(equation[2]) for equation in equations)
    return correct, true and int(equations[-1][2]) == answer
