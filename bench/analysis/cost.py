"""Run records -> what the study cost: FLOPs, seconds, energy and CO2, by cell and in total.

Pretraining and evaluation stand apart and are never added up, and neither are energies that were measured
and energies that were estimated. CO2 is the energy times the mean intensity of a grid, which is named.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from bench.analysis.compare import difference, is_clear, summaries
from bench.analysis.error_model import Difference
from bench.analysis.format import amount
from bench.analysis.frames import BASELINE, Cell, Measure, Tables
from bench.analysis.stats import Interval

STAGES = ("pretraining", "evaluation")
SOURCES = ("measured", "estimated")


def cell_costs(tables: Tables, column: str) -> dict[Cell, float]:
    """Return the mean of a column of `runs` over each cell's finished runs that used any."""
    runs = tables.runs[tables.runs["status"] == "finished"]
    used = runs[runs[column] > 0].groupby("cell")[column].mean()
    return {tables.cells[i]: value for i, value in used.items()}


def flops(tables: Tables) -> dict[Cell, float]:
    """Return the pretraining FLOPs of a run of each cell."""
    return cell_costs(tables, "flops")


def seconds(tables: Tables) -> dict[Cell, float]:
    """Return the pretraining seconds of a run of each cell, on whatever machine it ran."""
    return cell_costs(tables, "pretrain_s")


def joules(tables: Tables, source: str) -> dict[Cell, float]:
    """Return the pretraining energy of a run of each cell, by runs whose energy has this source."""
    return cell_costs(tables, f"pretrain_joules_{source}")


@lru_cache(maxsize=1)  # for each cell and for the study in total
def run_costs(tables: Tables) -> pd.DataFrame:
    """Return what each run cost, a row per run as in `runs`.

    `pretraining flops`, `pretraining s`, absent where an external model was pretrained elsewhere or the cost
    was lost with the run; `evaluation flops`, `evaluation s`; and `<stage> <kwh or co2_kg> <source>`.
    """
    runs, energies = tables.runs, tables.energies
    own = runs[["flops", "pretrain_s", "evaluate_flops", "evaluate_s"]].copy()
    own.loc[tables.is_external(runs["cell"]), ["flops", "pretrain_s"]] = np.nan
    own.columns = [f"{stage} {unit}" for stage in STAGES for unit in ("flops", "s")]
    drawn = (
        energies.groupby(["run_id", "stage", "source"])[["kwh", "co2_kg"]].sum().unstack(["stage", "source"])
    )
    drawn.columns = [f"{stage} {unit} {source}" for unit, stage, source in drawn.columns]
    wanted = [f"{stage} {unit} {s}" for stage in STAGES for unit in ("kwh", "co2_kg") for s in SOURCES]
    found = drawn.reindex(index=runs["run_id"], columns=wanted).set_index(runs.index)
    return own.join(found)


def energy_note(tables: Tables) -> str:
    """Return how energy is known, and the grid's intensity by which it became CO2."""
    known = tables.energies
    if known.empty:
        return "No run has its energy on record."
    pairs = known[["source", "method"]].drop_duplicates()
    methods = sorted(f"{source} ({method})" for source, method in pairs.itertuples(index=False))
    grids = "; ".join(_grid(country, own) for country, own in known.groupby("country"))
    also = (
        " Measured and estimated energies are not comparable and not added up."
        if known["source"].nunique() > 1
        else ""
    )
    return f"Energy: {'; '.join(methods)}.{also} Configured grid: {grids}."


def _grid(country: str, known: pd.DataFrame) -> str:
    kwh = known["kwh"].sum()
    intensity = 1000 * known["co2_kg"].sum() / kwh if kwh else math.nan
    return f"{country}, {amount(intensity)} g CO2/kWh"


@dataclass(frozen=True)
class Member:
    """A cell on the front. `gain` and `is_clear` are None for the cheapest cell."""

    cell: Cell
    cost: float
    interval: Interval
    gain: Difference | None  # over the next cheaper member, in the metric's own unit
    is_clear: bool | None


def front(tables: Tables, measure: Measure, costs: Mapping[Cell, float]) -> list[Member]:
    """Return the Pareto front of one measure, cheapest first; empty for a measure that only describes.

    Args:
        tables: of the study.
        measure: what is scored.
        costs: of each pretrained cell; scratch costs nothing, and a cell without a cost takes no part.
    """
    sign = tables.measures[measure].sign
    points = {
        row.cell: (costs.get(row.cell, 0.0), row.interval)
        for row in summaries(tables, measure)
        if row.interval is not None and (row.cell in costs or row.cell.condition.strategy == BASELINE)
    }
    scores = {cell: (cost, sign * spread.mean) for cell, (cost, spread) in points.items()}
    members: list[Member] = []
    for cell in _undominated(scores) if sign else ():
        cost, spread = points[cell]
        cheaper = [member for member in members if member.cost < cost]
        gap = difference(tables, measure, cell, cheaper[-1].cell) if cheaper else None
        members.append(Member(cell, cost, spread, gap, is_clear(gap, sign) if cheaper else None))
    return members


def _undominated(points: Mapping[Cell, tuple[float, float]]) -> list[Cell]:
    """Return the cells (cost, score) that no other cell beats at the same or a lower cost, cheapest first.

    Cells of equal cost and score keep their order.
    """
    found: list[Cell] = []
    best = cost_of_best = -math.inf
    for cell in sorted(points, key=lambda cell: (points[cell][0], -points[cell][1])):
        cost, score = points[cell]
        if score > best or (score == best and cost == cost_of_best):
            found.append(cell)
            best, cost_of_best = score, cost
    return found
