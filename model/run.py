"""What a run starts from and how it ends: ranks, device, run folder, memory, errors, Ctrl-C."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import torch

from model.checkpoint import DTYPES
from model.config import to_json
from model.parallel import (
    device_of_rank,
    end_distributed,
    end_rank,
    init_distributed,
    is_main,
    lost_rank,
    may_restart,
    restarts,
    says_first,
    world_size,
)

PACKAGES = ("torch", "numpy", "sentencepiece", "safetensors")


def run_main(
    main: Callable[[], None],
    spare: str = "Lower --cache_gb, or pass --shard under torchrun, where the command has them",
    go_on: str = "What was written is whole: the same command goes on",
) -> None:
    """Run `main` on every rank; a user's mistake ends with one message and exit code 2.

    spare: what to do where memory does not suffice; go_on: where another rank has ended.
    """
    try:
        run_guarded(main, spare, go_on)
    except SystemExit as end:
        end_rank(end.code)  # a number: see `fail`
        raise
    end_rank(0)


def run_guarded(main: Callable[[], None], spare: str, go_on: str) -> None:
    """SystemExit with a message instead of what a user's mistake raises."""
    try:
        init_distributed()
        main()
        end_distributed()
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        sys.stderr.close()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        if says_first("interrupted"):
            print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError) as error:
        fail(str(error), 2)
    except torch.OutOfMemoryError as error:
        fail(f"{error}\n{spare}", 2)
    except RuntimeError as error:
        if not lost_rank(error):
            raise
        fail(f"another rank has ended; what it was stands above. {go_on}", 3)


def fail(message: str, code: int) -> NoReturn:
    """End with a message, which one rank alone says where all have it."""
    if says_first(message):
        print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def choose_device(device: str | None, dtype: str | None) -> tuple[str, torch.dtype]:
    """The device and the dtype of a run; a choice left to us is printed with its reason."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reason = "a GPU is there" if device == "cuda" else "torch sees no GPU"
        print(f"device: {device} ({reason})")
    device = device_of_rank(device)
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("it is neither cpu nor cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device} cannot be used: {reason}") from None
    if dtype is None:
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
        print(f"dtype: {dtype} (the default on {device})")
    return device, DTYPES[dtype]


def one_gpu(index: int) -> dict[str, str]:
    """What shows a process one GPU alone, the index-th of those seen here, counted round.

    Nothing where there is none.
    """
    count = torch.cuda.device_count()
    if not count:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": seen.split(",")[index % count]}


def choose_out_dir(asked: str | None, name: str, resume: bool, inputs: Sequence[str]) -> Path:
    """The run folder: the one that was asked for, or a new one under runs/, numbered where taken.

    Raises ValueError for a folder that holds a run already, unless it is to be resumed, and for
    one in which the run would overwrite what is not its own: the folder of an input, one whose
    `model/` or config.json no run has written.
    """
    if asked is None and may_restart():
        raise ValueError("torchrun --max-restarts expects --out_dir, where the run will go on")
    if asked is None:
        number, out_dir = 1, Path("runs") / name
        while out_dir.exists():
            number += 1
            out_dir = Path("runs") / f"{name}-{number}"
        return out_dir
    out_dir = Path(asked)
    folders = {Path(p).resolve() if Path(p).is_dir() else Path(p).resolve().parent for p in inputs}
    if out_dir.resolve() in folders:
        raise ValueError(f"--out_dir {out_dir} is the folder of an input; pass another folder")
    refuse_run(out_dir, resume)
    if not (out_dir / "metrics.jsonl").exists():
        for name in ("model", "config.json"):
            if (out_dir / name).exists() and not is_run_config(out_dir / name):
                raise ValueError(
                    f"--out_dir {out_dir} holds a {name} that no run has written, and that this "
                    "one would overwrite; pass another folder"
                )
    return out_dir


def is_run_config(path: Path) -> bool:
    """Whether this is a run's config.json; the run may have been killed before its first step."""
    return path.is_file() and '"_argv"' in path.read_text(encoding="utf-8", errors="replace")


def refuse_run(out_dir: Path, resume: bool) -> None:
    """ValueError for a run where there must be none, FileNotFoundError for none to be resumed."""
    holds_run = (out_dir / "metrics.jsonl").exists()
    if resume and not holds_run and not restarts():
        raise FileNotFoundError(f"--resume expects a run in --out_dir {out_dir}; none there")
    if holds_run and not resume:
        raise ValueError(f"--out_dir {out_dir} holds a run; pass --resume or another folder")


def write_run_config(config: Any, out_dir: Path, **chosen: Any) -> None:
    """config.json: every field, and how the run was started (names with an underscore).

    chosen: what was made of fields that leave a choice, such as the device.
    """
    about = {f"_{name}": value for name, value in chosen.items()} | {
        "_argv": sys.argv,
        "_commit": git_commit(),
        "_python": sys.version.split()[0],
        "_versions": {name: version(name) for name in PACKAGES},
        "_threads": torch.get_num_threads(),
        "_world_size": world_size(),
    }
    text = json.dumps({**to_json(config), **about}, indent=2)
    write_text(out_dir / "config.json", text + "\n")


def write_text(file: Path, text: str) -> None:
    """Write beside the file and rename, so that a crash leaves the old file or the new one."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def lock(out_dir: Path, resume: bool = False) -> TextIO:
    """`hold` for a run folder; ValueError also where another run has had it meanwhile."""
    file = hold(out_dir / ".lock", f"--out_dir {out_dir}", "folder")
    refuse_run(out_dir, resume)
    return file


def hold(path: Path, what: str, kind: str) -> TextIO:
    """Keep other runs from `what`, a file or a folder, as long as the file this returns is open.

    Raises ValueError where another run has it; a run that has died leaves it free.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"{what} is in use by another run ({file.read().strip()}); pass another {kind}, or "
            "wait until that one has ended"
        ) from None
    if not os.fstat(file.fileno()).st_nlink:  # who had it has just ended, and removed it
        file.close()
        return hold(path, what, kind)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def git_commit() -> str | None:
    """The commit of this code, with a plus sign where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory_gb(device: str) -> float:
    """The most memory this process has held on the device so far, in 10^9 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ------------------------------------------------------------------------------------------------
# interrupts


class Interrupt:
    """The first Ctrl-C or SIGTERM asks the loop to finish its step; the second stops at once."""

    def __init__(self) -> None:
        self.asked = 0  # the signal
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self.handle) for number in numbers}

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self.restore()
        if is_main():
            os.write(2, b"\nfinishing this step, then saving; once more stops at once\n")
