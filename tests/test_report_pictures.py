"""eval/report_pictures.py: the pictures hold what the page's charts hold, asked of matplotlib.

pytest tests/test_report_pictures.py
"""

import sys

import pytest

from eval.plots import save
from eval.report_charts import LARGE, Chart, Panel, Point, Series, place_labels, scales
from eval.report_pictures import draw_panel, draw_pictures

COLOURS = ("#0072B2", "#56B4E9")
BAND = Series("a", COLOURS, (Point(1, 1, 0.5, 1.5), Point(4, 2, 1, 3)))
BARS = Series("b", COLOURS, (Point(2, 1, 0, 2, 1, 3, label="here"),), "s", "", band=False)
HALF = Series("", COLOURS, (Point(1, 0.5),), band=False)
CHARTS = (
    Chart("first", "k", "y", (BAND, BARS), log_x=True),
    Chart("second", "x", "y", (BAND, HALF), diagonal=True),
)


def test_axes_lines_and_labels_are_those_of_the_page():
    figure = draw_panel(Panel("p", "P", CHARTS, ""))
    first, second, *_ = figure.axes
    x, y = scales(CHARTS[0])
    assert first.get_xlim() == pytest.approx((x.low, x.high))
    assert first.get_ylim() == pytest.approx((y.low, y.high))
    assert [t.get_text() for t in first.get_xticklabels()] == [text for _, text in x.ticks]
    assert list(first.lines[0].get_xdata()) == [0, 2]  # log2 of 1 and 4
    assert [text.get_text() for text in first.texts] == [
        p.label for p, *_ in place_labels(CHARTS[0])
    ]
    assert first.get_title() == "first" and second.lines[-1].get_linestyle() == "--"


def test_a_series_without_points_takes_no_room_and_is_named_where_it_has_some(tmp_path):
    """An empty line that is not clipped would stand at the figure's corner, for the layout too."""
    none = Series("b", COLOURS, (), band=False)
    charts = (Chart("first", "k", "y", (BAND, none)), *CHARTS, Chart("last", "x", "y", (BAND,)))
    figure = draw_panel(Panel("p", "P", charts, ""))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    save(figure, tmp_path / "p")
    assert all(axes.get_position().width > 0.2 for axes in figure.axes)


def test_a_log_axis_without_a_tick_in_its_range_is_drawn():
    chart = Chart("far", "k", "y", (BAND,), log_x=True, x_ticks=(64, 128))
    figure = draw_panel(Panel("p", "P", (chart,), ""))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "4"]


def test_bands_that_lie_on_each_other_are_one():
    twin = Series("twin", COLOURS, BAND.points)
    both = Chart("both", "x", "y", (BAND, twin, BARS))
    (axes, *_) = draw_panel(Panel("p", "P", (both,), "")).axes
    kinds = [type(drawn).__name__ for drawn in axes.collections]
    assert kinds == ["FillBetweenPolyCollection", "LineCollection", "LineCollection"]


def test_one_legend_for_the_panel_names_each_series_once():
    (legend,) = draw_panel(Panel("p", "P", CHARTS, "")).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_a_chart_with_its_own_legend_leaves_none_to_the_panel():
    own = Chart("own", "x", "y", (BAND, BARS), legend=True)
    figure = draw_panel(Panel("p", "P", (own,), ""))
    assert figure.legends == []
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_places_that_no_chart_fills_are_empty():
    large = Chart("large", "x", "y", (BAND,), size=LARGE)
    figure = draw_panel(Panel("p", "P", (large, large, large), ""))
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]


def test_png_and_svg_of_each_panel(tmp_path, capsys):
    draw_pictures(tmp_path / "made", {"part-p": Panel("p", "P", CHARTS, "")})
    assert sorted(f.name for f in (tmp_path / "made").iterdir()) == ["part-p.png", "part-p.svg"]
    assert "pictures: " in capsys.readouterr().out


def test_without_matplotlib_a_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw_pictures(tmp_path / "made", {"part-p": Panel("p", "P", CHARTS, "")})
    assert "no pictures: pictures need the package matplotlib" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()
