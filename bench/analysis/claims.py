"""experiments/<study>/claims.yaml -> claims, which a study states before its runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.errors import ConfigError

SUPERIORITY, NON_INFERIORITY, EQUIVALENCE = "superiority", "non_inferiority", "equivalence"
CROSSOVER, VARIANCE_RATIO = "crossover", "variance_ratio"
TESTS = (SUPERIORITY, NON_INFERIORITY, EQUIVALENCE, CROSSOVER, VARIANCE_RATIO)
AXES, BETTER = ("labels", "tokens"), ("higher", "lower")
FILE = "claims.yaml"


@dataclass  # not frozen, since OmegaConf cannot merge into a nested frozen dataclass
class Side:
    """One side of a contrast, or a selection for both sides; None selects all values."""

    strategy: str | None = None
    variant: str | None = None
    model: str | None = None
    budget: str | None = None
    seeds: list[int] | None = None  # paired with those of the other side, in this order

    def within(self, shared: "Side") -> "Side":
        """Return this selection, completed by the shared one where it leaves a value open."""
        return Side(
            **{name: ours if ours is not None else getattr(shared, name) for name, ours in vars(self).items()}
        )


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement about `left` against `right`.

    `smallest_effect` is the smallest difference that matters, in the metric's own unit: the margin of
    non-inferiority and equivalence; for a ratio of variances, the smallest ratio, above 1.
    """

    statement: str = MISSING
    source: str = MISSING
    test: str = MISSING
    left: Side = field(default_factory=Side)
    right: Side = field(default_factory=Side)
    cells: Side = field(default_factory=Side)
    task: str = MISSING
    metric: str = MISSING
    n_labels: int | None = None  # None: the largest
    better: str | None = None  # higher | lower, for a metric that only describes
    smallest_effect: float | None = None
    axis: str | None = None  # labels | tokens, for a crossover
    between: list[float] | None = None  # where the crossover is claimed to lie


@dataclass(frozen=True)
class Claims:
    """A study's claims by id, in their order."""

    written: str  # a date
    claims: dict[str, Claim]


def read_claims(study: Path) -> Claims | None:
    """Return the claims in a study's folder; None if it has none.

    Raises:
        ConfigError: the file is not YAML, or a key is unknown, missing or wrong; names file, claim and key.
    """
    path = study / FILE
    if not path.is_file():
        return None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, a 13th month
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    known = {"written", "claims"}
    if (
        not isinstance(raw, dict)
        or set(raw) != known
        or not isinstance(raw["claims"], dict)
        or not raw["claims"]
    ):
        raise ConfigError(f"{path}: has to have the keys `written`, a date, and `claims`, a mapping by id")
    found = {str(name): _claim(node, f"{path}: claims.{name}") for name, node in raw["claims"].items()}
    return Claims(str(raw["written"]), found)


def _claim(node: Any, where: str) -> Claim:
    if not isinstance(node, dict):
        keys = ", ".join(key.name for key in fields(Claim))
        raise ConfigError(f"{where}: has to be a mapping with the keys {keys}")
    for side in ("left", "right", "cells"):
        if not isinstance(node.get(side, {}), dict):
            keys = ", ".join(key.name for key in fields(Side))
            raise ConfigError(f"{where}.{side}: has to be a mapping with some of the keys {keys}")
    try:
        claim = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Claim), node))
    except RecursionError as error:
        raise ConfigError(f"{where}: is nested in itself; write it out") from error
    except OmegaConfBaseException as error:
        key = f".{error.full_key}" if error.full_key else ""
        raise ConfigError(f"{where}{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(claim, Claim)
    _check(claim, where)
    return claim


def _check(claim: Claim, where: str) -> None:
    """Check what depends on several keys of a claim.

    Raises:
        ConfigError: names the key and the fix.
    """
    _require_one_of(claim.test, TESTS, f"{where}.test")
    for name, side in (("left", claim.left), ("right", claim.right)):
        if side.strategy is None:
            raise ConfigError(f"{where}.{name}.strategy: missing; name a strategy")
    if (claim.left.seeds is None) != (claim.right.seeds is None) or len(claim.left.seeds or ()) != len(
        claim.right.seeds or ()
    ):
        raise ConfigError(
            f"{where}: left.seeds and right.seeds are paired in order; list as many on both sides"
        )
    if claim.better is not None:
        _require_one_of(claim.better, BETTER, f"{where}.better")
    if claim.test == CROSSOVER:
        _check_crossover(claim, where)
    elif claim.smallest_effect is None or not claim.smallest_effect > (claim.test == VARIANCE_RATIO):
        least = (
            "a ratio above 1" if claim.test == VARIANCE_RATIO else "a difference above 0 in the metric's unit"
        )
        raise ConfigError(f"{where}.smallest_effect={claim.smallest_effect}: give {least}")


def _check_crossover(claim: Claim, where: str) -> None:
    _require_one_of(str(claim.axis), AXES, f"{where}.axis")
    between = claim.between or []
    if len(between) != 2 or not 0 < between[0] < between[1]:
        raise ConfigError(
            f"{where}.between={claim.between}: give two numbers of the axis, the lower one first"
        )


def _require_one_of(value: str, known: Sequence[str], where: str) -> None:
    if value not in known:
        raise ConfigError(f"{where}={value!r}: choose one of {', '.join(known)}{suggestion(value, known)}")


def suggestion(value: str, known: Sequence[str]) -> str:
    """Return `; did you mean x?` if a known name is similar, else an empty string."""
    close = get_close_matches(value, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Sweep(NamedTuple):
    """The runs that are about to start."""

    strategies: Collection[str]
    budgets: Collection[str | None]
    tasks: Collection[str]
    seeds: Collection[int]


def plan(asked: Claims, sweep: Sweep) -> list[str]:
    """Return a line on the number of seeds, and one for each claim that the sweep cannot test."""
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
    """Return whether an exact sign-flip test over so many seeds can reach the level of one of the claims."""
    from bench.analysis.format import p_value  # pandas and scipy, which `bench train` needs for claims only
    from bench.analysis.inference import sign_flip_floor, sign_flip_seeds

    needed = sign_flip_seeds(n_claims)
    floor = p_value(sign_flip_floor(n_seeds), equals="= ")
    can = "can" if n_seeds >= needed else "cannot"
    return (
        f"An exact sign-flip test over {n_seeds} seeds has p {floor} at least: it {can} reach the "
        f"level of one of {n_claims} claims, which takes {needed} seeds."
    )
