"""What the pictures hold, asked of matplotlib's objects; and that a rebuilt picture is the same.

pytest tests/test_plots.py
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from eval import plots
from eval.plots import (
    COLOURS,
    draw_frontier,
    draw_pass_at_k,
    draw_reliability,
    look,
    read_curve,
    read_reliability,
    save,
)

CURVES = [
    [(1, 0.2, 0.1, 0.3), (2, 0.35, 0.2, 0.5), (4, 0.5, 0.4, 0.6)],
    [(1, 0.1, 0.05, 0.2), (2, 0.3, 0.2, 0.4)],
]
BINS = [
    {"low": 0.0, "high": 0.5, "count": 3, "confidence": 0.4, "accuracy": 0.25,
     "accuracy_low": 0.05, "accuracy_high": 0.65},
    {"low": 0.5, "high": 1.0, "count": 9, "confidence": 0.9, "accuracy": 0.75,
     "accuracy_low": 0.5, "accuracy_high": 0.9},
]  # fmt: skip
ECE = {"value": 0.15, "low": 0.1, "high": 0.2}


def point(family: str, label: str, x: float, y: float, on: bool) -> dict:
    rows = {
        axis: {"value": v, "low": v - 0.01, "high": v + 0.02}
        for axis, v in (("diversity", x), ("quality", y))
    }
    return {"family": family, "label": label, "on_frontier": on, **rows}


def frontier(minimise: bool = False) -> dict:
    sign = -1 if minimise else 1
    points = [
        point("spl", "tau 1", sign * 0.1, 0.5, True),
        point("spl", "tau 2", sign * 0.4, 0.3, True),
        point("dpo", "t 1", sign * 0.2, 0.2, False),
        point("dpo", "t 2", sign * 0.5, 0.1, True),
    ]
    return {
        "axes": {
            "quality": {"label": "pass@1 (fraction)", "minimise": False},
            "diversity": {"label": "distance", "minimise": minimise},
        },
        "points": points,
        "reference": {"quality": 0.05, "diversity": sign * 0.05},
    }


def lines_of(axes, label: str) -> list:
    return [line for line in axes.get_lines() if line.get_label() == label]


def texts_of(axes) -> dict[str, object]:
    return {text.get_text(): text for text in axes.texts}


# ------------------------------------------------------------------------------------------------
# the frontier


def test_frontier_families_and_intervals() -> None:
    (axes,) = draw_frontier(frontier()).axes
    (spl,), (dpo,) = lines_of(axes, "spl"), lines_of(axes, "dpo")
    assert spl.get_xydata().tolist() == [[0.1, 0.5], [0.4, 0.3]]
    assert dpo.get_xydata().tolist() == [[0.2, 0.2], [0.5, 0.1]]
    for key in ("marker", "linestyle", "color"):
        assert getattr(spl, f"get_{key}")() != getattr(dpo, f"get_{key}")()
    assert [len(bars.get_segments()) for bars in axes.collections] == [2, 2, 2, 2]
    across, up = axes.collections[:2]
    assert np.allclose(across.get_segments()[0], [[0.09, 0.5], [0.12, 0.5]])
    assert np.allclose(up.get_segments()[0], [[0.1, 0.49], [0.1, 0.52]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance", "pass@1 (fraction)")


def test_frontier_staircase_by_hand() -> None:
    """From the reference's diversity at the best quality, down to the reference's quality.

    With steps before each point the height between two of them is that of the right one.
    """
    (axes,) = draw_frontier(frontier()).axes
    (stairs,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-pre"]
    x, y = stairs.get_data()
    assert list(x) == [0.05, 0.1, 0.4, 0.5, 0.5]
    assert list(y) == [0.5, 0.5, 0.3, 0.1, 0.05]


def test_frontier_where_less_is_better() -> None:
    """The axis is turned, so that better stays to the right."""
    (axes,) = draw_frontier(frontier(minimise=True)).axes
    assert axes.xaxis.get_inverted() and not axes.yaxis.get_inverted()
    assert axes.get_xlabel() == "distance (less is better)"
    (stairs,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-pre"]
    assert list(stairs.get_xdata()) == [-0.05, -0.1, -0.4, -0.5, -0.5]


def test_frontier_staircase_is_sorted() -> None:
    """Points stand by family; a staircase in that order would go back."""
    data = frontier()
    data["points"] = data["points"][::-1]
    (axes,) = draw_frontier(data).axes
    (stairs,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-pre"]
    assert list(stairs.get_xdata()) == [0.05, 0.1, 0.4, 0.5, 0.5]


def test_frontier_fills_what_is_on_it_and_names_the_points() -> None:
    figure = draw_frontier(frontier())
    (axes,) = figure.axes
    (hollow,) = [
        line
        for line in axes.get_lines()
        if line.get_markerfacecolor() == "white" and len(line.get_xdata())
    ]
    assert hollow.get_xydata().tolist() == [[0.2, 0.2]]
    assert set(texts_of(axes)) == {"tau 1", "tau 2", "t 1", "t 2"}
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["spl", "dpo", "frontier (its points are filled)"]


def crowd() -> dict:
    """40 points, most of them close to each other."""
    rng = np.random.default_rng(0)
    places = np.vstack([rng.normal(0.3, 0.01, (30, 2)), rng.uniform(0, 1, (10, 2))])
    some = [point(f"family {i % 8}", f"tau 1.{i}", *p, i == 31) for i, p in enumerate(places)]
    return frontier() | {"points": some}


def test_labels_of_a_crowd_touch_neither_each_other_nor_other_points() -> None:
    figure = draw_frontier(crowd())
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = {name: text.get_window_extent() for name, text in texts_of(axes).items()}
    assert 8 <= len(boxes) < 40  # the far ones have theirs, and not all of the crowd
    assert "tau 1.31" in boxes  # on the frontier: it chooses first
    found = list(boxes.values())
    for i, box in enumerate(found):
        assert not any(box.overlaps(other) for other in found[:i])
        assert axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
        assert axes.bbox.containsy(box.y0) and axes.bbox.containsy(box.y1)
    for p in crowd()["points"]:
        at = axes.transData.transform((p["diversity"]["value"], p["quality"]["value"]))
        assert not any(box.contains(*at) for box in found)


def test_a_run_in_two_families_has_both_labels() -> None:
    data = frontier()
    data["points"] += [point("spl", "the same", 0.2, 0.2, False)]
    (axes,) = draw_frontier(data).axes
    assert {"t 1", "the same"} <= set(texts_of(axes))


def test_the_legend_fits_into_the_figure() -> None:
    data = frontier()
    for i, p in enumerate(data["points"]):
        p["family"] = f"a method with a name of some length, number {i}"
    figure = draw_frontier(data)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 5
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


# ------------------------------------------------------------------------------------------------
# pass@k and reliability


def test_pass_at_k_lines_and_bands() -> None:
    figure = draw_pass_at_k(CURVES, ["DPO", "SPL"], "pass@k/hard")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "4"]
    assert axes.get_ylabel() == "pass@k/hard (fraction of problems)"
    (dpo,), (spl,) = lines_of(axes, "DPO"), lines_of(axes, "SPL")
    assert dpo.get_xydata().tolist() == [[1, 0.2], [2, 0.35], [4, 0.5]]
    assert spl.get_xydata().tolist() == [[1, 0.1], [2, 0.3]]
    band = {tuple(xy) for xy in axes.collections[1].get_paths()[0].vertices.tolist()}
    assert band == {(1, 0.05), (2, 0.2), (1, 0.2), (2, 0.4)}
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("name", ["ece", "letters/ece"])
def test_the_ece_of_the_bins_is_in_the_summary(name: str, tmp_path: Path) -> None:
    """eval.mmlu has one; eval.truthfulqa has three, and the bins of the letters."""
    (tmp_path / "reliability.json").write_text(json.dumps(BINS))
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {name: ECE, "binary/ece": ECE}}))
    assert read_reliability(tmp_path) == (BINS, ECE)
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"binary/ece": ECE}}))
    with pytest.raises(ValueError, match="no metric `ece` in it"):
        read_reliability(tmp_path)


def test_reliability_bins_counts_and_caption() -> None:
    figure = draw_reliability([(BINS, ECE), (BINS[:1], ECE)], ["DPO", "SPL"])
    upper, _, lower, _ = figure.axes
    assert upper.get_title() == "DPO\nECE 0.150\n(0.100, 0.200)"
    identity, found = upper.get_lines()[:2]
    assert identity.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert found.get_xydata().tolist() == [[0.4, 0.25], [0.9, 0.75]]
    (bars,) = upper.collections
    expected = [[[0.4, 0.05], [0.4, 0.65]], [[0.9, 0.5], [0.9, 0.9]]]
    assert np.allclose(bars.get_segments(), expected)
    shown = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in lower.patches]
    assert shown == [(0, 0.5, 3), (0.5, 0.5, 9)]
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("accuracy (fraction right)", "questions")


# ------------------------------------------------------------------------------------------------
# looks


def test_runs_differ_without_colour() -> None:
    """The first 8 by their markers, the first 28 by colour and line, 56 by colour and marker."""
    looks = [look(i) for i in range(28)]
    assert len({one["marker"] for one in looks[:8]}) == 8
    assert len({one["color"] for one in looks[:7]}) == len(COLOURS) == 7
    assert len({(one["color"], one["linestyle"]) for one in looks}) == 28
    assert len({(one["color"], one["marker"]) for one in map(look, range(56))}) == 56


def test_text_has_nine_points_whatever_the_user_has_set() -> None:
    with matplotlib.rc_context({"font.size": 4, "xtick.labelsize": 3}):
        figures = [
            draw_frontier(frontier()),
            draw_pass_at_k(CURVES, ["a", "b"]),
            draw_reliability([(BINS, ECE)], ["a"]),
        ]
    for figure in figures:
        texts = figure.findobj(matplotlib.text.Text)
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 9


@pytest.mark.parametrize("kind", ["frontier", "pass_at_k", "reliability"])
def test_a_rebuilt_picture_is_the_same_file(kind, tmp_path) -> None:
    def draw():
        if kind == "frontier":
            return draw_frontier(frontier())
        if kind == "pass_at_k":
            return draw_pass_at_k(CURVES, ["DPO", "SPL"])
        return draw_reliability([(BINS, ECE)], ["DPO"])

    first = save(draw(), tmp_path / "a.1")
    with matplotlib.rc_context({"svg.hashsalt": None, "savefig.dpi": 50, "font.size": 4}):
        second = save(draw(), tmp_path / "b.png")
    assert [file.name for file in first] == ["a.1.png", "a.1.svg"]
    assert [file.name for file in second] == ["b.png", "b.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")
    svg = ElementTree.parse(first[1])
    words = {"".join(e.itertext()) for e in svg.iter("{http://www.w3.org/2000/svg}text")}
    expected = {"frontier": "tau 1", "pass_at_k": "SPL", "reliability": "ECE 0.150"}
    assert expected[kind] in words  # text, and not curves
    assert not list(tmp_path.glob("*.partial"))


# ------------------------------------------------------------------------------------------------
# files and the command line


def write_summary(folder: Path, metrics: dict) -> Path:
    folder.mkdir(parents=True)
    rows = {
        name: dict(zip(("value", "low", "high"), v, strict=True)) for name, v in metrics.items()
    }
    (folder / "summary.json").write_text(json.dumps({"task": "t", "metrics": rows}))
    return folder


def test_a_curve_is_read_in_the_order_of_k(tmp_path) -> None:
    names = {"pass@16": 0.9, "pass@2": 0.4, "pass@1": 0.2, "pass@1/hard": 0.1, "strict@1": 0.3}
    folder = write_summary(tmp_path / "a", {name: (v, v, v) for name, v in names.items()})
    assert read_curve(folder, "pass@k") == [
        (1, 0.2, 0.2, 0.2),
        (2, 0.4, 0.4, 0.4),
        (16,) + (0.9,) * 3,
    ]
    assert read_curve(folder, "pass@k/hard") == [(1, 0.1, 0.1, 0.1)]
    assert read_curve(folder, "strict@k") == [(1, 0.3, 0.3, 0.3)]
    for metric in ("valid@k", "pass@1"):
        with pytest.raises(ValueError, match=rf"like --metric {metric}; it has pass@16, pass@2"):
            read_curve(folder, metric)


def test_bins_without_a_question_are_left_out(tmp_path) -> None:
    folder = write_summary(tmp_path / "a", {"ece": (0.1, 0, 0.2)})
    empty = {**dict.fromkeys(BINS[0]), "low": 0.0, "high": 0.1, "count": 0}
    (folder / "reliability.json").write_text(json.dumps([empty, *BINS]))
    assert read_reliability(folder) == (BINS, {"value": 0.1, "low": 0, "high": 0.2})


def test_broken_results_are_named(tmp_path) -> None:
    folder = write_summary(tmp_path / "a", {"pass@1": (0.1, 0, 0.2)})
    with pytest.raises(FileNotFoundError, match=r"reliability.json is not there"):
        read_reliability(folder)
    for text, message in [
        ("{", "expected JSON"),
        ("{}", "expected a JSON list"),
        ('[{"low": 0}]', "expected a list of bins with accuracy"),
        ("[]", "no metric `ece`"),
    ]:
        (folder / "reliability.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_reliability(folder)
    (folder / "summary.json").write_text('{"metrics": {"pass@1": {"value": null}}}')
    with pytest.raises(ValueError, match=r"summary.json: expected `metrics` with value"):
        read_curve(folder, "pass@k")


def run(monkeypatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.plots", *argv])
    plots.main()


def test_from_results_folders_to_pictures(tmp_path, monkeypatch, capsys) -> None:
    one = write_summary(tmp_path / "dpo", {"pass@1": (0.1, 0, 0.2), "ece": (0.1, 0, 0.2)})
    two = write_summary(tmp_path / "spl", {"pass@1": (0.2, 0, 0.3), "ece": (0.1, 0, 0.2)})
    for folder in (one, two):
        (folder / "reliability.json").write_text(json.dumps(BINS))
    (one / "frontier.json").write_text(json.dumps(frontier()))
    out = tmp_path / "new" / "picture"
    for kind in ("pass_at_k", "reliability"):
        run(monkeypatch, "--kind", kind, "--results", str(one), str(two), "--out", f"{out}-{kind}")
        svg = Path(f"{out}-{kind}.svg").read_text()
        assert ">dpo<" in svg and ">spl<" in svg
    run(monkeypatch, "--kind", "frontier", "--results", str(one), "--out", f"{out}-frontier")
    assert len(capsys.readouterr().out.splitlines()) == len(list((tmp_path / "new").iterdir())) == 6


def test_pictures_have_the_labels_and_the_metric_that_are_asked_for(tmp_path, monkeypatch) -> None:
    """Four diagrams side by side are not too many."""
    for name in "abcd":
        values = dict.fromkeys(("pass@1/hard", "ece"), (0.1, 0, 0.2))
        folder = write_summary(tmp_path / name, values)
        (folder / "reliability.json").write_text(json.dumps(BINS))
    drawn, names = [], ["DPO", "SPL", "tau 1", "tau 2"]
    monkeypatch.setattr(plots, "save", lambda figure, out: drawn.append(figure) or [])
    common = ["--results", *(str(tmp_path / name) for name in "abcd"), "--labels", *names]
    run(monkeypatch, "--kind", "reliability", *common, "--out", "x")
    run(monkeypatch, "--kind", "pass_at_k", "--metric", "pass@k/hard", *common, "--out", "x")
    diagrams, curves = drawn
    assert [axes.get_title().split("\n")[0] for axes in diagrams.axes[:4]] == names
    assert [text.get_text() for text in curves.legends[0].get_texts()] == names
    assert curves.axes[0].get_ylabel() == "pass@k/hard (fraction of problems)"


def test_a_frontier_that_is_none_is_named(tmp_path, monkeypatch) -> None:
    file = tmp_path / "frontier.json"
    for broken in ({}, frontier() | {"points": []}, frontier() | {"points": [3]},
                   frontier() | {"axes": None}):  # fmt: skip
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"frontier.json: not a frontier.json of eval.pareto"):
            run(monkeypatch, "--kind", "frontier", "--results", str(tmp_path), "--out", "x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--kind expects one of frontier, reliability, pass_at_k, got None"),
        (["--kind", "pass_at_k", "--out", "x"], "--results expects results folders, got 0"),
        (["--kind", "frontier", "--results", "a", "b"], "one results folder, got 2"),
        (["--kind", "reliability", "--results", *"abcde"], "at most 4 folders .*, got 5"),
        (
            ["--kind", "pass_at_k", "--results", "a", "--labels", "x", "y"],
            "each of 1 results, got 2",
        ),
        (["--kind", "pass_at_k", "--results", "a"], "--out expects the path"),
        (["--kind", "reliability", "--results", "a", "--metric", "x@k"], "--metric has no meaning"),
        (["--kind", "frontier", "--results", "a", "--labels", "x"], "--labels has no meaning"),
    ],
)
def test_bad_flags(monkeypatch, flags, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, *flags)


def test_without_matplotlib_the_command_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_pass_at_k(CURVES, ["a", "b"])
