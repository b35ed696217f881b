"""Run records -> what the study cost: FLOPs, seconds, energy and CO2, by cell and in total.

Pretraining and evaluation stand apart and are never added up, and neither are energies that were measured
and energies that were estimated. CO2 is the energy times the mean intensity of a grid, which is named.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from bench.analysis.rows import Row, spent_columns, total
from bench.analysis.table import Cell, Tables, cell_of
from bench.analysis.text import EMPTY, Entry, View, amount, power
from bench.records import Energy, RunRecord, Spent, finished

SOURCES = ("measured", "estimated")
_UNITS = ["FLOPs", "s", "kWh", "kg CO2"]


class Cost(NamedTuple):
    """What one stage of one run took; None: not recorded."""

    flops: float | None
    seconds: float | None
    energies: tuple[Energy, ...]


@lru_cache(maxsize=1)  # for the page and for two of its CSV files
def used_by_run(tables: Tables) -> Mapping[str, Row]:
    """What each run used, by its id, as columns."""
    return {record.run_id: spent_columns(record, tables.results) for record in tables.records}


def cell_costs(tables: Tables, amount_of: Callable[[Spent], float | None]) -> dict[Cell, float]:
    """The mean over each cell's finished runs of what pretraining used, for cells that used any.

    Args:
        tables: of the study.
        amount_of: None or 0 where a run has none.
    """
    found: dict[Cell, float] = {}
    for cell in tables.cells:
        used = [amount_of(record.spent) for record in finished(tables.runs_of[cell])]
        known = [value for value in used if value]
        if known:
            found[cell] = sum(known) / len(known)
    return found


def flops(tables: Tables) -> dict[Cell, float]:
    """Pretraining FLOPs of a run of each cell."""
    return cell_costs(tables, lambda spent: spent.flops)


def seconds(tables: Tables) -> dict[Cell, float]:
    """Pretraining seconds of a run of each cell, on whatever machine it was."""
    return cell_costs(tables, lambda spent: spent.pretrain_s)


def joules(tables: Tables, source: str) -> dict[Cell, float]:
    """Pretraining energy of a run of each cell, of the runs whose energy is known by this source."""
    return cell_costs(tables, lambda spent: _joules(spent, source))


def _joules(spent: Spent, source: str) -> float | None:
    return spent.energy.joules if spent.energy is not None and spent.energy.source == source else None


def energies(tables: Tables) -> list[Energy]:
    """All that were recorded, of pretraining and of evaluation."""
    evaluated = _evaluations(tables)
    stages = (stage for r in tables.records for stage in (pretraining(r), evaluated[r.run_id]))
    return [energy for stage in stages for energy in stage.energies]


def pretraining(record: RunRecord) -> Cost:
    """What pretraining took; None where it happened elsewhere, or was lost with the run."""
    spent = record.spent
    if cell_of(record).arm.is_external or (record.status != "finished" and not spent.steps):
        return Cost(None, None, ())
    return Cost(spent.flops, spent.pretrain_s, (spent.energy,) if spent.energy else ())


@lru_cache(maxsize=1)  # for each cell, the study in total and its energies
def _evaluations(tables: Tables) -> dict[str, Cost]:
    """What evaluation took, by run."""
    found = {}
    for record in tables.records:
        costs = [result.cost for result in tables.results.get(record.run_id, {}).values()]
        known = tuple(cost.energy for cost in costs if cost.energy is not None)
        flops, seconds = total([cost.flops for cost in costs]), total([cost.seconds for cost in costs])
        found[record.run_id] = Cost(flops, seconds, known)
    return found


def cost(tables: Tables) -> View:
    """A row per cell, of a run, and the study in total, lost runs included."""
    rows: list[list[Entry]] = []
    for cell in tables.cells:
        own = tables.runs_of[cell]
        lost = len(own) - len(finished(own))
        runs = f"{len(own)}, {lost} lost" if lost else str(len(own))
        names = [cell.arm.label, cell.model, cell.budget or EMPTY, runs]
        rows.append([*names, *_entries(tables, finished(own), is_mean=True)])
    whole = ["the study in total", EMPTY, EMPTY, str(len(tables.records))]
    rows.append([*whole, *_entries(tables, tables.records, is_mean=False)])
    header = ["strategy", "model", "data budget", "runs"]
    header += [f"{stage} {unit}" for stage in ("pretraining", "evaluation") for unit in _UNITS]
    marks = [*("" for _ in tables.cells), "reference"]
    return View("cost", "Cost", _note(tables), header, "lllr" + "r" * 8, rows, marks=marks)


def _entries(tables: Tables, records: Sequence[RunRecord], *, is_mean: bool) -> list[Entry]:
    stages = [pretraining(record) for record in records], [_evaluations(tables)[r.run_id] for r in records]
    return [entry for stage in stages for entry in _stage(stage, is_mean=is_mean)]


def _stage(costs: Sequence[Cost], *, is_mean: bool) -> list[Entry]:
    found = [
        amount(_summary([c.flops for c in costs], is_mean)),
        amount(_summary([c.seconds for c in costs], is_mean)),
    ]
    if not any(c.energies for c in costs):
        return [*found, EMPTY, EMPTY]
    for unit in ("kwh", "co2_kg"):
        parts = []
        for source in SOURCES:
            known = [total(getattr(e, unit) for e in c.energies if e.source == source) for c in costs]
            value = _summary(known, is_mean)
            parts += [] if value is None else [f"{_small(value)} {source}"]
        found.append("; ".join(parts) or EMPTY)
    return list(found)


def _summary(values: Sequence[float | None], is_mean: bool) -> float | None:
    known = total(values)
    n = sum(value is not None for value in values) if is_mean else 1
    return None if known is None else known / n


def _small(value: float) -> str:
    return power(value) if value < 0.01 else amount(value)


def _note(tables: Tables) -> str:
    return " ".join(
        part
        for part in (
            "Rows of cells: means over the finished runs that have the number. Pretraining and evaluation "
            "are not added up. Seconds depend on the machine and on what else it did; FLOPs do not.",
            _coverage(tables),
            energy_note(tables),
        )
        if part
    )


def _coverage(tables: Tables) -> str:
    """How much of the study the totals stand for."""
    lost = [record for record in tables.records if record.status != "finished"]
    silent = sum(pretraining(record).seconds is None for record in lost)
    pretrained = [r for r in tables.records if r.budget is not None]
    metered = sum(bool(pretraining(record).energies) for record in pretrained)
    parts = []
    if lost:
        parts.append(f"The total counts the {len(lost)} runs that were lost as well")
        parts[-1] += f"; {silent} of them have no cost on record, so it is at least that." if silent else "."
    if metered and metered < len(pretrained):
        parts.append(f"Energy: of {metered} of {len(pretrained)} pretrained runs.")
    return " ".join([*parts, *_sharing(tables)])


def _sharing(tables: Tables) -> list[str]:
    """What runs that branch from a trunk did not train again."""
    branches = [record for record in finished(tables.records) if "trunk" in record.data]
    if not branches:
        return []
    saved = sum(r.spent.flops * r.data["trunk"]["steps"] / r.spent.steps for r in branches)
    every = sum(record.spent.flops for record in finished(tables.records))
    return [
        f"{len(branches)} runs branch from a trunk that another one trained. FLOPs and seconds count it as "
        "if each had been trained alone, energy does not; "
        f"{100 * saved / every:.1f} % of the FLOPs were spared."
    ]


def energy_note(tables: Tables) -> str:
    """By what energy is known, and the intensity of the grid by which it became CO2."""
    known = energies(tables)
    if not known:
        return "No run has its energy on record."
    methods = sorted({f"{energy.source} ({energy.method})" for energy in known})
    grids = "; ".join(_grid(known, country) for country in sorted({energy.country for energy in known}))
    also = (
        " Measured and estimated are not compared or added up." if len({e.source for e in known}) > 1 else ""
    )
    return f"Energy: {'; '.join(methods)}.{also} Grid, as it was configured: {grids}."


def _grid(known: Sequence[Energy], country: str) -> str:
    own = [energy for energy in known if energy.country == country]
    drawn_kwh = sum(energy.kwh for energy in own)
    intensity = 1000 * sum(energy.co2_kg for energy in own) / drawn_kwh if drawn_kwh else math.nan
    return f"{country}, {amount(intensity)} g CO2/kWh"
