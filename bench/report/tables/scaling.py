"""Tables on scaling: fits with their held-out check, and crossings of two strategies."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.analysis.compare import is_compared
from bench.analysis.error_model import crossing, sample
from bench.analysis.format import EMPTY, Entry, Link, View, power, seeds_note, with_interval
from bench.analysis.frames import Cell, Condition, Tables
from bench.analysis.inference import BEFORE, BEYOND, Crossover, bounds, stops_helping
from bench.analysis.scaling import MAX_EXTRAPOLATION, MOST_RATIO, N_REFITS, Fit, HeldOut, fit, held_out
from bench.analysis.scaling_data import (
    MOST_CONDITIONS,
    Quantity,
    measured_cells,
    n_conditions,
    observe,
    quantities,
    run_of,
)
from bench.analysis.stats import LEVEL

_FEW = 3  # measures named in a row; more are counted
Row = tuple[Quantity, Condition, Fit | str]


def scaling(tables: Tables) -> View | None:
    """Return a row per fit, and one per reason for no fit; None if no strategy has several cells."""
    header = ["measure", "strategy", "cells", "E", "alpha", "beta", "R*"]
    header += ["largest budget predicted", "measured", "check, or why there is no fit"]
    n = n_conditions(tables)
    if n > MOST_CONDITIONS:
        reason = f"no fit, no check: scaling is fitted for at most {MOST_CONDITIONS} strategies and variants"
        row: list[Entry] = ["all", f"{n} strategies and variants", *[EMPTY] * 7, reason]
        return View("scaling", "Scaling fits", "", header, "llrrrrrrrl", [row])
    found = fits(tables)
    if not found:
        return None
    fitted = [
        _fitted(tables, quantity, condition, result)
        for quantity, condition, result in found
        if isinstance(result, Fit)
    ]
    rows = [*fitted, *_refused(tables, found)]
    note = (
        "L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3). L: validation loss, a metric that "
        "falls, or 1 − score for a share. N: all parameters, including embeddings and heads. D: training "
        "tokens. If only one model size or one D was run, its term is dropped. R*: the number of repeats "
        "over which the value of repeated data decays, fitted if cells of one D differ in unique data "
        f"(Muennighoff et al. 2023). Brackets: {100 * LEVEL:.0f} % t interval from {N_REFITS} refits that "
        "resample seeds, the same in all cells. Not identified: the interval reaches 0 or spans a factor of "
        f"{MOST_RATIO} or more. Check: a fit without the largest budget predicts it; inside the band: the "
        "measured mean lies in the predicted band, and the mean at the next smaller budget does not. Nothing "
        f"is predicted beyond {MAX_EXTRAPOLATION} times the largest measured N or D. Not included: metrics "
        "that are not a task's headline metric, and those that rise without a known ceiling. Losses are "
        "comparable only within an objective."
    )
    return View("scaling", "Scaling fits", note, header, "llrrrrrrrl", rows)


def fits(tables: Tables) -> list[Row]:
    """Return a fit, or the reason for none, of every quantity and every strategy with numbers of it."""
    found = []
    for quantity in quantities(tables):
        for condition in filter(is_compared, tables.conditions):
            seen = observe(tables, quantity, condition)
            found += [(quantity, condition, fit(seen))] if len(seen.tokens) else []
    return found


def check(result: HeldOut | str) -> str:
    """Return the result of the held-out check in a few words."""
    if isinstance(result, str):
        return f"not checked ({result})"
    words = {True: "inside the band", False: "outside the band", None: "no band (too few seeds)"}
    word = words[result.is_inside]
    if result.is_inside and result.is_too_wide:
        word = "not identified: the band also holds the next smaller budget"
    off = result.measured.mean / result.predicted.mean - 1
    return f"{word}, measured {100 * off:+.1f} % off".replace("-", "−")


def exponent(result: Fit, name: str) -> str:
    """Format an exponent: `0.34 [0.30, 0.38]`, or why it is not identified."""
    found = result.exponent(name)
    if found is None or found.low is None or found.high is None or result.is_identified(name):
        return with_interval(found)
    if result.is_at_bound(name):
        return "not identified (at its bound)"
    return f"not identified [{_brief(found.low)}, {_brief(found.high)}]"


def _brief(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _fitted(tables: Tables, quantity: Quantity, condition: Condition, result: Fit) -> list[Entry]:
    held = held_out(result.seen)
    ends = (EMPTY, EMPTY) if isinstance(held, str) else map(with_interval, (held.predicted, held.measured))
    exponents = (exponent(result, name) for name in ("E", "alpha", "beta", "R*"))
    n_cells = str(len(result.seen.tokens))
    return [[quantity.link(tables)], condition.label, n_cells, *exponents, *ends, check(held)]


def _refused(tables: Tables, found: Iterable[Row]) -> list[list[Entry]]:
    """Return a row per reason for no fit, with its measures and strategies."""
    conditions: dict[tuple[str, int], dict[Condition, None]] = {}
    links: dict[tuple[str, int], dict[Link, None]] = {}
    for quantity, condition, result in found:
        if isinstance(result, str):
            key = result, len(observe(tables, quantity, condition).tokens)
            conditions.setdefault(key, {})[condition] = None
            links.setdefault(key, {})[quantity.link(tables)] = None
    return [
        [
            list(own) if len(own := links[key]) <= _FEW else f"{len(own)} measures",
            ", ".join(condition.label for condition in conditions[key]),
            str(key[1]),
            *[EMPTY] * 6,
            f"no fit, no check: {key[0]}",
        ]
        for key in conditions
    ]


_N_POINTS = 200  # of D, at which two fits are compared


@dataclass(frozen=True)
class Overtaking:
    """A crossing: `early` is better with the least training, `late` from `point.at` tokens on."""

    quantity: Quantity
    model: str
    early: Condition
    late: Condition
    point: Crossover  # in tokens
    largest: float  # D that was measured
    basis: str


def budget_crossings(tables: Tables) -> View | None:
    """Return a row per measure, model and pair that crosses; None if no pair can be compared."""
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
        f"Of {tried} pairs of strategies (by measure and model) {len(found)} cross; only these are listed. "
        "Validation losses are not compared, since they are comparable only within an objective. The "
        "crossing is the number of training tokens D from which on the second strategy is ahead. If both "
        "strategies have a fit, the crossing is that of the fits, without repeated data, up to "
        f"{MAX_EXTRAPOLATION} times the largest measured D, and the range is its percentile bootstrap over "
        "seeds; otherwise it is interpolated linearly in log D between measured budgets, and the range ends "
        "at the measured budgets between which the order is not clear. < and > mark bounds outside the "
        f"measured range. {seeds_note(row.point.n for row in found)}"
    )
    header = ["task: metric", "model", "overtaken → overtaking", "D at the crossing", "range", "n", "basis"]
    return View(
        "budget_crossings",
        "Training tokens at which one strategy overtakes another",
        note,
        header,
        "lllrrrl",
        rows,
    )


def overtakings(tables: Tables) -> tuple[int, list[Overtaking]]:
    """Return how many pairs were compared, and those that cross."""
    tried, found = 0, []
    for quantity in quantities(tables):
        if not quantity.is_shared:
            continue
        fits = {condition: fit(observe(tables, quantity, condition)) for condition in tables.conditions}
        for model in tables.models:
            for left, right in combinations(tables.conditions, 2):
                row = _overtaking(tables, quantity, model, (left, right), (fits[left], fits[right]))
                tried += row is not None
                found += [row] if row is not None and BEFORE < row.point.at < BEYOND else []
    return tried, found


def _overtaking(
    tables: Tables,
    quantity: Quantity,
    model: str,
    conditions: tuple[Condition, Condition],
    fits: tuple[Fit | str, Fit | str],
) -> Overtaking | None:
    """Return the crossing of a pair; None if they share fewer than two amounts of training."""
    measure = quantity.measure
    assert measure is not None
    left, right = (_by_budget(tables, quantity, condition, model) for condition in conditions)
    pairs = [(left[budget], right[budget]) for budget in left if budget in right]
    points = {
        int(run_of(tables, early)["forward_tokens"]): (
            sample(tables, measure, [early]),
            sample(tables, measure, [late]),
        )
        for early, late in pairs
    }
    if len(points) < 2:
        return None
    sign, smallest, largest = tables.measures[measure].sign, min(points), max(points)
    early, late = points[smallest]
    if sign * (early.mean - late.mean) < 0:
        return _overtaking(tables, quantity, model, (conditions[1], conditions[0]), (fits[1], fits[0]))
    basis, point = "between budgets", crossing(points, sign)
    one, two = fits
    if isinstance(one, Fit) and isinstance(two, Fit) and len(one.refits) == len(two.refits):
        sizes = [int(run_of(tables, cell)["parameters"]) for cell in pairs[0]]
        basis, point = "fits", fits_cross(one, two, (sizes[0], sizes[1]), smallest)
    return None if point is None else Overtaking(quantity, model, *conditions, point, largest, basis)


def fits_cross(early: Fit, late: Fit, sizes: tuple[float, float], smallest: float) -> Crossover:
    """Return the D from which on `late` is lower than `early`, up to the limit of extrapolation.

    Args:
        early, late: the two fits, of one number of seeds.
        sizes: the number of parameters of each.
        smallest: the D to begin at.
    """
    largest = MAX_EXTRAPOLATION * min(early.seen.tokens.max(), late.seen.tokens.max())
    tokens = np.geomspace(smallest, largest, _N_POINTS)
    (one, ones), (two, twos) = early.curve(sizes[0], tokens), late.curve(sizes[1], tokens)
    at, ahead = float(stops_helping(tokens.tolist(), two - one)), bool((two > one).all())
    n = min(len(early.seen.values), len(late.seen.values))
    if not (len(ones) and len(twos)):
        return Crossover(at, None, None, n, ahead)
    return Crossover(at, *bounds(np.sort(stops_helping(tokens.tolist(), twos - ones))), n, ahead)


def _by_budget(tables: Tables, quantity: Quantity, condition: Condition, model: str) -> dict[str, Cell]:
    """Return the condition's cells of a model by data budget; of equal D, the most unique data is last."""
    cells = measured_cells(tables, quantity, condition)
    return {cell.budget: cell for cell in cells if cell.budget and cell.model == model}


def _range(row: Overtaking) -> str:
    return f"[{', '.join(row.point.bounds_as(power, '< smallest D', '> largest D')) or 'too few seeds'}]"
