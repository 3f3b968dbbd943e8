"""The claims of claims.json, and the rules that a file of claims is held to.

pytest tests/test_claims.py
"""

import json
import math

import pytest

from eval.claims import claims_for, count_named, read_claims


def spl(tau) -> dict:
    return {"family": "spl", "tau": tau, "beta": 0.1}


def a_test(kind="difference", metric="entropy", **more) -> dict:
    """SPL at tau 2 against tau 1, unless told otherwise; None leaves a key out."""
    test = {"kind": kind, "metric": metric, "a": spl(2), "b": spl(1), "expected": ">",
            "threshold": 0, "why": "by hand", **more}  # fmt: skip
    return {key: value for key, value in test.items() if value is not None}


def a_claim(*tests, **more) -> dict:
    return {"id": "one", "paper": "ours", "statement": "So it is.", "process": "verdict",
            "rule": "Fixed.", "needs_seeds": 3, "tests": list(tests), **more}  # fmt: skip


def write(path, *claims) -> None:
    path.write_text(json.dumps({"claims": claims}), encoding="utf-8")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"kind": "slope"}, "claim 1 .one., test 2: kind: expected one of value"),
        ({"expected": ">="}, "expected: expected <, > or =, got '>='"),
        ({"threshold": "0"}, "threshold: expected a number"),
        ({"threshold": True}, "threshold: expected a number"),
        ({"threshold": math.inf}, "Infinity is not a JSON value"),
        ({"metric": "pass@0"}, "metric: expected pass@K"),
        ({"why": None}, "expected why"),
        ({"b": None}, "test 2: expected a `b` in a difference test"),
        ({"x": "tau"}, "test 2: expected no `x` in a difference test"),
        ({"expected": "="}, "test 2: expected a `margin` in a difference test"),
        ({"margin": 1}, "test 2: expected no `margin` in a difference test"),
        ({"kind": "matched"}, "test 2: expected a `at` in a matched test"),
        ({"metric_b": "pass@1"}, "metric_b is for tests of best"),
        ({"any": False}, "any: expected true"),
        ({"any": True, "expected": "=", "margin": 1}, "any: expected true"),
        ({"a": {"tau": 1}}, "a: expected family"),
        ({"a": {"family": "spl", "taus": 1}}, "a: unknown taus"),
        ({"a": {"family": "spl", "tau": "1"}}, "a: tau: expected numbers"),
        ({"b": {"family": []}}, "b: family: expected texts"),
        ({"b": "spl"}, "b: expected an object"),
        ({"kind": "samples"}, "samples: expected pass@K"),
        ({"note": "x"}, "unknown note"),
    ],
)
def test_malformed_tests(tmp_path, test, message) -> None:
    file = tmp_path / "claims.json"
    write(file, a_claim(a_test(), a_test(**test)))
    with pytest.raises(ValueError, match=f"claims.json: .*{message}"):
        read_claims(file)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"paper": "DPO"}, "paper: expected SPL, H-DPO, ours, got 'DPO'"),
        ({"needs_seeds": 0}, "needs_seeds: expected 1 or more"),
        ({"needs_plateau": 1}, "needs_plateau: expected true or false"),
        ({"tests": []}, "expected `tests`"),
        ({"statement": 3}, "statement: expected a text"),
        ({"verdict": "holds"}, "unknown verdict"),
        ({"plan": "small"}, "expected either `process` or `plan`"),
        ({"changed": 1}, "changed: expected a text"),
        ({"premise": {}}, "premise: expected a, expected, kind"),
    ],
)
def test_malformed_claims(tmp_path, claim, message) -> None:
    file = tmp_path / "claims.json"
    write(file, a_claim(a_test()) | claim)
    with pytest.raises(ValueError, match=f"claims.json: claim 1.*{message}"):
        read_claims(file)


def test_malformed_files(tmp_path) -> None:
    file = tmp_path / "claims.json"
    write(file, a_claim(a_test()), a_claim(a_test()))
    with pytest.raises(ValueError, match="expected ids that differ, got one"):
        read_claims(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="expected an object with `claims`"):
        read_claims(file)
    write(file, "SPL holds")
    with pytest.raises(ValueError, match="claim 1: expected an object, got a text"):
        read_claims(file)


def test_the_claims_cover_both_papers() -> None:
    assert all(claim["needs_seeds"] >= 5 for claim in read_claims())
    claims = claims_for("full")
    assert {claim["paper"] for claim in claims} == {"SPL", "H-DPO", "ours"}
    assert {claim["process"] for claim in claims} == {"verdict", "population"}
    theory = {"spl-proportional", "spl-majority", "spl-log-odds"}
    for claim in claims:  # theory has an optimum for coins alone, and speaks of runs that reach it
        if claim["id"] in theory:
            assert claim["process"] == "population" and claim["needs_plateau"]


def test_every_combination_of_values_is_a_setting() -> None:
    assert count_named({"family": "spl", "tau": [1, 2], "beta": [0.1, 0.2, 0.3]}) == 6
    assert count_named({"family": "spl", "tau": [1, 2, 4], "beta": 0.1}) == 3
    assert count_named({"family": "spl", "tau": 1}) == 1
