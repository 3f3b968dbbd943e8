"""eval/page.py: what is foreign stays text, data comes back whole, figures are where they belong.

The policy's hashes and the data are read back with the standard library's HTML parser, figures are
compared with places worked out by hand.

pytest tests/test_page.py
"""

# ruff: noqa: RUF001 numbers are shown with a real minus sign

import base64
import hashlib
import json
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from eval import page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script> --> ]]> &lt; & \"double\" 'single' `back`",
    "a\u2028b\u2029c",
    "\ud800 alone, \udfff too",
    "nul \x00, \u202etxt.exe\u202c, \u2066isolated\u2069, \u200bzero\ufeff",
    "\U000e0041 tag, \U0001f600 smile, line\nbreak\ttab",
]


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the text inside each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside, self.within = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        self.within = True

    def handle_endtag(self, tag):
        self.within = False

    def handle_data(self, text):
        self.inside += text
        if self.within:
            self.texts[-1] += text

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        both = zip(self.elements, self.texts, strict=True)
        return [(attributes, text) for (name, attributes), text in both if name == tag]


def write(tmp_path, html="", data="", scripts=("page.js",)) -> str:
    file = tmp_path / "made" / "page.html"
    page.write_page(file, "A <title>", html, scripts, data)
    return file.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------
# text


@pytest.mark.parametrize("text", HOSTILE)
def test_shown_text_has_no_markup_but_ours(text):
    read = Reader(page.show(text))
    assert {tag for tag, _ in read.elements} <= {"span"}
    assert all(set(attributes) == {"class"} for _, attributes in read.elements)
    seen = read.inside.replace("↵\n", "\n").replace("⇥\t", "\t")
    boxed = "".join(f"U+{ord(c):04X}" if page.HIDDEN_PATTERN.match(c) else c for c in text)
    assert seen == boxed


def test_what_cannot_be_seen_is_a_box_with_its_code():
    assert page.show("a\u202eb") == 'a<span class="hidden">U+202E</span>b'
    assert page.show("\ud800") == '<span class="hidden">U+D800</span>'
    assert page.show("\U000e0041") == '<span class="hidden">U+E0041</span>'
    assert page.plain('"\u200b<') == "&quot;[U+200B]&lt;"
    assert page.show("a\n") == 'a<span class="mark">↵</span>\n'


def test_every_control_and_mark_of_direction_is_hidden():
    """Witness: Unicode's general categories and bidirectional classes of the standard library.

    Format characters (Cf) that are not hidden are those with a picture, such as Arabic number
    signs; all that turn the direction are hidden.
    """
    for point in range(0x110000):
        sign = chr(point)
        hidden = bool(page.HIDDEN_PATTERN.match(sign))
        category = unicodedata.category(sign)
        if category in ("Cc", "Zl", "Zp", "Cs"):
            assert hidden == (sign not in "\n\t"), hex(point)
        if unicodedata.bidirectional(sign) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI",
                                               "FSI", "PDI", "BN"):  # fmt: skip
            assert hidden, hex(point)
        if category[0] in "LNPS" and point not in (0x115F, 0x1160, 0x3164, 0xFFA0, 0xFFFC, 0xFFFD):
            assert not hidden, hex(point)


def test_numbers_have_a_minus_sign_and_so_many_digits():
    assert page.number(-0.000123456789) == "−0.000123457"
    assert page.number(1234567.0) == "1.23457e6"
    assert page.number(-3.1e-9, 2) == "−3.1e−9"
    assert page.number(2.0) == "2" and page.number(-0.0) == "0"
    assert [page.number(float(v)) for v in ("nan", "inf", "-inf")] == ["nan", "inf", "−inf"]


# ------------------------------------------------------------------------------------------------
# data


def test_embedded_data_comes_back_equal(tmp_path):
    data = {"texts": HOSTILE, "numbers": [0.1, -1e-300, 1e300, 0], "none": None, "yes": True}
    read = Reader(write(tmp_path, data=page.embed("some", data)))
    (text,) = [text for attributes, text in read.of("script") if attributes.get("id") == "some"]
    assert json.loads(text) == data
    assert not set(text) & set("<>&") and text.isascii()


def test_numbers_that_json_has_not_are_refused_or_text():
    with pytest.raises(ValueError):
        page.to_json([float("nan")])
    values = [float("nan"), float("-inf"), 1 / 3, -2e-7 / 3, 5.0]
    assert page.rounded(values) == ["nan", "-inf", 0.333333, -6.66667e-08, 5.0]


# ------------------------------------------------------------------------------------------------
# the page


def test_policy_names_the_hashes_of_what_is_inline(tmp_path):
    read = Reader(write(tmp_path, scripts=("page.js", "audit.js")))
    (content,) = [a["content"] for a, _ in read.of("meta") if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in content.split("; "))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    run = [text for attributes, text in read.of("script") if "type" not in attributes]
    assert len(run) == 2 and rules["script-src"] == " ".join(map(hashed, run))
    assert [rules["style-src"]] == [hashed(text) for _, text in read.of("style")]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_without_scripts_none_may_run(tmp_path):
    assert "script-src 'none';" in write(tmp_path, scripts=())


def test_a_page_names_nothing_to_load(tmp_path):
    text = write(tmp_path, page.histogram([1.0], "x", "y"), scripts=("page.js", "audit.js"))
    text = text.replace("http-equiv", "")
    for word in ("http", "src=", "@import", "url(", "<link", "<img", "<iframe", "import("):
        assert word not in text, word
    assert not re.search(r"\son\w+=|\sstyle=", text.split("<script")[0])


def test_the_same_bytes_each_time_and_no_partial_file(tmp_path):
    first = write(tmp_path, page.section("S", "<p>x</p>", "s"))
    assert write(tmp_path, page.section("S", "<p>x</p>", "s")) == first
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["page.html"]
    assert "<title>A &lt;title&gt;</title>" in first


def test_tables_escape_their_columns_and_keep_the_html_of_cells():
    html = page.table(["<a>"], [["<b>1</b>"]], "numbers")
    assert "&lt;a&gt;" in html and "<td><b>1</b></td>" in html


# ------------------------------------------------------------------------------------------------
# figures


def test_ticks_are_round_and_cover():
    assert page.ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert page.ticks(-0.13, 0.21, 4) == [-0.2, -0.1, 0, 0.1, 0.2, 0.3]
    assert page.ticks(3, 3, 5) == [1, 2, 3, 4, 5]  # 1.5 to 4.5: room on both sides
    assert page.ticks(0, 0, 2) == [-0.5, 0, 0.5]
    assert len(page.ticks(1e20, 1e20, 5)) > 2


def test_bins_have_their_lower_edge_and_the_last_one_both():
    """Edges 0, 1, 2, 3: 0 and 0.5 | 1 | 2 and 3."""
    assert page.bins([0, 0.5, 1, 2, 3], 3) == ([0, 1, 2, 3], [2, 1, 2])
    edges, counts = page.bins([i / 10 for i in range(-7, 8)], 14)
    assert edges == [i / 10 for i in range(-7, 8)] and counts == [1] * 13 + [2]


def test_histogram_by_hand():
    """Values -1, 0, 0, 1 with 30 bins at most: steps of 0.1 from -1 to 1, the highest bar 2.

    x runs from 52 to 468 over [-1, 1], so that a bin is 20.8 wide and has a gap of 0.5 on each
    side; y runs from 236 to 10 over [0, 2]. The bars: -1 at 52.5, 113 high, 0 at 260.5, 226 high;
    1 in the last bin at 468 - 20.8 + 0.5 = 447.7.
    """
    svg = page.histogram([-1, 0, 0, 1], "x", "y")
    bars = re.findall(
        r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
    )
    assert [(kind, *map(float, bar)) for kind, *bar in bars] == [
        ("negative", 52.5, 123, 19.8, 113),
        ("positive", 260.5, 10, 19.8, 226),
        ("positive", 447.7, 123, 19.8, 113),
    ]
    assert "<title>0 to 0.1: 2</title>" in svg


def test_scatter_by_hand():
    """x from 0 to 100 with 4% room: [-4, 104]; 0 is at 52 + 4 / 108 * 416 = 67.41.

    y from -1 to 1 with room: [-1.08, 1.08] from 236 up to 10; -1 is at 236 - 0.08 / 2.16 * 226.
    Linked points come last, so above the others.
    """
    points = [(0, -1, "first <", "pair-1"), (100, 1, "second", None)]
    svg = page.scatter(points, "x", "y")
    dots = re.findall(r'<circle class="([\w ]+)" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert dots == [("dot", "452.59", "18.37"), ("dot linked", "67.41", "227.63")]
    assert '<a href="#pair-1"><circle' in svg and "<title>first &lt;</title>" in svg
    assert svg.count('class="zero"') == 2


def test_what_is_0_is_marked_and_ticks_stay_inside():
    """x from 0 to 100 as above, so 0 is at 67.41; y from 0 to 1 with room: [-0.04, 1.04], 0 at
    236 - 0.04 / 1.08 * 226 = 227.63. A tick at -0.5, which covers -0.04, would be outside.
    """
    svg = page.scatter([(0, 0, "", None), (100, 1, "", None)], "x", "y")
    marks = re.findall(r'class="zero" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert marks == [("67.41", "67.41", "236", "10"), ("52", "468", "227.63", "227.63")]
    ticks = re.findall(r'<text class="tick" x="[\d.]+" y="[\d.]+" text-anchor="end">(.*?)<', svg)
    assert ticks == ["0", "0.5", "1"]


def test_titles_and_labels_are_text():
    assert page.heading("<a>").startswith('<div class="title"><h1>&lt;a&gt;</h1>')
    assert page.section("<a>", "", '"').startswith('<section id="&quot;">\n<h2>&lt;a&gt;</h2>')
    assert page.figure("<a>", "", "").startswith("<figure><h3>&lt;a&gt;</h3>")
    svg = page.scatter([(0, 0, "", '"><b>')], "<x>", '"y"')
    assert {tag for tag, _ in Reader(svg).elements} == set("svg line text circle title a".split())
    assert 'aria-label="&quot;y&quot; by &lt;x&gt;"' in svg and ">&lt;x&gt;</text>" in svg


def test_scatter_of_one_point_and_of_huge_ones():
    for value in (0.0, 3.0, 1e20, -1e-20):
        assert "nan" not in page.scatter([(value, value, "", None)], "x", "y")
        assert "nan" not in page.histogram([value], "x", "y")
