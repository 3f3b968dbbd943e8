r"""The number that a worked solution ends in: found by ordered rules, compared by value.

No command of its own; `python -m eval.gsm8k` reads every completion with it.

Strict extraction is the number right behind the marker that the prompt asked for. Flexible
extraction is the first of FLEXIBLE that finds a number; #### is a heading of markdown too, and
counts where the number stands right behind it. Both take the last match and not the first, which
may belong to an exemplar that the policy recites. Of an equation that begins behind a marker, its
numbers with units or without, flexible extraction takes the value. Else the first number of the
line counts, of "After 4 weeks she has $80" wrongly the 4, but none of a reason ("because 9 > 4").
Numbers are exact fractions: 18.00 is 18, 1,000 is 1000, $ and % do not count, and 23.33 is not
70/3. What follows from a number is bounded: one with more than MAX_DIGITS digits or a larger
exponent than MAX_EXPONENT is no answer.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from eval.latex import last_boxed
from eval.metrics import majority_vote, pass_at_k

MAX_DIGITS = 100
MAX_EXPONENT = 99
PAYLOAD = 200  # characters behind a marker in which its number is looked for

# A minus is a sign where nothing stands before it to subtract from: 10-5 ends in 5, "= - 5" in -5.
DECIMAL = r"[0-9][0-9,]*(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+"
NUMBER = re.compile(
    r"(?P<sign>(?:^|(?<=[=:#]))[ \t]*[-\u2212][ \t]*|(?<![\w)\]%])[-\u2212])?"
    r"(?:\\?[$€£]\s?(?P<inner>-)?)?"
    rf"(?<![0-9])(?<![0-9][.,])(?P<number>{DECIMAL})(?:[eE](?P<exponent>[-+]?[0-9]+))?"
    rf"(?: ?/ ?(?P<divisor>[0-9][0-9,]*(?:\.[0-9]+)?))?"
)
FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
MIXED = re.compile(r"(?<![0-9.,])([0-9]{1,9})\s*\\[dt]?frac\{([0-9]{1,9})\}\{([0-9]{1,9})\}")
SPACING = re.compile(r"\{,\}|\\[,!]")  # within a number of LaTeX: 1{,}000 and 1\,000
WRAPPING = re.compile(r"(?:[\s*$=:]|\\boxed\s*\{|\\[(\[])*")  # before a number: **, \boxed{, \(
HEADING = re.compile(r"[.):][\s*]+[^\W\d_]")  # behind one: 2. Subtract
OPERATOR = r"[-+*/^\u2212\u00d7\u00f7]|x(?=[ \t]*[0-9(])|\\(?:times|cdot|div)(?![a-zA-Z])"
UNIT = r"%?(?: ?(?:/ ?|per )?(?!per\b)[a-zA-Z]{1,20}\b){0,2}"  # apples, /hour, pounds per week
OPERAND = r"(?:\\?[$€£])?[0-9][0-9,]*(?:\.[0-9]+)?\)?"
WITH_UNITS = re.compile(rf"(?:(?:% of|{UNIT} ?(?:{OPERATOR})) ?\(?{OPERAND})+{UNIT} ?=")
EQUATION = re.compile(  # behind a number: + 6 =, or apples + 6 apples =
    rf"(?:{OPERATOR}|[()$€£%0-9 \t]|[.,](?=[0-9]))*=|{WITH_UNITS.pattern}"
)
OPERATION = re.compile(rf"%?[ \t]*(?:{OPERATOR})[ \t]*(?:\\?[$€£])?[0-9(]")

MARKERS = {
    "####": re.compile(r"####"),
    "the answer is": re.compile(r"\bthe answer is\b", re.IGNORECASE),
    "answer": re.compile(r"\banswer\W{0,6}(?:is\b|:|=)", re.IGNORECASE),
    "A:": re.compile(r"^[ \t]*A:", re.MULTILINE),
}
LIST = re.compile(r"^[ \t]*B:", re.MULTILINE)  # beside it A: is one of several, and no answer
REASON = re.compile(r"\s(?:because|since)\b")
FLEXIBLE = ("####", "boxed", "answer", "A:", "last number")


# ---------------------------------------------------------------------------------------------
# text -> number
# ---------------------------------------------------------------------------------------------


def number_value(match: re.Match) -> Fraction | None:
    """The value of a match of NUMBER; None for one too long to count with, or divided by 0."""
    exponent = match["exponent"] or "0"
    if len(match[0]) > MAX_DIGITS or len(exponent) > 4 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    divisor = Fraction((match["divisor"] or "1").replace(",", ""))
    if divisor == 0:
        return None
    value = Fraction(match["number"].replace(",", "")) * Fraction(10) ** int(exponent) / divisor
    return -value if match["sign"] or match["inner"] else value


def plain(text: str) -> str:
    """The text with numbers of LaTeX as NUMBER knows them."""
    text = MIXED.sub(improper, SPACING.sub("", text))
    return FRAC.sub(r"\1/\2", text)


def improper(mixed: re.Match) -> str:
    whole, above, below = map(int, mixed.groups())
    return f"{whole * below + above}/{below}"


def sum_value(text: str, match: re.Match) -> Fraction | None:
    """The value of a match of NUMBER, or of an equation that begins there: 18 of 12 + 6 eggs = 18.

    An equation begins with an operation, and its value is the last of its sides that is a number;
    of 18 = 3 * 6 and of 18 = 1.5 dozen it is 18 itself.
    """
    behind = match.end()
    if not (OPERATION.match(text, behind) or WITH_UNITS.match(text, behind)):
        return number_value(match)
    last = match
    while match and (equation := EQUATION.match(text, match.end())):
        behind = equation.end()
        match = NUMBER.match(text, behind) or NUMBER.match(text, WRAPPING.match(text, behind).end())
        if match and not OPERATION.match(text, match.end()):
            last = match
    return number_value(last)


def first_number(text: str) -> Fraction | None:
    text = plain(text)
    match = NUMBER.search(text)
    return sum_value(text, match) if match else None


def leading_number(text: str) -> Fraction | None:
    """The number that a line begins with, emphasised or in maths; None of the heading "2. Sum"."""
    text = plain(text)
    text = text[WRAPPING.match(text).end() :]
    match = NUMBER.match(text)
    return sum_value(text, match) if match and not HEADING.match(text, match.end()) else None


def last_number(text: str) -> Fraction | None:
    match = None
    for match in NUMBER.finditer(plain(text)):  # noqa: B007 the last one is used
        pass
    return number_value(match) if match else None


def boxed_number(text: str) -> Fraction | None:
    boxed = last_boxed(text)
    return None if boxed is None else first_number(boxed)


def line_behind(text: str, start: int) -> str:
    """The first line with a word from `start` on, without a word that PAYLOAD would cut in two."""
    line, newline, _ = text[start : start + PAYLOAD].lstrip().partition("\n")
    whole = newline or start + PAYLOAD >= len(text)
    return line if whole else line.rpartition(" ")[0]


def marked_number(
    text: str, marker: re.Pattern, read: Callable[[str], Fraction | None]
) -> Fraction | None:
    """What `read` finds on the line behind the last marker where it does, ahead of a reason."""
    for match in reversed(list(marker.finditer(text))):
        value = read(REASON.split(line_behind(text, match.end()), maxsplit=1)[0])
        if value is not None:
            return value
    return None


def strict_number(text: str, marker: str) -> Fraction | None:
    """The number right behind the last `marker`, a key of MARKERS; None if another thing is."""
    matches = list(MARKERS[marker].finditer(text))
    if not matches:
        return None
    match = NUMBER.match(plain(line_behind(text, matches[-1].end())))
    return number_value(match) if match else None


def flexible_number(text: str) -> tuple[Fraction | None, str | None]:
    """(number, rule): what the first rule of FLEXIBLE that finds a number finds."""
    for rule in FLEXIBLE:
        if rule == "A:" and LIST.search(text):
            continue
        if rule == "boxed":
            value = boxed_number(text)
        elif rule == "last number":
            value = last_number(text)
        else:
            read = leading_number if rule == "####" else first_number
            value = marked_number(text, MARKERS[rule], read)
        if value is not None:
            return value, rule
    return None, None


# ---------------------------------------------------------------------------------------------
# numbers -> scores
# ---------------------------------------------------------------------------------------------


def is_correct(answer: Fraction | None, truth: Fraction, tolerance: Fraction) -> bool:
    """Equal up to the tolerance; an absent answer is wrong."""
    return answer is not None and abs(answer - truth) <= tolerance


def guessing_floors(
    answers: Sequence[Fraction | None],
    truth: Fraction,
    truths: Counter[Fraction],
    ks: Sequence[int],
    tolerance: Fraction,
) -> list[float]:
    """For each k, pass@k of a problem's answers against another problem's truth.

    truths: how many problems have each truth, this one among them; there are at least two. The
    value is the exact mean over the other problems: what answers of the usual kind and size earn
    without an understanding of this problem.
    """
    others = truths - Counter([truth])
    ordered, hits = sorted(others), Counter()
    for answer in answers:
        if answer is not None:
            first = bisect_left(ordered, answer - tolerance)
            hits.update(ordered[first : bisect_right(ordered, answer + tolerance)])
    return [
        sum(others[t] * pass_at_k(len(answers), hits[t], k) for t in hits) / others.total()
        for k in ks
    ]


def floor_values(items: Sequence[Mapping], ks: Sequence[int]) -> dict[str, list[float]]:
    """floor@k -> one value per problem, see `guessing_floors`; none for a problem alone.

    items: `answer`, `answers` of the completions, and their `tolerance` where it is not 0: numbers,
    or texts of fractions.
    """
    if len(items) < 2:
        return {}
    truths = Counter(Fraction(item["answer"]) for item in items)
    floors = [
        guessing_floors(
            [None if answer is None else Fraction(answer) for answer in item["answers"]],
            Fraction(item["answer"]),
            truths,
            ks,
            Fraction(item.get("tolerance", 0)),
        )
        for item in items
    ]
    return {f"floor@{k}": column for k, column in zip(ks, zip(*floors, strict=True), strict=True)}


def vote(item: Mapping, n: int) -> float:
    """The majority vote of an item's first n.

    Votes are for an answer as it stands in `answers`; whether it is right is not asked before they
    are counted, since what is wrong is not compared with anything that could unite it.
    """
    verdicts = zip(item["answers"], item["correct"], strict=True)
    return majority_vote(item["answers"][:n], {answer for answer, right in verdicts if right})
