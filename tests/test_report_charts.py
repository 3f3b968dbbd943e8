"""eval/report_charts.py: points are where they belong, worked out by hand; foreign text is inert.

pytest tests/test_report_charts.py
"""

import math
import re

import pytest

from eval.report_charts import (
    LARGE,
    Chart,
    Panel,
    Point,
    Series,
    bands,
    chart_svg,
    label_box,
    legend,
    overlap,
    panel_html,
    place_labels,
    scales,
)

BLUE = ("#0000ff", "#8080ff")


def chart(*series: Series, **more) -> Chart:
    return Chart("Title", "x", "y", series, **more)


def line(*points: Point, name: str = "one", **more) -> Series:
    return Series(name, BLUE, points, **more)


def places(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="point" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_of_a_log_axis_by_hand():
    """x from 1 to 16 is 0 to 4 in doublings, with 4% room: [-0.16, 4.16] over 60 to 346.

    So 1 is at 60 + 0.16 / 4.32 * 286 = 70.59 and 4 in the middle, at 203. y is from 0 to 1, with
    its ends at 208 and 10, so 0.25 is at 158.5.
    """
    svg = chart_svg(chart(line(Point(1, 0), Point(4, 0.25), Point(16, 1)), log_x=True))
    assert places(svg) == [(70.59, 208), (203, 158.5), (335.41, 10)]
    assert '<path class="curve" d="M70.59 208.0L203.0 158.5L335.41 10.0"/>' in svg


def test_ticks_of_a_log_axis_keep_1_and_leave_each_other_room():
    """0.9 and 0.95 stand within a tenth of a doubling of 1; 0.5, 2 and 11 have room."""
    taus = (0.5, 0.9, 0.95, 1, 1.1, 2, 11)
    x, _ = scales(chart(line(*(Point(tau, 0) for tau in taus)), log_x=True, x_ticks=taus))
    assert [text for _, text in x.ticks] == ["0.5", "1", "2", "11"]


def test_a_log_axis_without_a_tick_in_its_range_has_its_ends():
    """Neither 4 and 8, the doublings around 5 to 7, nor ticks that are given far from there."""
    for ticks in ((), (0.5, 1, 100)):
        x, _ = scales(chart(line(Point(5, 0), Point(7, 1)), log_x=True, x_ticks=ticks))
        assert x.ticks == ((math.log2(5), "5"), (math.log2(7), "7"))
    x, _ = scales(chart(line(Point(5, 0)), log_x=True, x_ticks=(1,)))
    assert [text for _, text in x.ticks] == ["5"]


def test_axes_hold_intervals_and_the_diagonal_makes_them_equal():
    series = line(Point(0.2, 0.5, 0.1, 0.9, 0.15, 0.3))
    x, y = scales(chart(series, diagonal=True))
    assert x == y and y.low <= 0.1 and y.high >= 0.9
    _, y = scales(chart(line(Point(0, 5, 4, 6)), from_zero=True))
    assert (y.low, y.high) == (0, 6)


def test_a_band_goes_over_the_highs_and_back_over_the_lows():
    svg = chart_svg(chart(line(Point(0, 1, 0, 2), Point(1, 1, 0, 2))))
    (path,) = re.findall(r'<path class="band" [^>]*d="M([^"]*)Z"', svg)
    heights = [float(place.split()[1]) for place in path.split("L")]
    assert heights == [10, 10, 208, 208]  # y from 0 to 2


def test_of_bands_that_lie_on_each_other_the_uppermost_is_drawn():
    """Else ten lines that agree would make their band opaque."""
    ends = (Point(0, 1, 0, 2), Point(1, 1, 0, 2))
    below, above = (Series(name, (name, name), ends) for name in ("red", "blue"))
    other = Series("grey", ("grey", "grey"), (Point(0, 1, 0, 3), Point(1, 1, 0, 2)))
    drawn = chart(below, other, above)
    assert bands(drawn) == [above, other]
    found = re.findall(r'<path class="band" color="light-dark\((\w+)', chart_svg(drawn))
    assert found == ["grey", "blue"]


def test_what_is_not_finite_is_not_drawn():
    svg = chart_svg(chart(line(Point(0, float("nan")), Point(1, 1), Point(2, 2))))
    assert len(places(svg)) == 2 and "nan" not in svg


def test_labels_cover_no_point_and_no_other_label():
    """Twenty points on top of each other's labels: some labels are left out, none overlap."""
    points = [Point(i % 5, i // 5, label=f"label {i}") for i in range(20)]
    drawn = chart(line(*points, line=""), size=LARGE)
    placed = place_labels(drawn)
    svg = chart_svg(drawn)
    assert 5 <= len(placed) <= 20 and svg.count(">label ") == len(placed)
    at = dict(zip(points, places(svg), strict=True))
    boxes = [label_box(*at[p], right, up, p.label) for p, right, up in placed]
    for i, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in boxes[:i])
        for point, (x, y) in at.items():
            assert point is placed[i][0] or not overlap(box, (x - 3, y - 3, x + 3, y + 3))


def test_a_label_leaves_the_line_free():
    """A line falls to the right through the point: right and left of it are covered, above not."""
    steep = [Point(0, 2), Point(5, 1, label="here"), Point(10, 0)]
    ((_, right, up),) = place_labels(chart(line(*steep)))
    assert (right, up) in ((1, 1), (-1, -1))  # the corners that the line does not pass


def test_the_legend_names_each_series_once_and_one_needs_none():
    both = [chart(line(Point(0, 0)), line(Point(0, 0), name="<two>", line="--")),
            chart(line(Point(1, 1)))]  # fmt: skip
    html = legend(both)
    assert re.findall(r"</svg>(.*?)</span>", html) == ["one", "&lt;two&gt;"]
    assert 'stroke-dasharray="6 3"' in html
    assert legend(both[1:]) == ""


@pytest.mark.parametrize("marker", ["o", "s", "^", "v", "D", "P", "X"])
def test_every_marker_is_drawn_with_what_it_says(marker):
    svg = chart_svg(chart(line(Point(0, 0, about="<b>"), marker=marker)))
    assert 'class="point"' in svg and "<title>&lt;b&gt;</title>" in svg


def test_a_panel_folds_escapes_and_has_its_caption():
    panel = Panel("p", "A <title>", (chart(line(Point(0, 0))),), "1 < 2", folded=True)
    html = panel_html(panel, "verdict-p")
    assert (
        '<figure class="panel" id="verdict-p"><details><summary>A &lt;title&gt;</summary>' in html
    )
    assert "<figcaption>1 &lt; 2</figcaption>" in html
