"""What a check finds: one line with its verdict, and what to mend where it does not pass."""

from collections.abc import Sequence
from dataclasses import dataclass

PASS, NOTE, FAIL = "pass", "note", "fail"  # a note stops nothing
ROW = "{:4}  {:24}  {:38}  {:28}  {}"
HEADER = ROW.format("", "invariant", "found", "expected", "tolerance")


@dataclass(frozen=True)
class Finding:
    name: str  # of the invariant
    verdict: str  # PASS, NOTE or FAIL
    found: str
    expected: str
    tolerance: str
    mend: str  # what to do where it does not pass

    def __str__(self) -> str:
        line = ROW.format(self.verdict, self.name, self.found, self.expected, self.tolerance)
        return line if self.verdict == PASS else f"{line}\n      -> {self.mend}"


def count_finding(
    name: str, bad: Sequence[str], total: int, things: str, mend: str, share: float = 0.0
) -> Finding:
    """How many of `total` things are not as they should be.

    bad: the file:line of each; share: up to it they are a note, beyond it a failure.
    """
    verdict = PASS if not bad else NOTE if len(bad) <= share * total else FAIL
    tolerance = {0.0: "none", 0.5: "half, as a note", 1.0: "all, as a note"}[share]
    found = f"{len(bad)} of {total} {things}"
    return Finding(name, verdict, found, "0", tolerance, f"{bad[0]}: {mend}" if bad else "")


def error_finding(name: str, error: float, tolerance: float, of: str, mend: str) -> Finding:
    """How far a number is from what it should be; an error that is no number fails.

    of: the two things that should be equal
    """
    verdict = PASS if error <= tolerance else FAIL
    return Finding(name, verdict, f"{error:.1e}", of, f"{tolerance:.0e}", mend)
