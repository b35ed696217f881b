"""Scores by seed and item -> a mean, a difference or a slope with its error. Every page uses this one model.

Seeds are a random sample of all seeds, and items a random sample of all items; all runs see the same items.
The squared standard error is the sum of a part of the seeds and a part of the items (crossed random effects),
and its degrees of freedom are Satterthwaite's (1946); without outcomes by item only the seeds count, and the
test of two conditions is Welch's (1947).

Whether seeds pair is decided by the design, never by the data: two runs pair if they are the same run, share
the trunk that one of them trained, or start from the same checkpoint. All others are independent samples. A
shared number as the seed does not make a pair: between strategies the correlation over seeds was -0.72 to
0.47 in this project's records, -0.03 on average, and pairing would cost half the degrees of freedom.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.inference import BEFORE, BEYOND, Crossover, Estimate, stops_helping, superiority
from bench.analysis.stats import LEVEL, MIN_SEEDS, Interval
from bench.errors import DataError
from bench.records import Items

Array = NDArray[np.float64]

N_DRAWS = 4000  # of simulated means
_EXACT = 1e-4  # relative tolerance, since arrays are float32
_SHARE = re.compile(
    r"(\w+_)?(accuracy|em|f1|mrr|recall_at_\d+|distinct_\d|repetition_\d|self_bleu|failed_fits)(_\w+)?"
)


@dataclass(frozen=True, eq=False)
class Sample:
    """The scores of one condition on one measure, averaged over its cells within each of S seeds."""

    seeds: tuple[int, ...]  # S
    scores: Array  # (S,)
    items: Array | None  # (S, I), with the scores as their means; None where outcomes by item are unknown
    origins: tuple[Hashable, ...]  # (S,) the run or checkpoint that the runs of a seed start from

    @cached_property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(self.scores.mean())

    @cached_property
    def of_seeds(self) -> float:
        """Return the part of the squared error of the mean that is due to seeds."""
        return float(self.scores.var(ddof=1)) / len(self.seeds)

    @cached_property
    def by_item(self) -> Array:
        """Return means over seeds (I,), where items are known."""
        assert self.items is not None
        return np.asarray(self.items.mean(axis=0))

    @cached_property
    def rest(self) -> float:
        """Return what neither seed nor item explains, as a part of the squared error of the mean."""
        assert self.items is not None
        n_seeds, n_items = self.items.shape
        residuals = self.items - self.items.mean(axis=1)[:, None] - self.by_item + self.items.mean()
        return float((residuals**2).sum()) / ((n_seeds - 1) * (n_items - 1)) / self.items.size

    def of(self, seeds: Sequence[int]) -> "Sample":
        """Return the sample of some of its seeds."""
        at = [self.seeds.index(seed) for seed in seeds]
        items = None if self.items is None else self.items[at]
        return Sample(tuple(seeds), self.scores[at], items, tuple(self.origins[i] for i in at))


def sample(
    tables: Tables, measure: Measure, cells: Sequence[Cell], seeds: Sequence[int] | None = None
) -> Sample:
    """Return the scores of cells, averaged within each seed that all of them have.

    Args:
        tables: of the study.
        measure: the score.
        cells: one or more.
        seeds: the seeds to use, in this order; None: all.
    """
    found = _sample(tables, measure, tuple(cells))
    return found if seeds is None else found.of([seed for seed in seeds if seed in found.seeds])


@lru_cache(maxsize=2**15)  # cached, since every table and figure needs the same cells
def _sample(tables: Tables, measure: Measure, cells: tuple[Cell, ...]) -> Sample:
    scores = [dict(tables.seed_values(measure, cell)) for cell in cells]
    seeds = tuple(seed for seed in tables.seeds if cells and all(seed in own for own in scores))
    means = np.array([sum(own[seed] for own in scores) / len(cells) for seed in seeds], dtype=np.float64)
    found = [outcomes(tables, measure, cell) if tables.array_files else {} for cell in cells]
    sizes = {len(own[seed]) if seed in own else 0 for own in found for seed in seeds}
    is_known = bool(seeds) and len(sizes) == 1 and sizes.pop() > 1
    items = np.array([[own[s] for own in found] for s in seeds]).mean(axis=1) if is_known else None
    origins = [_origins(tables, cell) for cell in cells]
    starts = tuple(tuple(own[seed] for own in origins) for seed in seeds)
    return Sample(seeds, means, items, starts)


def _origins(tables: Tables, cell: Cell) -> dict[int, str]:
    """Return by seed the run whose first steps a run shares, or the checkpoint it starts from, or itself."""
    runs = tables.runs_of(cell)
    rows = zip(runs["seed"].tolist(), runs["run_id"], runs["data"], strict=True)
    return {seed: _origin(run_id, data) for seed, run_id, data in rows}


def _origin(run_id: str, data: Mapping[str, Any]) -> str:
    if "trunk" in data:
        return str(data["trunk"]["run_id"])
    return str(sorted(data["checkpoint"].items())) if data.get("checkpoint") else run_id


def is_paired(left: Sample, right: Sample) -> bool:
    """Return whether the seeds of two samples pair: for each seed of both, all runs have the same origin."""
    shared = [seed for seed in left.seeds if seed in right.seeds]
    if not shared or left.origins == right.origins:
        return bool(shared)
    return all(
        set(_flat(left.origins[left.seeds.index(seed)])) == set(_flat(right.origins[right.seeds.index(seed)]))
        for seed in shared
    )


def _flat(origin: Hashable) -> tuple[Hashable, ...]:
    return origin if isinstance(origin, tuple) else (origin,)


def estimate(samples: Sequence[Sample], weights: Sequence[float] = (1.0,)) -> Estimate | None:
    """Return the weighted sum of the means of samples, with its error over new seeds and new items.

    Samples whose seeds pair are summed within each seed; the others are independent. Outcomes by item count
    where all samples have them for the same items.

    Args:
        samples: of one condition each.
        weights: such as (1, -1) for a difference.

    Returns:
        None if fewer than `MIN_SEEDS` seeds are left of any sample.
    """
    parts: list[tuple[float, Sample]] = []
    for weight, own in zip(weights, samples, strict=True):
        mate = next((i for i, (_, other) in enumerate(parts) if is_paired(other, own)), None)
        if mate is None:
            parts.append((weight, own))
        else:
            parts[mate] = 1.0, summed((parts[mate], (weight, own)))
    if any(len(own.seeds) < MIN_SEEDS for _, own in parts):
        return None
    return _crossed(parts)


def summed(parts: Sequence[tuple[float, Sample]]) -> Sample:
    """Return the weighted sum of samples within each seed that all of them have."""
    first = parts[0][1]
    seeds = [seed for seed in first.seeds if all(seed in own.seeds for _, own in parts)]
    chosen = [(weight, own.of(seeds)) for weight, own in parts]
    scores = np.sum([weight * own.scores for weight, own in chosen], axis=0)
    arrays = [weight * own.items for weight, own in chosen if own.items is not None]
    is_known = len(arrays) == len(chosen) and len({array.shape for array in arrays}) == 1
    items = np.asarray(np.sum(arrays, axis=0)) if is_known else None
    return Sample(tuple(seeds), np.asarray(scores), items, first.of(seeds).origins)


def _crossed(parts: Sequence[tuple[float, Sample]]) -> Estimate:
    """Estimate a weighted sum of independent samples that share their items."""
    n = min(len(own.seeds) for _, own in parts)
    mean = sum(weight * own.mean for weight, own in parts)
    seeds = [(weight**2 * own.of_seeds, len(own.seeds) - 1) for weight, own in parts]
    of_seeds = sum(part for part, _ in seeds)
    df = df_of_seeds = _satterthwaite(seeds)
    arrays = [own.items for _, own in parts if own.items is not None]
    is_known = len(arrays) == len(parts) and len({array.shape[1] for array in arrays}) == 1
    n_items, more = None, 0.0
    if is_known:
        n_items = arrays[0].shape[1]
        by_item = np.sum([weight * own.by_item for weight, own in parts], axis=0)
        of_items = float(by_item.var(ddof=1)) / n_items
        rests = [
            (-(weight**2) * own.rest, (len(own.seeds) - 1) * (n_items - 1)) for weight, own in parts
        ]  # the residual is in the seeds' part already
        more = max(0.0, of_items + sum(part for part, _ in rests))
        if more:
            df = max(df_of_seeds, _satterthwaite([*seeds, (of_items, n_items - 1), *rests]))
    sd = math.sqrt(of_seeds * n)
    return Estimate(mean, sd, math.sqrt(more), df, n, n_items, len(parts), df_of_seeds)


def _satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of variances, each with its own."""
    total, spread = sum(part for part, _ in parts), sum(part**2 / df for part, df in parts)
    return total**2 / spread if spread else float(min(df for _, df in parts))


def correlation(left: Sample, right: Sample) -> float | None:
    """Return the correlation over the seeds of both; None for fewer than three, or without a spread."""
    shared = [seed for seed in left.seeds if seed in right.seeds]
    if len(shared) < MIN_SEEDS:
        return None
    values = np.stack([own.of(shared).scores for own in (left, right)])
    if (np.ptp(values, axis=1) <= 1e-12).any():
        return None
    return float(np.corrcoef(values).ravel()[1])


@dataclass(frozen=True)
class Difference:
    """left - right, in the metric's own unit."""

    interval: Interval  # its n is the number of seeds on each side
    p: float  # two-sided t test; 1 where there are too few seeds
    is_paired: bool

    @property
    def is_tested(self) -> bool:
        """Return whether there are seeds enough for a test."""
        return self.interval.low is not None


def difference(left: Sample, right: Sample) -> Difference | None:
    """Return the difference of two conditions; None if one of them has no score."""
    if not (len(left.seeds) and len(right.seeds)):
        return None
    pairs, found = is_paired(left, right), estimate((left, right), (1.0, -1.0))
    if found is not None:
        return Difference(Interval(found.mean, *found.bounds(), found.n_seeds), superiority(found).p, pairs)
    n = min(len(left.seeds), len(right.seeds))
    return Difference(Interval(left.mean - right.mean, None, None, n), 1.0, pairs)


def mean_of(tables: Tables, measure: Measure, cells: Sequence[Cell]) -> Interval | None:
    """Return the mean of cells with its interval; None without a seed that all of them have.

    The interval of a share ends at 0 and 1: the true value lies between them, so the coverage stays.
    """
    own = sample(tables, measure, cells)
    if not len(own.seeds):
        return None
    found = estimate((own,))
    if found is None:
        return Interval(own.mean, None, None, len(own.seeds))
    low, high = found.bounds()
    if is_share(tables, measure):
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(found.mean, low, high, found.n_seeds)


@lru_cache(maxsize=2**12)
def is_share(tables: Tables, measure: Measure) -> bool:
    """Return whether a measure lies between 0 and 1 by its definition."""
    values = tables.values(measure, tables.cells)
    known = values[~np.isnan(values)]
    return _SHARE.fullmatch(measure.metric) is not None and bool(((known >= 0) & (known <= 1)).all())


def simulated_means(samples: Sequence[Sample], n_draws: int = N_DRAWS) -> Array:
    """Return means (R, C) that C samples of three or more seeds would show if their estimates were the truth.

    Errors of seeds follow t distributions and are shared by samples whose seeds pair; errors of items are
    normal and shared by all samples with the same items.
    """
    rng = np.random.default_rng(0)
    found = np.empty((n_draws, len(samples)))
    drawn: dict[tuple[Hashable, ...], Array] = {}
    for i, own in enumerate(samples):
        n = len(own.seeds)
        key = (own.seeds, own.origins)
        if key not in drawn:
            scale = np.sqrt(rng.chisquare(n - 1, (n_draws, 1)) / (n - 1))
            drawn[key] = rng.standard_normal((n_draws, n)) / scale
        found[:, i] = own.mean + drawn[key] @ (own.scores - own.mean) / math.sqrt(n * (n - 1))
    arrays = [own.items for own in samples if own.items is not None]
    if len(arrays) == len(samples) and len({array.shape[1] for array in arrays}) == 1:
        by_item = np.stack([own.by_item for own in samples])
        covariance = np.atleast_2d(np.cov(by_item)) / by_item.shape[1]
        covariance -= np.diag([own.rest for own in samples])
        sizes, axes = np.linalg.eigh(covariance)
        found += rng.standard_normal(found.shape) * np.sqrt(np.maximum(sizes, 0.0)) @ axes.T
    return found


@lru_cache(maxsize=2**12)  # cached, since reading a file takes longest
def outcomes(tables: Tables, measure: Measure, cell: Cell) -> Mapping[int, Array]:
    """Return by seed the values (I,) whose mean is the score; empty if unknown for any run."""
    found: dict[int, Array] = {}
    scores = dict(tables.seed_values(measure, cell))
    for run_id, seed in tables.ids_of(cell):
        if seed not in scores:
            continue
        values = by_item(arrays_of(tables, run_id, measure.task), measure)
        values = None if values is None else _averaging_to(scores[seed], values)
        if values is None:
            return {}
        found[seed] = values
    return found


def arrays_of(tables: Tables, run_id: str, task: str) -> Items:
    """Return the outcomes by item of a run; none where the file is absent or damaged, see `damaged`."""
    found = _read(tables, run_id, task)
    return {} if isinstance(found, DataError) else found


def damaged(tables: Tables) -> list[DataError]:
    """Return the errors of the files of items that cannot be read."""
    tasks = {measure.task for measure in tables.measures}
    found = [
        _read(tables, run_id, task)
        for run_id, files in tables.array_files.items()
        for task in files
        if task in tasks
    ]
    return list({str(error): error for error in found if isinstance(error, DataError)}.values())


@lru_cache(maxsize=2**10)  # cached, since every metric of a task needs the file
def _read(tables: Tables, run_id: str, task: str) -> Items | DataError:
    try:
        return tables.arrays(run_id, task)
    except DataError as error:
        return error


def _averaging_to(score: float, values: Array) -> Array | None:
    """Return values whose mean is the score: the values, or their influences on the exponential of the mean.

    Perplexity is such an exponential, of nats. None if the score is neither.
    """
    mean = float(values.mean())
    if abs(mean - score) <= _EXACT * max(1.0, abs(score)):
        return values
    if score > 0 and abs(mean - math.log(score)) <= _EXACT * max(1.0, abs(mean)):
        return score * (1 + values - mean)
    return None


def by_item(items: Items, measure: Measure) -> Array | None:
    """Return values (I,) whose mean is the score of one run, averaged over fits; None if there are none.

    A ratio of sums (micro F1, accuracy over words) is linearised: its value plus the influence of each item.
    """
    found = fits(items, measure)
    return None if found is None else np.asarray(found.mean(axis=0))


def fits(items: Items, measure: Measure) -> Array | None:
    """Return `by_item` of every fit (F, I) of one run; None if there are no outcomes by item."""
    name = measure.metric
    at = "" if measure.n_labels is None else f"@{measure.n_labels}"
    if f"{name}{at}" in items:
        values = items[f"{name}{at}"].astype(np.float64)
        return values.reshape(-1, values.shape[-1])
    parts = {part: items.get(f"{name}.{part}{at}") for part in ("true_positives", "predicted", "gold")}
    hits, predicted, gold = parts.values()
    if hits is not None and predicted is not None and gold is not None:
        return _ratio(2 * hits, predicted + gold)
    correct, words = items.get(f"{name}.correct{at}"), items.get(f"{name}.words{at}")
    return None if correct is None or words is None else _ratio(correct, words)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Array:
    """Return influences (F, I) around sum / sum, from numerators and denominators (..., I)."""
    tops, bottoms = (values.astype(np.float64) for values in np.broadcast_arrays(above, below))
    total = bottoms.sum(axis=-1, keepdims=True)
    value = tops.sum(axis=-1, keepdims=True) / np.maximum(total, 1e-12)
    influences = value + tops.shape[-1] * (tops - value * bottoms) / np.maximum(total, 1e-12)
    return np.asarray(influences.reshape(-1, tops.shape[-1]))


def best_is_clear(samples: Sequence[Sample], sign: int) -> int | None:
    """Return the number of the sample with the best mean if it is better than each other one, else None.

    Tested by two-sided t tests at 5 % against each other sample. That the best one was selected needs no
    further correction (Gutmann and Maymin 1987).
    """
    if len(samples) < 2 or not sign:
        return None
    best = max(range(len(samples)), key=lambda i: sign * samples[i].mean)
    for i, other in enumerate(samples):
        if i != best:
            gap = difference(samples[best], other)
            if gap is None or gap.p > 1 - LEVEL:
                return None
    return best


def crossing(points: Mapping[int, tuple[Sample, Sample]], sign: int) -> Crossover | None:
    """Return where the first of two conditions stops to be better along an axis.

    Its bounds are measured points: the last one at which the first condition is clearly better, and the first
    one from which on it is clearly worse, each by the 95 % interval of the difference at that point.

    Args:
        points: both conditions at each point of the axis.
        sign: 1 where higher is better, -1 where lower is.

    Returns:
        None where fewer than two points have scores of both.
    """
    gaps = {x: difference(*points[x]) for x in sorted(points)}
    known = {x: gap for x, gap in gaps.items() if gap is not None}
    if len(known) < 2:
        return None
    means = np.array([sign * gap.interval.mean for gap in known.values()])
    at, ahead = float(stops_helping(list(known), means)), bool((means > 0).all())
    n = min(gap.interval.n for gap in known.values())
    if not all(gap.is_tested for gap in known.values()):
        return Crossover(at, None, None, n, ahead)
    sides = [sign * gap.interval.mean * (gap.p <= 1 - LEVEL) for gap in known.values()]
    low = max((x for x, side in zip(known, sides, strict=True) if side > 0), default=BEFORE)
    low = BEYOND if sides[-1] > 0 else low
    not_behind = [i for i, side in enumerate(sides) if side >= 0]
    first_behind = not_behind[-1] + 1 if not_behind else 0
    high = BEYOND if first_behind == len(sides) else list(known)[first_behind] if not_behind else BEFORE
    return Crossover(at, low, high, n, ahead)
