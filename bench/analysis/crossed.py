"""Outcomes by seed and item -> a mean difference whose error has both parts.

All seeds answer the same items, so a difference that a few items carry comes back with every seed: an error
from seeds alone would speak of these items only. Seeds and items are two crossed random factors; the variance
of the grand mean is that of the seeds' means plus that of the items' means less what both count twice (Owen
2007, arXiv:math/0702145; Cameron, Gelbach and Miller 2011), with Satterthwaite's degrees of freedom.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bench.analysis.inference import Estimate
from bench.analysis.table import Cell, Measure, Tables
from bench.records import Items

Array = NDArray[np.float64]
_EXACT = 1e-4  # arrays are float32; of a metric's whole range


def crossed(differences: Array) -> Estimate:
    """Of paired differences (S, I), two or more of each."""
    n_seeds, n_items = differences.shape
    by_seed, by_item, mean = differences.mean(axis=1), differences.mean(axis=0), differences.mean()
    residuals = differences - by_seed[:, None] - by_item[None] + mean
    rest = float((residuals**2).sum()) / ((n_seeds - 1) * (n_items - 1)) / differences.size
    of_seeds, of_items = float(by_seed.var(ddof=1)) / n_seeds, float(by_item.var(ddof=1)) / n_items
    more = max(0.0, of_items - rest)  # what the items add to the seeds' part, which has the rest in it
    df = _satterthwaite(of_seeds, of_items, rest, n_seeds, n_items) if more else n_seeds - 1.0
    return Estimate(float(mean), math.sqrt(of_seeds * n_seeds), math.sqrt(more), df, n_seeds, n_items)


def _satterthwaite(of_seeds: float, of_items: float, rest: float, n_seeds: int, n_items: int) -> float:
    parts = ((of_seeds, n_seeds - 1), (of_items, n_items - 1), (-rest, (n_seeds - 1) * (n_items - 1)))
    total = sum(part for part, _ in parts)
    return max(n_seeds - 1.0, total**2 / sum(part**2 / df for part, df in parts))


def outcomes(tables: Tables, measure: Measure, cell: Cell) -> dict[int, Array]:
    """By seed, (I,) values whose mean is the score; empty where they are not known for every run.

    Raises:
        DataError: a file of items is damaged.
    """
    found: dict[int, Array] = {}
    scores = tables.values.get(measure, {}).get(cell, {})
    for record in tables.runs_of.get(cell, ()):
        if record.seed not in scores:
            continue
        values = by_item(tables.items(record.run_id, measure.task), measure)
        score = scores[record.seed]
        if values is None or abs(values.mean() - score) > _EXACT * max(1.0, abs(score)):
            return {}  # of a score that is no mean over items
        found[record.seed] = values
    return found


def by_item(items: Items, measure: Measure) -> Array | None:
    """(I,) whose mean is the score of one run; of several fits, their average. None where there is no such.

    A ratio of sums (micro F1, accuracy over words) is linearised: its value plus each item's influence.
    """
    name = measure.metric
    at = "" if measure.n_labels is None else f"@{measure.n_labels}"
    if f"{name}{at}" in items:
        return _averaged(items[f"{name}{at}"])
    parts = {part: items.get(f"{name}.{part}{at}") for part in ("true_positives", "predicted", "gold")}
    hits, predicted, gold = parts.values()
    if hits is not None and predicted is not None and gold is not None:
        return _ratio(2 * hits, predicted + gold)
    correct, words = items.get(f"{name}.correct{at}"), items.get(f"{name}.words{at}")
    return None if correct is None or words is None else _ratio(correct, words)


def _averaged(values: NDArray[np.generic]) -> Array:
    """(..., I) -> (I,)."""
    wide = values.astype(np.float64)
    return np.asarray(wide.reshape(-1, wide.shape[-1]).mean(axis=0))


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> Array:
    """(..., I) numerators and denominators -> (I,) influences around sum / sum."""
    tops, bottoms = (values.astype(np.float64) for values in np.broadcast_arrays(above, below))
    total = bottoms.sum(axis=-1, keepdims=True)
    value = tops.sum(axis=-1, keepdims=True) / np.maximum(total, 1e-12)
    return _averaged(value + tops.shape[-1] * (tops - value * bottoms) / np.maximum(total, 1e-12))


def matrix(left: Mapping[int, Array], right: Mapping[int, Array]) -> tuple[tuple[int, ...], Array] | None:
    """Differences (S, I) of the seeds that both have; None where the items differ, or are fewer than two."""
    seeds = tuple(sorted(left.keys() & right.keys()))
    rows = [values for seed in seeds for values in (left[seed], right[seed])]
    sizes = {len(values) for values in rows}
    if len(seeds) < 2 or len(sizes) != 1 or sizes.pop() < 2:
        return None
    return seeds, np.stack([left[seed] - right[seed] for seed in seeds])
