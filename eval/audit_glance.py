"""All pairs of an audit at a glance: how many there are of what, margins, length bias, lists.

No command of its own. Where many pairs were audited the rows are a sample of them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.page import figure, histogram, number, scatter, section, show, table

LISTED = 8  # pairs in a list
Row = Mapping[str, Any]  # of the glance, by its columns


def glance(data: Mapping[str, Any], rows: Sequence[Row], audited: set[int]) -> str:
    counts = data["counts"]
    captions = {
        "pairs": "pairs",
        "saturated": "saturated: |margin| above 20, where its sigmoid is 0 or 1",
        "contradicted": "contradicted by the policy: margin below 0",
        "duplicates": "duplicates of an earlier pair",
        "truncated_prompts": "truncated prompts",
        "truncated_completions": "truncated completions",
    }
    cards = "".join(
        f'<div class="card"><b>{counts[name]}</b><span>{caption}</span></div>\n'
        for name, caption in captions.items()
    )
    drawn = ""
    if len(rows) < counts["pairs"]:
        drawn = f"<p>The figures and lists have {len(rows)} of them, drawn at random.</p>\n"
    figures = margins_figure(rows) + length_figure(rows, audited)
    lists = contradicted(rows, audited) + repeated(rows, audited) + truncated(rows, audited)
    html = f'<div class="cards">\n{cards}</div>\n{drawn}<div class="figures">\n{figures}</div>\n'
    return section("All pairs at a glance", f'{html}<div class="lists">{lists}</div>', "glance")


def margins_figure(rows: Sequence[Row]) -> str:
    values = [row["margin"] for row in rows if math.isfinite(row["margin"])]
    if not values:
        return ""
    below = sum(value < 0 for value in values) / len(values)
    caption = f"{number(100 * below, 3)}% of the margins are below 0, mean {mean(values)}."
    if len(values) < len(rows):
        caption += f" <strong>{len(rows) - len(values)} are not finite and not drawn.</strong>"
    return figure("Margins", histogram(values, "margin", "pairs"), caption)


def mean(values: Sequence[float]) -> str:
    return number(math.fsum(values) / len(values), 4)


def length_figure(rows: Sequence[Row], audited: set[int]) -> str:
    """Does the policy prefer what is longer?"""
    rows = [row for row in rows if math.isfinite(row["pi_logratio"])]
    if not rows:
        return ""
    points = []
    for row in rows:
        longer, index = row["chosen_tokens"] - row["rejected_tokens"], row["index"]
        text = f"pair {index}: {longer:+d} tokens, log-ratio {number(row['pi_logratio'], 4)}"
        points.append(
            (longer, row["pi_logratio"], text, f"pair-{index}" if index in audited else None)
        )
    picture = scatter(points, "chosen minus rejected tokens", "policy log-ratio")
    caption = correlation([point[0] for point in points], [point[1] for point in points])
    return figure("Length and preference", picture, f"{caption} Ringed pairs are audited below.")


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's, with Fisher's 95% interval."""
    if len(x) < 4 or min(x) == max(x) or min(y) == max(y):
        return "A correlation needs four pairs or more that differ."
    r = float(np.corrcoef(x, y)[0, 1])
    if abs(r) >= 1:
        return f"Correlation {number(r, 2)}."
    reach = 1.959964 / math.sqrt(len(x) - 3)
    low, high = (math.tanh(math.atanh(r) + sign * reach) for sign in (-1, 1))
    interval = f"95% interval {number(low, 2)} to {number(high, 2)}"
    return f"Correlation {number(r, 2)} over {len(x)} pairs ({interval})."


def contradicted(rows: Sequence[Row], audited: set[int]) -> str:
    worst = sorted((row for row in rows if row["margin"] < 0), key=lambda row: row["margin"])
    cells = [[name_of(row, audited), number(row["margin"], 4)] for row in worst]
    return listing("Contradicted most: labels to check", ["pair", "margin"], cells)


def repeated(rows: Sequence[Row], audited: set[int]) -> str:
    same = [row for row in rows if row["duplicate_of"] is not None]
    cells = [[name_of(row, audited), link_if(row["duplicate_of"], audited)] for row in same]
    return listing("Duplicates", ["pair", "same as"], cells)


def truncated(rows: Sequence[Row], audited: set[int]) -> str:
    cut = [row for row in rows if row["truncated"]]
    sizes = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
    cells = [[name_of(row, audited), *(str(row[size]) for size in sizes)] for row in cut]
    return listing("Truncated, tokens left", ["pair", "prompt", "chosen", "rejected"], cells)


def listing(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    if not cells:
        return f"<div><h3>{show(title)}</h3><p>None.</p></div>\n"
    rest = len(cells) - LISTED
    more = f"<p>and {rest} more</p>" if rest > 0 else ""
    rows = table(columns, cells[:LISTED], "numbers")
    return f"<div><h3>{show(title)}</h3>{rows}{more}</div>\n"


def name_of(row: Row, audited: set[int]) -> str:
    return f"{link_if(row['index'], audited)} <small>{show(Path(row['source']).name)}</small>"


def link_if(index: int, audited: set[int]) -> str:
    return link(index) if index in audited else str(index)


def link(index: int) -> str:
    return f'<a href="#pair-{index}">{index}</a>'
