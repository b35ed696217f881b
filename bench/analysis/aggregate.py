"""Scores (seeds x tasks) -> one number over tasks, with its interval. Pure functions.

Agarwal et al. 2021 (arXiv:2108.13264), as in their package rliable: interquartile mean, probability of
improvement, performance profile. Intervals are percentile bootstraps as there, but of whole seeds. rliable
resamples the runs of each task on their own, which suits tasks that are trained for one by one. Here all
tasks score one checkpoint, so a seed's scores rise and fall together: to resample task by task would take
S x T scores for independent ones and make intervals too narrow. The tasks stay as they are. Where half of the
variance is the seed's, with 14 tasks, the interquartile mean's interval held the truth in 76 % of 500
simulations with 3 seeds, 85 % with 5, 90 % with 10, 95 % with 20; task by task in 52, 58, 64 and 65 %.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.analysis.stats import LEVEL, Interval, distinct_draws, draw_counts, resamples

Array = NDArray[np.float64]

CEILING = 1.0  # what a model that knows every answer scores
_TRIMMED = 0.25  # at either end
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class Profile(NamedTuple):
    """Shares (K,) of runs x tasks above each of K thresholds; no band for a single seed."""

    share: Array
    low: Array | None
    high: Array | None


def normalised(values: Array, chance: Array | float) -> Array:
    """0 at chance, 1 at the ceiling; below chance is negative."""
    return (values - chance) / (CEILING - chance)


def interquartile_mean(scores: Array) -> Interval:
    """The mean of the middle half of all scores (S, T): of runs, not of the tasks' means."""
    return _with_bounds(_middle(scores[None])[0], _middle(scores[resamples(len(scores))]), len(scores))


def mean(scores: Array) -> Interval:
    """The mean of all scores (S, T)."""
    return _with_bounds(scores.mean(), _shares(len(scores)) @ scores.mean(axis=1), len(scores))


def improvement(left: Array, right: Array) -> Interval:
    """How probable a run of `left` beats one of `right` on a task drawn at random; a tie is half a win.

    Args:
        left: scores (S, T).
        right: scores (S, T) of the same seeds in the same order, which are resampled together.
    """
    above, equal = left[:, None] > right[None], left[:, None] == right[None]  # (S, S, T)
    wins = (above + 0.5 * equal).mean(axis=2)  # (S, S)
    shares = _shares(len(wins))
    return _with_bounds(wins.mean(), np.einsum("ri,ij,rj->r", shares, wins, shares), len(wins))


def profile(scores: Array, thresholds: Array) -> Profile:
    """The share of all scores (S, T) above each threshold (K,), with a pointwise band."""
    above = (scores[:, :, None] > thresholds).sum(axis=1)  # (S, K)
    share = above.sum(axis=0) / scores.size
    if len(scores) == 1:
        return Profile(share, None, None)
    some, which = np.unique(above, axis=1, return_inverse=True)  # thresholds between two scores are alike
    counts, times = distinct_draws(len(scores))
    drawn = (counts @ some).astype(np.int64)  # (D, K') scores above, of a resample
    low, high = (found[which] / scores.size for found in _quantiles(drawn, times, scores.size))
    return Profile(share, low, high)


def _quantiles(values: NDArray[np.int64], times: NDArray[np.int64], most: int) -> list[Array]:
    """Both tails (K,) of counts (D, K) up to `most`, of which the d-th comes up `times[d]` times.

    As `np.quantile`, without sorting: counted by value.
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


def _middle(scores: Array) -> Array:
    """Interquartile means (R,) of R matrices (R, S, T)."""
    flat = scores.reshape(len(scores), -1)
    n = flat.shape[1]
    cut = int(_TRIMMED * n)
    return np.partition(flat, (cut, n - cut - 1), axis=1)[:, cut : n - cut].mean(axis=1)


def _shares(n: int) -> Array:
    """What share (R, n) of each resample every seed is."""
    return draw_counts(n) / n


def _with_bounds(estimate: float, resampled: Array, n: int) -> Interval:
    if n == 1:
        return Interval(float(estimate), None, None, 1)
    low, high = np.quantile(resampled, _TAILS)
    return Interval(float(estimate), float(low), float(high), n)
