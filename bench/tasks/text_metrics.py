"""Metrics of generated texts, without torch: diversity, repetition, and an n-gram model of bytes.

Diversity and repetition use words of sacrebleu's 13a tokenisation, the same for every strategy.

The n-gram model is independent of every strategy and tokenizer, and knows all bytes. It uses interpolated
Kneser-Ney smoothing (Kneser & Ney 1995, in the form of Chen & Goodman 1999, sec. 4.1.6) with one discount per
order, and a uniform distribution below the lowest order. A zero byte marks the beginning and end of a text.
An n-gram is stored as one 64-bit integer, so the highest order is 8.
Shapes: N texts, L bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Words = list[str]


def words(texts: Sequence[str]) -> list[Words]:
    """Split texts into words and punctuation."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # optional: only where texts are scored

    tokenise = Tokenizer13a()
    return [tokenise(text).split() for text in texts]


def distinct(texts: Sequence[Words], n: int) -> float:
    """Return distinct-n of a set (Li et al. 2016, arXiv:1510.03055, sec. 5.2): distinct n-grams / n-grams.

    It decreases with the number of words, so compare sets of one size. It is 0 if there are no n-grams.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / max(1, len(grams))


def repetition(texts: Sequence[Words], n: int) -> Floats:
    """Return repeated n-grams / n-grams of each text: seq-rep-n (Welleck et al. 2020, arXiv:1908.04319)."""
    return np.array([1 - distinct([text], n) if len(text) >= n else 0.0 for text in texts])


def self_bleu(texts: Sequence[str]) -> Floats:
    """Return self-BLEU (N,) from 0 to 1: each text against all others (Zhu et al. 2018, arXiv:1802.01886).

    Sacrebleu's sentence BLEU with its defaults, limited to the orders that a text is long enough for.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True)
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    scores = [bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)]
    return np.array(scores) / 100


def ngrams(text: Words, n: int) -> list[tuple[str, ...]]:
    """Return all n-grams of a text, in order."""
    return list(zip(*(text[i:] for i in range(n)), strict=False))


N_BYTES = 256
END = b"\0"
UNESTIMATED_DISCOUNT = 0.5  # if no n-gram occurs exactly once
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Level:
    """The G n-grams of one order and their C contexts, with keys in ascending order."""

    grams: Keys  # (G,)
    counts: NDArray[np.int64]  # (G,) occurrences; below the highest order, distinct bytes before it
    contexts: Keys  # (C,)
    totals: NDArray[np.int64]  # (C,) sum of the counts that follow
    followers: NDArray[np.int64]  # (C,) distinct bytes that follow
    discount: float


@dataclass(frozen=True)
class ByteNGrams:
    """An n-gram model of bytes; levels from the lowest order to the highest."""

    levels: list[Level]

    def nll(self, before: str, text: str, *, is_closed: bool) -> NDArray[np.float64]:
        """Return the negative log-likelihood (L,) of each byte, and of the end if `is_closed`."""
        order = len(self.levels)
        seen = END * order + before.encode()
        scored = text.encode() + END * is_closed
        symbols = np.frombuffer(seen[len(seen) - order + 1 :] + scored, np.uint8)
        shares = np.full(len(scored), 1 / N_BYTES)
        for n, level in enumerate(self.levels, start=1):
            shares = _interpolate(level, keys(symbols, n)[order - n :], shares)
        found: NDArray[np.float64] = -np.log(shares)
        return found


def fit_byte_ngrams(texts: Iterable[str], order: int) -> ByteNGrams:
    """Fit an n-gram model of an order from 1 to 8 to texts."""
    stream = END + b"".join(text.encode() + END for text in texts)
    grams, counts = np.unique(keys(np.frombuffer(stream, np.uint8), order), return_counts=True)
    levels = [_level(grams, counts)]
    for n in range(order - 1, 0, -1):
        without_first = grams & np.uint64(N_BYTES**n - 1)
        grams, counts = np.unique(without_first, return_counts=True)
        levels.append(_level(grams, counts))
    return ByteNGrams(levels[::-1])


def keys(symbols: NDArray[np.uint8], n: int) -> Keys:
    """Return the n-grams (L - n + 1,) that start at each of (L,) bytes, as integers."""
    length = max(0, len(symbols) - n + 1)
    packed = np.zeros(length, np.uint64)
    for i in range(n):
        packed = (packed << np.uint64(8)) | symbols[i : i + length]
    return packed


def perplexity(nats_per_byte: NDArray[np.float64]) -> float:
    """Return the perplexity per byte of texts (N,) that have equal weights whatever their length."""
    return math.exp(float(nats_per_byte.mean()))


def _level(grams: Keys, counts: NDArray[np.int64]) -> Level:
    contexts, starts, followers = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else UNESTIMATED_DISCOUNT  # Chen & Goodman 1999, eq. 15
    return Level(grams, counts, contexts, np.add.reduceat(counts, starts), followers, discount)


def _interpolate(level: Level, asked: Keys, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the probabilities (L,) of the lower order with those of this order's n-grams (L,)."""
    counts = _look_up(level.grams, level.counts, asked)
    contexts = asked >> np.uint64(8)
    totals, followers = (_look_up(level.contexts, of, contexts) for of in (level.totals, level.followers))
    kept = np.maximum(counts - level.discount, 0) + level.discount * followers * lower
    return np.where(totals > 0, kept / np.maximum(totals, 1), lower)


def _look_up(table: Keys, values: NDArray[np.int64], asked: Keys) -> NDArray[np.int64]:
    """Return the values of the given keys; 0 for unknown keys."""
    index = np.minimum(np.searchsorted(table, asked), len(table) - 1)
    return np.where(table[index] == asked, values[index], 0)
