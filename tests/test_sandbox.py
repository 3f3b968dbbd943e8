"""eval/sandbox.py: each known escape from a sandbox, tried for real, and what it gets.

The tests of these programs want 42 from f(). A program that finds another way to pass, or that gets
at what lies outside, fails the test here. What needs namespaces skips where there are none.

    python -m pytest tests/test_sandbox.py
"""

import ctypes
import os
import socket
import time
from pathlib import Path

import pytest

from eval import sandbox as sandbox_module
from eval.sandbox import (
    Sandbox,
    Verdict,
    make_jobs,
    open_sandbox,
    outermost,
    run_tests,
    try_out,
    user_of_program,
)

REFERENCE = "def f():\n    return 42\n"
TESTS = "def check(candidate):\n    assert candidate() == 42\n"


@pytest.fixture(scope="module", params=["namespaces", "limits alone"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return contained(20) if request.param == "namespaces" else Sandbox(20, 512, namespaces=False)


def contained(time_limit: float) -> Sandbox:
    try:
        return try_out(Sandbox(time_limit, 512, namespaces=True))
    except OSError as error:
        return pytest.skip(f"this machine allows no namespaces: {error}")


def attempt(sandbox: Sandbox, program: str) -> Verdict:
    return run_tests(sandbox, program, "f", REFERENCE, TESTS)


# ---------------------------------------------------------------------------------------------
# the verdict
# ---------------------------------------------------------------------------------------------


def test_the_right_value_passes(sandbox: Sandbox) -> None:
    assert attempt(sandbox, REFERENCE) == ("passed", "")


ALWAYS_EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    def __hash__(self): return 42
    def __repr__(self): return "42"
def f(): return Equal()
"""
WALK_THE_STACK = """
import sys
def f():
    frame, names = sys._getframe(), set()
    while frame:
        names |= set(frame.f_globals) | set(frame.f_locals)
        frame.f_globals["verdict"] = ("passed", "")
        frame = frame.f_back
    return names & {"tests", "reference", "run"}
"""
SEARCH_THE_HEAP = """
import gc
def f():
    mark = " ".join(("assert", "candidate"))
    dicts = [list(d.values()) for d in gc.get_objects() if isinstance(d, dict)]
    return [text for d in dicts for text in d if isinstance(text, str) and mark in text]
"""
PATCH_THE_JAIL = """
import __main__
__main__.check = lambda *given: ("passed", "")
__main__.to_literal = lambda value: "('passed', '')"
def f(): return 1
"""
WRITE_EVERYWHERE = """
import os
for descriptor in range(64):
    try: os.write(descriptor, b"('passed', '')\\n" * 9)
    except OSError: pass
def f(): return 1
"""
FORGERIES = {
    "equals everything": (ALWAYS_EQUAL.format(base=""), "no literal", "a Equal is no literal"),
    "an int that does": (ALWAYS_EQUAL.format(base="(int)"), "assertion", "got 0"),
    "walks the stack": (WALK_THE_STACK, "assertion", "got set()"),
    "searches the heap": (SEARCH_THE_HEAP, "assertion", "got []"),
    "patches the jail": (PATCH_THE_JAIL, "no literal", ""),
    "writes a verdict": (WRITE_EVERYWHERE, "no literal", ""),
    "ends at once": ("import os\nos._exit(0)", "died", "the program has ended"),
    "ends in the call": ("import os\ndef f(): os._exit(0)", "died", "the program has ended"),
    "exits": ("import sys\ndef f(): sys.exit(0)", "exception", "SystemExit: 0"),
    "exits before": ("import sys\nsys.exit(0)", "exception", "before any call: SystemExit: 0"),
    "crashes": ("import ctypes\ndef f(): ctypes.string_at(0)", "died", "the program has ended"),
    "raises": ("def f(): raise AssertionError", "exception", "AssertionError"),
    "no Unicode": ("def f(): raise ValueError('\\ud800')", "exception", "ValueError: \\ud800"),
    "no function": ("def g(): return 42", "exception", "KeyError: 'f'"),
    "no Python": ("def f(: return 42", "syntax", "SyntaxError"),
    "a generator": ("def f(): yield 42", "no literal", "a generator is no literal"),
    "reads the input": ("def f(): return input()", "exception", "EOFError"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(sandbox: Sandbox, name: str) -> None:
    program, reason, detail = FORGERIES[name]
    verdict = attempt(sandbox, program)
    assert verdict.reason == reason, verdict
    assert detail in verdict.detail


def test_tests_that_do_not_run_are_the_data_s_mistake(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="the tests of f do not run: ModuleNotFoundError"):
        run_tests(sandbox, REFERENCE, "f", REFERENCE, "import no_such_module")


def test_tests_that_end_without_a_verdict_pass_nothing(sandbox: Sandbox) -> None:
    tests = "import os\ndef check(candidate):\n    os._exit(0)\n"
    verdict = run_tests(sandbox, REFERENCE, "f", REFERENCE, tests)
    assert verdict == ("died", "the tests ended without a verdict")


def test_tests_that_draw_give_one_verdict(sandbox: Sandbox) -> None:
    tests = "import random\ndef check(candidate):\n    drawn = random.random()\n"
    tests += "    assert drawn == random.Random(0).random()\n"
    assert run_tests(sandbox, REFERENCE, "f", REFERENCE, tests) == ("passed", "")


# ---------------------------------------------------------------------------------------------
# the limits
# ---------------------------------------------------------------------------------------------

LIMITS = """
import ctypes, resource
def f():
    names = "AS CPU FSIZE NOFILE NPROC CORE".split()
    limits = [resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names]
    libc, signal = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG
    return limits, libc.prctl(39, 0, 0, 0, 0), signal.value  # PR_GET_NO_NEW_PRIVS
"""


def test_the_limits_of_a_program(sandbox: Sandbox) -> None:
    """512 MB, 20 s and one more for the clock to be first, 1 MB of a file, 64 of them, no process,
    no core, soft and hard alike; no privileges by exec; killed when its parent dies."""
    limits = [(n, n) for n in (512 * 2**20, 21, 2**20, 64, 0, 0)]
    tests = f"def check(candidate):\n    assert candidate() == {(limits, 1, 9)}\n"
    assert run_tests(sandbox, LIMITS, "f", REFERENCE, tests) == ("passed", "")


def test_the_limits_that_are_asked_for() -> None:
    serving, checking = make_jobs(Sandbox(19.5, 512, namespaces=False), "", "f", "", "")
    assert serving["cpu_seconds"] == checking["cpu_seconds"] == 21
    assert (serving["memory_bytes"], checking["memory_bytes"]) == (512 * 2**20, 2048 * 2**20)


def test_root_becomes_nobody_with_no_group(sandbox: Sandbox) -> None:
    if user_of_program(sandbox) is None:
        pytest.skip("not root, or only root can read Python's library")
    program = "import os\ndef f(): return os.getuid(), os.getgid(), os.getgroups()"
    groups = os.getgroups()
    os.setgroups([*groups, 100])  # one to give up
    try:
        verdict = attempt(sandbox, program)
    finally:
        os.setgroups(groups)
    assert verdict.detail == "called with (), got (65534, 65534, [])"


def test_who_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root stays root where only root can read Python's library, and all of it is on view."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    alone, inside = (Sandbox(1, 64, namespaces=there) for there in (False, True))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "__file__", str(private / "os.py"))
    assert (user_of_program(alone), user_of_program(inside)) == (None, 65534)
    monkeypatch.setattr(os, "__file__", "/usr/os.py")
    assert user_of_program(alone) == 65534
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert user_of_program(alone) is user_of_program(inside) is None


FLOOD = "import os\ndef f():\n    while True: os.write({descriptor}, b'x' * 10**6)"
IGNORE_SIGNALS = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
def f():
    while True:
        try:
            while True: pass
        except BaseException: pass
"""
OVERRUNS = {
    "sleeps": "import time\ndef f(): time.sleep(60)",
    "ignores SIGTERM": IGNORE_SIGNALS,
    "prints for ever": FLOOD.format(descriptor=1),
    "complains for ever": FLOOD.format(descriptor=2),
}


@pytest.mark.parametrize("name", OVERRUNS)
def test_the_clock_ends_what_does_not_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of 0.5 s; with the verdict no process is left that has our copy of the jail."""
    jail = tmp_path / "jail.py"
    jail.write_text(sandbox_module.JAIL.read_text())
    monkeypatch.setattr(sandbox_module, "JAIL", jail)
    sandbox, start = contained(0.5), time.monotonic()
    assert attempt(sandbox, OVERRUNS[name]) == ("timeout", "more than 0.5 s")
    assert time.monotonic() - start < 5
    lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not any(str(jail).encode() in line for line in lines)


FLOOD_PIPES = """
import os
def f():
    for descriptor in range(3, 64):
        try: os.write(descriptor, b"x" * 20_000_000)
        except OSError: pass
"""
GROW = """
def f():
    kept = []
    while True: kept.append(bytearray(10**6))
"""
WRITE_MUCH = """
def f():
    with open("big", "wb") as file: file.write(bytes(10**7))
"""
DEEP = """
def f():
    value = []
    for _ in range(10**5): value = [value]
    return value
"""
EXCESSES = {
    "5 GB at once": ("def f(): return len(bytearray(5 * 10**9))", "memory", "MemoryError"),
    "5 GB by and by": (GROW, "memory", "MemoryError"),
    "a file of 10 MB": (WRITE_MUCH, "exception", "File too large"),
    "100 open files": ("def f(): [open(str(i), 'w') for i in range(100)]", "exception", "Too many"),
    "a value of 20 MB": ("def f(): return '4' * 20_000_000", "no literal", "or one cut off"),
    "20 MB on every pipe": (FLOOD_PIPES, "no literal", "or one cut off"),
    "a value that nests": (DEEP, "no literal", "RecursionError"),
}


@pytest.mark.parametrize("name", EXCESSES)
def test_an_excess_is_refused(sandbox: Sandbox, name: str) -> None:
    program, reason, detail = EXCESSES[name]
    verdict = attempt(sandbox, program)
    assert verdict.reason == reason, verdict
    assert detail in verdict.detail


# ---------------------------------------------------------------------------------------------
# the namespaces
# ---------------------------------------------------------------------------------------------

FORK_BOMB = "import os\ndef f():\n    while True: os.fork()"
SPAWN = "import os, sys\ndef f(): os.posix_spawn(sys.executable, ['python'], {})"
RELOAD = "import importlib, os\ndef f(): return importlib.reload(os).fork()"
KILL_ALL = "import os\ndef f(): os.kill(-1, 9)"
ESCALATE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def f():
    tries = [libc.unshare(0x10000000), libc.setuid(0), libc.setns(0, 0), libc.chroot(b".")]
    return tries + [libc.mount(b"proc", b"/program", b"proc", 0, None)]
"""
SURROUNDINGS = """
import os
def f():
    seen = set(os.listdir("/")) - {"lib", "lib64", "usr"}
    above = os.path.dirname(os.path.dirname(os.__file__))
    return seen - {above.split("/")[1]}, os.listdir("."), os.getpid(), list(os.environ)
"""
MOUNTS = "import os\ndef f(): return [os.statvfs(p).f_flag & 7 for p in ('/', os.__file__, '.')]"
FILL = """
def f():
    for i in range(17):
        with open(str(i), "wb") as file: file.write(bytes(2**20))
"""
CONNECT = "import socket\ndef f(): socket.create_connection(('127.0.0.1', PORT), 5)"
ESCAPES = {
    "a fork bomb": (FORK_BOMB, "exception", "BlockingIOError"),
    "posix_spawn": (SPAWN, "exception", "BlockingIOError"),
    "a module reloaded": (RELOAD, "exception", "BlockingIOError"),
    "a thread": ("import _thread\ndef f(): _thread.start_new_thread(f, ())", "exception", "thread"),
    "kill everyone": (KILL_ALL, "exception", "ProcessLookupError"),
    "/etc/passwd": ("def f(): return open('/etc/passwd').read()", "exception", "FileNotFoundError"),
    "this repository": (f"def f(): open({__file__!r})", "exception", "FileNotFoundError"),
    "/proc": ("import os\ndef f(): os.listdir('/proc')", "exception", "FileNotFoundError"),
    "writes above": ("def f(): open('../file', 'w')", "exception", "Read-only file system"),
    "writes a module": ("import os\ndef f(): os.utime(os.__file__)", "exception", "Read-only"),
    "mounts": (MOUNTS, "assertion", "got [7, 7, 6]"),  # read-only 1, no set-user-ID 2, no devices 4
    "fills its folder": (FILL, "exception", "No space left on device"),
    "privileges": (ESCALATE, "assertion", "got [-1, -1, -1, -1, -1]"),
    "looks around": (SURROUNDINGS, "assertion", "got ({'program'}, [], 1, ['LC_CTYPE'])"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_is_there_to_escape_to(name: str) -> None:
    program, reason, detail = ESCAPES[name]
    verdict = attempt(contained(20), program)
    assert verdict.reason == reason, verdict
    assert detail in verdict.detail


def test_no_socket_reaches_loopback() -> None:
    """A server listens here; without a network namespace its port would answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        verdict = attempt(contained(20), CONNECT.replace("PORT", port))
    assert verdict.reason == "exception"
    assert "Network is unreachable" in verdict.detail


def test_no_message_queue_is_shared_with_the_machine() -> None:
    """One stands here that anyone may use; without an IPC namespace its key would give its id."""
    libc, key = ctypes.CDLL(None, use_errno=True), 42 + os.getpid()
    queue = libc.msgget(key, 0o1666)  # IPC_CREAT
    if queue < 0:
        pytest.skip(f"this machine has no message queues: {os.strerror(ctypes.get_errno())}")
    try:
        program = f"import ctypes\ndef f(): return ctypes.CDLL(None).msgget({key}, 0)"
        assert attempt(contained(20), program).detail == "called with (), got -1"
    finally:
        libc.msgctl(queue, 0, None)  # IPC_RMID


def test_a_program_may_use_its_own_folder() -> None:
    program = "def f():\n    open('a', 'w').write('42')\n    return int(open('a').read())"
    assert attempt(contained(20), program) == ("passed", "")


NODE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Node:
    value: int
    next: Node | None = None

def f():
    return Node(42).value
"""


def test_programs_find_the_module_that_they_are_in(sandbox: Sandbox) -> None:
    assert attempt(sandbox, NODE) == ("passed", "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [("import numpy as np", "passed"), ("np = __import__('num' 'py')", "exception")],
)
def test_a_program_that_names_numpy_has_it(sandbox: Sandbox, line: str, reason: str) -> None:
    program = f"{line}\ndef f():\n    return int(np.eye(6).sum() * 7)\n"
    assert attempt(sandbox, program).reason == reason


def test_integers_of_any_length_are_literals(sandbox: Sandbox) -> None:
    power = "def f(n):\n    return 10 ** n\n"
    tests = "def check(candidate):\n    assert candidate(5000) == reference(5000)\n"
    assert run_tests(sandbox, power, "f", power, tests) == ("passed", "")


def test_a_slow_start_is_no_reason_to_go_without_namespaces(monkeypatch) -> None:
    """The limit of a program is not that of the try-out."""
    limits = []

    def run(sandbox: Sandbox, *args: str) -> Verdict:
        limits.append(sandbox.time_limit)
        return Verdict("passed", "")

    monkeypatch.setattr(sandbox_module, "run_tests", run)
    assert open_sandbox(0.1, 256) == Sandbox(0.1, 256, namespaces=True)
    assert open_sandbox(60, 256).time_limit == 60 and limits == [30, 60]


def test_a_machine_that_runs_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "run_tests", lambda *args: Verdict("memory", "too little"))
    with pytest.raises(OSError, match="does not run `return 1`: memory, too little"):
        open_sandbox(3, 64)


def test_what_is_not_contained_is_said_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(sandbox: Sandbox) -> Sandbox:
        if sandbox.namespaces:
            raise OSError("unshare: Operation not permitted")
        return sandbox

    monkeypatch.setattr(sandbox_module, "try_out", refuse)
    assert open_sandbox(3, 256) == Sandbox(3, 256, namespaces=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "NOT CONTAINED" in said
    for word in ("network", "files", "processes", "unshare: Operation not permitted"):
        assert word in said
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for user, limits in ((None, "time and file size are"), (65534, "the number of processes are")):
        monkeypatch.setattr(sandbox_module, "user_of_program", lambda _, user=user: user)
        open_sandbox(3, 256)
        assert f"{limits} limited" in capsys.readouterr().err
    monkeypatch.setattr(sandbox_module, "says_first", lambda _: False)  # another rank has said it
    open_sandbox(3, 256)
    assert capsys.readouterr().err == ""


def test_a_jail_that_cannot_be_set_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its complaint arrives whole, and no verdict is made of it."""
    monkeypatch.setattr(sandbox_module, "library_folders", lambda: ["/no/such/folder"])
    with pytest.raises(OSError, match="mount: No such file or directory"):
        attempt(Sandbox(20, 512, namespaces=True), REFERENCE)


def test_a_folder_inside_another_is_shown_once() -> None:
    folders = ["/usr/lib", "/lib", "/usr/lib/python3/numpy", "/usr/lib64", "/lib"]
    assert outermost(folders) == ["/lib", "/usr/lib", "/usr/lib64"]
