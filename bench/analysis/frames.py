"""Comparisons -> data frames with full precision, for the CSV files. Absent is an empty field."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.claim_views import claim_rows
from bench.analysis.compare import is_compared, pooled, summaries
from bench.analysis.decision import all_decisions
from bench.analysis.naming import cell_label
from bench.analysis.stats import Interval, Paired
from bench.analysis.table import Cell, Measure, Tables

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_tables(tables: Tables, study: Path) -> dict[str, pd.DataFrame]:
    """Every table of a report by its file name, without the suffix; claims for a study that has them."""
    judged = claim_rows(tables, study)
    return ({} if judged.empty else {"claims": judged}) | {
        "headline": headline(tables),
        "cells": cells(tables),
        "differences": differences(tables),
        "decisions": decision_rows(tables),
        "runs": tables.runs,
        "scores": tables.scores,
        "curves": tables.curves,
    }


def csv_text(table: pd.DataFrame, **options: Any) -> str:
    """A table as CSV that spreadsheets read as text: what they would compute begins with an apostrophe.

    Numbers are left alone, negative ones too (OWASP, "CSV Injection").
    """
    return str(table.map(_inert).to_csv(index=False, lineterminator="\n", **options))


def _inert(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def headline(tables: Tables) -> pd.DataFrame:
    """One row per arm x headline metric over the whole grid, with its difference to scratch and verdict."""
    rows = []
    for row in pooled(tables, tables.headlines):
        names = {"strategy": row.arm.strategy, "variant": row.arm.variant} | row.measure._asdict()
        reference = {"chance": _single(tables.measures[row.measure].chance)}
        counts = {"n_cells": row.n_cells, "n_missing": row.n_missing, "n_lost": row.n_lost}
        gap = _gap(row.to_scratch)
        rows.append(names | reference | _spread(row.interval) | gap | counts | {"verdict": row.verdict})
    return pd.DataFrame(rows)


def cells(tables: Tables) -> pd.DataFrame:
    """One row per cell x measure; `run_ids` are the finished runs, `lost_run_ids` the others."""
    rows = []
    for measure in tables.measures:
        for row in summaries(tables, measure):
            own = tables.runs_of[row.cell]
            done = [record.run_id for record in own if record.status == "finished"]
            lost = [record.run_id for record in own if record.status != "finished"]
            runs = {"run_ids": " ".join(done), "lost_run_ids": " ".join(lost)}
            rows.append(_place(measure, row.cell) | _spread(row.interval) | runs)
    return pd.DataFrame(rows)


def differences(tables: Tables) -> pd.DataFrame:
    """One row per pretrained cell x measure: the seed-paired difference to scratch."""
    return pd.DataFrame(
        [
            _place(measure, row.cell) | _gap(row.to_scratch)
            for measure in tables.measures
            for row in summaries(tables, measure)
            if is_compared(row.cell.arm)
        ]
    )


def decision_rows(tables: Tables) -> pd.DataFrame:
    """One row per headline metric and level of data and compute: the best cell and its rivals."""
    rows = []
    for row in all_decisions(tables):
        lists = {"ahead_of_scratch": row.ahead, "tied": row.tied, "missing": row.missing}
        names = {name: "; ".join(map(cell_label, found)) for name, found in lists.items()}
        caps = {"data_bytes_cap": row.caps.data_bytes, "flops_cap": row.caps.flops}
        sure = {"certainty": row.certainty, "difference_p_holm": row.p_holm if row.to_scratch else None}
        place = _place(row.measure, row.best) | caps
        rows.append(place | _spread(row.interval) | _gap(row.to_scratch) | sure | names)
    return pd.DataFrame(rows)


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
