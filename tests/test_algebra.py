r"""eval/algebra.py against identities and non-identities of school algebra, and against hostility.

python -m pytest tests/test_algebra.py
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sympy", reason="the optional package sympy is not installed")

from eval.algebra import Algebra
from eval.latex import canonical

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def algebra():
    with Algebra(seconds=20) as algebra:
        yield algebra


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        ("2^{10}", "1024"),
        (r"\sqrt{8}", r"2\sqrt2"),
        (r"\sqrt[3]{8}", "2"),
        ("6-5i", "-5i+6"),
        ("i^2", "-1"),
        (r"\sin^2 x + \cos^2 x", "1"),
        (r"\sin 2x", r"2 \sin x \cos x"),
        (r"\ln e^3", "3"),
        (r"\sin(x)^{2}", r"\sin^{2}{x}"),
        (r"\sin(x)^2 + \cos(x)^2", "1"),
        (r"\exp(x)^{2}", "e^{2x}"),
        (r"\ln{x}^{2}", r"\ln x^{2}"),  # braces are not seen
        (r"\exp(0)!", "1"),
        (r"\log 1000", "3"),  # of base ten
        (r"\log x + \log y", r"\frac{\ln x + \ln y}{\ln 10}"),
        ("5!", "120"),
        (r"\binom{5}{2}", "10"),
        ("-x^2", "-(x^2)"),
        ("x_1+x_{2}", "x_2+x_1"),
        (r"(1+\sqrt{2}, x+x)", r"(\sqrt{2}+1, 2x)"),
        (r"\sqrt{8}, 1", r"1, 2\sqrt{2}"),
        ("x+x, y, 1", "1, y, 2x"),
        ("2x, y+y", "2y, x+x"),
    ],
)
def test_equal_expressions(algebra: Algebra, one: str, other: str) -> None:
    assert algebra.agrees(canonical(one), canonical(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2x", "x^2"),
        (r"\frac{1}{3}", "0.333"),
        ("-x^2", "(-x)^2"),
        (r"3\frac{1}{2}x", r"\frac{3}{2}x"),  # a mixed number or a product: not decided
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        ("[x+x,1]", "[2x,1)"),
        ("x+x,1", "2x,1,2"),
        ("x+x,1,2", "2x,1"),
        ("x+x,1,1", "2x,2x,1"),
        (r"\log 5", r"\ln 5"),
        (r"\ln(x)^{2}", r"\ln(x^{2})"),
        (r"\sin(x)^2", r"\sin x^2"),
        (r"\exp(3)!", "e^6"),  # the factorial of e^3
        (r"\sin^{-1} x", r"\frac{1}{\sin x}"),  # or the inverse function: not decided
        ("(x+x,1,2)", "(2x,1)"),
        ("x+x", "(2x,1)"),
        ("x=5", "y"),
        ("Evelyn", "Evely"),
        ("even", "neve"),  # a word is no product
        ("ABDC", "BADC"),
        ("__import__('os').abort()", "1"),
        ("", "x"),
        ("(" * 100 + "x" + ")" * 100, "y"),
        ("x\nx", "2x"),
    ],
)
def test_what_is_not_equal_or_no_expression(algebra: Algebra, one: str, other: str) -> None:
    assert not algebra.agrees(canonical(one), canonical(other))


def test_a_question_that_takes_too_long_is_killed_and_the_next_is_answered() -> None:
    """A tower of powers has more digits than memory; half a second is enough for x + x = 2x."""
    with Algebra(seconds=0.5) as algebra:
        algebra.ask("x+x", "2x")  # the first question may pay for a lazy import
        start = time.perf_counter()
        assert not algebra.ask("9^{9^{9^{9}}}", "1")
        assert time.perf_counter() - start < 5
        assert algebra.child is None
        algebra.seconds = 20
        assert algebra.ask("x+x", "2x")
    assert algebra.child is None


def test_a_child_that_dies_is_replaced(algebra: Algebra) -> None:
    assert algebra.ask("x+x", "2x")
    algebra.child.kill()
    algebra.child.wait()
    assert algebra.ask("x+x", "2x")


def test_without_sympy_the_flag_names_the_command(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install sympy"):
        Algebra()


def test_the_parent_does_not_import_sympy() -> None:
    code = "import sys, eval.algebra; assert not {'sympy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
