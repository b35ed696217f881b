"""What scaling is fitted to. Tables -> losses and errors; an arm's cells of one -> observations."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bench.analysis.compare import is_compared
from bench.analysis.naming import cells_anchor, measure_label
from bench.analysis.scaling import Observations
from bench.analysis.table import Arm, Cell, Measure, Tables, cell_of
from bench.analysis.text import Link
from bench.records import RunRecord

MOST_ARMS = 16


class Quantity(NamedTuple):
    """A number that is better when lower, by cell and seed: a loss, 1 - score, or the metric itself."""

    label: str
    measure: Measure | None  # None: the validation loss
    values: Mapping[Cell, Mapping[int, float]]

    @property
    def is_shared(self) -> bool:
        """May strategies be held against each other? Losses of two objectives may not."""
        return self.measure is not None

    def link(self, tables: Tables) -> Link:
        """The label, leading to the cells that it is computed from."""
        return Link(self.label, f"#{cells_anchor(tables, self.measure)}" if self.measure else "")


def quantities(tables: Tables) -> list[Quantity]:
    """The validation loss, and every headline metric that falls or is a share; none without a grid to fit.

    None either for more than `MOST_ARMS` strategies and variants: a sweep of settings is no study of scaling.
    """
    if n_arms(tables) > MOST_ARMS or not any(len(cells_of(tables, arm)) > 1 for arm in tables.arms):
        return []
    loss = Quantity("validation loss (nats)", None, _validation_losses(tables))
    found = [_error(tables, measure) for measure in tables.headlines]
    return [q for q in (loss, *found) if q is not None and q.values]


def n_arms(tables: Tables) -> int:
    """Strategies and variants that could be fitted."""
    return sum(len(cells_of(tables, arm)) > 1 for arm in tables.arms)


def cells_of(tables: Tables, arm: Arm) -> list[Cell]:
    """The pretrained cells of an arm; none for scratch and external models."""
    return [cell for cell in tables.cells if cell.arm == arm and cell.budget and is_compared(arm)]


def measured_cells(tables: Tables, quantity: Quantity, arm: Arm) -> list[Cell]:
    """Those of an arm's cells that have a number."""
    return [cell for cell in cells_of(tables, arm) if quantity.values.get(cell)]


def shared_seeds(quantity: Quantity, cells: list[Cell]) -> list[int]:
    """The seeds that every cell has."""
    return sorted(set.intersection(*(set(quantity.values[cell]) for cell in cells))) if cells else []


def observe(tables: Tables, quantity: Quantity, arm: Arm) -> Observations:
    """An arm's cells that have a number; seeds that lack one of them are left out."""
    cells = measured_cells(tables, quantity, arm)
    seeds = shared_seeds(quantity, cells)
    records = [record_of(tables, cell) for cell in cells]
    return Observations(
        parameters=np.array([record.parameters for record in records], dtype=np.float64),
        tokens=np.array([record.spent.forward_tokens for record in records], dtype=np.float64),
        epochs=np.array([record.spent.epochs for record in records], dtype=np.float64),
        values=np.array([[quantity.values[cell][seed] for cell in cells] for seed in seeds]).reshape(
            len(seeds), len(cells)
        ),
    )


def record_of(tables: Tables, cell: Cell) -> RunRecord:
    """A finished run of a cell: N, D and epochs are the same in all of them."""
    return next(record for record in tables.runs_of[cell] if record.status == "finished")


def _error(tables: Tables, measure: Measure) -> Quantity | None:
    """None for a metric that rises and is no share: it has no known ceiling."""
    info, label = tables.measures[measure], measure_label(tables, measure)
    values = {cell: seeds for cell, seeds in tables.values[measure].items() if is_compared(cell.arm)}
    if info.sign < 0:
        return Quantity(label, measure, values)
    levels = [*info.chance, *(value for seeds in tables.values[measure].values() for value in seeds.values())]
    if not all(0 <= level <= 1 for level in levels):
        return None
    errors = {cell: {seed: 1 - value for seed, value in seeds.items()} for cell, seeds in values.items()}
    return Quantity(f"1 − {label[:-1].rstrip()}\N{NO-BREAK SPACE}↓", measure, errors)


def _validation_losses(tables: Tables) -> dict[Cell, dict[int, float]]:
    """The last of each finished run."""
    found: dict[Cell, dict[int, float]] = {}
    for record in tables.records:
        last = record.curve[-1].validation_loss_nats if record.curve else None
        if record.status == "finished" and last is not None and math.isfinite(last):
            found.setdefault(cell_of(record), {})[record.seed] = last
    return found
