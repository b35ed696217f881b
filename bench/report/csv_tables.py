"""Runs and comparisons -> rows with full precision, for the CSV files. Absent is an empty field."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bench.analysis.compare import is_compared, pooled, summaries
from bench.analysis.cost import used_by_run
from bench.analysis.decision import all_decisions
from bench.analysis.naming import cell_label
from bench.analysis.rows import Row, curve_rows, run_row, score_rows
from bench.analysis.stats import Interval, Paired
from bench.analysis.table import Cell, Measure, Tables
from bench.records import finished
from bench.report.claim_views import claim_rows

_FORMULA = {"=", "+", "-", "@", "\t", "\r"}  # first characters
_AT_ONCE = 10_000  # rows
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_tables(tables: Tables, study: Path) -> dict[str, Iterable[Row]]:
    """Every table of a report by its file name, without the suffix; claims for a study that has them."""
    judged, done = claim_rows(tables, study), finished(tables.records)
    results, used = tables.results, used_by_run(tables)
    return ({"claims": judged} if judged else {}) | {
        "headline": headline(tables),
        "cells": cells(tables),
        "differences": differences(tables),
        "decisions": decision_rows(tables),
        "runs": (run_row(record, used[record.run_id]) for record in tables.records),
        "scores": (row for record in done for row in score_rows(record, results, used[record.run_id])),
        "curves": (row for record in done for row in curve_rows(record)),
    }


def csv_text(rows: Iterable[Row]) -> str:
    """Rows of the same columns as CSV, to 12 digits, that spreadsheets read as text.

    What they would compute begins with an apostrophe; numbers are left alone, negative ones too (OWASP, "CSV
    Injection").
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    every = iter(rows)
    first = next(every, {})
    writer.writerow(first)
    every = chain([first] if first else [], every)
    while some := list(islice(every, _AT_ONCE)):
        columns = zip(*(row.values() for row in some), strict=True)
        writer.writerows(zip(*map(_texts, columns), strict=True))
    return file.getvalue()


def _texts(column: Sequence[Any]) -> Iterable[str]:
    """The texts of a column; most are of one kind, for which there are short cuts."""
    kinds = set(map(type, column))
    if kinds == {int}:
        return map(str, column)
    if kinds == {float}:
        return ["" if value != value else f"{value:.12g}" for value in column]
    if kinds in ({str}, {type(None)}):
        texts = {value: _text(value) for value in set(column)}
        return map(texts.__getitem__, column)
    return map(_text, column)


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.12g}"
    text = str(value)
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else text


def headline(tables: Tables) -> list[Row]:
    """One row per arm x headline metric over the whole grid, with its difference to scratch and verdict."""
    rows = []
    for row in pooled(tables, tables.headlines):
        names = {"strategy": row.arm.strategy, "variant": row.arm.variant} | row.measure._asdict()
        reference = {"chance": _single(tables.measures[row.measure].chance)}
        counts = {"n_cells": row.n_cells, "n_missing": row.n_missing, "n_lost": row.n_lost}
        gap = _gap(row.to_scratch)
        rows.append(names | reference | _spread(row.interval) | gap | counts | {"verdict": row.verdict})
    return rows


def cells(tables: Tables) -> list[Row]:
    """One row per cell x measure; `run_ids` are the finished runs, `lost_run_ids` the others."""
    rows = []
    for measure in tables.measures:
        for row in summaries(tables, measure):
            own = tables.runs_of[row.cell]
            done = [record.run_id for record in own if record.status == "finished"]
            lost = [record.run_id for record in own if record.status != "finished"]
            runs = {"run_ids": " ".join(done), "lost_run_ids": " ".join(lost)}
            rows.append(_place(measure, row.cell) | _spread(row.interval) | runs)
    return rows


def differences(tables: Tables) -> list[Row]:
    """One row per pretrained cell x measure: the seed-paired difference to scratch."""
    return [
        _place(measure, row.cell) | _gap(row.to_scratch)
        for measure in tables.measures
        for row in summaries(tables, measure)
        if is_compared(row.cell.arm)
    ]


def decision_rows(tables: Tables) -> list[Row]:
    """One row per headline metric and level of data and compute: the best cell and its rivals."""
    rows = []
    for row in all_decisions(tables):
        lists = {"ahead_of_scratch": row.ahead, "tied": row.tied, "missing": row.missing}
        names = {name: "; ".join(map(cell_label, found)) for name, found in lists.items()}
        caps = {"data_bytes_cap": row.caps.data_bytes, "flops_cap": row.caps.flops}
        sure = {"certainty": row.certainty, "difference_p_holm": row.p_holm if row.to_scratch else None}
        place = _place(row.measure, row.best) | caps
        rows.append(place | _spread(row.interval) | _gap(row.to_scratch) | sure | names)
    return rows


def _place(measure: Measure, cell: Cell) -> dict[str, Any]:
    axes = {"strategy": cell.arm.strategy, "variant": cell.arm.variant}
    return measure._asdict() | axes | {"model": cell.model, "budget": cell.budget}


def _spread(interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def _gap(gap: Paired | None) -> dict[str, Any]:
    spread = _spread(gap.interval if gap else None)
    named = {f"difference_{name}": value for name, value in spread.items()}
    return named | {
        "difference_p_t": gap.p_t if gap else None,
        "difference_p_sign_flip": gap.p if gap else None,
    }


def _single(chance: tuple[float, ...]) -> float | None:
    return chance[0] if len(chance) == 1 else None
