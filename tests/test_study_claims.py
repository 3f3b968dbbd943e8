"""Verdicts on rows whose every number is known.

pytest tests/test_study_claims.py
"""

import math

import pytest

from eval import study_claims
from eval.claims import claims_for
from eval.study_claims import (
    CONTRADICTED,
    HOLDS,
    IN_PART,
    MISSING,
    NO,
    NOT_MEASURED,
    NOT_SEEN,
    UNCLEAR,
    YES,
    decide,
    judge_claims,
    outcome_of,
)
from eval.study_models import MODEL_PLANS
from eval.study_plans import PLANS
from eval.study_statistics import Interval
from tests.study_example import rows as example_rows
from tests.test_claims import a_claim, a_test, spl

BY_TAU = {0.5: 1.0, 1.0: 2.0, 2.0: 4.0}  # tau -> entropy of every problem, plus 0.01 * seed


def row(family, setting, seed, kind="test", numbers=2.0, process="verdict", **more):
    problems = {"difficulty": ["easy", "hard"], "n": 4, "correct": [4, 1], "distinct": [1, 3],
                "entropy": [numbers, numbers], "tokens": [10.0, 10.0]}  # fmt: skip
    return {"cell": f"{process}/{family}/{setting}/{seed}/{kind}", "kind": kind, "family": family,
            "setting": setting, "seed": seed, "process": process, "problems": problems,
            "metrics": {"opinions:mass": {"value": 0.9 + 0.01 * seed}}, **more}  # fmt: skip


def made(seeds=3) -> list[dict]:
    """SPL at three tau, one of them without its last seed; one row of the base policy."""
    rows = [row("base", "base", 0, "base", numbers=1.5)]
    for tau, entropy in BY_TAU.items():
        for seed in range(seeds):
            rows.append(row("spl", f"tau {tau:g}", seed, numbers=entropy + 0.01 * seed, tau=tau,
                            alpha=0.1 * tau, beta=0.1))  # fmt: skip
    return rows


def judge(*tests, rows=None, **more) -> study_claims.Verdict:
    claim = {key: value for key, value in a_claim(*tests, **more).items() if value is not None}
    (verdict,) = judge_claims(made() if rows is None else rows, [claim])
    return verdict


# ------------------------------------------------------------------------------------------------
# one test


@pytest.mark.parametrize(
    ("expected", "low", "high", "outcome"),
    [
        (">", 0.1, 0.3, YES), (">", -0.3, -0.1, NO), (">", -0.1, 0.1, UNCLEAR),
        (">", 0.0, 0.1, UNCLEAR), (">", 0.0, 0.0, UNCLEAR), ("<", -0.3, -0.1, YES),
        ("<", 0.1, 0.3, NO), ("<", -0.1, 0.0, UNCLEAR), ("=", -0.5, 0.5, YES),
        ("=", -0.6, 0.5, UNCLEAR), ("=", 0.6, 0.7, NO), ("=", -0.7, -0.6, NO),
        (">", math.nan, math.nan, UNCLEAR), ("=", math.nan, math.nan, UNCLEAR),
    ],
)  # fmt: skip
def test_outcomes(expected, low, high, outcome) -> None:
    test = {"expected": expected, "threshold": 0, "margin": 0.5}
    assert outcome_of(test, Interval(0.0, low, high)) == outcome


def test_difference_by_hand() -> None:
    """4 - 2 in every seed and problem: no noise at all."""
    (found,) = judge(a_test()).tests
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert (found.outcome, found.over, found.seeds) == (YES, "seeds and problems", 3)
    assert found.text == "entropy: spl tau 2 beta 0.1 minus spl tau 1 beta 0.1 > 0"
    assert len(found.cells) == 6


@pytest.mark.parametrize(
    ("expected", "threshold", "outcome", "note"),
    [
        (">", 0.5, UNCLEAR, "pass@1 of spl tau 1 beta 0.1 leaves 0.375"),
        (">", 0.3, NO, ""), (">", 0.375, UNCLEAR, "leaves 0.375"),
        ("<", 0.5, UNCLEAR, "leaves 0.375"), ("<", 0.3, YES, ""),
    ],
)  # fmt: skip
def test_where_there_is_no_room_a_test_is_unclear(expected, threshold, outcome, note) -> None:
    """pass@1 of both is (4/4 + 1/4) / 2 = 0.625: nothing can add 0.5 to it, but 0.3."""
    verdict = judge(a_test(metric="pass@1", threshold=threshold, expected=expected))
    (test,) = verdict.tests
    assert (test.value, test.outcome) == (0, outcome)
    assert note in test.note and test.note in verdict.note
    (gone,) = judge(a_test(metric="entropy", threshold=99)).tests  # no share
    assert gone.outcome == NO


@pytest.mark.parametrize(("threshold", "outcome"), [(1.5, NO), (1.6, UNCLEAR), (0.5, YES)])
def test_a_ratio_of_shares_needs_room_too(threshold, outcome) -> None:
    """0.625 has room for 1.5 times as much, 0.9375, and not for 1.6 times, 1.0."""
    (test,) = judge(a_test("ratio", metric="pass@1", threshold=threshold)).tests
    assert (test.value, test.outcome) == (1, outcome)


def test_other_kinds_by_hand() -> None:
    """Entropies 1, 2, 4 at tau 0.5, 1, 2 (and 0.01 * seed); pass@1 is 1 and 1/4 everywhere."""
    cases = [
        (a_test("value", b=None), 4.01),
        (a_test("ratio", b={"family": "base"}), 4.01 / 1.5),
        (a_test("spearman", a={"family": "spl"}, b=None, x="tau"), 1),
        (a_test("best", a={"family": "spl"}, b=[spl(0.5), spl(1)], x="tau"), math.log(2)),
        (a_test("best", a=[spl(1), spl(2)], b=[spl(0.5), spl(1)], x="alpha"), math.log(2)),
        (a_test("best", a=[spl(1), spl(2)], b=[spl(1), spl(2)], x="tau", metric_b="pass@1"),
         math.log(2) / 2),
        (a_test("samples", "pass@3/hard"), 1),
        (a_test("matched", "pass@1", a=spl(1), b=[spl(0.5), spl(2)], at="entropy"), 0),
        (a_test("matched", "tokens", a=spl(1), b=[spl(0.5), spl(2)], at="entropy"), 0),
        (a_test("matched", "entropy", a=spl(1), b=[spl(0.5), spl(2)], at="entropy"), 0),
    ]  # fmt: skip
    for test, value in cases:
        (found,) = judge(test).tests
        assert found.value == pytest.approx(value, abs=1e-9), test


def test_beyond_a_family_is_unclear() -> None:
    (found,) = judge(
        a_test("matched", "pass@1", b=[spl(0.5), spl(1)], at="entropy")
    ).tests  # tau 2 has more entropy than either
    assert (found.value, found.low, found.high, found.outcome) == (None, None, None, UNCLEAR)


def test_a_scalar_is_over_seeds() -> None:
    """0.9, 0.91, 0.92: mean 0.91, sd 0.01, t of two degrees 4.303."""
    verdict = judge(a_test("value", "opinions:mass", b=None, threshold=0.8))
    (found,) = verdict.tests
    assert (found.value, found.over) == (pytest.approx(0.91), "seeds")
    assert found.high - found.value == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=0.02)
    assert "over seeds alone" in verdict.note


def test_any_corrects_for_looks() -> None:
    """Ours differ from theirs by 0.01, 0.02, 0.03: mean 0.02, sd / sqrt(3) = 0.00577.

    One look has the t of 4.303 and a low end of -0.0048; two looks that of 6.205, and -0.0158.
    """
    rows = made()
    for one in rows:
        if one["setting"] in ("tau 0.5", "tau 2"):
            entropy = 2 + 0.01 * one["seed"] + 0.01 * (one["seed"] + 1)
            one["problems"]["entropy"] = [entropy, entropy - (one["setting"] == "tau 0.5")]
    a = {"family": "spl", "beta": 0.1, "tau": [0.5, 2]}
    (found,) = judge(a_test(a=a, any=True), rows=rows).tests
    assert (found.value, found.outcome) == (pytest.approx(0.02), UNCLEAR)
    assert found.confidence == 0.975 and found.text.endswith("(furthest: tau 2, 97.5% interval)")
    assert found.low == pytest.approx(0.02 - 6.205 * 0.00577, rel=0.05)
    (found,) = judge(a_test(a=a, any=True, threshold=-0.1), rows=rows).tests
    assert found.outcome == YES
    (found,) = judge(a_test(a=a, any=True, threshold=0.1), rows=rows).tests
    assert found.outcome == NO and len(found.cells) == 9


def test_any_says_no_only_of_all_that_it_names() -> None:
    a = {"family": "spl", "beta": 0.1, "tau": [0.5, 7]}
    (found,) = judge(a_test(a=a, any=True)).tests
    assert (found.value, found.outcome) == (pytest.approx(-1), UNCLEAR)
    (found,) = judge(a_test(a={**a, "tau": [6, 7]}, any=True)).tests
    assert found.outcome == MISSING


# ------------------------------------------------------------------------------------------------
# a claim


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([YES, YES], HOLDS), ([YES, NO], IN_PART), ([YES, UNCLEAR], IN_PART),
        ([NO, NO], CONTRADICTED), ([NO, UNCLEAR], CONTRADICTED), ([UNCLEAR, UNCLEAR], NOT_SEEN),
        ([YES, MISSING], NOT_MEASURED), ([MISSING], NOT_MEASURED),
    ],
)  # fmt: skip
def test_verdicts(outcomes, verdict) -> None:
    assert decide(outcomes) == verdict


def test_verdicts_of_rows() -> None:
    more, less, scatter = a_test(), a_test(expected="<"), a_test(metric="pass@1")
    assert judge(more).verdict == HOLDS
    assert judge(more, less).verdict == IN_PART
    assert judge(less).verdict == CONTRADICTED
    assert judge(scatter).verdict == NOT_SEEN
    found = judge(more, a_test(a=spl(4)))
    assert found.verdict == NOT_MEASURED and [t.outcome for t in found.tests] == [YES, MISSING]
    assert found.note == "missing: one setting of spl tau 4 beta 0.1, there are 0"


@pytest.mark.parametrize(
    ("premise", "verdict", "note"),
    [
        (a_test(), HOLDS, ""), (a_test(expected="<"), NOT_SEEN, "its premise is no"),
        (a_test(metric="pass@1"), NOT_SEEN, "its premise is unclear"),
        (a_test(a=spl(4)), NOT_MEASURED, "its premise is missing"),
    ],
)  # fmt: skip
def test_without_its_premise_a_claim_is_not_seen(premise, verdict, note) -> None:
    found = judge(a_test(a=spl(0.5), expected="<"), premise=premise)
    assert (found.verdict, found.note) == (verdict, note)
    assert found.premise.text == judge(premise).tests[0].text


def test_a_grid_that_is_not_whole_is_said() -> None:
    a = {"family": "spl", "beta": 0.1, "tau": [0.5, 1, 2, 4, 11]}
    found = judge(a_test("spearman", a=a, b=None, x="tau"))
    assert found.verdict == HOLDS
    assert found.note == "3 of the 5 settings of spl tau 0.5, 1, 2, 4, 11 beta 0.1"
    whole = judge(a_test("spearman", a={**a, "tau": [0.5, 1, 2]}, b=None, x="tau"))
    assert whole.note == ""


def test_other_learning_rates_are_said() -> None:
    rows = [{**one, "rate": 3.0 if one.get("tau") == 2 else 1.0} for one in made()]
    note = "learning rates differ: tau 2 at 3 times the default, the others at 1"
    assert judge(a_test(), rows=rows).note == note
    assert judge(a_test(a=spl(0.5)), rows=rows).note == ""


def test_what_is_missing_is_named() -> None:
    cases = {
        "one setting of spl, there are 3": a_test(a={"family": "spl"}),
        "2 settings or more of spl tau 1 beta 0.1, there are 1": a_test(
            "matched", "pass@1", at="entropy"
        ),
        "pass@8 of verdict/spl/tau 2/0/test": a_test(metric="pass@8"),
        "pass@8 of verdict/spl/tau 2/0/test ": a_test("samples", metric="pass@8"),
        "t of verdict/spl/tau 0.5/0/test": a_test("spearman", a={"family": "spl"}, b=None, x="t"),
    }
    for note, test in cases.items():
        assert judge(test).note == f"missing: {note.strip()}"
    other = judge(a_test(), process="population")
    assert other.verdict == NOT_MEASURED and other.seeds == 0 and not other.enough_seeds


def test_seeds_that_all_have_count() -> None:
    """Of tau 2 the last seed is missing: two are left, too few for a claim that needs three."""
    rows = [one for one in made() if not (one["setting"] == "tau 2" and one["seed"] == 2)]
    found = judge(a_test(), a_test(a=spl(0.5), expected="<"), rows=rows)
    assert found.verdict == HOLDS and not found.enough_seeds
    assert [test.seeds for test in found.tests] == [2, 3] and found.seeds == 2
    assert found.note == "2 of the 3 seeds that a claim needs"
    assert judge(a_test()).enough_seeds


def test_one_seed_is_over_problems() -> None:
    found = judge(a_test(), a_test("value", "opinions:mass", b=None), rows=made(seeds=1))
    assert [test.over for test in found.tests] == ["problems", "nothing"]
    assert (found.tests[1].value, found.tests[1].low, found.tests[1].outcome) == (
        0.9,
        None,
        UNCLEAR,
    )


def test_runs_that_were_still_learning_are_counted() -> None:
    """Of the train rows of tau 2 one is short; another rate and a policy not asked for are not."""
    rows = [{**one, "learning_rate": 1e-4} for one in made()]
    for seed, tau, end, rate in ((0, 2, 0.4, 1e-4), (1, 2, 0.5, 1e-4),
                                 (2, 2, 0.4, 3e-4), (0, 0.5, 0.4, 1e-4)):  # fmt: skip
        curves = {"step": [0, 1, 2], "eval/loss": [1.0, 0.5, end]}
        more = {"curves": curves, "learning_rate": rate}
        rows.append(row("spl", f"tau {tau:g}", seed, "train", **more, tau=tau, beta=0.1))
    found = judge(a_test(), rows=rows, needs_plateau=True)
    assert found.note == "runs whose held-out loss had not settled: 1"
    assert judge(a_test(), rows=rows).note == ""


@pytest.mark.parametrize("other", [{"family": "h_dpo"}, {"process": "calm"}])
def test_runs_of_other_families_and_processes_are_not_counted(other) -> None:
    """They carry the same label, and have not settled."""
    rows = made()
    for end, more in ((0.5, {}), (0.4, other)):
        curves = {"step": [0, 1, 2], "eval/loss": [1.0, 0.5, end]}
        rows += [row(**{"family": "spl", "setting": "tau 2", "seed": seed, "kind": "train",
                        "curves": curves, "tau": 2, "beta": 0.1} | more)
                 for seed in range(3)]  # fmt: skip
    found = judge(a_test(), rows=rows, process=None, plan="noise", needs_plateau=True)
    assert found.note == ""


def test_of_several_settings_the_furthest_on_the_expected_side_is_shown() -> None:
    """Below 5 are -1 at tau 0.5 and 2 at tau 2: the furthest below is -1. A setting that is missing
    was still one of two looks."""
    a = {"family": "spl", "beta": 0.1, "tau": [0.5, 2]}
    (found,) = judge(a_test(a=a, any=True, expected="<", threshold=5)).tests
    assert found.value == pytest.approx(-1) and "furthest: tau 0.5" in found.text
    (found,) = judge(a_test(a={**a, "tau": [0.5, 7]}, any=True)).tests
    assert found.confidence == 0.975


def test_the_base_policy_has_seen_no_labels() -> None:
    """Measured once, for no process, it counts for each."""
    rows = [{**one, "process": None} if one["kind"] == "base" else one for one in made()]
    against = a_test(b={"family": "base"})
    assert judge(against, rows=rows).tests[0].value == pytest.approx(4.01 - 1.5)


def test_nothing_to_divide_by_is_unclear() -> None:
    rows = made()
    for one in rows:
        one["problems"]["correct"] = [0, 0]
    (found,) = judge(a_test("ratio", "pass@1"), rows=rows).tests
    assert (found.value, found.outcome) == (None, UNCLEAR)


# ------------------------------------------------------------------------------------------------
# the claims of claims.json


def test_the_claims_are_judged_on_an_invented_study() -> None:
    """Entropy grows with tau there, and opinions follow theory; it has no plan `temperature`."""
    verdicts = {v.claim["id"]: v for v in judge_claims(example_rows(), claims_for("full"))}
    assert verdicts["spl-entropy-population"].verdict == HOLDS
    assert verdicts["spl-entropy-population"].tests[0].value == 1
    assert verdicts["spl-log-odds"].verdict == HOLDS
    assert verdicts["hdpo-temperature"].verdict == NOT_MEASURED
    measured = [v for v in verdicts.values() if v.verdict != NOT_MEASURED]
    assert len(measured) > 25 and all(v.enough_seeds for v in measured)


@pytest.mark.parametrize("plan", MODEL_PLANS.values(), ids=lambda plan: plan.name)
def test_a_plan_has_the_settings_and_the_numbers_of_its_claims(plan) -> None:
    """Nothing that a claim names is missing from a study with all of the plan's benchmarks."""
    claims, others = claims_for(plan.name), claims_for("full")
    assert claims and not {claim["id"] for claim in claims} & {claim["id"] for claim in others}
    tasks = {"diversity", *plan.benchmarks} | ({"reward"} if plan.reward else set())
    names = {test[key] for claim in claims for test in claim["tests"] for key in ("metric", "at")
             if key in test}  # fmt: skip
    assert {name.partition(":")[0] for name in names} <= tasks
    numbers = {"metrics": {name: {"value": 0.5} for name in names}}
    keys = ("family", "setting", "tau", "alpha", "beta")
    settings = [{key: getattr(method, key) for key in keys} for method in plan.methods]
    settings += [{"family": c.family, "setting": c.setting, "tau": None} for c in plan.controls]
    rows = [row(**setting, seed=seed, process="pairs") | numbers
            for setting in settings for seed in range(plan.seeds)]  # fmt: skip
    rows.append(row("base", "base", 0, "base", process="pairs") | numbers)
    for verdict in judge_claims(rows, claims):
        assert verdict.verdict != NOT_MEASURED, verdict.note
        assert verdict.enough_seeds == (plan.name != "small")


@pytest.mark.parametrize("plan", [p for p in PLANS.values() if "plan" in claims_for(p.name)[0]],
                         ids=lambda plan: plan.name)  # fmt: skip
def test_what_is_claimed_of_several_processes_is_among_the_cells_of_their_plan(plan) -> None:
    scalars = {"metrics": {f"opinions:{name}": {"value": 0.5} for name in ("slope", "majority")}}
    keys = ("family", "setting", "tau", "alpha", "beta")
    rows = [
        row(**{key: getattr(method, key) for key in keys}, seed=seed, process=grid.process.name)
        | scalars
        for grid in plan.grids
        for method in grid.methods
        for seed in range(grid.seeds)
    ]
    for one in rows:
        one["problems"] |= {"n": 8, "correct": [8, 3]}
    for verdict in judge_claims(rows, claims_for(plan.name)):
        assert verdict.verdict != NOT_MEASURED, verdict.note
        assert "settings of" not in verdict.note  # all that are named are there


def test_two_processes_side_by_side() -> None:
    """4 in one process, 2 in the other, at one tau and seed by seed; each has its own rate."""
    rows = [row("spl", "tau 1", seed, numbers=numbers, process=process, tau=1, beta=0.1, rate=rate)
            for process, numbers, rate in (("noise", 4.0, 1.0), ("calm", 2.0, 3.0))
            for seed in range(3)]  # fmt: skip
    both = {"a": {**spl(1), "process": "noise"}, "b": {**spl(1), "process": "calm"}}
    verdict = judge(a_test(**both), rows=rows, process=None, plan="noise")
    (found,) = verdict.tests
    assert (found.value, found.seeds, found.outcome) == (2, 3, YES)
    assert found.text == "entropy: spl tau 1 beta 0.1 of noise minus spl tau 1 beta 0.1 of calm > 0"
    assert len(verdict.cells) == 6 and "learning rates differ" in verdict.note
    either = judge(a_test(b=spl(1), a=both["a"]), rows=rows, process=None, plan="noise")
    assert either.verdict == NOT_MEASURED and "there are 2" in either.note


def test_values_of_problems_are_paired() -> None:
    """Two problems, 0.5 more on each: the same in every draw, though the problems differ."""
    low, high = ({"gsm8k:pass@1": [v, v + 0.25]} for v in (0.0, 0.5))
    both = [row("spl", f"tau {tau}", 0, tau=tau, beta=0.1, values=values,
                metrics={"gsm8k:pass@1": {"value": values["gsm8k:pass@1"][0] + 0.125}})
            for tau, values in ((1, low), (2, high))]  # fmt: skip
    (test,) = judge(a_test(metric="gsm8k:pass@1"), rows=both).tests
    assert (test.value, test.low, test.high, test.over) == (0.5, 0.5, 0.5, "problems")


def test_a_small_study_is_not_measured_where_it_has_no_cells() -> None:
    rows = example_rows(seeds=1, taus=(0.8, 1.0, 2.0), controls=False)
    verdicts = {v.claim["id"]: v for v in judge_claims(rows, claims_for("full"))}
    assert verdicts["spl-pass-128"].verdict == NOT_MEASURED
    assert "spl tau 1.1 beta 0.1" in verdicts["spl-pass-128"].note
    assert verdicts["hdpo-pass-1"].verdict != NOT_MEASURED
    assert not verdicts["hdpo-pass-1"].enough_seeds
    assert judge_claims([], claims_for("full")[:1])[0].verdict == NOT_MEASURED
