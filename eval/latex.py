r"""Answers of competition mathematics in LaTeX: found in a solution, normalised, compared exactly.

No command of its own; `python -m eval.math_problems` compares every completion with it.

`canonical` turns an answer into a value that is equal for equal answers: a fraction for a rational
number (0.5, \frac12, 1/2), a tuple for a point or an interval, one in an order of its own for a set
or an enumeration (1, 1, 2 is not 1, 2), and else its normalised text. The normalisation is in the
spirit of `_strip_string` (Hendrycks et al. 2021) and of appendix D of Minerva (Lewkowycz et al.
2022), and goes by patterns: nothing in an answer is ever evaluated.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

MAX_LENGTH = 500  # characters of an answer; a longer one is compared as a text, as it stands
MAX_DEPTH = 8  # brackets within brackets that are taken apart

Canonical = Fraction | str | tuple
SET = r"\{", r"\}"  # around the elements of a set: the first and the last of its tuple


# ---------------------------------------------------------------------------------------------
# solution -> answer
# ---------------------------------------------------------------------------------------------

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BOXED_WORD = re.compile(r"[^\s$]+")
SAYS = re.compile(r"[^\W_]|[<>=]|\\\{")  # in the box of an answer: <, \{\}, but not \boxed{}
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
FINAL = re.compile(r"final answer is(.*?)(?:\. I hope it is correct|\n|\Z)", re.IGNORECASE)
ANSWER = re.compile(r"\banswer\W{0,6}(?:is\b|:|=)((?:(?!\banswer\b).)*)", re.IGNORECASE)
HEADING = re.compile(r"^[^\w\n]*(?:final )?answer[^\w\n]*()$", re.IGNORECASE | re.MULTILINE)
NEXT_LINE = re.compile(r"\n\s*(.*)")
STOP = r"(?<!\b[A-Z][a-z])(?<!\bMrs)\.(?=\s+[(\['*]*[A-Z])"  # of a sentence, and not of Dr. Smith
REASON = re.compile(rf"{STOP}|,\s+(?:as|because|for|since|so|where|which)\b")
ASIDE = re.compile(  # behind a plain answer: 7 (with $a=2$), 12 for all $n$
    r"(?<=[0-9])\.(?=\s)|\s+\((?=[a-z]{2})"
    r"|,?\s+(?:as|because|for|if|since|so|when|where|which|with)\b"
)
INSIDE = r"((?:[^$\\]|\\[^(\[]){1,500}?)"  # of maths: \$ is a dollar, and \( a new beginning
MATHS = re.compile(rf"(?<!\\)(?:\$\${INSIDE}\$\$|\${INSIDE}\$|\\\({INSIDE}\\\)|\\\[{INSIDE}\\\])")
JOINT = re.compile(r"\s*,?\s*(?:(?:and|or)\b)?\s*")  # between two answers
BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.{1,200}?)(?<=\S)\*\*(?!\w)")  # **12**, and not 2**3
WORD = re.compile(r"\w")
LETTERS = re.compile(r"[^\W\d_]{2}")


def brace_pairs(text: str) -> dict[int, int]:
    r"""Where each opening brace that is closed stands -> where its partner does; \{ is a text."""
    opened, pairs = [], {}
    for match in BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            pairs[opened.pop()] = match.start()
    return pairs


def inside_braces(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its partner; None without a partner."""
    end = brace_pairs(text[start:]).get(0)
    return None if end is None else text[start + 1 : start + end]


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...}, \fbox{...} or "\boxed 5" holds that is closed and not empty."""
    pairs = brace_pairs(text)
    for match in reversed(list(BOX.finditer(text))):
        start, content = match.end(), ""
        if start in pairs:
            content = text[start + 1 : pairs[start]]
        elif text[start : start + 1] != "{" and (word := BOXED_WORD.match(text, start)):
            content = word[0].rstrip(".,")
        if SAYS.search(content):
            return content
    return None


def last_match(pattern: re.Pattern, text: str) -> str:
    """What the group of the last match holds; an empty text without a match.

    Where nothing is said behind a marker, what the next line holds, if it is a plain answer.
    """
    match = None
    for match in pattern.finditer(text):  # noqa: B007 the last one is used
        pass
    if match is None:
        return ""
    found = match[match.lastindex]
    if not WORD.search(found) and (line := NEXT_LINE.match(text, match.end(match.lastindex))):
        found = line[1] if is_plain(line[1].strip("*. ")) else ""
    return found.strip()


def is_plain(text: str) -> bool:
    """Whether a text without maths is an answer: a number, with its unit or not, or 2x + 1."""
    if MATHS.search(text) or not re.search("[0-9]", text):
        return False
    return isinstance(canonical(text), Fraction) or not LETTERS.search(text)


def first_maths(sentence: str) -> str | None:
    """The first maths and what is joined to it; None without any."""
    if (first := MATHS.search(sentence)) is None:
        return None
    found, last = [first[first.lastindex].strip()], first
    while following := MATHS.match(sentence, JOINT.match(sentence, last.end()).end()):
        other = following[following.lastindex].strip()
        if left_side(other) != left_side(found[0]):
            break  # a remark: n = 3, and n^2 = 9
        if canonical(other) not in map(canonical, found):  # 1/2 or 0.5 is one answer
            found.append(other)
        last = following
    return ", ".join(found)


def stated_answer(sentence: str) -> str:
    """A plain answer ahead of an aside with maths, else the maths, else all but the reason."""
    maths, aside = MATHS.search(sentence), ASIDE.search(sentence)
    if maths and aside and aside.start() < maths.start():
        if is_plain(ahead := sentence[: aside.start()]):
            return ahead
    return first_maths(sentence) or before_reason(sentence)


def left_side(maths: str) -> str:
    left, equals, _ = maths.partition("=")
    return left.strip() if equals else ""


def before_reason(sentence: str) -> str:
    """The sentence up to its full stop or its reason, where something is left, brackets closed.

    A half-open interval, [1, 2), is closed.
    """
    cut = REASON.split(sentence, maxsplit=1)[0].rstrip("*")
    pairs = (("([", ")]"), ("{", "}"))
    closed = all(sum(map(cut.count, one)) == sum(map(cut.count, two)) for one, two in pairs)
    return cut if closed and WORD.search(cut) else sentence


def extract_answer(text: str) -> tuple[str | None, str | None]:
    r"""(answer, rule): the last \boxed, else the last "final answer is", "answer is" or maths.

    Maths is $...$, $$...$$, \(...\) or \[...\]; in a sentence, the first and what an "and", "or" or
    comma joins to it, unless a number stands ahead of it and of an aside: "12 for all $n$". One
    without maths ends with its full stop, or where it gives a reason. Behind a marker with nothing
    on its line, or a heading "Answer", a number on the next line counts. What has no letter and no
    digit is no answer, but for <, >, = and \{\} in a box.
    """
    if (boxed := last_boxed(text)) is not None:
        return boxed, "boxed"
    for rule, pattern in (("final answer", FINAL), ("answer", ANSWER), ("answer", HEADING)):
        answer = BOLD.sub(r"\1", last_match(pattern, text)).lstrip("*:,; ").rstrip("*:. ")
        if WORD.search(answer):
            return stated_answer(answer), rule
    answer = last_match(MATHS, text)
    return (answer, "last maths") if WORD.search(answer) else (None, None)


# ---------------------------------------------------------------------------------------------
# answer -> normal form
# ---------------------------------------------------------------------------------------------

UNITS = (
    "square|cubic|units?|cm|mm|km|inch(?:es)?|feet|foot|ft|miles?|mph|meters?|metres?|hours?|"
    "minutes?|mins?|seconds?|days?|weeks?|years?|dollars?|cents?|degrees?|pounds?|lbs?|kg|grams?|"
    "gm|points?|ways|integers|digits|people|students"
)
FORMAT = r"text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|operatorname"
POWER = r"(?:\^\{?[23]\}?)?"  # of a unit
NOON = r"([apAP])\.?\s?[mM]\b\.?"  # before or after it
FACTOR = r"(?:(?<=\\pi)|(?<=\)))"  # before a unit: 2\pi, a bracket
LETTER = r"(?<=(?<![a-zA-Z\\])[a-zA-Z])"  # and a variable, where the unit is a \text
END = r"(?=[\s.]*(?:$|[,;)\]]|\\\}))"  # of an answer or of an element: 5 feet 3 inches is not 5 3


def compiled(*rewrites: tuple) -> list[tuple]:
    """Pairs of a pattern and its replacement; each works on the result of those before it."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rewrites]


FORMATTING = compiled(
    (r"\u2212", "-"),
    (r"(?<=[0-9]),\s*(?:\\[!,]\s*(?=[0-9]{3}(?![0-9]))|(?=000(?![0-9])))", ","),  # 10,\!000
    (r"(?<=[0-9])\\[!,](?=[0-9])", ""),
    (r"(?<!\\)\\[!,;: ]|\\q?quad(?![a-zA-Z])|~", " "),  # spaces, but not the row end \\
    (r"\\[bB]ig{1,2}[lrm]?(?![a-zA-Z])|\\(?:left|right|displaystyle)(?![a-zA-Z])", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\le(?:q|qslant)(?![a-zA-Z])", r"\\le "),
    (r"\\ge(?:q|qslant)(?![a-zA-Z])", r"\\ge "),
    (r"\\neq(?![a-zA-Z])", r"\\ne "),
    (r"\\times(?![a-zA-Z])", r"\\cdot "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\+\s*\\infty", r"\\infty"),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|°|\\degree(?![a-zA-Z])", ""),
    (r"\\?[%$]|(?<!\\)\\[()\[\]]", ""),  # percent, dollars, the marks of maths: $, \( and \[
    (rf",?\s*\\(?:{FORMAT})\s*\{{\s*(?:and|or)\s*\}}\s*", ";"),
    (  # any unit
        rf"(?:(?<=[0-9}}])|(?<=\\pi))\s*\\(?:{FORMAT})\s*\{{(?!\s*{NOON})[^{{}}]*\}}{POWER}{END}",
        "",
    ),
    (rf"{LETTER}\s*\\(?:{FORMAT})\s*\{{(?:\s*(?:{UNITS})\b\.?)+\s*\}}{POWER}{END}", ""),
    (rf"\\(?:{FORMAT})\s*\{{([^{{}}]*)\}}", r"\1"),
    (rf"(?<=[0-9}}])\s*{NOON}", lambda m: m[1].lower() + "m"),  # 3 p.m. is not 3 a.m.
    (rf"(?<=[0-9}}])(?:\s*(?:{UNITS})\b\.?{POWER})+{END}", ""),
    (rf"{FACTOR}(?:\s+(?:{UNITS})\b\.?{POWER})+{END}", ""),
    (r"(?<=[0-9])\s*\{,\}\s*(?=[0-9])", ","),
    (r"(?:(?<=[a-zA-Z0-9})\]])\s+|,\s*)(?:and|or)\s+(?=\S)", ";"),
)
GREEK = "alpha|beta|gamma|delta|theta|lambda|mu|phi|omega"
NAME = rf"(?:m?\\angle\s?)?[A-Z]{{1,3}}|[a-zA-Z]|\\(?:{GREEK})"  # of what is asked for: AB, x
SPELLING = compiled(
    (r"(?<=[0-9])\s+([0-9]+)\s*/\s*([0-9]+)(?![0-9])", r"\\frac{\1}{\2}"),  # 2 1/2 is 5/2
    (r"[,;]\s+", ";"),  # between elements, but not within 1,000
    (
        r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|(?<![0-9])\s+|\s+(?![0-9])|\s+(?=[0-9]{3}(?![0-9]))",
        lambda m: m[1] + " " if m[1] else "",  # but for \sin x, and 1 2, which is not 12
    ),
    (r"(?<![0-9a-zA-Z}\])])([0-9]+)/([0-9]+)(?![0-9a-zA-Z{(\\^])", r"\\frac{\1}{\2}"),
    (r"(?<![0-9])\.(?=[0-9])", "0."),
    (r"\.+$", ""),
    (rf"^(?:{NAME})(?:_\{{?\w\}}?)?(?:\(-?\w{{1,9}}\))?(?:=|\\in(?![a-zA-Z]))(?=[^=]+$)", ""),
    (r"^\([a-z](?:[,;][a-z])+\)=(?=[^=]+$)", ""),  # (x, y) =
    (r"^([a-zA-Z])=([^=]+)[,;]\1=([^=]+)$", r"\2;\3"),  # x = 2, x = 3, but not x = 2, y = 3
)

PIECE = re.compile(r"\\(?:frac|binom|sqrt(?:\s*\[[^\[\]]*\])?|[a-zA-Z]+)|\\.|.", re.DOTALL)
ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1, "_": 1}
SCRIPT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")  # 2^10 is meant as 2^{10}; TeX raises the 1 alone


def count_arguments(piece: str) -> int:
    return ARGUMENTS.get(piece.partition("[")[0].strip(), 0)


def take_argument(text: str, start: int, piece: str) -> tuple[str, int]:
    r"""(argument, its end): the {...} behind a piece, a command with its own, or one character."""
    while text[start : start + 1].isspace():
        start += 1
    if text.startswith("{", start):
        inside = inside_braces(text, start)
        return (text[start:], len(text)) if inside is None else (inside, start + len(inside) + 2)
    if piece in ("^", "_") and (number := SCRIPT.match(text, start)):
        return number[0], number.end()
    if (match := PIECE.match(text, start)) is None:
        return "", start
    end = match.end()
    for _ in range(count_arguments(match[0]) if match[0].startswith("\\") else 0):
        end = take_argument(text, end, match[0])[1]
    return text[start:end], end


def with_braces(text: str) -> str:
    r"""Every argument in braces: x^2 is x^{2}, and \frac\pi2 is \frac{\pi}{2}."""
    written, at = "", 0
    while match := PIECE.match(text, at):
        written, at = written + match[0], match.end()
        for _ in range(count_arguments(match[0])):
            argument, at = take_argument(text, at, match[0])
            written += "{" + with_braces(without_braces(argument)) + "}"
    return written


def without_braces(text: str) -> str:
    text = text.strip()
    while text.startswith("{") and inside_braces(text, 0) == text[1:-1]:
        text = text[1:-1].strip()
    return text


def normalize(answer: str) -> str:
    r"""The answer without spacing, units, formatting and a leading "x =", in one spelling."""
    answer = answer.strip()
    for pattern, replacement in FORMATTING:
        answer = pattern.sub(replacement, answer)
    answer = with_braces(answer)
    for pattern, replacement in SPELLING:
        answer = pattern.sub(replacement, answer)
    return without_braces(answer)


# ---------------------------------------------------------------------------------------------
# normal form -> value
# ---------------------------------------------------------------------------------------------

DIGITS = r"[0-9]{1,100}(?:\.[0-9]{1,100})?"
THOUSANDS = re.compile(r"([-+]?)([1-9][0-9]{0,2}(?:,[0-9]{3})+)((?:\.[0-9]{1,100})?)")
RATIONAL = re.compile(rf"([-+]?)({DIGITS})")
FRACTION = re.compile(rf"([-+]?)([0-9]{{0,100}})\\frac\{{([-+]?{DIGITS})\}}\{{([-+]?{DIGITS})\}}")


def rational(text: str) -> Fraction | None:
    r"""The value of 12, -0.5, 1,000, \frac{1}{2} or of the mixed number 3\frac{1}{2}."""
    if match := THOUSANDS.fullmatch(text):
        text = match[1] + match[2].replace(",", "") + match[3]
    if match := RATIONAL.fullmatch(text):
        value = Fraction(match[2])
    elif (match := FRACTION.fullmatch(text)) and Fraction(match[4]) != 0:
        value = Fraction(match[2] or "0") + Fraction(match[3]) / Fraction(match[4])
    else:
        return None
    return -value if match[1] == "-" else value


def split_top(text: str, *separators: str) -> list[str]:
    r"""The parts of the text at the separators outside of all brackets: ( ) [ ] { } \{ \}."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        found = [s for s in separators if depth == 0 and text.startswith(s, i)]
        if found:
            parts.append(text[start:i])
            start = i + len(found[0])
    return [*parts, text[start:]]


def elements(text: str) -> list[str]:
    """The elements of an enumeration; 1,000; 2 are two."""
    found = []
    for part in split_top(text, ";"):
        found += [part] if rational(part) is not None else split_top(part, ",")
    return found


def brackets(text: str) -> tuple[str, str, str] | None:
    r"""(opening, inside, closing) where one pair of brackets holds the whole text."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        opening, inside, closing = r"\{", text[2:-2], r"\}"
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(text) > 1:
        opening, inside, closing = text[0], text[1:-1], text[-1]
    else:
        return None
    depth = 0
    for character in inside:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
    return (opening, inside, closing) if depth == 0 else None


def canonical(answer: str) -> Canonical:
    """A value that is equal for equal answers; see the top of the file."""
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    return value_of(normalize(answer), MAX_DEPTH)


def value_of(text: str, depth: int) -> Canonical:
    value = rational(text)
    if value is not None:
        return value
    if depth == 0:
        return text.replace(";", ",")
    for parts in (split_top(text, r"\cup"), elements(text)):
        if len(parts) > 1:
            return set_of(value_of(part, depth - 1) for part in parts)
    if (found := brackets(text)) is None:
        return text.replace(";", ",")
    opening, inside, closing = found
    if opening == SET[0]:
        return set_of(value_of(part, depth - 1) for part in elements(inside))
    parts = elements(inside) if ";" in inside else split_top(inside, ",")  # 0; 1,000 and 1,234
    values = [value_of(part, depth - 1) for part in parts]
    if len(values) == 1 and (opening, closing) == ("(", ")"):
        return values[0]  # a multiple choice (A), or a number in brackets
    return (opening, *values, closing)


def set_of(elements: Iterable[Canonical]) -> Canonical:
    """The elements in an order of their own: those of equal sets are written alike."""
    return (SET[0], *sorted(elements, key=show), SET[1])


def show(value: Canonical) -> str:
    """The value as a text that is equal for equal values: what stands in items.jsonl."""
    if isinstance(value, tuple):
        return value[0] + ", ".join(map(show, value[1:-1])) + value[-1]
    return str(value)


def compare(ours: Canonical, theirs: Canonical) -> str | None:
    """How two canonical values are equal: "string" for texts, "exact" for the rest; None: not."""
    if ours != theirs:
        return None
    return "string" if isinstance(ours, str) else "exact"
