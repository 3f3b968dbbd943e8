"""The claims that a study is to bear out or not: eval/claims.json, read and checked.

A claim speaks of one process of labels on the embedded task, or of one plan: its a and b may then
name a process each. Kinds of test; a and b select settings (family, setting, tau, alpha, beta,
process) among the rows of that process or plan, b may be missing where it is not used:

    value        the metric of a
    difference   the metric of a minus that of b, by seed and problem
    ratio        the metric of a over that of b, by seed
    spearman     rank correlation of the metric and x, over the settings of a
    samples      the fewest k for which pass@k of a reaches pass@K of b (metric: pass@K), over the
                 fewest with which b itself does
    matched      the metric of a minus that of b's settings, interpolated to where `at` is a's
    best         log of the x at which the metric is best among a's settings, minus the same of b's
                 (of metric_b, where that is given)

"any": true tests several settings a at once: yes if one of them says yes, no if all say no, each
with an interval of confidence 1 - 0.05 / (number of settings named), so that looking often does not
find more (Bonferroni). Whatever else a paper leaves open (which tau?) is fixed in the test, and the
claim's `rule` says how.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from data.reading import parse_json
from data.rows import check_text, describe
from eval.study_values import SELECTED, Selector, check_metric, split_metric

CLAIMS = Path(__file__).with_name("claims.json")
PAPERS = ("SPL", "H-DPO", "ours")
TEXTS = ("family", "setting", "process")  # keys of a selector whose values are texts
KINDS = {  # kind of test -> fewest settings of a and of b; 1: just one, 0: there is no b
    "value": (1, 0),
    "difference": (1, 1),
    "ratio": (1, 1),
    "spearman": (3, 0),
    "samples": (1, 1),
    "matched": (1, 2),
    "best": (2, 2),
}


def read_claims(path: str | Path = CLAIMS) -> list[dict]:
    """The claims of a file `{"about": text, "claims": [...]}`.

    Raises ValueError, naming file, claim and test, for what is malformed.
    """
    path = Path(path)
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
        raise ValueError(f"{path}: expected an object with `claims`, a list")
    claims = content["claims"]
    for i, claim in enumerate(claims, start=1):
        check_claim(claim, f"{path}: claim {i}")
    names = [claim["id"] for claim in claims]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: expected ids that differ, got {', '.join(sorted(repeated))}")
    return claims


def claims_for(plan: str) -> list[dict]:
    """The claims that a study of this plan can measure: its own, or those of the embedded task."""
    claims = read_claims()
    own = [claim for claim in claims if claim.get("plan") == plan]
    return own or [claim for claim in claims if "process" in claim]


def check_claim(claim: object, where: str) -> None:
    needed = {"id", "paper", "statement", "tests", "needs_seeds", "rule"}
    optional = {"process", "plan", "where", "needs_plateau", "premise", "changed"}
    check_keys(claim, needed, optional, where)
    where = f"{where} ({claim['id']})"
    if ("process" in claim) == ("plan" in claim):
        raise ValueError(f"{where}: expected either `process` or `plan`")
    texts = {"id", "paper", "where", "statement", "process", "plan", "rule", "changed"}
    for key in texts & claim.keys():
        check_text(claim[key], key, where)
    if claim["paper"] not in PAPERS:
        raise ValueError(f"{where}: paper: expected {', '.join(PAPERS)}, got {claim['paper']!r}")
    if type(claim["needs_seeds"]) is not int or claim["needs_seeds"] < 1:
        raise ValueError(f"{where}: needs_seeds: expected 1 or more, got {claim['needs_seeds']!r}")
    if type(claim.get("needs_plateau", False)) is not bool:
        raise ValueError(f"{where}: needs_plateau: expected true or false")
    if not isinstance(claim["tests"], list) or not claim["tests"]:
        raise ValueError(f"{where}: expected `tests`, a list of at least one")
    for i, test in enumerate(claim["tests"], start=1):
        check_test(test, f"{where}, test {i}")
    if "premise" in claim:
        check_test(claim["premise"], f"{where}, premise")


def check_test(test: object, where: str) -> None:
    needed = {"kind", "metric", "a", "expected", "threshold", "why"}
    check_keys(test, needed, {"b", "margin", "x", "at", "any", "metric_b"}, where)
    kind, expected = test["kind"], test["expected"]
    if kind not in KINDS:
        raise ValueError(f"{where}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if expected not in ("<", ">", "="):
        raise ValueError(f"{where}: expected: expected <, > or =, got {expected!r}")
    check_extras(test, where)
    for key in {"threshold", "margin"} & test.keys():
        if type(test[key]) not in (int, float):
            raise ValueError(f"{where}: {key}: expected a number, got {test[key]!r}")
    for key in {"why", "x"} & test.keys():
        check_text(test[key], key, where)
    for key in {"metric", "metric_b", "at"} & test.keys():
        check_metric(check_text(test[key], key, where), f"{where}: {key}")
    if kind == "samples" and split_metric(test["metric"])[1] is None:
        raise ValueError(f"{where}: samples: expected pass@K or valid@K, got {test['metric']!r}")
    for key in {"a", "b"} & test.keys():
        check_selector(test[key], f"{where}: {key}")


def check_extras(test: Mapping, where: str) -> None:
    """The keys that some tests have: there where they mean something, and not elsewhere."""
    kind, expected = test["kind"], test["expected"]
    needs = {"b": KINDS[kind][1] > 0, "x": kind in ("spearman", "best"), "at": kind == "matched",
             "margin": expected == "="}  # fmt: skip
    for key, needed in needs.items():
        if (key in test) != needed:
            article = "a" if needed else "no"
            raise ValueError(f"{where}: expected {article} `{key}` in a {kind} test ({expected})")
    if "metric_b" in test and kind != "best":
        raise ValueError(f"{where}: metric_b is for tests of best, not of {kind}")
    if "any" in test:
        fits = kind in ("difference", "ratio") and expected != "=" and isinstance(test["a"], dict)
        if test["any"] is not True or not fits:
            raise ValueError(f"{where}: any: expected true, in a difference or ratio test (< or >)")


def check_keys(value: object, needed: set[str], optional: set[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {describe(value)}")
    if missing := needed - value.keys():
        raise ValueError(f"{where}: expected {', '.join(sorted(missing))}")
    if unknown := value.keys() - needed - optional:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}")


def check_selector(selector: object, where: str) -> None:
    parts = selector if isinstance(selector, list) else [selector]
    for part in parts:
        check_keys(part, {"family"}, set(SELECTED), where)
        for key, value in part.items():
            kinds = (str,) if key in TEXTS else (int, float)
            values = value if isinstance(value, list) else [value]
            if not values or any(type(one) not in kinds for one in values):
                expected = "texts" if kinds == (str,) else "numbers"
                raise ValueError(f"{where}: {key}: expected {expected}, got {value!r}")


def count_named(selector: Mapping) -> int:
    """How many settings a selector names, found or not."""
    return math.prod(len(value) for value in selector.values() if isinstance(value, list))


# ------------------------------------------------------------------------------------------------
# words


def test_text(test: Mapping) -> str:
    """What is compared and expected, in one line."""
    metric, a, b = test["metric"], selector_text(test["a"]), selector_text(test.get("b", []))
    other = f" for {test['metric_b']}" if "metric_b" in test else ""
    compared = {
        "value": f"{metric} of {a}",
        "difference": f"{metric}: {a} minus {b}",
        "ratio": f"{metric}: {a} over {b}",
        "spearman": f"rank correlation of {metric} and {test.get('x')} over {a}",
        "samples": f"share of the completions with which {a} reaches {metric} of {b}",
        "matched": f"{metric} at equal {test.get('at')}: {a} minus {b}",
        "best": f"log of the {test.get('x')} best for {metric}: {a} minus {b}{other}",
    }[test["kind"]]
    within = f" within {test['margin']:g}" if "margin" in test else ""
    return f"{compared} {test['expected']} {test['threshold']:g}{within}"


def selector_text(selector: Selector) -> str:
    """For example: spl tau 0.8, 1 beta 0.1 of population, long."""
    if isinstance(selector, list):
        return " and ".join(map(selector_text, selector))
    words = []
    for key in (key for key in SELECTED if key in selector):
        values = selector[key] if isinstance(selector[key], list) else [selector[key]]
        words += {"family": [], "setting": [], "process": ["of"]}.get(key, [key])
        words.append(", ".join(v if isinstance(v, str) else f"{v:g}" for v in values))
    return " ".join(words)
