"""Verdicts at each strategy's tuned rate, beside those at the rate that all strategies share.

A run at its tuned rate has no variant, and one at another rate is named by it (`bench.config.compose`). A
study that was run twice, as it is and with `tuned=none`, has a variant such as `optim.lr_peak=0.006`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from bench.analysis.claims import Claim, Claims, Side
from bench.analysis.frames import Tables
from bench.analysis.judging import Verdict, judge

S = TypeVar("S", bound=Side)
RATE = re.compile(r"optim\.lr_peak=\S+( optim\.weight_decay=\S+)?|optim\.weight_decay=\S+")


def at_shared_rate(tables: Tables, claims: Claims) -> dict[str, Verdict]:
    """Return the verdict at the shared rate on each claim that is on tuned rates; {} without such runs.

    The other verdicts stay as they are, so each claim keeps its error rate.
    """
    shared = shared_variants(tables)
    moved = {name: _moved(claim, shared) for name, claim in claims.claims.items()}
    changed = {name for name, claim in claims.claims.items() if moved[name] != claim}
    if not changed:
        return {}
    return {
        one.name: one.verdict for one in judge(tables, replace(claims, claims=moved)) if one.name in changed
    }


def shared_variants(tables: Tables) -> dict[str, str]:
    """Return the variant at the shared rate of each strategy that was run at its tuned rate as well.

    A strategy that is missing has the shared rate as its tuned one, or is not pretrained. A strategy with
    several rates was swept, so the study is not one of two rates, and {} is returned.
    """
    found: dict[str, str] = {}
    tuned = {condition.strategy for condition in tables.conditions if not condition.variant}
    for condition in tables.conditions:
        if condition.strategy in tuned and RATE.fullmatch(condition.variant):
            if condition.strategy in found:
                return {}
            found[condition.strategy] = condition.variant
    return found


def _moved(claim: Claim, shared: Mapping[str, str]) -> Claim:
    """Return the same claim on the runs at the shared rate."""
    sides = [_at(side, shared) for side in (claim.left, claim.right)]
    return replace(
        claim, left=sides[0], right=sides[1], levels=[_at(level, shared) for level in claim.levels]
    )


def _at(side: S, shared: Mapping[str, str]) -> S:
    return side if side.variant else replace(side, variant=shared.get(side.recorded, side.variant))
