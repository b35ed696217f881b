"""Verdicts on simulated scores of known truth: false in 5 % at most, and found with the stated power.

Samples are drawn by seed and item as runs would give them and judged by the functions that judge claims;
`test_studies_of_eight_claims` takes the whole way, from records to verdicts.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from toy_runs import ToyRun, make_run, tables_of

from bench.analysis.claims import PRIMARY_SHARE, Claim, Claims, Side
from bench.analysis.error_model import Sample, estimate, summed
from bench.analysis.frames import load
from bench.analysis.inference import Estimate, detectable, superiority, tost_reach
from bench.analysis.judging import (
    Evidence,
    Judged,
    Verdict,
    crosses_within,
    judge,
    log_variance,
    slope_weights,
    verdict_of,
)
from bench.records import EvaluationRecord, Score, items_path, write_evaluation, write_record

Array = NDArray[np.float64]

ALPHA, N_SEEDS, N_ITEMS, N = 0.05, 5, 60, 1000
MARGIN = 0.04
SEED_SD, ITEM_SD, NOISE = 0.02, 0.1, 0.3  # of seeds, of an item's difference, and of one outcome
_NAMES = itertools.count()


def condition(
    rng: np.random.Generator, mean: float, items: Array, seeds: Array | None = None, origin: str = ""
) -> Sample:
    """A condition's outcomes (S, I); `items` (I,) are shared, and so are the effects of seeds if given."""
    own = rng.normal(0, SEED_SD, N_SEEDS) if seeds is None else seeds
    outcomes = mean + own[:, None] + items + rng.normal(0, ITEM_SD / np.sqrt(2), N_ITEMS)
    outcomes = outcomes + rng.normal(0, NOISE, outcomes.shape)
    name = origin or str(next(_NAMES))
    names = tuple((f"{name}-{i}",) for i in range(N_SEEDS))
    return Sample(tuple(range(N_SEEDS)), outcomes.mean(axis=1), outcomes, names)


def known(samples: Sequence[Sample], weights: Sequence[float] = (1.0, -1.0)) -> Estimate:
    found = estimate(samples, weights)
    assert found is not None
    return found


def contrast(rng: np.random.Generator, effect: float) -> Estimate:
    """A difference of two strategies."""
    items = rng.normal(0.5, 0.3, N_ITEMS)
    return known((condition(rng, effect, items), condition(rng, 0.0, items)))


SHARES = (0.0, 25.0, 50.0, 75.0, 100.0)


def slope(rng: np.random.Generator, effect: float) -> Estimate:
    """The change from the first to the last level, where each seed's runs share a trunk."""
    items, seeds = rng.normal(0.5, 0.3, N_ITEMS), rng.normal(0, 0.05, N_SEEDS)
    samples = [condition(rng, effect * share / 100, items, seeds, "trunk") for share in SHARES]
    return known(samples, [100 * weight for weight in slope_weights(SHARES, "linear")])


N_FITS = 5


def spread(rng: np.random.Generator, effect: float) -> Estimate:
    """The logarithm of the ratio of variances over fits; scores have heavy tails, and checkpoints differ."""
    sides = []
    for scale in (1.0, np.exp(effect / 2)):
        fits = scale * rng.standard_t(8, (9, N_FITS)) + rng.normal(0, 3, (9, 1))
        logs = np.array([log_variance(own) for own in fits])
        names = tuple((f"{next(_NAMES)}",) for _ in range(9))
        sides.append(Sample(tuple(range(9)), logs, None, names))
    return known(sides, (-1.0, 1.0))


Draw = Callable[[np.random.Generator, float], Estimate]
OPPOSITE: set[Verdict] = {"opposite direction", "too small to matter", "not as large as claimed"}
DIRECTED: set[Verdict] = {"supported", "supported in direction only", "opposite direction"}
RATIO = float(np.log(4.0))


def asked(test: str) -> Claim:
    return Claim(test=test, smallest_effect=4.0 if test == "variance_ratio" else MARGIN)


def rate(test: str, drawn: Draw, effect: float, wanted: set[Verdict], n: int = N) -> float:
    """The share of simulated studies with one of these verdicts."""
    rng, claim = np.random.default_rng(0), asked(test)
    estimates = [drawn(rng, effect) for _ in range(n)]
    found = [Evidence(estimate=own, decided=superiority(own)) for own in estimates]
    return float(np.mean([verdict_of(claim, evidence, ALPHA) in wanted for evidence in found]))


def at_most(level: float, n: int) -> int:
    """What a count with this rate exceeds once in a thousand tests."""
    return int(scipy.stats.binom.ppf(0.999, n, level))


@pytest.mark.parametrize(
    ("test", "drawn", "truth", "false"),
    [
        ("superiority", contrast, 0.0, DIRECTED),
        ("superiority", contrast, MARGIN, OPPOSITE),
        ("non_inferiority", contrast, -MARGIN, {"supported", "contradicted"}),
        ("equivalence", contrast, MARGIN, {"supported", "contradicted"}),
        ("slope", slope, 0.0, DIRECTED),
        ("slope", slope, MARGIN, OPPOSITE),
        ("variance_ratio", spread, 0.0, DIRECTED),
        ("variance_ratio", spread, RATIO, OPPOSITE),
    ],
)
def test_a_verdict_is_false_in_5_percent_at_most(
    test: str, drawn: Draw, truth: float, false: set[Verdict]
) -> None:
    assert rate(test, drawn, truth, false) * N <= at_most(ALPHA, N)


def typical(drawn: Draw) -> Estimate:
    """An estimate with the mean squared error of many, whose degrees of freedom are typical."""
    rng = np.random.default_rng(1)
    many = [drawn(rng, 0.0) for _ in range(300)]
    variance = float(np.mean([own.se**2 for own in many]))
    df = float(np.median([own.df for own in many]))
    return Estimate(0.0, float(np.sqrt(variance * N_SEEDS)), 0.0, df, N_SEEDS)


@pytest.mark.parametrize(
    ("test", "drawn"), [("superiority", contrast), ("slope", slope), ("variance_ratio", spread)]
)
def test_what_is_said_to_be_detectable_is_found_in_80_percent(test: str, drawn: Draw) -> None:
    effect = detectable(typical(drawn), ALPHA)
    found: set[Verdict] = {"supported", "supported in direction only", "too small to matter"}
    assert 0.74 <= rate(test, drawn, effect, found) <= 0.90


def test_equivalence_and_non_inferiority_have_the_stated_power() -> None:
    own = typical(contrast)
    margin = tost_reach(ALPHA, own.df) * own.se
    rng = np.random.default_rng(2)
    equal = Claim(test="equivalence", smallest_effect=margin)
    no_worse = Claim(test="non_inferiority", smallest_effect=detectable(own, ALPHA))
    found = [Evidence(estimate=e, decided=superiority(e)) for e in (contrast(rng, 0.0) for _ in range(N))]
    for claim in (equal, no_worse):
        assert 0.74 <= np.mean([verdict_of(claim, one, ALPHA) == "supported" for one in found]) <= 0.90


def crossing_rate(at_low: float, at_high: float, alpha: float = ALPHA) -> float:
    """How often a crossover within 20 to 80 labels is supported, with these gains at its ends."""
    rng, n_supported = np.random.default_rng(0), 0
    for _ in range(N):
        items, sides = rng.normal(0.5, 0.3, N_ITEMS), {}
        for x, gain in ((20, at_low), (80, at_high)):
            sides[x] = condition(rng, gain, items), condition(rng, 0.0, items)
        n_supported += crosses_within(sides, (20, 80), 1).p_for <= alpha
    return n_supported / N


def test_a_crossover_is_supported_in_5_percent_at_its_edge_and_in_80_percent_within() -> None:
    own = typical(contrast)
    far = 5 * own.se
    assert 0.02 * N <= crossing_rate(0.0, -far) * N <= at_most(ALPHA, N)
    assert crossing_rate(0.0, 0.0) * N <= at_most(ALPHA, N)
    reach = detectable(own, 2 * ALPHA)  # one-sided; both ends must be found
    assert crossing_rate(reach * 1.2, -reach * 1.2) >= 0.74


def test_seeds_that_do_not_correlate_lose_power_by_pairing_and_no_size_without() -> None:
    """Five seeds, no items: Welch's test keeps its size and finds more than the paired test."""
    rng, powers = np.random.default_rng(0), {}
    for effect in (0.0, 0.045):
        counts = np.zeros(2)
        for _ in range(2000):
            sides = [
                Sample(tuple(range(5)), rng.normal(mean, SEED_SD, 5), None, tuple((i,) for i in range(5)))
                for mean in (effect, 0.0)
            ]
            paired = known([summed([(1.0, sides[0]), (-1.0, sides[1])])], (1.0,))
            apart = Sample(sides[1].seeds, sides[1].scores, None, tuple((-i,) for i in range(1, 6)))
            counts += [superiority(own).p <= ALPHA for own in (paired, known((sides[0], apart)))]
        powers[effect] = counts / 2000
    assert powers[0.0][1] * 2000 <= at_most(ALPHA, 2000)
    assert powers[0.045][1] > powers[0.045][0] + 0.03


@pytest.mark.parametrize(("rho", "most"), [(0.5, 0.03), (-0.3, 0.10)])
def test_what_a_correlation_that_is_ignored_costs(rho: float, most: float) -> None:
    """Positive correlation makes the unpaired test cautious; negative correlation, mild in our records, "
    "bold."""
    rng, wrong, n = np.random.default_rng(0), 0, 2000
    draws = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (n, 9))
    for left, right in draws.transpose(0, 2, 1):
        sides = [
            Sample(tuple(range(9)), own, None, tuple((next(_NAMES),) for _ in range(9)))
            for own in (left, right)
        ]
        wrong += superiority(known(sides)).p <= ALPHA
    assert wrong <= at_most(most, n)


def test_primary_and_secondary_claims_together_are_false_in_5_percent_of_studies() -> None:
    claims = Claims(
        "2026-12-01",
        {f"{i}": Claim(test="superiority", smallest_effect=MARGIN, primary=i < 4) for i in range(10)},
    )
    rates = claims.error_rates(ALPHA)
    assert sum(rates.values()) == pytest.approx(ALPHA)
    assert rates["0"] == pytest.approx(PRIMARY_SHARE * ALPHA / 4)
    rng, wrong, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        found = {name: contrast(rng, 0.0) for name in claims.claims}
        wrong += any(superiority(found[name]).p <= rates[name] for name in found)
    assert wrong <= at_most(ALPHA, n)


N_CLAIMS, TOGETHER = 8, 25  # simulated studies of one table, since making a table takes longest


def simulated(rng: np.random.Generator, effects: Sequence[float]) -> list[ToyRun]:
    """Two strategies on one task per effect."""
    return [
        make_run(strategy, seed, 0.0, scores=[score(task, value) for task, value in enumerate(values[seed])])
        for strategy, means in (("mlm", np.zeros(len(effects))), ("clm", np.array(effects)))
        for values in [0.5 + rng.normal(means, SEED_SD, (N_SEEDS, len(effects)))]
        for seed in range(N_SEEDS)
    ]


def score(task: int, value: float) -> Score:
    return Score(f"task_{task}", "accuracy", float(value), 0.25, 100)


def eight(test: str, first: int = 0) -> Claims:
    """A claim on each of a study's tasks, which are numbered from `first`."""
    left, right = Side(strategy="clm"), Side(strategy="mlm")
    return Claims(
        "2026-11-25",
        {
            f"claim_{i}": Claim(
                "", "", test, left, right, Side(), f"task_{first + i}", "accuracy", smallest_effect=MARGIN
            )
            for i in range(N_CLAIMS)
        },
    )


def studies(test: str, effects: Sequence[float], n: int) -> list[list[Judged]]:
    assert n % TOGETHER == 0
    rng, found = np.random.default_rng(0), []
    for _ in range(n // TOGETHER):
        tables = tables_of(simulated(rng, list(effects) * TOGETHER))
        found += [judge(tables, eight(test, i * N_CLAIMS)) for i in range(TOGETHER)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "effect", "false"),
    [
        ("superiority", 0.0, DIRECTED),
        ("equivalence", MARGIN, {"supported"}),
    ],
)
def test_studies_of_eight_claims(test: str, effect: float, false: set[str]):
    n = 100
    wrong = sum(any(one.verdict in false for one in study) for study in studies(test, [effect] * N_CLAIMS, n))
    assert wrong <= at_most(0.05, n)


def test_items_reach_the_verdict(tmp_path: Path):
    """Eleven of forty items are won by every seed: sure on these items, not on new ones."""
    folder = tmp_path / "toy"
    for strategy, n_right in (("clm", 11), ("mlm", 0)):
        for seed in range(4):
            outcome = np.array([1.0] * n_right + [0.0] * (40 - n_right), dtype=np.float32)
            outcome[-1 - seed] = float(strategy == "mlm")  # so that seeds differ
            run = make_run(strategy, seed, 0.0, scores=[score(0, float(outcome.mean()))])
            write_record(run.record(), folder / "records")
            evaluation = EvaluationRecord("e0", run.run_id, "toy", run.results)
            write_evaluation(evaluation, folder / "evaluations")
            path = items_path(folder / "evaluations", evaluation)
            np.savez(path, **{"task_0/accuracy": outcome})
    tables, damaged = load("toy", tmp_path)
    assert not damaged
    found = judge(tables, eight("superiority"))[0].evidence.estimate
    assert found is not None
    assert (found.n_seeds, found.n_items, found.mean) == (4, 40, pytest.approx(0.25))
    assert found.seed_sd < 1e-6
    assert found.se == pytest.approx(np.sqrt(0.25 * 0.75 / 40), rel=0.2)  # of the items' share
