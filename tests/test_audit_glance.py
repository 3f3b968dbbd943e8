"""eval/audit_glance.py: what the lists and captions say of a handful of pairs, by hand.

pytest tests/test_audit_glance.py
"""

# ruff: noqa: RUF001 numbers are shown with a real minus sign

import re

import numpy as np
import pytest

from eval.audit_glance import correlation, glance, length_figure, margins_figure


def row(index: int, margin: float, **others) -> dict:
    plain = {"source": f"folder/file.jsonl:{index + 1}", "loss": 0.5, "pi_logratio": margin,
             "ref_logratio": 0.0, "prompt_tokens": 9, "chosen_tokens": 5 + index,
             "rejected_tokens": 5, "truncated": False, "duplicate_of": None}  # fmt: skip
    return plain | {"index": index, "margin": margin} | others


ROWS = [
    row(0, 1.0),
    row(1, -0.5, truncated=True),
    row(2, -2.0),
    row(3, 0.5, duplicate_of=0),
    row(4, float("nan")),
]
COUNTS = {"pairs": 7, "saturated": 1, "contradicted": 2, "duplicates": 1, "truncated_prompts": 1,
          "truncated_completions": 0}  # fmt: skip


def cells(html: str, title: str) -> list[list[str]]:
    """The rows of the table under a title, without markup."""
    body = html.split(f"<h3>{title}</h3>", 1)[1].split("</table>", 1)[0].split("<tbody>", 1)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [[re.sub("<[^>]+>", "", cell) for cell in re.findall("<td>(.*?)</td>", r)] for r in rows]


def test_lists_have_the_worst_first_and_link_what_is_audited():
    html = glance({"counts": COUNTS}, ROWS, {0, 2})
    worst = cells(html, "Contradicted most: labels to check")
    assert worst == [["2 file.jsonl:3", "−2"], ["1 file.jsonl:2", "−0.5"]]
    assert cells(html, "Duplicates") == [["3 file.jsonl:4", "0"]]
    assert cells(html, "Truncated, tokens left") == [["1 file.jsonl:2", "9", "6", "5"]]
    lists = html.split('class="lists"')[1]
    assert set(re.findall(r'href="#pair-(\d+)"', lists)) == {"0", "2"}
    assert "5 of them, drawn at random" in html and "<b>7</b><span>pairs</span>" in html


def test_long_lists_say_how_many_more():
    rows = [row(i, -1.0 - i) for i in range(11)]
    html = glance({"counts": COUNTS | {"pairs": 11}}, rows, set())
    assert len(cells(html, "Contradicted most: labels to check")) == 8
    assert "and 3 more" in html and "drawn at random" not in html


def test_margins_that_are_no_numbers_are_counted():
    """Of 1, -0.5, -2 and 0.5 half are below 0, their mean is -0.25."""
    html = margins_figure(ROWS)
    assert "50% of the margins are below 0, mean −0.25." in html
    assert "1 are not finite" in html
    assert margins_figure([row(0, float("nan"))]) == ""


def test_length_figure_links_audited_pairs():
    html = length_figure(ROWS, {2})
    assert html.count("<circle") == 4 and re.findall(r'href="#(pair-\d+)"', html) == ["pair-2"]
    assert "pair 2: +2 tokens, log-ratio −2" in html


def test_correlation_by_hand():
    """x = -2..2, y = x^3 scaled: r = sum(x y) / sqrt(sum(x^2) sum(y^2)) = 34 / sqrt(10 * 130).

    So r = 0.943; Fisher: atanh(0.943) = 1.7649, 1.96 / sqrt(2) = 1.3859: tanh(0.379) = 0.362,
    tanh(3.1508) = 0.9963.
    """
    x = [-2, -1, 0, 1, 2]
    said = correlation(x, [value**3 for value in x])
    assert said == "Correlation 0.94 over 5 pairs (95% interval 0.36 to 1)."
    assert np.tanh(np.arctanh(34 / 1300**0.5) - 1.959964 / 2**0.5) == pytest.approx(0.362, abs=1e-3)


def test_no_correlation_where_nothing_varies():
    assert "needs four pairs" in correlation([1, 2, 3], [1, 2, 3])
    assert "needs four pairs" in correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert correlation([1, 2, 3, 4], [2, 4, 6, 8]) == "Correlation 1."
