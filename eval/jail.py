"""What confines a program from inside: a script that locks itself in and then runs foreign code.

eval.sandbox starts it as `python -I -S -B eval/jail.py`, with a job, a literal, as the first line
of its input; it needs the standard library alone. The process that starts enters namespaces of its
own and forks; the child gives up its privileges, takes its limits, and plays one of two roles:

    serve   run a program, then answer calls of its function over a pipe
    check   run the tests of a benchmark on a function that sends its calls over that pipe

The parent waits for the end of its input, which comes when whoever started it closes the pipe or
dies, and kills the child and with it everything in the namespaces. Calls and answers are Python
literals, one a line: what comes back is data of built-in types, never an object of the program.
Only values do: tests that expect an exception, or that catch everything, are not supported.
"""

import ast
import ctypes
import json
import os
import random
import re
import resource
import signal
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

LINE_BYTES = 10 * 2**20  # of a call or of an answer, at most; a list of a million numbers fits
FILE_BYTES = 2**20  # of a file that a program writes, at most
FOLDER_BYTES = 2**24  # of all the files in its folder, which stand in memory
DETAIL = 200  # characters of an explanation, at most
FLAT = re.compile(  # a call or a value, of numbers and lists of numbers, as to_literal writes it
    r"(\((?:'value', )?)(?=[-0-9\[])([-+.e0-9, ]*(?:\[[-+.e0-9, ]*\][-+.e0-9, ]*)*), \)\n?"
)

# ---------------------------------------------------------------------------------------------
# values <-> literals
# ---------------------------------------------------------------------------------------------


def to_literal(value: object) -> str:
    """The value as a literal; what is of a subclass is written as the built-in type it extends.

    A Counter travels as the dict that it equals. TypeError for what no literal says.
    """
    if value is None:
        return "None"
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, dict):
        pairs = (f"{to_literal(k)}: {to_literal(v)}" for k, v in dict.items(value))
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_literal, list.__iter__(value))) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{to_literal(item)}, " for item in tuple.__iter__(value)) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(map(to_literal, value)) + "}" if value else "set()"
    raise TypeError(f"a {type(value).__name__} is no literal")


def from_literal(text: str) -> Any:
    """The value of a literal, with `nan` and `inf` for the floats; ValueError for anything else.

    json reads a list of a million integers in 1/35 of the time and 1/20 of the memory.
    """
    try:
        if flat := FLAT.fullmatch(text):
            with suppress(ValueError):
                values = json.loads(f"[{flat[2]}]")
                return ("value", *values) if "value" in flat[1] else tuple(values)
        tree = ast.parse(text, mode="eval")
        if "nan" in text or "inf" in text:
            tree = NameFloats().visit(tree)
        return ast.literal_eval(tree)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected a literal, got {text[:40]!r}") from error


class NameFloats(ast.NodeTransformer):
    """The names nan and inf as the constants that repr means by them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node


def send(pipe: BinaryIO, value: object) -> None:
    pipe.write(to_literal(value).encode() + b"\n")
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """The next value; EOFError when the other side has ended, ValueError if it sent no literal."""
    line = pipe.readline(LINE_BYTES)
    if not line:
        raise EOFError("the program has ended")
    if not line.endswith(b"\n"):
        raise ValueError(f"an answer of {LINE_BYTES} bytes or more, or one cut off")
    return from_literal(line.decode())


# ---------------------------------------------------------------------------------------------
# the two roles
# ---------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:DETAIL]


def reason_of(error: BaseException) -> str:
    reasons = {SyntaxError: "syntax", MemoryError: "memory"}
    return next((name for kind, name in reasons.items() if isinstance(error, kind)), "exception")


def serve(job: Mapping, calls: BinaryIO, answers: BinaryIO) -> None:
    """Run the program, then answer each call with ("value", what its function returned).

    Or with (reason, detail). An answer ahead of all calls says how the program itself ended.
    """
    module = types.ModuleType("program")  # not __main__: a main block is no part of the answer
    sys.modules["program"] = module  # where dataclasses look up what they are annotated with
    scope = module.__dict__
    try:
        exec(compile(job["program"], "program", "exec"), scope)
        function = scope[job["entry_point"]]
        answer = ("value", None)
    except BaseException as error:  # SystemExit too
        answer = (reason_of(error), explain(error))
    send(answers, answer)
    while True:
        arguments = receive(calls)
        try:
            answer = ("value", function(*arguments))
        except BaseException as error:
            answer = (reason_of(error), explain(error))
        try:
            send(answers, answer)
        except Exception as error:
            send(answers, ("no literal", explain(error)))


class Failure(BaseException):
    """Why a program has not passed: a reason of a word or two, and a detail.

    No Exception: raised in the midst of the tests, it goes past their `except Exception`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.verdict = (reason, detail[:DETAIL])


class Candidate:
    """The program's function as the tests see it: a call is a question over the pipe."""

    def __init__(self, calls: BinaryIO, answers: BinaryIO) -> None:
        self.calls, self.answers = calls, answers
        self.arguments, self.value = None, None  # of the last call

    def __call__(self, *arguments: object, **named: object) -> object:
        self.arguments, self.value = arguments, None
        if named:
            raise Failure("broken", f"expected arguments by position, got {', '.join(named)}=")
        try:
            send(self.calls, arguments)
        except (TypeError, ValueError) as error:
            raise Failure("broken", f"arguments of the tests: {error}") from None
        except OSError:
            raise Failure("died", f"{self.last_call()}: the program has ended") from None
        self.value = self.receive_value()
        return self.value

    def receive_value(self) -> object:
        try:
            kind, value = receive(self.answers)
        except (EOFError, OSError) as error:
            raise Failure("died", f"{self.last_call()}: {error}") from None
        except (ValueError, TypeError) as error:
            raise Failure("no literal", f"{self.last_call()}: {error}") from None
        if kind == "value":
            return value
        # a program may send any word, `passed` and `broken` among them: these are taken from it
        reason = kind if kind in ("exception", "syntax", "memory") else "no literal"
        raise Failure(reason, f"{self.last_call()}: {value}")

    def last_call(self) -> str:
        if self.arguments is None:
            return "before any call"
        arguments = ", ".join(map(repr, self.arguments))
        return f"called with ({arguments[: DETAIL // 2]})"


def check(job: Mapping, calls: BinaryIO, answers: BinaryIO) -> tuple[str, str]:
    """(reason, detail) of a benchmark's tests on the function behind the pipe.

    job["reference"] is the benchmark's own program: tests may call its helpers, and its function as
    `reference`. Nothing in this process ever comes from the program that is tested.
    """
    candidate = Candidate(calls, answers)
    try:
        own: dict[str, Any] = {"__name__": "reference"}
        exec(compile(job["reference"], "reference", "exec"), own)
        entry_point = job["entry_point"]
        tests = {**own, "reference": own[entry_point], entry_point: candidate}
        exec(compile(job["tests"], "tests", "exec"), tests)
        run = tests["check"]
    except (Exception, Failure) as error:
        return "broken", explain(error)
    try:
        candidate.receive_value()  # how the program itself ended
        run(candidate)
    except Failure as failure:
        return failure.verdict
    except AssertionError:
        return "assertion", f"{candidate.last_call()}, got {candidate.value!r}"[:DETAIL]
    except Exception as error:  # the tests stumble over a value that is none of theirs
        return "exception", f"{candidate.last_call()}, in the tests: {explain(error)}"[:DETAIL]
    return "passed", ""


# ---------------------------------------------------------------------------------------------
# confinement
# ---------------------------------------------------------------------------------------------

# Names and values of include/uapi/linux/{sched,mount,prctl,capability}.h.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, RDONLY_NOSUID_NODEV = 442, -100, 0x8000, 7
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION_3 = 1, 38, 0x20080522


def libc(function: str, *arguments: object) -> None:
    """Call a function of the C library with texts and long integers; OSError where it fails."""
    given = [os.fsencode(a) if isinstance(a, str) else a for a in arguments]
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in given]
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*given) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def enter_namespaces(folder: str, visible: list[str]) -> None:
    """Leave the network, the processes and the files of the machine behind.

    folder: an empty one, over which the new file system is mounted. Its root holds the `visible`
    folders, read-only, and /program, empty, where this process then is. The next fork is the first
    process of a new count. Whoever is not root needs a user namespace too.
    """
    uid, gid, root = os.getuid(), os.getgid(), f"{folder}/root"
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    libc("unshare", spaces | (CLONE_NEWUSER if uid else 0))
    if uid:
        map_user(uid, gid)
    libc("mount", None, "/", None, MS_REC | MS_PRIVATE, None)
    mount_tmpfs(folder, "size=1m,mode=755")
    for path in visible:
        os.makedirs(root + path)
        libc("mount", path, root + path, None, MS_BIND | MS_REC, None)
    os.mkdir(f"{root}/program")
    attributes = (ctypes.c_uint64 * 4)(RDONLY_NOSUID_NODEV)  # these are set, none is cleared
    libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, folder, AT_RECURSIVE, attributes, 32)
    mount_tmpfs(f"{root}/program", f"size={FOLDER_BYTES},mode=1777")
    os.chdir(folder)
    libc("pivot_root", ".", ".")
    libc("umount2", ".", MNT_DETACH)  # the old root, which lies over the new one
    os.chroot("root")  # inside a chroot the kernel grants no user namespace
    os.chdir("/program")


def map_user(uid: int, gid: int) -> None:
    """Be the same user and group inside a new user namespace."""
    lines = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, line in lines.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def mount_tmpfs(folder: str, options: str) -> None:
    libc("mount", "tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)


def give_up_privileges(user: int | None) -> None:
    """Become `user` if given; no capability, none to be had by exec, and no life without parent."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        libc("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3), (ctypes.c_uint32 * 6)())
        libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def set_limits(memory_bytes: int, cpu_seconds: int) -> None:
    """Soft and hard alike; of processes and threads there is none but this one."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def run_confined(job: Mapping, null: int) -> None:
    """The child: whatever goes wrong before the role begins is said on stderr."""
    give_up_privileges(job["user"])
    set_limits(job["memory_bytes"], job["cpu_seconds"])
    calls, answers = job["pipes"]
    verdict = os.fdopen(os.dup(1), "wb")
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if job["packages"]:
        sys.path += job["packages"]
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy would start threads, which are forbidden
    if job["role"] == "serve":
        verdict.close()
        serve(job, os.fdopen(calls, "rb"), os.fdopen(answers, "wb"))
    else:
        random.seed(0)  # tests that draw give one verdict, always
        send(verdict, check(job, os.fdopen(calls, "wb"), os.fdopen(answers, "rb")))


def main() -> None:
    os.setsid()  # a Ctrl-C is not for us
    if hasattr(sys, "set_int_max_str_digits"):  # from Python 3.10.7 on
        sys.set_int_max_str_digits(0)  # integers travel as literals of any length
    job = from_literal(sys.stdin.buffer.readline().decode())
    null = os.open("/dev/null", os.O_RDWR)  # before it is out of sight
    if job["namespaces"]:
        enter_namespaces(os.getcwd(), job["visible"])
    child = os.fork()
    if child == 0:
        try:
            run_confined(job, null)
        except BaseException as error:
            os.write(2, f"{explain(error)}\n".encode())
        finally:
            os._exit(0)
    os.closerange(1, max(*job["pipes"], null) + 1)  # so that a pipe ends with the child
    sys.stdin.buffer.read()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.killpg(0, signal.SIGKILL)  # where there are no namespaces, the child may have left some


if __name__ == "__main__":
    main()
