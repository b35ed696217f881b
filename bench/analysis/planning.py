"""Claims and a sweep -> what to know before the runs: can so many seeds decide them, is all in the sweep?"""

from collections.abc import Collection
from typing import NamedTuple

from bench.analysis.claims import Claims
from bench.analysis.inference import sign_flip_floor, sign_flip_seeds
from bench.analysis.stats import LEVEL
from bench.analysis.text import p_value


class Sweep(NamedTuple):
    """What is about to be run."""

    strategies: Collection[str]
    budgets: Collection[str | None]
    tasks: Collection[str]
    seeds: Collection[int]


def plan(asked: Claims, sweep: Sweep) -> list[str]:
    """A line on the seeds, and one for each claim that the sweep cannot answer."""
    n, n_seeds = len(asked.claims), len(sweep.seeds)
    lines = [f"{n} claim{'s' if n > 1 else ''} to be judged, {n_seeds} seeds. {flip_note(n, n_seeds)}"]
    for name, claim in asked.claims.items():
        sides = [side.within(claim.cells) for side in (claim.left, claim.right)]
        missing = [f"strategy {side.strategy}" for side in sides if side.strategy not in sweep.strategies]
        missing += [f"budget {side.budget}" for side in sides if side.budget not in (None, *sweep.budgets)]
        missing += [f"task {claim.task}"] if claim.task not in sweep.tasks else []
        if missing:
            lines.append(f"claim {name}: {', '.join(dict.fromkeys(missing))} not in this sweep")
    return lines


def flip_note(n_claims: int, n_seeds: int) -> str:
    """Can an exact test over so many seeds reach the corrected level at all?"""
    needed = sign_flip_seeds(n_claims, 1 - LEVEL)
    floor = p_value(sign_flip_floor(n_seeds), equals="= ")
    can = "can" if n_seeds >= needed else "cannot"
    return (
        f"An exact sign-flip test over {n_seeds} seeds has p {floor} at least: it {can} pass Holm's first "
        f"step of {n_claims} claims, which takes {needed} seeds."
    )
