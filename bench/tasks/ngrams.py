"""A judge of texts that no strategy knows: an n-gram model of bytes with interpolated Kneser-Ney smoothing.

Of bytes, so that it has no unknown words and depends on no tokenizer. Kneser & Ney 1995 in the interpolated
form of Chen & Goodman 1999 (sec. 4.1.6), one discount an order, and a uniform distribution below the lowest
order. A byte 0 stands before and after every text. Eight bytes fit into one integer, hence the longest order.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 8
N_BYTES = 256
END = b"\0"
UNESTIMATED_DISCOUNT = 0.5  # where no n-gram occurs once
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Level:
    """The n-grams of one order: G of them, C contexts, keys in ascending order."""

    grams: Keys  # (G,)
    counts: NDArray[np.int64]  # (G,) occurrences; below the highest order, of distinct bytes before it
    contexts: Keys  # (C,)
    totals: NDArray[np.int64]  # (C,) sum of the counts that follow
    followers: NDArray[np.int64]  # (C,) distinct bytes that follow
    discount: float


@dataclass(frozen=True)
class ByteNGrams:
    """Levels from the lowest order to the highest."""

    levels: list[Level]

    def nats(self, before: str, text: str, *, is_closed: bool) -> NDArray[np.float64]:
        """The surprise of each byte of `text` after `before`, and of its end where it `is_closed`: (L,)."""
        order = len(self.levels)
        seen = END * order + before.encode()
        scored = text.encode() + END * is_closed
        symbols = np.frombuffer(seen[len(seen) - order + 1 :] + scored, np.uint8)
        shares = np.full(len(scored), 1 / N_BYTES)
        for n, level in enumerate(self.levels, start=1):
            shares = _interpolate(level, keys(symbols, n)[order - n :], shares)
        found: NDArray[np.float64] = -np.log(shares)
        return found


def fit(texts: Iterable[str], order: int) -> ByteNGrams:
    """Count the n-grams of `texts` up to `order`, 1 to 8."""
    stream = END + b"".join(text.encode() + END for text in texts)
    grams, counts = np.unique(keys(np.frombuffer(stream, np.uint8), order), return_counts=True)
    levels = [_level(grams, counts)]
    for n in range(order - 1, 0, -1):
        without_first = grams & np.uint64(N_BYTES**n - 1)
        grams, counts = np.unique(without_first, return_counts=True)
        levels.append(_level(grams, counts))
    return ByteNGrams(levels[::-1])


def keys(symbols: NDArray[np.uint8], n: int) -> Keys:
    """(L,) bytes -> (L - n + 1,) the n-gram that begins at each, as one number."""
    length = max(0, len(symbols) - n + 1)
    packed = np.zeros(length, np.uint64)
    for i in range(n):
        packed = (packed << np.uint64(8)) | symbols[i : i + length]
    return packed


def perplexity(nats_per_byte: NDArray[np.float64]) -> float:
    """Of texts that count the same, however long: (N,) nats a byte -> the geometric mean."""
    return math.exp(float(nats_per_byte.mean()))


def _level(grams: Keys, counts: NDArray[np.int64]) -> Level:
    contexts, starts, followers = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else UNESTIMATED_DISCOUNT  # Chen & Goodman 1999, eq. 15
    return Level(grams, counts, contexts, np.add.reduceat(counts, starts), followers, discount)


def _interpolate(level: Level, asked: Keys, lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the lower order (L,) and of this order's n-grams (L,) -> interpolated (L,)."""
    counts = _look_up(level.grams, level.counts, asked)
    contexts = asked >> np.uint64(8)
    totals, followers = (_look_up(level.contexts, of, contexts) for of in (level.totals, level.followers))
    kept = np.maximum(counts - level.discount, 0) + level.discount * followers * lower
    return np.where(totals > 0, kept / np.maximum(totals, 1), lower)


def _look_up(table: Keys, values: NDArray[np.int64], asked: Keys) -> NDArray[np.int64]:
    """The values of the keys that are asked for, 0 where a key is not there."""
    index = np.minimum(np.searchsorted(table, asked), len(table) - 1)
    return np.where(table[index] == asked, values[index], 0)
