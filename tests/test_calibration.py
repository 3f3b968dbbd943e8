"""eval/calibration.py against hand arithmetic, torchmetrics, torch, and simulated policies.

Bounds on simulations are three standard errors or more; the seeds are fixed.
pytest tests/test_calibration.py
"""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from eval.calibration import (
    bin_means,
    brier_score,
    calibrated_error,
    calibration_metrics,
    confidence_metrics,
    correctness,
    debiased_calibration_error,
    expected_calibration_error,
    judge,
    noise_bias,
    reliability_table,
    renormalise,
    upper_edges,
)
from eval.metrics import basic_interval, bootstrap_interval, weighted_mean, wilson_interval
from eval.results import Metrics, Statistic, interval_row


def simulate(
    count: int, gap: float = 0.0, seed: int = 0, sets: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(confidences, correct), (sets, count): confidence 0.3 to 0.97, right with `gap` less.

    The gap is the same in every bin, so that it is the true calibration error.
    """
    rng = np.random.default_rng(seed)
    confidences = 0.3 + 0.67 * rng.beta(2, 2, size=(sets, count))
    return confidences, (rng.random((sets, count)) < confidences - gap).astype(float)


def values_of(metrics: Metrics) -> dict[str, float]:
    """Without the intervals, which take time."""
    return {
        name: rows.compute(rows.rows) if isinstance(rows, Statistic) else weighted_mean(rows)
        for name, rows in metrics.items()
    }


def random_questions(count: int, options: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities (count, options), right options (count,)), the policy overconfident."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, options))
    truths = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from the softmax
    weights = np.exp(2 * logits)
    return weights / weights.sum(axis=1, keepdims=True), truths


# ------------------------------------------------------------------------------------------------
# one question


def test_a_question_by_hand():
    """Probabilities 1/8, 1/4, 1/8 of all tokens: 1/4, 1/2, 1/4 of the options.

    The second is right: 1/16 + 1/4 + 1/16 = 3/8, log 2. The first: 9/16 + 1/4 + 1/16 = 7/8, log 4.
    """
    logps = np.log([1 / 8, 1 / 4, 1 / 8])
    assert renormalise(logps) == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=1e-15)
    assert judge(logps, 1) == pytest.approx((1 / 2, 1, 3 / 8, math.log(2)), abs=1e-15)
    assert judge(logps, 0) == pytest.approx((1 / 2, 0, 7 / 8, math.log(4)), abs=1e-15)


def test_a_tie_counts_its_share_in_any_order():
    """Two of three options are likeliest: whichever of them is right, and wherever it stands."""
    for order in permutations([(-1.0, "a"), (-1.0, "b"), (-2.0, "c")]):
        logps, names = np.array([logp for logp, _ in order]), [name for _, name in order]
        shares = [correctness(logps, names.index(name)) for name in "abc"]
        assert shares == [1 / 2, 1 / 2, 0]
    assert correctness(np.zeros(5), 3) == 1 / 5
    assert correctness(np.zeros(1), 0) == 1


def test_log_probabilities_of_long_answers_do_not_underflow():
    """exp(-2000) is 0 in float64; the difference of 3 is what is left of it."""
    confidence, correct, brier, nll = judge([-2000.0, -2003.0], 1)
    low = 1 / (1 + math.exp(3))  # the probability of the second
    assert (confidence, correct) == (pytest.approx(1 - low, abs=1e-15), 0)
    assert (brier, nll) == pytest.approx((2 * (1 - low) ** 2, -math.log(low)), rel=1e-14)
    *_, brier, nll = judge([0.0, -2000.0], 1)
    assert (brier, nll) == (2, 2000)


def test_likelihood_is_the_cross_entropy_of_torch():
    logits = np.random.default_rng(0).normal(scale=5, size=(50, 7))
    truths = np.arange(50) % 7
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(truths), reduction="none"
    )
    found = [judge(row, truth)[3] for row, truth in zip(logits, truths, strict=True)]
    assert found == pytest.approx(expected.tolist(), rel=1e-13)


def test_brier_score_has_its_limits():
    """Sure and right 0, sure and wrong 2; even odds over K: (1 - 1/K)^2 + (K - 1) / K^2 = 1 - 1/K.

    With two options twice the square that asks for one of them: 2 * 0.3^2.
    """
    assert [brier_score(np.array([1.0, 0, 0]), truth) for truth in (0, 1, 2)] == [0, 2, 2]
    for K in (2, 3, 10):
        assert brier_score(np.full(K, 1 / K), 1) == pytest.approx(1 - 1 / K, abs=1e-15)
    assert brier_score(np.array([0.7, 0.3]), 0) == pytest.approx(2 * 0.3**2, abs=1e-15)


# ------------------------------------------------------------------------------------------------
# bins


def test_expected_calibration_error_by_hand():
    """Two bins: 0.2 and 0.4 with one right, 0.7, 0.9 and 0.8 with two right.

    Means 0.3 and 0.8, accuracies 1/2 and 2/3: (2 * 0.2 + 3 * (0.8 - 2/3)) / 5 = 0.8 / 5.
    """
    confidences, correct = np.array([0.2, 0.7, 0.9, 0.4, 0.8]), np.array([0, 1, 0, 1, 1])
    assert expected_calibration_error(confidences, correct, 2) == pytest.approx(0.16, abs=1e-15)
    assert expected_calibration_error(confidences, correct, 1) == pytest.approx(0, abs=1e-15)


def test_an_edge_belongs_to_the_lower_bin_and_to_the_upper_one_of_torchmetrics():
    """Right at 0.5 and wrong at 0.75: each alone, (0.5 + 0.75) / 2; together 0.625 - 0.5."""
    confidences, correct = np.array([0.5, 0.75]), np.array([1, 0])
    assert expected_calibration_error(confidences, correct, bins=2) == 0.625
    theirs = binary_calibration_error(torch.tensor(confidences), torch.tensor(correct), n_bins=2)
    assert theirs == pytest.approx(0.125)


def test_every_edge_is_in_the_bin_below_it_and_zero_in_the_first():
    for bins in range(1, 60):
        edges = upper_edges(np.array([0.5]), bins, "width")
        assert edges.tolist() == [b / bins for b in range(1, bins + 1)]
        numbers = np.arange(bins, dtype=float)
        _, found = bin_means(edges, bins, "width", numbers)
        assert found.tolist() == numbers.tolist()
    counts, means = bin_means(np.array([0, 0.1, 1]), 4, "width", np.array([1, 3, 5]))
    assert (counts.tolist(), means.tolist()) == ([2, 1], [2, 5])


@pytest.mark.parametrize(("options", "bins"), [(2, 15), (4, 15), (4, 10), (10, 7), (5, 1)])
def test_torchmetrics_agrees_where_no_confidence_is_on_an_edge(options, bins):
    probs, truths = random_questions(1134, options, seed=options)
    ours = expected_calibration_error(probs.max(1), probs.argmax(1) == truths, bins)
    theirs = multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(truths), options, bins, norm="l1"
    )  # in float32, 2^-24 a term
    assert ours == pytest.approx(theirs.item(), abs=1e-6) and ours > 0.01


def test_bins_of_equal_mass_by_hand():
    """7 questions in 3 bins: the first 3, 2 and 2; gaps |1/3 - 0.2|, |1/2 - 0.45|, |1 - 0.65|.

    (3 * 2/15 + 2 * 0.05 + 2 * 0.35) / 7 = 1.2 / 7. More bins than questions: each is alone.
    """
    confidences = np.array([0.7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    correct = np.array([1.0, 0, 1, 0, 1, 0, 1])
    edges = upper_edges(confidences, 3, "mass")
    assert edges.tolist() == [0.3, 0.5, 0.7]
    found = expected_calibration_error(confidences, correct, 3, "mass")
    assert found == pytest.approx(1.2 / 7, abs=1e-15)
    alone = expected_calibration_error(confidences, correct, 9, "mass")
    assert alone == pytest.approx(np.abs(confidences - correct).mean(), abs=1e-15)


def test_equal_confidences_share_a_bin_in_any_order():
    """Four at 0.3, one right, and one right at 0.9: (4 * |0.25 - 0.3| + 0.1) / 5 = 0.06."""
    confidences, correct = np.array([0.3, 0.3, 0.3, 0.3, 0.9]), np.array([1, 0, 0, 0, 1])
    for bins in (2, 3, 5, 15):
        for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 2, 4, 0, 3]):
            found = expected_calibration_error(confidences[order], correct[order], bins, "mass")
            assert found == pytest.approx(0.06, abs=1e-15)


def test_bins_of_equal_mass_differ_by_one_at_most():
    confidences = np.random.default_rng(0).random(129)
    for bins in (1, 2, 7, 15, 128, 129):
        counts, _ = bin_means(confidences, bins, "mass", confidences)
        assert len(counts) == bins and counts.sum() == 129 and np.ptp(counts) <= 1


def test_reliability_table_by_hand():
    """Of the bins of a quarter the first is empty; intervals are Wilson's."""
    confidences = np.array([0.5, 0.3, 0.9, 1.0, 0.8])
    table = reliability_table(confidences, np.array([1.0, 0, 1, 1, 0]), bins=4)
    keys = ("low", "high", "count", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    rows = [
        (0.25, 0.5, 2, 0.4, 0.5, *wilson_interval([0, 1])),
        (0.75, 1.0, 3, 0.9, 2 / 3, *wilson_interval([0, 1, 1])),
    ]
    assert table == [pytest.approx(dict(zip(keys, row, strict=True))) for row in rows]


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_the_table_has_the_calibration_error(scheme):
    (confidences,), (correct,) = simulate(500, 0.1)
    table = reliability_table(confidences, correct, 15, scheme)
    assert all(row["low"] < row["confidence"] <= row["high"] for row in table)
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in table)
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / 500
    assert error == pytest.approx(expected_calibration_error(confidences, correct, 15, scheme))


# ------------------------------------------------------------------------------------------------
# what chance adds


def test_noise_bias_is_the_integral():
    """E|gap + sigma z| by the trapezoidal rule on 400,001 points, z from -10 to 10."""
    z, step = np.linspace(-10, 10, 400_001, retstep=True)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    for gap in (0.0, 0.01, -0.05, 0.3):
        for sigma in (0.01, 0.05, 1.0):
            expected = (np.abs(gap + sigma * z) * density).sum() * step - abs(gap)
            found = noise_bias(np.array([gap]), np.array([sigma]))
            assert found == pytest.approx([expected], rel=1e-6, abs=1e-9)


def test_noise_bias_has_its_limits():
    """No gap: sigma sqrt(2 / pi). A gap of 10 sigma, or no noise: none."""
    sigma = np.array([0.0, 0.02, 0.5])
    assert noise_bias(0.0, sigma) == pytest.approx(sigma * math.sqrt(2 / math.pi), rel=1e-14)
    assert noise_bias(10 * sigma, sigma) == pytest.approx([0, 0, 0], abs=1e-23)
    assert noise_bias(np.array([0.3]), np.array([0.0])).tolist() == [0]


def test_calibrated_error_by_hand():
    """Two bins, (0.2, 0.4) and 0.9: variances of the accuracy (0.16 + 0.24) / 2 / 2 and 0.09."""
    expected = math.sqrt(2 / math.pi) * (2 * math.sqrt(0.1) + math.sqrt(0.09)) / 3
    assert calibrated_error(np.array([0.2, 0.9, 0.4]), bins=2) == pytest.approx(expected)
    assert calibrated_error(np.ones(10)) == calibrated_error(np.zeros(10)) == 0


@pytest.mark.parametrize("scheme", ["width", "mass"])
@pytest.mark.parametrize(("count", "bound"), [(100, 0.04), (817, 0.015)])
def test_calibrated_error_is_the_mean_of_simulations(scheme, count, bound):
    """Right as often as it says, 1000 times: the deviation is about 0.2 of the mean each.

    One in twenty is above 1.4 times the mean, or 1.3 with all 15 bins filled, as those of mass are.
    """
    (confidences,), _ = simulate(count)
    rng = np.random.default_rng(1)
    errors = [
        expected_calibration_error(confidences, rng.random(count) < confidences, 15, scheme)
        for _ in range(1000)
    ]
    expected = calibrated_error(confidences, 15, scheme)
    assert expected == pytest.approx(np.mean(errors), rel=bound)
    assert 1.25 < np.quantile(errors, 0.95) / expected < 1.5


def test_debiased_error_is_the_limit_of_drawing_the_accuracies_again():
    """The loop of the authors' package: 2 * ECE - the mean ECE of normal accuracies."""
    (confidences,), (correct,) = simulate(300, 0.05)
    counts, confidence, accuracy = bin_means(confidences, 10, "width", confidences, correct)
    sigma, rng = np.sqrt(accuracy * (1 - accuracy) / counts), np.random.default_rng(0)
    drawn = rng.normal(accuracy, sigma, size=(100_000, len(counts)))
    errors = (np.abs(drawn - confidence) * counts).sum(axis=1) / 300
    plain = expected_calibration_error(confidences, correct, 10)
    found = debiased_calibration_error(confidences, correct, 10)
    assert found == pytest.approx(2 * plain - errors.mean(), abs=4 * errors.std() / 100_000**0.5)
    assert plain - found > 0.005


@pytest.mark.parametrize("gap", [0.0, 0.03, 0.08, 0.2])
def test_the_mean_of_both_errors_where_the_gap_is_known(gap):
    """Each bin has the gap and noise of a known sigma, and a second such noise when drawn again.

    So the plain error has the bias b(sigma) = E|gap + sigma z| - gap, and the debiased one
    2 b(sigma) - b(sqrt(2) sigma); each mean of 400 sets is known to 0.001. Without a gap b is
    proportional to sigma, so that 2 - sqrt(2) of the bias is left.
    """
    sets, plain, debiased = list(zip(*simulate(400, gap, sets=400), strict=True)), [], []
    for confidences, _ in sets:
        right = confidences - gap
        counts, variance = bin_means(confidences, 10, "width", right * (1 - right))
        once, twice = (noise_bias(gap, np.sqrt(k * variance / counts)) for k in (1, 2))
        plain.append(gap + np.average(once, weights=counts))
        debiased.append(gap + np.average(2 * once - twice, weights=counts))
    errors = (expected_calibration_error, debiased_calibration_error)
    for error, expected in zip(errors, (plain, debiased), strict=True):
        found = np.array([error(*rows, 10) for rows in sets])
        assert found.mean() == pytest.approx(np.mean(expected), abs=3.5 * found.std() / 20)
    if gap == 0:
        assert plain == pytest.approx([calibrated_error(row, 10) for row, _ in sets])
        assert debiased == pytest.approx((2 - math.sqrt(2)) * np.array(plain))


@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 28, 52), (0.02, 64, 80)])
def test_the_basic_interval_holds_the_true_error_and_the_percentiles_do_not(gap, least, most):
    """Chance makes an error of 0.04 to 0.05; 80 sets, 95% intervals, a half of them at gap 0."""
    basic = percentile = 0
    for confidences, correct in zip(*simulate(500, gap, sets=80), strict=True):
        rows = np.stack([confidences, correct], axis=1)
        low, high = basic_interval(rows, lambda r: expected_calibration_error(*r.T), resamples=100)
        value = expected_calibration_error(confidences, correct)
        basic += max(low, 0) <= gap <= high
        percentile += 2 * value - high <= gap <= 2 * value - low  # of the same resamples
    assert least <= basic <= most and percentile <= 4, (basic, percentile)


# ------------------------------------------------------------------------------------------------
# the metrics of an evaluation

LOGPS = [np.log([0.6, 0.3, 0.1]), np.log([0.2, 0.8]), np.log([0.25, 0.25, 0.4, 0.1])]
TRUTHS = [0, 0, 2]


def test_metrics_by_hand():
    """Confidences 0.6, 0.8, 0.4, right 1, 0, 1; Brier 0.26, 1.28, 0.495.

    Two bins: 0.4 right, gap 0.6; 0.7 with 1/2 right, gap 0.2: (0.6 + 0.4) / 3. Of equal mass the
    same two: 0.4 and 0.6, gap 0.5, and 0.8, gap 0.8: 1.8 / 3.
    """
    rows_of = np.array([0.6, 0.8, 0.4]), np.array([1.0, 0, 1])
    metrics = calibration_metrics(LOGPS, TRUTHS, bins=2)
    values = values_of(metrics)
    assert values == pytest.approx({
        "accuracy": 2 / 3,
        "confidence": 0.6,
        "overconfidence": 0.6 - 2 / 3,
        "ece": 1 / 3,
        "ece_calibrated": calibrated_error(rows_of[0], 2),
        "ece_debiased": debiased_calibration_error(*rows_of, 2),
        "ece_mass": 0.6,
        "brier": (0.26 + 1.28 + 0.495) / 3,
        "nll": -math.log(0.6 * 0.2 * 0.4) / 3,
    })  # fmt: skip
    mass = values_of(calibration_metrics(LOGPS, TRUTHS, bins=2, scheme="mass"))
    assert mass["ece"] == mass["ece_mass"] == values["ece_mass"]
    assert mass["ece_calibrated"] == calibrated_error(rows_of[0], 2, "mass")
    assert mass["ece_debiased"] == debiased_calibration_error(*rows_of, 2, "mass")
    assert all(mass[name] != values[name] for name in ("ece_calibrated", "ece_debiased"))
    low, high = wilson_interval([1, 0, 1])
    assert interval_row(metrics["accuracy"]) == {"value": 2 / 3, "low": low, "high": high}


def test_the_number_of_bins_is_that_of_both_errors():
    """0.9 right and 0.6 wrong: one bin of mass has |1/2 - 3/4| = 1/4, two have 0.1 and 0.6."""
    for bins, expected in ((1, 0.25), (2, 0.35)):
        metrics = confidence_metrics(np.array([0.9, 0.6]), np.array([1.0, 0.0]), bins)
        found = metrics["ece_mass"]
        assert found.compute(found.rows) == pytest.approx(expected)


def test_an_error_is_no_less_than_0_and_the_debiased_one_may_be():
    """0.5 right in one of two: no error, of which draws have some. Mirrored at 0 they lie below."""
    metrics = confidence_metrics(np.full(20, 0.5), np.tile([0.0, 1.0], 10), 1)
    for name in ("ece", "ece_mass"):
        assert interval_row(metrics[name])["low"] == 0
    assert interval_row(metrics["ece_debiased"])["low"] < 0


def test_metrics_do_not_depend_on_what_the_options_hold_together():
    """Nor on the order of the options."""
    shifted = [logps[::-1] - 5 for logps in LOGPS]
    truths = [len(logps) - 1 - truth for logps, truth in zip(LOGPS, TRUTHS, strict=True)]
    ours, theirs = calibration_metrics(LOGPS, TRUTHS), calibration_metrics(shifted, truths)
    assert values_of(theirs) == pytest.approx(values_of(ours), abs=1e-12)


def test_a_policy_that_is_right_as_often_as_it_says():
    """7000 questions of four options, drawn from the probabilities themselves.

    The expected Brier score is 1 - sum p^2, the expected likelihood the entropy.
    """
    logits = np.random.default_rng(5).normal(scale=1.5, size=(7000, 4))
    truths = (logits + np.random.default_rng(6).gumbel(size=logits.shape)).argmax(axis=1)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = calibration_metrics(logits, truths.tolist())
    low, high = bootstrap_interval(metrics["overconfidence"], resamples=200)
    assert low < 0 < high
    error = np.std(metrics["brier"]) / 7000**0.5
    expected = 1 - (probs**2).sum(axis=1).mean()
    assert weighted_mean(metrics["brier"]) == pytest.approx(expected, abs=3 * error)
    error = np.std(metrics["nll"]) / 7000**0.5
    expected = -(probs * np.log(probs)).sum(axis=1).mean()
    assert weighted_mean(metrics["nll"]) == pytest.approx(expected, abs=3 * error)
    values = values_of(metrics)
    assert 0.4 < values["ece"] / values["ece_calibrated"] < 1.6  # a deviation is about 0.2


@pytest.mark.parametrize(
    ("logps", "truths", "message"),
    [
        ([], [], "expected questions, got 0 and 0 right answers"),
        ([[0.0, 1.0]], [0, 1], "expected questions, got 1 and 2 right answers"),
        ([[0.0, 1.0], [0.0]], [1, 1], "question 1: expected one of 1 options, got 1"),
        ([[0.0, 1.0]], [-1], "question 0: expected one of 2 options, got -1"),
        ([[]], [0], "question 0: expected one of 0 options, got 0"),
        ([[0.0, math.nan]], [0], "question 0: expected finite log-probabilities"),
        ([[0.0, -math.inf]], [0], "question 0: expected finite log-probabilities"),
    ],
)
def test_questions_that_are_none_are_named(logps, truths, message):
    with pytest.raises(ValueError, match=message):
        calibration_metrics(logps, truths)


def test_bins_that_are_none_are_refused():
    rows = np.array([0.5]), np.array([1.0])
    with pytest.raises(ValueError, match="expected 1 or more bins, got 0"):
        expected_calibration_error(*rows, bins=0)
    with pytest.raises(ValueError, match="expected bins of the same width or mass, got 'size'"):
        expected_calibration_error(*rows, scheme="size")
