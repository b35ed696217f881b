"""Runs and comparisons -> rows with full precision, for the CSV files. An absent value is an empty field."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.compare import headline_rows, is_compared, summaries
from bench.analysis.decision import all_decisions
from bench.analysis.error_model import Difference
from bench.analysis.format import cell_label
from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.stats import Interval
from bench.analysis.untrained import baseline_name, shown_cell
from bench.report.tables.claims import claim_frame

# Spreadsheets skip blanks and invisible signs before a formula; some read full-width signs as well.
_FORMULA = re.compile(r"[\t\r]|[\s\x00-\x1f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SPENT = slice("parameters", "evaluate_joules_estimated")  # columns of `runs`


def csv_tables(tables: Tables, study: Path) -> dict[str, pd.DataFrame]:
    """Return every table of a report by its file name, without the suffix; claims for a study with claims."""
    claims, runs = claim_frame(tables, study), tables.runs
    scores = tables.scores.drop(columns=["task_s", "task_flops", "cell", "measure"])
    spent = runs.set_index("run_id").loc[:, _SPENT].loc[scores["run_id"]].set_index(scores.index)
    return ({"claims": claims} if len(claims) else {}) | {
        "headline": headline(tables),
        "cells": cells(tables),
        "differences": differences(tables),
        "decisions": decisions(tables),
        "runs": runs.loc[:, :"evaluate_joules_estimated"],
        "scores": pd.concat([scores, spent], axis=1),
        "curves": tables.curves.drop(columns="cell"),
    }


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV, to 12 digits, that spreadsheets read as text.

    A text that a spreadsheet would compute gets a leading apostrophe; numbers stay as they are, negative ones
    too (OWASP, "CSV Injection").
    """
    texts = table.select_dtypes(["object", "str"])
    escaped = table.assign(**{name: texts[name].map(_escaped) for name in texts})
    return str(escaped.to_csv(index=False, lineterminator="\n", float_format="%.12g"))


def _escaped(value: Any) -> Any:
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def headline(tables: Tables) -> pd.DataFrame:
    """Return a row per condition and headline metric at the headline's place: mean, difference, verdict."""
    rows = []
    for row in headline_rows(tables, tables.headlines):
        names = _place(row.measure, row.cell)
        reference = {
            "baseline": baseline_name(tables, [row.measure.task]),
            "chance": _single(tables.measures[row.measure].chance),
        }
        last = {"n_lost": row.n_lost, "verdict": row.verdict}
        rows.append(names | reference | _spread(row.interval) | _gap(row.to_scratch) | last)
    return pd.DataFrame(rows)


def cells(tables: Tables) -> pd.DataFrame:
    """Return a row per cell and measure; `run_ids` are the finished runs, `lost_run_ids` the others."""
    done, lost = (_run_ids(tables, is_lost=is_lost) for is_lost in (False, True))
    rows = []
    for measure in tables.measures:
        for row in summaries(tables, measure):
            runs = {"run_ids": done[row.cell], "lost_run_ids": lost[row.cell]}
            rows.append(_place(measure, row.cell) | _spread(row.interval) | runs)
    return pd.DataFrame(rows)


def differences(tables: Tables) -> pd.DataFrame:
    """Return a row per pretrained cell and measure with the difference to the untrained baseline."""
    rows = (row for measure in tables.measures for row in summaries(tables, measure))
    compared = [row for row in rows if is_compared(row.cell.condition)]
    return pd.DataFrame(
        [
            _place(row.measure, row.cell)
            | {"baseline": baseline_name(tables, [row.measure.task])}
            | _gap(row.to_scratch)
            for row in compared
        ]
    )


def _run_ids(tables: Tables, *, is_lost: bool) -> dict[Cell, str]:
    """Return the ids of each cell's finished runs, or of the others, separated by spaces."""
    runs = tables.runs[(tables.runs["status"] != "finished") == is_lost]
    joined = runs.groupby("cell")["run_id"].agg(" ".join)
    return {cell: joined.get(i, "") for i, cell in enumerate(tables.cells)}


def decisions(tables: Tables) -> pd.DataFrame:
    """Return a row per headline metric and level of data and compute: the best cell and its rivals."""
    rows = []
    for row in all_decisions(tables):
        task = row.measure.task
        lists = {"ahead_of_baseline": row.ahead, "tied": row.tied, "missing": row.missing}
        names = {
            name: "; ".join(cell_label(shown_cell(tables, cell, [task])) for cell in found)
            for name, found in lists.items()
        }
        caps = {"data_bytes_cap": row.caps.data_bytes, "flops_cap": row.caps.flops}
        sure = {"certainty": row.certainty, "difference_p_holm": row.p_holm if row.to_scratch else None}
        place = _place(row.measure, row.best) | {"baseline": baseline_name(tables, [task])} | caps
        rows.append(place | _spread(row.interval) | _gap(row.to_scratch) | sure | names)
    return pd.DataFrame(rows)


def _place(measure: Measure, cell: Cell) -> dict[str, Any]:
    axes = {"strategy": cell.condition.strategy, "variant": cell.condition.variant}
    return measure._asdict() | axes | {"model": cell.model, "budget": cell.budget}


def _spread(interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def _gap(gap: Difference | None) -> dict[str, Any]:
    spread = _spread(gap.interval if gap else None)
    named = {f"difference_{name}": value for name, value in spread.items()}
    return named | {
        "difference_p": gap.p if gap and gap.is_tested else None,
        "difference_paired": gap.is_paired if gap else None,
    }


def _single(chance: tuple[float, ...]) -> float | None:
    return chance[0] if len(chance) == 1 else None
