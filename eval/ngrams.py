"""Diversity of a set of texts in its words: distinct-n, EAD, self-BLEU, repeats.

A text is a list of words here, see `split_words`. A measure of N texts is an array (N + 1,): its
value for all of them, then for all but the first, all but the second, ... These say how much each
text counts, from which the interval of a number that is no mean over texts is made.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DISTINCT_ORDERS = 5  # n = 1 to 5
BLEU_ORDERS = 4
SMOOTHING = 0.1  # matches of an order that has none: NLTK's method1

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")

Texts = Sequence[Sequence[str]]


def split_words(text: str) -> list[str]:
    """Lower-case words, with the apostrophes inside them, and punctuation marks, one each.

    A script that is written without spaces gives a word for each run of letters.
    """
    return WORD.findall(text.lower())


# ------------------------------------------------------------------------------------------------
# n-grams of many texts


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of N texts: an entry for each text and each n-gram that it has."""

    texts: int  # N
    gram: np.ndarray  # (M,) in rising order
    text: np.ndarray  # (M,)
    count: np.ndarray  # (M,) how often the text has it


def count_ngrams(texts: Texts, orders: int) -> list[Ngrams]:
    """Those of n = 1 to `orders`; none goes from one text into the next."""
    N, ids = len(texts), {}
    tokens = [ids.setdefault(word, len(ids)) for text in texts for word in text]
    grams = tokens = np.array(tokens, dtype=np.int64)
    text_of = np.repeat(np.arange(N), [len(text) for text in texts])
    tables = []
    for n in range(1, orders + 1):
        if n > 1:  # an n-gram is the (n-1)-gram at its place and the token behind it
            _, grams = np.unique(grams[:-1] * len(ids) + tokens[n - 1 :], return_inverse=True)
        inside = text_of[: len(grams)] == text_of[n - 1 :]
        keys, count = np.unique(
            grams[inside] * N + text_of[: len(grams)][inside], return_counts=True
        )
        tables.append(Ngrams(N, keys // N, keys % N, count))
    return tables


def pooled_counts(ngrams: Ngrams) -> tuple[np.ndarray, np.ndarray]:
    """Distinct n-grams and n-grams of the texts taken together, (N + 1,) each."""
    N = ngrams.texts
    holders = np.bincount(ngrams.gram)  # in how many texts each stands
    distinct, total = np.count_nonzero(holders), ngrams.count.sum()
    alone = np.bincount(ngrams.text[holders[ngrams.gram] == 1], minlength=N)
    own = np.bincount(ngrams.text, ngrams.count, minlength=N)
    return np.append(distinct, distinct - alone), np.append(total, total - own)


def distinct_share(distinct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Distinct-n (Li et al. 2016): distinct n-grams / n-grams; 0 where there are none.

    It falls as texts grow longer: compare it at equal lengths only.
    """
    return distinct / np.maximum(total, 1)


def expectation_adjusted(
    distinct: np.ndarray, total: np.ndarray, vocabulary_size: int
) -> np.ndarray:
    """EAD (Liu et al. 2022): distinct n-grams over their expectation for random ones.

    EAD = N / (V (1 - ((V - 1) / V)^C)) for N distinct of C n-grams: C draws from V equally likely
    ones show so many. V = 4, C = 2, both distinct: 2 / (4 (1 - 9/16)) = 8/7. V is to be the same
    for all that is compared. V -> infinity gives distinct-n, C -> infinity N / V, and C = 0 counts
    as 0. Of n > 1 there are more n-grams than V: it can exceed 1 where C is near V or above.
    """
    V = vocabulary_size
    expected = -V * np.expm1(total * np.log1p(-1 / V))
    return np.where(total > 0, distinct / np.where(total > 0, expected, 1), 0.0)


# ------------------------------------------------------------------------------------------------
# self-BLEU


def self_bleu(texts: Texts, tables: Sequence[Ngrams]) -> np.ndarray:
    """(N + 1,) mean BLEU of each text against all the others (Zhu et al. 2018, Texygen).

    tables: of `count_ngrams`, the first four are used. Sentence BLEU with equal weights, the
    closest reference length (of two the shorter) and SMOOTHING; 0 where no word matches. NaN where
    fewer than two texts are left. 1 is no diversity. It rises with the number of texts. Memory: a
    few arrays (N, N).
    """
    N, lengths = len(texts), np.array([len(text) for text in texts])
    if N < 2:
        return np.full(N + 1, np.nan)
    log_bleu = brevity(lengths)  # (N, N + 1): the texts against all others, and all but each one
    unmatched = np.zeros((N, N + 1), dtype=bool)
    for n, ngrams in enumerate(tables[:BLEU_ORDERS], start=1):
        matches = clipped_matches(ngrams)
        unmatched |= (matches == 0) & (n == 1)
        own = np.maximum(lengths - n + 1, 1)[:, None]  # n-grams of each text
        log_bleu += np.log(np.where(matches == 0, SMOOTHING, matches) / own) / BLEU_ORDERS
    bleu = np.where(unmatched, 0.0, np.exp(log_bleu))
    rest = bleu[:, 1:].sum(axis=0) - np.diagonal(bleu[:, 1:])  # a text that is left out has none
    return np.append(bleu[:, 0].mean(), rest / (N - 1) if N > 2 else np.full(N, np.nan))


def clipped_matches(ngrams: Ngrams) -> np.ndarray:
    """(N, N + 1) n-grams of each text that the others have, each as often as in one of them.

    Column 0: in all others; column 1 + r: in all others but text r. Only the three texts that have
    an n-gram most often are looked at: of the others' counts the largest, and the one behind it.
    """
    N, M = ngrams.texts, len(ngrams.gram)
    order = np.lexsort((-ngrams.count, ngrams.gram))
    gram = ngrams.gram[order]
    starts = np.searchsorted(gram, gram)  # where the entries of each n-gram begin
    rank = np.arange(M) - starts
    top = rank < 3
    most = np.zeros((gram[-1] + 1 if M else 0, 3), dtype=np.int64)
    holder = np.full(most.shape, -1)
    most[gram[top], rank[top]] = ngrams.count[order][top]
    holder[gram[top], rank[top]] = ngrams.text[order][top]

    own = holder[ngrams.gram] == ngrams.text[:, None]  # (M, 3)
    first = np.where(own[:, 0], 1, 0)
    second = np.where(own[:, 0] | own[:, 1], 2, 1)
    found = np.minimum(ngrams.count, most[ngrams.gram, first])
    fewer = found - np.minimum(ngrams.count, most[ngrams.gram, second])
    rival = holder[ngrams.gram, first]
    matches = np.bincount(ngrams.text, found, minlength=N)
    pairs = (ngrams.text * N + rival)[rival >= 0]
    lost = np.bincount(pairs, fewer[rival >= 0], minlength=N * N).reshape(N, N)
    return np.hstack([matches[:, None], matches[:, None] - lost])


def brevity(lengths: np.ndarray) -> np.ndarray:
    """(N, N + 1) log brevity penalty of each text, against the columns of `clipped_matches`."""
    N, own = len(lengths), lengths[:, None]
    far = 2 * np.abs(lengths - own) + (lengths > own)  # of two that are as close, the shorter
    np.fill_diagonal(far, np.iinfo(far.dtype).max)
    nearest = np.argsort(far, axis=1, kind="stable")[:, :2]
    closest = np.repeat(lengths[nearest[:, :1]], N + 1, axis=1)
    closest[np.arange(N), 1 + nearest[:, 0]] = lengths[nearest[:, 1]]
    return np.minimum(0.0, 1 - closest / np.maximum(own, 1))


# ------------------------------------------------------------------------------------------------
# repeats


def unique_share(texts: Sequence[str]) -> np.ndarray:
    """(N + 1,) distinct texts / texts, white space around them apart. NaN for no text."""
    N, times = len(texts), Counter(text.strip() for text in texts)
    alone = np.array([times[text.strip()] == 1 for text in texts])
    rest = (len(times) - alone) / (N - 1) if N > 1 else np.full(N, np.nan)
    return np.append(len(times) / N, rest)
