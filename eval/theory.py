"""Do both papers' statements hold for the code that trains? Each one computed, to rounding.

    python -m eval.theory --out runs/theory

Policies are small enough for every expectation to be a sum: tables of 2 and 5 sequences
(eval/theory_tabular.py), a transformer with 256 (eval/theory_sequences.py), a Gaussian
(eval/theory_modes.py). Where a loss is trained it is `preference_loss` with `coefficients`, or
`f_dpo_loss` (eval/theory_divergences.py), as in train.py. float64 on the CPU, one to two minutes
on one core.

The table has what was computed, what theory says, how far they are apart and how far they may be;
under it stand what a transformer's training reaches at each global temperature, beside a
temperature of tokens and resampling, the entropy that other divergences leave, and the map of
covering and seeking. OUT/theory.json has all of it. The exit code is 1 where a statement does not
hold, or a misreading is not refuted.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from eval import theory_divergences as divergences
from eval import theory_gradient, theory_misreadings, theory_tabular
from eval import theory_modes as modes
from eval import theory_sequences as sequences
from eval import theory_temperature as temperature
from eval.theory_table import Statement, print_statements, to_rows
from model.config import parse_config
from model.run import run_main, write_text

REVERSE_KL = (1.0, 2.7, 2.9)  # alpha, and distances on both sides of where it begins to seek


@dataclass(frozen=True)
class TheoryConfig:
    seed: int = 0  # of rewards, references, votes, weights and draws
    out: str | None = None  # folder for the results


def main() -> None:
    config = parse_config(TheoryConfig)
    check_config(config)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # what is computed is too small for more
    began = time.perf_counter()
    statements, tables = compute(config.seed)
    print_statements(statements)
    sequences.print_training(tables["training"])
    temperature.print_comparison(tables["temperatures"])
    divergences.print_comparison(tables["divergences"])
    modes.print_map(tables["fits"], tables["switches"])
    modes.print_optima(tables["fits"])
    print(f"  the reverse KL seeks one beyond m = {tables['reverse_kl_seeks_beyond']:.4f}")
    write(out, config, statements, tables)
    wrong = [one for one in statements if not one.holds]
    seconds = time.perf_counter() - began
    right = f"{len(statements) - len(wrong)} of {len(statements)} statements"
    print(f"\n{right} are as they have to be; {seconds:.0f} s; details in {out}")
    if wrong:
        raise SystemExit(1)


def check_config(config: TheoryConfig) -> None:
    if config.seed < 0:
        raise ValueError(f"--seed expects 0 or more, got {config.seed}")
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")


def compute(seed: int) -> tuple[list[Statement], dict]:
    """Every statement, and the tables."""
    policies = sequences.train_policies(seed)
    fits = modes.fit_map()
    compared = divergences.compare(seed)
    statements = [
        *theory_tabular.statements(seed),
        *theory_gradient.statements(seed),
        *sequences.statements(policies),
        *temperature.statements(policies, seed),
        *divergences.statements(compared, seed),
        *modes.statements(fits),
        *theory_misreadings.statements(),
    ]
    tables = {
        "training": sequences.to_rows(policies),
        "temperatures": temperature.compare(policies),
        "divergences": divergences.to_rows(compared),
        "fits": fits,
        "switches": modes.switches(fits),
        "reverse_kl_seeks_beyond": modes.seeks_beyond(*REVERSE_KL),
    }
    return statements, tables


def write(out: Path, config: TheoryConfig, statements: Sequence[Statement], tables: dict) -> None:
    fits = [[asdict(covering), asdict(seeking)] for covering, seeking in tables["fits"]]
    result = {"task": "theory", "settings": asdict(config), "statements": to_rows(statements)}
    result |= tables | {"fits": fits}
    write_text(out / "theory.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
