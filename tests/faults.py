"""What may befall a run, done to it for real, and what has to come of it.

    python -m tests.faults                         everything: one process and two ranks
    python -m tests.faults --only kills --kills 50 --seed 0 --runs lora --ranks 1
    python -m tests.faults --only disk folder ranks

    kills    kill -9 of all processes of a run, at a random moment or before a random change of a
             file, then --resume, again and again until the run ends: what it saved is that of an
             undisturbed run byte for byte, and metrics.jsonl has every record once
    disk     the disk is full when a checkpoint is saved: one message, exit code 2; the earlier
             checkpoints are whole, and with room the run goes on to the same end (needs root)
    folder   the run folder is read-only: one message, exit code 2 (needs root)
    ranks    one of two ranks is killed under torchrun: the other one ends, with a message; with
             --max-restarts the run goes on by itself to the same end

The exit code is 1 if an outcome is not the expected one. tests/test_faults.py has what is quick.

A run is a fork of a process that has imported everything, which spares each of hundreds of starts
two seconds. That process itself never computes: a fork would miss the threads of its backward.
"""

import argparse
import contextlib
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed.fsdp  # once, before the forks

import train
from model.logbook import read_records
from model.run import run_main
from tests.conftest import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
PAIRS, HELD_OUT = 36, 6
STEPS, EVAL_EVERY, SAVE_EVERY = 16, 5, 2
TIMES = {"pairs_per_s", "tokens_per_s", "peak_memory_gb"}  # of a record; they may differ
LIMIT = 120.0  # seconds after which a run is said to hang
RUNS = {
    "lora": {"learning_rate": 1e-3, "lora_rank": 4},
    "full": {"learning_rate": 1e-4, "lora_rank": 0, "reference": "cached", "objective": "h_dpo",
             "alpha": 0.9},
}  # fmt: skip
EARLY = range(5, 11)  # the changes before which caches are made, named, and metrics.jsonl begun
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # audit events beside "open"


# ------------------------------------------------------------------------------------------------
# a run


def write_data(folder: Path) -> None:
    for name, count in (("train", PAIRS), ("eval", HELD_OUT)):
        lines = (ROOT / "data" / "tiny" / f"{name}.jsonl").read_text().splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def flags(folder: Path, run: str, out_dir: Path, device: str = "cpu", **changes) -> list[str]:
    """The command line of a run of 16 steps in micro-batches of about two pairs."""
    values = {
        "model": ROOT / "data" / "tiny",
        "data": folder / "train.jsonl",
        "eval_data": folder / "eval.jsonl",
        "out_dir": out_dir,
        "device": device,
        "batch_size": 4,
        "micro_batch_tokens": 120,
        "max_steps": STEPS,
        "eval_every": EVAL_EVERY,
        "save_every": SAVE_EVERY,
        "sample_prompts": 1,
        "warmup_steps": 2,
        **RUNS[run],
        **changes,
    }
    return [str(word) for key, value in values.items() for word in (f"--{key}", value)]


@dataclass
class Attempt:
    """One start of a run: all its ranks, in a process group of their own."""

    waiting: set[int]  # processes that have not ended
    group: int
    changes: mmap.mmap  # of files, counted so far by rank 0, which shares this memory
    since: float = field(default_factory=time.monotonic)
    codes: list[int] = field(default_factory=list)  # as of subprocess: -9 is kill -9

    def wait(self, kill_after: float | None = None) -> list[int]:
        """Exit codes in the order of the ends; after so many seconds everything is killed.

        Raises TimeoutError for a run that hangs.
        """
        while self.waiting:
            for process in list(self.waiting):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.waiting.remove(process)
                    self.codes.append(os.waitstatus_to_exitcode(status))
            age = time.monotonic() - self.since
            if self.waiting and (age > LIMIT or (kill_after is not None and age > kill_after)):
                os.killpg(self.group, signal.SIGKILL)
                if age > LIMIT:
                    raise TimeoutError(f"after {age:.0f} s processes {self.waiting} still run")
            time.sleep(0.001)
        return self.codes

    def count(self) -> int:
        return int.from_bytes(self.changes[:8], "little")


def start(words: list[str], log: Path, ranks: int = 1, kill_before: int = 0) -> Attempt:
    """Fork train.py with a command line; what it prints goes to `log`.

    kill_before: all ranks are killed right before rank 0 opens or changes so many files; 0: never.
    """
    sys.stdout.flush()
    changes = mmap.mmap(-1, 8)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    processes: list[int] = []
    for rank in range(ranks):
        process = os.fork()
        group = processes[0] if processes else process
        if process == 0:
            os.setpgid(0, group)
            be_rank(words, log, rank, ranks, port, changes, kill_before)
        with contextlib.suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(process, group)
        processes.append(process)
    return Attempt(set(processes), processes[0], changes)


def be_rank(
    words: list[str],
    log: Path,
    rank: int,
    ranks: int,
    port: int,
    changes: mmap.mmap,
    kill_before: int,
) -> None:
    """In the forked process: train.py as its command line runs it; never returns."""
    code = 1
    try:
        os.chdir(ROOT)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        if rank == 0:
            count_changes(words[words.index("--out_dir") + 1], changes, kill_before)
        sys.argv = ["train.py", *words]
        run_main(train.main)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def count_changes(out_dir: str, changes: mmap.mmap, kill_before: int) -> None:
    """Count each opening of a file in the run folder and each change of a name before it is done,
    and kill the process group before the one that was asked for."""

    def audit(event: str, args: tuple) -> None:
        if event in CHANGES or (event == "open" and str(args[0]).startswith(out_dir)):
            count = int.from_bytes(changes[:8], "little") + 1
            changes[:8] = count.to_bytes(8, "little")
            if count == kill_before:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(audit)


# ------------------------------------------------------------------------------------------------
# what is compared


def saved(out_dir: Path) -> dict[str, bytes]:
    """What a run leaves for others: the adapter, or the whole model."""
    files = [*out_dir.glob("adapter_*"), *(out_dir / "model").glob("*")]
    return {str(file.relative_to(out_dir)): file.read_bytes() for file in sorted(files)}


def records(out_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = read_records(out_dir / "metrics.jsonl")
    return [{name: line[name] for name in line.keys() - TIMES} for line in lines]


def differences(out_dir: Path, undisturbed: Path) -> str:
    """How a run that has ended differs from the undisturbed one; empty where it does not."""
    ours, theirs = saved(out_dir), saved(undisturbed)
    assert theirs, f"{undisturbed} has saved nothing"
    wrong = [f"{name} differs" for name in theirs if ours.get(name) != theirs[name]]
    if ours.keys() != theirs.keys():
        wrong.append(f"it has {sorted(ours)}, expected {sorted(theirs)}")
    lines = records(out_dir)
    steps = [line["step"] for line in lines if "loss" in line]
    evaluations = [line["step"] for line in lines if "eval/loss" in line]
    if steps != list(range(1, STEPS + 1)):
        wrong.append(f"the steps of metrics.jsonl are {steps}")
    if evaluations != [*range(0, STEPS, EVAL_EVERY), STEPS]:
        wrong.append(f"the evaluations of metrics.jsonl are those of {evaluations}")
    if lines != records(undisturbed):
        wrong.append("the numbers of metrics.jsonl differ")
    if left := [str(file.relative_to(out_dir)) for file in out_dir.rglob("*.partial")]:
        wrong.append(f"left behind: {left}")
    return "; ".join(wrong)


def what_it_said(log: Path) -> str:
    return f"exit code wrong; {log} ends: {' | '.join(log.read_text().splitlines()[-4:])}"


# ------------------------------------------------------------------------------------------------
# kill -9


def kill_again_and_again(
    folder: Path, run: str, ranks: int, kills: int, seed: int, device: str = "cpu"
) -> tuple[Counter, str]:
    """({what the run was doing: kills}, what went wrong): so many kills, over as many whole runs as
    that takes, and each of these ends as the undisturbed one."""
    draw = random.Random(seed)
    whole = folder / f"{run}-{ranks}-undisturbed"
    attempt = start(flags(folder, run, whole, device), log_of(whole), ranks)
    if set(attempt.wait()) != {0}:
        return Counter(), what_it_said(log_of(whole))
    seconds, changes = time.monotonic() - attempt.since, attempt.count()
    if wrong := differences(whole, whole):
        return Counter(), f"the undisturbed run: {wrong}"

    phases: Counter = Counter()
    life = 0
    while phases.total() < kills:
        life += 1
        out_dir = folder / f"{run}-{ranks}-killed-{life}"
        killed = True
        while killed:
            words = flags(folder, run, out_dir, device) + go_on(out_dir)
            before = times_of(out_dir)
            fresh = "--resume" not in words
            reach = 1.0 if fresh else 0.5  # there is less left
            if draw.random() < 0.5:
                attempt = start(words, log_of(out_dir), ranks)
                codes = attempt.wait(kill_after=reach * draw.uniform(0, seconds))
            else:
                moment = draw.choice(EARLY if fresh else range(1, int(reach * changes) + 1))
                codes = start(words, log_of(out_dir), ranks, kill_before=moment).wait()
            killed = -signal.SIGKILL in codes
            if killed:
                phases[phase(out_dir, before, "--reference" in words)] += 1
            elif set(codes) != {0}:
                return phases, what_it_said(log_of(out_dir))
        if wrong := differences(out_dir, whole):
            return phases, f"{out_dir}: {wrong}"
        shutil.rmtree(out_dir)
    phases["whole runs"] = life
    return phases, ""


def log_of(out_dir: Path) -> Path:
    return out_dir.with_name(out_dir.name + ".log")


def go_on(out_dir: Path) -> list[str]:
    """--resume where there is a checkpoint; else the run starts anew, and may not find records."""
    if list((out_dir / "checkpoints").glob("step-??????")):
        return ["--resume"]
    (out_dir / "metrics.jsonl").unlink(missing_ok=True)
    return []


def times_of(out_dir: Path) -> dict[Path, int]:
    return {file: file.stat().st_ctime_ns for file in out_dir.rglob("*")}


def phase(out_dir: Path, before: dict[Path, int], caches: bool) -> str:
    """What a run was doing when it was killed, by the files that it had changed."""
    new = {file for file, when in times_of(out_dir).items() if before.get(file) != when}
    names = {str(file.relative_to(out_dir)) for file in new}
    if any(name.startswith("checkpoints/") and ".partial" in name for name in names):
        return "saving a checkpoint"
    if any(name.startswith(("adapter_", "model")) for name in names):
        return "saving the policy, or after"
    if "metrics.jsonl" in names:
        return "training or evaluating"
    return "caching the reference" if caches and "config.json" in names else "starting"


# ------------------------------------------------------------------------------------------------
# the disk


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; PermissionError where we may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        raise PermissionError("skipped: mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_the_disk(folder: Path, run: str, device: str) -> tuple[str, str]:
    """Room for a little more than two checkpoints, all of which are to be kept."""
    whole = folder / f"{run}-roomy"
    words = flags(folder, run, whole, device, keep=0)
    if set(start(words, log_of(whole)).wait()) != {0}:
        return "", what_it_said(log_of(whole))
    first = whole / "checkpoints" / f"step-{SAVE_EVERY:06d}"
    size = sum(file.stat().st_size for file in first.iterdir())
    with mounted(folder / "small", f"size={size * 5 // 2}") as small:
        out_dir, log = small / "run", log_of(folder / f"{run}-full-disk")
        words = flags(folder, run, out_dir, device, keep=0)
        codes = start(words, log).wait()
        said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        kept = sorted(f.name for f in (out_dir / "checkpoints").glob("step-??????"))
        if codes != [2] or "Traceback" in log.read_text() or len(said) != 1:
            return "", f"exit codes {codes}; " + what_it_said(log)
        if kept != [f"step-{SAVE_EVERY * i:06d}" for i in (1, 2)]:
            return "", f"the checkpoints are {kept}, expected two"
        message = said[0].replace(str(folder), "")
        subprocess.run(["mount", "-o", "remount,size=100%", str(small)], check=True)
        if set(start([*words, "--resume"], log).wait()) != {0}:
            return "", what_it_said(log)
        if "is skipped: it was not finished" not in log.read_text():
            return "", "the torn checkpoint was not named"
        return f"exit code 2, {message!r}; with room it goes on", differences(out_dir, whole)


def write_protect(folder: Path, run: str, device: str) -> tuple[str, str]:
    """A folder to make the run folder in, and a run folder that is to be resumed."""
    with mounted(folder / "protected", "size=100%") as protected:
        old, new, log = protected / "old", protected / "new", log_of(folder / f"{run}-protected")
        if set(start(flags(folder, run, old, device), log).wait()) != {0}:
            return "", what_it_said(log)
        log.unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(protected)], check=True)
        for out_dir, more in ((new, []), (old, ["--resume"])):
            codes = start(flags(folder, run, out_dir, device) + more, log).wait()
            if codes != [2] or "Traceback" in log.read_text():
                return "", f"exit codes {codes}; " + what_it_said(log)
        said = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        if len(said) != 2 or any("Read-only file system" not in line for line in said):
            return "", f"said {said}"
    return "exit code 2, " + repr(said[0].replace(str(folder), "")), ""


# ------------------------------------------------------------------------------------------------
# ranks


def children(process: int) -> list[int]:
    """The processes that a process has started, in their order."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for_step(out_dir: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until metrics.jsonl has a step, or TimeoutError."""
    end = time.monotonic() + LIMIT
    file = out_dir / "metrics.jsonl"
    while not (file.exists() and any(line["step"] >= step for line in read_records(file))):
        if time.monotonic() > end or process.poll() is not None:
            raise TimeoutError(f"step {step} never came; exit code {process.poll()}")
        time.sleep(0.005)


def torchrun(words: list[str], log: Path, restarts: int) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen(
            [*TORCHRUN, f"--max-restarts={restarts}", "--", "train.py", *words],
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def end(process: subprocess.Popen) -> None:
    """End torchrun where it still runs, and the ranks, which would outlive it."""
    if process.poll() is None:
        for child in [*children(process.pid), process.pid]:
            os.kill(child, signal.SIGKILL)


def lose_a_rank(folder: Path, run: str, device: str, lost: int) -> tuple[str, str]:
    """One of two ranks is killed, and nobody starts it again."""
    out_dir = folder / f"{run}-lost-{lost}"
    log = log_of(out_dir)
    process = torchrun(flags(folder, run, out_dir, device, max_steps=10_000), log, 0)
    try:
        wait_for_step(out_dir, 3, process)
        os.kill(children(process.pid)[lost], signal.SIGKILL)
        since = time.monotonic()
        process.wait(LIMIT)
    finally:
        end(process)
    seconds, said = time.monotonic() - since, log.read_text()
    if seconds > 20 or process.returncode == 0:
        return "", f"ended after {seconds:.0f} s with exit code {process.returncode}"
    if "error: another rank has ended" not in said or "--resume" not in said:
        return "", what_it_said(log)
    return f"the other one ends after {seconds:.1f} s and says so", ""


def restart_by_itself(folder: Path, run: str, device: str) -> tuple[str, str]:
    """Rank 1 is killed, then, after torchrun has started both again, rank 0."""
    whole, out_dir = folder / f"{run}-2-whole", folder / f"{run}-2-restarted"
    if set(start(flags(folder, run, whole, device), log_of(whole), 2).wait()) != {0}:
        return "", what_it_said(log_of(whole))
    process = torchrun(flags(folder, run, out_dir, device), log_of(out_dir), 2)
    try:
        for lost, step in ((1, 5), (0, 11)):
            wait_for_step(out_dir, step, process)
            os.kill(children(process.pid)[lost], signal.SIGKILL)
            time.sleep(1)  # until it has ended
        process.wait(LIMIT)
    finally:
        end(process)
    if process.returncode:
        return "", what_it_said(log_of(out_dir))
    return "goes on by itself, twice, to the same bytes", differences(out_dir, whole)


# ------------------------------------------------------------------------------------------------
# the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("kills", "disk", "folder", "ranks")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="of the kills")
    parser.add_argument("--kills", type=int, default=50, help="of each run on each number of ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    write_data(work)

    failed = False

    def row(title: str, outcome: str, wrong: str, since: float) -> None:
        nonlocal failed
        failed |= bool(wrong)
        seconds = time.monotonic() - since
        print(
            f"{title:<34}{seconds:>6.0f} s  {f'WRONG: {wrong}' if wrong else outcome}", flush=True
        )

    for run in args.runs:
        for ranks in args.ranks if "kills" in args.only else []:
            since = time.monotonic()
            given = (work, run, ranks, args.kills, args.seed, args.device)
            phases, wrong = kill_again_and_again(*given)
            lives = phases.pop("whole runs", 0)
            title = f"{run}, {ranks} rank{'s' * (ranks > 1)}: {phases.total()} x kill -9"
            row(title, f"{lives} runs end with the same bytes, each record once", wrong, since)
            for name, count in phases.most_common():
                print(f"{'':<44}{count:>3} x {name}")
        others = {
            "disk full while saving": ("disk", fill_the_disk, ()),
            "read-only run folder": ("folder", write_protect, ()),
            "rank 0 of 2 killed": ("ranks", lose_a_rank, (0,)),
            "rank 1 of 2 killed": ("ranks", lose_a_rank, (1,)),
            "killed, with --max-restarts=2": ("ranks", restart_by_itself, ()),
        }
        for title, (kind, scenario, more) in others.items():
            if kind not in args.only:
                continue
            since = time.monotonic()
            try:
                outcome, wrong = scenario(work, run, args.device, *more)
            except PermissionError as error:
                outcome, wrong = str(error), ""
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                outcome, wrong = "", str(error)
            row(f"{run}: {title}", outcome, wrong, since)
            for mount in ("small", "protected"):
                with contextlib.suppress(OSError):
                    (work / mount).rmdir()
    if failed:
        print(f"what the runs said and left is in {work}")
        raise SystemExit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
