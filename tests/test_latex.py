r"""eval/latex.py against pairs of equal and of unequal answers written down by hand.

python -m pytest tests/test_latex.py
"""

import time
from fractions import Fraction

import pytest

from data.rows import read_rows
from eval.latex import canonical, compare, extract_answer, last_boxed, normalize, show


@pytest.mark.parametrize(
    ("text", "answer", "rule"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", "boxed"),
        (r"\[ \boxed{42} \]", "42", "boxed"),  # without dollars
        (r"\boxed{3}, no, \boxed{4}", "4", "boxed"),
        (r"\fbox{3}", "3", "boxed"),
        (r"$\boxed 5.$", "5", "boxed"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
        (r"\boxed{\text{(A)}}. The final answer is 7.", r"\text{(A)}", "boxed"),
        (
            "Final Answer: The final answer is $[2,5)$. I hope it is correct.",
            "[2,5)",
            "final answer",
        ),
        ("**Answer:** 42", "42", "answer"),
        ("The answer is $5$, since $x=3$.", "5", "answer"),
        ("Is the answer: 4? No, the answer is 5", "5", "answer"),
        ("The answer is: 12.", "12", "answer"),
        ("So the answer is: x^2+1", "x^2+1", "answer"),
        ("The answer is **12**.", "12", "answer"),
        ("**Final answer is:** 12", "12", "final answer"),
        (r"The answer is \(x^*\).", "x^*", "answer"),
        (r"The answer is $\$12$.", r"\$12", "answer"),
        ("Hence $x = 16$ and $y = 17$", "y = 17", "last maths"),
        ("The answer is:\n$$12$$", "12", "last maths"),  # nothing on the line of the words
        ("The answer is\n\\[\n12\n\\]", "12", "last maths"),
        ("We have $$a=1$$ and so $7$.", "7", "last maths"),
        ("We have $7$, and so $$a=1$$", "a=1", "last maths"),
        (r"So \(x=5\).", "x=5", "last maths"),
        (r"\[ x = \left( 5 \right) \]", r"x = \left( 5 \right)", "last maths"),
        (r"It costs \$5 or \$6.", None, None),
        ("The answer is: $$", None, None),
        (r"\boxed{5", None, None),  # cut off
        (r"\boxed{42} is it. To check: \boxed{4", "42", "boxed"),
        (r"\boxed{\frac{1}{2}, so \boxed{4", None, None),
        ("The answer is 12. This follows from 3 steps.", "12", "answer"),
        ("The answer is 12. (See above.)", "12", "answer"),
        ("The answer is 12. **Check:** 3 * 4 = 12.", "12", "answer"),
        ("The answer is **12**. This holds.", "12", "answer"),
        ("**Answer: 12**. This holds.", "12", "answer"),
        ("The answer is **12** and **13**.", "12 and 13", "answer"),
        ("The answer is 2**3 or 3**2.", "2**3 or 3**2", "answer"),  # powers
        ("The final answer is 3.5. I hope it's correct.", "3.5", "final answer"),
        ("So the answer is x + 1, since 3*4 = 12.", "x + 1", "answer"),
        ("The answer is 3, 4 and 5, which are all.", "3, 4 and 5", "answer"),
        ("The answer is $3$ and $5$, of $7$.", "3, 5", "answer"),
        (r"The answer is \(3\), \(4\), or \(5\).", "3, 4, 5", "answer"),
        (r"The answer is $\frac{1}{2}$ or $0.5$.", r"\frac{1}{2}", "answer"),
        ("The answer is $n = 3$, and $n^2 = 9$.", "n = 3", "answer"),
        ("The answer is $5$, $n = 5$ works.", "5", "answer"),
        ("The answer is $x = 3$ and $x = 5$.", "x = 3, x = 5", "answer"),
        ("The answer is $(1,2)$ and $(3,4)$.", "(1,2), (3,4)", "answer"),
        ("The answer is Dr. Smith", "Dr. Smith", "answer"),
        ("The answer is 5 ft. 3 in. Good.", "5 ft. 3 in", "answer"),
        ("The answer is [1, 2). It holds.", "[1, 2)", "answer"),
        ("The answer is (2, 5], as shown.", "(2, 5]", "answer"),
        ("The answer is Eve (or Eva, as she says).", "Eve (or Eva, as she says)", "answer"),
        ("The answer is x = 1; y = 2", "x = 1; y = 2", "answer"),
        ("The answer is, because 2 + 3 = 5, five", "because 2 + 3 = 5, five", "answer"),
        (r"\boxed{42}. Again \boxed", "42", "boxed"),
        # a plain answer, and maths that is said of it
        ("The answer is 5, since $x = 3$ solves it.", "5", "answer"),
        ("The answer is 7 (with $a=2$).", "7", "answer"),
        ("The answer is 12 for all $n$.", "12", "answer"),
        ("The answer is 5. Check: $2 + 3 = 5$.", "5", "answer"),
        ("The answer is 2x + 1, because $x > 0$.", "2x + 1", "answer"),
        ("The final answer is 10 cm where $h=2$.", "10 cm", "final answer"),
        ("The answer is x where $x = 5$.", "x = 5", "answer"),
        ("The answer is the number of pairs of 4, which is $6$.", "6", "answer"),
        # on the next line
        ("So $x=3$.\n\nThe final answer is:\n12", "12", "final answer"),
        ("We solve $2x=24$.\n\n**Answer:**\n12", "12", "answer"),
        ("**Final Answer**\n\n12", "12", "answer"),
        ("### Answer\n**12 cm**\nIt is $x$.", "12 cm", "answer"),
        ("The answer is\n\n42", "42", "answer"),
        ("Answer:\nIn 2 steps, $2x=24$ and $x=12$", "x=12", "last maths"),
        # an empty box
        (r"\boxed{5}, as asked for in \boxed{}", "5", "boxed"),
        (r"It is $\boxed{\ }$. The answer is 5.", "5", "answer"),
        (r"\boxed{}", None, None),
        (r"\boxed{\{\}}", r"\{\}", "boxed"),
        (r"\boxed{<}", "<", "boxed"),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_extraction(text: str, answer: str | None, rule: str | None) -> None:
    assert extract_answer(text) == (answer, rule)


def test_braces_of_a_box_are_matched() -> None:
    assert last_boxed(r"\boxed{\frac{\sqrt{3}}{2}} and {more}") == r"\frac{\sqrt{3}}{2}"
    assert last_boxed(r"\boxed{\left\{ x \mid x > 0 \right\}}") == r"\left\{ x \mid x > 0 \right\}"
    assert last_boxed(r"\boxed{\left\{ 1 \right.}, so {2}") == r"\left\{ 1 \right."
    assert last_boxed(r"\boxedtext{5}") is None


EQUAL = [  # how they are found equal, and spellings of one answer
    ("exact", r"\frac12", r"\dfrac{1}{2}", r"\tfrac{1}2", "1/2", "0.5", ".5", r"x = \frac{1}{2}"),
    ("exact", r"-\frac{1}{2}", r"\frac{-1}{2}", r"\frac{1}{-2}", "-0.50", "\u22121/2"),
    ("exact", "1000", "1,000", r"1{,}000", r"1\,000", r"\$1,000.00", "1000."),
    ("exact", "5", r"5\text{ cm}^2", r"5 \mbox{ feet}", "5 square units", "{5}", "$5$", r"\(5\)"),
    ("exact", "90", r"90^\circ", r"90^{\circ}", "90°", "90 degrees"),
    ("exact", "50", r"50\%", "50%", "(50)"),
    ("exact", "7/2", r"3\frac{1}{2}", "3.5"),
    ("exact", "(1,2)", r"\left( 1, 2 \right)", r"(1,\frac{4}{2})", "(x, y) = (1, 2)"),
    ("exact", r"(-\infty, 1] \cup (2, \infty)", r"x \in (2,+\infty)\cup(-\infty,1]"),
    ("exact", r"\{1,2\}", r"\left\{2, 1\right\}", "1, 2", "2,1", r"1 \text{ and } 2", "1 or 2"),
    ("exact", "2, 3", "x = 2, x = 3"),
    ("exact", "1, 1, 2", "2, 1, 1", r"\{1, 2, 1\}"),
    ("string", r"\frac{\sqrt3}{2}", r"\dfrac{\sqrt{3}}{2}"),
    ("string", r"\frac{\sqrt{3}}2", r"\frac{\sqrt 3}{2}", r"\frac {\sqrt{3}} 2"),
    ("string", r"\frac\pi2", r"\frac{\pi}{2}", r"\frac \pi 2"),
    ("string", r"\frac{\frac12}{x}", r"\frac{\frac{1}{2}}x"),
    ("string", "x^{2}+1", "x^2+1", "x^ 2 + 1", "x^{{2}}+1"),
    ("string", "2^{10}x", "2^10x", "2^{ 10 } x"),
    ("string", "x^{-1}", "x^-1"),
    ("string", r"e^{\pi}x", r"e^\pi x"),
    ("string", r"x^{\frac{1}{2}}", r"x^\frac12", "x^{1/2}"),
    ("string", r"\sqrt[3]{2}", r"\sqrt[3]2", r"\sqrt [3] {2}"),
    ("string", r"\binom52", r"\binom{5}{2}"),
    ("string", "1011_{2}", "1011_2"),
    ("exact", "5/2", "2 1/2", r"2 \frac{1}{2}"),
    ("exact", "0, 100", "100, 0", r"\{0, 100\}", "0; 100"),
    ("exact", "2, 128", "128, 2", "2 and 128"),
    ("exact", "1,000, 2", "2; 1,000", "2, 1,000"),
    ("exact", "3, 4, 5", r"\(3\), \(4\), or \(5\)", "3, 4 and 5"),
    ("exact", "32348", r"32,\!348", r"\$32,\!348.00", "32,348"),
    ("exact", "1000000", r"1,\!000,\!000", r"1,\, 000,\! 000", "1, 000, 000", "1,000,000"),
    ("exact", "3.14159", r"3.141\,59"),
    ("exact", "1,500, 2,500", r"\{1,500, 2,500\}", r"1{,}500 \text{ and } 2{,}500"),
    ("exact", "(0, 1,000)", "(0, 1000)", "(0; 1,000)"),
    ("exact", "[1,000, 2,000)", "[1000, 2000)"),
    ("exact", "(1,2), (3,4)", "(1, 2) and (3, 4)", "(3,4), (1,2)"),
    ("string", r"\gcd(a, b)", r"\gcd(a,b)"),
    ("string", "(A, B) = (2, 3)", "(A,B)=(2,3)"),
    ("string", r"[1, 2] \cap [3, 4]", r"[1,2]\cap[3,4]"),
    ("string", "(1, 2)^T", "(1,2)^T"),
    ("exact", "5", "AB = 5", "f(2) = 5", r"\angle ABC = 5^\circ", r"\theta = 5", "x_1 = 5"),
    ("exact", "1/2", r"P(A) = \frac12", "g(-1) = 0.5"),
    ("string", r"2\pi", r"2\pi\text{ cm}", r"2\pi \text{ square inches}", r"2\pi cm^2"),
    ("string", r"36\pi", r"36\pi\text{ m}", r"36\pi \mbox{ gallons}"),
    ("string", "x", r"x\text{ dollars}"),
    ("string", "2(x+1)", r"2(x+1)\text{ feet}", "2(x+1) feet"),
    ("string", r"3 \text{ p.m.}", "3 p.m.", r"3\mbox{ PM}"),
    ("string", r"\text{Evelyn}", "Evelyn", r"\mathrm{Evelyn}"),
    ("string", r"\text{(A)}", "A", r"\textbf{(A)}"),
    ("string", r"2\pi r", r"2 \pi r", r"2\,\pi\,r"),
    ("string", "y = 2x+3", "2x + 3", "f(x) = 2x+3"),
    ("string", r"x \leq 3", r"x\le3"),
    ("string", r"\begin{pmatrix} 1 \\ \frac12 \end{pmatrix}",
     r"\begin{pmatrix}1\\\dfrac{1}{2}\end{pmatrix}"),
    ("string", r"\begin{pmatrix} 1 \\[4pt] 2 \end{pmatrix}",
     r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}"),
]  # fmt: skip


@pytest.mark.parametrize("row", EQUAL, ids=lambda row: row[1])
def test_equal_answers(row: tuple[str, ...]) -> None:
    how, *spellings = row
    for one in spellings:
        for other in spellings:
            assert compare(canonical(one), canonical(other)) == how, (
                one,
                other,
                canonical(one),
                canonical(other),
            )
            assert show(canonical(one)) == show(canonical(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(1,2)", "(2,1)"),
        ("[1,2)", "[1,2]"),
        ("(1,2)", r"\{1,2\}"),
        ("1,2", "1,2,3"),
        ("1,1,2", "1,2"),
        ("1,1,2", "1,2,2"),
        ("x^{2}3", "x^{23}"),
        ("x^{2}/3", "x^{2/3}"),
        (r"3 \text{ p.m.}", r"3 \text{ a.m.}"),
        ("x=1, y=2", "x=2, y=1"),
        (r"0.\overline{3}", "0.3"),
        (r"5 \text{ feet } 3 \text{ inches}", "53"),
        ("5m", "5"),  # m is a variable where it is not a \text
        ("0, 100", "100"),
        ("1, 100", "1100"),
        ("1,000, 2", "0, 1, 2"),
        ("[5]", "5"),
        ("((5)", "(5"),
        ("1 2", "12"),
        ("2 1/2", "21/2"),
        ("(1, 234)", "1234"),
        ("a foot", "a"),
        ("x(x+1) = 0", "0"),
        ("x^2 + y^2 = 4", "4"),
        ("xy = 12", "12"),
        (r"\frac{1}{0}", "1"),
        ("0.33", r"\frac{1}{3}"),
        (r"\sqrt{2}", "1.414"),
        ("2^{10}", "1024"),  # a question for sympy
        ("", "0"),
    ],
)
def test_unequal_answers(one: str, other: str) -> None:
    assert compare(canonical(one), canonical(other)) is None
    assert show(canonical(one)) != show(canonical(other))


def test_the_values() -> None:
    assert canonical(r"3\frac{1}{2}") == Fraction(7, 2)
    assert canonical(r"(1, \frac12]") == ("(", Fraction(1), Fraction(1, 2), "]")
    assert canonical(r"\{1, (2, x)\}") == (r"\{", ("(", 2, "x", ")"), 1, r"\}")
    assert normalize(r"\sin x + \sin 2 x") == r"\sin x+\sin2x"  # \sinx were another command


@pytest.mark.parametrize(
    "text",
    ["0.5", r"\frac{\sqrt3}2", r"(1,\infty)", r"\text{Evelyn}", "x_1^2", "2^{{10}}", "3 p.m."],
)
def test_the_normal_form_is_its_own(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_gold_answers_of_the_exemplars(shared_data) -> None:
    """Minerva's four exemplars state their answer twice: boxed, and in the last line."""
    rows = [r for _, r in read_rows(shared_data / "fewshot" / "minerva_math_4shot.jsonl")]
    boxed = [last_boxed(row["solution"]) for row in rows]
    assert boxed == ["[2,5)", "24", "16", r"-\frac{2}{3}"]
    for row, answer in zip(rows, boxed, strict=True):
        stated, rule = extract_answer(row["solution"].rpartition("\n")[2])
        assert rule == "final answer"
        assert compare(canonical(stated), canonical(answer)) == "exact"


HOSTILE = [
    "{",
    "(",
    r"\{",
    r"\boxed{",
    r"\boxed ",
    r"\frac{",
    "$a",
    "$",
    "final answer is",
    " ",
    "9,",
]
HOSTILE += ["answer is\n", "answer\n", "\n*", "answer is 9 for ", r"\boxed{}"]
HOSTILE += ["^", "_{", r"\sqrt", r"^\frac", r"\(", r"\[", "$$a"]
HOSTILE += [pytest.param("answer is" + " **a" * 24_900, id="bold")]
HOSTILE += ["answer is $", r"\text{", r"\left(", "1/", "9", r"\cup", "x=", "5cm", "and "]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_costs_little(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    answer, _ = extract_answer(text)
    for candidate in (answer or "", text, text[:500]):
        show(canonical(candidate))
    assert time.process_time() - start < 4
