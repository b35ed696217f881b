"""Means, intervals, corrections for several tests and aggregates over seeds. Pure functions.

Intervals are Student's t of the mean over seeds; `bench.analysis.error_model` adds items. A percentile
bootstrap stays within the range of its values and covered the mean of simulated normal scores in 75, 85 and
90 % of cases with 3, 5 and 9 seeds, the t interval in 95 %. It is used only if there is no t interval
(crossovers, interquartile means over tasks).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

LEVEL = 0.95
N_RESAMPLES = 10_000
CEILING = 1.0  # the score of a model with all answers
MIN_SEEDS = 3  # below, there are points without an interval: with two seeds it is 12.7 standard errors wide
_TRIMMED = 0.25  # at either end
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` are None for fewer than `MIN_SEEDS` seeds."""

    mean: float
    low: float | None
    high: float | None
    n: int


@lru_cache(maxsize=64)
def resamples(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Return indices (R, n) of a bootstrap over n seeds, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))  # (R, n)


def interval(values: Iterable[float]) -> Interval | None:
    """Return the mean over seeds and its t interval; None for no values, no bounds for too few."""
    return _interval(tuple(sorted(values)))  # so that the order of runs cannot matter


@lru_cache(maxsize=2**16)  # cached, since tables and figures need the same cells repeatedly
def _interval(values: tuple[float, ...]) -> Interval | None:
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite; a failed run must not reach the statistics")
    n = len(values)
    if not n:
        return None
    mean = float(np.mean(values))
    if n < MIN_SEEDS:
        return Interval(mean, None, None, n)
    half = t_bound(n) * float(np.std(values, ddof=1)) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


@lru_cache(maxsize=64)
def t_bound(n: int) -> float:
    """Return the half width of a t interval over n values, in standard errors."""
    return float(scipy.special.stdtrit(n - 1, (1 + LEVEL) / 2))


def holm(p_values: Sequence[float] | Floats) -> list[float]:
    """Correct p values by Holm's step-down procedure, which controls the familywise error rate."""
    found, order = np.asarray(p_values, dtype=np.float64), np.argsort(p_values, kind="stable")
    steps = np.minimum(1.0, np.arange(len(found), 0, -1) * found[order])
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def holm_levels(p_values: Sequence[float] | Floats, alpha: float = 1 - LEVEL) -> list[float]:
    """Return the level of each hypothesis's interval: that of its step in Holm's procedure.

    The procedure stops at its first step that does not reject; the intervals of all later hypotheses have the
    level of that step. So a two-sided interval excludes the tested value exactly if Holm's test rejects it.
    """
    found, order = np.asarray(p_values, dtype=np.float64), np.argsort(p_values, kind="stable")
    alphas = alpha / np.arange(len(found), 0, -1)
    kept = np.flatnonzero(found[order] > alphas)
    last = int(kept[0]) if len(kept) else len(found)
    levels = np.empty_like(found)
    levels[order] = 1 - alphas[np.minimum(np.arange(len(found)), last)]
    return levels.tolist()


def pool(cells: Floats) -> Floats:
    """Return the mean (S,) over cells (C, S) within each seed; NaN for a seed that lacks any cell.

    A mean over other cells than those of the other seeds would not be comparable.
    """
    if not len(cells):
        return np.full(cells.shape[1], np.nan)
    return np.asarray(np.add.accumulate(cells, axis=0)[-1] / len(cells))


@lru_cache(maxsize=64)
def draw_counts(n: int, seed: int = 0) -> Floats:
    """Return how often each resample (R, n) contains each of n seeds."""
    draws = resamples(n, seed)
    return np.stack([(draws == i).sum(axis=1) for i in range(n)], axis=1).astype(np.float64)


@lru_cache(maxsize=64)
def distinct_draws(n: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Return the distinct resamples by their counts (D, n), and how often each occurs (D,)."""
    counts, times = np.unique(draw_counts(n, seed), axis=0, return_counts=True)
    return counts, times


class Profile(NamedTuple):
    """Shares (K,) of runs x tasks above each of K thresholds; no band for too few seeds."""

    share: Floats
    low: Floats | None
    high: Floats | None


def normalised(values: Floats, chance: Floats | float) -> Floats:
    """Scale scores so that chance is 0 and the ceiling is 1; below chance is negative."""
    return (values - chance) / (CEILING - chance)


def interquartile_mean(scores: Floats) -> Interval:
    """Return the mean of the middle half of all scores (S, T), not of the tasks' means."""
    return _with_bounds(_middle(scores[None])[0], _middle(scores[resamples(len(scores))]), len(scores))


def mean_over_tasks(scores: Floats) -> Interval:
    """Return the mean of all scores (S, T)."""
    return _with_bounds(scores.mean(), _shares(len(scores)) @ scores.mean(axis=1), len(scores))


def probability_of_improvement(left: Floats, right: Floats) -> Interval:
    """Return the probability that a run of `left` beats one of `right` on a random task; a tie is half.

    Args:
        left: scores (S, T).
        right: scores (S, T) of the same seeds in the same order, which are resampled together.
    """
    above, equal = left[:, None] > right[None], left[:, None] == right[None]  # (S, S, T)
    wins = (above + 0.5 * equal).mean(axis=2)  # (S, S)
    shares = _shares(len(wins))
    return _with_bounds(wins.mean(), np.einsum("ri,ij,rj->r", shares, wins, shares), len(wins))


def profile(scores: Floats, thresholds: Floats) -> Profile:
    """Return the share of all scores (S, T) above each threshold (K,), with a pointwise band."""
    above = (scores[:, :, None] > thresholds).sum(axis=1)  # (S, K)
    share = above.sum(axis=0) / scores.size
    if len(scores) < MIN_SEEDS:
        return Profile(share, None, None)
    some, which = np.unique(above, axis=1, return_inverse=True)  # thresholds between two scores are alike
    counts, times = distinct_draws(len(scores))
    drawn = (counts @ some).astype(np.int64)  # (D, K') scores above, of a resample
    low, high = (found[which] / scores.size for found in _quantiles(drawn, times, scores.size))
    return Profile(share, low, high)


def _quantiles(values: NDArray[np.int64], times: NDArray[np.int64], most: int) -> list[Floats]:
    """Return both tails (K,) of counts (D, K) up to `most`, of which the d-th occurs `times[d]` times.

    It equals `np.quantile`, but counts values instead of sorting them.
    """
    n_columns = values.shape[1]
    places = values + (most + 1) * np.arange(n_columns)
    weights = np.broadcast_to(times[:, None], values.shape)
    counted = np.bincount(places.ravel(), weights.ravel(), minlength=(most + 1) * n_columns)
    up_to = counted.reshape(n_columns, most + 1).cumsum(axis=1)  # (K, V)
    found = []
    for tail in _TAILS:
        place = tail * (times.sum() - 1)
        below, above = ((up_to > k).argmax(axis=1) for k in (np.floor(place), np.ceil(place)))
        found.append(below + (above - below) * (place % 1))
    return found


def _middle(scores: Floats) -> Floats:
    """Return interquartile means (R,) of R matrices (R, S, T)."""
    flat = scores.reshape(len(scores), -1)
    n = flat.shape[1]
    cut = int(_TRIMMED * n)
    return np.partition(flat, (cut, n - cut - 1), axis=1)[:, cut : n - cut].mean(axis=1)


def _shares(n: int) -> Floats:
    """Return the share (R, n) of each seed in each resample."""
    return draw_counts(n) / n


def _with_bounds(estimate: float, resampled: Floats, n: int) -> Interval:
    if n < MIN_SEEDS:
        return Interval(float(estimate), None, None, n)
    low, high = np.quantile(resampled, _TAILS)
    return Interval(float(estimate), float(low), float(high), n)
