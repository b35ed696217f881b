"""The power that a plan states: by closed forms, by simulated outcomes, and by the functions that judge."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from toy_runs import make_run, tables_of, toy_runs

from bench.analysis.claims import Assumed, Claim, Claims, Side, read_claims
from bench.analysis.error_model import Sample, estimate
from bench.analysis.inference import superiority
from bench.analysis.judging import Evidence, LackingError, examine, verdict_of
from bench.analysis.plan import (
    Outlook,
    assumed,
    detectable_by_size,
    outlooks,
    simulated_power,
    spread_of,
    weak,
    with_seeds,
)
from bench.errors import ConfigError

ALPHA, EFFECT = 0.0125, 0.03
NEAR = 0.035  # three standard errors of a simulated power of one half


def claim(test: str = "superiority", effect: float = EFFECT, **changes: object) -> Claim:
    sides = {"left": Side(strategy="clm"), "right": Side(strategy="scratch")}
    return replace(
        Claim(test=test, task="probe", metric="accuracy", smallest_effect=effect, **sides), **changes
    )


@pytest.mark.parametrize(("rho", "n", "df"), [(None, 9, 16), (None, 3, 4), (0.5, 9, 8)])
def test_without_items_power_is_that_of_the_t_test(rho: float | None, n: int, df: int) -> None:
    """Two independent samples, or pairs with a correlation of a half: the noncentral t distribution."""
    own = with_seeds(assumed(Assumed(seed_sd=0.02, correlation=rho)), n)
    shift = EFFECT / math.sqrt(0.02**2 * 2 * (1 - (rho or 0)) / n)
    exact = scipy.stats.nct.sf(scipy.stats.t.isf(ALPHA / 2, df), df, shift)
    assert own.df == df
    assert simulated_power(claim(), own, ALPHA) == pytest.approx(exact, abs=NEAR)


def test_with_many_items_and_seeds_power_is_normal_and_has_both_errors() -> None:
    given = Assumed(seed_sd=0.02, item_sd=0.4, n_items=2000)
    own = with_seeds(assumed(given), 200, items=2)
    assert own.n_items == 4000
    assert own.se == pytest.approx(math.sqrt(2 * 0.02**2 / 200 + 0.4**2 / 4000))
    exact = scipy.stats.norm.sf(scipy.stats.norm.isf(ALPHA / 2) - EFFECT / own.se)
    assert simulated_power(claim(), own, ALPHA) == pytest.approx(exact, abs=NEAR)


def test_power_for_equivalence_is_that_of_two_one_sided_tests() -> None:
    own = with_seeds(assumed(Assumed(seed_sd=0.02)), 12)
    bound, df = scipy.stats.t.isf(ALPHA / 2, 22), 22
    scale = np.sqrt(np.random.default_rng(1).chisquare(df, 20000) / df)
    half = EFFECT / own.se - bound * scale  # how far the mean may lie from 0
    exact = np.mean(np.where(half > 0, 2 * scipy.stats.norm.cdf(half) - 1, 0))
    assert simulated_power(claim("equivalence"), own, ALPHA) == pytest.approx(exact, abs=NEAR)


def test_a_plan_states_the_share_of_simulated_studies_in_which_the_judge_finds_the_effect() -> None:
    """Outcomes by seed and item, estimated and judged as those of runs; nothing of the plan is used."""
    rng, n_seeds, n_items = np.random.default_rng(0), 5, 200
    seed_sd, item_sd, noise = 0.015, 0.15, 0.2
    asked, found, n = claim(effect=0.05), 0, 600
    for study in range(n):
        sides = []
        for side, mean in enumerate((0.05, 0.0)):
            outcomes = mean + rng.normal(0, seed_sd, (n_seeds, 1)) + rng.normal(0, item_sd / 2**0.5, n_items)
            outcomes = outcomes + rng.normal(0, noise, (n_seeds, n_items))
            names = tuple((f"{study} {side} {i}",) for i in range(n_seeds))
            sides.append(Sample(tuple(range(n_seeds)), outcomes.mean(axis=1), outcomes, names))
        own = estimate(sides, (1.0, -1.0))
        assert own is not None
        verdict = verdict_of(asked, Evidence(estimate=own, decided=superiority(own)), ALPHA)
        found += verdict in ("supported", "supported in direction only")
    score_sd = math.sqrt(seed_sd**2 + noise**2 / n_items)  # of a run's score, which is a mean over items
    given = Assumed(seed_sd=score_sd, item_sd=item_sd, n_items=n_items)
    stated = simulated_power(asked, with_seeds(assumed(given), n_seeds), ALPHA)
    assert 0.3 < stated < 0.9
    assert found / n == pytest.approx(stated, abs=0.06)


def test_a_pilot_gives_the_spread_that_its_verdict_has() -> None:
    pilot = tables_of(toy_runs())
    spread = spread_of(claim(), pilot)
    assert spread.estimate == examine(pilot, claim()).estimate
    assert "independent seeds" in spread.source
    own = Outlook("a", claim(), ALPHA, 3, spread)
    assert own.planned is not None
    assert own.planned.df == pytest.approx(spread.estimate.df)
    n = own.seeds_for_power
    assert n is not None
    table = detectable_by_size(own, [2, n - 1, n], [1.0])
    assert [values[0] <= EFFECT for values in table.values()] == [False, True]
    assert weak([own]) == [own]
    assert weak([replace(own, n_seeds=n + 1)]) == []
    assert replace(own, n_seeds=2).power == 0.0


def test_a_pilot_of_other_conditions_gives_their_mean_spread() -> None:
    runs = [make_run(s, i, 0.5 + 0.01 * i) for s in ("mlm", "rtd", "ul2") for i in range(3)]
    other = claim()
    spread = spread_of(other, tables_of(runs))
    assert spread.estimate.seed_sd == pytest.approx(0.01 * math.sqrt(2))
    assert "3 pairs" in spread.source
    with pytest.raises(LackingError, match="no task 'probe'"):
        spread_of(other, tables_of([make_run("mlm", i, None) for i in range(3)]))
    with pytest.raises(LackingError, match="crossover"):
        spread_of(claim("crossover"), tables_of(runs))


def test_only_primary_claims_are_planned_for_at_their_error_rate() -> None:
    given = Assumed(seed_sd=0.01)
    both = {"a": claim(primary=True, assumed=given), "b": claim(assumed=given)}
    [own] = outlooks(Claims("2026-12-01", both), {"a": 5, "b": 5}, None)
    assert own.name == "a"
    assert own.alpha == pytest.approx(0.04)
    unmarked = {name: replace(one, primary=False, assumed=None) for name, one in both.items()}
    found = outlooks(Claims("2026-12-01", unmarked), {"a": 5, "b": 5}, None)
    assert [(o.name, o.power) for o in found] == [("a", None), ("b", None)]
    assert "plan.pilot=STUDY" in found[0].why_not


@pytest.mark.parametrize(
    ("assumed", "problem"),
    [
        ({"seed_sd": -1}, "seed_sd and item_sd of 0 or more"),
        ({"seed_sd": 0.1, "item_sd": 0.4}, r"n_items=None: item_sd needs the number of items"),
        ({"seed_sd": 0.1, "correlation": 1}, "correlation=1.0: use a number between"),
        ({"seed_sd": 0.1, "sd": 1}, "claims.a.*sd"),
    ],
)
def test_a_wrong_assumption_is_named(assumed: dict[str, float], problem: str, tmp_path: Path) -> None:
    node = {
        **{"statement": "s", "source": "s", "test": "superiority", "task": "probe", "metric": "accuracy"},
        **{"left": {"strategy": "clm"}, "right": {"strategy": "mlm"}, "smallest_effect": 0.1, "reason": "r"},
    }
    text = yaml.safe_dump({"written": "2026-12-01", "claims": {"a": node | {"assumed": assumed}}})
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_claims(tmp_path)
