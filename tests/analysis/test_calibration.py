"""The whole chain on simulated records with known truth: tables, claims, verdicts and their intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from toy_runs import ToyRun, make_run, tables_of

from bench.analysis.claims import Claim, Claims, Side
from bench.analysis.frames import load
from bench.analysis.inference import Estimate, detectable
from bench.analysis.judging import Judged, judge
from bench.records import EvaluationRecord, Score, items_path, write_evaluation, write_record

N_CLAIMS, N_SEEDS, MARGIN = 8, 5, 0.02
TOGETHER = (
    25  # simulated studies of one table, each with tasks of its own, since making a table takes longest
)
SEED_SD = 0.01  # of a difference


def simulated(rng: np.random.Generator, effects: Sequence[float]) -> list[ToyRun]:
    """Two strategies on one task per effect; what a seed shares on all tasks cancels in differences."""
    gaps = rng.normal(effects, SEED_SD, (N_SEEDS, len(effects)))
    base = 0.5 + rng.normal(0, 0.05, (N_SEEDS, 1))
    return [
        make_run(strategy, seed, 0.0, scores=[score(task, value) for task, value in enumerate(values[seed])])
        for strategy, values in (("mlm", np.broadcast_to(base, gaps.shape)), ("clm", base + gaps))
        for seed in range(N_SEEDS)
    ]


def score(task: int, value: float) -> Score:
    return Score(f"task_{task}", "accuracy", float(value), 0.25, 100)


def asked(test: str, first: int = 0) -> Claims:
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


def studies(test: str, effects: Sequence[float], n: int, seed: int = 0) -> list[list[Judged]]:
    assert n % TOGETHER == 0
    rng, found = np.random.default_rng(seed), []
    for _ in range(n // TOGETHER):
        tables = tables_of(simulated(rng, list(effects) * TOGETHER))
        found += [judge(tables, asked(test, i * N_CLAIMS)) for i in range(TOGETHER)]
    return found


def at_most(level: float, n: int) -> int:
    """What a count with this rate exceeds once in a thousand tests."""
    return int(scipy.stats.binom.ppf(0.999, n, level))


@pytest.mark.slow
def test_intervals_of_claims_hold_the_truth_in_95_percent():
    held = [
        one.evidence.estimate.bounds()[0] <= 0.01 <= one.evidence.estimate.bounds()[1]
        for study in studies("superiority", [0.01] * N_CLAIMS, 250)
        for one in study
        if one.evidence.estimate is not None
    ]
    assert len(held) == 250 * N_CLAIMS
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "effect", "false"),
    [
        ("superiority", 0.0, {"supported", "supported in direction only", "opposite direction"}),
        ("superiority", MARGIN, {"opposite direction", "too small to matter", "not as large as claimed"}),
        ("non_inferiority", -MARGIN, {"supported", "contradicted"}),
        ("equivalence", MARGIN, {"supported"}),
    ],
)
def test_claims_are_false_in_5_percent_of_studies_at_most(test: str, effect: float, false: set[str]):
    n = 250
    wrong = sum(any(one.verdict in false for one in study) for study in studies(test, [effect] * N_CLAIMS, n))
    assert wrong <= at_most(0.05, n)


@pytest.mark.slow
def test_what_is_said_to_be_detectable_is_supported_in_80_percent():
    """Seven claims without an effect leave the eighth the first step of Holm's correction."""
    effect = detectable(Estimate(0.0, SEED_SD, 0.0, N_SEEDS - 1, N_SEEDS), 0.05 / N_CLAIMS)
    found = studies("superiority", [effect] + [0.0] * (N_CLAIMS - 1), 250)
    seen = np.mean([study[0].verdict.startswith("supported") for study in found])
    assert 0.72 <= seen <= 0.88  # 80 %, and three standard errors


@pytest.mark.slow
def test_a_crossover_at_the_edge_of_its_range_is_supported_in_5_percent_at_most():
    """The true gain is 0 with 20 labels, where the claimed range begins, so it does not lie within."""
    rng, counts, n = np.random.default_rng(0), (10, 40, 160), 200
    gains = [0.02, -0.02, -0.06]  # linear in log2 labels
    claim = Claim(
        *("", "", "crossover", Side("clm"), Side("mlm"), Side(), "task_0", "accuracy"),
        axis="labels",
        between=[20, 80],
    )
    supported = 0
    for _ in range(n):
        runs = []
        for seed in range(N_SEEDS):
            noise = rng.normal(0, SEED_SD, len(counts))
            for strategy, values in (("clm", gains + noise), ("mlm", [0.0] * len(counts))):
                scores = [
                    Score("task_0", "accuracy", 0.5 + float(value), 0.25, 100, n_labels=count)
                    for count, value in zip(counts, values, strict=True)
                ]
                runs.append(make_run(strategy, seed, 0.0, scores=scores))
        [one] = judge(tables_of(runs), Claims("2026-11-25", {"first": claim}))
        supported += one.verdict == "supported"
    assert 0.01 * n < supported <= at_most(0.05, n)


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
    found = judge(tables, asked("superiority"))[0].evidence.estimate
    assert found is not None
    assert (found.n_seeds, found.n_items, found.mean) == (4, 40, pytest.approx(0.25))
    assert found.seed_sd < 1e-6
    assert found.se == pytest.approx(np.sqrt(0.25 * 0.75 / 40), rel=0.2)  # of the items' share
