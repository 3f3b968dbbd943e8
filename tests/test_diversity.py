"""eval/diversity.py: numbers worked by hand through the command, intervals against simulation.

python -m pytest tests/test_diversity.py
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.rows import read_rows
from eval import diversity
from eval.diversity import influences, measure, metric_values
from eval.embeddings import cosine_distances
from eval.ngrams import count_ngrams, distinct_share, pooled_counts, self_bleu

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "data" / "tiny")
TEXTS = [["a b", "a c"], ["a b", "a b"], ["d", "a d"]]
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def write_samples(
    path: Path, texts: list[list[str]] = TEXTS, sampling: dict | None = None, **lists: list
) -> Path:
    """A samples file; lists: what else its rows have, a list for each row."""
    rows = [{"index": i, "prompt": f"question {i}", "completions": t} for i, t in enumerate(texts)]
    for key, values in lists.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if sampling is not None:
        about = {"sampling": sampling, "reference_weights": "w"}
        path.with_name(path.name + ".settings.json").write_text(json.dumps(about))
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """The command in this process; out: (metrics -> value, summary, items)."""

    def run(*words: object, out: str = "out") -> tuple[dict, dict, list[dict]]:
        words = [*map(str, words), "--out", str(tmp_path / out)]
        monkeypatch.setattr(sys, "argv", ["diversity", *words])
        diversity.main()
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        items = [row for _, row in read_rows(tmp_path / out / "items.jsonl")]
        values = {name: row["value"] for name, row in summary["metrics"].items()}
        return values, summary, items

    return run


# ------------------------------------------------------------------------------------------------
# by hand


def test_metrics_by_hand(run, tmp_path: Path) -> None:
    """Completions a b, a c | a b, a b | d, a d; the vectors of the first are orthogonal.

    Words among the completions of a prompt: 3 of 4, 2 of 4, 2 of 3; pairs: 2 of 2, 1 of 2, 1 of 1.
    Across, first completions a b, a b, d: words 3 of 5, pairs 1 of 2, texts 2 of 3; second ones
    a c, a b, a d: words 4 of 6, pairs and texts 3 of 3.
    """
    vectors = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [-1, 0]], dtype=np.float32)
    np.save(tmp_path / "v.npy", vectors)
    samples = write_samples(tmp_path / "s.jsonl")
    values, summary, items = run("--samples", samples, "--embeddings", tmp_path / "v.npy")
    assert (summary["task"], summary["problems"], summary["settings"]["n"]) == ("diversity", 3, 2)
    expected = {
        "input/distinct_1": (3 / 4 + 2 / 4 + 2 / 3) / 3,
        "input/distinct_2": (1 + 1 / 2 + 1) / 3,
        "input/distinct_3": 0,
        "input/distinct": (3 / 4 + 1 + 2 / 4 + 1 / 2 + 2 / 3 + 1) / 15,
        "input/unique": (1 + 1 / 2 + 1) / 3,
        "input/cosine_distance": (1 + 0 + 2) / 3,
        "input/cosine_distance_all_pairs": (1 + 0 + 2) / 6,
        "across/distinct_1": (3 / 5 + 4 / 6) / 2,
        "across/distinct_2": (1 / 2 + 3 / 3) / 2,
        "across/unique": (2 / 3 + 3 / 3) / 2,
        "across/cosine_distance": (0 + (1 + 1 + 2) / 3) / 2,  # east thrice; north, east, west
        "words": 11 / 6,
        "words_sd": np.std([2, 2, 2, 2, 1, 2]),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert items[2]["lengths"] == {"words": [1, 2]}
    assert items[1]["input"]["distinct_1"] == 1 / 2
    assert not any("entropy" in name or name == "aberrations" for name in values)


def test_what_the_rows_say_by_hand(run, tmp_path: Path) -> None:
    """Sums -2, -4 | -6, -6 | -3, -9 over 3 tokens | 8 | 4: 5 nats a completion, 2 a token.

    The mean of the third prompt has the standard error sqrt(18) / sqrt(2) = 3. Of 11 words, with
    that of the reference half as much, the known ones stand twice in the file: all but c.
    """
    logps, tokens = [[-2, -4], [-6, -6], [-3, -9]], [[1, 2], [4, 4], [1, 3]]
    lists = {"logps": logps, "tokens": tokens, "finish_reasons": [["stop", "length"]] * 3}
    lists["reference_logps"] = [[-1, -2], [-3, -3], [-1.5, -4.5]]
    words = tmp_path / "words.txt"
    words.write_text("a b d a b d c")
    samples = write_samples(tmp_path / "s.jsonl", sampling=PLAIN, **lists)
    values, summary, items = run("--samples", samples, "--vocabulary", words)
    expected = {
        "entropy/sequence": 5,
        "entropy/token": 30 / 15,
        "reference_cross_entropy/sequence": 2.5,
        "reference_cross_entropy/token": 1,
        "aberrations": 1 / 11,
        "truncated": 1 / 2,
        "tokens": 15 / 6,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert items[2]["standard_errors"]["entropy/sequence"] == pytest.approx(3)
    assert summary["settings"]["sampling"] == PLAIN
    assert summary["settings"]["reference_weights"] == "w"


@pytest.mark.parametrize("sampling", [None, PLAIN | {"temperature": 1.5}, PLAIN | {"min_p": 0.1}])
def test_of_other_draws_it_is_a_cross_entropy(run, tmp_path: Path, sampling) -> None:
    lists = {"logps": [[-1, -2]] * 3, "tokens": [[1, 2]] * 3}
    samples = write_samples(tmp_path / "s.jsonl", sampling=sampling, **lists)
    values, _, _ = run("--samples", samples)
    assert values["cross_entropy/token"] == 1 and "entropy/token" not in values


def test_n_and_limit(run, tmp_path: Path) -> None:
    """The fewest completions that a prompt has, or fewer; a key that one row lacks is not used."""
    texts = [["a", "b", "c"], ["a", "b"], ["a", "a", "c"], ["d", "d"]]
    samples = write_samples(tmp_path / "s.jsonl", texts, tokens=[[1] * len(t) for t in texts])
    values, summary, _ = run("--samples", samples)
    assert summary["settings"]["n"] == 2 and values["tokens"] == 1
    assert values["input/unique"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 4)
    values, summary, _ = run("--samples", samples, "--n", 1, "--limit", 3, out="one")
    assert summary["problems"] == 3 and not any(name.startswith("input/") for name in values)
    assert values["across/unique"] == pytest.approx(1 / 3)
    rows = samples.read_text().splitlines()
    samples.write_text("\n".join([rows[0].replace('"tokens"', '"counts"'), rows[1]]))
    values, _, _ = run("--samples", samples, out="two")
    assert "tokens" not in values and not any(name.startswith("across/") for name in values)


# ------------------------------------------------------------------------------------------------
# models


def test_policy_and_reference(run, tmp_path: Path, monkeypatch) -> None:
    """Drawn from the embedded model; as its own reference, it finds what the rows say."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Ben has 2 books.\nTom has 5 hats.\nAnn has 3 eggs.\n")
    samples = tmp_path / "s.jsonl"
    flags = ["--prompts", prompts, "--n", 3, "--max_new_tokens", 8, "--out", samples]
    command = [sys.executable, "sample.py", *map(str, flags), "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    flags = ["--samples", samples, "--model", TINY, "--reference", TINY, "--embedding_model", TINY]
    values, summary, items = run(*flags, "--device", "cpu")
    assert summary["settings"]["policy_agreement"] == 1
    for kind in ("sequence", "token"):
        ours = values[f"entropy/{kind}"]
        assert values[f"reference_cross_entropy/{kind}"] == pytest.approx(ours, rel=1e-4)
    assert values["next_token_entropy/token"] > 0
    weights = summary["settings"]["reference_weights"]
    assert weights == summary["settings"]["weights"] == summary["settings"]["encoder"]["weights"]
    vectors = tmp_path / "out" / "embeddings.npy"
    again, _, _ = run("--samples", samples, "--embeddings", vectors, out="again")
    for name in ("input/cosine_distance", "across/cosine_distance"):
        assert again[name] == values[name] > 0
    monkeypatch.setattr("eval.entropy.completion_stats", lambda *texts: iter(()))  # all are there
    assert run(*flags, "--device", "cpu")[2] == items


# ------------------------------------------------------------------------------------------------
# intervals over prompts


def test_influences_by_hand() -> None:
    """The mean of 1, 2, 6 is 3, without each 4, 3.5, 1.5: what each counts for is itself."""
    assert influences(np.array([3, 4, 3.5, 1.5])) == pytest.approx([1, 2, 6])


def test_influences_have_the_number_as_their_mean() -> None:
    texts = ["a b c d e", "a b c d f", "a b", "x y z a b c d", ""]
    values = measure(texts, [text.split() for text in texts], np.eye(5) + 0.1, 50)
    for value in values.values():
        assert influences(value).mean() == pytest.approx(value[0], abs=1e-12)


def test_influences_give_the_standard_error() -> None:
    """400 sets of 30 prompts: the spread of each number over sets, against what a set tells of it.

    The root mean square of the latter may exceed the spread by what the jackknife errs, not fall
    below it by more than the noise of 400 sets, 1 / sqrt(800) = 3.5%.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {"distinct": [], "self_bleu": [], "cosine": []}
    for _ in range(400):
        lengths = rng.integers(4, 20, size=30)
        texts = [[str(word) for word in rng.geometric(0.15, size=length)] for length in lengths]
        tables = count_ngrams(texts, 4)
        found["distinct"].append(distinct_share(*pooled_counts(tables[1])))
        found["self_bleu"].append(self_bleu(texts, tables))
        found["cosine"].append(cosine_distances(rng.normal(size=(30, 3)) + 0.7)[1])
    for name, values in found.items():
        spread = np.std([value[0] for value in values], ddof=1)
        told = [np.var(influences(value), ddof=1) / 30 for value in values]
        assert 0.9 < np.sqrt(np.mean(told)) / spread < 1.25, name


def test_bounds_hold() -> None:
    """All but one of 4 prompts have distinct words: the interval ends at 1.

    So does that of the share of aberrations, 3 + 3 + 3 + 1 of 12 words; nats have no upper bound.
    """
    items = [
        {
            "means": {},
            "ratios": {"aberrations": [count, 3], "entropy/token": [count, 3]},
            "lengths": {},
            "input": {},
            "across": {"distinct_1": value},
        }
        for value, count in ((1.1, 3), (1.1, 3), (1.1, 3), (0.5, 1))
    ]
    metrics = metric_values(items)
    metric = metrics["across/distinct_1"]
    assert (metric.least, metric.most) == (0, 1)
    assert metric.compute(metric.rows) == pytest.approx(0.95)
    metric = metrics["aberrations"]
    assert (metric.least, metric.most) == (0, 1)
    assert metric.compute(metric.rows) == pytest.approx(10 / 12)
    assert metrics["entropy/token"].most == np.inf


# ------------------------------------------------------------------------------------------------
# baselines and mistakes


def test_a_baseline_is_paired(run, tmp_path: Path) -> None:
    """Each prompt's texts have two words more than the baseline's: the difference has no width."""
    first = write_samples(tmp_path / "a.jsonl")
    second = [[f"x y {text}" for text in row] for row in TEXTS]
    second = write_samples(tmp_path / "b.jsonl", second)
    base, _, _ = run("--samples", first, out="a")
    values, summary, _ = run("--samples", second, "--baseline", tmp_path / "a", out="b")
    assert summary["metrics"]["words - baseline"] == {"value": 2, "low": 2, "high": 2}
    for name in ("input/distinct_1", "across/distinct_1", "across/ead", "words_sd"):
        assert values[f"{name} - baseline"] == pytest.approx(values[name] - base[name], abs=1e-12)


def test_a_baseline_that_is_not_like_is_refused(run, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl")
    run("--samples", samples, out="a")
    common = ("--samples", samples, "--baseline", tmp_path / "a")
    with pytest.raises(ValueError, match="was measured with n 2, here 1"):
        run(*common, "--n", 1, out="b")
    with pytest.raises(ValueError, match="was measured with vocabulary_size 50257, here 9"):
        run(*common, "--vocabulary_size", 9, out="b")
    other = write_samples(tmp_path / "o.jsonl")
    other.write_text(other.read_text().replace("question 1", "question 7"))
    with pytest.raises(ValueError, match="expected results of diversity on the same problems"):
        run("--samples", other, "--baseline", tmp_path / "a", out="b")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    bare = [{key: row[key] for key in row.keys() - {"prompt"}} for row in rows]
    samples.write_text("".join(json.dumps(row) + "\n" for row in bare))
    with pytest.raises(ValueError, match=r"s\.jsonl has no prompts, and"):
        run("--samples", samples, "--baseline", tmp_path / "a", out="b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"index": -1}, ":1: index: expected a number from 0, got -1"),
        ({"completions": []}, ":1: expected `completions`, a list of texts"),
        ({"completions": ["a", 3]}, r":1: completions\[1\]: expected a text, got a number"),
        ({"tokens": [1]}, r":1: tokens: expected one for each completion, got \[1\]"),
        ({"logps": [-1, "a"]}, ":1: logps: expected one for each completion"),
        ({"finish_reasons": [1, 2]}, ":1: finish_reasons: expected one for each completion"),
        ({"finish_reasons": ["stop", None]}, ":1: finish_reasons: expected one for each compl"),
        ({"index": 1}, "index 1 stands in several rows"),
    ],
)
def test_bad_rows_are_named(run, tmp_path: Path, row: dict, message: str) -> None:
    rows = [json.loads(line) for line in write_samples(tmp_path / "s.jsonl").open()]
    rows[0] |= row
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        run("--samples", tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--n", 3), "s.jsonl:1: has 2 completions, --n 3"),
        (("--n", 0), "--n expects 1 or more, got 0"),
        (("--n", 1, "--limit", 2), "expected 2 completions of a prompt, or 3 prompts"),
        (("--vocabulary_size", 1), "--vocabulary_size expects 2 or more, got 1"),
        (("--embeddings", "a", "--embedding_model", "b"), "exclude each other"),
        (("--adapter", "a"), "--adapter needs --model"),
        (("--system", "Be brief."), "--system has no meaning without --model or --reference"),
        (("--model", "nowhere"), "--model expects a folder, got nowhere"),
        (("--vocabulary", "none.txt"), "--vocabulary expects files, got none.txt"),
        (("--dtype", "half"), "--dtype expects one of"),
        (("--samples", "none.jsonl"), "--samples expects a samples file, got none.jsonl"),
    ],
)
def test_wrong_flags_are_named(run, tmp_path: Path, flags: tuple, message: str) -> None:
    samples = write_samples(tmp_path / "s.jsonl")
    words = flags if "--samples" in flags else ("--samples", samples, *flags)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(*words)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eval.diversity", "--samples", str(tmp_path / "none.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "sample.py --out makes one" in done.stderr
