"""The report in a headless Chromium: widths, both themes, links to cells, nothing that is loaded.

Driven by playwright; skips where it or Chromium is not (on Debian: apt-get install chromium).

pytest tests/test_report_browser.py
"""

import sys

import pytest

from eval import report
from tests.study_example import rows, write_study
from tests.test_audit_browser import browser, visit  # noqa: F401 they are fixtures


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_study(folder / "study", rows(2, 6, 8, ("verdict",), (0.5, 0.8, 1.0, 2.0)))
    out = folder / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        words = [str(folder / "study"), "--out", str(out), "--pictures", "false"]
        patch.setattr(sys, "argv", ["report", *words])
        report.main()
    return out


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_is_never_wider_than_the_window(visit, page, width):  # noqa: F811
    tab = visit(page, width=width)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sizes = tab.evaluate(
        "[...document.querySelectorAll('svg.chart')].filter((s) => s.getClientRects().length)"
        ".map((s) => 11 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert len(sizes) > 30 and min(sizes) > 8  # pixels of a chart's letters


def test_lines_have_the_colour_of_the_theme(visit, page):  # noqa: F811
    """SPL at tau 2: Okabe and Ito's blue on light paper, the lighter one on dark."""
    line = "#verdict-training svg.chart >> nth=0 >> g[color] >> nth=3 >> .curve"
    for scheme, stroke in (("light", "rgb(0, 114, 178)"), ("dark", "rgb(86, 180, 233)")):
        tab = visit(page, scheme=scheme)
        assert tab.locator(line).evaluate("(e) => getComputedStyle(e).stroke") == stroke
        tab.locator("#theme").click()
    assert tab.locator(line).evaluate("(e) => getComputedStyle(e).stroke") == "rgb(0, 114, 178)"


def test_no_text_of_a_chart_covers_another(visit, page):  # noqa: F811
    tab = visit(page, width=1400)
    covered = tab.evaluate(
        """() => [...document.querySelectorAll('svg.chart')].flatMap((chart) => {
             const all = [...chart.querySelectorAll('text')]
             const texts = all.filter((t) => t.getClientRects().length)
             const boxes = texts.map((t) => t.getBoundingClientRect())
             const touch = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right
                                     && a.top + 2 < b.bottom && b.top + 2 < a.bottom
             const name = (i) => texts[i].textContent
             return boxes.flatMap((a, i) => boxes.flatMap((b, k) =>
               i < k && touch(a, b) ? [`${name(i)} and ${name(k)}`] : []))
           })"""
    )
    assert covered == []


def test_a_claim_leads_to_its_cells(visit, page):  # noqa: F811
    tab = visit(page)
    tab.locator(".claim details summary").first.click()
    link = tab.locator(".claim .links a").first
    name = link.inner_text()
    link.click()
    assert tab.locator("#cells :target").inner_text() == name
    assert tab.locator("#cells tr:has(:target)").bounding_box()["y"] < 900
