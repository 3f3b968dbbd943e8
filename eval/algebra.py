r"""Are two LaTeX expressions algebraically equal? A second opinion by sympy, in its own process.

No command of its own; `python -m eval.math_problems --sympy true` asks it about answers that are
not equal as numbers or texts, such as (x+1)^2 and x^2+2x+1.

An expression comes from a model and is not trusted: it is read by the parser below, which knows
arithmetic and a few functions and evaluates no code, and simplified in a child process with a limit
on its memory, which is killed and replaced when it takes longer than a question's seconds.

\log without a base is that of base ten, as in the contests and school books that MATH is made of;
\ln is the natural one. \sin^{-1} is the inverse to some and the reciprocal to others: not decided.
"""

import importlib.util
import json
import re
import resource
import select
import subprocess
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from eval.latex import SET, Canonical

START_SECONDS = 120.0  # to import sympy, on a slow disk
MEMORY_BYTES = 2 * 2**30  # of the child's address space
MAX_TOKENS = 200

FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "exp")
TOKEN = re.compile(
    r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|\s*(?P<letter>[a-zA-Z](?:_\{[0-9a-zA-Z]{1,10}\})?)"
    r"|\s*(?P<command>\\[a-zA-Z]+)"
    r"|\s*(?P<symbol>[-+*/^!()\[\]{}])"
)

# ---------------------------------------------------------------------------------------------
# the parent
# ---------------------------------------------------------------------------------------------


class Algebra:
    """Asks a child process whether expressions are equal; `with Algebra() as algebra: ...`."""

    def __init__(self, seconds: float = 5.0) -> None:
        if importlib.util.find_spec("sympy") is None:
            raise ImportError("--sympy true needs the package sympy: pip install sympy")
        self.seconds = seconds
        self.child: subprocess.Popen | None = None

    def __enter__(self) -> "Algebra":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def agrees(self, ours: Canonical, theirs: Canonical) -> bool:
        """Values of `eval.latex.canonical`: lists are compared element by element."""
        if ours == theirs:
            return True
        if isinstance(ours, str | Fraction) and isinstance(theirs, str | Fraction):
            return self.ask(str(ours), str(theirs))
        if not isinstance(ours, tuple) or not isinstance(theirs, tuple) or len(ours) != len(theirs):
            return False
        if (ours[0], ours[-1]) == (theirs[0], theirs[-1]) == SET:
            return self.agrees_in_some_order(ours[1:-1], theirs[1:-1])
        return all(map(self.agrees, ours, theirs))

    def agrees_in_some_order(self, ours: Iterable[Canonical], theirs: Iterable[Canonical]) -> bool:
        """Each element has a partner of its own: 1, 1, 2 is not 1, 2, 2."""
        left = list(ours)
        for element in theirs:
            partner = next((one for one in left if self.agrees(one, element)), None)
            if partner is None:
                return False
            left.remove(partner)
        return True

    def ask(self, ours: str, theirs: str) -> bool:
        """False as well for what the child cannot read, or not decide within its limits."""
        if self.child is None or self.child.poll() is not None:
            self.start()
        self.child.stdin.write(json.dumps([ours, theirs]) + "\n")
        self.child.stdin.flush()
        answer = self.read_line(self.seconds)
        if answer is None:
            self.stop()
        return answer == "true"

    def read_line(self, seconds: float) -> str | None:
        """What the child says within so many seconds; None where it is silent, or has died."""
        ready, _, _ = select.select([self.child.stdout], [], [], seconds)
        return self.child.stdout.readline().strip() or None if ready else None

    def start(self) -> None:
        self.stop()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "eval.algebra"],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self.read_line(START_SECONDS) != "ready":
            self.stop()
            raise OSError("--sympy true: the process that runs sympy did not start")

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()
            self.child = None


# ---------------------------------------------------------------------------------------------
# the child
# ---------------------------------------------------------------------------------------------


class Parser:
    """Recursive descent from normalised LaTeX to a sympy expression; ValueError for the rest."""

    def __init__(self, text: str, sympy: Any) -> None:
        self.sympy, self.tokens, position = sympy, [], 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None or len(self.tokens) == MAX_TOKENS:
                raise ValueError(f"no expression: {text[position:]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self.tokens.append(("end", ""))
        kinds = [kind for kind, _ in self.tokens]
        if any(kinds[i : i + 3] == ["letter"] * 3 for i in range(len(kinds))):
            raise ValueError("a word, whose letters are no factors")
        self.at = 0

    def parse(self) -> Any:
        value = self.sum()
        self.expect("")
        return value

    def next(self) -> str:
        return self.tokens[self.at][1]

    def take(self) -> tuple[str, str]:
        self.at += 1
        return self.tokens[self.at - 1]

    def accept(self, text: str) -> bool:
        found = self.next() == text
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise ValueError(f"expected {text!r}, got {self.next()!r}")

    def sum(self) -> Any:
        value = self.product()
        while self.next() in ("+", "-"):
            sign = 1 if self.take()[1] == "+" else -1
            value += sign * self.product()
        return value

    def product(self) -> Any:
        if self.accept("-"):
            return -self.product()
        self.accept("+")
        value = self.power()
        while True:
            if self.accept("/"):
                value = value / self.power()
            elif self.accept(r"\cdot") or self.accept("*") or self.starts_atom():
                value = value * self.power()
            else:
                return value

    def starts_atom(self) -> bool:
        """Whether a product goes on without a sign: 2x, x(x+1), but not 3\\frac{1}{2}."""
        kind, text = self.tokens[self.at]
        if text == r"\frac" and self.tokens[self.at - 1][0] == "number":
            raise ValueError("a mixed number or a product")
        return kind in ("letter", "command") or text in ("(", "{")

    def power(self) -> Any:
        value = self.atom()
        while self.accept("!"):
            value = self.sympy.factorial(value)
        return value ** self.atom() if self.accept("^") else value

    def enclosed(self, closing: str) -> Any:
        value = self.sum()
        self.expect(closing)
        return value

    def atom(self) -> Any:
        sympy = self.sympy
        kind, text = self.take()
        if kind == "number":
            return sympy.Rational(text)
        if kind == "letter":
            return {"e": sympy.E, "i": sympy.I}.get(text) or sympy.Symbol(text)
        if text in ("(", "{"):
            return self.enclosed({"(": ")", "{": "}"}[text])
        if text == r"\pi":
            return sympy.pi
        if text == r"\frac":
            return self.atom() / self.atom()
        if text == r"\binom":
            return sympy.binomial(self.atom(), self.atom())
        if text == r"\sqrt":
            degree = self.enclosed("]") if self.accept("[") else 2
            return sympy.root(self.atom(), degree)
        if text == r"\log":
            return self.function(lambda argument: sympy.log(argument, 10))
        if text[1:] in FUNCTIONS:
            return self.function(getattr(sympy, text[1:]))
        raise ValueError(f"unknown {text!r}")

    def function(self, apply: Any) -> Any:
        r"""\sin^2 x, \sin(x)^2, \sin 2x: without brackets, up to the next sign or function.

        A power behind the parentheses is that of the value; braces are not seen: \ln{x}^2 is
        \ln x^2, of which the argument is x^2.
        """
        exponent = self.atom() if self.accept("^") else 1
        if exponent == -1:
            raise ValueError("an inverse function or a reciprocal")
        bracketed = self.next() in ("(", "{")
        argument = self.atom() if self.next() == "(" else self.power()
        while not bracketed and (self.tokens[self.at][0] == "letter" or self.next() == r"\pi"):
            argument = argument * self.power()
        return apply(argument) ** exponent


def is_equal(ours: str, theirs: str) -> bool:
    import sympy

    difference = Parser(ours, sympy).parse() - Parser(theirs, sympy).parse()
    return sympy.simplify(difference) == 0


def serve() -> None:
    """A line [ours, theirs] in, a line true or false out, until the parent goes away."""
    import sympy  # noqa: F401 before the limit is set, and before the first question is timed

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            equal = is_equal(*json.loads(line))
        except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
            equal = False  # not an expression that we know, or too large
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    serve()
