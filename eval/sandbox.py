"""Tests a program that nobody has read, with the verdict out of the program's reach.

    sandbox = open_sandbox(time_limit=10, memory_limit_mb=1024)
    run_tests(sandbox, program, "median", reference, tests)  # Verdict("passed", "")

Two fresh interpreters take part. One runs the program and answers calls of its function. The other
runs the tests, whose `candidate` sends the arguments over a pipe and gets a literal back; only this
one holds the pipe for the verdict. So objects that equal everything, walks up the stack, an early
exit or a patched module change nothing but the process that they are in.

Both are locked in by eval/jail.py: no network, no files but Python's library, numpy for those that
name it, and an empty folder, no other process, and limits on memory, time, file size and processes.
Where the machine does not allow namespaces only the limits hold, and `open_sandbox` says so loudly.
"""

import math
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy

from eval.jail import from_literal, to_literal
from model.parallel import says_first

JAIL = Path(__file__).with_name("jail.py")
NOBODY = 65534  # whom root becomes
START_SECONDS = 30.0  # for the first program, at least
TESTS_MEMORY_MB = 2048  # a literal takes some hundred times its length while it is parsed
REASONS = ("passed", "assertion", "exception", "syntax", "no literal", "memory", "timeout", "died")


@dataclass(frozen=True)
class Sandbox:
    time_limit: float  # seconds by the clock for a program and its tests
    memory_limit_mb: int  # address space of the program, in 2^20 bytes
    namespaces: bool  # no network, no files, no other processes: or nothing but limits


class Verdict(NamedTuple):
    reason: str  # one of REASONS
    detail: str  # the call that failed, or the message of an error


def open_sandbox(time_limit: float, memory_limit_mb: int) -> Sandbox:
    """The strongest sandbox of this machine, tried out; OSError where there is none."""
    try:
        return try_out(Sandbox(time_limit, memory_limit_mb, namespaces=True))
    except OSError as error:
        reason = str(error)
    sandbox = try_out(Sandbox(time_limit, memory_limit_mb, namespaces=False))
    user = "nobody" if user_of_program(sandbox) else f"user {os.getuid()}"
    limited = "memory, time and file size"
    if user != "user 0":  # the kernel counts no processes of root's
        limited = "memory, time, file size and the number of processes"
    warning = (
        f"WARNING: generated code is NOT CONTAINED on this machine. As {user}, it can use the "
        f"network, read and write that user's files, and reach that user's processes, those that "
        f"judge it among them; only {limited} are limited. The reason: {reason}"
    )
    if says_first(warning):
        print(warning, file=sys.stderr)
    return sandbox


def try_out(sandbox: Sandbox) -> Sandbox:
    """The sandbox, if it runs a program; a busy machine has time for the first start."""
    patient = replace(sandbox, time_limit=max(sandbox.time_limit, START_SECONDS))
    program = "import hashlib, math\n\ndef one():\n    return 1\n"
    tests = "def check(candidate):\n    assert candidate() == 1\n"
    verdict = run_tests(patient, program, "one", program, tests)
    if verdict.reason != "passed":
        raise OSError(f"the sandbox does not run `return 1`: {verdict.reason}, {verdict.detail}")
    return sandbox


def run_tests(
    sandbox: Sandbox, program: str, entry_point: str, reference: str, tests: str
) -> Verdict:
    """The verdict of `tests`, which define check(candidate), on the program's `entry_point`.

    reference: the benchmark's own program, with the helpers that its tests call and its function,
    which they find as `reference`. ValueError where the tests themselves do not run.
    """
    serving, checking = make_jobs(sandbox, program, entry_point, reference, tests)
    with ExitStack() as ends:
        (calls, call), (answers, answer) = pipe(ends), pipe(ends)
        with (
            confined(serving, (calls, answer)),
            confined(checking, (call, answers)) as checker,
        ):
            ends.close()  # a pipe ends with the process that holds it
            verdict = read_verdict(checker, sandbox.time_limit)
    if verdict.reason == "broken":
        raise ValueError(f"the tests of {entry_point} do not run: {verdict.detail}; mend --data")
    assert verdict.reason in REASONS, verdict
    return verdict


# ---------------------------------------------------------------------------------------------
# processes
# ---------------------------------------------------------------------------------------------


def make_jobs(
    sandbox: Sandbox, program: str, entry_point: str, reference: str, tests: str
) -> tuple[dict, dict]:
    """What eval/jail.py is told: once to serve the program, once to check it.

    The program's job holds nothing of the reference or the tests.
    """
    shared = {
        "entry_point": entry_point,
        "namespaces": sandbox.namespaces,
        "user": user_of_program(sandbox),
        "cpu_seconds": math.ceil(sandbox.time_limit) + 1,
    }
    serving = {
        "role": "serve",
        "program": program,
        "memory_bytes": sandbox.memory_limit_mb << 20,
        **libraries(program),
    }
    checking = {
        "role": "check",
        "reference": reference,
        "tests": tests,
        "memory_bytes": TESTS_MEMORY_MB << 20,
        **libraries(tests),
    }
    return shared | serving, shared | checking


def pipe(ends: ExitStack) -> tuple[int, int]:
    """A pipe (reading end, writing end), closed here with `ends`."""
    reading, writing = os.pipe()
    ends.callback(os.close, reading)
    ends.callback(os.close, writing)
    return reading, writing


@contextmanager
def confined(job: Mapping, pipes: tuple[int, int]) -> Iterator[subprocess.Popen]:
    """A locked-in process with these two ends of pipes; dead when the block is left.

    OSError where the jail could not be set up: nothing else is ever said on stderr.
    """
    command = [sys.executable, "-I", "-S", "-B", str(JAIL)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with TemporaryDirectory(prefix="jail-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)
        with subprocess.Popen(command, cwd=folder, env={}, pass_fds=pipes, **streams) as process:
            try:
                with suppress(BrokenPipeError):  # its complaint says more
                    process.stdin.write(to_literal({**job, "pipes": pipes}).encode() + b"\n")
                    process.stdin.flush()
                yield process
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()  # the jail kills what it holds, and ends
                complaint = process.stderr.read().decode(errors="replace").strip()
    if complaint:
        raise OSError(complaint.splitlines()[-1])


def read_verdict(checker: subprocess.Popen, time_limit: float) -> Verdict:
    ready, _, _ = select.select([checker.stdout], [], [], time_limit)
    if not ready:
        return Verdict("timeout", f"more than {time_limit:g} s")
    line = checker.stdout.readline()
    if not line:
        return Verdict("died", "the tests ended without a verdict")
    reason, detail = from_literal(line.decode())
    return Verdict(reason, detail.encode(errors="backslashreplace").decode())  # no half surrogates


# ---------------------------------------------------------------------------------------------
# what a jail shows, and to whom
# ---------------------------------------------------------------------------------------------


def library_folders() -> list[str]:
    """Where Python's library and the shared libraries that it loads are."""
    prefix = Path(sys.base_prefix)
    folders = [prefix / "lib", prefix / "lib64", "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    return [str(folder) for folder in folders if os.path.isdir(folder)]


def libraries(code: str) -> dict[str, list[str]]:
    """What code may import: Python's library, and numpy where it names that."""
    packages, numpy_code = numpy_folders() if "numpy" in code else ([], [])
    return {"packages": packages, "visible": outermost(library_folders() + numpy_code)}


def numpy_folders() -> tuple[list[str], list[str]]:
    """(what sys.path needs, what must be visible) to import numpy."""
    package = Path(numpy.__file__).parent
    libraries = package.with_name("numpy.libs")
    return [str(package.parent)], [str(f) for f in (package, libraries) if f.is_dir()]


def outermost(folders: list[str]) -> list[str]:
    """Without those that lie in another one."""
    folders = sorted(set(folders))
    return [f for f in folders if not any(Path(g) in Path(f).parents for g in folders)]


def user_of_program(sandbox: Sandbox) -> int | None:
    """Whom root becomes for the program: nobody, unless only root can read Python's library.

    In namespaces everyone can, since the folders above the library are others there.
    """
    if os.getuid() != 0:
        return None
    stdlib = Path(os.__file__)
    readable = all(folder.stat().st_mode & 0o001 for folder in stdlib.parents)
    return NOBODY if sandbox.namespaces or readable else None
