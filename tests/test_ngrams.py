"""eval/ngrams.py against arithmetic by hand, sets and Counters, exact fractions, nltk, sacrebleu.

python -m pytest tests/test_ngrams.py
"""

import random
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from sacrebleu.metrics import BLEU

from eval.ngrams import (
    count_ngrams,
    distinct_share,
    expectation_adjusted,
    pooled_counts,
    self_bleu,
    split_words,
    unique_share,
)

METHOD1 = SmoothingFunction().method1


def random_texts(seed: int, shortest: int = 0) -> list[list[str]]:
    """2 to 8 texts of up to 30 words, of vocabularies of 2 to 50: with and without much overlap."""
    rng = random.Random(seed)
    longest, kinds = rng.choice([4, 9, 30]), rng.choice([2, 5, 50])
    lengths = [rng.randint(shortest, max(shortest, longest)) for _ in range(rng.randint(2, 8))]
    return [[str(rng.randrange(kinds)) for _ in range(length)] for length in lengths]


def subsets(texts: list) -> list[list]:
    """All texts, then all but each one: what a measure's N + 1 values are of."""
    return [texts, *(texts[:i] + texts[i + 1 :] for i in range(len(texts)))]


def test_words_by_hand() -> None:
    """Lower case; an apostrophe inside a word is part of it; a mark is a word of its own."""
    assert split_words("Don't stop.\nIt\u2019s 3.5%!") == [
        "don't", "stop", ".", "it\u2019s", "3", ".", "5", "%", "!",
    ]  # fmt: skip
    assert split_words("'quoted' a_b, é") == ["'", "quoted", "'", "a_b", ",", "é"]
    assert split_words(" \n") == []


# ------------------------------------------------------------------------------------------------
# distinct-n and EAD


def test_distinct_by_hand() -> None:
    """a b a | b a c: of 6 words 3 differ; the pairs are ab ba | ba ac, of which 3 differ.

    Without the first text 3 of 3 words and 2 of 2 pairs; without the second 2 of 3 and 2 of 2.
    """
    ones, twos = count_ngrams([["a", "b", "a"], ["b", "a", "c"]], 2)
    assert distinct_share(*pooled_counts(ones)) == pytest.approx([3 / 6, 3 / 3, 2 / 3])
    assert distinct_share(*pooled_counts(twos)) == pytest.approx([3 / 4, 2 / 2, 2 / 2])


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_sets(seed: int) -> None:
    texts = random_texts(seed)
    for n, ngrams in enumerate(count_ngrams(texts, 5), start=1):
        distinct, total = pooled_counts(ngrams)
        for i, some in enumerate(subsets(texts)):
            grams = [tuple(text[k : k + n]) for text in some for k in range(len(text) - n + 1)]
            assert (distinct[i], total[i]) == (len(set(grams)), len(grams))


def test_no_words_have_no_diversity() -> None:
    for ngrams in count_ngrams([[], []], 5):
        distinct, total = pooled_counts(ngrams)
        assert distinct_share(distinct, total).tolist() == [0, 0, 0]
        assert expectation_adjusted(distinct, total, 9).tolist() == [0, 0, 0]


def test_ead_by_hand() -> None:
    """V = 4, C = 2, N = 2: two draws show 4 (1 - 9/16) = 7/4, so 8/7. V = 2, C = 3, N = 1: 4/7."""
    assert expectation_adjusted(np.array(2), np.array(2), 4) == pytest.approx(8 / 7, abs=1e-15)
    assert expectation_adjusted(np.array(1), np.array(3), 2) == pytest.approx(4 / 7, abs=1e-15)


def test_ead_against_exact_fractions() -> None:
    V = 50257
    for distinct, total in [(1, 1), (90, 100), (4000, 20_000), (50_000, 200_000)]:
        exact = distinct / (V * (1 - Fraction(V - 1, V) ** total))
        found = expectation_adjusted(np.array(distinct), np.array(total), V)
        assert found == pytest.approx(float(exact), rel=1e-12)


def test_ead_of_random_words_is_one() -> None:
    """Over all 3^4 texts of 4 words from 3: the mean of distinct words over their expectation."""
    texts = [list(text) for text in product("abc", repeat=4)]
    distinct = np.array([len(set(text)) for text in texts])
    values = expectation_adjusted(distinct, np.full(81, 4), 3)
    assert values.mean() == pytest.approx(1, abs=1e-14)


def test_ead_limits() -> None:
    distinct, total = np.array([0, 7, 7]), np.array([0, 10, 10])
    large = expectation_adjusted(distinct, total, 10**12)
    assert large == pytest.approx([0, 0.7, 0.7], rel=1e-10)  # V -> infinity: distinct-n
    many = expectation_adjusted(np.array([7]), np.array([10**6]), 20)
    assert many == pytest.approx([7 / 20], rel=1e-12)  # C -> infinity: N / V


# ------------------------------------------------------------------------------------------------
# self-BLEU


def bleu_of(texts: list[list[str]]) -> np.ndarray:
    return self_bleu(texts, count_ngrams(texts, 5))


def test_self_bleu_by_hand() -> None:
    """a b c d and a b c e: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0.1 of 1, equal lengths."""
    value = bleu_of([list("abcd"), list("abce")])[0]
    assert value == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** (1 / 4), abs=1e-15)


def test_self_bleu_limits() -> None:
    assert bleu_of([list("abcde")] * 3) == pytest.approx([1, 1, 1, 1], abs=1e-15)
    assert bleu_of([list("abcd"), list("efgh"), list("ijkl")]).tolist() == [0, 0, 0, 0]
    assert bleu_of([[], [], list("abcd")]).tolist() == [0, 0, 0, 0]
    assert np.isnan(bleu_of([list("abcd")])).all()


@pytest.mark.parametrize("seed", range(30))
def test_self_bleu_is_nltk_s(seed: int) -> None:
    """Also without each text: the hypothesis is never among its references."""
    texts = random_texts(seed)
    for value, some in zip(bleu_of(texts), subsets(texts), strict=True):
        if len(some) < 2:
            assert np.isnan(value)
            continue
        scores = [
            sentence_bleu(some[:i] + some[i + 1 :], text, smoothing_function=METHOD1)
            for i, text in enumerate(some)
        ]
        assert value == pytest.approx(np.mean(scores), abs=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_self_bleu_is_sacrebleu_s(seed: int) -> None:
    """Its floor of 0.1 is method1 where a text has all four orders."""
    texts = random_texts(seed, shortest=4)
    metric = BLEU(smooth_method="floor", smooth_value=0.1, tokenize="none", force=True)
    joined = [" ".join(text) for text in texts]
    scores = [
        metric.corpus_score([text], [[other] for other in joined[:i] + joined[i + 1 :]]).score
        for i, text in enumerate(joined)
        if set(texts[i]) & {word for text in texts[:i] + texts[i + 1 :] for word in text}
    ]  # without any match it floors the words too: ours and nltk's is 0
    assert bleu_of(texts)[0] == pytest.approx(sum(scores) / 100 / len(texts), abs=1e-12)


# ------------------------------------------------------------------------------------------------
# repeats


def test_unique_share() -> None:
    """a, a, b, of which one a has a space: 2 of 3; without an a 2 of 2, without b 1 of 2."""
    assert unique_share(["a", " a\n", "b"]) == pytest.approx([2 / 3, 1, 1, 1 / 2])
    assert np.isnan(unique_share(["a"])[1])
    texts = ["".join(text) for text in random_texts(3)]
    expected = [len(Counter(some)) / len(some) for some in subsets(texts)]
    assert unique_share(texts) == pytest.approx(expected)
