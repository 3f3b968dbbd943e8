"""The frontier against points worked by hand, and its shares against the normal distribution.

pytest tests/test_pareto.py
"""

import json
import sys
from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from eval import pareto
from eval.metrics import bootstrap_interval, wilson_interval
from eval.pareto import (
    DRAWS,
    Measured,
    ParetoConfig,
    Point,
    basic,
    better,
    compare,
    cover,
    dominated,
    draw_numbers,
    find_metric,
    hypervolume,
    make_points,
    read_runs,
    worst_end,
)
from eval.results import interval_row

# A to E: D is below and to the left of B; E is B again
X, Y = np.array([[1.0, 3, 5, 2, 3]]).T, np.array([[5.0, 3, 1, 2, 3]]).T  # (5, 1)
CONFIG = ParetoConfig(quality="q", diversity="d")


def fixed(value: float) -> np.ndarray:
    """A number without noise."""
    return np.full(1 + DRAWS, float(value))


def noisy(value: float, sd: float, seed: int) -> np.ndarray:
    return np.append(value, value + sd * np.random.default_rng(seed).standard_normal(DRAWS))


# ------------------------------------------------------------------------------------------------
# points


def test_frontier_of_five_points_by_hand() -> None:
    """A (1, 5), B (3, 3), C (5, 1) are each best somewhere; equals do not dominate each other."""
    assert dominated(cover(X, Y))[:, 0].tolist() == [False, False, False, True, False]


def test_a_tie_on_one_axis_dominates() -> None:
    """(2, 3) has what (2, 2) has and more."""
    x, y = np.array([[2.0], [2.0]]), np.array([[3.0], [2.0]])
    assert dominated(cover(x, y))[:, 0].tolist() == [False, True]


def test_families_by_hand() -> None:
    """{B} is better than {D}; {A, B, C} than {B, D}; {A} and {B} have each what the other lacks."""
    covers = cover(X, Y)
    cases = {(1,): (3,), (0, 1, 2): (1, 3), (1, 3): (3,)}
    for A, B in cases.items():
        assert better(covers, A, B).tolist() == [True]
        assert better(covers, B, A).tolist() == [False]
    for A, B in [((0,), (1,)), ((1,), (0,)), ((1,), (4,)), ((1, 3), (4,))]:  # E is B
        assert better(covers, A, B).tolist() == [False]


def test_hypervolume_by_hand() -> None:
    """From the right: 2 wide and 1 high, 2 wide and 3 high, 1 wide and 5 high: 2 + 6 + 5 = 13.

    Seen from (2, 2) only B counts, 1 by 1; what lies left of the reference point adds nothing.
    """
    assert hypervolume(X, Y, 0, 0).tolist() == [13]
    assert hypervolume(X, Y, 2, 2).tolist() == [1]
    assert hypervolume(np.vstack([X, [[-1]]]), np.vstack([Y, [[9]]]), 0, 0).tolist() == [13]
    assert hypervolume(X[:1], Y[:1], 6, 0).tolist() == [0]


def test_hypervolume_is_the_count_of_unit_squares() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(9, size=(2, 6, 20)).astype(float)  # 6 points, 20 draws
    cells = [
        sum(((x[:, d] > i) & (y[:, d] > j)).any() for i, j in product(range(9), repeat=2))
        for d in range(20)
    ]
    assert hypervolume(x, y, 0, 0).tolist() == cells


# ------------------------------------------------------------------------------------------------
# shares and intervals


def test_without_noise_shares_are_0_or_1() -> None:
    points = [
        Point("ours", label, 1, fixed(y), fixed(x))
        for label, x, y in zip("ABCDE", X[:, 0], Y[:, 0], strict=True)
    ]
    points[3] = Point("theirs", "D", 1, fixed(2), fixed(2))
    result = compare(points, CONFIG)
    assert [p["frontier_share"] for p in result["points"]] == [1, 1, 1, 0, 1]
    assert [p["on_frontier"] for p in result["points"]] == [True, True, True, False, True]
    assert result["points"][0]["quality"] == {"value": 5, "low": 5, "high": 5}
    assert result["reference"] == {"quality": 1, "diversity": 1}
    areas = {name: row["hypervolume"] for name, row in result["families"].items()}
    assert areas["ours"] == {"value": 4, "low": 4, "high": 4}  # of B: 2 by 2
    assert areas["theirs"] == {"value": 1, "low": 1, "high": 1}
    (pair,) = result["pairs"]
    assert (pair["dominates_share"], pair["dominated_share"]) == (1, 0)
    assert pair["hypervolume_difference"] == {"value": 3, "low": 3, "high": 3}


def test_less_is_better_where_it_is_said() -> None:
    """With both axes turned, D (2, 2) dominates B and E (3, 3); A and C stay."""
    points = [
        Point("f", label, 1, fixed(y), fixed(x))
        for label, x, y in zip("ABCDE", X[:, 0], Y[:, 0], strict=True)
    ]
    both = ParetoConfig(quality="q", diversity="d", minimise=("quality", "diversity"))
    result = compare(points, both)
    assert [p["on_frontier"] for p in result["points"]] == [True, False, True, True, False]
    assert result["reference"] == {"quality": 5, "diversity": 5}
    assert result["families"]["f"]["hypervolume"]["value"] == 9  # of D: 3 by 3
    mixed = ParetoConfig(quality="q", diversity="d", minimise=("quality",))
    result = compare(points, mixed)  # C (5, 1) is the most diverse and has the least quality
    assert [p["on_frontier"] for p in result["points"]] == [False, False, True, False, False]


def test_the_worst_end_is_that_of_an_interval_or_an_estimate() -> None:
    """Draws of 2 and 3 around an estimate of 1 or 4."""
    draws = np.array([[2.0] * 10, [3.0] * 10])
    assert worst_end(np.hstack([[[4.0], [4.0]], draws])) == 2
    assert worst_end(np.hstack([[[4.0], [1.0]], draws])) == 1


def test_a_given_reference_point() -> None:
    config = ParetoConfig(quality="q", diversity="d", reference_quality=0, reference_diversity=-1)
    result = compare([Point("f", "B", 1, fixed(3), fixed(3))], config)
    assert result["families"]["f"]["hypervolume"]["value"] == 12  # 3 by 4
    assert result["reference"] == {"quality": 0, "diversity": -1}


def test_shares_of_noisy_points_are_those_of_the_normal_distribution() -> None:
    """As diverse as each other, 0.1 apart in quality, sd 0.1 each: P(a > b) = Phi(1 / sqrt(2)).

    A share of 2000 draws has a standard deviation below 0.0112; the bound is four of them.
    """
    points = [
        Point("a", "", 1, noisy(0.5, 0.1, 1), fixed(0.3)),
        Point("b", "", 1, noisy(0.4, 0.1, 2), fixed(0.3)),
    ]
    result = compare(points, CONFIG)
    expected = NormalDist().cdf(1 / np.sqrt(2))
    a, b = (p["frontier_share"] for p in result["points"])
    assert a == pytest.approx(expected, abs=0.045)
    assert a + b == 1
    (pair,) = result["pairs"]
    assert (pair["dominates_share"], pair["dominated_share"]) == (a, b)


def test_the_basic_interval_by_hand() -> None:
    """Draws 0, 1, ..., 1000 of a value of 400: quantiles 25 and 975, reflected at 400."""
    row = basic(np.append(400.0, np.arange(1001)))
    assert row == pytest.approx({"value": 400, "low": -175, "high": 775})
    assert basic(np.append(400.0, np.arange(1001)), least=0.0)["low"] == 0


# ------------------------------------------------------------------------------------------------
# draws


def test_normal_draws_have_the_width_of_the_interval() -> None:
    """(0.3, 0.692) is 3.92 sd wide: sd 0.1; the sd of 2000 draws is known to 1.6%, four times."""
    numbers = draw_numbers(Measured({"value": 0.5, "low": 0.3, "high": 0.692}, None, None), 0)
    assert numbers[0] == 0.5 and len(numbers) == 1 + DRAWS
    assert numbers[1:].mean() == pytest.approx(0.5, abs=4 * 0.1 / np.sqrt(DRAWS))
    assert numbers[1:].std() == pytest.approx(0.1, rel=0.064)


def test_a_value_at_the_end_of_its_interval_is_not_beyond_it() -> None:
    """Half of the draws are the value, the lowest 2.5% below 0.72; so where it is above the end."""
    for value in (1.0, 1.1):
        numbers = draw_numbers(Measured({"value": value, "low": 0.72, "high": 1.0}, None, None), 0)
        low, high = np.quantile(numbers[1:], [0.025, 0.975])
        assert high == value and low == pytest.approx(0.72, abs=4 * 0.01)
        assert (numbers[1:] == value).mean() == pytest.approx(0.5, abs=4 * 0.0112)


def test_values_that_are_all_equal_are_as_uncertain_as_the_summary_says(tmp_path) -> None:
    """10 of 10 right; without noise it would be above 0.9 of the other setting in each draw."""
    folder = Path(write_folder(tmp_path / "a", "gsm8k", {"pass@1": 1.0}, {"pass@1": [1.0] * 10}))
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"]["pass@1"] = interval_row([1.0] * 10)
    (folder / "summary.json").write_text(json.dumps(summary))
    measured = find_metric([str(folder)], "pass@1", "")
    low, high = np.quantile(draw_numbers(measured, 0)[1:], [0.025, 0.975])
    assert measured.values is None
    assert (low, high) == pytest.approx(wilson_interval([1] * 10), abs=4 * 0.01)
    (folder / "values.json").write_text('{"pass@1": [[1.0, 1.0], [1.0, 3.0]]}')
    assert find_metric([str(folder)], "pass@1", "").values is None  # of whatever weights


def test_resampled_problems_agree_with_the_bootstrap() -> None:
    """The ends of both are quantiles of 2000 draws: two standard errors of them are 0.0031."""
    values = np.random.default_rng(0).beta(0.4, 0.7, size=300)
    weights = np.random.default_rng(1).integers(1, 9, size=300)
    for rows in (values, np.stack([values, weights], axis=1)):
        numbers = draw_numbers(Measured({"value": 0.5, "low": 0, "high": 1}, "p", rows), 0)
        ours = np.quantile(numbers[1:], [0.025, 0.975])
        assert ours == pytest.approx(bootstrap_interval(rows), abs=0.005)


def test_settings_that_share_problems_share_their_draws() -> None:
    """b loses 0.01 on each problem, far less than the interval is wide: it loses in every draw.

    Of the same numbers without the values of each problem the draws are independent.
    """
    values = np.random.default_rng(0).random(50)
    row = dict(zip(("low", "high"), bootstrap_interval(values), strict=True))
    pair = []
    for v in (values, values - 0.01):
        known = Measured({"value": v.mean(), **row}, "p", v)
        pair.append((draw_numbers(known, 0), draw_numbers(Measured(known.row, "p", None), 0)))
    (a, a_normal), (b, b_normal) = pair
    assert (a > b).all()
    assert a - b == pytest.approx(fixed(0.01))
    assert 0.3 < (a_normal > b_normal)[1:].mean() < 0.8


def test_training_seeds_are_drawn_anew() -> None:
    """Two runs of 0 and 1 without noise: their mean is 0, 1/2, 1 in 1/4, 1/2, 1/4 of the draws."""
    runs = [
        {axis: Measured(dict.fromkeys(("value", "low", "high"), v), None, None) for axis in
         ("quality", "diversity")}
        for v in (0.0, 1.0)
    ]  # fmt: skip
    (point,) = make_points({("f", "l"): runs}, seed=0)
    assert point.runs == 2 and point.quality[0] == 0.5
    found, counts = np.unique(point.quality[1:], return_counts=True)
    assert found.tolist() == [0, 0.5, 1]
    assert counts / DRAWS == pytest.approx([0.25, 0.5, 0.25], abs=4 * 0.0112)
    assert (point.diversity == point.quality).all()  # the same run for both axes


def test_settings_share_the_seeds_that_are_drawn() -> None:
    """Runs 0 and 1 of one setting, 0.1 less of the other, seed by seed."""

    def run(value: float) -> dict[str, Measured]:
        one = Measured(dict.fromkeys(("value", "low", "high"), value), None, None)
        return {"quality": one, "diversity": one}

    settings = {("f", "a"): [run(0.0), run(1.0)], ("f", "b"): [run(-0.1), run(0.9)]}
    a, b = make_points(settings, seed=0)
    assert a.quality - b.quality == pytest.approx(0.1)


def test_the_area_of_what_is_minimised() -> None:
    """Quality is a loss of 3, at most 5 counts; diversity is 4: (5 - 3) * (4 - 0) = 8."""
    config = ParetoConfig(quality="q", diversity="d", minimise=("quality",),
                          reference_quality=5, reference_diversity=0)  # fmt: skip
    result = compare([Point("f", "A", 1, fixed(3), fixed(4))], config)
    assert result["families"]["f"]["hypervolume"]["value"] == 8
    assert result["reference"] == {"quality": 5, "diversity": 0}


def test_a_run_in_two_families_is_one_point() -> None:
    """As DPO is SPL at tau 1: neither dominates the other in any draw, whatever the noise."""
    row = {"value": 0.5, "low": 0.4, "high": 0.6}
    run = {axis: Measured(row, "p", None) for axis in ("quality", "diversity")}
    points = make_points({("spl", "tau 1"): [run], ("dpo", "t 1"): [run]}, seed=0)
    result = compare(points, CONFIG)
    assert [p["frontier_share"] for p in result["points"]] == [1, 1]
    assert result["pairs"][0]["dominates_share"] == result["pairs"][0]["dominated_share"] == 0
    assert result["pairs"][0]["hypervolume_difference"] == {"value": 0, "low": 0, "high": 0}


# ------------------------------------------------------------------------------------------------
# files and the command line


def write_folder(folder: Path, task: str, metrics: dict, values: dict | None = None) -> str:
    folder.mkdir(parents=True)
    rows = {name: {"value": v, "low": v - 0.01, "high": v + 0.01} for name, v in metrics.items()}
    summary = {"task": task, "settings": {"data_sha256": "d"}, "problems": 2, "metrics": rows}
    (folder / "summary.json").write_text(json.dumps(summary))
    if values is not None:
        (folder / "values.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture
def runs(tmp_path) -> Path:
    """SPL above DPO by far, and a DPO run of which only the summary is there."""
    rows = []
    for family, label, quality, diversity in [
        ("spl", "tau 1.2", 0.5, 0.5),
        ("spl", "tau 2", 0.4, 0.9),
        ("dpo", "t 1", 0.45, 0.2),
        ("dpo", "t 1.2", 0.3, 0.4),
    ]:
        name = f"{family}-{label}".replace(" ", "-")
        values = None if label == "t 1.2" else {"pass@1": [quality - 0.01, quality + 0.01]}
        q = write_folder(tmp_path / f"{name}-q", "gsm8k", {"pass@1": quality, "pass@2": 1}, values)
        d = write_folder(tmp_path / f"{name}-d", "diversity", {"input/cosine": diversity})
        rows.append({"family": family, "label": label, "results": [q, d]})
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(monkeypatch, runs: Path, out: Path, *flags: str, quality: str = "pass@1") -> None:
    metrics = ["--quality", quality, "--diversity", "input/cosine"]
    argv = ["eval.pareto", "--runs", str(runs), *metrics, "--out", str(out), *flags]
    monkeypatch.setattr("sys.argv", argv)
    pareto.main()


def test_from_results_folders_to_the_frontier(runs, tmp_path, monkeypatch, capsys) -> None:
    run(monkeypatch, runs, tmp_path / "out")
    result = json.loads((tmp_path / "out/frontier.json").read_text())
    assert [p["on_frontier"] for p in result["points"]] == [True, True, False, False]
    assert [p["frontier_share"] for p in result["points"]] == [1, 1, 0, 0]
    assert result["draws"] == {"draws": DRAWS, "problems_resampled": 3, "normal": 5}
    assert result["pairs"][0]["dominates_share"] == 1
    assert result["settings"]["quality"] == "pass@1"
    assert (tmp_path / "out/frontier.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "spl     dpo    1.000" in printed
    assert "problems drawn anew for 3 numbers" in printed
    run(monkeypatch, runs, tmp_path / "again")
    again = json.loads((tmp_path / "again/frontier.json").read_text())
    assert {**again, "settings": None} == {**result, "settings": None}


def test_numbers_are_there_when_matplotlib_is_not(runs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run(monkeypatch, runs, tmp_path / "out")
    assert "no picture: " in (printed := capsys.readouterr().out) and "pip install" in printed
    assert (tmp_path / "out/frontier.json").is_file()
    assert not list((tmp_path / "out").glob("frontier.??g"))


def test_an_unknown_metric_lists_what_is_there(runs, tmp_path, monkeypatch) -> None:
    with pytest.raises(
        ValueError, match=r"runs.jsonl:1: .*\bpass@3, got no folder; .*gsm8k:pass@2"
    ):
        run(monkeypatch, runs, tmp_path / "out", quality="pass@3")


def test_a_metric_of_two_folders_needs_its_task(tmp_path) -> None:
    folders = [
        write_folder(tmp_path / task, task, {"pass@1": value})
        for task, value in [("gsm8k", 0.25), ("humaneval", 0.75)]
    ]
    with pytest.raises(ValueError, match=r"gsm8k and .*humaneval; there is gsm8k:pass@1"):
        find_metric(folders, "pass@1", "runs:1")
    assert find_metric(folders, "gsm8k:pass@1", "").row["value"] == 0.25
    assert find_metric(folders, "humaneval:pass@1", "").row["value"] == 0.75
    colon = write_folder(tmp_path / "mmlu", "mmlu_pro", {"stage/answer:": 0.5})
    assert find_metric([colon], "stage/answer:", "").row["value"] == 0.5
    assert find_metric([colon], "mmlu_pro:stage/answer:", "").row["value"] == 0.5


def test_values_of_another_summary_are_refused(tmp_path) -> None:
    folder = write_folder(tmp_path / "a", "gsm8k", {"pass@1": 0.5}, {"pass@1": [0.5, 0.6]})
    with pytest.raises(ValueError, match=r"values.json: the values of pass@1 are not those of"):
        find_metric([folder], "pass@1", "")


def test_a_number_that_is_none_is_refused(tmp_path) -> None:
    folder = write_folder(tmp_path / "a", "diversity", {"input/cosine": float("nan")})
    with pytest.raises(ValueError, match=r"summary.json: expected a finite input/cosine"):
        find_metric([folder], "input/cosine", "")


def test_bad_rows_are_named(runs, tmp_path) -> None:
    def read(text: str) -> None:
        file = tmp_path / "bad.jsonl"
        file.write_text(text)
        read_runs(ParetoConfig(runs=str(file), quality="pass@1", diversity="input/cosine"))

    row = json.loads(runs.read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"bad.jsonl:2: the run stands there twice"):
        read((json.dumps(row) + "\n") * 2)
    with pytest.raises(ValueError, match=r"bad.jsonl:1: expected `results`"):
        read(json.dumps(row | {"results": []}))
    with pytest.raises(ValueError, match=r"bad.jsonl:1: label: expected a text, got a number"):
        read(json.dumps(row | {"label": 1.2}))
    with pytest.raises(FileNotFoundError, match=r"nowhere.summary.json is not there"):
        read(json.dumps(row | {"results": [str(tmp_path / "nowhere")]}))
    with pytest.raises(ValueError, match="no run in it"):
        read("")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minimise", "speed"], "--minimise expects quality or diversity"),
        (["--seed", "-1"], "--seed expects 0 or more"),
    ],
)
def test_bad_flags(runs, tmp_path, monkeypatch, flags, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, runs, tmp_path / "out", *flags)
