"""Two conditions -> their difference on each task, with a simultaneous interval and a verdict.

One family of tests: the tasks of one call are corrected together by Holm's procedure, and each interval has
the level of its task's step in that procedure, so an interval excludes 0 exactly if its test rejects.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.analysis.claims import SUPERIORITY, Claim, Side, suggestion
from bench.analysis.frames import Condition, Measure, Tables
from bench.analysis.inference import Estimate
from bench.analysis.judging import Evidence, examine
from bench.analysis.stats import holm, holm_levels
from bench.analysis.untrained import fits_name, require_name
from bench.errors import ConfigError

COLUMNS = {
    **dict.fromkeys(("task", "metric"), "str"),
    "n_labels": "Int64",
    **dict.fromkeys(("left", "right"), "str"),
    **dict.fromkeys(("effect", "low", "high", "level", "p", "p_holm"), "float64"),
    **dict.fromkeys(("n_seeds", "n_items"), "Int64"),
    **dict.fromkeys(("verdict", "reason"), "str"),
}


def contrast(
    tables: Tables,
    left: str,
    right: str,
    measures: Sequence[Measure],
    *,
    model: str | None = None,
    budget: str | None = None,
    smallest_effect: float | None = None,
) -> pd.DataFrame:
    """Return one row per measure: the difference of two conditions, by seed and item where items are known.

    Columns: `task`, `metric`, `n_labels`; the labels `left` and `right`; `effect`, above 0 where left is
    better, in the metric's unit, averaged over the cells that both have; `low` and `high`, its interval at
    `level`; `p`, two-sided, and `p_holm`, corrected over the rows; `n_seeds` and `n_items`; `verdict`: "left
    is better", "right is better", "equivalent" (the interval lies within ± `smallest_effect`), "undecided" or
    "not comparable", with the `reason`.

    The baseline without pretraining is `scratch` on tasks that train the network and `random_features` on the
    others; only measures of its own tasks are compared.

    Raises:
        ConfigError: a condition is not in the study, or the only task has the other baseline.
    """
    sides = [_side(tables, label) for label in (left, right)]
    if len(measures) == 1:
        for where, label in (("left", left), ("right", right)):
            require_name(tables, label, measures[0].task, where)
    measures = [m for m in measures if all(fits_name(tables, label, m.task) for label in (left, right))]
    cells = Side(model=model, budget=budget)
    found = [_evidence(tables, measure, sides, cells) for measure in measures]
    p = [evidence.decided.p for evidence in found if evidence.decided is not None]
    corrected = iter(zip(p, holm(p), holm_levels(p), strict=True))
    rows = []
    for measure, evidence in zip(measures, found, strict=True):
        row = {**measure._asdict(), "left": left, "right": right, "reason": evidence.why_not}
        if evidence.decided is None or evidence.estimate is None:
            rows.append(row | {"verdict": "not comparable"})
        else:
            rows.append(row | _numbers(evidence.estimate, *next(corrected), smallest_effect))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _side(tables: Tables, label: str) -> Side:
    """Return the side of a claim that a condition's label or its strategy's name stands for."""
    named = {condition.label: condition for condition in tables.conditions}
    found = named.get(label, Condition(Side(strategy=label).recorded, ""))
    if found not in tables.conditions:
        raise ConfigError(f"no condition {label!r} in study {tables.study}{suggestion(label, list(named))}")
    return Side(strategy=found.strategy, variant=found.variant)


def _evidence(tables: Tables, measure: Measure, sides: Sequence[Side], cells: Side) -> Evidence:
    claim = Claim(
        test=SUPERIORITY,
        left=sides[0],
        right=sides[1],
        cells=cells,
        task=measure.task,
        metric=measure.metric,
        n_labels=measure.n_labels,
    )
    return examine(tables, claim)


def _numbers(
    estimate: Estimate, p: float, p_holm: float, level: float, smallest_effect: float | None
) -> dict[str, Any]:
    low, high = estimate.bounds(level)
    return {
        **{"effect": estimate.mean, "low": low, "high": high, "level": level, "p": p, "p_holm": p_holm},
        **{"n_seeds": estimate.n_seeds, "n_items": estimate.n_items},
        "verdict": verdict_of(low, high, smallest_effect),
    }


def verdict_of(low: float, high: float, smallest_effect: float | None = None) -> str:
    """Return what an interval decides: its place against 0 and ± the smallest effect of interest."""
    if smallest_effect is not None and max(-low, high) < smallest_effect:
        return "equivalent"
    return "left is better" if low > 0 else "right is better" if high < 0 else "undecided"
