"""Tables -> losses and errors to which scaling is fitted, and a condition's observations of them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.analysis.compare import is_compared
from bench.analysis.format import Link, cells_anchor, measure_label
from bench.analysis.frames import Cell, Condition, Measure, Tables
from bench.analysis.scaling import Observations

MOST_CONDITIONS = 16


class Quantity(NamedTuple):
    """A number by cell and seed that is better when lower: a loss, 1 - score, or the metric itself."""

    label: str
    measure: Measure | None  # None: the validation loss
    values: pd.DataFrame  # a row per cell with a number, a column per seed; NaN: absent

    @property
    def is_shared(self) -> bool:
        """Return whether strategies can be compared; losses of two objectives cannot."""
        return self.measure is not None

    def link(self, tables: Tables) -> Link:
        """Return the label as a link to the cells that it is computed from."""
        return Link(self.label, f"#{cells_anchor(tables, self.measure)}" if self.measure else "")


def quantities(tables: Tables) -> list[Quantity]:
    """Return the validation loss and every headline metric that falls or is a share; none without a grid.

    A study of more than `MOST_CONDITIONS` strategies and variants is a sweep and is not fitted.
    """
    if n_conditions(tables) > MOST_CONDITIONS or not any(
        len(cells_of(tables, condition)) > 1 for condition in tables.conditions
    ):
        return []
    loss = Quantity("validation loss (nats)", None, _validation_losses(tables))
    found = [_error(tables, measure) for measure in tables.headlines]
    return [q for q in (loss, *found) if q is not None and len(q.values)]


def n_conditions(tables: Tables) -> int:
    """Return the number of strategies and variants that could be fitted."""
    return sum(len(cells_of(tables, condition)) > 1 for condition in tables.conditions)


def cells_of(tables: Tables, condition: Condition) -> list[Cell]:
    """Return the pretrained cells of a condition; none for scratch and external models."""
    return [
        cell
        for cell in tables.cells
        if cell.condition == condition and cell.budget and is_compared(condition)
    ]


def measured_cells(tables: Tables, quantity: Quantity, condition: Condition) -> list[Cell]:
    """Return those of a condition's cells that have a number."""
    own = cells_of(tables, condition)
    return [cell for cell in own if tables.position[cell] in quantity.values.index]


def values_of(tables: Tables, quantity: Quantity, cells: Sequence[Cell]) -> pd.DataFrame:
    """Return numbers, a column per cell in this order and a row per seed that every cell has."""
    return quantity.values.loc[[tables.position[cell] for cell in cells]].T.dropna()


def observe(tables: Tables, quantity: Quantity, condition: Condition) -> Observations:
    """Return a condition's cells that have a number; seeds that lack one of them are left out."""
    cells = measured_cells(tables, quantity, condition)
    runs = pd.DataFrame([run_of(tables, cell) for cell in cells], columns=tables.runs.columns)
    size, tokens, epochs = (
        runs[name].to_numpy(np.float64) for name in ("parameters", "forward_tokens", "epochs")
    )
    values = np.ascontiguousarray(values_of(tables, quantity, cells)) if cells else np.empty((0, 0))
    return Observations(size, tokens, epochs, values)


@lru_cache(maxsize=2**12)
def run_of(tables: Tables, cell: Cell) -> pd.Series:
    """Return a finished run of a cell: N, D and epochs are the same in all of them."""
    runs = tables.runs_of(cell)
    return runs[runs["status"] == "finished"].iloc[0]


def _error(tables: Tables, measure: Measure) -> Quantity | None:
    """Return None for a metric that rises and is no share: it has no known ceiling."""
    info, label = tables.measures[measure], measure_label(tables, measure)
    every = tables.by_seed(measure).dropna(how="all")
    values = every.loc[[i for i in every.index if is_compared(tables.cells[i].condition)]]
    if info.sign < 0:
        return Quantity(label, measure, values)
    if not all(0 <= level <= 1 for level in (*info.chance, every.min(axis=None), every.max(axis=None))):
        return None
    return Quantity(f"1 − {label[:-1].rstrip()}\N{NO-BREAK SPACE}↓", measure, 1 - values)


def _validation_losses(tables: Tables) -> pd.DataFrame:
    """Return the last of each finished run, a row per cell and a column per seed."""
    last = tables.curves.groupby("run_id", sort=False).tail(1)
    last = last[np.isfinite(last["validation_loss_nats"])]
    return last.pivot_table(index="cell", columns="seed", values="validation_loss_nats", aggfunc="last")
