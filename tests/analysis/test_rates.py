"""A verdict that depends on the learning rate is marked."""

from pathlib import Path

import yaml
from toy_runs import make_run, tables_of, toy_runs

from bench.analysis.claims import Claim, Claims, Side
from bench.analysis.rates import at_shared_rate
from bench.report.tables.claims import claims

ASKED = Claim(
    **{"test": "superiority", "statement": "s", "source": "s", "reason": "r", "smallest_effect": 0.01},
    **{"left": Side(strategy="clm"), "right": Side(strategy="mlm"), "task": "probe", "metric": "accuracy"},
)
SHARED = "optim.lr_peak=0.006"


def runs(clm: float, mlm: float, variant: str = ""):
    values = [("clm", clm), ("mlm", mlm)]
    return [
        make_run(s, i, value + 0.001 * i, variant=variant, run_id=f"{s}{i}{variant}")
        for s, value in values
        for i in range(5)
    ]


def test_verdicts_at_the_shared_rate_stand_beside_those_at_tuned_rates(tmp_path: Path) -> None:
    asked = Claims("2026-12-01", {"a": ASKED})
    tuned, shared = runs(0.7, 0.6), runs(0.5, 0.6, SHARED)
    assert at_shared_rate(tables_of([*tuned, *shared]), asked) == {"a": "opposite direction"}
    one_side = [run for run in shared if run.strategy == "clm"]  # the tuned rate of mlm is the shared one
    assert at_shared_rate(tables_of([*tuned, *one_side]), asked) == {"a": "opposite direction"}
    node = {key: getattr(ASKED, key) for key in ("test", "statement", "source", "reason", "smallest_effect")}
    node |= {"left": {"strategy": "clm"}, "right": {"strategy": "mlm"}, "task": "probe", "metric": "accuracy"}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"written": "2026-12-01", "claims": {"a": node}}))
    view = claims(tables_of([*tuned, *shared]), tmp_path)
    assert view is not None
    assert view.header[-1] == "verdict at the shared rate"
    assert view.rows[0][-1] == "opposite direction (depends on the rate)"


def test_without_runs_at_both_rates_or_with_a_sweep_of_rates_there_is_no_second_verdict() -> None:
    asked = Claims("2026-12-01", {"a": ASKED})
    tuned = runs(0.7, 0.6)
    assert at_shared_rate(tables_of([*toy_runs(), *tuned[5:]]), asked) == {}
    swept = [*runs(0.5, 0.6, SHARED), *runs(0.5, 0.6, "optim.lr_peak=0.1")]
    assert at_shared_rate(tables_of([*tuned, *swept]), asked) == {}
    assert at_shared_rate(tables_of([*tuned, *runs(0.5, 0.6, "optim=wsd")]), asked) == {}
