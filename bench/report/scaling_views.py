"""Scaling fits as a table: exponents with bands and the held-out check, or why there is no fit."""

from collections.abc import Iterable

from bench.analysis.compare import is_compared
from bench.analysis.predicting import MAX_EXTRAPOLATION, HeldOut, held_out
from bench.analysis.scaled import MOST_ARMS, Quantity, n_arms, observe, quantities
from bench.analysis.scaling import N_REFITS, Fit, fit
from bench.analysis.stats import LEVEL
from bench.analysis.table import Arm, Tables
from bench.analysis.text import EMPTY, Entry, Link, View, number, with_interval

_FEW = 3  # measures named in a row; more are counted
Row = tuple[Quantity, Arm, Fit | str]


def scaling(tables: Tables) -> View | None:
    """A row per measure and strategy with a fit, and one per reason for no fit; None without a grid."""
    header = ["measure", "strategy", "cells", "E", "alpha", "beta", "R*"]
    header += ["largest budget predicted", "measured", "check, or why there is no fit"]
    n = n_arms(tables)
    if n > MOST_ARMS:
        reason = f"no fit, no check: made for up to {MOST_ARMS} strategies and variants"
        row: list[Entry] = ["all", f"{n} strategies and variants", *[EMPTY] * 7, reason]
        return View("scaling", "Scaling fits", "", header, "llrrrrrrrl", [row])
    found = fits(tables)
    if not found:
        return None
    fitted = [
        _fitted(tables, quantity, arm, result) for quantity, arm, result in found if isinstance(result, Fit)
    ]
    rows = [*fitted, *_refused(tables, found)]
    note = (
        "L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, approach 3). L: validation loss, a metric that "
        "falls, or 1 − score for a share. N: all parameters, embeddings and heads included (records do not "
        "tell them apart). D: training positions. Where one model size or one D was run, its term is "
        "dropped. R*: how many repeats of the data are worth having, fitted where cells of one D differ in "
        f"unique data (Muennighoff et al. 2023). Brackets: {100 * LEVEL:.0f} % t interval of the spread of "
        f"{N_REFITS} refits that draw seeds, the same in all cells. Check: the fit without the largest "
        "budget predicts it; inside: the measured mean lies in the predicted band. Nothing is predicted "
        f"beyond {MAX_EXTRAPOLATION} times the largest N or D that was measured. Left out: metrics that are "
        "not a task's headline, and those that rise without a known ceiling. Losses compare only within a "
        "strategy's objective."
    )
    return View("scaling", "Scaling fits", note, header, "llrrrrrrrl", rows)


def fits(tables: Tables) -> list[Row]:
    """A fit, or why there is none, of every quantity and every strategy that has numbers of it."""
    found = []
    for quantity in quantities(tables):
        for arm in filter(is_compared, tables.arms):
            seen = observe(tables, quantity, arm)
            found += [(quantity, arm, fit(seen))] if len(seen.tokens) else []
    return found


def check(result: HeldOut | str) -> str:
    """What the held-out check says, in a few words."""
    if isinstance(result, str):
        return f"not checked ({result})"
    words = {True: "inside the band", False: "outside the band", None: "no band (one seed)"}
    off = result.measured.mean / result.predicted.mean - 1
    return f"{words[result.is_inside]}, measured {100 * off:+.1f} % off".replace("-", "−")


def exponent(result: Fit, name: str) -> str:
    """`0.34 [0.30, 0.38]`; what ended at a bound was not determined, and has no interval."""
    found = result.exponent(name)
    if found is not None and result.is_at_bound(name):
        return f"{number(found.mean)}, at its bound: undetermined"
    return with_interval(found)


def _fitted(tables: Tables, quantity: Quantity, arm: Arm, result: Fit) -> list[Entry]:
    held = held_out(result.seen)
    ends = (EMPTY, EMPTY) if isinstance(held, str) else map(with_interval, (held.predicted, held.measured))
    exponents = (exponent(result, name) for name in ("E", "alpha", "beta", "R*"))
    n_cells = str(len(result.seen.tokens))
    return [[quantity.link(tables)], arm.label, n_cells, *exponents, *ends, check(held)]


def _refused(tables: Tables, found: Iterable[Row]) -> list[list[Entry]]:
    """Measures and strategies of one reason share a row."""
    arms: dict[tuple[str, int], dict[Arm, None]] = {}
    links: dict[tuple[str, int], dict[Link, None]] = {}
    for quantity, arm, result in found:
        if isinstance(result, str):
            key = result, len(observe(tables, quantity, arm).tokens)
            arms.setdefault(key, {})[arm] = None
            links.setdefault(key, {})[quantity.link(tables)] = None
    return [
        [
            list(own) if len(own := links[key]) <= _FEW else f"{len(own)} measures",
            ", ".join(arm.label for arm in arms[key]),
            str(key[1]),
            *[EMPTY] * 6,
            f"no fit, no check: {key[0]}",
        ]
        for key in arms
    ]
