"""The amount of training at which one strategy overtakes another, on one measure and model."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.analysis.crossover import BEFORE, BEYOND, Crossover, bounds, crossover, stops_helping
from bench.analysis.naming import seeds_note
from bench.analysis.predicting import MAX_EXTRAPOLATION
from bench.analysis.scaled import Quantity, measured_cells, observe, quantities, record_of, shared_seeds
from bench.analysis.scaling import Fit, fit
from bench.analysis.table import Arm, Cell, Tables
from bench.analysis.text import Entry, View, power

_N_POINTS = 200  # of D, at which two fits are held against each other


@dataclass(frozen=True)
class Overtaking:
    """`early` is better with the least training; `point.at` is the D from which on `late` is."""

    quantity: Quantity
    model: str
    early: Arm
    late: Arm
    point: Crossover  # in positions
    largest: float  # D that was measured
    basis: str


def budget_crossings(tables: Tables) -> View | None:
    """A row per measure, model and pair that crosses; None where no pair could."""
    tried, found = overtakings(tables)
    if not tried:
        return None
    rows: list[list[Entry]] = [
        [
            [row.quantity.link(tables)],
            row.model,
            f"{row.early.label} → {row.late.label}",
            power(row.point.at),
            _range(row),
            str(row.point.n),
            row.basis + (", extrapolated" if row.point.at > row.largest else ""),
        ]
        for row in found
    ]
    note = (
        f"Of {tried} pairs of strategies (by measure and model) {len(found)} cross; the rest are left out, "
        "and so are validation losses, which compare only within an objective. The crossing is the number of "
        "training positions D from which on the second strategy is ahead, with the percentile bootstrap over "
        "the seeds that both have. Fits: where both strategies have one, on data that is not repeated, up to "
        f"{MAX_EXTRAPOLATION} times the largest D that was measured; else linear in log D between budgets "
        f"that were measured. < and >: outside that range. {seeds_note(row.point.n for row in found)}"
    )
    header = ["task: metric", "model", "overtaken → ahead", "D at the crossing", "range", "n", "from"]
    return View("budget_crossings", "Where strategies cross", note, header, "lllrrrl", rows)


def overtakings(tables: Tables) -> tuple[int, list[Overtaking]]:
    """How many pairs were held against each other, and those that cross."""
    tried, found = 0, []
    for quantity in quantities(tables):
        if not quantity.is_shared:
            continue
        fits = {arm: fit(observe(tables, quantity, arm)) for arm in tables.arms}
        for model in tables.models:
            for left, right in combinations(tables.arms, 2):
                row = _overtaking(tables, quantity, model, (left, right), (fits[left], fits[right]))
                tried += row is not None
                found += [row] if row is not None and BEFORE < row.point.at < BEYOND else []
    return tried, found


def _overtaking(
    tables: Tables, quantity: Quantity, model: str, arms: tuple[Arm, Arm], fits: tuple[Fit | str, Fit | str]
) -> Overtaking | None:
    """None where the two share fewer than two amounts of training."""
    left, right = (_by_budget(tables, quantity, arm, model) for arm in arms)
    pairs = [(left[budget], right[budget]) for budget in left if budget in right]
    seeds = shared_seeds(quantity, [cell for pair in pairs for cell in pair])
    gains = {
        record_of(tables, one).spent.forward_tokens: {
            seed: quantity.values[two][seed] - quantity.values[one][seed] for seed in seeds
        }
        for one, two in pairs
    }
    if len(gains) < 2 or not seeds:
        return None
    if sum(gains[min(gains)].values()) < 0:
        return _overtaking(tables, quantity, model, (arms[1], arms[0]), (fits[1], fits[0]))
    basis, point = "between budgets", crossover(gains)
    one, two = fits
    same = all(
        shared_seeds(quantity, measured_cells(tables, quantity, arm)) == seeds for arm in arms
    )  # the refits of both then draw the same seeds
    if isinstance(one, Fit) and isinstance(two, Fit) and same:
        sizes = [record_of(tables, cell).parameters for cell in pairs[0]]
        basis, point = "fits", fits_cross(one, two, (sizes[0], sizes[1]), min(gains))
    return None if point is None else Overtaking(quantity, model, *arms, point, max(gains), basis)


def fits_cross(early: Fit, late: Fit, sizes: tuple[float, float], smallest: float) -> Crossover:
    """The D from which on `late` is lower than `early`, from `smallest` to the limit of extrapolation.

    Args:
        early, late: of the same seeds.
        sizes: the number of parameters of each.
        smallest: D to begin at.
    """
    largest = MAX_EXTRAPOLATION * min(early.seen.tokens.max(), late.seen.tokens.max())
    tokens = np.geomspace(smallest, largest, _N_POINTS)
    (one, ones), (two, twos) = early.curve(sizes[0], tokens), late.curve(sizes[1], tokens)
    at, ahead = float(stops_helping(tokens.tolist(), two - one)), bool((two > one).all())
    n = len(early.seen.values)
    if n == 1:
        return Crossover(at, None, None, 1, ahead)
    return Crossover(at, *bounds(np.sort(stops_helping(tokens.tolist(), twos - ones))), n, ahead)


def _by_budget(tables: Tables, quantity: Quantity, arm: Arm, model: str) -> dict[str, Cell]:
    """The arm's cells of a model, by unique data: of one D that with the most is last."""
    cells = measured_cells(tables, quantity, arm)
    return {cell.budget: cell for cell in cells if cell.budget and cell.model == model}


def _range(row: Overtaking) -> str:
    return f"[{', '.join(row.point.bounds_as(power, '< smallest', '> largest')) or 'one seed'}]"
