"""One cell of a study: a few commands of this project, and the row that their results make.

A cell has a folder of its own in OUT/cells, with a log of its commands and what they leave there:
`train` (a run folder of train.py), samples.jsonl, and a results folder for each evaluation. Its row
goes into OUT/results.jsonl as soon as it is done. Several workers, of one process or of many on one
file system, share the cells by locks that the operating system lets go when their holder dies; a
cell that was stopped goes on, since each of its commands does.
"""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data.rows import read_rows
from model.resumable import settings_file
from model.run import git_commit, one_gpu, write_text
from model.sampling import PLAIN

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
            "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")  # fmt: skip
RESULTS, FAILED = "results.jsonl", "failed.jsonl"  # a row for each cell that is done; that is not
SHOWN = 3  # completions of a prompt that stay in the row, of as many prompts of each difficulty
CURVES = 64  # held-out evaluations of a run that stay in its row, at most
VALIDATED = ("pass@1", "valid@1", "pass@16", "distinct", "no_answer")  # of validation problems
DIGITS = 5  # significant, of the numbers in a row


@dataclass(frozen=True)
class Cell:
    """What is run, once the cells that it needs are done."""

    name: str
    labels: Mapping  # kind, process, family, setting, seed, ...: stand in its row
    commands: tuple[tuple[str, ...], ...]  # words behind `python`
    needs: tuple[str, ...] = ()  # names of cells whose files it reads
    seconds: float = 10.0  # expected, of one worker


class CellFailed(RuntimeError):
    """A command of a cell ended with another code than 0."""


def folder_of(out: Path, name: str) -> Path:
    """The cell's folder; a slash in the name is a folder, a space or a comma an underscore."""
    return out / "cells" / name.replace(", ", "_").replace(" ", "_").replace("'", "")


# ------------------------------------------------------------------------------------------------
# running


def run_cell(
    out: Path, cell: Cell, threads: int, watch: Callable[[subprocess.Popen | None], None]
) -> dict:
    """Run the commands; out: the row. Raises CellFailed with the end of the log.

    watch: is given each process that starts, and None when it has ended.
    """
    folder = folder_of(out, cell.name)
    folder.mkdir(parents=True, exist_ok=True)
    for command in cell.commands:
        run_command(command, folder, threads, watch)
    (folder / "done").touch()
    about = {
        "commands": [shlex.join(("python", *command)) for command in cell.commands],
        "seconds": round(float((folder / "seconds").read_text()), 1),
        "commit": git_commit(),
    }
    return {"cell": cell.name, **cell.labels} | about | collect(folder)


def run_command(
    command: Sequence[str],
    folder: Path,
    threads: int,
    watch: Callable[[subprocess.Popen | None], None],
) -> None:
    words = [sys.executable, *go_on(command)]
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER}
    environment |= {"OMP_NUM_THREADS": str(threads)} | own_gpu()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(('python', *command))}\n")
        log.flush()
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        began = time.time()
        watch(process)
        code = process.wait()
        watch(None)
    spent = folder / "seconds"  # of all attempts
    before = float(spent.read_text()) if spent.exists() else 0.0
    write_text(spent, f"{before + time.time() - began}\n")
    if code:
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        last = "\n".join(lines.replace("\r", "\n").strip().splitlines()[-5:])
        raise CellFailed(
            f"{shlex.join(command)} ended with {code}; {folder}/log.txt ends with:\n{last}"
        )


def own_gpu() -> dict[str, str]:
    """Under torchrun a command sees the GPU of the rank alone, where it has one."""
    rank = os.environ.get("LOCAL_RANK")
    return {} if rank is None else one_gpu(int(rank))


def go_on(command: Sequence[str]) -> list[str]:
    """The command, with --resume for a run of train.py that was stopped and has a checkpoint.

    One that was stopped before its first checkpoint begins anew. All others go on by themselves.
    """
    command = list(command)
    if command[0] == "train.py":
        run = Path(command[command.index("--out_dir") + 1])
        if any((run / "checkpoints").glob("*")):
            command.append("--resume")
        elif run.exists():
            shutil.rmtree(run)
    return command


# ------------------------------------------------------------------------------------------------
# sharing


@contextmanager
def claim(out: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether the cell is ours as long as this lasts; wait: until it is."""
    folder = folder_of(out, name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def append_row(out: Path, row: Mapping, name: str = RESULTS) -> None:
    """Add a row to OUT/results.jsonl, or to another file, behind the last whole one."""
    with (out / ".results.lock").open("a") as lock, (out / name).open("ab+") as file:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)  # a kill may have cut the last one short
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_study(out: Path, name: str = RESULTS) -> list[dict]:
    """The whole rows of OUT/results.jsonl, or of another file; none where there is none yet."""
    file = out / name
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("cell"), str):
            raise ValueError(f"{file}:{number}: expected the row of a cell; remove the line")
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------
# what a cell's folder says


def collect(folder: Path) -> dict:
    """What of the results of a cell's commands stands in its row; of those that are there."""
    row: dict = {"metrics": read_metrics(folder)}
    if (folder / "train" / "metrics.jsonl").is_file():
        row["curves"] = read_curves(folder / "train" / "metrics.jsonl")
    validation = folder / "validation" / "samples.jsonl"
    if validation.is_file():
        row["validation_entropy"] = mean_entropy([sample for _, sample in read_rows(validation)])
        values = json.loads((validation.with_name("values.json")).read_text(encoding="utf-8"))
        row["validation"] = values["pass@1"]
    samples = folder / "samples.jsonl"
    if (folder / "arithmetic" / "items.jsonl").is_file() and samples.is_file():
        items = [item for _, item in read_rows(folder / "arithmetic" / "items.jsonl")]
        drawn = [sample for _, sample in read_rows(samples)]
        settings = json.loads(settings_file(samples).read_text(encoding="utf-8"))
        plain = settings.get("sampling") == asdict(PLAIN)
        row["problems"] = describe_problems(items, drawn, plain)
        values = json.loads((folder / "arithmetic" / "values.json").read_text(encoding="utf-8"))
        row["problems"] |= {name: values[name] for name in ("confidence", "brier")}
        row["samples"] = choose_samples(items, drawn)
    elif (folder / "diversity" / "summary.json").is_file():
        some = [sample for _, sample in islice(read_rows(samples), SHOWN)]
        row["samples"] = [show_sample(sample) for sample in some]
        row["values"] = read_values(folder)
    if (folder / "opinions" / "items.jsonl").is_file():
        row["opinions"] = [item for _, item in read_rows(folder / "opinions" / "items.jsonl")]
    tables = [f for f in sorted(folder.glob("*/reliability.json")) if f.parent.name != "validation"]
    if tables:
        row["reliability"] = {f.parent.name: json.loads(f.read_text("utf-8")) for f in tables}
    return rounded(row)


def read_metrics(folder: Path) -> dict:
    """TASK:NAME -> value, low, high of each results folder, named after it.

    What of arithmetic the counts of `describe_problems` give by difficulty is left out, but for the
    floor.
    """
    metrics = {}
    for file in sorted(folder.glob("*/summary.json")):
        task = file.parent.name
        found = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        for name, value in found.items():
            if is_kept(task, name):
                metrics[f"{task}:{name}"] = value
    return metrics


def read_values(folder: Path) -> dict[str, list[float]]:
    """TASK:NAME -> the value of each prompt or problem, of what is a plain mean of these."""
    return {
        f"{file.parent.name}:{name}": values
        for file in sorted(folder.glob("*/values.json"))
        for name, values in json.loads(file.read_text(encoding="utf-8")).items()
        if all(isinstance(value, int | float) for value in values)
    }


def is_kept(task: str, name: str) -> bool:
    kind, _, label = name.partition("/")
    if task == "validation":
        return name in VALIDATED
    return task != "arithmetic" or not label or kind.startswith("floor@")


def read_curves(file: Path) -> dict[str, list]:
    """step and each name under eval/: the held-out evaluations of a run."""
    records = [record for _, record in read_rows(file) if "eval/loss" in record]
    kept = (
        np.unique(np.linspace(0, len(records) - 1, CURVES).round().astype(int)) if records else ()
    )
    names = ["step", *(name for name in records[0] if name.startswith("eval/"))] if records else []
    return {name: [records[i].get(name) for i in kept] for name in names}


def describe_problems(items: Sequence[Mapping], drawn: Sequence[Mapping], plain: bool) -> dict:
    """For each problem how many completions are right, valid, different, ..., and -log pi, in nats.

    That is the policy's entropy where `plain` draws of it are measured, and else its cross-entropy
    with what was drawn.
    """
    problems = {
        "difficulty": [item.get("difficulty") for item in items],
        "n": min(len(item["correct"]) for item in items),
        "correct": [sum(item["correct"]) for item in items],
        "valid": [sum(item["valid"]) for item in items],
    }
    for name in ("distinct", "distinct_correct", "majority"):
        problems[name] = [item[name] for item in items]
    problems["tokens"] = [float(np.mean(row["tokens"])) for row in drawn]
    name = "entropy" if plain else "cross_entropy"
    problems[name] = [-float(np.mean(row["logps"])) for row in drawn]
    return problems


def mean_entropy(drawn: Sequence[Mapping]) -> float:
    """Mean of -log pi of a completion, in nats, where they are plain draws at temperature 1."""
    return -float(np.mean([np.mean(row["logps"]) for row in drawn]))


def choose_samples(items: Sequence[Mapping], drawn: Sequence[Mapping]) -> list[dict]:
    """The first completions of the first problems of each difficulty."""
    counts: dict[str, int] = {}
    chosen = []
    for item, row in zip(items, drawn, strict=True):
        difficulty = item.get("difficulty")
        counts[difficulty] = counts.get(difficulty, 0) + 1
        if counts[difficulty] <= SHOWN:
            chosen.append({"prompt": row["prompt"], "difficulty": difficulty,
                           "completions": row["completions"][:SHOWN]})  # fmt: skip
    return chosen


def show_sample(row: Mapping) -> dict:
    """A prompt as one text, with names of roles where it has several turns; its completions."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        turns = [f"{turn['role']}: {turn['content']}" for turn in prompt]
        prompt = "\n\n".join(turns) if len(turns) > 1 else prompt[0]["content"]
    return {"prompt": prompt, "completions": row["completions"][:SHOWN]}


def rounded(value):
    """JSON with its floats to DIGITS significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value


def write_study(out: Path, about: Mapping) -> None:
    write_text(out / "study.json", json.dumps(about, indent=2) + "\n")
