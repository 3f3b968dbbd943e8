"""All that the audit's page shows, from a real run of three steps with its checkpoints.

pytest tests/test_audit_pairs.py
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from eval import audit_pairs
from eval.audit_pairs import Speller, audit, choose_pairs, count, find_duplicates, logged
from eval.audit_run import AuditConfig, read_settings
from tests.conftest import ROOT
from tests.test_transformer import random_pairs

TINY = str(ROOT / "data" / "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """40 pairs, half of them held out, three steps at a high rate, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("audit")
    rows = (ROOT / "data" / "tiny" / "train.jsonl").read_text().splitlines()[:40]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    flags = {"data": folder / "pairs.jsonl", "eval_fraction": 0.5, "batch_size": 8, "keep": 0,
             "max_steps": 3, "save_every": 1, "learning_rate": 1e-2, "device": "cpu",
             "sample_prompts": 0, "lora_rank": 4, "out_dir": folder / "run"}  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "train.py", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return str(folder / "run")


@pytest.fixture(scope="module")
def page(run) -> dict:
    config = AuditConfig(run=run, worst=2, sample=2, device="cpu")
    return audit(config, read_settings(config))


def test_recomputed_means_are_the_logged_ones(page):
    logged = page["logged"]
    assert logged["step"] == 3
    assert logged["margin_here"] == pytest.approx(logged["margin"], abs=1e-5)
    assert logged["loss_here"] == pytest.approx(logged["loss"], abs=1e-5)


@pytest.mark.parametrize(
    "flag", [{"limit": 5}, {"on": "train"}, {"beta": 0.3}, {"max_length": 64}, {"policy": TINY}]
)
def test_means_of_other_pairs_or_weights_stand_beside_no_logged_ones(run, flag):
    rows = [{"margin": 1.0, "loss": 0.5}, {"margin": 3.0, "loss": 0.1}]
    found = logged(AuditConfig(run=run), rows)
    assert (found["margin_here"], found["loss_here"]) == (2.0, 0.3)
    assert logged(AuditConfig(run=run, **flag), rows) is None


def test_every_shown_pair_closes_and_json_can_hold_it(page):
    assert page["closing"]["closes"] and page["closing"]["largest"] < 1e-5
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    for pair in page["pairs"]:
        both = [*pair["chosen"]["margin_share"], *pair["rejected"]["margin_share"]]
        assert sum(both) == pytest.approx(pair["chain"]["margin"], abs=1e-4)
        for side in ("chosen", "rejected"):
            columns = {name: len(v) for name, v in pair[side].items() if isinstance(v, list)}
            assert len(set(columns.values())) == 1 and len(columns) == 12, columns
            assert pair[side]["tokens"][-1] == "</s>" and pair[side]["special"][-1]


def test_the_worst_pairs_are_among_the_shown(page):
    rows = {row[0]: dict(zip(page["glance"]["columns"], row, strict=True))
            for row in page["glance"]["rows"]}  # fmt: skip
    worst = sorted(rows, key=lambda i: rows[i]["margin"])[:2]
    shown = {pair["index"]: pair for pair in page["pairs"]}
    assert set(worst) <= shown.keys() and 2 <= len(shown) <= 4
    for index, pair in shown.items():
        assert rows[index]["margin"] == pair["chain"]["margin"]
        assert rows[index]["chosen_tokens"] == len(pair["chosen"]["ids"])
    assert page["counts"]["pairs"] == len(rows)


def test_lines_over_steps_end_at_the_policy(page):
    """The third checkpoint is the policy; the first step has moved the margin little."""
    assert page["steps"] == [1, 2, 3]
    for pair in page["pairs"]:
        lines = pair["over_steps"]
        assert {len(values) for values in lines.values()} == {3}
        for name in ("margin", "loss", "terms/policy", "terms/reference"):
            assert lines[name][-1] == pytest.approx(pair["chain"][name], abs=1e-4)
        assert len(set(lines["terms/reference"])) == 1, "the reference does not move"
        assert lines["terms/policy"][0] != lines["terms/policy"][2]


def test_another_objective_on_the_same_policy(run, page):
    config = AuditConfig(run=run, objective="dpo", beta=0.3, pairs=("0",), device="cpu", limit=5)
    other = audit(config, read_settings(config))
    assert other["logged"] is None and other["counts"]["pairs"] == 5
    (pair,) = other["pairs"]
    margin = 0.3 * (pair["chain"]["pi_logratios"] - pair["chain"]["ref_logratios"])
    assert pair["chain"]["margin"] == pytest.approx(margin) and other["tau"] == 1


def test_a_shown_pair_names_its_duplicate_beyond_the_glance(tmp_path, monkeypatch):
    """Three pairs, the last like the first; the glance has none of them."""
    one, two = (ROOT / "data" / "tiny" / "train.jsonl").read_text().splitlines()[:2]
    (tmp_path / "pairs.jsonl").write_text("\n".join((one, two, one)))
    monkeypatch.setattr(audit_pairs, "SHOWN", 0)
    config = AuditConfig(model=TINY, policy=TINY, data=(str(tmp_path / "pairs.jsonl"),),
                         device="cpu")  # fmt: skip
    page = audit(config, read_settings(config))
    assert page["glance"]["rows"] == []
    assert [pair["duplicate_of"] for pair in page["pairs"]] == [None, None, 0]


# ------------------------------------------------------------------------------------------------
# by hand


def test_which_pairs_are_shown():
    rows = [{"margin": m} for m in (3.0, -1.0, 2.0, -5.0, 0.0)]
    none = AuditConfig()
    assert choose_pairs(replace(none, pairs=("4", "0")), rows) == [0, 4]
    assert choose_pairs(replace(none, worst=2), rows) == [1, 3]
    assert choose_pairs(replace(none, worst=2, pairs=("0",)), rows) == [0, 1, 3]
    assert choose_pairs(none, rows) == [0, 1, 2, 3, 4]
    drawn = choose_pairs(replace(none, sample=3), rows)
    assert len(drawn) == 3 and drawn == choose_pairs(replace(none, sample=3), rows)
    with pytest.raises(ValueError, match="--pairs expects numbers below 5, got 5"):
        choose_pairs(replace(none, pairs=("5",)), rows)


def test_duplicates_name_the_first():
    pairs = random_pairs(50, [(3, 2, 2), (3, 2, 2), (4, 1, 1)])
    same = replace(pairs[0], source="other")
    assert find_duplicates([*pairs, same, same]) == [None, None, None, 0, 0]
    swapped = replace(pairs[0], chosen_ids=pairs[0].rejected_ids, rejected_ids=pairs[0].chosen_ids)
    assert find_duplicates([pairs[0], swapped]) == [None, None]


def test_counts_by_hand():
    rows = [{"margin": m} for m in (30.0, -25.0, 0.5, -0.1)]
    cut = {("f:1", "prompt"), ("f:1", "chosen"), ("f:2", "rejected")}
    assert count(rows, cut, [None, 0, None, None]) == {
        "pairs": 4, "saturated": 2, "contradicted": 2, "duplicates": 1, "truncated_prompts": 1,
        "truncated_completions": 2,
    }  # fmt: skip


def test_tokens_are_spelled():
    tokenizer = load_tokenizer(Path(TINY))
    ids = [tokenizer.bos_id, *tokenizer.encode("Tom has"), tokenizer.eos_id]
    spelled = Speller(tokenizer).all(ids)
    assert spelled["tokens"][0] == "<s>" and spelled["tokens"][-1] == "</s>"
    assert "".join(spelled["tokens"][1:-1]).strip() == "Tom has"
    assert spelled["special"] == [True, *[False] * (len(ids) - 2), True] and spelled["ids"] == ids
    assert np.shape(ids) == (len(ids),)
