"""Laws of scaling fits: known exponents come back, what cannot be known is refused, crossings are found."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from toy_runs import ToyRun, make_run, tables_of, toy_tables

from bench.analysis.format import plain
from bench.analysis.frames import Condition
from bench.analysis.inference import BEYOND
from bench.analysis.scaling import (
    MAX_EXTRAPOLATION,
    Fit,
    HeldOut,
    Observations,
    effective_tokens,
    fit,
    held_out,
    predict,
)
from bench.analysis.scaling_data import observe, quantities
from bench.analysis.stats import Interval
from bench.records import CurvePoint, Spent
from bench.report.figures.base import render
from bench.report.figures.scaling import Scaling
from bench.report.tables.scaling import budget_crossings, fits_cross, overtakings, scaling

E, A, ALPHA, B, BETA, R = (
    1.7,
    400.0,
    0.34,
    410.0,
    0.28,
    15.0,
)  # as Hoffmann et al. and Muennighoff et al. found
SIZES = (1e6, 3e6, 1e7, 3e7)
TOKENS = (1e7, 3e7, 1e8, 3e8, 1e9)
FIGURE = Scaling(Scaling.Options())


def simulated(
    sizes: tuple[float, ...] = SIZES,
    tokens: tuple[float, ...] = TOKENS,
    epochs: tuple[float, ...] = (1.0,),
    *,
    n_seeds: int = 8,
    noise: float = 0.003,
) -> Observations:
    """Losses with noise of a seed, of which half is the same in all its cells."""
    n, d, passes = np.array(list(product(sizes, tokens, epochs))).T
    losses = E + A / n**ALPHA + B / effective_tokens(d, passes, R) ** BETA
    rng = np.random.default_rng(3)
    own, shared = rng.standard_normal((n_seeds, len(n))), rng.standard_normal((n_seeds, 1))
    return Observations(n, d, passes, losses * np.exp(noise * (own + shared) / np.sqrt(2)))


def fitted(seen: Observations) -> Fit:
    found = fit(seen)
    assert isinstance(found, Fit), found
    return found


def assert_covers(found: Interval | None, truth: float) -> None:
    """Within twice the band's half width: the band itself misses one time in twenty."""
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half = (found.high - found.low) / 2
    assert 0 < half < 0.2 * truth
    assert abs(found.mean - truth) < 2 * half


def test_known_exponents_come_back():
    found = fitted(simulated())
    for name, truth in (("E", E), ("alpha", ALPHA), ("beta", BETA)):
        assert_covers(found.exponent(name), truth)
    assert found.exponent("R*") is None


def test_without_noise_they_come_back_exactly():
    found = fitted(simulated(noise=0.0, n_seeds=1))
    exponents = [found.exponent(name) for name in ("E", "alpha", "beta")]
    assert [e.mean for e in exponents if e] == pytest.approx([E, ALPHA, BETA], rel=0.02)


def test_one_model_size_has_no_exponent_of_size():
    found = fitted(simulated(sizes=(1e6,)))
    assert found.exponent("alpha") is None
    assert_covers(found.exponent("beta"), BETA)
    assert_covers(found.exponent("E"), E + A / 1e6**ALPHA)
    assert "no term in N" in str(predict(found, 2e6, 1e8))


def test_one_amount_of_training_has_no_exponent_of_data():
    found = fitted(simulated(sizes=(*SIZES, 1e8), tokens=(1e9,)))
    assert found.exponent("beta") is None
    assert_covers(found.exponent("alpha"), ALPHA)


def test_the_decay_of_repeats_comes_back():
    found = fitted(simulated(sizes=(1e6,), epochs=(1.0, 4.0, 16.0, 60.0)))
    assert_covers(found.exponent("R*"), R)
    assert_covers(found.exponent("beta"), BETA)


def test_a_repeated_position_is_worth_at_most_a_new_one():
    worth = effective_tokens(np.full(3, 1e6), np.array([0.5, 2.0, 1000.0]), R)
    assert worth[0] == 1e6
    assert 0.9e6 < worth[1] < 1e6
    assert worth[2] == pytest.approx(1000 * (1 + R))  # 1000 unique positions, and no more than R* repeats


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (simulated(sizes=(1e6,), tokens=TOKENS[:3]), "3 cells, 3 parameters: needs 4"),
        (simulated(sizes=SIZES[:1], tokens=TOKENS[:1]), "nothing to fit"),
        (simulated(sizes=SIZES[:2]), "2 model sizes cannot fix an exponent: needs 3"),
        (simulated(tokens=TOKENS[:2]), "2 amounts of training cannot fix an exponent: needs 3"),
        (replace(simulated(), values=np.zeros((2, 20))), "no logarithm"),
        (replace(simulated(), values=np.zeros((0, 20))), "no seed"),
    ],
)
def test_a_fit_that_cells_cannot_carry_is_refused_with_the_reason(seen: Observations, reason: str):
    assert reason in str(fit(seen))
    assert "\n" not in str(fit(seen))


def test_the_held_out_check_finds_a_law_that_holds_and_one_that_breaks():
    seen = simulated()
    held = held_out(seen)
    assert isinstance(held, HeldOut)
    assert (held.parameters, held.tokens) == (3e7, 1e9)
    assert held.measured.mean == pytest.approx(seen.values[:, -1].mean())
    assert held.predicted.mean == pytest.approx(held.measured.mean, rel=0.005)
    broken = seen.values.copy()
    broken[:, -1] *= 1.1
    worse = held_out(replace(seen, values=broken))
    assert isinstance(worse, HeldOut)
    assert worse.is_inside is False
    assert worse.predicted == held.predicted  # what is held out has no say


def test_the_held_out_check_is_refused_where_too_few_cells_remain():
    assert "3 cells, 3 parameters: needs 4" in str(held_out(simulated(sizes=(1e6,), tokens=TOKENS[:4])))


def test_nothing_is_predicted_beyond_the_factor():
    found = fitted(simulated())
    near = predict(found, 3e7, MAX_EXTRAPOLATION * 1e9)
    assert isinstance(near, Interval)
    assert near.mean == pytest.approx(E + A / 3e7**ALPHA + B / 4e9**BETA, rel=0.01)
    assert "D = 4.1e+09 is 4.1 times the largest measured" in str(predict(found, 3e7, 4.1e9))
    assert "N = 1.5e+08 is 5 times the largest measured" in str(predict(found, 1.5e8, 1e9))


def test_one_seed_has_no_band():
    found = fitted(simulated(n_seeds=1))
    assert found.exponent("beta").low is None  # type: ignore[union-attr]
    held = held_out(found.seen)
    assert isinstance(held, HeldOut)
    assert held.is_inside is None


def test_the_same_observations_give_the_same_refits():
    assert fitted(simulated()).refits.tobytes() == fitted(simulated()).refits.tobytes()


# From records

BUDGETS = (30_000, 100_000, 300_000, 1_000_000, 3_000_000)


def law(strategy: str, tokens: float) -> float:
    """Bits per byte: mlm falls faster, and they are equal at D = 300,000."""
    exponent = {"clm": 0.2, "mlm": 0.5}[strategy]
    return 1.0 + (3e5 / tokens) ** exponent


def grid(budgets: tuple[int, ...] = BUDGETS, n_seeds: int = 5, *, draw: int = 0) -> list[ToyRun]:
    rng = np.random.default_rng(draw)
    runs = []
    for strategy, tokens, seed in product(("clm", "mlm"), budgets, range(n_seeds)):
        value = law(strategy, tokens) + 0.01 * rng.standard_normal()
        run = make_run(strategy, seed, value, budget=f"{tokens:08d}")
        [result] = run.results
        score = replace(result.scores[0], metric="bits_per_byte", chance=8.0, higher_is_better=False)
        spent = Spent(steps=1, forward_tokens=tokens, epochs=0.5, unique_bytes=tokens)
        curve = (CurvePoint(1, tokens, 1.0, 2.0, value),)
        runs.append(replace(run, spent=spent, curve=curve, results=(replace(result, scores=(score,)),)))
    return runs


def test_two_laws_cross_where_they_are_equal_and_intervals_cover_it():
    covered = 0
    for draw in range(10):
        tried, [row] = overtakings(tables_of(grid(n_seeds=8, draw=draw)))
        assert tried == 1
        assert (row.early.strategy, row.late.strategy, row.basis) == ("clm", "mlm", "fits")
        assert row.point.at == pytest.approx(3e5, rel=0.05)
        assert row.point.low is not None
        assert row.point.high is not None
        assert row.point.high < 1.2 * row.point.low
        covered += row.point.low <= 3e5 <= row.point.high
    assert covered >= 7  # a band that covers 90 % falls below that once in 78 such tests; draws are fixed


def test_too_few_budgets_for_a_fit_cross_between_those_measured():
    _, [row] = overtakings(tables_of(grid(BUDGETS[1:4])))
    assert row.basis == "between budgets"
    assert row.point.at == pytest.approx(3e5, rel=0.2)


def test_a_crossing_beyond_the_budgets_is_marked_extrapolated():
    view = budget_crossings(tables_of(grid((10_000, 20_000, 40_000, 80_000, 160_000))))
    assert view is not None
    assert [plain(row[-1]) for row in view.rows] == ["fits, extrapolated"]


def test_parallel_laws_do_not_cross():
    early = fitted(simulated(sizes=(1e6,)))
    late = fitted(replace(early.seen, values=early.seen.values * 1.1))
    assert fits_cross(early, late, (1e6, 1e6), 1e7).at == BEYOND


def test_losses_of_two_objectives_are_never_held_against_each_other():
    _, found = overtakings(tables_of(grid()))
    assert [row.quantity.measure is None for row in found] == [False]


def test_a_share_is_fitted_as_its_error_and_a_lost_cell_left_out():
    runs = [
        make_run("clm", seed, None if b == 3 else 0.5, budget=f"{b}kb")
        for b in range(1, 4)
        for seed in (0, 1)
    ]
    tables = tables_of(runs)
    error = quantities(tables)[-1]
    assert error.label.startswith("1 − probe: accuracy")
    seen = observe(tables, error, Condition("clm", ""))
    assert seen.values.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_the_view_says_why_there_is_no_fit_and_what_the_check_found():
    few = scaling(tables_of(grid(BUDGETS[:3])))
    assert few is not None
    assert {plain(row[-1]) for row in few.rows} == {"no fit, no check: 3 cells, 3 parameters: needs 4"}
    enough = scaling(tables_of(grid()))
    assert enough is not None
    assert len(enough.rows) == 4
    assert all("the band" in plain(row[-1]) for row in enough.rows)


def test_a_study_of_one_budget_has_nothing_to_scale():
    assert scaling(toy_tables()) is None
    assert budget_crossings(toy_tables()) is None
    assert not FIGURE.applies(toy_tables())


def test_the_figure_is_the_same_twice_and_its_caption_says_the_exponents():
    first, second = (render(partial(FIGURE.draw, tables_of(grid())), "scaling") for _ in range(2))
    assert first == second
    assert "probe: bits_per_byte" in FIGURE.caption(tables_of(grid()))
    assert "held-out check: " in FIGURE.caption(tables_of(grid()))
