"""Laws of the error model: seeds and items crossed, seeds paired by design, on data of known truth."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from toy_runs import PROBE, ToyRun, cell, make_run, tables_of

from bench.analysis import error_model, inference
from bench.analysis.compare import difference, summaries
from bench.analysis.error_model import Sample, best_is_clear, by_item, estimate, is_paired, sample
from bench.analysis.frames import Measure
from bench.analysis.inference import BEFORE, BEYOND, Estimate

Array = NDArray[np.float64]
_NAMES = itertools.count()  # of origins that no other sample shares


def of_scores(scores: Sequence[float] | Array, first: int = 0, origin: str = "") -> Sample:
    """A sample without items; samples of one origin pair."""
    seeds = tuple(range(first, first + len(scores)))
    name = origin or str(next(_NAMES))
    origins = tuple((f"{name}-{seed}",) for seed in seeds)
    return Sample(seeds, np.asarray(scores, dtype=np.float64), None, origins)


def of_items(items: Array, origin: str = "") -> Sample:
    own = of_scores(items.mean(axis=1), origin=origin)
    return Sample(own.seeds, own.scores, items, own.origins)


def known(*samples: Sample) -> Estimate:
    found = estimate(samples, (1.0, -1.0)[: len(samples)])
    assert found is not None
    return found


def test_seeds_and_items_both_add_to_the_error() -> None:
    effects = np.array([-1.0, 0.0, 1.0])  # of seeds and of items
    found = known(of_items(effects[:, None] + effects))
    assert found.mean == 0.0
    assert found.se == pytest.approx(math.sqrt(1 / 3 + 1 / 3))
    assert (found.n_seeds, found.n_items) == (3, 3)


def test_items_that_all_agree_leave_the_error_of_seeds() -> None:
    found = known(of_items(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])))
    assert (found.mean, found.item_se, found.df) == (2.0, 0.0, 2.0)
    assert found.se == pytest.approx(1 / math.sqrt(3))


def test_two_strategies_are_compared_by_welchs_test() -> None:
    left, right = [0.60, 0.63, 0.66, 0.61], [0.5, 0.6, 0.4]
    found, welch = (
        known(of_scores(left), of_scores(right)),
        scipy.stats.ttest_ind(left, right, equal_var=False),
    )
    assert inference.superiority(found).p == pytest.approx(welch.pvalue)
    assert (found.df, found.n_samples) == (pytest.approx(welch.df), 2)


def test_samples_of_one_origin_are_compared_by_the_paired_test() -> None:
    left, right = [0.60, 0.63, 0.66], [0.50, 0.52, 0.54]
    found, paired = (
        known(of_scores(left, origin="a"), of_scores(right, origin="a")),
        scipy.stats.ttest_rel(left, right),
    )
    assert inference.superiority(found).p == pytest.approx(paired.pvalue)
    assert found.n_samples == 1


def branch(budget: str, seed: int, value: float, trunk: str | None) -> ToyRun:
    data = {"trunk": {"run_id": trunk, "steps": 5}} if trunk else {}
    return make_run("clm", seed, value, budget=budget, data=data)


def test_runs_pair_by_a_shared_trunk_and_not_by_their_seed() -> None:
    runs = [make_run("scratch", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    for seed in range(3):
        runs += [branch("1kb", seed, 0.6 + 0.02 * seed, f"clm-2kb-{seed}")]
        runs += [branch("2kb", seed, 0.7 + 0.03 * seed, None)]
    tables = tables_of(runs)
    small, large = cell("clm", "1kb"), cell("clm", "2kb")
    by_trunk, by_seed = (
        difference(tables, PROBE, large, small),
        difference(tables, PROBE, large, cell("scratch", None)),
    )
    assert by_trunk is not None
    assert by_seed is not None
    assert (by_trunk.is_paired, by_seed.is_paired) == (True, False)


def test_a_run_pairs_with_itself_on_another_measure_and_not_with_another_seed() -> None:
    tables = tables_of([make_run("clm", seed, 0.5) for seed in range(6)])
    own = sample(tables, PROBE, [cell("clm")])
    assert is_paired(own, own)
    assert not is_paired(own.of((0, 1, 2)), own.of((3, 4, 5)))


def test_two_seeds_have_a_mean_and_no_interval() -> None:
    tables = tables_of([make_run(name, seed, 0.5) for name in ("clm", "scratch") for seed in range(2)])
    [_, row] = summaries(tables, PROBE)
    assert row.interval is not None
    assert (row.interval.mean, row.interval.low, row.interval.n) == (0.5, None, 2)
    assert row.to_scratch is not None
    assert not row.to_scratch.is_tested


def test_the_interval_of_a_share_ends_at_0_and_1() -> None:
    values = {"clm": (0.0, 0.01, 0.06), "mlm": (1.0, 0.99, 0.93)}
    tables = tables_of(
        [make_run(name, i, value) for name, own in values.items() for i, value in enumerate(own)]
    )
    low, high = (row.interval for row in summaries(tables, PROBE))
    assert low is not None
    assert high is not None
    assert (low.low, high.high) == (0.0, 1.0)


def test_influences_average_to_micro_f1_and_to_a_perplexity() -> None:
    ones = np.array([1, 1])
    items = {"f1.true_positives": np.array([1, 0]), "f1.predicted": ones, "f1.gold": ones}
    found = by_item(items, Measure("ner", "f1", None))
    assert found is not None
    assert found.tolist() == [1.0, 0.0]
    nats = np.array([1.0, 3.0])
    influences = error_model._averaging_to(math.exp(2.0), nats)
    assert influences is not None
    assert influences.mean() == pytest.approx(math.exp(2.0))


def test_the_best_is_clear_only_against_each_other_one() -> None:
    ahead, close, behind = ([0.9, 0.91, 0.92], [0.9, 0.88, 0.93], [0.5, 0.51, 0.52])
    assert best_is_clear([of_scores(behind), of_scores(ahead)], 1) == 1
    assert best_is_clear([of_scores(behind), of_scores(ahead)], -1) == 0
    assert best_is_clear([of_scores(behind), of_scores(ahead), of_scores(close)], 1) is None
    assert best_is_clear([of_scores(ahead)], 1) is None


def test_simulated_means_have_the_errors_of_their_samples() -> None:
    rng = np.random.default_rng(0)
    left, right = (of_items(draw(rng, 9, 0.3)) for _ in range(2))
    drawn = error_model.simulated_means([left, right], 20_000)
    assert drawn[:, 0].std() == pytest.approx(known(left).se, rel=0.2)  # t of 8 has an sd of 1.15
    gap = (drawn[:, 0] - drawn[:, 1]).std()
    assert gap == pytest.approx(known(left, right).se, rel=0.2)


def test_the_bounds_of_a_crossing_are_measured_points_with_a_clear_order() -> None:
    def point(gain: float) -> tuple[Sample, Sample]:
        return of_scores([0.5 + gain, 0.51 + gain, 0.49 + gain]), of_scores([0.5, 0.51, 0.49])

    found = error_model.crossing({10: point(0.1), 20: point(0.01), 40: point(-0.01), 80: point(-0.1)}, 1)
    assert found is not None
    assert (found.low, found.high) == (10, 80)
    assert 20 < found.at < 40
    never = error_model.crossing({10: point(-0.1), 20: point(-0.1)}, 1)
    always = error_model.crossing({10: point(0.1), 20: point(0.1)}, 1)
    assert never is not None
    assert always is not None
    assert (never.at, never.low, never.high) == (BEFORE, BEFORE, BEFORE)
    assert (always.at, always.low, always.high) == (BEYOND, BEYOND, BEYOND)


def draw(rng: np.random.Generator, n: int, item_sd: float, items: Array | float = 0.0) -> Array:
    """Outcomes (S, 100) of true mean 0: seeds, items and noise."""
    seeds, own = rng.normal(0, 0.02, (n, 1)), rng.normal(0, item_sd, (1, 100))
    return np.asarray(seeds + items + own + rng.normal(0, 0.3, (n, 100)))


@pytest.mark.parametrize("item_sd", [0.05, 0.3])
@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_over_seeds_and_items_hold_the_truth_in_95_percent(n: int, item_sd: float) -> None:
    rng, held = np.random.default_rng(n), []
    for _ in range(1500):
        shared = rng.normal(0, 0.4, (1, 100))  # the difficulty of items, which is the same for both
        sides = [of_items(draw(rng, n, item_sd, shared), str(side)) for side in range(2)]
        low, high = known(*sides).bounds()
        held.append(low <= 0 <= high)
    assert 0.93 <= np.mean(held) <= 0.985  # Satterthwaite's df are cautious for three seeds
