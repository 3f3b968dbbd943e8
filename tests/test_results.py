"""eval/results.py: which interval a metric gets, paired differences, the files, every refusal.

pytest tests/test_results.py
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from eval.metrics import basic_interval, bootstrap_interval, wilson_interval
from eval.results import (
    Statistic,
    data_digest,
    differences,
    interval_row,
    print_table,
    read_baseline,
    read_results,
    report,
    summarize,
    write_values,
)

ITEMS = [{"index": i, "right": right, "text": "é\u2028ア"} for i, right in enumerate([1, 0, 1])]
SETTINGS = {"data_sha256": "d", "limit": None}


def metric_values(items: Sequence[Mapping]) -> dict:
    """The share right, and the size of their mean's distance from 1."""
    right = [item["right"] for item in items]
    rows = np.array(right, dtype=float)
    return {"right": right, "wrong": Statistic(rows, lambda rows: 1 - rows.mean(), least=0)}


def unlike(rows: np.ndarray) -> float:
    """The share of rows that are there more than once: only a resample has any."""
    return 1 - len(np.unique(rows)) / len(rows)


# ------------------------------------------------------------------------------------------------
# intervals


def bounds(row: Mapping) -> tuple[float, float]:
    return row["low"], row["high"]


@pytest.mark.parametrize("values", [[1, 0, 1, 1], [1.0, 0.0], [True, False], [0] * 5, [1.0]])
def test_values_that_are_0_or_1_have_the_interval_of_a_proportion(values):
    row = interval_row(values)
    assert row["value"] == sum(values) / len(values)
    assert bounds(row) == wilson_interval(values)
    assert row["low"] < row["high"]


@pytest.mark.parametrize("values", [[1, 0, 0.5], [2, 0, 1], [(1, 1), (0, 1)], [0.25, 0.25]])
def test_other_values_and_weighted_ones_have_percentiles(values):
    assert bounds(interval_row(values)) == bootstrap_interval(values)


@pytest.mark.parametrize(
    "name", ["headers/policy", "bytes/opponent", "words", "letters/brier", "nll", "surface"]
)
def test_what_is_no_share_has_no_interval_of_a_proportion(name):
    """No header in any of three answers, or one in each; the same numbers of a share have one."""
    for value in (0.0, 1.0):
        rows = summarize({name: [value] * 3, "pass@1": [value] * 3})
        assert rows[name] == {"value": value, "low": value, "high": value}
        assert bounds(rows["pass@1"]) == wilson_interval([value] * 3)


def test_a_statistic_has_the_basic_interval():
    rows = np.random.default_rng(0).exponential(size=(40, 2))
    statistic = Statistic(rows, lambda rows: rows[:, 0].sum() / rows[:, 1].sum())
    row = interval_row(statistic)
    assert row["value"] == rows[:, 0].sum() / rows[:, 1].sum()
    assert bounds(row) == basic_interval(rows, statistic.compute)
    assert len(statistic) == 40


def test_an_interval_ends_where_a_statistic_does():
    """max of 0 and 1 is 1, of their resamples 0 or 1: from 2 - 1 to 2 - 0, cut at most at 1.

    The number of rows less one, which no resample changes, lies between its limits: no cut.
    """
    rows = np.array([0.0, 1.0])
    assert bounds(interval_row(Statistic(rows, np.max))) == (1, 2)
    assert bounds(interval_row(Statistic(rows, np.max, most=1.5))) == (1, 1.5)
    assert bounds(interval_row(Statistic(rows, lambda rows: len(rows) - 1.0, 0, 2))) == (1, 1)


def test_an_interval_beyond_the_least_value_is_not_upside_down():
    """No row is there twice, in each resample a third: all of 2 * 0 - 1/3 is below 0."""
    rows = np.arange(50)
    low, high = basic_interval(rows, unlike)
    assert low < high < 0
    row = interval_row(Statistic(rows, unlike, least=0, most=1))
    assert row == {"value": 0, "low": 0, "high": 0}
    assert all(type(value) is float for value in row.values())


def test_a_metric_of_one_problem_has_no_width():
    assert summarize({"x": [0.25]}) == {"x": {"value": 0.25, "low": 0.25, "high": 0.25}}


# ------------------------------------------------------------------------------------------------
# differences


def test_only_metrics_of_the_same_problems_are_compared():
    ours = {"a": [1.0, 0.0], "b": [1.0], "c": [1.0]}
    theirs = {"a": [0.0, 0.0], "b": [1.0, 0.0], "d": [1.0]}
    assert differences(ours, theirs).keys() == {"a - baseline"}


def test_values_differ_problem_by_problem():
    """Differences 1, 0 and 0; a resample has none of the first in 8 of 27, it alone in 1 of 27."""
    rows = differences({"a": [1, 1, 0]}, {"a": [0, 1, 0]})
    assert rows == {"a - baseline": pytest.approx({"value": 1 / 3, "low": 0, "high": 1})}


def test_a_statistic_differs_problem_by_problem():
    """The largest of 3, 0 and of 1, 1: 2 more. So it is in three of four resamples, in one -1.

    From 2 * 2 - 2 to 2 * 2 + 1.
    """
    ours, theirs = Statistic(np.array([3.0, 0.0]), np.max), Statistic(np.array([1.0, 1.0]), np.max)
    rows = differences({"a": ours}, {"a": theirs})
    assert rows == {"a - baseline": {"value": 2, "low": 2, "high": 5}}


def test_what_two_statistics_share_cancels():
    """Deviations of the same numbers, 1 higher: alone each has a width, their difference none."""
    rows = np.random.default_rng(0).integers(9, size=30).astype(float)
    ours, theirs = Statistic(rows + 1, np.std), Statistic(rows, np.std)
    low, high = bounds(differences({"a": ours}, {"a": theirs})["a - baseline"])
    assert (low, high) == pytest.approx((0, 0), abs=1e-12)
    low, high = bounds(interval_row(ours))
    assert high - low > 0.5


def test_each_statistic_is_compared_by_its_own_rule():
    """Three of them in one go: the rule of the last is not that of all."""
    rules = {"least": np.min, "mean": np.mean, "most": np.max}
    ours = {name: Statistic(np.array([1.0, 2.0, 6.0]), rule) for name, rule in rules.items()}
    theirs = {name: Statistic(np.zeros(3), rule) for name, rule in rules.items()}
    values = [row["value"] for row in differences(ours, theirs).values()]
    assert values == [1, 3, 6]


# ------------------------------------------------------------------------------------------------
# files


def test_report_writes_and_shows_what_was_found(tmp_path, capsys):
    """2 of 3 right; the differences are from a policy that had none."""
    none = metric_values([{"right": 0}] * 3)
    metrics = report(tmp_path / "new" / "out", "task", SETTINGS, ITEMS, metric_values, none)
    assert list(metrics) == ["right", "wrong", "right - baseline", "wrong - baseline"]
    values = [metrics[name]["value"] for name in metrics]
    assert values == pytest.approx([2 / 3, 1 / 3, 2 / 3, -2 / 3])
    summary = json.loads((tmp_path / "new" / "out" / "summary.json").read_text())
    expected = {"task": "task", "settings": SETTINGS, "problems": 3, "metrics": metrics}
    assert summary == expected and list(summary) == list(expected)
    text = (tmp_path / "new" / "out" / "items.jsonl").read_bytes().decode()
    assert [json.loads(line) for line in text.split("\n")[:-1]] == ITEMS
    assert "é\u2028ア" in text
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["value", "low", "high"]
    assert shown[1].split() == [
        "right",
        "0.6667",
        *(f"{wilson_interval([1, 0, 1])[i]:.4f}" for i in (0, 1)),
    ]
    assert shown[4].startswith("wrong - baseline  -0.6667")
    assert shown[5] == f"3 problems, 95% intervals over problems; details in {tmp_path}/new/out"
    assert len({line.index(".") for line in shown[1:5]}) == 1, "numbers stand below each other"


def test_what_a_report_has_written_is_a_baseline(tmp_path):
    report(tmp_path, "task", SETTINGS, ITEMS, metric_values)
    summary, items = read_results(tmp_path)
    assert (summary["task"], items) == ("task", ITEMS)
    baseline = read_baseline(str(tmp_path), "out", "task", "d", 3, metric_values)
    assert differences(metric_values(ITEMS), baseline)["wrong - baseline"]["value"] == 0
    assert read_baseline(None, "out", "task", "d", 3, metric_values) == {}


def test_a_baseline_is_not_overwritten(tmp_path):
    """By whatever name its folder goes; another folder beside it is free."""
    report(tmp_path / "a", "task", SETTINGS, ITEMS, metric_values)
    known = ("task", "d", 3, metric_values)
    with pytest.raises(ValueError, match=r"--out .* is the folder of --baseline, whose results"):
        read_baseline(str(tmp_path / "a"), str(tmp_path / "b" / ".." / "a"), *known)
    assert read_baseline(str(tmp_path / "a"), str(tmp_path / "b"), *known)["right"] == [1, 0, 1]


@pytest.mark.parametrize(
    ("task", "digest", "problems"), [("other", "d", 3), ("task", "e", 3), ("task", "d", 2)]
)
def test_a_baseline_of_something_else_is_refused(tmp_path, task, digest, problems):
    report(tmp_path, "task", SETTINGS, ITEMS, metric_values)
    message = (
        rf"--baseline .*: expected results of {task} on the same problems \({problems} of --data\)"
        ", got task on 3, or of another file"
    )
    with pytest.raises(ValueError, match=message):
        read_baseline(str(tmp_path), "out", task, digest, problems, metric_values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "summary.json",
            None,
            r"--baseline expects the results folder .*; .* has no summary\.json",
        ),
        ("items.jsonl", None, r"--baseline expects the results folder .*; .* has no items\.jsonl"),
        ("summary.json", "{", r"summary\.json: expected the summary of an earlier run"),
        ("summary.json", "[]", r"summary\.json: expected the summary of an earlier run"),
        ("summary.json", '{"settings": 3}', r"summary\.json: expected the summary"),
        ("summary.json", '{"settings": {}}', "got None on 3"),
        ("items.jsonl", "{", r"items\.jsonl:1: not JSON"),
        ("items.jsonl", "3\n", r"items\.jsonl:1: expected an object"),
        ("items.jsonl", "{}\n" * 3, r"items\.jsonl: not the items of an earlier run: .*'right'"),
        ("items.jsonl", '{"right": "x"}\n' * 3, r"items\.jsonl: not the items of an earlier run"),
    ],
)
def test_a_baseline_that_is_damaged_is_named(tmp_path, name, text, message):
    report(tmp_path, "task", SETTINGS, ITEMS, metric_values)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_baseline(str(tmp_path), "out", "task", "d", 3, metric_values)


def test_a_baseline_has_as_many_completions_where_both_are_known(tmp_path):
    report(tmp_path, "task", SETTINGS | {"n": 2}, ITEMS, metric_values)
    known = (str(tmp_path), "out", "task", "d", 3, metric_values)
    assert read_baseline(*known, 2)["right"] == read_baseline(*known)["right"] == [1, 0, 1]
    with pytest.raises(ValueError, match="expected 16 completions of each problem as here, got 2"):
        read_baseline(*known, 16)
    report(tmp_path, "task", SETTINGS | {"n": None}, ITEMS, metric_values)
    assert read_baseline(*known, 16)["right"] == [1, 0, 1]


@pytest.mark.parametrize("marks", ["[]", "[null]", "3", '{"a": 1}', '["x"]', "null"])
def test_items_that_no_metric_can_be_made_of_are_named(tmp_path, marks):
    """By what they make of a share of completions: no division by zero, no sum of texts."""

    def share_right(items: Sequence[Mapping]) -> dict:
        return {"right": [sum(item["right"]) / len(item["right"]) for item in items]}

    report(tmp_path, "task", SETTINGS, ITEMS, metric_values)
    (tmp_path / "items.jsonl").write_text(f'{{"right": {marks}}}\n' * 3)
    with pytest.raises(ValueError, match=r"items\.jsonl: not the items of an earlier run"):
        read_baseline(str(tmp_path), "out", "task", "d", 3, share_right)


# ------------------------------------------------------------------------------------------------
# what an evaluation has read


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc\r\n")
    assert data_digest(str(tmp_path / "a")) == hashlib.sha256(b"abc\r\n").hexdigest()


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path):
    """By hand, in the order of the names; what is in a folder below it does not count."""
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c").write_bytes(b"3")
    contents = [b"a\0" + hashlib.sha256(b"1").digest(), b"b\0" + hashlib.sha256(b"2").digest()]
    assert data_digest(tmp_path) == hashlib.sha256(b"".join(contents)).hexdigest()


def test_the_digest_of_a_folder_changes_with_it(tmp_path):
    changes = [
        lambda: (tmp_path / "a").write_bytes(b"12"),
        lambda: (tmp_path / "a").write_bytes(b"1"),
        lambda: (tmp_path / "b").write_bytes(b"2"),  # the same bytes in other files
        lambda: (tmp_path / "a").rename(tmp_path / "c"),
        lambda: (tmp_path / "b").unlink(),
        lambda: (tmp_path / "d").write_bytes(b""),
    ]
    digests = []
    for change in changes:
        change()
        digests.append(data_digest(tmp_path))
    assert len(set(digests)) == len(changes)


def test_the_table_counts_what_is_many(capsys):
    """31 subjects are one line, 2 languages two; the metric of the same name stays."""
    row = {"value": 0.5, "low": 0.25, "high": 0.75}
    print_table(dict.fromkeys([f"accuracy/{i}" for i in range(30)], row))
    assert len(capsys.readouterr().out.splitlines()) == 1 + 30
    names = ["accuracy", *(f"accuracy/{i}" for i in range(31)), "ece/a", "ece/b"]
    print_table(dict.fromkeys(names, row))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "accuracy",
        "ece/a",
        "ece/b",
        "accuracy/...:",
    ]
    assert lines[-1] == "accuracy/...: 31 in summary.json"


def test_values_of_each_problem_are_kept(tmp_path):
    """Means, with weights or without; a statistic has none."""
    values = {"a": [1.0, 0.0], "b": [(1.0, 2.0), (0.5, 1.0)],
              "c": Statistic(np.zeros((2, 1)), lambda rows: 0.0)}  # fmt: skip
    write_values(tmp_path, values)
    kept = json.loads((tmp_path / "values.json").read_text())
    assert kept == {"a": [1.0, 0.0], "b": [[1.0, 2.0], [0.5, 1.0]]}
