"""Verdicts of checks, and how they are printed.

pytest tests/test_findings.py
"""

import math

import pytest

from eval.findings import FAIL, HEADER, NOTE, PASS, count_finding, error_finding


@pytest.mark.parametrize(
    ("bad", "share", "verdict"),
    [
        (0, 0.0, PASS),
        (1, 0.0, FAIL),
        (0, 0.5, PASS),
        (5, 0.5, NOTE),
        (6, 0.5, FAIL),
        (10, 1.0, NOTE),
    ],
)
def test_a_share_is_a_note_and_more_a_failure(bad, share, verdict):
    """Of 10 things, up to and with 5 are half."""
    sources = [f"file:{i}" for i in range(bad)]
    finding = count_finding("name", sources, 10, "things", "mend it", share)
    assert (finding.verdict, finding.found) == (verdict, f"{bad} of 10 things")
    assert finding.mend == ("file:0: mend it" if bad else "")


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.0, PASS), (1e-3, PASS), (1.1e-3, FAIL), (math.nan, FAIL)]
)
def test_an_error_up_to_its_tolerance_passes(error, verdict):
    assert error_finding("name", error, 1e-3, "of", "mend it").verdict == verdict


def test_what_does_not_pass_says_what_to_mend():
    passed, failed = (error_finding("name", e, 1e-3, "of", "mend it") for e in (0.0, 1.0))
    assert str(passed).split() == ["pass", "name", "0.0e+00", "of", "1e-03"]
    line, mend = str(failed).splitlines()
    assert line.startswith("fail  name") and mend == "      -> mend it"
    assert line.index("1.0e+00") == HEADER.index("found") and "mend it" not in str(passed)
