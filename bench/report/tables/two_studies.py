"""Two studies -> tables, sentences and numbers on what they share and how they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.analysis.format import (
    EMPTY,
    Entry,
    View,
    cell_label,
    measure_label,
    p_value,
    seeds_note,
    with_interval,
)
from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.matching import Matched, cells, changes, matches, measures, run_pairs, twins
from bench.analysis.stats import LEVEL
from bench.analysis.untrained import shown_cell


@dataclass(frozen=True)
class Side:
    """One study, as it is or as it was at a revision."""

    name: str  # as it was asked for
    tables: Tables


def comparison(left: Side, right: Side, rows: Sequence[Matched]) -> View:
    """Return a table with a row per cell and measure that both have."""
    found: list[list[Entry]] = [
        [
            _label(left, right, row.measure),
            cell_label(shown_cell(left.tables, row.cell, [row.measure.task]), " "),
            with_interval(row.left),
            with_interval(row.right),
            "0 (equal)" if row.is_equal else with_interval(row.difference, signed=True),
            _test(row),
            EMPTY if row.p_holm is None else p_value(row.p_holm),
        ]
        for row in rows
    ]
    n_tested = sum(row.p is not None for row in rows)
    note = (
        f"Difference: {right.name} minus {left.name}. Paired: by seed, over the seeds that both have, so it "
        "may not equal the difference of the means. Welch: an unpaired t test for unequal variances, used if "
        "fewer than three seeds are in both. "
        f"p: two-sided t test, Holm-corrected over the {n_tested} rows that can be tested. "
        f"{seeds_note(n for row in rows for n in (row.left.n, row.right.n))}"
    )
    header = ["task: metric", "cell", left.name, right.name, "difference", "test", "p"]
    return View("comparison", "Scores of cells that both have", note, header, "llrrrlr", found)


def only_in_one(left: Side, right: Side, wanted: Sequence[Measure]) -> View:
    """Return the cells, measures and scores that only one side has."""
    shared = cells(left.tables, right.tables)
    rows: list[list[Entry]] = []
    for side, other in ((left, right), (right, left)):
        rows += [
            [
                side.name,
                cell_label(shown_cell(side.tables, cell), " "),
                f"{_runs(side, cell)}; no run in {other.name}",
            ]
            for cell in side.tables.cells
            if cell not in shared
        ]
        rows += [
            [side.name, _label(left, right, measure), f"not measured in {other.name}"]
            for measure in wanted
            if measure in side.tables.measures and measure not in other.tables.measures
        ]
        rows += [
            [
                side.name,
                f"{_label(left, right, measure)}, {_name(side, cell, measure)}",
                f"{other.name}: {_runs(other, cell)}",
            ]
            for measure in wanted
            for cell in shared
            if measure in other.tables.measures
            and len(side.tables.seed_values(measure, cell))
            and other.tables.seed_values(measure, cell).empty
        ]
    return View(
        "only_in_one",
        "Cells and measures that only one has",
        "",
        ["only in", "cell or measure", "reason"],
        "lll",
        rows,
    )


def settings(left: Side, right: Side) -> View:
    """Return the settings, tasks, data and software that differ between matched runs."""
    n_pairs = len(run_pairs(left.tables, right.tables))
    rows: list[list[Entry]] = [
        [change.key, change.left or EMPTY, change.right or EMPTY, f"{change.n_runs} of {n_pairs}"]
        for change in changes(left.tables, right.tables)
    ]
    note = (
        "Runs are matched by cell and seed or, if no seed is in both, by the first run of the cell. "
        f"{EMPTY}: the setting does not exist."
    )
    header = ["setting", left.name, right.name, "matched runs"]
    return View("settings", "Settings that differ", note, header, "lllr", rows)


def summary(left: Side, right: Side, rows: Sequence[Matched]) -> list[str]:
    """Return the findings, one sentence each."""
    clear = sum(row.p_holm is not None and row.p_holm <= 1 - LEVEL for row in rows)
    equal = sum(row.is_equal for row in rows)
    found = twins(left.tables, right.tables)
    lines = [
        f"Rows compared: {len(rows)}; different (p ≤ {1 - LEVEL:.2f} after Holm's correction): {clear}; "
        f"equal in every seed: {equal}.",
        f"Runs in {left.name}: {len(left.tables.runs)}, in {right.name}: {len(right.tables.runs)}; "
        f"bit-identical (same id, equal scores): {len(found.equal)}.",
    ]
    if found.unequal:
        names = ", ".join(f"{run_id} (by up to {gap:.1g})" for run_id, gap in found.unequal)
        lines.append(f"Same id and task settings, but different scores: {names}.")
    if not rows:
        lines.append("No cell has a score of the same measure in both.")
    return lines


def views(left: Side, right: Side, *, every: bool) -> tuple[list[str], list[View]]:
    """Return findings and tables on the headline measures, or on all; empty tables are left out."""
    wanted = measures(left.tables, right.tables, every=every)
    rows = matches(left.tables, right.tables, wanted)
    tables = [comparison(left, right, rows), only_in_one(left, right, wanted), settings(left, right)]
    return summary(left, right, rows), [view for view in tables if view.rows]


def numbers(left: Side, right: Side, *, every: bool) -> pd.DataFrame:
    """Return the comparison as numbers, a row per cell and measure; absent is empty."""
    rows = matches(left.tables, right.tables, measures(left.tables, right.tables, every=every))
    return pd.DataFrame([_numbers(row) for row in rows])


def _numbers(row: Matched) -> dict[str, Any]:
    cell, measure = row.cell, row.measure
    axes = {"task": measure.task, "metric": measure.metric, "n_labels": measure.n_labels}
    axes |= {"strategy": cell.condition.strategy, "variant": cell.condition.variant}
    axes |= {"model": cell.model, "budget": cell.budget}
    columns = {"left": row.left, "right": row.right, "difference": row.difference}
    spreads = {f"{name}_{key}": value for name, own in columns.items() for key, value in vars(own).items()}
    return axes | spreads | {"test": row.test, "p": row.p, "p_holm": row.p_holm, "is_equal": row.is_equal}


def _label(left: Side, right: Side, measure: Measure) -> str:
    return measure_label(left.tables if measure in left.tables.measures else right.tables, measure)


def _name(side: Side, cell: Cell, measure: Measure) -> str:
    return cell_label(shown_cell(side.tables, cell, [measure.task]), " ")


def _runs(side: Side, cell: Cell) -> str:
    """Format the number of runs of a cell: `3 runs, 2 finished`."""
    status = side.tables.runs_of(cell)["status"]
    return f"{len(status)} run{'s' if len(status) > 1 else ''}, {(status == 'finished').sum()} finished"


def _test(row: Matched) -> str:
    if row.test == "paired":
        return f"paired, n = {row.difference.n}"
    return f"Welch, n = {row.left.n} and {row.right.n}" if row.test == "Welch" else row.test
