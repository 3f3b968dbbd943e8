r"""Both papers' claims on a laptop: one command trains and measures a grid, and writes its report.

    python -m eval.study --plan quick --out runs/quick
    torchrun --nproc_per_node=8 -m eval.study --plan full --out runs/full
    python -m eval.study --plan full --out runs/full --dry_run

The plans are in eval/study_plans.py; a cell of the grid is a few commands of this project, which
its row in OUT/results.jsonl lists; OUT/work has their files and logs. What is there already is not
run again: the same command goes on where it was stopped, also on another machine that has only
OUT/results.jsonl (a policy that is missing is then trained again when something has to be measured
of it). Workers share the cells: --workers of each process, under torchrun of every rank. A cell
that fails is left out, and the end says why.

OUT/report.html is the report; `python -m eval.report` makes it again.
"""

import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from eval.study_cells import (
    Cell,
    CellFailed,
    append_row,
    claim,
    folder_of,
    read_study,
    run_cell,
    write_study,
)
from eval.study_grid import count_cells, next_cells
from eval.study_plans import PLANS, Plan
from model import parallel
from model.config import parse_config
from model.run import git_commit, run_main

USUAL = 60.0  # seconds of a cell of which nothing is known yet
PAUSE = 1.0  # seconds until a worker that found nothing to do looks again


@dataclass(frozen=True)
class StudyConfig:
    plan: str = "quick"  # one of the plans: quick, full, ...
    workers: int | None = None  # cells at a time, in this process; none: one for each core
    threads: int = 1  # of each worker's commands
    dry_run: bool = False  # print the cells, their commands and the expected hours; then stop
    out: str | None = None  # folder for the results; none: runs/study-<plan>


def main() -> None:
    config = parse_config(StudyConfig)
    plan = check_config(config)
    out = Path(config.out or f"runs/study-{plan.name}")
    workers = config.workers or max(1, (os.cpu_count() or 1) // parallel.world_size())
    rows = read_study(out)
    if parallel.is_main():
        print_expected(plan, rows, workers * parallel.world_size(), out)
    if config.dry_run:
        print_cells(plan, rows, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    if parallel.is_main():
        write_study(out, describe(plan, config))
    study = Study(plan, out, config.threads)
    study.run(workers)
    if not parallel.is_main():
        return
    print(f"{len(read_study(out))} cells are in {out}/results.jsonl")
    if study.failed:
        raise ValueError("\n\n".join(f"{n} failed: {why}" for n, why in study.failed.items()))


def check_config(config: StudyConfig) -> Plan:
    if config.plan not in PLANS:
        raise ValueError(f"--plan expects one of {', '.join(PLANS)}, got {config.plan!r}")
    for flag in ("workers", "threads"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")
    return PLANS[config.plan]


# ------------------------------------------------------------------------------------------------
# workers


class Study:
    """Workers that take one cell after another until all are done, failed, or it is stopped."""

    def __init__(self, plan: Plan, out: Path, threads: int) -> None:
        self.plan, self.out, self.threads = plan, out, threads
        self.lock = threading.Lock()
        self.processes: dict[int, subprocess.Popen] = {}  # by worker
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}  # name -> why
        self.stopped = 0  # the signal
        self.bar = tqdm(unit="cell", disable=not parallel.is_main())

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self.work, args=(i,)) for i in range(workers)]
        previous = {n: signal.signal(n, self.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a signal is handled between
        for number, handler in previous.items():
            signal.signal(number, handler)
        self.bar.close()
        if self.stopped:
            print("stopped; nothing that was done is lost: the same command goes on")
            raise SystemExit(128 + self.stopped)

    def stop(self, number: int, frame: object) -> None:
        """Ask the commands that run to save and end, and start no more."""
        self.stopped = number
        for process in list(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def work(self, worker: int) -> None:
        while not self.stopped:
            rows = read_study(self.out)
            done = {row["cell"] for row in rows}
            cells = next_cells(self.plan, rows, self.out)
            self.show(cells, done)
            waiting = [c for c in cells if c.name not in done and not self.hopeless(c)]
            ready = [c for c in waiting if done.issuperset(c.needs)]
            if not any(self.take(cell, {c.name: c for c in cells}, worker) for cell in ready):
                if not waiting:
                    return
                time.sleep(PAUSE)

    def hopeless(self, cell: Cell) -> bool:
        """Whether it, or what it needs, has failed here."""
        return cell.name in self.failed or any(name in self.failed for name in cell.needs)

    def take(self, cell: Cell, cells: Mapping[str, Cell], worker: int) -> bool:
        """Run the cell, unless another worker has it; out: whether it was run."""
        with self.lock:
            if cell.name in self.running:
                return False
            self.running.add(cell.name)
        try:
            with claim(self.out, cell.name) as ours:
                if not ours or cell.name in {row["cell"] for row in read_study(self.out)}:
                    return False
                self.restore(cell, cells, worker)
                append_row(self.out, self.run_one(cell, worker))
        except CellFailed as error:
            if not self.stopped:
                self.failed[cell.name] = str(error)
        finally:
            self.running.discard(cell.name)
        return True

    def restore(self, cell: Cell, cells: Mapping[str, Cell], worker: int) -> None:
        """Make the files of what the cell needs where they are missing, though its row is there."""
        for name in cell.needs:
            with claim(self.out, name, wait=True):
                if not (folder_of(self.out, name) / "done").exists():
                    self.restore(cells[name], cells, worker)
                    self.run_one(cells[name], worker)

    def run_one(self, cell: Cell, worker: int) -> dict:
        def watch(process: subprocess.Popen | None) -> None:
            if process is None:
                del self.processes[worker]
                return
            self.processes[worker] = process
            if self.stopped:  # meanwhile
                process.send_signal(signal.SIGTERM)

        return run_cell(self.out, cell, self.threads, watch)

    def show(self, cells: Sequence[Cell], done: set[str]) -> None:
        with self.lock:
            self.bar.total = sum(count_cells(self.plan).values())
            self.bar.n = sum(cell.name in done for cell in cells)
            failed = f", {len(self.failed)} failed" if self.failed else ""
            self.bar.set_postfix_str(f"{len(self.running)} running{failed}")


# ------------------------------------------------------------------------------------------------
# what is told


def describe(plan: Plan, config: StudyConfig) -> dict:
    return {
        "plan": plan.name,
        "about": plan.about,
        "settings": asdict(config),
        "grids": [asdict(grid) for grid in plan.grids],
        "cells": count_cells(plan),
        "environment": {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "commit": git_commit(),
        },
    }


def print_expected(plan: Plan, rows: Sequence[Mapping], workers: int, out: Path) -> None:
    hours = expected_seconds(plan, rows, out) / workers / 3600
    counts = ", ".join(f"{count} {kind}" for kind, count in count_cells(plan).items())
    print(f"plan {plan.name}: {plan.about}; {counts}; {len(rows)} cells are done")
    print(f"about {hours:.1f} hours to go with {workers} workers")


def expected_seconds(plan: Plan, rows: Sequence[Mapping], out: Path) -> float:
    """Of the missing cells, on one core; those not named yet take the mean of their kind."""
    done = {row["cell"] for row in rows}
    cells = next_cells(plan, rows, out)
    by_kind: dict[str, list[Cell]] = {}
    for cell in cells:
        by_kind.setdefault(cell.labels["kind"], []).append(cell)
    seconds = 0.0
    for kind, count in count_cells(plan).items():
        known = by_kind.get(kind, [])
        mean = sum(c.seconds for c in known) / len(known) if known else USUAL
        seconds += sum(c.seconds for c in known if c.name not in done)
        seconds += mean * max(0, count - len(known))
    return seconds


def print_cells(plan: Plan, rows: Sequence[Mapping], out: Path) -> None:
    done = {row["cell"] for row in rows}
    for cell in next_cells(plan, rows, out):
        print(f"\n{cell.name}{' (done)' if cell.name in done else ''}")
        for command in cell.commands:
            print("  python " + " ".join(command))


if __name__ == "__main__":
    run_main(main)
