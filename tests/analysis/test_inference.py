"""Laws of claims' tests, by hand and on simulated differences of known truth."""

import math

import numpy as np
import pytest
import scipy.stats

from bench.analysis import inference, stats
from bench.analysis.inference import Estimate

ONE_TWO_THREE = Estimate(2.0, 1.0, 0.0, 2, 3)  # of 1, 2 and 3: standard error 1 / sqrt(3), df 2


def one_sided(t: float) -> float:
    """The upper tail of t with two degrees of freedom, in closed form."""
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


def of_row(row: "np.typing.NDArray[np.float64]") -> Estimate:
    return Estimate(float(row.mean()), float(row.std(ddof=1)), 0.0, len(row) - 1, len(row))


def test_superiority_doubles_the_smaller_tail() -> None:
    found = inference.superiority(ONE_TWO_THREE)
    assert found.p_for == pytest.approx(2 * one_sided(2 * math.sqrt(3)))
    assert found.p == pytest.approx(scipy.stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    assert found.p_against == 1.0


def test_equivalence_takes_the_worse_of_two_one_sided_tests() -> None:
    assert inference.equivalence(ONE_TWO_THREE, 3.0).p_for == pytest.approx(2 * one_sided(math.sqrt(3)))
    assert inference.equivalence(ONE_TWO_THREE, 1.0).p_for == 1.0  # a mean of 2 is not within 1


def test_seeds_that_all_agree_count_as_in_a_sign_or_permutation_test() -> None:
    assert inference.superiority(Estimate(0.1, 0.0, 0.0, 3, 4)).p_for == 2 * 0.5**4
    assert inference.superiority(Estimate(0.1, 0.0, 0.0, 3, 4, n_samples=2)).p_for == 2 / 70


def test_seeds_needed_are_the_fewest_that_see_the_effect() -> None:
    n = inference.seeds_needed(ONE_TWO_THREE, 0.5, 0.05)
    assert n is not None
    reach = [inference.t_reach(0.05, k - 1) / math.sqrt(k) for k in (n - 1, n)]  # the spread is 1
    assert reach[0] > 0.5 >= reach[1]


def test_two_samples_need_fewer_seeds_than_pairs_that_do_not_correlate() -> None:
    welch = Estimate(0.0, 1.0, 0.0, 8, 5, n_samples=2, df_of_seeds=8)
    assert (inference.seeds_needed(welch, 1.0, 0.01) or 0) < (inference.seeds_needed(of(5), 1.0, 0.01) or 0)


def of(n: int) -> Estimate:
    return Estimate(0.0, 1.0, 0.0, n - 1, n)


def test_no_number_of_seeds_makes_up_for_too_few_items() -> None:
    assert inference.seeds_needed(Estimate(0.0, 1.0, 1.0, 2, 3, 10), 0.5, 0.05) is None


@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_over_seeds_hold_the_truth_in_95_percent(n: int) -> None:
    samples = np.random.default_rng(n).normal(0, 1, (4000, n))
    found = [stats.interval(sample.tolist()) for sample in samples]
    held = np.mean(
        [row.low <= 0 <= row.high for row in found if row and row.low is not None and row.high is not None]
    )
    assert 0.93 <= held <= 0.97


@pytest.mark.parametrize("n", [3, 5, 9])
def test_the_detectable_effect_is_seen_in_80_percent(n: int) -> None:
    alpha = 0.05 / 8
    rows = np.random.default_rng(n).normal(inference.detectable(of(n), alpha), 1, (2000, n))
    seen = np.mean([inference.superiority(of_row(row)).p_for <= alpha for row in rows])
    assert 0.77 <= seen <= 0.83
