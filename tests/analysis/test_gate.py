"""Tasks that have earned to give verdicts, and those that have not."""

from dataclasses import replace

import pytest
from toy_runs import PROBE, ToyRun, make_run, tables_of

from bench.analysis.claims import SUPERIORITY, Claim, Claims, Side
from bench.analysis.decision import all_decisions
from bench.analysis.frames import Tables
from bench.analysis.gate import Gate, gate, gates, informative
from bench.analysis.judging import judge
from bench.records import Score

NOISE = (-0.02, 0.0, 0.01, 0.03, -0.01, 0.0)


def runs(strategy: str, mean: float, n: int = 6) -> list[ToyRun]:
    """Accuracies around a mean; chance is 0.25."""
    budget = {"budget": None} if strategy in ("scratch", "trivial") else {}
    return [make_run(strategy, seed, mean + NOISE[seed], **budget) for seed in range(n)]


def tables(n: int = 6, **means: float) -> Tables:
    return tables_of([run for strategy, mean in means.items() for run in runs(strategy, mean, n)])


def test_a_strategy_above_chance_and_baseline_opens_the_gate():
    assert gate(tables(scratch=0.3, clm=0.6, trivial=0.5), PROBE) == Gate(True)


@pytest.mark.parametrize(
    ("means", "parts"),
    [
        ({"clm": 0.6, "mlm": 0.5, "trivial": 0.85}, ["chance (0.250)", "baseline (0.852)", "clm with 0.602"]),
        ({"clm": 0.25, "mlm": 0.24}, ["chance (0.250)", "clm with 0.252"]),
        ({"clm": 0.6, "trivial": 0.6}, ["the trivial baseline (0.602)"]),
    ],
)  # fmt: skip
def test_below_a_bar_or_within_noise_of_it_the_gate_is_closed(means: dict[str, float], parts: list[str]):
    found = gate(tables(scratch=0.3, **means), PROBE)
    assert not found.is_open
    assert all(part in found.reason for part in parts), found.reason


def test_scratch_opens_no_gate():
    assert not gate(tables(scratch=0.9, clm=0.25), PROBE).is_open


def test_what_was_not_tested_is_said():
    assert "one" not in gate(tables(clm=0.6), PROBE).reason
    assert "no trivial baseline was recorded" in gate(tables(clm=0.6), PROBE).reason
    assert gate(tables(n=1, clm=0.2), PROBE) == Gate(True, "not tested: fewer than 3 seeds")


def test_the_gate_opens_by_chance_in_5_percent_of_studies_at_most():
    import numpy as np

    rng = np.random.default_rng(0)
    opened = 0
    for _ in range(200):
        values = rng.normal(0.25, 0.03, size=(4, 5))
        made = [
            make_run(strategy, seed, float(value))
            for strategy, row in zip(("clm", "mlm", "mntp", "rtd"), values, strict=True)
            for seed, value in enumerate(row)
        ]
        opened += gate(tables_of(made), PROBE).is_open
    assert opened <= 18  # 5 % of 200 is 10; 18 is exceeded with a probability below 0.5 %


def test_a_failed_audit_closes_the_gate():
    audited = replace(tables(clm=0.9), failed_audits={"probe": "constant: scores 0.9"})
    assert gate(audited, PROBE) == Gate(False, "its audit failed: constant: scores 0.9")


def test_a_headline_that_circles_win_is_not_informative():
    score = (Score("generation", "ngram_perplexity", 5.0, 40.0, 9, higher_is_better=False),)
    made = [make_run("clm", seed, 0.5, scores=score) for seed in range(3)]
    assert "forward_reverse_perplexity" in gates(tables_of(made))["generation"].reason


def test_a_measure_of_risk_has_no_bar():
    score = (Score("canaries", "exposure_exact", 8.0, 1.4, 9, higher_is_better=False),)
    made = [make_run("clm", seed, 0.5, scores=score) for seed in range(3)]
    assert all(found.is_open for found in gates(tables_of(made)).values())


def test_a_closed_gate_gives_no_verdict_and_no_decision():
    claim = Claim(
        statement="x", source="y", test=SUPERIORITY, left=Side(strategy="clm"), right=Side(strategy="mlm"),
        cells=Side(), task="probe", metric="accuracy", smallest_effect=0.01,
    )  # fmt: skip
    claims = Claims(written="2026-01-01", claims={"c": claim})
    good, bad = tables(scratch=0.3, clm=0.6, mlm=0.5), tables(scratch=0.3, clm=0.6, mlm=0.5, trivial=0.9)
    assert [one.verdict for one in judge(good, claims)] == ["supported"]
    [gated] = judge(bad, claims)
    assert gated.verdict == "not informative here"
    assert "trivial baseline" in gated.evidence.gated
    assert informative(good) == [PROBE]
    assert informative(bad) == []
    assert all_decisions(good)
    assert not all_decisions(bad)
