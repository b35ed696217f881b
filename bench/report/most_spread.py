"""Which tasks a figure has room for: those whose cells differ most for their spread over seeds."""

from collections.abc import Sequence

import numpy as np

from bench.analysis.table import Measure, Tables


def most_spread(tables: Tables, measures: Sequence[Measure], most: int) -> list[Measure]:
    """At most so many measures, in their order.

    By the F ratio of a one-way layout: variance of cell means over the mean variance within cells.
    """
    if len(measures) <= most:
        return list(measures)
    ranked = sorted(measures, key=lambda measure: -_f_ratio(tables, measure))[:most]
    return [measure for measure in measures if measure in ranked]


def left_out_note(measures: Sequence[Measure], drawn: Sequence[Measure]) -> str:
    """A sentence on the tasks that have no panel; empty if all have one."""
    missing = list(dict.fromkeys(measure.task for measure in measures if measure not in drawn))
    if not missing:
        return ""
    shown = (
        f" Drawn: the {len(set(drawn))} tasks whose cells differ most for their spread over seeds (F ratio)"
    )
    return f"{shown}; left out: {', '.join(missing)}."


def _f_ratio(tables: Tables, measure: Measure) -> float:
    cells = [cell for cell in tables.values[measure] if not cell.arm.is_external]
    values = [np.array(list(tables.values[measure][cell].values())) for cell in cells]
    within = np.mean([own.var(ddof=1) for own in values if len(own) > 1] or [0.0])
    between = np.var([own.mean() for own in values], ddof=1) if len(values) > 1 else 0.0
    return float(between / within) if within else 0.0
