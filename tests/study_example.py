"""Rows of a study as `eval.study` leaves them, with numbers that are invented.

`rows` is deterministic and consistent: a problem has a chance of being solved that falls with its
difficulty; a policy of temperature tau draws right answers with that chance to the power 1 / tau,
normalised, so that a tau above 1 makes easy problems harder and hard ones easier, entropy and
unique solutions grow with tau, and what draws by token temperature breaks equations besides.
Opinions follow theory with some noise. No number here is a finding.

To look at the report:  python -m tests.study_example FOLDER && python -m eval.report FOLDER
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BETA = 0.1
TAUS = (0.5, 0.8, 0.9, 0.95, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0, 11.0)
BETAS = (0.01, 0.03, 0.3)  # at tau 1 and 1.2 too
DPO_BETAS = (0.05, 0.08, 0.12, 0.2, 0.4)
DIVERGENCES = {"forward_kl": 1.25, "jensen_shannon": 1.1, "alpha 0.5": 1.15}  # the tau it acts at
DECODED = {
    "dpo, token temperature": {f"t {t:g}": t for t in (0.8, 1.1, 1.2, 1.3, 1.5)},
    "dpo, top-p": {"p 0.9": 0.85, "p 0.95": 0.92},
    "dpo, min-p": {"m 0.05": 0.93, "m 0.1": 0.88},
    "dpo, resampled": {"tau 0.8": 0.8, "tau 1.2": 1.2, "tau 2": 2.0},
}  # fmt: skip
RATES = {1 / 3: 1e-4 / 3, 1.0: 1e-4, 3.0: 3e-4}
DIFFICULTIES = ("easy", "medium", "hard")
FLOORS = (0.007, 0.006, 0.008, 0.007)  # of all problems, easy, medium and hard ones, at k = 1
STEPS = (0, 100, 200, 300, 400)
QUESTIONS = (
    ("Which is better, tea or coffee?", 0.6),
    ("Which is better, cats or dogs?", 0.4),
    ("Which is better, red or green?", 0.8),
    ("Which is better, a train or a bus?", 0.1),
    ("Which is better, cake or soup?", 0.95),
)
TEXTS = (
    ("Tom has 4 eggs. Lea has 3 times as many. How many eggs are there in all?",
     ("4 * 3 = 12\n12 + 4 = 16\n#### 16", "That is 4 * 3 = 12.\nThat is 12 + 3 = 15.\n#### 15",
      "3 * 4 = 12 eggs\n4 + 12 = 16 eggs\n#### 16")),
    ("There are 18 pens on the table. Then 11 more are added. Ben buys 11 more. How many pens now?",
     ("18 + 11 = 29\n11 + 29 = 40\n#### 40", "18 + 11 = 29 pens\n29 - 11 = 18 pens\n#### 18",
      "<script>alert(1)</script> & \u202eabc\n#### 7")),
)  # fmt: skip

Row = dict[str, Any]


def rows(
    seeds: int = 5,
    problems: int = 30,
    n: int = 128,
    processes: Sequence[str] = ("verdict", "population"),
    taus: Sequence[float] = TAUS,
    controls: bool = True,
) -> list[Row]:
    """Every row of a study; without `controls` that of a grid of tau alone, with its base.

    problems: a multiple of 3, as many easy as medium and hard ones.
    """
    base = {"kind": "base", "family": "base", "setting": "base", "acts": 1.05, "rate": None,
            "tau": None, "beta": None, "seed": 0, "process": None}  # fmt: skip
    made = [{"cell": "source", "kind": "source", "commands": [], "seconds": 50.0, "metrics": {}}]
    made.append(cell_row(base, problems, n))
    for process in processes:
        for policy in policies(taus, controls):
            for seed in range(seeds):
                cells = [{**policy, "process": process, "seed": seed}]
                if policy["kind"] == "test":
                    cells = [{**cells[0], "rate": r, "kind": "train"} for r in RATES] + cells
                made += [cell_row(cell, problems, n) for cell in cells]
    return made


def policies(taus: Sequence[float], controls: bool) -> list[Row]:
    """What is measured: kind, family, setting, coefficients, and the tau that it acts at."""
    found = [policy("spl", f"tau {tau:g}", tau, tau, BETA) for tau in taus]
    if controls:
        for beta in BETAS:
            for tau in (1.0, 1.2):
                found.append(policy("spl", f"tau {tau:g}, beta {beta:g}", tau, tau, beta))
        for beta in DPO_BETAS:
            acts = (beta / BETA) ** 0.5
            found.append(policy("dpo with beta'", f"beta' {beta:g}", acts, None, beta))
        for name, acts in DIVERGENCES.items():
            found.append(policy("f-dpo", name, acts, None, BETA))
        for family, settings in DECODED.items():
            again = family == "dpo, resampled"  # its tau is that of the weights
            found += [policy(family, name, acts, acts if again else None, BETA)
                      for name, acts in settings.items()]  # fmt: skip
    return found


def policy(family: str, setting: str, acts: float, tau: float | None, beta: float) -> Row:
    decoded = family in DECODED
    kind, rate = ("decode", None) if decoded else ("test", 1.0)
    return {"kind": kind, "family": family, "setting": setting, "acts": acts, "tau": tau,
            "beta": beta, "rate": rate}  # fmt: skip


def cell_row(cell: Mapping, problems: int, n: int) -> Row:
    """A row; its noise depends on what it is, and the problems are the same in all."""
    rate = [f"rate {cell['rate']:.3g}"] if cell["rate"] else []
    parts = [cell["process"], cell["family"], cell["setting"], *rate, f"seed {cell['seed']}"]
    name = "/".join([*parts, cell["kind"]]) if cell["process"] else "base"
    rng = np.random.default_rng(list(name.encode()))
    tau, beta = cell["tau"], cell["beta"]
    row: Row = {
        "cell": name,
        "kind": cell["kind"],
        **({"process": cell["process"]} if cell["process"] else {}),
        "family": cell["family"],
        "setting": cell["setting"],
        "tau": tau,
        "alpha": round(tau * beta, 9)
        if tau
        else beta
        if cell["family"] == "dpo with beta'"
        else None,
        "beta": beta,
        "rate": cell["rate"],
        "learning_rate": RATES[cell["rate"]] if cell["rate"] else None,
        "seed": cell["seed"],
        "commands": [f"python -m eval.arithmetic --out runs/{name.replace(' ', '-')}"],
        "seconds": round(float(rng.uniform(20, 90)), 1),
    }
    if cell["kind"] == "train":
        return row | train_part(cell, rng)
    return row | split_part(cell, row["alpha"], rng, problems, n)


# ------------------------------------------------------------------------------------------------
# training


def train_part(cell: Mapping, rng: np.random.Generator) -> Row:
    """Held-out evaluations that fall to a plateau, faster at a higher rate."""
    done = 1 - np.exp(-np.array(STEPS) * cell["rate"] / 50)  # (steps,) of the way, in [0, 1]
    tau = cell["acts"]
    noise = rng.normal(0, 0.004, len(STEPS))
    start = 0.69 + 0.05 * abs(math.log(tau))
    ends = {
        "loss": (start, start - 0.12 / tau**0.3),
        "rewards/accuracies": (0.5 + 0.2 * (tau != 1), 0.82),
        "rewards/margins": (0.0, 0.5),
        "terms/policy": (0.2 * tau, 0.2 * tau + 0.6),
        "terms/reference": (0.2, 0.2),
        "entropy": (0.19, 0.19 * tau**0.5),
        "mass/policy": (0.98, 0.98 - 0.05 * cell["rate"] / tau),
        "logps/chosen": (-2.8, -2.5 * tau**0.3),
        "logps/rejected": (-4.7, -5.0 * tau**0.3),
    }
    curves = {f"eval/{key}": (low + (high - low) * done + noise / 4).tolist()
              for key, (low, high) in ends.items()}  # fmt: skip
    solved = 0.42 + 0.03 * (cell["rate"] == 1.0) - 0.02 * abs(math.log(tau)) + noise[0]
    metrics = {"validation:pass@1": around(solved, 0.03),
               "validation:pass@16": around(0.8 + noise[1], 0.02)}  # fmt: skip
    return {
        "curves": {"step": list(STEPS), **curves},
        "metrics": metrics,
    }


def around(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


# ------------------------------------------------------------------------------------------------
# measurements


def split_part(
    cell: Mapping, alpha: float | None, rng: np.random.Generator, problems: int, n: int
) -> Row:
    counts, chances = count(cell, rng, problems, n)
    mean = {key: float(np.mean(counts[key])) for key in ("majority", "entropy", "tokens")}
    metrics = {
        "arithmetic:pass@1": around(float(np.mean(counts["correct"])) / n, 0.03),
        "arithmetic:no_answer": around(0.001, 0.001),
        "diversity:input/distinct_2": around(0.1 * cell["acts"] ** 0.6, 0.004),
        "diversity:input/self_bleu": around(0.9 / cell["acts"] ** 0.2, 0.004),
    }
    crossed = "cross_" if cell["kind"] == "decode" else ""  # not drawn plainly: no entropy
    metrics |= {
        f"diversity:{crossed}entropy/sequence": around(mean["entropy"], 0.1),
        f"diversity:{crossed}entropy/token": around(mean["entropy"] / mean["tokens"], 0.01),
        "diversity:reference_cross_entropy/sequence": around(
            mean["entropy"] + 0.15 + 0.4 * math.log(cell["acts"]) ** 2, 0.1
        ),
    }
    for k in (2**i for i in range(n.bit_length())):
        for part, chance in zip(("", "/easy", "/medium", "/hard"), FLOORS, strict=True):
            metrics[f"arithmetic:floor@{k}{part}"] = around(1 - (1 - chance) ** k, 0.005)
    counts = {crossed * (name == "entropy") + name: some for name, some in counts.items()}
    difficulty = [DIFFICULTIES[i % 3] for i in range(problems)]
    row: Row = {
        "metrics": metrics,
        "problems": {"difficulty": difficulty, "n": n, **counts},
        "reliability": {"arithmetic": reliability(chances, rng)},
        "samples": [
            {"prompt": prompt, "difficulty": DIFFICULTIES[i], "completions": list(texts)}
            for i, (prompt, texts) in enumerate(TEXTS)
        ],
    }
    if cell["kind"] != "decode":
        row["opinions"] = [opinion(*question, cell, alpha, rng) for question in QUESTIONS]
        masses = [question["policy_mass"] for question in row["opinions"]]
        metrics["opinions:mass"] = around(float(np.mean(masses)), 0.01)
        metrics["opinions:slope"] = around(0.9, 0.05)
        metrics["opinions:majority"] = around(0.5 + 0.45 * math.exp(-(alpha or 1.0)), 0.01)
    return row


def count(
    cell: Mapping, rng: np.random.Generator, problems: int, n: int
) -> tuple[dict[str, list], np.ndarray]:
    """(counts of each problem, (problems,) the chance that a completion is right)."""
    middle = np.array([2.0, -0.5, -3.2])[np.arange(problems) % 3]
    of_problem = np.random.default_rng(0).normal(0, 0.5, problems)  # the same in all cells
    gain = 0.0 if cell["family"] == "base" else 0.15
    logits = (middle + of_problem + gain + rng.normal(0, 0.1)) / cell["acts"]
    chances = 1 / (1 + np.exp(-logits))  # p^(1/tau) / (p^(1/tau) + (1 - p)^(1/tau))
    if cell["family"] == "dpo, token temperature":
        chances = chances * math.exp(-0.6 * abs(cell["acts"] - 1))
    correct = rng.binomial(n, chances)
    broken = 0.4 * max(cell["acts"] - 1, 0) if "token" in cell["family"] else 0.02
    entropy = 3.0 * cell["acts"] ** 0.7 + 0.3 * of_problem + rng.normal(0, 0.05, problems)
    unique = np.clip(n * (1 - np.exp(-entropy / 6)), 1, n).round().astype(int)
    counts = {
        "correct": correct.tolist(),
        "valid": rng.binomial(correct, 1 - broken).tolist(),
        "distinct": unique.tolist(),
        "majority": (chances > 0.5).astype(float).tolist(),
        "confidence": np.maximum(chances, 1 - chances).tolist(),
        "brier": (2 * (1 - chances) ** 2).tolist(),
        "entropy": entropy.tolist(),
        "tokens": (27 + 2 * math.log(cell["acts"]) + rng.normal(0, 1, problems)).tolist(),
    }
    return counts, chances


def reliability(chances: np.ndarray, rng: np.random.Generator) -> list[dict[str, float]]:
    """Bins of confidence as `eval.calibration.reliability_table` makes them."""
    bins = []
    for low in (0.4, 0.6, 0.8):
        confidence = low + 0.1
        accuracy = float(np.clip(confidence - 0.08 + rng.normal(0, 0.03), 0, 1))
        bins.append({"low": low, "high": low + 0.2, "count": len(chances) // 3,
                     "confidence": confidence, "accuracy": accuracy,
                     "accuracy_low": max(accuracy - 0.15, 0),
                     "accuracy_high": min(accuracy + 0.15, 1)})  # fmt: skip
    return bins


def opinion(
    prompt: str, p: float, cell: Mapping, alpha: float | None, rng: np.random.Generator
) -> Row:
    """Theory: (beta * reference log-odds + logit(p_hat)) / alpha."""
    reference = 0.3 * math.sin(10 * p)
    theory = None
    if cell["family"] in ("spl", "dpo with beta'"):
        theory = (cell["beta"] * reference + math.log(p / (1 - p))) / alpha
    aim = reference if theory is None else theory
    mass = 0.98 - 0.3 * math.exp(-3 * (alpha or 1.0))
    return {
        "prompt": prompt,
        "p": p,
        "p_hat": p,
        "labels": 400,
        "reference_log_odds": reference,
        "policy_log_odds": 0.9 * aim + rng.normal(0, 0.1),
        "theory_log_odds": theory,
        "reference_mass": 0.98,
        "policy_mass": mass + rng.normal(0, 0.002),
    }


# ------------------------------------------------------------------------------------------------
# a folder


def write_study(folder: Path, made: Sequence[Mapping], plan: str = "example") -> None:
    """results.jsonl and study.json, as a study leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in made)
    (folder / "results.jsonl").write_text(lines, encoding="utf-8")
    study = {
        "plan": plan,
        "about": "An invented study: no number in it is a finding.",
        "settings": {"plan": plan, "beta": BETA},
        "cells": dict(Counter(row["kind"] for row in made)),
        "environment": {"torch": "2.13.0", "python": "3.11.2", "cores": 2},
    }
    (folder / "study.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_study(Path(sys.argv[1]), rows())
