"""eval/report_rows.py: which rows belong together, and their numbers beside hand-worked ones.

pytest tests/test_report_rows.py
"""

import json

import numpy as np
import pytest

from eval.report_rows import (
    BASE,
    KL,
    SPL,
    TAUS,
    by_tau,
    colour,
    difficulties,
    estimate,
    is_chosen,
    main_beta,
    measured,
    parts,
    read_study,
    samples_of,
    setting_title,
    settings,
    spread,
    trained,
    values,
)
from tests.study_example import rows, write_study


@pytest.fixture(scope="module")
def example():
    return rows(seeds=2, problems=6, n=16, taus=(0.8, 1.0, 2.0))


def test_each_process_has_its_rows_and_the_base_that_all_share(example):
    found = parts(example)
    assert list(found) == ["verdict", "population"]
    for name, own in found.items():
        assert {row.get("process") for row in own} == {name, None}
        assert [row["kind"] for row in own].count("base") == 1
        assert all(row["kind"] in ("base", "train", "test", "decode") for row in own)


def test_a_process_has_the_reference_of_its_source_measured_alike():
    """Bases a and b, and a with other completions; policies of `long` began with b."""

    def base(name: str, n: int) -> dict:
        found = row_of(kind="base", family="base", source=name, cell=f"{name}/{n}")
        found["problems"]["n"] = n
        return found

    began = {"short": "a", "long": "b"}
    tests = [row_of(process=name, cell=name, source=began[name]) for name in began]
    made = [base("a", 4), base("b", 4), base("a", 8), *tests]
    names = {name: [row["cell"] for row in own] for name, own in parts(made).items()}
    assert names == {"short": ["a/4", "short"], "long": ["b/4", "long"]}
    assert parts(made[:1]) == {"reference": made[:1]}


def test_settings_begin_with_the_base_and_the_grid_of_tau(example):
    own = measured(parts(example)["verdict"])
    names = list(settings(own))
    assert names[:5] == [(BASE, "base"), (SPL, "tau 0.8"), (SPL, "tau 1"), (SPL, "tau 2"),
                         (SPL, "tau 1, beta 0.01")]  # fmt: skip
    assert names[-1] == ("dpo, resampled", "tau 2")
    assert main_beta(own) == 0.1
    grid = by_tau(own)
    assert list(grid) == [0.8, 1.0, 2.0]
    assert [row["seed"] for row in grid[2.0]] == [0, 1]
    assert difficulties(own) == ["easy", "medium", "hard"] and samples_of(own) == 16


def test_the_chosen_rate_is_the_one_that_was_tested_or_the_only_one(example):
    own = [row for row in parts(example)["verdict"] if row["setting"] == "tau 2"]
    assert {row["rate"] for row in trained(own) if is_chosen(row, own)} == {1.0}
    untested = trained(own)
    assert not any(is_chosen(row, untested) for row in untested)
    one = [row for row in untested if row["rate"] == 1.0]
    assert all(is_chosen(row, one) for row in one)


def row_of(**more) -> dict:
    """Four problems, four completions each: 0, 1, 2 and 4 right."""
    problems = {
        "difficulty": ["hard", "hard", "easy", "easy"], "n": 4, "correct": [0, 1, 2, 4],
        "valid": [0, 1, 1, 4], "distinct": [4, 4, 2, 1], "majority": [0, 0, 0.5, 1],
        "entropy": [4.0, 3.0, 2.0, 1.0], "tokens": [8, 10, 10, 10],
    }  # fmt: skip
    metrics = {
        "diversity:entropy/sequence": {"value": 2.5, "low": 2, "high": 3},
        "diversity:reference_cross_entropy/sequence": {"value": 3.75, "low": 3, "high": 4},
    }
    return {"kind": "test", "family": "spl", "setting": "tau 1", "seed": 0, "problems": problems,
            "metrics": metrics} | more  # fmt: skip


def test_numbers_of_a_row_by_hand():
    """pass@2 of 0, 1, 2 and 4 right of 4: 0, 3/6, 1 - 1/6 and 1."""
    row = row_of()
    assert np.allclose(values(row, "pass@2"), [0, 1 / 2, 5 / 6, 1])
    assert np.allclose(values(row, "pass@2/hard"), [0, 1 / 2])
    assert np.allclose(values(row, "entropy/token"), [0.5, 0.3, 0.2, 0.1])
    assert values(row, KL) == 1.25  # 3.75 - 2.5
    assert values(row, "pass@8") is None and values(row, "opinions:mass") is None
    assert values(row, "pass@2/medium") is None
    assert estimate([row], "entropy")[0] == 2.5
    far = {"value": 60.0, "low": 50.0, "high": 70.0}, {"value": 40.0, "low": 30.0, "high": 50.0}
    seeds = [{**row_of(seed=i, problems=None), "metrics": {"diversity:tokens": one}}
             for i, one in enumerate(far)]  # fmt: skip
    value, low, high = estimate(seeds, "tokens")  # 50 +- 10 times t of one degree, right to 1%
    assert (value, low) == (50, 0) and high == pytest.approx(50 + 127.06, abs=1.27)


def test_what_is_decoded_otherwise_has_no_entropy():
    """-log pi of draws from another distribution than pi is a cross-entropy."""
    row = row_of(kind="decode")
    row["problems"]["cross_entropy"] = row["problems"].pop("entropy")
    assert values(row, "entropy") is None and values(row, "entropy/token") is None
    assert values(row, "unique") is not None
    del row["metrics"]["diversity:entropy/sequence"]
    assert values(row, KL) is None


def test_intervals_of_one_seed_are_over_problems_or_the_evaluation_s_own():
    row = row_of()
    value, low, high = estimate([row], "pass@1")
    assert value == pytest.approx(7 / 16) and low < value < high
    assert estimate([row], "diversity:entropy/sequence") == (2.5, 2, 3)
    assert estimate([row], KL) == (1.25, None, None)  # made of two: no interval of its own
    assert estimate([row], "opinions:mass") is None and estimate([], "pass@1") is None
    assert "over problems only" in spread([row]) and "One seed" in spread([row])
    assert spread([row, row_of(seed=1)]).startswith("2 seeds, 4 problems")


def test_intervals_stay_where_a_number_can_be():
    """Seeds at 1 and 0.9: mean 0.95, standard error 0.05, Student's t of one degree 12.7. A share
    ends at 1; an entropy has no upper end, and none of 0.2 (seeds at 0.1 and 0.3) is below 0."""

    def two(name, *found):
        same = ({name: {"value": v, "low": v, "high": v}} for v in found)
        return estimate([row_of(metrics=metrics) for metrics in same], name)

    value, low, high = two("arithmetic:ece", 1.0, 0.9)
    assert value == pytest.approx(0.95) and (low, high) == (pytest.approx(0.31, abs=0.02), 1)
    value, low, high = two("diversity:entropy/token", 0.1, 0.3)
    assert value == pytest.approx(0.2) and (low, high) == (0, pytest.approx(1.47, abs=0.03))


def test_a_setting_has_one_colour_and_one_name_everywhere():
    assert colour(row_of(tau=2.0)) == TAUS[2.0] == colour(row_of(tau=2.1))
    assert setting_title(row_of(tau=1.0)) == "SPL τ 1 (DPO)"
    other = row_of(family="dpo with beta'", setting="beta' 0.2")
    assert setting_title(other) == "DPO with β\N{PRIME}, β\N{PRIME} 0.2"
    assert colour(row_of(family="new")) != colour(other)


# ------------------------------------------------------------------------------------------------
# files


def test_a_study_comes_back_and_a_cut_last_row_is_left_out(tmp_path, example):
    write_study(tmp_path, example)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"cell": "cut sho')
    study = read_study(tmp_path)
    assert study.plan == "example" and len(study.rows) == len(example)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"cell": "a", "kind": 1}, "a: kind: expected a text, got 1"),
        ({"cell": "a", "kind": "test", "family": "spl"}, "a: process: expected str, got None"),
        ({"cell": "a", "kind": "base", "family": "base", "setting": "x", "seed": "0"},
         "a: seed: expected int, got '0'"),
        ({"cell": "a", "kind": "source"}, "expected rows of policies, got none"),
    ],
)  # fmt: skip
def test_what_is_no_study_says_where(tmp_path, row, wrong):
    good = row_of(cell="b", process="verdict")
    write_study(tmp_path, [row] if "policies" in wrong else [good, row])
    with pytest.raises(ValueError, match=wrong):
        read_study(tmp_path)


def test_a_folder_without_files_says_which(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.json"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="expected a JSON dict"):
        read_study(tmp_path)
