"""Scores and costs -> Pareto fronts: the cells of a task that no cheaper cell matches.

A cell is on the front if no other costs as little or less and scores as well or better, one of them strictly.
Scratch takes part at no cost. The front is one of means: a member whose gain over the next cheaper member is
not clear, seed by seed, is on it by luck as likely as not, and marked.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.analysis.compare import difference, is_clear, summaries
from bench.analysis.cost import flops, seconds
from bench.analysis.naming import measure_link, seeds_note
from bench.analysis.stats import Interval, Paired, paired
from bench.analysis.table import BASELINE, Cell, Measure, Tables
from bench.analysis.text import EMPTY, Entry, View, amount, power, with_interval, with_p


@dataclass(frozen=True)
class Member:
    """A cell on the front. `gain` and `is_clear` are None for the cheapest: nothing costs less."""

    cell: Cell
    cost: float
    interval: Interval
    gain: Paired | None  # over the next cheaper member, in the metric's own unit
    is_clear: bool | None


def front(tables: Tables, measure: Measure, costs: Mapping[Cell, float]) -> list[Member]:
    """The front of one measure from cheap to dear; empty for a measure that only describes.

    Args:
        tables: of the study.
        measure: what is scored.
        costs: of each pretrained cell; scratch costs nothing, and a cell without a cost takes no part.
    """
    sign = tables.measures[measure].sign
    points = {
        row.cell: (costs.get(row.cell, 0.0), row.interval)
        for row in summaries(tables, measure)
        if row.interval is not None and (row.cell in costs or row.cell.arm.strategy == BASELINE)
    }
    scores = {cell: (cost, sign * spread.mean) for cell, (cost, spread) in points.items()}
    members: list[Member] = []
    for cell in _undominated(scores) if sign else ():
        cost, spread = points[cell]
        cheaper = [member for member in members if member.cost < cost]
        gap = difference(tables, measure, cell, cheaper[-1].cell) if cheaper else {}
        members.append(Member(cell, cost, spread, paired(gap), is_clear(gap, sign) if cheaper else None))
    return members


def _undominated(points: Mapping[Cell, tuple[float, float]]) -> list[Cell]:
    """The cells (cost, score) that no other matches: better than all that cost less, best at their cost.

    From cheap to dear; what is equal stays in order.
    """
    found: list[Cell] = []
    best = cost_of_best = -math.inf
    for cell in sorted(points, key=lambda cell: (points[cell][0], -points[cell][1])):
        cost, score = points[cell]
        if score > best or (score == best and cost == cost_of_best):
            found.append(cell)
            best, cost_of_best = score, cost
    return found


def pareto(tables: Tables) -> View:
    """The front of each task's headline metric by pretraining FLOPs."""
    spent, taken = flops(tables), seconds(tables)
    found = [(measure, member) for measure in tables.headlines for member in front(tables, measure, spent)]
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, measure)],
            member.cell.arm.label,
            member.cell.model,
            member.cell.budget or EMPTY,
            with_interval(member.interval),
            power(member.cost),
            amount(taken.get(member.cell)),
            with_p(member.gain),
            {None: EMPTY, True: "clear", False: "not clear"}[member.is_clear],
        ]
        for measure, member in found
    ]
    note = (
        "Cells that no other matches at as little pretraining, by mean; scratch pretrains nothing. The costs "
        "are without evaluation; seconds depend on the machine. Not clear: p > 0.05 against the next cheaper "
        "row of the task, seed-paired t test, uncorrected: the runs do not show that the rest is worth it. "
        f"{seeds_note(member.interval.n for _, member in found)}"
    )
    header = ["task: metric", "strategy", "model", "data budget", "mean", "pretraining FLOPs"]
    header += ["pretraining s", "minus the next cheaper", "gain"]
    title = "What is worth its cost: Pareto fronts of quality and FLOPs"
    return View("pareto", title, note, header, "llllrrrrl", rows)
