"""eval/opinions.py: log-probabilities against the plain forward, theory against the minimum of the
loss itself, labels as a run saw them, metrics by hand.

    python -m pytest tests/test_opinions.py
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from data.pairs import first_turn, read_pairs, split_by_first_turn
from data.tokenizer import load_tokenizer
from eval import opinions
from eval.opinions import (
    count_labels,
    metric_values,
    read_questions,
    read_run,
    theory_log_odds,
)
from model.adapter import load_policy, save_adapter
from model.checkpoint import load_model
from model.lora import add_lora
from model.objective import preference_loss
from tests.conftest import ROOT, read_jsonl
from tests.test_lora import scatter

TINY = ROOT / "data" / "tiny"
ROWS = read_jsonl(TINY / "opinions.jsonl")
RUN = {"objective": "spl", "alpha": 0.2, "beta": 0.1, "label_smoothing": 0.0, "label_noise": 0.0,
       "sft_weight": 0.0, "eval_fraction": 0.05, "seed": 0, "adapter": None, "eval_data": None,
       "data": ["pairs.jsonl"]}  # fmt: skip


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_run(folder: Path, seed: int, **settings: object) -> Path:
    """An adapter that is no reference, in the folder of a run."""
    add_lora(model := load_model(TINY), 2, 4.0, ("q_proj", "o_proj"), seed=seed)
    scatter(model)
    save_adapter(model, folder, str(TINY))
    (folder / "config.json").write_text(json.dumps(RUN | settings))
    return folder


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command with some flags -> its items and summary."""

    def run(*flags: object) -> tuple[list[dict], dict]:
        argv = ["opinions", "--model", str(TINY)]
        if "--data" not in flags:
            argv += ["--data", str(TINY / "opinions.jsonl")]
        monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "out"), *map(str, flags)])
        opinions.main()
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        return read_jsonl(tmp_path / "out" / "items.jsonl"), summary

    return run


def plain_logps(adapter: Path | None, row: dict) -> list[float]:
    """Log-probabilities of the two answers and the end of turn, by the padded forward."""
    model, tokenizer = load_policy(TINY, adapter, torch.float32, "cpu"), load_tokenizer(TINY)
    prompt = [1, *tokenizer.encode(f"\n\nHuman: {row['prompt']}\n\nAssistant:")]
    found = []
    for answer in row["answers"]:
        ids = torch.tensor([*prompt, *tokenizer.encode(answer), 2])  # which begins with a space
        with torch.no_grad():
            logps = model(ids[None])[0].double().log_softmax(-1)
        ends = torch.arange(len(prompt), len(ids))
        found.append(logps[ends - 1, ids[ends]].sum().item())
    return found


# ------------------------------------------------------------------------------------------------
# log-probabilities


def test_policy_and_reference_are_those_of_the_plain_forward(tmp_path, measure) -> None:
    """Of a run that started from another adapter: that one is part of its reference."""
    earlier = make_run(tmp_path / "earlier", 1)
    run = make_run(tmp_path / "run", 2, adapter=str(earlier))
    items, _ = measure("--adapter", run)
    for row, item in zip(ROWS[:2], items, strict=False):
        for who, adapter in (("reference", earlier), ("policy", run)):
            first, second = plain_logps(adapter, row)
            assert item[f"{who}_log_odds"] == pytest.approx(first - second, abs=1e-4)
            mass = math.exp(first) + math.exp(second)
            assert item[f"{who}_mass"] == pytest.approx(mass, rel=1e-4)
        assert abs(item["reference_log_odds"] - item["policy_log_odds"]) > 0.01


def test_without_an_adapter_the_policy_is_the_reference(measure) -> None:
    items, summary = measure()
    assert len(items) == 12
    for row, item in zip(ROWS, items, strict=True):
        assert item["policy_log_odds"] == item["reference_log_odds"]
        assert item["theory_log_odds"] is None
        assert (item["p"], item["p_hat"], item["labels"]) == (row["p"], row["p_hat"], 400)
    assert set(summary["metrics"]) == {"mass", "reference_mass", "share_error", "majority"}
    first, second = plain_logps(None, ROWS[0])
    assert items[0]["policy_log_odds"] == pytest.approx(first - second, abs=1e-4)


# ------------------------------------------------------------------------------------------------
# theory


@pytest.mark.parametrize(
    ("settings", "p_hat", "expected"),
    [
        ({}, 0.8, (0.1 + 1.3862944) / 0.2),
        ({"objective": "h_dpo", "alpha": 2.0}, 0.8, (0.1 + 1.3862944) / 0.2),
        ({"objective": "dpo", "alpha": 5.0}, 0.8, (0.1 + 1.3862944) / 0.1),
        ({"alpha": 1.0}, 0.2, 0.1 - 1.3862944),
        ({"label_smoothing": 0.1}, 0.8, (0.1 + 1.0459686) / 0.2),  # logit(0.9 * 0.8 + 0.1 * 0.2)
        ({"label_smoothing": 0.1}, 1.0, (0.1 + 2.1972246) / 0.2),  # logit(0.9)
        ({}, 1.0, None),
        ({}, None, None),
        ({"objective": "f_dpo"}, 0.8, None),
        ({"objective": "ipo"}, 0.8, None),
        ({"sft_weight": 0.1}, 0.8, None),
    ],
)
def test_theory_by_hand(settings: dict, p_hat: float | None, expected: float | None) -> None:
    """The reference's log-odds are 1; logit(0.8) = log 4."""
    found = theory_log_odds(RUN | settings, 1.0, p_hat)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_theory_is_where_the_loss_is_least(smoothing: float) -> None:
    """The derivative of the mean loss over 3 labels of 4, zero at the theory, has its sign beside
    it; the log-odds of the reference are -0.7.
    """
    theory = theory_log_odds(RUN | {"label_smoothing": smoothing}, -0.7, 0.75)
    for step, sign in ((-1e-4, -1), (0.0, 0), (1e-4, 1)):
        log_odds = torch.tensor(theory + step, dtype=torch.float64, requires_grad=True)
        logps = torch.stack([log_odds * 0, -log_odds])  # of the first and of the second answer
        reference = torch.tensor([-0.7, 0.0], dtype=torch.float64)
        chosen, rejected = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0])
        losses, _, _ = preference_loss(logps[chosen], logps[rejected], reference[chosen],
                                       reference[rejected], 0.2, 0.1, smoothing)  # fmt: skip
        (slope,) = torch.autograd.grad(losses.mean(), log_odds)
        assert abs(slope) < 1e-12 if sign == 0 else slope * sign > 1e-8


def test_settings_name_the_coefficients(tmp_path, measure, capsys) -> None:
    run = make_run(tmp_path / "run", 2, objective="h_dpo", alpha=2.0, beta=0.3)
    items, summary = measure("--adapter", run)
    settings = summary["settings"]
    assert (settings["policy_coef"], settings["reference_coef"]) == (0.6, 0.3)
    assert "(0.3 * reference's log-odds + logit(p_hat)) / 0.6" in capsys.readouterr().out
    for item in items:
        logit = math.log(item["p_hat"] / (1 - item["p_hat"]))
        theory = (0.3 * item["reference_log_odds"] + logit) / 0.6
        assert item["theory_log_odds"] == pytest.approx(theory)


def test_an_alpha_that_was_not_given_is_the_one_that_the_run_took(tmp_path) -> None:
    """1.2 beta of spl, which stands beside the flags."""
    (tmp_path / "config.json").write_text(json.dumps(RUN | {"alpha": None, "_alpha": 0.12}))
    assert read_run(str(tmp_path))["alpha"] == 0.12


def test_an_adapter_of_other_making_has_no_theory(tmp_path, measure) -> None:
    run = make_run(tmp_path / "run", 2)
    (run / "config.json").unlink()
    items, summary = measure("--adapter", run)
    assert all(item["theory_log_odds"] is None for item in items)
    assert summary["settings"]["objective"] is None and "slope" not in summary["metrics"]


# ------------------------------------------------------------------------------------------------
# labels


def pairs_of(row: dict, votes: int, labels: int) -> list[dict]:
    first, second = row["answers"]
    one = {"prompt": row["prompt"], "chosen": first, "rejected": second}
    two = {"prompt": row["prompt"], "chosen": second, "rejected": first}
    return [one] * votes + [two] * (labels - votes)


def test_labels_are_counted_as_the_run_saw_them(tmp_path) -> None:
    """Votes 3 of 10 and 5 of 10, and no label of the others. All flipped: 7 and 5. A quarter
    flipped: 5 pairs change sides. Another file for evaluation, or none held out: all are there.
    """
    other = {"prompt": "3 and 4?", "chosen": "7", "rejected": "8"}
    data = [*pairs_of(ROWS[0], 3, 10), *pairs_of(ROWS[1], 5, 10)]
    files = (write_jsonl(tmp_path / "a.jsonl", [*data, other]),)
    whole = RUN | {"eval_fraction": 0.0}
    for run in ({}, whole, RUN | {"eval_fraction": 0.99, "eval_data": ["eval.jsonl"]},
                RUN | {"eval_fraction": 0.99, "data": ["data/tiny/train.jsonl"]}):  # fmt: skip
        counted = count_labels(ROWS, files, run)
        assert [(r["first_preferred"], r["labels"]) for r in counted[:3]] == [
            (3, 10),
            (5, 10),
            (0, 0),
        ]
    counted = count_labels(ROWS, files, whole | {"label_noise": 1.0})
    assert [(r["first_preferred"], r["labels"]) for r in counted[:2]] == [(7, 10), (5, 10)]
    only = (write_jsonl(tmp_path / "b.jsonl", pairs_of(ROWS[0], 20, 20)),)
    (counted, *_) = count_labels(ROWS, only, whole | {"label_noise": 0.25})
    assert (counted["first_preferred"], counted["labels"]) == (15, 20)


def test_labels_are_those_of_the_run_s_own_seed(tmp_path) -> None:
    """Half of the questions are held out, by the seed: those of seed 1 are not those of seed 0."""
    file = write_jsonl(tmp_path / "a.jsonl", [pair for row in ROWS for pair in pairs_of(row, 1, 2)])
    pairs = read_pairs(file, "dpo", log=lambda text: None)
    kept = [{first_turn(pair) for pair in split_by_first_turn(pairs, 0.5, seed)[0]}
            for seed in (0, 1)]  # fmt: skip
    counted = count_labels(ROWS, (file,), RUN | {"eval_fraction": 0.5, "seed": 1})
    assert {row["prompt"] for row in counted if row["labels"]} == kept[1] != kept[0]


def test_a_question_that_was_held_out_has_no_labels(tmp_path) -> None:
    """A run that holds out a share of its prompts holds a question out with all its labels."""
    data = [pair for row in ROWS for pair in pairs_of(row, 1, 2)]
    run = RUN | {"eval_fraction": 0.5}
    counted = count_labels(ROWS, (write_jsonl(tmp_path / "a.jsonl", data),), run)
    assert {row["labels"] for row in counted} == {0, 2}


def test_counted_labels_set_the_theory(tmp_path, measure) -> None:
    """3 of 4 labels where the data file has another share; the others have no labels at all."""
    run = make_run(tmp_path / "run", 2, eval_fraction=0.0)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", pairs_of(ROWS[0], 3, 4))
    items, _ = measure("--adapter", run, "--pairs", pairs)
    theory = (0.1 * items[0]["reference_log_odds"] + math.log(3)) / 0.2
    assert items[0]["theory_log_odds"] == pytest.approx(theory)
    assert (items[0]["p_hat"], items[0]["labels"]) == (0.75, 4)
    assert (items[1]["p_hat"], items[1]["labels"], items[1]["theory_log_odds"]) == (None, 0, None)


# ------------------------------------------------------------------------------------------------
# metrics and mistakes


def test_metrics_by_hand() -> None:
    """Theory 2, -4, none; policy 1, -2, 0. Half of theory: slope 1/2, correlation 1, errors 1, 2.

    sigmoid(1) = 0.731059, sigmoid(-2) = 0.119203, sigmoid(0) = 0.5, against 0.8, 0.1 and 0.9.
    """
    rows = [(2.0, 1.0, 0.8), (-4.0, -2.0, 0.1), (None, 0.0, 0.9)]
    items = [
        {"theory_log_odds": theory, "policy_log_odds": policy, "p": p,
         "policy_mass": 0.5, "reference_mass": 0.9}
        for theory, policy, p in rows
    ]  # fmt: skip
    values = metric_values(items)
    assert values["share_error"] == pytest.approx([0.068941, 0.019203, 0.4], abs=1e-6)
    assert values["majority"] == pytest.approx([0.731059, 0.880797, 0.5], abs=1e-6)
    assert values["log_odds_error"] == [1, 2]
    assert values["mass"] == [0.5] * 3 and values["reference_mass"] == [0.9] * 3
    for name, expected in (("slope", 0.5), ("correlation", 1.0)):
        assert values[name].compute(values[name].rows) == pytest.approx(expected)


def test_a_policy_against_the_majority_by_hand() -> None:
    """Of 80 in 100 for the first answer the policy gives it sigmoid(-1) = 0.268941."""
    item = {"theory_log_odds": None, "policy_log_odds": -1.0, "p": 0.8}
    item |= {"policy_mass": 1.0, "reference_mass": 1.0}
    assert metric_values([item])["majority"] == pytest.approx([0.268941], abs=1e-6)


def test_the_order_of_the_answers_does_not_matter() -> None:
    """theory 1, 2; policy 2, 1: slope (2 + 2) / 5, correlation 4 / 5, also with signs turned."""
    for sign in (1, -1):
        rows = [(sign * 1.0, sign * 2.0), (2.0, 1.0)]
        items = [{"theory_log_odds": t, "policy_log_odds": p, "p": 0.5, "policy_mass": 1,
                  "reference_mass": 1} for t, p in rows]  # fmt: skip
        values = metric_values(items)
        for name in ("slope", "correlation"):
            assert values[name].compute(values[name].rows) == pytest.approx(0.8)


def test_a_run_that_flipped_labels_has_no_theory_without_its_pairs(
    tmp_path, measure, capsys
) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", ROWS)
    runs = make_run(tmp_path / "plain", 2), make_run(tmp_path / "run", 2, label_noise=0.1)
    plain, flipped = (measure("--adapter", run, "--data", data)[1]["metrics"] for run in runs)
    assert "none without its data as --pairs" in capsys.readouterr().out
    assert plain.keys() - flipped.keys() == {"log_odds_error", "slope", "correlation"}
    assert all(flipped[name] == plain[name] for name in flipped)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"p": 1.5}, {}, "d.jsonl:1: p: expected a share in [0, 1], got 1.5"),
        ({"answers": ["Tea"]}, {}, "d.jsonl:1: answers: expected two texts"),
        ({}, {"alpha": "x"}, "expected the run of a policy, which says its alpha"),
    ],
)
def test_mistakes_are_named(row, settings, message, tmp_path, measure) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [ROWS[0] | row])
    run = make_run(tmp_path / "run", 2, **settings)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        measure("--adapter", run, "--data", data)
    assert message in str(error.value)


def test_a_population_may_be_of_one_mind(tmp_path) -> None:
    rows = [ROWS[0] | {"p": 0}, ROWS[1] | {"p": 1.0}]
    found = read_questions(Path(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert [row["p"] for row in found] == [0, 1]


def test_a_run_of_another_model_is_refused(tmp_path, measure) -> None:
    """Its own by another name is no other; one that is no longer there cannot be compared."""
    (tmp_path / "link").symlink_to(TINY)
    (other := tmp_path / "other").mkdir()
    for base in (tmp_path / "link", tmp_path / "gone"):
        measure("--adapter", make_run(tmp_path / f"of-{base.name}", 2, model=str(base)))
    run = make_run(tmp_path / "run", 2, model=str(other))
    with pytest.raises(ValueError, match=f"is of a run with the model {other}, not .*; pass --mod"):
        measure("--adapter", run)


def test_the_baseline_is_not_overwritten(tmp_path, measure) -> None:
    measure()
    before = (tmp_path / "out" / "items.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"--out .* is the folder of --baseline"):
        measure("--baseline", tmp_path / "out", "--adapter", make_run(tmp_path / "run", 2))
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == before


def test_missing_files_are_named(tmp_path, measure) -> None:
    for flag, message in (("--adapter", "--adapter expects a folder"), ("--data", "JSONL file")):
        with pytest.raises(FileNotFoundError, match=message):
            measure(flag, tmp_path / "nowhere")
    pairs = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match="--pairs: no label of any question"):
        measure("--pairs", pairs)
