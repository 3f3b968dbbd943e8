"""How an answer looks: its length and its markdown, what judges are swayed by whatever it says.

The counts are Arena-Hard's: headers, items of lists and bold spans outside of ``` blocks. Length is
in bytes of UTF-8: no tokenizer is needed, and on the recorded answers of o3-mini the length
differences of random pairs follow those in tokens more closely (r = 0.97) than pieces of text
(0.92), characters (0.90) or words (0.76) do.
"""

import re
from collections.abc import Mapping

BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
MARKDOWN = {
    "headers": re.compile(r"^#{1,6}\s", re.MULTILINE),
    "lists": re.compile(r"^[^\S\n]*(?:\d+\.|[-*+])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
STYLE = ("bytes", *MARKDOWN)


def style_of(text: str) -> dict[str, int]:
    """A count for each name of STYLE."""
    prose = BLOCK.sub("", text)
    counts = {name: len(pattern.findall(prose)) for name, pattern in MARKDOWN.items()}
    return {"bytes": len(text.encode())} | counts


def style_difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[float]:
    """In the order of STYLE: (length - length) / (sum), then the differences of counts per byte.

    0 where both are alike; the opposite sign with the answers exchanged. Arena-Hard divides the
    latter by their sum plus 1, which is close to 1.
    """
    length = (ours["bytes"] - theirs["bytes"]) / max(ours["bytes"] + theirs["bytes"], 1)
    densities = [
        ours[name] / max(ours["bytes"], 1) - theirs[name] / max(theirs["bytes"], 1)
        for name in MARKDOWN
    ]
    return [length, *densities]
