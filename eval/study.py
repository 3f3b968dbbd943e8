r"""Both papers' claims, on a laptop or a real checkpoint: one command trains and measures a grid.

    python -m eval.study --plan quick --out runs/quick
    torchrun --nproc_per_node=8 -m eval.study --plan full --out runs/full
    python -m eval.study --plan full --out runs/full --dry_run
    python -m eval.study --plan small --model smollm2 --data hh/helpful.jsonl.gz --out runs/small
    torchrun --nproc_per_node=8 -m eval.study --plan h_dpo --model mistral-7b-sft-beta \
        --data ultrafeedback.jsonl --benchmarks gsm8k=gsm8k.jsonl ifeval=ifeval.jsonl

The plans are in eval/study_plans.py, those on a real checkpoint in eval/study_models.py, each with
its sources: what a paper says, what fills a gap. A cell of the grid is a few commands of this
project, which its row in OUT/results.jsonl lists; OUT/cells has their files and logs. What is there
already is not run again: the same command goes on where it was stopped, also on another machine
that has only OUT/results.jsonl (a policy that is missing is then trained again when something has
to be measured of it). Workers share the cells: --workers of each process, under torchrun of every
rank, on the rank's GPU where it has one. A cell that fails is tried once and left out, and the end
says why.

OUT/report.html is the report; `python -m eval.report` makes it again.
"""

import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from data.reading import read_json
from eval import study_grid, study_models_grid
from eval.report import write_report
from eval.study_cells import (
    FAILED,
    Cell,
    CellFailed,
    append_row,
    claim,
    folder_of,
    read_study,
    run_cell,
    write_study,
)
from eval.study_models import MODEL_PLANS
from eval.study_models_grid import ModelStudy, plan_study
from eval.study_plans import PLANS, Plan
from eval.study_values import MEASURED
from model import parallel
from model.config import parse_config
from model.run import git_commit, run_main

USUAL = 60.0  # seconds of a cell of which nothing is known yet
PAUSE = 1.0  # seconds until a worker that found nothing to do looks again


@dataclass(frozen=True)
class StudyConfig:
    plan: str = "quick"  # one of the plans: quick, full, ..., small, spl_chat, spl_maths, h_dpo
    model: str | None = None  # folder of a real checkpoint, for the plans from small on
    data: tuple[str, ...] = ()  # and its preference pairs: files or folders, as train.py takes them
    benchmarks: tuple[str, ...] = ()  # NAME=FILE or NAME.FLAG=FILE, of those that the plan knows
    allow_code_execution: bool = False  # run what the model writes for humaneval
    workers: int | None = None  # cells at a time, here; none: one a core; with --model 1
    threads: int | None = None  # of each worker's commands; none: 1; with --model all cores
    dry_run: bool = False  # print the cells, their commands and the expected hours; then stop
    out: str | None = None  # folder for the results; none: runs/study-<plan>


def main() -> None:
    config = parse_config(StudyConfig)
    check_config(config)
    cores = max(1, (os.cpu_count() or 1) // parallel.world_size())
    real = config.plan in MODEL_PLANS
    workers = config.workers or (1 if real else cores)
    threads = config.threads or (max(1, cores // workers) if real else 1)
    plan = choose_plan(config, threads)
    out = Path(config.out or f"runs/study-{plan.name}")
    about = describe(plan, config)
    refuse_other(out, about)
    rows = read_study(out)
    if parallel.is_main():
        print_expected(plan, rows, workers * parallel.world_size(), out)
    if config.dry_run:
        print_cells(plan, rows, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    if parallel.is_main():
        write_study(out, about)
        (out / FAILED).unlink(missing_ok=True)  # each command tries everything once
    parallel.any_rank(False)  # nobody begins before
    study = Study(plan, out, threads)
    study.run(workers)
    if not parallel.is_main():
        return
    rows = read_study(out)
    print(f"{len(rows)} cells are in {out}/results.jsonl")
    if any(row["kind"] in MEASURED for row in rows):
        write_report([str(out)], str(out / "report.html"))
    if failed := study.failed:
        raise ValueError("\n\n".join(f"{name} failed: {why}" for name, why in failed.items()))


def check_config(config: StudyConfig) -> None:
    """ValueError for flags out of range, or without a meaning for the plan."""
    known = [*PLANS, *MODEL_PLANS]
    if config.plan not in known:
        raise ValueError(f"--plan expects one of {', '.join(known)}, got {config.plan!r}")
    for flag in ("model", "data", "benchmarks", "allow_code_execution"):
        if getattr(config, flag) and config.plan in PLANS:
            raise ValueError(
                f"--{flag} is for --plan {', '.join(MODEL_PLANS)}; {config.plan} studies the "
                "embedded model"
            )
    for flag in ("workers", "threads"):
        if (value := getattr(config, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} expects 1 or more, got {value}")


def choose_plan(config: StudyConfig, threads: int) -> Plan | ModelStudy:
    if config.plan in PLANS:
        return PLANS[config.plan]
    asked = (config.plan, config.model, config.data, config.benchmarks)
    return plan_study(*asked, config.allow_code_execution, threads)


def refuse_other(out: Path, about: Mapping) -> None:
    """ValueError for a folder with another study: its cells may have the same names."""
    file = out / "study.json"
    before = read_json(file) if file.is_file() else about
    for key in ("plan", "model", "data", "parameters", "benchmarks"):
        held, asked = (json.loads(json.dumps(one.get(key))) for one in (before, about))
        if held != asked:
            raise ValueError(
                f"--out {out} holds a study with {key} {held}, not {asked}; pass another folder"
            )


# ------------------------------------------------------------------------------------------------
# cells


def next_cells(plan: Plan | ModelStudy, rows: Sequence[Mapping], out: Path) -> list[Cell]:
    return grid_of(plan).next_cells(plan, rows, out)


def count_cells(plan: Plan | ModelStudy) -> dict[str, int]:
    return grid_of(plan).count_cells(plan)


def grid_of(plan: Plan | ModelStudy) -> ModuleType:
    """What makes cells of the plan."""
    return study_grid if isinstance(plan, Plan) else study_models_grid


# ------------------------------------------------------------------------------------------------
# workers


class Study:
    """Workers that take one cell after another until all are done, failed, or it is stopped."""

    def __init__(self, plan: Plan | ModelStudy, out: Path, threads: int) -> None:
        self.plan, self.out, self.threads = plan, out, threads
        self.lock = threading.Lock()
        self.processes: dict[int, subprocess.Popen] = {}  # by worker
        self.running: set[str] = set()
        self.stopped = 0  # the signal
        self.error: BaseException | None = None  # of a worker, which stops all of them
        self.shown: tuple[int, str] | None = None  # on the bar
        done = len(read_study(out))  # that time is not of this run
        self.bar = tqdm(unit="cell", initial=done, disable=not parallel.is_main())

    @property
    def failed(self) -> dict[str, str]:
        """Cell -> why, on whatever rank."""
        return {row["cell"]: row["why"] for row in read_study(self.out, FAILED)}

    def run(self, workers: int) -> None:
        threads = [threading.Thread(target=self.work, args=(i,)) for i in range(workers)]
        previous = {n: signal.signal(n, self.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # a signal is handled between
                self.show()
        for number, handler in previous.items():
            signal.signal(number, handler)
        self.bar.close()
        if self.error is not None:
            raise self.error
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
        try:
            self.take_cells(worker)
        except BaseException as error:  # a full disk, say: no other cell would fare better
            self.error = error
            self.stop(0, None)

    def take_cells(self, worker: int) -> None:
        while not self.stopped and self.error is None:
            rows = read_study(self.out)
            done, failed = {row["cell"] for row in rows}, self.failed
            cells = next_cells(self.plan, rows, self.out)
            self.count(cells, done)
            named = {cell.name: cell for cell in cells}
            waiting = [
                c for c in cells if c.name not in done and not self.hopeless(c, named, failed)
            ]
            ready = [c for c in waiting if done.issuperset(c.needs)]
            if not any(self.take(cell, named, worker) for cell in ready):
                if not waiting:
                    return
                time.sleep(PAUSE)

    def hopeless(self, cell: Cell, cells: Mapping[str, Cell], failed: Mapping[str, str]) -> bool:
        """Whether it, or what it needs, or what that needs, has failed."""
        needs = (cells[name] for name in cell.needs)
        return cell.name in failed or any(self.hopeless(one, cells, failed) for one in needs)

    def take(self, cell: Cell, cells: Mapping[str, Cell], worker: int) -> bool:
        """Run the cell, unless another worker has it; out: whether it was run."""
        with self.lock:
            if cell.name in self.running:
                return False
            self.running.add(cell.name)
        try:
            with claim(self.out, cell.name) as ours:
                over = [*read_study(self.out), *read_study(self.out, FAILED)]
                if not ours or cell.name in {row["cell"] for row in over}:
                    return False
                try:
                    self.restore(cell, cells, worker)
                    append_row(self.out, self.run_one(cell, worker))
                except CellFailed as error:
                    if not self.stopped:
                        self.tell_failed(cell, str(error))
                except (ValueError, KeyError) as error:  # of what its commands have left
                    self.tell_failed(cell, f"{type(error).__name__}: {error}")
        finally:
            self.running.discard(cell.name)
        return True

    def tell_failed(self, cell: Cell, why: str) -> None:
        append_row(self.out, {"cell": cell.name, "why": why}, FAILED)

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
            if self.stopped or self.error is not None:  # meanwhile
                process.send_signal(signal.SIGTERM)

        return run_cell(self.out, cell, self.threads, watch)

    def count(self, cells: Sequence[Cell], done: set[str]) -> None:
        """All workers' cells, those of other processes too."""
        self.bar.total = sum(count_cells(self.plan).values())
        self.bar.n = sum(cell.name in done for cell in cells)

    def show(self) -> None:
        failed = len(self.failed)
        state = (self.bar.n, f"{len(self.running)} running" + f", {failed} failed" * bool(failed))
        if state != self.shown:
            self.shown = state
            self.bar.set_postfix_str(state[1])


# ------------------------------------------------------------------------------------------------
# what is told


def describe(plan: Plan | ModelStudy, config: StudyConfig) -> dict:
    if isinstance(plan, Plan):
        more = {"grids": [asdict(grid) for grid in plan.grids]}
    else:
        more = study_models_grid.describe(plan)
    return {
        "plan": plan.name,
        "about": plan.about,
        "settings": asdict(config),
        "cells": count_cells(plan),
        "environment": {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "commit": git_commit(),
        },
    } | more


def print_expected(
    plan: Plan | ModelStudy, rows: Sequence[Mapping], workers: int, out: Path
) -> None:
    hours = expected_seconds(plan, rows, out) / workers / 3600
    counts = ", ".join(f"{count} {kind}" for kind, count in count_cells(plan).items())
    print(f"plan {plan.name}: {plan.about}; {counts}; {len(rows)} cells are done")
    speed = "" if isinstance(plan, Plan) else f" at {plan.flops:.0e} FLOP/s"
    print(f"about {hours:.1f} hours to go with {workers} workers{speed}")


def expected_seconds(plan: Plan | ModelStudy, rows: Sequence[Mapping], out: Path) -> float:
    """Of the missing cells, by one worker; those not named yet take the mean of their kind.

    Where none of a kind is named, it takes as long as the measurement of the reference.
    """
    done = {row["cell"] for row in rows}
    cells = next_cells(plan, rows, out)
    by_kind: dict[str, list[Cell]] = {}
    for cell in cells:
        by_kind.setdefault(cell.labels["kind"], []).append(cell)
    seconds = 0.0
    for kind, count in count_cells(plan).items():
        known = by_kind.get(kind, [])
        like = known or by_kind.get("base", [])
        mean = sum(c.seconds for c in like) / len(like) if like else USUAL
        seconds += sum(c.seconds for c in known if c.name not in done)
        seconds += mean * max(0, count - len(known))
    return seconds


def print_cells(plan: Plan | ModelStudy, rows: Sequence[Mapping], out: Path) -> None:
    done = {row["cell"] for row in rows}
    for cell in next_cells(plan, rows, out):
        print(f"\n{cell.name}{' (done)' if cell.name in done else ''}")
        for command in cell.commands:
            print("  python " + " ".join(command))


if __name__ == "__main__":
    run_main(main)
