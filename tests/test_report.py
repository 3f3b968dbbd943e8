"""eval/report.py: the page as a whole, of studies that are whole, cut short, or several.

pytest tests/test_report.py
"""

import json
import sys

import pytest

from eval import report
from tests.study_example import rows, write_study
from tests.test_page import Reader

SMALL = {"seeds": 1, "problems": 3, "n": 4, "taus": (0.8, 1.0, 2.0), "controls": False}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of a study with all of its rows."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, rows(seeds=2, problems=6, n=8, taus=(0.8, 1.0, 2.0)))
    with pytest.MonkeyPatch.context() as patch:
        return page_of(patch, folder, folder)


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    report.main()


def page_of(monkeypatch, tmp_path, *studies) -> str:
    run(monkeypatch, *studies, "--out", tmp_path / "page.html", "--pictures", "false")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_whole_study_has_every_section_and_no_link_leads_astray(text):
    read = Reader(text)
    assert [attributes["id"] for attributes, _ in read.of("section")] == [
        "run", "claims", "training", "pass", "tau", "frontier", "reliability", "opinions",
        "processes", "questions", "samples", "cells"]  # fmt: skip
    links = [a["href"] for a, _ in read.of("a")]
    names = {a["id"] for _, a in read.elements if "id" in a}
    assert links[:2] == ["#run", "#claims"]
    assert all(link.startswith("#") and link[1:] in names for link in links)


def test_the_page_loads_nothing_and_no_text_acts(text):
    read = Reader(text)
    assert "alert(1)" in text  # of the example's completions
    assert [inside for _, inside in read.of("script") if "alert" in inside] == []
    found = {name for tag, a in read.elements if tag in ("p", "div", "details", "a") for name in a}
    assert found <= {"class", "id", "href", "open"}
    for word in ("http:", "https:", "src=", "url(", "<link", "<img", "style="):
        assert word not in text.replace("http-equiv", ""), word


def test_the_same_rows_give_the_same_bytes(monkeypatch, tmp_path, capsys):
    write_study(tmp_path, rows(**SMALL))
    assert page_of(monkeypatch, tmp_path, tmp_path) == page_of(monkeypatch, tmp_path, tmp_path)
    assert capsys.readouterr().out == f"page: {tmp_path / 'page.html'}\n" * 2


def test_what_was_run_counts_cells_planned_and_missing(monkeypatch, tmp_path):
    """All rows but five of six tests."""
    made = rows(**SMALL)
    tests = [row for row in made if row["kind"] == "test"]
    left = [row for row in made if row not in tests[:5]]
    write_study(tmp_path / "cut", left)
    about = json.loads((tmp_path / "cut" / "study.json").read_text())
    about["cells"]["test"] = len(tests)
    process = {"name": "verdict", "source": {"name": "base"}, "labels": ["--pairs", "3"],
               "train": ["--batch_size", "16"], "learning_rate": 3e-4,
               "chosen_by": "validation:pass@1"}  # fmt: skip
    about["grids"] = [{"process": process, "rates": [1 / 3, 1.0], "seeds": 1, "n": 4}]
    (tmp_path / "cut" / "study.json").write_text(json.dumps(about))
    text = page_of(monkeypatch, tmp_path, tmp_path / "cut")
    assert f"<td>test</td><td>{len(tests)}</td><td>{len(tests) - 5}</td><td>5</td>" in text
    assert f"<b>{len(left)} of {len(made)}</b><span>cells done</span>" in text
    assert "<td>--batch_size 16</td><td>0.0001, 0.0003</td><td>validation:pass@1</td>" in text
    seconds = sum(row["seconds"] for row in left)
    assert f"<b>{seconds / 3600:.3g}</b><span>hours" in text


def test_one_seed_says_what_its_intervals_are_over(monkeypatch, tmp_path):
    write_study(tmp_path / "one", rows(**SMALL))
    text = page_of(monkeypatch, tmp_path, tmp_path / "one")
    assert "seed: intervals are over problems only" in text
    assert "rest on fewer seeds than the claim asks for" in text


def test_several_studies_are_named(monkeypatch, tmp_path):
    write_study(tmp_path / "one", rows(**SMALL))
    write_study(tmp_path / "two", rows(1, 3, 4, ("verdict",), (1.0, 2.0), False), plan="other")
    text = page_of(monkeypatch, tmp_path, tmp_path / "one", tmp_path / "two")
    assert "<title>Study: example, other</title>" in text
    for title in ("example, verdict", "example, population", "other, verdict"):
        assert f'<h3 class="process">{title}</h3>' in text
    names = [a["id"] for _, a in Reader(text).elements if "id" in a]
    assert len(names) == len(set(names))


def test_pictures_go_beside_the_page(monkeypatch, tmp_path):
    write_study(tmp_path / "one", rows(1, 3, 4, ("verdict",), (1.0, 2.0), False))
    every = report.panels  # drawing takes seconds: the training curves alone

    def training(found) -> dict:
        return {name: made[: name == "training"] for name, made in every(found).items()}

    monkeypatch.setattr(report, "panels", training)
    run(monkeypatch, tmp_path / "one", "--out", tmp_path / "page.html")
    names = sorted(file.name for file in (tmp_path / "page-figures").iterdir())
    assert names == ["verdict-training.png", "verdict-training.svg"]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ([], "expected folders of studies, got none"),
        (["--run", "x"], "unknown flag --run"),
        (["nowhere"], r"study\.json"),
    ],
)
def test_mistakes_say_what_is_expected(monkeypatch, words, wrong):
    with pytest.raises((ValueError, FileNotFoundError), match=wrong):
        run(monkeypatch, *words)
