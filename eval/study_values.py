"""From the rows of a study to its settings, and to the value of each problem.

No command of its own. A setting is one way to make a policy or to draw from it, with a row for each
seed. A selector, `{"family": "spl", "tau": [1, 2]}`, names settings. A metric is a name that
`metric_values` knows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

MEASURED = ("test", "decode", "base")  # kinds of rows
SELECTED = ("family", "setting", "tau", "alpha", "beta", "process")  # keys of a selector
COUNTED = {"pass": "correct", "valid": "valid"}  # NAME@k -> the counts that it is computed from
OF_N = ("distinct", "distinct_correct", "majority", "confidence", "brier")  # depend on how many
# completions were drawn
METRIC = re.compile(
    r"(?P<name>entropy/token|[a-z_]+)(@(?P<k>[1-9]\d*))?(/(?P<grade>easy|medium|hard))?"
)
FLAT = 0.05  # of what the held-out loss has fallen by the middle: on a plateau it moves no further
SHARES = re.compile(
    r"([a-z_\d]+:(letters/)?)?"
    r"(pass|valid|floor|majority|unique|distinct|no_answer|ece|mass|share|accuracy|mc\d|prompt_"
    r"|instruction_).*"
    r"|diversity:input/(distinct|unique|self_bleu).*"
)  # names of metrics in [0, 1]

Row = Mapping[str, Any]
Setting = dict[int, Row]  # seed -> row
Selector = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class MissingError(Exception):
    """What is asked for is not among the rows."""


# ------------------------------------------------------------------------------------------------
# rows -> settings


def process_rows(rows: Sequence[Row], process: str) -> list[Row]:
    """Its reference's rows, then its own.

    The reference has seen no labels, and processes share its rows. A study may have several: those
    of this process have its source, and as many problems and completions as its policies. A row
    with fewer completions than these is without what depends on their number.
    """
    own = [row for row in rows if row.get("process") == process]
    alike = {shape_of(row) for row in own if row["kind"] == "test"}
    sources = {row.get("source") for row in own if row["kind"] == "test"}
    base = [row for row in rows if row["kind"] == "base" and row.get("process") is None]
    base = [row for row in base if shape_of(row) in alike and row.get("source") in sources]
    return base + [row if shape_of(row) in {None, *alike} else without_n(row) for row in own]


def without_n(row: Row) -> Row:
    problems = {name: value for name, value in row["problems"].items() if name not in OF_N}
    return {**row, "problems": problems}


def shape_of(row: Row) -> tuple[int, int] | None:
    """How many problems a policy was measured on, and by how many completions of each."""
    problems = row.get("problems")
    return (len(problems["correct"]), problems["n"]) if problems else None


def find_settings(rows: Sequence[Row], selector: Selector) -> list[Setting]:
    """The measured settings that a selector, or any of several, names, in the order of the rows.

    Raises MissingError if a setting has two rows of one seed.
    """
    parts = selector if isinstance(selector, list) else [selector]
    found: dict[tuple, Setting] = {}
    for row in rows:
        if row["kind"] in MEASURED and any(selects(part, row) for part in parts):
            name = (row.get("process"), row["family"], row["setting"])
            setting = found.setdefault(name, {})
            if row["seed"] in setting:
                twice = f"{setting[row['seed']]['cell']} and {row['cell']}"
                raise MissingError(f"one row of each seed: there are {twice}")
            setting[row["seed"]] = row
    return list(found.values())


def selects(part: Mapping, row: Row) -> bool:
    """Whether a row has, under each key, the value or one of the values."""
    return all(
        any(same(row.get(key), one) for one in (value if isinstance(value, list) else [value]))
        for key, value in part.items()
    )


def same(found: object, wanted: str | float) -> bool:
    if isinstance(wanted, str) or not isinstance(found, int | float):
        return found == wanted
    return math.isclose(found, wanted, rel_tol=1e-9)


def shared_seeds(settings: Sequence[Setting]) -> list[int]:
    """Seeds that every setting has; the base policy's only row goes with each of them."""
    trained = [setting for setting in settings if not is_only_base(setting)] or settings
    seeds = sorted(set.intersection(*map(set, trained)))
    if not seeds:
        raise MissingError("a seed that all settings have")
    return seeds


def is_only_base(setting: Setting) -> bool:
    return len(setting) == 1 and next(iter(setting.values()))["family"] == "base"


def seed_row(setting: Setting, seed: int) -> Row:
    return next(iter(setting.values())) if is_only_base(setting) else setting[seed]


def rates_note(rows: Sequence[Row]) -> str:
    """Which policies have another learning rate than most of these, if any has."""
    by_rate: dict[float, list[str]] = {}
    for row in rows:
        if row.get("rate"):
            family = "" if row["family"] == "spl" else f"{row['family']}, "
            by_rate.setdefault(row["rate"], []).append(family + row["setting"])
    if len(by_rate) < 2:
        return ""
    common = max(by_rate, key=lambda rate: len(by_rate[rate]))
    others = [f"{', '.join(dict.fromkeys(names))} at {rate:.3g} times"
              for rate, names in sorted(by_rate.items()) if rate != common]  # fmt: skip
    return f"learning rates differ: {'; '.join(others)} the default, the others at {common:.3g}"


def coordinate(setting: Setting, x: str) -> float:
    """tau, alpha or beta of a setting, or the number behind a name in its label: "t" of "t 1.2"."""
    row = next(iter(setting.values()))
    if isinstance(row.get(x), int | float):
        return float(row[x])
    found = re.search(rf"(?:^|\s){re.escape(x)} (\d+(?:\.\d+)?)(?:,|$)", row["setting"])
    if found is None:
        raise MissingError(f"{x} of {row['cell']}")
    return float(found[1])


def read_values(setting: Setting, seeds: Sequence[int], metric: str) -> list[np.ndarray]:
    """The metric of each seed, see `metric_values`; MissingError where a row does not have it."""
    values = []
    for seed in seeds:
        row = seed_row(setting, seed)
        try:
            values.append(metric_values(row, metric))
        except KeyError:
            raise MissingError(f"{metric} of {row['cell']}") from None
    return values


# ------------------------------------------------------------------------------------------------
# a row -> values


def check_metric(name: str, where: str) -> None:
    """ValueError for the name of a metric that `metric_values` does not know."""
    if re.fullmatch(r"[a-z_\d]+:\S.*", name):  # a level of MATH has a space
        return
    parts = METRIC.fullmatch(name)
    whole = parts is not None and (parts["name"] != "ece" or name == "ece")
    if not whole or (parts["name"] in COUNTED) != (parts["k"] is not None):
        raise ValueError(
            f"{where}: expected pass@K, valid@K, unique, majority, brier, entropy, entropy/token, "
            "tokens, each with /easy, /medium, /hard or none of these, ece, or TASK:NAME, got "
            f"{name!r}"
        )


def split_metric(name: str) -> tuple[str, int | None, str | None]:
    """pass@128/hard -> pass, 128, hard; None for what is not there."""
    parts = METRIC.fullmatch(name)
    return parts["name"], int(parts["k"]) if parts["k"] else None, parts["grade"]


def metric_values(row: Row, name: str) -> np.ndarray:
    """A value for each problem, (P,), of a grade if `name` ends with one.

    TASK:NAME: where the row has none for each problem, () of their mean or whatever it is;
    pass@K and valid@K: the unbiased estimate from n completions; unique: different completions / n;
    entropy: -log pi of a completion, in nats, for plain draws of the policy; entropy/token: over
    its tokens; ece: accuracy - confidence of the vote, see `ece_numbers`; other names: as the row
    has them. KeyError where the row does not have it.
    """
    check_metric(name, "metric")
    if ":" in name:
        values = row.get("values", {}).get(name, row["metrics"][name]["value"])
        return np.array(values, dtype=np.float64)
    problems, (base, k, grade) = row["problems"], split_metric(name)
    if k is not None:
        if k > problems["n"]:
            raise KeyError(name)
        values = pass_curves(row, base)[:, k - 1]
    elif base == "unique":
        values = np.array(problems["distinct"]) / problems["n"]
    elif base == "ece":
        values = np.array(problems["majority"]) - np.array(problems["confidence"])
    elif base == "entropy/token":
        values = np.array(problems["entropy"]) / np.array(problems["tokens"])
    else:
        values = np.array(problems[base], dtype=np.float64)
    return values[of_grade(row, grade)]


def on_plateau(row: Row) -> bool:
    """Whether a training's held-out loss moves, up or down, by at most FLAT of the first half's
    fall in the second half of the steps.

    At half of the steps a cosine schedule still has half of its learning rate.
    """
    curves = row.get("curves")
    if not curves:
        return False
    steps, losses = np.array(curves["step"]), np.array(curves["eval/loss"])
    middle = losses[np.abs(steps - steps[-1] / 2).argmin()]
    fall = losses[0] - middle
    return bool(fall > 0 and abs(losses[-1] - middle) <= FLAT * fall)


def of_grade(row: Row, grade: str | None) -> np.ndarray:
    """(P,) which problems are of this grade, all for None; KeyError if none is."""
    difficulty = np.array(row["problems"]["difficulty"])
    chosen = difficulty == grade if grade else np.full(len(difficulty), True)
    if not chosen.any():
        raise KeyError(grade)
    return chosen


def pass_curves(row: Row, name: str = "pass") -> np.ndarray:
    """(P, n): pass@k of each problem, or valid@k, for k = 1, ..., n."""
    return pass_table(row["problems"]["n"])[row["problems"][COUNTED[name]]]


@cache
def pass_table(n: int) -> np.ndarray:
    """(n + 1, n): pass@k for each count c of right ones among n completions, k = 1, ..., n.

    1 - C(n - c, k) / C(n, k), a product over k as in `eval.metrics.pass_at_k`.
    """
    c, k = np.arange(n + 1)[:, None], np.arange(1, n + 1)
    return 1 - np.cumprod(np.maximum(n - c - k + 1, 0) / (n - k + 1), axis=1)
