"""What the audit looks at: a run's settings, flags before them, pairs as in training, models.

pytest tests/test_audit_run.py
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from eval.audit_run import AuditConfig, Settings, load_models, read_settings, read_tokens
from model.checkpoint import load_model
from model.config import parse_config
from tests.conftest import ROOT
from train import TrainConfig

TINY = str(ROOT / "data" / "tiny")
ROW = {"prompt": "Tom has 3 apples.", "chosen": "Good for Tom.", "rejected": "Poor Tom."}


@pytest.fixture
def data(tmp_path) -> str:
    file = tmp_path / "pairs.jsonl"
    longer = ROW | {"chosen": "Good for Tom. " * 9, "prompt": "Tom has 3 apples. " * 9}
    file.write_text("\n".join(json.dumps(row) for row in (ROW, longer)))
    return str(file)


@pytest.fixture
def run(tmp_path, data) -> str:
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {"model": TINY, "data": [data], "objective": "h_dpo", "alpha": 0.9, "beta": 0.2,
                "lora_rank": 8, "eval_fraction": 0.5, "_argv": ["train.py"]}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_settings_without_a_run_are_train_s_defaults():
    ours = {field.name: field.default for field in fields(Settings)}
    theirs = {field.name: field.default for field in fields(TrainConfig)}
    assert ours.items() <= theirs.items()


def test_a_run_s_settings_and_flags_before_them(run, data):
    settings = read_settings(AuditConfig(run=run))
    assert (settings.objective, settings.alpha, settings.beta) == ("h_dpo", 0.9, 0.2)
    assert settings.terms.coefficients == pytest.approx((0.18, 0.2))
    assert settings.data == (data,) and settings.lora_rank == 8
    settings = read_settings(AuditConfig(run=run, objective="spl", alpha=0.3, data=("x",)))
    assert settings.terms.coefficients == (0.3, 0.2)
    assert settings.data == ("x",) and settings.eval_data is None


def test_labels_are_flipped_as_in_training_but_in_no_other_data(run):
    file = Path(run) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"label_noise": 0.25}))
    assert read_settings(AuditConfig(run=run)).label_noise == 0.25
    assert read_settings(AuditConfig(run=run, data=("x",))).label_noise == 0.0


def test_an_alpha_of_another_objective_is_not_inherited(run):
    """0.9 is tau for h_dpo, and for spl with beta 0.2 a tau of 4.5: there it is 1.2 * 0.2."""
    settings = read_settings(AuditConfig(run=run, objective="spl"))
    assert settings.terms.coefficients == pytest.approx((0.24, 0.2))
    assert read_settings(AuditConfig(run=run, objective="dpo")).alpha is None
    assert read_settings(AuditConfig(run=run, objective="h_dpo")).alpha == 0.9
    file = Path(run) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"objective": "spl"}))
    with pytest.raises(ValueError, match="h_dpo expects --alpha"):
        read_settings(AuditConfig(run=run, objective="h_dpo"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_data": 3}, r"config.json: eval_data expects a list of texts, got 3"),
        ({"data": "abc"}, r"config.json: data expects a list of texts, got 'abc'"),
        ({"beta": "x"}, r"config.json: beta expects a number, got 'x'"),
    ],
)
def test_a_config_that_no_run_has_written_is_named(run, settings, message):
    file = Path(run) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        read_settings(AuditConfig(run=run))


@pytest.mark.parametrize(
    "config, error, message",
    [
        (AuditConfig(run="nowhere"), FileNotFoundError, "--run expects a folder of train.py, got"),
        (AuditConfig(objective="x"), ValueError, "expected --objective to be one of"),
        (AuditConfig(objective="f_dpo"), ValueError, "whose equations the audit has .*; got f_dpo"),
        (AuditConfig(alpha=0.0), ValueError, "--alpha above 0, got 0.0"),
    ],
)
def test_settings_that_are_none_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        read_settings(config)


def test_none_is_a_chat_format(run):
    """And not the absence of one: a run's own counts where no flag is given."""
    kept = read_settings(AuditConfig(run=run)).chat_format
    assert kept != "none"
    config = parse_config(AuditConfig, ["--run", str(run), "--chat_format", "none"])
    assert read_settings(config).chat_format == "none"


def test_pairs_are_those_of_training_and_cuts_are_known(data):
    """A prompt of 9 sentences into 12 tokens, its chosen reply into what is left of 30."""
    config = AuditConfig(data=(data,), max_length=30, max_prompt_length=12, model=TINY)
    pairs, cut, tokenizer, chat_format, _ = read_tokens(config, read_settings(config))
    assert [len(pair.prompt_ids) for pair in pairs][1] == 12 and len(pairs[1].chosen_ids) == 18
    second = f"{Path(data).name}:2"
    assert {(source.rpartition("/")[2], side) for source, side in cut} == {
        (second, "prompt"), (second, "chosen"),
    }  # fmt: skip
    assert chat_format.name == "plain" and tokenizer.vocab_size > 0
    assert len(read_tokens(replace(config, limit=1), read_settings(config))[0]) == 1


def test_without_held_out_pairs_says_what_to_pass(run):
    config = AuditConfig(run=run)
    settings = replace(read_settings(config), eval_fraction=0.0)
    with pytest.raises(ValueError, match="no held-out pairs; pass --on train"):
        read_tokens(config, settings)


def test_the_adapter_that_a_run_started_from_is_part_of_its_reference(run, monkeypatch):
    """What the run has saved is the sum of both, so that the policy needs that alone."""
    monkeypatch.setattr("eval.audit_run.load_policy", lambda model, adapter, *_: (model, adapter))
    config = AuditConfig(run=run)
    settings = replace(read_settings(config), adapter="first")
    policy, reference, *names = load_models(config, settings, torch.float32, "cpu")
    assert policy == (TINY, run) and reference == (TINY, "first")
    assert names == [f"{TINY} + {run}", f"{TINY} + first"]


def test_models_of_a_run_of_all_weights(run, tmp_path):
    """RUN/model is the policy, the run's --model the reference."""
    trained = Path(run) / "model"
    trained.symlink_to(TINY)
    policy, reference, *names = load_models(
        AuditConfig(run=run), read_settings(AuditConfig(run=run)), torch.float32, "cpu"
    )
    assert names == [str(trained), TINY]
    for one, two in zip(policy.parameters(), load_model(TINY).parameters(), strict=True):
        assert torch.equal(one, two)
    assert policy is not reference
    settings = replace(read_settings(AuditConfig(run=run)), init="config.json")
    with pytest.raises(ValueError, match="left no reference"):
        load_models(AuditConfig(run=run), settings, torch.float32, "cpu")
