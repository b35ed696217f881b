"""Laws of claims' tests, by hand and on simulated differences of known truth."""

import math

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from bench.analysis import inference, stats
from bench.analysis.frames import Measure
from bench.analysis.inference import Estimate, by_item, crossed, seeds_alone

ONE_TWO_THREE = seeds_alone({0: 1.0, 1: 2.0, 2: 3.0})  # mean 2, standard error 1 / sqrt(3), df 2


def one_sided(t: float) -> float:
    """The upper tail of t with two degrees of freedom, in closed form."""
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def test_superiority_doubles_the_smaller_tail() -> None:
    found = inference.superiority(ONE_TWO_THREE)
    assert found.p_for == pytest.approx(2 * one_sided(2 * math.sqrt(3)))
    assert found.p == pytest.approx(stats.t_test_p([1.0, 2.0, 3.0]))
    assert found.p_against == 1.0


def test_equivalence_takes_the_worse_of_two_one_sided_tests() -> None:
    assert inference.equivalence(ONE_TWO_THREE, 3.0).p_for == pytest.approx(one_sided(math.sqrt(3)))
    assert inference.equivalence(ONE_TWO_THREE, 1.0).p_for > 0.5  # a mean of 2 is not within 1


def test_seeds_that_all_agree_count_as_in_a_sign_test() -> None:
    alike = seeds_alone(dict.fromkeys(range(4), 0.1))
    assert inference.superiority(alike).p_for == 2 * 0.5**4 == inference.sign_flip_floor(4)


def test_a_variance_ratio_is_of_the_right_side_by_the_left() -> None:
    found = inference.variance_ratio([0.0, 1.0, 2.0], [0.0, 2.0, 4.0])
    assert found is not None
    assert found.ratio == pytest.approx(4.0)
    assert found.p == pytest.approx(scipy.stats.levene([0, 1, 2], [0, 2, 4], center="median").pvalue)
    assert inference.variance_ratio([1.0, 1.0, 1.0], [0.0, 2.0, 4.0]) is None


def test_seeds_needed_are_the_fewest_that_see_the_effect() -> None:
    n = inference.seeds_needed(ONE_TWO_THREE, 0.5, 0.05)
    assert n is not None
    reach = [inference.t_reach(0.05, k - 1) / math.sqrt(k) for k in (n - 1, n)]  # the spread is 1
    assert reach[0] > 0.5 >= reach[1]


def test_no_number_of_seeds_makes_up_for_too_few_items() -> None:
    assert inference.seeds_needed(Estimate(0.0, 1.0, 1.0, 2, 3, 10), 0.5, 0.05) is None


def test_eight_claims_take_nine_seeds_of_a_sign_flip_test() -> None:
    assert inference.sign_flip_seeds(8) == 9
    assert inference.sign_flip_seeds(1) == 6
    assert 8 * inference.sign_flip_floor(9) <= 0.05 < 8 * inference.sign_flip_floor(8)


def test_seeds_and_items_both_add_to_the_error() -> None:
    found = crossed(np.array([[-2.0, 0.0], [0.0, 2.0]]))  # effects of -1 and 1 of seeds and of items
    assert found.mean == 0.0
    assert found.se == pytest.approx(math.sqrt(2))


def test_items_that_all_agree_leave_the_error_of_seeds() -> None:
    found = crossed(np.array([[1.0, 1.0], [3.0, 3.0]]))
    assert (found.mean, found.item_se, found.df) == (2.0, 0.0, 1.0)
    assert found.se == pytest.approx(1.0)


def test_influences_average_to_micro_f1() -> None:
    items = {
        "f1.true_positives": np.array([1, 0]),
        "f1.predicted": np.array([1, 1]),
        "f1.gold": np.array([1, 1]),
    }
    found = by_item(items, Measure("ner", "f1", None))
    assert found is not None
    assert found.tolist() == [1.0, 0.0]


def draw(rng: np.random.Generator, n: int, *, item_sd: float) -> NDArray[np.float64]:
    """Differences (S, 100) of true mean 0: seeds, items and noise."""
    seeds, items = rng.normal(0, 0.02, (n, 1)), rng.normal(0, item_sd, (1, 100))
    return np.asarray(seeds + items + rng.normal(0, 0.3, (n, 100)))


@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_over_seeds_hold_the_truth_in_95_percent(n: int) -> None:
    samples = np.random.default_rng(n).normal(0, 1, (4000, n))
    found = [stats.interval(sample.tolist()) for sample in samples]
    held = np.mean(
        [row.low <= 0 <= row.high for row in found if row and row.low is not None and row.high is not None]
    )
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("item_sd", [0.1, 0.4])
@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_over_seeds_and_items_hold_the_truth_in_95_percent(n: int, item_sd: float) -> None:
    rng = np.random.default_rng(n)
    bounds = [crossed(draw(rng, n, item_sd=item_sd)).bounds() for _ in range(2000)]
    held = np.mean([low <= 0 <= high for low, high in bounds])
    assert 0.93 <= held <= 0.97


def test_eight_claims_without_truth_are_wrong_in_5_percent_of_studies() -> None:
    rng, n_studies = np.random.default_rng(0), 1000
    wrong = 0
    for study in rng.normal(0, 1, (n_studies, 8, 5)):
        ps = [inference.superiority(seeds_alone(dict(enumerate(row)))).p for row in study]
        wrong += min(stats.holm(ps)) <= 0.05
    assert wrong <= scipy.stats.binom.ppf(0.999, n_studies, 0.05)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_the_detectable_effect_is_seen_in_80_percent(n: int) -> None:
    alpha = 0.05 / 8
    effect = inference.detectable(Estimate(0.0, 1.0, 0.0, n - 1, n), alpha)
    rows = np.random.default_rng(n).normal(effect, 1, (2000, n))
    seen = np.mean([inference.superiority(seeds_alone(dict(enumerate(row)))).p_for <= alpha for row in rows])
    assert 0.77 <= seen <= 0.83
