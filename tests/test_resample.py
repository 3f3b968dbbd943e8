"""Resampled completions against distributions that can be written down whole.

The policy has a few completions of known probability; what a block keeps, and what follows
pi^(1/tau), is then a sum over all blocks. Counts of draws are compared with it by a chi-square test
at the 1e-4 level. pytest tests/test_resample.py
"""

import json
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from data.rows import read_rows
from eval import resample as module
from eval.resample import draw, effective_size, log_weights, resample
from model.sampling import PLAIN, Sampling

PROBS = np.array([0.5, 0.3, 0.15, 0.05])
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11}  # exceeded with probability 1e-4, by degrees of freedom


def tempered(probs: np.ndarray, tau: float) -> np.ndarray:
    return probs ** (1 / tau) / (probs ** (1 / tau)).sum()


def kept_of_a_block(probs: np.ndarray, tau: float, size: int) -> np.ndarray:
    """The exact distribution of what a block of so many draws keeps: a sum over all blocks."""
    result = np.zeros(len(probs))
    for block in product(range(len(probs)), repeat=size):
        weights = probs[list(block)] ** (1 / tau - 1)
        np.add.at(result, list(block), probs[list(block)].prod() * weights / weights.sum())
    return result


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = counts.sum() * probs
    return float(((counts - expected) ** 2 / expected).sum())


# ------------------------------------------------------------------------------------------------
# weights


def test_weights_by_hand() -> None:
    """tau 2 weighs by pi^(-1/2): of 1/4 and 1/16 they are 2 and 4, of the whole 1/3 and 2/3."""
    weights = np.exp(log_weights(np.log([1 / 4, 1 / 16]), 2.0))
    assert weights == pytest.approx([1 / 3, 2 / 3], rel=1e-14)
    weights = np.exp(log_weights(np.log([1 / 4, 1 / 16]), 0.5))  # pi^1
    assert weights == pytest.approx([4 / 5, 1 / 5], rel=1e-14)


def test_tau_1_weighs_all_alike() -> None:
    weights = log_weights(np.array([-3.0, -700.0, -1e5]), 1.0)
    assert np.exp(weights) == pytest.approx([1 / 3] * 3, rel=1e-14)
    assert effective_size(weights) == pytest.approx(3, rel=1e-14)


def test_weights_of_long_completions_do_not_overflow() -> None:
    """exp(50000) is no float64; the log weights of -1e5 and -1e5 - 2 at tau 2 differ by 1."""
    weights = log_weights(np.array([-1e5, -1e5 - 2]), 2.0)
    assert np.exp(weights) == pytest.approx(np.array([1, np.e]) / (1 + np.e), rel=1e-9)


def test_effective_size_by_hand() -> None:
    """Weights 1/2, 1/4, 1/4: 1 / (1/4 + 1/16 + 1/16) = 8/3; one weight of all: 1."""
    assert effective_size(np.log([0.5, 0.25, 0.25])) == pytest.approx(8 / 3, rel=1e-14)
    assert effective_size(np.array([0.0, -800.0, -900.0])) == pytest.approx(1, rel=1e-14)


# ------------------------------------------------------------------------------------------------
# draws


def keep(tau: float, N: int, n: int, prompts: int, seed: int = 0) -> np.ndarray:
    """(prompts, n): N draws from PROBS for each prompt, n of them kept."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(PROBS), size=(prompts, N), p=PROBS)
    weights = [log_weights(np.log(PROBS[row]), tau) for row in drawn]
    kept = [row[draw(w, n, rng)] for row, w in zip(drawn, weights, strict=True)]
    return np.array(kept)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 4.0])
def test_what_a_block_keeps_is_the_exact_distribution(tau) -> None:
    """Both halves of six draws: blocks of three, 4^3 of them in the exact sum; 2000 prompts."""
    exact = kept_of_a_block(PROBS, tau, 3)
    assert exact.sum() == pytest.approx(1, rel=1e-12)
    for column in keep(tau, 6, 2, 2000).T:
        assert chi_square(np.bincount(column, minlength=4), exact) < CHI_SQUARE[3]


def test_large_blocks_follow_the_tempered_policy() -> None:
    """Blocks of 200: their error of the order 1/200 is below the noise of 1500 draws.

    The untempered policy is told apart from them by the same test.
    """
    counts = np.bincount(keep(2.0, 200, 1, 1500)[:, 0], minlength=4)
    assert chi_square(counts, tempered(PROBS, 2.0)) < CHI_SQUARE[3]
    assert chi_square(counts, PROBS) > 5 * CHI_SQUARE[3]


def test_the_error_falls_as_one_over_the_size_of_a_block() -> None:
    """Exactly, without draws: twice the block, about half of the distance to pi^(1/tau)."""
    target = tempered(PROBS, 1.5)
    errors = [np.abs(kept_of_a_block(PROBS, 1.5, size) - target).sum() for size in (1, 2, 4, 8)]
    assert errors[0] == pytest.approx(np.abs(PROBS - target).sum())  # a block of one is pi's own
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios > 1.7).all() and ratios[-1] == pytest.approx(2, abs=0.1)


def test_what_is_kept_is_independent() -> None:
    """Pairs of the two halves' first completion against the product of the exact probabilities."""
    first = kept_of_a_block(PROBS, 2.0, 3)[0]
    kept = keep(2.0, 6, 2, 4000) == 0
    counts = np.array([(kept[:, 0] & kept[:, 1]).sum(), (kept[:, 0] ^ kept[:, 1]).sum()])
    counts = np.append(counts, len(kept) - counts.sum())
    exact = np.array([first**2, 2 * first * (1 - first), (1 - first) ** 2])
    assert chi_square(counts, exact) < CHI_SQUARE[2]


def test_no_completion_is_kept_twice() -> None:
    rng = np.random.default_rng(0)
    for N, n in [(7, 1), (7, 3), (16, 4), (5, 5)]:
        kept = draw(rng.normal(size=N) * 9, n, rng)
        assert len(set(kept.tolist())) == n and kept.min() >= 0 and kept.max() < N
        assert (np.diff(kept) > 0).all()


def test_all_are_kept_where_as_many_are_wanted() -> None:
    assert draw(np.log(PROBS), 4, np.random.default_rng(0)).tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------
# rows


def make_row(index: int, logps: list[float], **more) -> dict:
    n = len(logps)
    return {
        "index": index,
        "prompt": "?" * n,
        "completions": [f"{index}.{i}" for i in range(n)],
        "tokens": list(range(10, 10 + n)),
        "logps": logps,
        "finish_reasons": ["stop"] * (n - 1) + ["length"],
    } | more


def test_a_row_keeps_what_belongs_together() -> None:
    logps = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    row = make_row(7, logps, reference_logps=[x - 10 for x in logps], extra=[1] * 6)
    made = resample(row, 1.5, 3, seed=0)
    kept = made["kept"]
    assert [k // 2 for k in kept] == [0, 1, 2]  # one out of each block of two
    assert made["completions"] == [f"7.{k}" for k in kept]
    assert made["tokens"] == [10 + k for k in kept]
    assert made["logps"] == [logps[k] for k in kept]
    assert made["reference_logps"] == [logps[k] - 10 for k in kept]
    assert made["prompt"] == "??????" and made["extra"] == [1] * 6 and made["index"] == 7
    assert made["effective"] == effective_size(log_weights(np.array(logps), 1.5))


def test_a_row_depends_on_seed_and_index_alone() -> None:
    logps = np.random.default_rng(0).normal(-30, 3, 64).tolist()
    kept = [resample(make_row(i, logps), 1.1, 8, s)["kept"] for i, s in [(0, 0), (1, 0), (0, 1)]]
    assert kept[0] == resample(make_row(0, logps), 1.1, 8, 0)["kept"]
    assert kept[0] != kept[1] and kept[0] != kept[2]


# ------------------------------------------------------------------------------------------------
# files and the command line


def write_samples(folder: Path, rows: list[dict], sampling: Sampling = PLAIN, **settings) -> Path:
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"n": 8, "sampling": asdict(sampling), **settings}
    (folder / "samples.jsonl.settings.json").write_text(json.dumps(settings))
    return file


@pytest.fixture
def samples(tmp_path) -> Path:
    """Eight completions each of three prompts; those of the last are all alike in probability."""
    logps = [*np.random.default_rng(0).normal(-20, 6, (2, 8)).tolist(), [-5.0] * 8]
    return write_samples(tmp_path, [make_row(i, some) for i, some in enumerate(logps)])


def run(monkeypatch, samples: Path, *flags: str) -> Path:
    out = samples.parent / "new" / "resampled.jsonl"
    argv = ["--samples", str(samples), "--out", str(out), *flags]
    monkeypatch.setattr(sys, "argv", ["eval.resample", *argv])
    module.main()
    return out


def test_from_a_samples_file_to_another(samples, monkeypatch, capsys) -> None:
    out = run(monkeypatch, samples, "--tau", "2", "--n", "2", "--seed", "5")
    before = [row for _, row in read_rows(samples)]
    after = [row for _, row in read_rows(out)]
    assert after == [resample(row, 2.0, 2, 5) for row in before]
    assert after[2]["effective"] == pytest.approx(8)
    settings = json.loads(out.with_name("resampled.jsonl.settings.json").read_text())
    assert (settings["tau"], settings["n"], settings["seed"]) == (2, 2, 5)
    assert settings["drawn"]["sampling"] == asdict(PLAIN) and "sampling" not in settings
    printed = capsys.readouterr().out
    assert "completions per prompt           8          2" in printed
    assert "cut at the length limit      0.125" in printed
    few = sum(row["effective"] < 8 for row in after)  # four for each of two
    assert few >= 1 and f"warning: for {few} of 3 prompts it is below 4 for each" in printed


def test_what_was_drawn_is_still_named(tmp_path, monkeypatch) -> None:
    """The digest of a benchmark's prompts and the reference, by which eval.diversity compares."""
    known = {"prompts": "abc", "reference_weights": "def"}
    samples = write_samples(tmp_path, [make_row(0, [-1.0, -2.0])], **known)
    out = run(monkeypatch, samples, "--tau", "2", "--n", "1")
    settings = json.loads(out.with_name("resampled.jsonl.settings.json").read_text())
    assert {name: settings[name] for name in known} == known


def test_nothing_is_warned_of_where_all_count(samples, monkeypatch, capsys) -> None:
    run(monkeypatch, samples, "--tau", "1", "--n", "2")
    printed = capsys.readouterr().out
    assert "effective sample size: mean 8.0, least 8.0" in printed and "warning" not in printed


def test_the_same_command_again_and_another_one(samples, monkeypatch) -> None:
    out = run(monkeypatch, samples, "--tau", "2", "--n", "2")
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])  # a kill
    assert run(monkeypatch, samples, "--tau", "2", "--n", "2").read_bytes() == whole
    with pytest.raises(ValueError, match=r"made otherwise \(tau 2.0, now 3.0\)"):
        run(monkeypatch, samples, "--tau", "3", "--n", "2")


def test_what_was_resampled_is_not_resampled_again(samples, monkeypatch) -> None:
    """Its completions do not have the probabilities that the policy drew them with."""
    out = run(monkeypatch, samples, "--tau", "2", "--n", "4")
    with pytest.raises(ValueError, match="expected `sampling`, how a policy drew"):
        run(monkeypatch, out, "--tau", "2", "--n", "2")


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.7), Sampling(top_k=5), Sampling(top_p=0.9), Sampling(min_p=0.1)],
)
def test_filtered_draws_are_refused(tmp_path, monkeypatch, sampling) -> None:
    samples = write_samples(tmp_path, [make_row(0, [-1.0, -2.0])], sampling)
    with pytest.raises(ValueError, match="at temperature 1 with nothing left out"):
        run(monkeypatch, samples, "--tau", "2", "--n", "1")


def test_draws_of_unknown_settings_are_refused(samples, monkeypatch) -> None:
    samples.with_name("samples.jsonl.settings.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"settings.json has to say how it was drawn"):
        run(monkeypatch, samples, "--tau", "2", "--n", "1")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row in it"),
        ([make_row(1, [-1.0])], "jsonl:1: expected the row of index 0, got 1; where sampling was"),
        ([make_row(0, [-1.0])], "jsonl:1: expected at least --n 2 completions, got 1"),
        ([make_row(0, [-1.0, -2.0], tokens=[1])], "jsonl:1: expected `tokens`, one for each"),
        ([make_row(0, [-1.0, -2.0]) | {"logps": None}], "jsonl:1: expected `logps`, one for each"),
        ([make_row(0, [-1.0, "x"])], "expected `logps`, the log-probability"),
        ([make_row(0, [-1.0, -2.0], tokens=["x", None])], "jsonl:1: expected `tokens`, how many"),
        ([make_row(0, [-1.0, -2.0], reference_logps=[])], "expected `reference_logps`, one for"),
    ],
)
def test_bad_rows_are_named(tmp_path, monkeypatch, rows, message) -> None:
    samples = write_samples(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, samples, "--tau", "2", "--n", "2")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--tau expects a number above 0, got None"),
        (["--tau", "0"], "--tau expects a number above 0, got 0.0"),
        (["--tau", "2", "--n", "0"], "--n expects 1 or more"),
        (["--tau", "2", "--seed", "-1"], "--seed expects 0 or more"),
    ],
)
def test_bad_flags(samples, monkeypatch, flags, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, samples, *flags)
