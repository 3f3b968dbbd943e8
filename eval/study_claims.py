"""Which claims does a study bear out? Tests written down before the runs, judged by one rule.

eval/claims.json has what the two papers claim, and what they leave open, as tests: a metric, what
is compared, the expected side of a threshold, and why that threshold. `judge_claims` fills in the
numbers of a study (`eval.study_statistics`: 95% intervals over seeds and problems) and chooses
nothing.

    a test    yes if its interval lies wholly on the expected side of the threshold, no if wholly on
              the other side, else unclear; "=" means within `margin` of the threshold. Unclear too
              where b leaves no room: to a share of 0.98 none can add 0.05, whatever a does
    a claim   holds if every test says yes; holds in part if some do, whatever the others say;
              contradicted if some say no and none yes; else not seen. A claim of which a test has
              nothing to compare is not measured

What is said of an effect ("another control has it too") has the effect itself as its `premise`, a
test of its own: unless that says yes, the claim is not seen. `changed` says what of a claim was
written when some of the cells had been run.

eval/claims.py says which kinds of test there are, and reads the file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.claims import KINDS, count_named, selector_text, test_text
from eval.study_statistics import (
    Interval,
    best_numbers,
    clip,
    covers,
    interval,
    matched_numbers,
    rank_numbers,
    samples_share,
    setting_numbers,
)
from eval.study_values import (
    SHARES,
    MissingError,
    Row,
    Selector,
    Setting,
    coordinate,
    find_settings,
    on_plateau,
    process_rows,
    rates_note,
    read_values,
    seed_row,
    shared_seeds,
)

HOLDS, IN_PART, NOT_SEEN = "holds", "holds in part", "not seen"
CONTRADICTED, NOT_MEASURED = "contradicted", "not measured"
YES, NO, UNCLEAR, MISSING = "yes", "no", "unclear", "missing"

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
    premise: TestResult | None
    cells: list[str]
    note: str
    seeds: int  # of the test with the fewest
    enough_seeds: bool


# ------------------------------------------------------------------------------------------------
# verdicts


def judge_claims(rows: Sequence[Row], claims: Sequence[dict]) -> list[Verdict]:
    """A verdict on each claim, from the rows of a study (results.jsonl) and nothing else."""
    return [judge_claim(rows, claim) for claim in claims]


def judge_claim(rows: Sequence[Row], claim: dict) -> Verdict:
    own = process_rows(rows, claim["process"]) if "process" in claim else rows
    tests = [run_test(own, test) for test in claim["tests"]]
    premise = run_test(own, claim["premise"]) if "premise" in claim else None
    cells = sorted({cell for test in tests for cell in test.cells})
    seeds = min((test.seeds for test in tests if test.outcome != MISSING), default=0)
    notes = list(dict.fromkeys(test.note for test in tests if test.note))
    if any(test.over == "seeds" for test in tests):
        notes.append("intervals of what is not kept for each problem are over seeds alone")
    used = set(cells)
    if rates := rates_note([row for row in own if row["cell"] in used]):
        notes.append(rates)
    if claim.get("needs_plateau") and (short := count_short(own, cells)):
        notes.append(f"runs whose held-out loss had not settled: {short}")
    if 0 < seeds < claim["needs_seeds"]:
        notes.append(f"{seeds} of the {claim['needs_seeds']} seeds that a claim needs")
    verdict, enough = decide([test.outcome for test in tests]), seeds >= claim["needs_seeds"]
    if premise is not None and premise.outcome != YES and verdict != NOT_MEASURED:
        verdict = NOT_SEEN if premise.outcome != MISSING else NOT_MEASURED
        notes.insert(0, f"its premise is {premise.outcome}")
    return Verdict(claim, verdict, tests, premise, cells, "; ".join(notes), seeds, enough)


def decide(outcomes: Sequence[str]) -> str:
    if MISSING in outcomes:
        return NOT_MEASURED
    if YES in outcomes:
        return HOLDS if set(outcomes) == {YES} else IN_PART
    return CONTRADICTED if NO in outcomes else NOT_SEEN


def count_short(rows: Sequence[Row], cells: Sequence[str]) -> int:
    """How many of the policies behind these cells had a held-out loss that had not settled."""
    used = {policy_of(row) for row in rows if row["cell"] in set(cells)}
    trained = [row for row in rows if row["kind"] == "train" and policy_of(row) in used]
    return sum(not on_plateau(row) for row in trained)


def policy_of(row: Row) -> tuple:
    return tuple(row.get(key) for key in ("process", "family", "setting", "seed", "learning_rate"))


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
    outcome, notes = outcome_of(test, found), [few_settings(test, ours, theirs)]
    if (most := most_of_share(test, theirs, seeds)) is not None:
        outcome = UNCLEAR
        notes.append(f"{test['metric']} of {selector_text(test['b'])} leaves {most:.3f} to gain")
    return TestResult(
        test_text(test),
        *(None if math.isnan(number) else number for number in found),
        test["threshold"],
        outcome,
        covers(read_values(ours[0], seeds, test["metric"])),
        confidence,
        len(seeds),
        tuple(dict.fromkeys(names)),
        "; ".join(filter(None, notes)),
    )


def few_settings(test: Mapping, ours: Settings, theirs: Settings) -> str:
    """How many of the settings that a test over several names are missing, if any is."""
    texts = []
    for selector, found in ((test["a"], ours), (test.get("b"), theirs)):
        if isinstance(selector, Mapping) and "any" not in test:
            named = count_named(selector)
            if len(found) < named:
                texts.append(f"{len(found)} of the {named} settings of {selector_text(selector)}")
    return "; ".join(texts)


def most_of_share(test: Mapping, theirs: Settings, seeds: Sequence[int]) -> float | None:
    """What b leaves to gain of a share, where that is not the gain that is expected; else None."""
    if test["kind"] not in ("difference", "ratio") or not SHARES.fullmatch(test["metric"]):
        return None
    share = setting_numbers(theirs[0], seeds, test["metric"])[:, 0].mean()
    ratio = test["kind"] == "ratio"
    gain = (test["threshold"] - 1) * share if ratio else test["threshold"]
    return float(1 - share) if gain > 0 and 1 - share <= gain else None


def compute_numbers(
    test: Mapping, ours: Settings, theirs: Settings, seeds: Sequence[int]
) -> np.ndarray:
    """(S, 1 + DRAWS) of what the test compares."""

    def means(setting: Setting, metric: str = test["metric"]) -> np.ndarray:
        return setting_numbers(setting, seeds, metric)

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
