"""An evaluation killed again and again: the samples and scores are those of an undisturbed one.

    python -m tests.kill_samples --kills 10 --seed 0
    python -m tests.kill_samples --kills 10 --ranks 2

eval.arithmetic on the embedded model is killed with kill -9 at random moments and started again
with the same command; it has to leave the bytes of an undisturbed run: samples.jsonl, items.jsonl,
and the metrics. With --ranks 2 all processes of a torchrun are killed at once. The exit code is 1
if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT

LIMIT = 600  # seconds


def command(out: Path, ranks: int, problems: int) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "--"]
    start = [sys.executable, *(torchrun if ranks > 1 else [])]
    script = ["-m", "eval.arithmetic"] if ranks == 1 else ["eval/arithmetic.py"]
    flags = ["--limit", str(problems), "--n", "16", "--device", "cpu", "--out", str(out)]
    return [*start, *script, *flags]


def start(out: Path, ranks: int, problems: int) -> subprocess.Popen:
    """A process group of its own, so that all of it can be killed at once."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(
        command(out, ranks, problems), cwd=ROOT, env=environment, stdout=log, stderr=log,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> None:
    if process.wait(LIMIT) != 0:
        raise SystemExit(f"the run ended with exit code {process.returncode}")


def results(out: Path) -> dict[str, bytes]:
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    files = {name: (out / name).read_bytes() for name in ("samples.jsonl", "items.jsonl")}
    return files | {"metrics": json.dumps(metrics).encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--problems", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        finish(start(whole, args.ranks, args.problems))
        rng, most = random.Random(args.seed), max(1, args.problems // (args.kills + 1))
        for kill in range(1, args.kills + 1):
            process = start(killed, args.ranks, args.problems)
            wait_for_rows(process, killed, rows_there(killed) + rng.randint(1, most), rng)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {kill}: {rows_there(killed)} of {args.problems} rows", flush=True)
        finish(start(killed, args.ranks, args.problems))
        compare(whole, killed)
    print(f"{args.kills} x kill -9 in one evaluation, {args.ranks} rank(s): the same bytes")


def rows_there(out: Path) -> int:
    """Whole rows, in the file and in those of the ranks."""
    parts = [out / "samples.jsonl", *out.glob("samples.jsonl.rank-*")]
    return sum(part.read_bytes().count(b"\n") for part in parts if part.exists())


def wait_for_rows(process: subprocess.Popen, out: Path, rows: int, rng: random.Random) -> None:
    """Until so many are there, and a moment longer: anywhere in the middle of a row."""
    since = time.monotonic()
    while rows_there(out) < rows:
        if process.poll() is not None or time.monotonic() - since > LIMIT:
            raise SystemExit(f"the run ended before it could be killed: {process.returncode}")
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))


def compare(whole: Path, killed: Path) -> None:
    expected, got = results(whole), results(killed)
    different = [name for name in expected if expected[name] != got[name]]
    if different:
        raise SystemExit(f"not as undisturbed: {', '.join(different)}")


if __name__ == "__main__":
    main()
