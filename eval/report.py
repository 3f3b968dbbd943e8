r"""What did a study find? One page of its claims, figures, tables, completions and cells.

    python -m eval.report runs/study-quick
    python -m eval.report runs/study-full runs/study-noise --out report.html

RUN is a folder that `eval.study` has written, whether or not all of its cells have ended. The page
needs no network and no other file. Its figures stand as PNG and SVG in a folder beside it too
(report-figures for report.html), where matplotlib is there.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.claims import claims_for
from eval.page import heading, number, section, show, table, write_page
from eval.report_benchmarks import benchmarks_html
from eval.report_charts import Panel, panel_html
from eval.report_figures import panels
from eval.report_pictures import draw_pictures
from eval.report_processes import processes_html, processes_panels
from eval.report_questions import questions_html
from eval.report_rows import MEASURED, Row, Study, parts, read_study, samples_of, spread
from eval.report_tables import cells_html, claims_html, matched_html, rates_html, samples_html
from eval.study_claims import judge_claims
from model.config import parse_config
from model.run import run_main

FIGURES = {  # the sections of figures, in their order
    "training": "Training",
    "pass": "Solving problems in k tries",
    "benchmarks": "Benchmarks",
    "tau": "What τ does",
    "frontier": "Quality against diversity",
    "reliability": "Calibration",
    "opinions": "Opinions of a divided population",
    "processes": "Processes side by side",
}


@dataclass(frozen=True)
class ReportConfig:
    runs: tuple[str, ...] = ()  # folders of studies; they may stand in front, without the flag
    out: str = "report.html"  # the page
    pictures: bool = True  # draw the figures as PNG and SVG too, beside the page


@dataclass(frozen=True)
class Part:
    """The rows of one study with one label process, or all of its rows, and their figures."""

    key: str  # in addresses and names of files
    title: str
    rows: list[Row]
    panels: Mapping[str, list[Panel]]  # section -> panels
    study: Study


def main() -> None:
    words = sys.argv[1:]
    front = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    config = parse_config(ReportConfig, ["--runs"] * (front > 0) + words)
    if not config.runs:
        raise ValueError("expected folders of studies, got none: python -m eval.report RUN...")
    write_report(config.runs, config.out, config.pictures)


def write_report(runs: Sequence[str], page: str, pictures: bool = True) -> None:
    """The page of some study folders, and its figures beside it."""
    studies = [read_study(Path(folder)) for folder in runs]
    found, out = split(studies), Path(page)
    write_page(out, title_of(studies), body(studies, found), ("page.js",))
    print(f"page: {out}")
    if pictures:
        every = ((part.key, p) for part in found for group in part.panels.values() for p in group)
        drawn = {f"{key}-{panel.name}": panel for key, panel in every}
        draw_pictures(out.with_name(f"{out.stem}-figures"), drawn)


def title_of(studies: Sequence[Study]) -> str:
    return f"Study: {', '.join(dict.fromkeys(study.plan for study in studies))}"


def split(studies: Sequence[Study]) -> list[Part]:
    found = []
    for i, study in enumerate(studies, start=1):
        for process, rows in parts(study.rows).items():
            names = [study.plan] * (len(studies) > 1) + [process]
            key = "-".join([str(i)] * (len(studies) > 1) + [process])
            key = re.sub(r"[^\w-]+", "-", key)
            found.append(Part(key, ", ".join(names), rows, panels(rows), study))
        key, title = (f"{i}-all", study.plan) if len(studies) > 1 else ("all", "")
        together = {"processes": processes_panels(study.rows)}
        found.append(Part(key, title, study.rows, together, study))
    return found


# ------------------------------------------------------------------------------------------------
# the page


def body(studies: Sequence[Study], found: Sequence[Part]) -> str:
    """main: what was run, the claims, figures by topic and part, completions, cells."""
    anchors = [{row["cell"]: f"cell-{i}-{k}" for k, row in enumerate(study.rows)}
               for i, study in enumerate(studies, start=1)]  # fmt: skip
    both = list(zip(studies, anchors, strict=True))
    names = [study.plan if len(studies) > 1 else "" for study in studies]
    made = [("run", "What was run", joined(zip(names, map(run_html, studies), strict=True)))]
    verdicts = (judge_claims(study.rows, claims_of(study)) for study in studies)
    blocks = (claims_html(found, places) for found, places in zip(verdicts, anchors, strict=True))
    made.append(("claims", "Claims", joined(zip(names, blocks, strict=True))))
    for name, title in FIGURES.items():
        blocks = ((part.title, figures_html(part, name)) for part in found if name in part.panels)
        made.append((name, title, joined(blocks)))
    single = [part for part in found if "processes" not in part.panels]
    blocks = ((part.title, questions_html(part.rows, part.study.rows)) for part in single)
    made.append(("questions", "Open questions", joined(blocks)))
    blocks = ((part.title, samples_html(part.rows)) for part in single)
    made.append(("samples", "Completions side by side", joined(blocks)))
    tables = (cells_html(study.rows, places) for study, places in both)
    made.append(("cells", "All cells", joined(zip(names, tables, strict=True))))
    made = [(name, title, html) for name, title, html in made if html]
    links = "".join(f'<li><a href="#{name}">{show(title)}</a></li>' for name, title, _ in made)
    contents = f'<nav><ul class="contents">{links}</ul></nav>\n'
    sections = "".join(section(title, html, name) for name, title, html in made)
    return f"<main>\n{heading(title_of(studies))}{contents}{sections}</main>\n"


def claims_of(study: Study) -> list[dict]:
    """The claims that speak of its plan, or of a process that it has."""
    processes = {row.get("process") for row in study.rows}
    return [c for c in claims_for(study.plan) if c.get("process") in processes or "plan" in c]


def joined(blocks: Iterable[tuple[str, str]]) -> str:
    """(title, HTML) of each; those that hold something, under their titles if they have one."""
    return "".join(
        (f'<h3 class="process">{show(title)}</h3>\n' if title else "") + html
        for title, html in blocks
        if html
    )


def figures_html(part: Part, name: str) -> str:
    tables = {"training": rates_html, "benchmarks": benchmarks_html, "frontier": matched_html,
              "processes": processes_html}  # fmt: skip
    figures = "".join(panel_html(p, f"{part.key}-{p.name}") for p in part.panels[name])
    return figures + (tables[name](part.rows) if name in tables else "")


# ------------------------------------------------------------------------------------------------
# what was run


def run_html(study: Study) -> str:
    about, rows = study.about, study.rows
    policies = [row for row in rows if row["kind"] in (*MEASURED, "train")]
    seeds = sorted({row["seed"] for row in policies if row["kind"] != "base"})
    planned = sum(planned_cells(study).values())
    cards = {
        "cells done": f"{len(rows)} of {planned}" if planned > len(rows) else str(len(rows)),
        "settings: policies, and ways to draw from them": str(len(settings_of(policies))),
        "seeds" if len(seeds) > 1 else "seed: intervals are over problems only": str(len(seeds)),
        "completions of each test problem, at most": str(samples_of(rows) or "none"),
        "hours of all cells together": number(sum(row.get("seconds", 0) for row in rows) / 3600, 3),
    }
    html = "".join(
        f'<div class="card"><b>{show(value)}</b><span>{show(name)}</span></div>\n'
        for name, value in cards.items()
    )
    facts = {"about": about.get("about"), "intervals": spread(policies)}
    facts |= {key: text_of(value) for key, value in about.get("environment", {}).items()}
    listed = "".join(f"<div><dt>{show(name)}</dt><dd>{show(value)}</dd></div>\n"
                     for name, value in facts.items() if value)  # fmt: skip
    tables = kinds_table(study) + grids_table(about.get("grids", ()))
    return f'<div class="cards">\n{html}</div>\n{tables}<dl class="facts">\n{listed}</dl>\n'


def settings_of(rows: Sequence[Row]) -> set[tuple]:
    return {(row.get("process"), row["family"], row["setting"]) for row in rows}


def planned_cells(study: Study) -> Mapping[str, int]:
    """How many of each kind; none where study.json does not say."""
    cells = study.about.get("cells")
    return cells if isinstance(cells, Mapping) else {}


def kinds_table(study: Study) -> str:
    """Cells by kind: planned, done, missing (not run yet, or failed)."""
    cells = planned_cells(study)
    if not cells:
        return ""
    done = Counter(row["kind"] for row in study.rows)
    lines = [
        [show(kind), str(count), str(done[kind]), str(count - done[kind]) if count > done[kind]
         else "none"]
        for kind, count in cells.items() if count
    ]  # fmt: skip
    return table(["cells", "planned", "done", "missing or failed"], lines, "kinds")


def grids_table(grids: Sequence[Mapping]) -> str:
    """Who labelled the pairs, and how policies were trained on them and measured."""
    lines = []
    for grid in grids:
        process = grid["process"]
        rates = ", ".join(f"{rate * process['learning_rate']:.2g}" for rate in grid["rates"])
        lines.append([show(text_of(value)) for value in (
            process["name"], process["source"]["name"], process["labels"], process["train"], rates,
            process["chosen_by"] if len(grid["rates"]) > 1 else "", grid["seeds"], grid["n"],
        )])  # fmt: skip
    columns = ["process", "reference", "labels", "training", "learning rates", "chosen by", "seeds",
               "completions"]  # fmt: skip
    return table(columns, lines, "grids") if lines else ""


def text_of(value: Any) -> str:
    """A JSON value in a line of words."""
    if isinstance(value, list):
        return " ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_main(main)
