"""Which claims does a study bear out? Tests written down before the runs, judged by one rule.

eval/claims.json has what the two papers claim, and what they leave open, as tests: a metric, what
is compared, the expected side of a threshold, and why that threshold. `judge_claims` fills in the
numbers of a study (`eval.study_statistics`: 95% intervals over seeds and problems) and chooses
nothing.

    a test    yes if its interval lies wholly on the expected side of the threshold, no if wholly on
              the other side, else unclear; "=" means within `margin` of the threshold
              A no is unclear where b leaves no room for a yes: to a share of 0.98 none can add 0.05
    a claim   holds if every test says yes; holds in part if some do, whatever the others say;
              contradicted if some say no and none yes; else not seen. A claim of which a test has
              nothing to compare is not measured

A claim speaks of one process of labels on the embedded task, or of one plan on a real checkpoint.
Kinds of test; a and b select settings (family, setting, tau, alpha, beta) among the rows of that
process or plan, b may be missing where it is not used:

    value        the metric of a
    difference   the metric of a minus that of b, by seed and problem
    ratio        the metric of a over that of b, by seed
    spearman     rank correlation of the metric and x, over the settings of a
    samples      the fewest k for which pass@k of a reaches pass@K of b (metric: pass@K), over K
    matched      the metric of a minus that of b's settings, interpolated to where `at` is a's
    best         log of the x at which the metric is best among a's settings, minus the same of b's
                 (of metric_b, where that is given)

"any": true tests several settings a at once: yes if one of them says yes, no if all say no, each
with an interval of confidence 1 - 0.05 / (number of settings named), so that looking often does not
find more (Bonferroni). Whatever else a paper leaves open (which tau?) is fixed in the test, and the
claim's `rule` says how.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.rows import check_text, describe
from data.tokenizer import parse_json
from eval.study_statistics import (
    SELECTED,
    SHARES,
    Interval,
    MissingError,
    Row,
    Selector,
    Setting,
    best_numbers,
    check_metric,
    clip,
    coordinate,
    covers,
    find_settings,
    interval,
    matched_numbers,
    mean_numbers,
    process_rows,
    rank_numbers,
    read_values,
    samples_share,
    seed_row,
    shared_seeds,
    split_metric,
)

CLAIMS = Path(__file__).with_name("claims.json")
HOLDS, IN_PART, NOT_SEEN = "holds", "holds in part", "not seen"
CONTRADICTED, NOT_MEASURED = "contradicted", "not measured"
YES, NO, UNCLEAR, MISSING = "yes", "no", "unclear", "missing"
PAPERS = ("SPL", "H-DPO", "ours")
KINDS = {  # kind of test -> fewest settings of a and of b; 1: just one, 0: there is no b
    "value": (1, 0),
    "difference": (1, 1),
    "ratio": (1, 1),
    "spearman": (3, 0),
    "samples": (1, 1),
    "matched": (1, 2),
    "best": (2, 2),
}

Settings = Sequence[Setting]


@dataclass(frozen=True)
class TestResult:
    text: str  # what is compared, and what is expected
    value: float | None
    low: float | None  # None where there is no number: not measured, or beyond b's settings
    high: float | None
    threshold: float
    outcome: str  # YES, NO, UNCLEAR or MISSING
    over: str = "nothing"  # what the interval is over
    confidence: float = 0.95
    seeds: int = 0
    cells: tuple[str, ...] = ()  # names of the cells it is computed from
    note: str = ""  # what is missing


@dataclass(frozen=True)
class Verdict:
    claim: dict
    verdict: str
    tests: list[TestResult]
    cells: list[str]
    note: str
    seeds: int  # of the test with the fewest
    enough_seeds: bool


# ------------------------------------------------------------------------------------------------
# claims.json


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
    check_keys(claim, needed, {"process", "plan", "where", "needs_plateau"}, where)
    where = f"{where} ({claim['id']})"
    if ("process" in claim) == ("plan" in claim):
        raise ValueError(f"{where}: expected either `process` or `plan`")
    texts = {"id", "paper", "where", "statement", "process", "plan", "rule"}
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
            kinds = (str,) if key in ("family", "setting") else (int, float)
            values = value if isinstance(value, list) else [value]
            if not values or any(type(one) not in kinds for one in values):
                expected = "texts" if kinds == (str,) else "numbers"
                raise ValueError(f"{where}: {key}: expected {expected}, got {value!r}")


def count_named(selector: Mapping) -> int:
    """How many settings a selector names, found or not."""
    return math.prod(len(value) for value in selector.values() if isinstance(value, list))


# ------------------------------------------------------------------------------------------------
# verdicts


def judge_claims(rows: Sequence[Row], claims: Sequence[dict]) -> list[Verdict]:
    """A verdict on each claim, from the rows of a study (results.jsonl) and nothing else."""
    return [judge_claim(rows, claim) for claim in claims]


def judge_claim(rows: Sequence[Row], claim: dict) -> Verdict:
    own = process_rows(rows, claim["process"]) if "process" in claim else rows
    tests = [run_test(own, test) for test in claim["tests"]]
    cells = sorted({cell for test in tests for cell in test.cells})
    seeds = min((test.seeds for test in tests if test.outcome != MISSING), default=0)
    notes = list(dict.fromkeys(test.note for test in tests if test.note))
    if any(test.over == "seeds" for test in tests):
        notes.append("intervals of what is not kept for each problem are over seeds alone")
    if claim.get("needs_plateau") and (short := count_short(own, cells)):
        notes.append(f"runs whose held-out loss was still falling: {short}")
    if 0 < seeds < claim["needs_seeds"]:
        notes.append(f"{seeds} of the {claim['needs_seeds']} seeds that a claim needs")
    verdict, enough = decide([test.outcome for test in tests]), seeds >= claim["needs_seeds"]
    return Verdict(claim, verdict, tests, cells, "; ".join(notes), seeds, enough)


def decide(outcomes: Sequence[str]) -> str:
    if MISSING in outcomes:
        return NOT_MEASURED
    if YES in outcomes:
        return HOLDS if set(outcomes) == {YES} else IN_PART
    return CONTRADICTED if NO in outcomes else NOT_SEEN


def count_short(rows: Sequence[Row], cells: Sequence[str]) -> int:
    """How many of the policies behind these cells had a held-out loss that still fell."""
    used = {policy_of(row) for row in rows if row["cell"] in set(cells)}
    trained = [row for row in rows if row["kind"] == "train" and policy_of(row) in used]
    return sum(not row["plateau"] for row in trained)


def policy_of(row: Row) -> tuple:
    return tuple(row.get(key) for key in ("family", "setting", "seed", "learning_rate"))


def run_test(rows: Sequence[Row], test: Mapping) -> TestResult:
    fewest_a, fewest_b = KINDS[test["kind"]]
    try:
        ours, theirs = find_settings(rows, test["a"]), find_settings(rows, test.get("b", []))
        check_found(ours, test["a"], fewest_a, "any" in test)
        if "b" in test:
            check_found(theirs, test["b"], fewest_b, False)
        if "any" not in test:
            return compare(test, ours, theirs)
        looks = count_named(test["a"])
        labels = [next(iter(a.values()))["setting"] for a in ours]
        results = [compare(test, [a], theirs, looks) for a in ours]
        return pick_any(dict(zip(labels, results, strict=True)), test)
    except MissingError as error:
        text, note = test_text(test), f"missing: {error}"
        return TestResult(text, None, None, None, test["threshold"], MISSING, note=note)


def check_found(settings: Settings, selector: Selector, fewest: int, several: bool) -> None:
    one = fewest == 1 and not several
    if len(settings) < fewest or (one and len(settings) > 1):
        wanted = "one setting" if one else f"{fewest} settings or more"
        raise MissingError(f"{wanted} of {selector_text(selector)}, there are {len(settings)}")


def compare(test: Mapping, ours: Settings, theirs: Settings, looks: int = 1) -> TestResult:
    """The result of one test of these settings."""
    settings, confidence = [*ours, *theirs], 1 - 0.05 / looks
    seeds = shared_seeds(settings)
    found = interval(compute_numbers(test, ours, theirs, seeds), confidence)
    if test["kind"] == "spearman":
        found = clip(found, -1, 1)
    names = [seed_row(setting, seed)["cell"] for setting in settings for seed in seeds]
    outcome, note = outcome_of(test, found), ""
    if outcome == NO and (most := most_of_share(test, theirs, seeds)) is not None:
        outcome = UNCLEAR
        note = f"{test['metric']} of {selector_text(test['b'])} leaves {most:.3f} to gain"
    return TestResult(
        test_text(test),
        *(None if math.isnan(number) else number for number in found),
        test["threshold"],
        outcome,
        covers(read_values(ours[0], seeds, test["metric"])),
        confidence,
        len(seeds),
        tuple(dict.fromkeys(names)),
        note,
    )


def most_of_share(test: Mapping, theirs: Settings, seeds: Sequence[int]) -> float | None:
    """What b leaves to gain of a share, where that is not the gain that is expected; else None."""
    gain = test["threshold"] if (test["kind"], test["expected"]) == ("difference", ">") else 0
    if gain <= 0 or not SHARES.fullmatch(test["metric"]):
        return None
    most = 1 - mean_numbers(read_values(theirs[0], seeds, test["metric"]))[:, 0].mean()
    return float(most) if most <= gain else None


def compute_numbers(
    test: Mapping, ours: Settings, theirs: Settings, seeds: Sequence[int]
) -> np.ndarray:
    """(S, 1 + DRAWS) of what the test compares."""

    def means(setting: Setting, metric: str = test["metric"]) -> np.ndarray:
        return mean_numbers(read_values(setting, seeds, metric))

    def stack(settings: Settings, metric: str = test["metric"]) -> np.ndarray:
        return np.stack([means(setting, metric) for setting in settings])  # (M, S, 1 + DRAWS)

    def best(settings: Settings, metric: str) -> np.ndarray:
        return best_numbers([coordinate(s, test["x"]) for s in settings], stack(settings, metric))

    match test["kind"]:
        case "value":
            return means(ours[0])
        case "difference":
            return means(ours[0]) - means(theirs[0])
        case "ratio":
            above, below = means(ours[0]), means(theirs[0])
            return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
        case "spearman":
            return rank_numbers([coordinate(s, test["x"]) for s in ours], stack(ours))
        case "matched":
            x, family_x = means(ours[0], test["at"]), stack(theirs, test["at"])
            return matched_numbers(x, means(ours[0]), family_x, stack(theirs))
        case "best":
            metric_b = test.get("metric_b", test["metric"])
            return best(ours, test["metric"]) - best(theirs, metric_b)
        case "samples":
            return samples_share(ours[0], theirs[0], seeds, test["metric"])


def outcome_of(test: Mapping, found: Interval) -> str:
    """One rule for all tests; no number, or no interval, is unclear."""
    threshold = test["threshold"]
    if test["expected"] == "=":
        least, most = threshold - test["margin"], threshold + test["margin"]
        yes = least <= found.low and found.high <= most
        no = found.high < least or found.low > most
    else:
        yes, no = found.low > threshold, found.high < threshold
        yes, no = (yes, no) if test["expected"] == ">" else (no, yes)
    return YES if yes else NO if no else UNCLEAR


def pick_any(results: Mapping[str, TestResult], test: Mapping) -> TestResult:
    """The result furthest on the expected side, of those that say yes if any does; by setting."""
    sign = 1 if test["expected"] == ">" else -1
    outcomes = [result.outcome for result in results.values()]
    all_no = set(outcomes) == {NO} and len(results) == count_named(test["a"])
    outcome = YES if YES in outcomes else NO if all_no else UNCLEAR
    known = {label: r for label, r in results.items() if r.outcome == YES} or results
    label = max(known, key=lambda label: sign * (known[label].value or 0))
    text = f"{known[label].text} (furthest: {label}, {known[label].confidence:.1%} interval)"
    cells = tuple(dict.fromkeys(cell for result in results.values() for cell in result.cells))
    return replace(known[label], text=text, outcome=outcome, cells=cells)


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
    """For example: spl tau 0.8, 1 beta 0.1."""
    if isinstance(selector, list):
        return " and ".join(map(selector_text, selector))
    words = []
    for key in (key for key in SELECTED if key in selector):
        values = selector[key] if isinstance(selector[key], list) else [selector[key]]
        words += [] if key in ("family", "setting") else [key]
        words.append(", ".join(v if isinstance(v, str) else f"{v:g}" for v in values))
    return " ".join(words)
