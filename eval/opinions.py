r"""Does a policy answer a question of opinion as often as theory says that its labels ask for?

    python -m eval.opinions --adapter runs/tiny-spl --out runs/opinions
    python -m eval.opinions --adapter runs/noisy --pairs data/tiny/train.jsonl --out runs/opinions
    python -m eval.opinions --out runs/opinions-base     # the reference alone

A question has two answers and labels, of which the share p_hat prefers the first. The minimum of
the loss over all policies has, between the two, the log-odds

    log pi(first) - log pi(second)
        = (reference_coef * (log pi_ref(first) - log pi_ref(second)) + logit(p_hat)) / policy_coef

with the coefficients of the run's objective, read from the config.json of --adapter. Label
smoothing draws p_hat towards 1/2. Other objectives than dpo, spl and h_dpo have no such line here,
nor has a run with --sft_weight, or a question whose labels all agree. p_hat is that of the data
file, or, with --pairs, counted in the pairs of a run as it split and flipped them; without them a
run that flipped labels has none.

Log-probabilities are exact sums over tokens, the end of turn included. Of questions, with
intervals over them:

    mass, reference_mass     of the two answers together: theory says nothing of it
    share_error              |pi(first | one of the two) - p|, p the share in the population
    majority                 pi(the answer of the majority | one of the two)
    log_odds_error           |policy's log-odds - theory's|
    slope, correlation       of the policy's log-odds on theory's; theory has 1. Both go through the
                             origin, since which of two answers comes first is a choice

Files in OUT: see eval/results.py.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.chat import encode_completions, encode_prompts
from data.formats import read_formats
from data.labels import read_opinions, sigmoid
from data.pairs import read_split
from eval.results import Metrics, Statistic, data_digest, read_baseline, report
from model import parallel
from model.adapter import load_policy
from model.checkpoint import DTYPES
from model.config import parse_config
from model.files import read_json
from model.generate import check_prompt
from model.objective import SIGMOID_FAMILY, WITH_ALPHA, coefficients
from model.run import choose_device, run_main
from model.score import completion_logps
from model.transformer import Transformer

EMBEDDED = ["data/tiny/train.jsonl"]  # has held-out pairs of its own
NUMBERS = ("beta", "label_smoothing", "label_noise", "sft_weight", "eval_fraction", "seed")

Row = dict  # a question of the data file
Pairs = list[list[float]]  # of each question, what its two answers have


@dataclass(frozen=True)
class OpinionsConfig:
    model: str = "data/tiny"  # folder of the model, the reference
    adapter: str | None = None  # run folder with the policy's LoRA adapter; none: the reference
    data: str = "data/tiny/opinions.jsonl"  # questions: two answers, the labels, their share p
    pairs: tuple[str, ...] = ()  # files that the run was trained on; none: labels are those of data
    chat_format: str = "auto"  # one of the chat formats; auto: detected from the model
    dtype: str | None = "float32"  # float32, bfloat16 or float16
    device: str | None = None  # cpu, cuda, cuda:1, ...; none: cuda where there is one
    out: str | None = "runs/opinions"  # folder for the results
    baseline: str | None = None  # results folder of another policy on the same questions


def main() -> None:
    config = parse_config(OpinionsConfig)
    check_config(config)
    if not parallel.is_main():
        return
    rows = read_questions(Path(config.data))
    digest = data_digest(config.data)
    known = ("opinions", digest, len(rows))
    baseline = read_baseline(config.baseline, config.out, *known, metric_values)
    run = read_run(config.adapter) if config.adapter else {}
    check_base(config, run)
    if config.pairs:
        rows = count_labels(rows, config.pairs, run)
    elif run.get("label_noise"):
        print(f"{config.adapter} flipped labels, and theory goes by them: "
              "none without its data as --pairs")  # fmt: skip
        rows = [{**row, "first_preferred": 0, "labels": 0} for row in rows]
    reference, policy = score_answers(config, rows, run)
    found = enumerate(zip(rows, reference, policy, strict=True))
    items = [{"index": i} | make_item(*one, run) for i, one in found]
    settings = asdict(config) | {"data_sha256": digest} | tell_theory(run)
    report(Path(config.out), "opinions", settings, items, metric_values, baseline)


def check_config(config: OpinionsConfig) -> None:
    if config.out is None:
        raise ValueError("--out expects a folder for the results, got none")
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ValueError(f"--dtype expects one of {', '.join(DTYPES)}, got {config.dtype!r}")
    for flag in ("model", "adapter"):
        if (path := getattr(config, flag)) is not None and not Path(path).is_dir():
            raise FileNotFoundError(f"--{flag} expects a folder, got {path}: no such folder")


def check_base(config: OpinionsConfig, run: Mapping) -> None:
    """ValueError where a run trained its adapter for another model, which is still there."""
    base = Path(run.get("model") or config.model)
    if base.is_dir() and base.resolve() != Path(config.model).resolve():
        raise ValueError(
            f"--adapter {config.adapter} is of a run with the model {base}, not {config.model}; "
            f"pass --model {base}"
        )


# ------------------------------------------------------------------------------------------------
# questions and labels


def read_questions(path: Path) -> list[Row]:
    rows = read_opinions(path)
    for line, row in enumerate(rows, start=1):
        if type(p := row.get("p")) not in (int, float) or not 0 <= p <= 1:
            raise ValueError(f"{path}:{line}: p: expected a share in [0, 1], got {p!r}")
    if not rows:
        raise ValueError(f"{path}: no question in it; pass --data FILE")
    return rows


def read_run(folder: str) -> dict:
    """config.json of a run of train.py; empty for an adapter of other making."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return {}
    run = read_json(file)
    run["alpha"] = run.get("_alpha", run.get("alpha"))  # _alpha: taken where none was given
    numbers = (*NUMBERS, "alpha") if run.get("objective") in WITH_ALPHA else NUMBERS
    wrong = [name for name in numbers if type(run.get(name)) not in (int, float)]
    wrong += [] if isinstance(run.get("objective"), str) else ["objective"]
    if wrong:
        raise ValueError(f"{file}: expected the run of a policy, which says its {wrong[0]}")
    return run


def count_labels(rows: Sequence[Row], files: Sequence[str], run: Mapping) -> list[Row]:
    """The questions with the labels that a run was trained on: not those it held out, and flipped
    where it flipped them.
    """
    apart = run.get("eval_data") is not None or run.get("data") == EMBEDDED
    fraction = 0.0 if apart else run.get("eval_fraction", 0.0)
    noise, seed = run.get("label_noise", 0.0), run.get("seed", 0)
    train, _ = read_split(files, None, fraction, noise, "dpo", seed)
    counts = Counter((pair.prompt[-1]["content"], pair.chosen, pair.rejected) for pair in train
                     if len(pair.prompt) == 1)  # fmt: skip
    counted = []
    for row in rows:
        first, second = row["answers"]
        votes, others = counts[row["prompt"], first, second], counts[row["prompt"], second, first]
        counted.append({**row, "first_preferred": votes, "labels": votes + others})
    if not any(row["labels"] for row in counted):
        raise ValueError(f"--pairs: no label of any question of --data in {', '.join(files)}")
    return counted


# ------------------------------------------------------------------------------------------------
# policy, reference and theory


def score_answers(config: OpinionsConfig, rows: Sequence[Row], run: Mapping) -> tuple[Pairs, Pairs]:
    """Log-probabilities of the two answers of each question, under the reference and the policy."""
    device, dtype = choose_device(config.device, config.dtype)
    asked = config.model, config.adapter, config.chat_format
    tokenizer, found, reason = read_formats(*asked)
    print(f"chat format: {found.name} ({reason})")
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    texts = [answer for row in rows for answer in row["answers"]]
    ids = iter(encode_completions(texts, found, tokenizer))
    tokens = encode_prompts(prompts, found, tokenizer), list(zip(ids, ids, strict=True))

    def score(adapter: str | None) -> Pairs:
        model = load_policy(config.model, adapter, dtype, device)
        check_room(model, *tokens, config.data)
        return list(completion_logps(model, *tokens))

    reference = score(run.get("adapter"))  # the adapter that the run started from
    return reference, reference if config.adapter is None else score(config.adapter)


def check_room(model: Transformer, prompts: Sequence, answers: Sequence, data: str) -> None:
    for i, (prompt, pair) in enumerate(zip(prompts, answers, strict=True)):
        check_prompt(model, prompt + max(pair, key=len)[:-1], f"{data}, question {i}")


def make_item(
    row: Row, reference: Sequence[float], policy: Sequence[float], run: Mapping
) -> dict[str, object]:
    """What was found of a question; log-odds are of the first answer against the second."""
    p_hat = row["first_preferred"] / row["labels"] if row["labels"] else None
    reference_log_odds = reference[0] - reference[1]
    return {
        "prompt": row["prompt"],
        "answers": row["answers"],
        "p": row["p"],
        "p_hat": p_hat,
        "labels": row["labels"],
        "reference_log_odds": reference_log_odds,
        "policy_log_odds": policy[0] - policy[1],
        "theory_log_odds": theory_log_odds(run, reference_log_odds, p_hat),
        "reference_mass": sum(map(math.exp, reference)),
        "policy_mass": sum(map(math.exp, policy)),
    }


def theory_log_odds(run: Mapping, reference_log_odds: float, p_hat: float | None) -> float | None:
    """Where a run's loss is least on labels of the share p_hat; None without such a place."""
    if not has_theory(run) or p_hat is None:
        return None
    share = p_hat + run["label_smoothing"] * (1 - 2 * p_hat)
    if not 0 < share < 1:
        return None
    policy_coef, reference_coef = coefficients(run["objective"], run["alpha"], run["beta"])
    return (reference_coef * reference_log_odds + math.log(share / (1 - share))) / policy_coef


def has_theory(run: Mapping) -> bool:
    return run.get("objective") in SIGMOID_FAMILY and not run["sft_weight"]


def tell_theory(run: Mapping) -> dict:
    """The objective of a run and its coefficients, which are printed; null where there are none."""
    names = ("objective", "policy_coef", "reference_coef")
    if not has_theory(run):
        print("theory: none for this policy")
        return dict.fromkeys(names) | {"objective": run.get("objective")}
    policy_coef, reference_coef = coefficients(run["objective"], run["alpha"], run["beta"])
    print(f"theory: ({reference_coef:g} * reference's log-odds + logit(p_hat)) / {policy_coef:g}")
    return dict(zip(names, (run["objective"], policy_coef, reference_coef), strict=True))


# ------------------------------------------------------------------------------------------------
# metrics


def metric_values(items: Sequence[Mapping]) -> Metrics:
    shares = [(sigmoid(item["policy_log_odds"]), item["p"]) for item in items]
    values: Metrics = {
        "mass": [item["policy_mass"] for item in items],
        "reference_mass": [item["reference_mass"] for item in items],
        "share_error": [abs(share - p) for share, p in shares],
        "majority": [share if p > 0.5 else 1 - share for share, p in shares],
    }
    rows = [(i["theory_log_odds"], i["policy_log_odds"]) for i in items]
    rows = np.array([row for row in rows if row[0] is not None])  # (N, 2)
    if not len(rows):
        return values
    values["log_odds_error"] = np.abs(rows[:, 1] - rows[:, 0]).tolist()
    values["slope"] = Statistic(rows, slope)
    values["correlation"] = Statistic(rows, correlation, -1, 1)
    return values


def slope(rows: np.ndarray) -> float:
    """a of policy = a * theory by least squares; rows: (N, 2), theory first."""
    theory, policy = rows.T
    return float(theory @ policy / max(theory @ theory, np.finfo(float).tiny))


def correlation(rows: np.ndarray) -> float:
    """The cosine of theory and policy, (N,) each; 0 where one of them is zero throughout."""
    theory, policy = rows.T
    scale = math.sqrt((theory @ theory) * (policy @ policy))
    return float(theory @ policy / max(scale, np.finfo(float).tiny))


if __name__ == "__main__":
    run_main(main)
