"""eval/jail.py: literals there and back, and what the tests' side takes from a pipe; no processes.

tests/test_sandbox.py runs the jail itself.

    python -m pytest tests/test_jail.py
"""

import ast
import math
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from io import BytesIO

import pytest

from eval.jail import Candidate, Failure, check, from_literal, receive, send, to_literal

Point = namedtuple("Point", "x y")
Level = IntEnum("Level", "LOW HIGH")


class Lying(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "42"

    __hash__ = int.__hash__


VALUES = [
    None,
    True,
    -3,
    10**400,
    0.1,
    -0.0,
    math.inf,
    -math.inf,
    1 + 2j,
    "",
    "line\nbreak, 'quotes', \\, é, \u2028, \ud800, nan inf",
    b"\x00\xff",
    [],
    (),
    (1,),
    {},
    set(),
    {1, 2},
    [1, [2.5, ("a", None)], {"k": {3}}, {(1, 2): [-math.inf]}],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_survives_the_pipe_with_its_type(value: object) -> None:
    pipe = BytesIO()
    send(pipe, value)
    assert pipe.getvalue().count(b"\n") == 1
    pipe.seek(0)
    back = receive(pipe)
    assert back == value and type(back) is type(value)
    assert repr(back) == repr(value)  # tells -0.0 from 0.0, and 1 from True inside


def test_nan_survives() -> None:
    back = from_literal(to_literal([math.nan, -math.inf]))
    assert math.isnan(back[0]) and back[1] == -math.inf


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Level.HIGH, 2),
        (Lying(7), 7),
        (frozenset({1}), {1}),
    ],
    ids=repr,
)
def test_a_subclass_travels_as_the_type_it_extends(value: object, plain: object) -> None:
    """What equals a plain value in Python still does; what claims to equal all things does not."""
    back = from_literal(to_literal(value))
    assert back == plain and type(back) is type(plain)


@pytest.mark.parametrize("value", [object(), range(3), iter([1]), len, Ellipsis, [object()]])
def test_what_no_literal_says_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="is no literal"):
        to_literal(value)


@pytest.mark.parametrize(
    "text",
    ["", "x", "f()", "1 +", "[1, nano]", "__import__('os')", "(" * 100_000, "a\n", "{[]: 1}"],
)
def test_what_is_no_literal_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        from_literal(text)


@pytest.mark.parametrize(
    "text",
    [
        "(1, )", "('value', 1, )", "([], )", "('value', [], )", "([1, -2], -3, [0.5, 1e5], )",
        "('value', 1, 2, )", "('value', [-0.0, 1e-07, 1e+16, 1e999], )", "([[1, 2], [3]], )",
        "((1, 2), )", "('value', (1, 2), )", "('value', [(1,), 2], )", "([00], )", "([1, ], )",
        "(, )", "('value', , )", "(1], [2, )", "([01], )", "([1 2], )", "([1, , 2], )",
        "([1., .5], )", "(- 5, )", "(+5, )", "(1+2, )", "(1-2j, )", "([1]], )", "([1], [2)",
        "('value', [1]), )",
    ],
)  # fmt: skip
def test_numbers_are_read_as_python_reads_them(text: str) -> None:
    """json takes part in it, whose numbers are Python's, and whose lists are never tuples."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        with pytest.raises(ValueError):
            from_literal(text)
    else:
        assert repr(from_literal(text)) == repr(from_literal(text + "\n")) == repr(value)


def test_a_million_integers_take_little_of_the_time_limit() -> None:
    text = to_literal(("value", list(range(10**6))))
    start = time.process_time()
    assert receive(BytesIO(text.encode() + b"\n"))[1][-1] == 10**6 - 1
    assert time.process_time() - start < 1.5


def call(answer: bytes) -> object:
    """What the tests get for one call when the program's side wrote `answer`."""
    return Candidate(BytesIO(), BytesIO(answer))(1, "a")


def test_a_call_returns_the_value() -> None:
    calls = BytesIO()
    assert Candidate(calls, BytesIO(b"('value', [1, 2])\n"))(1, "a") == [1, 2]
    assert calls.getvalue() == b"(1, 'a', )\n"


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (b"('exception', 'KeyError: 3')\n", "exception", "called with (1, 'a'): KeyError: 3"),
        (b"('syntax', 'SyntaxError: bad')\n", "syntax", "called with (1, 'a'): SyntaxError: bad"),
        (b"('memory', '')\n", "memory", "called with (1, 'a'): "),
        (b"('no literal', 'a map')\n", "no literal", "called with (1, 'a'): a map"),
        (b"('passed', '')\n", "no literal", "called with (1, 'a'): "),
        (b"('broken', '')\n", "no literal", "called with (1, 'a'): "),
        (b"([], '')\n", "no literal", "called with (1, 'a'): "),
        (b"7\n", "no literal", "called with (1, 'a'): cannot unpack"),
        (b"('value', ", "no literal", "called with (1, 'a'): an answer of"),
        (b"('value', os)\n", "no literal", "called with (1, 'a'): "),
        (b"\xff\n", "no literal", "called with (1, 'a'): "),
        (b"", "died", "called with (1, 'a'): the program has ended"),
    ],
)
def test_the_program_has_no_say_but_in_values(answer: bytes, reason: str, detail: str) -> None:
    """Whatever it writes, it can claim a failure of its own, and neither a pass nor a stop."""
    with pytest.raises(Failure) as failure:
        call(answer)
    assert failure.value.verdict[0] == reason
    assert failure.value.verdict[1].startswith(detail)


REFERENCE = "def half(x):\n    return x / 2\n\ndef f(x):\n    return half(x) + 1\n"
JOB = {"entry_point": "f", "reference": REFERENCE}


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("def check(candidate):\n    assert candidate(4) == half(4) + 1", "passed"),
        ("def check(candidate):\n    assert candidate(4) == reference(4)", "passed"),
        ("def check(candidate):\n    assert f(4) == 3.0", "passed"),  # the name means the candidate
        ("def check(candidate):\n    assert candidate(5) == reference(5)", "assertion"),
        ("def check(candidate):\n    candidate(4).append(1)", "exception"),
        ("def check(candidate):\n    candidate(len)", "broken"),
        ("def check(candidate):\n    candidate(x=4)", "broken"),
        # the recording ends: a program that is dead, which no test can hide
        ("def check(candidate):\n  for _ in 'abc':\n    try: candidate(4)\n"
         "    except Exception: pass", "died"),
        ("for _ in 'abcd': f(4)", "broken"),
        ("def test(candidate): ...", "broken"),
        ("import no_such_module", "broken"),
    ],
)  # fmt: skip
def test_tests_see_the_reference_and_its_helpers(tests: str, reason: str) -> None:
    """The candidate here is a recording that says 3.0 to every call: right for 4, wrong for 5."""
    answers = BytesIO(b"('value', None)\n" + b"('value', 3.0)\n" * 2)
    assert check({**JOB, "tests": tests}, BytesIO(), answers)[0] == reason


def test_an_assertion_shows_the_call_and_its_value() -> None:
    answers = BytesIO(b"('value', None)\n('value', 3.0)\n")
    tests = "def check(candidate):\n    assert candidate(5) == 3.5"
    verdict = check({**JOB, "tests": tests}, BytesIO(), answers)
    assert verdict == ("assertion", "called with (5), got 3.0")


def test_tests_that_stumble_show_the_call() -> None:
    answers = BytesIO(b"('value', None)\n('value', 3.0)\n")
    tests = "def check(candidate):\n    candidate(4) + 'a'"
    reason, detail = check({**JOB, "tests": tests}, BytesIO(), answers)
    assert reason == "exception" and detail.startswith("called with (4), in the tests: TypeError: ")


def test_long_arguments_leave_room_for_the_value() -> None:
    """100 characters of them, and 200 in all."""
    tests = "def check(candidate):\n    assert candidate('a' * 999) == 3.5"
    shown = f"called with ('{'a' * 99}), got "
    for value, seen in (("3.0", "3.0"), (repr("b" * 999), f"'{'b' * (199 - len(shown))}")):
        answers = BytesIO(f"('value', None)\n('value', {value})\n".encode())
        assert check({**JOB, "tests": tests}, BytesIO(), answers) == ("assertion", shown + seen)


def test_a_long_complaint_is_cut() -> None:
    with pytest.raises(Failure) as failure:
        call(b"('exception', '" + b"x" * 999 + b"')\n")
    start = "called with (1, 'a'): "
    assert failure.value.verdict == ("exception", start + "x" * (200 - len(start)))
