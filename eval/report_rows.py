"""The rows of a study: read and checked, grouped by setting, as numbers with their intervals.

No command of its own. A *setting* is one way to make a policy or to draw from it (family and
setting of a row); it has a row for each seed. A *part* is what is shown together: the rows of one
study with one label process, and the reference policy, which all processes share.
"""

# ruff: noqa: RUF001 signs of mathematics in captions

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import study_cells
from eval.plots import read_json
from eval.report_charts import INK, Colour
from eval.study_statistics import interval, mean_numbers, row_numbers
from eval.study_values import MEASURED, SHARES, metric_values, process_rows

Row = Mapping[str, Any]

REQUIRED = {"process": str, "family": str, "setting": str, "seed": int}
SPL, BASE = "spl", "base"
TEMPERATURE = "spl, token temperature"  # settings "tau 2, t 0.7"
KL = "kl"  # of the policy and the reference, made of two metrics of eval.diversity
OF_PROMPTS = {  # where a row has completions of prompts that are no problems
    "entropy": "diversity:entropy/sequence",
    "entropy/token": "diversity:entropy/token",
    "tokens": "diversity:tokens",
    "unique": "diversity:input/unique",
}
FAMILIES = {  # Okabe and Ito's colours and a brown, lighter ones on dark paper
    SPL: ("#0072B2", "#56B4E9"),
    "dpo with beta'": ("#E69F00", "#F0BE4E"),
    "f-dpo": ("#CC79A7", "#E3A6C6"),
    "dpo, token temperature": ("#D55E00", "#FF8A3D"),
    "dpo, top-p": ("#56B4E9", "#9AD3F5"),
    "dpo, min-p": ("#009E73", "#2FD0A3"),
    "dpo, resampled": ("#8B5A2B", "#C89B6B"),
    BASE: ("#6b7280", "#a3a9b3"),
}
OTHERS: Sequence[Colour] = (("#8C6D1F", "#C9A955"), ("#5B2A86", "#B48ADB"))  # of other families
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
TAUS = {  # warm below 1, ink at 1, cold above
    0.5: ("#8E1B1B", "#E0645C"), 0.8: ("#D55E00", "#FF8A3D"), 0.9: ("#E69F00", "#F2B84B"),
    0.95: ("#BFA300", "#E5D04F"), 1.0: INK, 1.1: ("#4C9A2A", "#8CCB6B"),
    1.2: ("#009E73", "#2FD0A3"), 1.5: ("#33A6C8", "#6FD0EA"), 2.0: ("#0072B2", "#56B4E9"),
    4.0: ("#3F4FB5", "#8F9BF0"), 10.0: ("#7A2E9D", "#C78BE3"), 11.0: ("#B0307F", "#EE8CC4"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------
# studies


@dataclass(frozen=True)
class Study:
    folder: Path
    about: Mapping[str, Any]  # study.json
    rows: list[Row]

    @property
    def plan(self) -> str:
        return str(self.about.get("plan", self.folder.name))


def read_study(folder: Path) -> Study:
    """A study's folder; ValueError or FileNotFoundError with the place for what is not one."""
    about = read_json(folder / "study.json", dict)
    rows = study_cells.read_study(folder)
    if not any(row.get("kind") in (*MEASURED, "train") for row in rows):
        raise ValueError(
            f"{folder / 'results.jsonl'}: expected rows of policies, got none; has a training or "
            "a measurement of the study ended?"
        )
    for row in rows:
        check_row(row, f"{folder / 'results.jsonl'}: {row['cell']}")
    return Study(folder, about, rows)


def check_row(row: Row, where: str) -> None:
    if type(row.get("kind")) is not str:
        raise ValueError(f"{where}: kind: expected a text, got {row.get('kind')!r}")
    for key, kind in REQUIRED.items() if row["kind"] in (*MEASURED, "train") else ():
        if type(row.get(key)) is not kind and (row["kind"], key) != (BASE, "process"):
            raise ValueError(f"{where}: {key}: expected {kind.__name__}, got {row.get(key)!r}")


def parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """process -> the rows of its reference policy, and of its own policies, in their order."""
    policies = [row for row in rows if row["kind"] in (*MEASURED, "train")]
    names = dict.fromkeys(row["process"] for row in policies if row.get("process"))
    return {name: process_rows(policies, name) for name in names} or {"reference": policies}


def measured(rows: Sequence[Row]) -> list[Row]:
    """The rows of the policies that were measured at last, not those that chose a learning rate."""
    return [row for row in rows if row["kind"] in MEASURED]


def trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "train"]


def is_chosen(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a training's learning rate is the one at which its setting was measured.

    Where its process has one rate alone there is no other.
    """
    own = [other for other in rows if other.get("process") == row.get("process")]
    tested = {other.get("rate") for other in own
              if other["kind"] == "test" and policy(other) == policy(row)}  # fmt: skip
    tried = {other.get("rate") for other in trained(own)}
    return row.get("rate") in (tried if len(tried) == 1 else tested)


def policy(row: Row) -> tuple:
    return row.get("process"), row.get("family"), row.get("setting")


def settings(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(family, setting) -> its rows by seed: the base first, then in the order of FAMILIES.

    Within a family the grid's beta first, by tau, then beta, else in the order of the file.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["family"], row["setting"]), []).append(row)
    names, beta = [BASE, *FAMILIES], main_beta(rows)

    def order(item: tuple) -> tuple:
        family, row = item[0][0], item[1][0]
        place = names.index(family) if family in names else len(names)
        apart = family == SPL and row.get("beta") != beta
        return place, family, apart, row.get("tau") or 0, row.get("beta") or 0

    return {key: sorted(rows, key=lambda row: row["seed"])
            for key, rows in sorted(found.items(), key=order)}  # fmt: skip


def of_family(rows: Sequence[Row], family: str) -> dict[str, list[Row]]:
    """setting -> rows of one family."""
    return {name: found for (other, name), found in settings(rows).items() if other == family}


def main_beta(rows: Sequence[Row]) -> float | None:
    """The beta at which most SPL rows stand: that of the grid of tau."""
    counts = Counter(row.get("beta") for row in rows if row["family"] == SPL)
    return counts.most_common(1)[0][0] if counts else None


def by_tau(rows: Sequence[Row]) -> dict[float, list[Row]]:
    """tau -> rows by seed, of SPL at the grid's beta."""
    beta = main_beta(rows)
    found = of_family([row for row in rows if row.get("beta") == beta], SPL).values()
    return {same[0]["tau"]: same for same in found if same[0].get("tau")}


def difficulties(rows: Sequence[Row]) -> list[str]:
    """Those that the problems have, in the order in which they come."""
    labels = (label for row in rows if row.get("problems")
              for label in row["problems"].get("difficulty") or ())  # fmt: skip
    return [label for label in dict.fromkeys(labels) if label]


def samples_of(rows: Sequence[Row]) -> int:
    """Completions of each problem, the most of any row."""
    return max((row["problems"]["n"] for row in rows if row.get("problems")), default=0)


# ------------------------------------------------------------------------------------------------
# numbers


def values(row: Row, name: str) -> np.ndarray | None:
    """(problems,) or () of one row; None where the row has no such number.

    name: as `metric_values` has it, or `kl`: D_KL(pi || pi_ref) = cross-entropy - entropy of whole
    completions, as eval.diversity estimates both. What was not drawn plainly from a policy has no
    entropy: its row has -log pi of it under `cross_entropy`.
    """
    if ":" not in name and name != KL and not row.get("problems"):
        name = OF_PROMPTS.get(name, name)
        if ":" not in name:
            return None
    if name == KL:
        cross, own = (values(row, f"diversity:{side}/sequence")
                      for side in ("reference_cross_entropy", "entropy"))  # fmt: skip
        return None if cross is None or own is None else cross - own
    try:
        found = np.asarray(metric_values(row, name), dtype=float)
    except KeyError:
        return None
    return found if found.size and np.isfinite(found).all() else None


def numbers(rows: Sequence[Row], name: str) -> np.ndarray:
    """`row_numbers` of study_statistics, of names that `values` knows; all rows have a value."""
    if (":" in name or name == KL) or not rows[0].get("problems"):
        return mean_numbers([values(row, name) for row in rows])
    return row_numbers(rows, name)


def estimate(rows: Sequence[Row], name: str) -> Sequence[float | None] | None:
    """(value, low, high): a number of a setting with its 95% interval over seeds and problems, or
    None for both ends where there is none; None without rows.

    rows: one for each seed. With one seed the interval is over problems, or that of the evaluation.
    """
    with_it = [row for row in rows if values(row, name) is not None]
    if not with_it:
        return None
    value, low, high = interval(numbers(with_it, name))
    if math.isnan(low):  # one seed, and no values of problems
        metric = with_it[0]["metrics"].get(name)
        if metric is None:
            return value, None, None
        low, high = metric["low"], metric["high"]
    if SHARES.fullmatch(name):
        low, high = np.clip([low, high], 0, 1)
    elif "entropy" in name or "tokens" in name:
        low = max(low, 0)
    return value, float(low), float(high)


def spread(rows: Sequence[Row], names: Sequence[str] = ()) -> str:
    """What intervals of these rows cover, in words; names: of the metrics that are shown.

    Where a number is not kept for each problem (the slope of opinions, diversity), the interval of
    several seeds is over these alone, and that of one seed is its evaluation's.
    """
    seeds = len({row["seed"] for row in rows})
    problems = {len(row["problems"]["correct"]) for row in rows if row.get("problems")}
    over = f", {max(problems)} problems" if problems else ""
    if seeds == 1:
        return f"One seed{over}; 95% intervals over problems only, not over seeds"
    kept = [v.ndim > 0 for row in rows for n in names if (v := values(row, n)) is not None]
    if not kept or all(kept):
        return f"{seeds} seeds{over}; 95% intervals over seeds and problems"
    text = f"{seeds} seeds{over}; 95% intervals over seeds alone"
    return f"{text}, and over problems too where numbers are kept for each" if any(kept) else text


# ------------------------------------------------------------------------------------------------
# names and colours


def colour(row: Row) -> Colour:
    """Of a setting: SPL's by tau, those of other families by family."""
    if row["family"] == SPL and row.get("tau"):
        return tau_colour(row["tau"])
    return family_colour(row["family"])


def tau_colour(tau: float) -> Colour:
    return TAUS[min(TAUS, key=lambda known: abs(math.log(known / tau)))]


def family_colour(family: str) -> Colour:
    return FAMILIES.get(family) or OTHERS[len(family) % len(OTHERS)]


def title(family: str) -> str:
    """As a reader knows it."""
    names = {SPL: "SPL", BASE: "reference policy", "f-dpo": "f-DPO"}
    return names.get(family) or signs(family.replace("dpo", "DPO").replace("spl", "SPL"))


def signs(text: str) -> str:
    """Greek letters for their names."""
    text = re.sub(r"\btau\b", "τ", re.sub(r"\bbeta\b", "β", text))
    return text.replace("'", "′")


def setting_title(row: Row) -> str:
    """A setting with its family."""
    if row["family"] == BASE:
        return title(BASE)
    if row["family"] == SPL:
        text = signs(row["setting"])
        return f"SPL {text} (DPO)" if row.get("tau") == 1 else f"SPL {text}"
    return f"{title(row['family'])}, {signs(row['setting'])}"
