"""Laws of aggregates over tasks, on matrices (seeds x tasks) that can be checked by hand."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from toy_runs import ToyRun, make_run, tables_of

from bench.analysis import stats
from bench.analysis.format import plain
from bench.analysis.frames import Condition, Tables
from bench.analysis.stats import LEVEL, resamples
from bench.config.build import build
from bench.records import Score
from bench.report.figures.base import Figure, render
from bench.report.tables import findings
from bench.report.tables.findings import across_tasks, improvement, suite

CONF = Path(__file__).resolve().parents[2] / "conf"
TASKS = ("a", "b", "c")


@pytest.fixture(autouse=True)
def every_gate_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds around chance open no gate, which is tested in test_gate.py."""
    monkeypatch.setattr(findings, "informative", lambda tables: tables.headlines)


SKEWED = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 10.0]])  # (4 seeds, 2 tasks)


def test_the_interquartile_mean_is_of_the_middle_half_of_all_scores():
    assert stats.interquartile_mean(SKEWED).mean == 0.75  # of 0 0 0 1 1 1 1 10 it keeps 0 1 1 1
    assert stats.mean_over_tasks(SKEWED).mean == 14 / 8


def test_the_interquartile_mean_ignores_what_an_outlier_is():
    wild = SKEWED.copy()
    wild[3, 1] = 1e6
    assert stats.interquartile_mean(wild).mean == 0.75


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_the_band_of_a_profile_is_that_of_all_resamples(n_seeds: int):
    scores = np.random.default_rng(0).normal(size=(n_seeds, 3))
    thresholds = np.linspace(-2, 2, 9)
    found = stats.profile(scores, thresholds)
    shares = (scores[resamples(n_seeds)][..., None] > thresholds).mean(axis=(1, 2))  # (R, K)
    low, high = np.quantile(shares, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    np.testing.assert_allclose(found.low, low, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.high, high, rtol=0, atol=1e-12)
    assert (found.high > found.low).any()


def test_improvement_is_the_share_of_pairs_won_averaged_over_tasks():
    left = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    right = np.array([[2.0, 9.0]] * 4)
    found = stats.probability_of_improvement(left, right)
    assert found.mean == ((2 + 0.5) / 4 + 0) / 2  # wins with 3 and 4, ties with 2; the other task never
    assert stats.probability_of_improvement(right, left).mean == pytest.approx(1 - found.mean)
    assert stats.probability_of_improvement(left, left).mean == 0.5


def test_a_profile_is_the_share_of_scores_strictly_above():
    found = stats.profile(SKEWED, np.array([-1.0, 0.0, 0.5, 1.0, 10.0]))
    assert found.share.tolist() == [1.0, 5 / 8, 5 / 8, 1 / 8, 0.0]
    assert found.low is not None
    assert found.high is not None
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert (found.low[0], found.high[-1]) == (1.0, 0.0)


def test_more_tasks_of_the_same_checkpoints_add_no_certainty():
    """Copies of one task: resampled seed by seed the interval stays; task by task it would shrink."""
    task = np.array([0.1, 0.4, 0.5, 0.9, 0.2])
    low, high = np.quantile(task[resamples(5)].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    for n_tasks in (1, 16):
        found = stats.mean_over_tasks(np.tile(task[:, None], n_tasks))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_resamples_of_all_aggregates_are_the_same_seeds():
    """The mean over resampled matrices, written out, is what the shares of seeds give."""
    drawn = SKEWED[resamples(4)].mean(axis=(1, 2))
    found = stats.mean_over_tasks(SKEWED)
    assert (found.low, found.high) == tuple(pytest.approx(q) for q in np.quantile(drawn, [0.025, 0.975]))
    trimmed = np.sort(SKEWED[resamples(4)].reshape(-1, 8), axis=1)[:, 2:-2].mean(axis=1)
    middle = stats.interquartile_mean(SKEWED)
    assert (middle.low, middle.high) == tuple(pytest.approx(q) for q in np.quantile(trimmed, [0.025, 0.975]))


def test_whole_seeds_cover_the_truth_more_often_than_tasks_one_by_one():
    """Three seeds, each with an effect on all of 14 tasks; the true interquartile mean is by symmetry 0.5."""
    rng, tasks = np.random.default_rng(0), np.linspace(0, 1, 14)
    whole, single, n = 0, 0, 200
    for _ in range(n):
        scores = tasks + 0.02 * rng.normal(size=(3, 1)) + 0.02 * rng.normal(size=(3, 14))
        found = stats.interquartile_mean(scores)
        drawn = scores[rng.integers(0, 3, (500, 3, 14)), np.arange(14)].reshape(500, -1)
        low, high = np.quantile(np.sort(drawn, axis=1)[:, 10:-10].mean(axis=1), [0.025, 0.975])
        whole += found.low <= 0.5 <= found.high
        single += low <= 0.5 <= high
    assert 0.65 < whole / n < 0.85
    assert single / n < 0.62


def test_one_seed_has_no_interval():
    one = SKEWED[3:]
    for found in (
        stats.mean_over_tasks(one),
        stats.interquartile_mean(one),
        stats.probability_of_improvement(one, one),
    ):
        assert (found.low, found.high, found.n) == (None, None, 1)
    assert stats.profile(one, np.array([0.0])).low is None


def run(strategy: str, seed: int, *values: float, more: tuple[Score, ...] = ()) -> ToyRun:
    """A run with accuracies on tasks a, b, c, ..., whose chance is 0.5."""
    names = [chr(ord("a") + i) for i in range(len(values))]
    scores = [Score(name, "accuracy", v, 0.5, 100) for name, v in zip(names, values, strict=True)]
    return make_run(strategy, seed, 0.0, scores=[*scores, *more])


def two_arms(*more: ToyRun) -> Tables:
    runs = [run("scratch", 0, 0.5, 0.6, 0.7), run("scratch", 1, 0.5, 0.5, 0.5)]
    runs += [run("clm", 0, 0.75, 0.8, 1.0), run("clm", 1, 0.75, 0.75, 0.75)]
    return tables_of([*runs, *more])


def test_scores_are_scaled_from_chance_to_the_ceiling():
    found = suite(two_arms())
    assert found is not None
    scores = found.matrices[Condition("clm", "")].scores
    assert scores == pytest.approx(np.array([[0.5, 0.6, 1.0], [0.5, 0.5, 0.5]]))
    assert found.matrices[Condition("scratch", "")].scores[1] == pytest.approx([0, 0, 0])


def test_measures_without_chance_or_known_ceiling_are_left_out_and_named():
    lower = Score("bytes", "bits_per_byte", 0.5, 0.6, 10, higher_is_better=False)
    unknown = Score("poems", "beauty", 0.5, 0.1, 10)  # within [0, 1] by chance: nothing says that 1 is best
    no_chance, percent = Score("tags", "f1", 0.5, None, 10), Score("quiz", "f1", 55.0, 0.1, 10)
    runs = [
        run(name, 0, 0.5, 0.6, 0.7, more=(lower, unknown, no_chance, percent)) for name in ("scratch", "clm")
    ]
    found = suite(tables_of(runs))
    assert found is not None
    assert [m.task for m in found.measures] == list(TASKS)
    assert [m.task for m in found.unscaled] == ["bytes", "poems", "quiz", "tags"]
    view = across_tasks(tables_of(runs))
    assert view is not None
    assert "(4): bytes, poems, quiz, tags." in view.note


def test_only_tasks_that_every_strategy_has_are_aggregated():
    found = suite(two_arms(run("mlm", 0, 0.9, 0.9, 0.9, 0.9), run("mlm", 1, 0.9, 0.9, 0.9, 0.9)))
    assert found is not None
    assert [m.task for m in found.measures] == list(TASKS)
    assert [m.task for m in found.unshared] == ["d"]


def test_a_strategy_with_too_few_tasks_is_left_out_and_named_and_costs_the_others_no_task():
    tables = two_arms(run("clip", 0, 0.9), run("clip", 1, 0.9))
    found, view = suite(tables), across_tasks(tables)
    assert found is not None
    assert view is not None
    assert found.excluded == (Condition("clip", ""),)
    assert [m.task for m in found.measures] == list(TASKS)
    assert view.note.endswith(
        "Strategies not included, because they lack tasks or a seed with all tasks: clip."
    )


def test_a_seed_that_lost_a_run_is_not_aggregated_and_is_told():
    view = across_tasks(two_arms(make_run("clm", 2, None)))
    assert view is not None
    assert [plain(row[-1]) for row in view.rows] == ["2", "2 of 3"]


def test_improvement_over_scratch_takes_the_seeds_of_both():
    tables = two_arms(run("clm", 2, 0.0, 0.0, 0.0))  # loses everything, but scratch has no such seed
    found = suite(tables)
    assert found is not None
    chances = improvement(tables, found, Condition("clm", ""))
    assert chances is not None
    assert (chances.mean, chances.n) == (1.0, 2)
    assert improvement(tables, found, Condition("scratch", "")) is None


def test_two_tasks_are_no_suite():
    tables = tables_of([run(name, 0, 0.5, 0.6) for name in ("scratch", "clm")])
    assert suite(tables) is None
    assert across_tasks(tables) is None


def test_the_figure_says_who_is_nowhere_below_scratch():
    node = OmegaConf.to_container(OmegaConf.load(CONF / "figure" / "performance_profiles.yaml"))
    figure = build(node["performance_profiles"], Figure, "figure")  # type: ignore[type-abstract,call-overload,index]
    tables = two_arms(run("mlm", 0, 0.1, 0.2, 0.7), run("mlm", 1, 0.1, 0.1, 0.9))
    caption = figure.caption(tables)
    assert "Never below the profile of scratch: clm." in caption
    assert "and below it at others: mlm" in caption
    assert "clm 0.525 (2 seeds, no interval)" in caption  # keeps .5 .5 .5 .6 of six
    assert render(partial(figure.draw, tables), "x") == render(partial(figure.draw, tables), "x")
    assert not figure.applies(tables_of([make_run("clm", 0, 0.3)]))
