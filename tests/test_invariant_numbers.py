"""Every invariant of log-probabilities and losses is seen to break, alone, by what it guards.

pytest tests/test_invariant_numbers.py
"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import data.packing
import model.objective
import model.transformer
from data.packing import PairBatch, pack_pairs
from data.pairs import TokenPair
from eval import invariant_numbers
from eval.invariant_numbers import (
    FirstStep,
    Objective,
    closed_form,
    computing_in,
    end_is_known,
    finite_numbers,
    logratios,
    loss_at_step_0,
    margin_at_step_0,
    nudged,
    policy_is_reference,
    relative,
    sums,
    texts_are_known,
    trained_rows,
)
from model.lora import add_lora, lora_layers
from tests.test_invariants import TINY, check, not_passed, small
from tests.test_lora import small_model

COEFFICIENTS = model.objective.coefficients
TERMS = model.objective.preference_terms
REFERENCE = invariant_numbers.reference_logps
SUMS = PairBatch.sum_by_sequence
PACK = data.packing.pack_pairs
LOGPS = invariant_numbers.packed_logps


def scaled_reference(factor: float) -> Callable:
    return lambda *args: REFERENCE(*args) * factor


def inexact_sums(batch: PairBatch, values: Tensor) -> Tensor:
    sums = SUMS(batch, values)
    return sums * (1 + 5e-5) if values.dtype == torch.float32 else sums


def packed_with(positions: Callable[[PairBatch], Tensor]) -> tuple:
    def pack(*args):
        batch = PACK(*args)
        return dataclasses.replace(batch, positions=positions(batch))

    return (data.packing, "pack_pairs", pack), (invariant_numbers, "pack_pairs", pack)


def terms_with(margins_of: Callable[[Tensor], Tensor]) -> tuple:
    def terms(*args):
        margins, *rewards = TERMS(*args)
        return margins_of(margins), *rewards

    return ((model.objective, "preference_terms", terms),)


def other_weights(objective: str, alpha: float, beta: float) -> tuple[float, float]:
    policy_coef, reference_coef = COEFFICIENTS(objective, alpha, beta)
    return 1.5 * policy_coef, reference_coef


SABOTAGES = {  # patches, flags, what does not pass, what is to be mended
    "another reference by a bit": (
        ((invariant_numbers, "reference_logps", scaled_reference(1 + 1e-6)),),
        {},
        {"policy is reference": "fail"},
        "pairs.jsonl:1: policy and reference differ by up to",
    ),
    "another reference": (
        ((invariant_numbers, "reference_logps", scaled_reference(1.1)),),
        {},
        {"policy is reference": "fail", "loss at step 0": "fail"},
        "to mend: policy is reference (2 invariants fail, this is the first)",
    ),
    "another weight of the policy": (
        ((model.objective, "coefficients", other_weights),),
        {"objective": "dpo"},
        {"loss at step 0": "fail", "swap turns the sign": "fail"},
        "the loss of --objective dpo is not its formula at policy = reference",
    ),
    "a margin of 1 too much": (
        terms_with(lambda margins: margins + 1),
        {"objective": "dpo"},
        {"loss at step 0": "fail", "swap turns the sign": "fail"},
        "the loss of --objective dpo is not its formula at policy = reference",
    ),
    "the wrong sign": (  # invisible at margin 0
        terms_with(lambda margins: -margins),
        {"objective": "dpo"},
        {"swap turns the sign": "fail"},
        "exchanging chosen and rejected does more or less than turn the margin's sign",
    ),
    "no sign": (
        terms_with(torch.abs),
        {"objective": "robust", "lora_rank": 0},
        {"swap turns the sign": "fail"},
        "exchanging chosen and rejected does more or less than turn the margin's sign",
    ),
    "margins that start where sigmoid is flat": (
        (),
        {"alpha": 500.0},
        {"margin at step 0": "note"},
        "at tau = 5e+03: such a pair is learned at full weight or not at all; take --alpha nearer "
        "to --beta, or shorter completions",
    ),
    "sums that are rounded": (
        ((PairBatch, "sum_by_sequence", inexact_sums),),
        {},
        {"sums in float32": "fail"},
        "the sums over tokens are rounded",
    ),
    "float64 that is none": (
        ((invariant_numbers, "packed_logps", lambda *args: LOGPS(*args) * (1 + 1e-7)),),
        {},
        {"packed is plain": "fail"},
        "the packed row gives other log-probabilities than plain rows",
    ),
    "a margin of a millionth too much": (
        terms_with(lambda margins: margins + 1e-6),
        {"objective": "dpo"},
        {"swap turns the sign": "fail"},
        "exchanging chosen and rejected does more or less than turn the margin's sign",
    ),
    "positions twice as far": (
        packed_with(lambda batch: 2 * batch.positions),
        {},
        {"packed is plain": "fail"},
        "the packed row gives other log-probabilities than plain rows; see data/packing.py",
    ),
    "positions that go on behind the chosen completion": (
        packed_with(lambda batch: torch.arange(len(batch.input_ids))),
        {},
        {"packed is plain": "fail", "swap turns the sign": "fail"},
        "to mend: packed is plain (2 invariants fail, this is the first)",
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_what_is_broken_is_found_and_nothing_else(name, tmp_path, capsys, monkeypatch):
    patches, flags, expected, mend = SABOTAGES[name]
    for patch in patches:
        monkeypatch.setattr(*patch)
    ready, verdicts, text = check(small(tmp_path, **flags), capsys)
    assert not_passed(verdicts) == expected
    assert mend in text
    assert ready == ("fail" not in expected.values())


def model_with(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """The embedded model with other weights."""
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def no_number(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = math.nan


def other_rows(tensors: dict[str, Tensor]) -> None:
    embeddings = tensors["model.embed_tokens.weight"]
    embeddings[3:] = embeddings[3:].flip(0)


def zero_end(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"][2] = 0


def twin_end(tensors: dict[str, Tensor]) -> None:
    tensors["model.embed_tokens.weight"][2] = tensors["model.embed_tokens.weight"][1]


@pytest.mark.parametrize(
    ("change", "expected", "mend"),
    [
        (no_number, {"finite numbers": "fail"}, "pairs.jsonl:1: no finite log-probability"),
        (other_rows, {"the texts are known": "fail"}, "are --tokenizer and --chat_format those"),
        (zero_end, {"special tokens trained": "note"}, "token 2: its embedding is equal to"),
        (twin_end, {"special tokens trained": "note"}, "token 1: its embedding is equal to"),
    ],
)
def test_weights_that_are_not_what_they_should_be(change, expected, mend, tmp_path, capsys):
    """Not a number; the rows of another tokenizer; an end of turn that was never trained."""
    model = model_with(tmp_path / "model", change)
    _, verdicts, text = check(small(tmp_path, model=model), capsys)
    verdicts.pop("the end of turn is known", None)  # it may or may not be, by such weights
    assert not_passed(verdicts) == expected
    assert mend in text


def test_an_end_of_turn_that_the_model_does_not_use(tmp_path, capsys):
    """The embedded model is trained with the format plain; llama2 puts a space before the end."""
    _, verdicts, text = check(small(tmp_path, chat_format="llama2"), capsys)
    assert verdicts["the end of turn is known"] == "note"
    assert "--chat_format is another one than its own" in text


# ------------------------------------------------------------------------------------------------
# the parts

ONE = np.ones(1, np.int32)
MODEL = SimpleNamespace(config=SimpleNamespace(vocab_size=100))  # log 1/V is -4.605
PAIRS = [TokenPair(ONE, ONE, ONE, f"x:{i}") for i in range(3)]


def step_of(ids: list[int], logps: list[float], reference: list[float] | None = None) -> FirstStep:
    """Of pairs whose completions are one token each; the numbers are chosen first."""
    batch, policy = pack_pairs([PAIRS[i] for i in ids], ids), torch.tensor(logps)
    tokens = policy.view(2, -1).T.flatten()
    others = policy if reference is None else torch.tensor(reference)
    return FirstStep(batch, tokens, torch.ones(len(logps)), policy, others)


def test_a_number_that_is_not_finite_is_traced_to_its_pair():
    """The rejected completion of the second pair of the first micro-batch: pair 0 of the data."""
    steps = [step_of([2, 0], [-1, -1, -1, -math.inf]), step_of([1], [-1, -1])]
    finding = finite_numbers(steps, PAIRS)
    assert finding.found == "1 of 3 pairs without" and finding.mend.startswith("x:0: no finite")


def test_a_difference_is_the_largest_of_all_steps():
    steps = [step_of([2, 0], [-1, -1, -1, -1], [-1, -1, -1, -1.5]), step_of([1], [-1, -1])]
    finding = policy_is_reference(steps, PAIRS)
    assert finding.found == "1 of 3 pairs differ"
    assert finding.mend.startswith("x:0: policy and reference differ by up to 5.0e-01 nats")


def test_known_texts_have_more_than_three_quarters_of_chance():
    """3/4 of log 1/100 is -3.454: on the mean of all micro-batches, -3.5 in the first case."""
    for last, verdict in ((-4.0, "fail"), (-3.8, "pass")):
        steps = [step_of([0], [-3.0, -3.0]), step_of([1], [last, last])]
        assert texts_are_known(MODEL, steps).verdict == verdict
        end = end_is_known(MODEL, steps, 1)
        assert end.verdict == verdict.replace("fail", "note")
        assert end_is_known(MODEL, steps, 2).verdict == "pass"  # all are cut


def test_one_loss_that_is_not_its_formula_is_enough():
    """A margin of 0.1 * 0.02 in one pair of two: its loss is 0.001 less than log 2."""
    steps = [step_of([0, 1], [-1.0, -1.0, -2.0, -2.0], [-1.0, -1.02, -2.0, -2.0])]
    assert loss_at_step_0(steps, Objective("dpo", None, 0.1)).verdict == "fail"
    steps = [step_of([0, 1], [-1.0, -1.0, -2.0, -2.0])]
    assert loss_at_step_0(steps, Objective("dpo", None, 0.1)).verdict == "pass"


def test_margins_saturate_on_both_sides():
    """Beyond 20 or -20, in more than half of the pairs."""
    for margins, verdict in (((-25, 25, 5), "note"), ((-25, 19, 5), "pass"), ((25, 5), "pass")):
        count = len(margins)
        steps = [step_of(list(range(count)), [*map(float, margins)] + [0.0] * count,
                         [0.0] * 2 * count)]  # fmt: skip
        assert margin_at_step_0(steps, Objective("dpo", None, 1.0)).verdict == verdict
    h_dpo = margin_at_step_0(steps, Objective("h_dpo", 3.0, 0.5))
    assert "at tau = 3: such" in h_dpo.mend and "nearer to 1, a smaller --beta" in h_dpo.mend


def test_sums_are_compared_in_every_micro_batch():
    wrong, right = step_of([0], [-1.0, -1.0]), step_of([1], [-1.0, -1.0])
    wrong = dataclasses.replace(wrong, policy=torch.tensor([-1.0, -1.01]))
    assert sums([wrong, right]).verdict == "fail" and sums([right]).verdict == "pass"


def test_rows_below_a_tenth_of_the_median_were_never_trained():
    """Norms 1, 1, 1, 0.09 and 0.11."""
    norms = torch.tensor([1.0, 1.0, 1.0, 0.09, 0.11])
    model = SimpleNamespace(embed_tokens=SimpleNamespace(weight=norms.diag()))
    finding = trained_rows(model, [0, 3, 4])
    assert finding.verdict == "note" and finding.found == "1 of 3 rows are not"
    assert finding.mend.startswith("token 3: its embedding")


def test_closed_forms_by_hand():
    """Policy ratio 3, reference ratio 2, so that with alpha 1 and beta 0.5 the margin of spl is
    3 - 1 = 2, of h_dpo 0.5 * 3 - 1 = 0.5, of dpo 0.5 * (3 - 2) = 0.5:

    -log sigmoid(2) = log(1 + e^-2) = 0.126928, -log sigmoid(-2) = 2.126928
    -log sigmoid(0.5) = log(1 + e^-0.5) = 0.474077, -log sigmoid(-0.5) = 0.974077
    ipo: (1 - 1 / (2 * 0.5))^2 = 0; robust at eps 0.2: (0.8 * 0.474077 - 0.2 * 0.974077) / 0.6
    """
    exact = {
        ("spl", 0.0): 0.126928,
        ("spl", 0.25): 0.75 * 0.126928 + 0.25 * 2.126928,
        ("h_dpo", 0.0): 0.474077,
        ("dpo", 0.0): 0.474077,
        ("ipo", 0.0): 0.0,
        ("robust", 0.2): (0.8 * 0.474077 - 0.2 * 0.974077) / 0.6,
    }
    for (name, eps), value in exact.items():
        assert closed_form(Objective(name, 1.0, 0.5, eps), 3, 2) == pytest.approx(value, abs=1e-6)
    assert closed_form(Objective("dpo", 1.0, 0.1), 7, 7) == pytest.approx(math.log(2), abs=1e-15)
    assert closed_form(Objective("ipo", 1.0, 0.1), 7, 7) == pytest.approx(1 / (4 * 0.01))
    assert closed_form(Objective("spl", 9e3, 0.1), -1.0, 0) == pytest.approx(9e3)  # no overflow


def test_ratios_of_ipo_are_those_of_means():
    """Chosen -6 over 3 tokens, rejected -4 over 4: -6 + 4 = -2; -2 + 1 = -1."""
    logps, lengths = torch.tensor([-6.0, -4.0]), torch.tensor([3.0, 4.0])
    assert logratios(Objective("dpo", 1.0, 0.1), logps, lengths) == [-2.0]
    assert logratios(Objective("ipo", 1.0, 0.1), logps, lengths) == [-1.0]


def test_relative_errors_are_absolute_below_one_nat():
    """1 of 100, and 0.02 of 0.1."""
    exact = torch.tensor([-100.0, -0.1], dtype=torch.float64)
    assert relative(exact - torch.tensor([1.0, 0.0]), exact) == pytest.approx(0.01)
    assert relative(exact - torch.tensor([0.0, 0.02]), exact) == pytest.approx(0.02)
    assert math.isnan(relative(exact * math.nan, exact))


@pytest.mark.parametrize("adapters", [True, False])
def test_a_nudge_and_a_dtype_last_as_long_as_asked(adapters):
    model = small_model()
    if adapters:
        add_lora(model, rank=2, alpha=4.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError), nudged(model), computing_in(model, torch.float64):
        assert model(torch.tensor([[1, 2]])).dtype == torch.float64
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        adapted = {f"{name}.lora_B" for name, _ in lora_layers(model)}
        assert moved == (adapted if adapters else {"norm.weight"})
        raise RuntimeError
    assert model.compute_dtype is None and not model.checkpoint_activations
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
