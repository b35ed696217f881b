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
CROSSOVER, VARIANCE_RATIO, SLOPE = "crossover", "variance_ratio", "slope"
TESTS = (SUPERIORITY, NON_INFERIORITY, EQUIVALENCE, CROSSOVER, VARIANCE_RATIO, SLOPE)
AXES, BETTER = {CROSSOVER: ("labels", "tokens"), SLOPE: ("linear", "log2")}, ("higher", "lower")
FILE = "claims.yaml"
SCRATCH, RANDOM_FEATURES = "scratch", "random_features"  # see `bench.analysis.untrained`
MOST_PRIMARY = 6
PRIMARY_SHARE = 0.8  # of the error rate, where a study has secondary claims, too


@dataclass  # not frozen, since OmegaConf cannot merge into a nested frozen dataclass
class Side:
    """One side of a contrast, or a selection for both sides; None selects all values."""

    strategy: str | None = None
    variant: str | None = None
    model: str | None = None
    budget: str | None = None
    seeds: list[int] | None = None  # None: all; as many as of the other side

    @property
    def recorded(self) -> str:
        """Return the strategy as runs record it."""
        return SCRATCH if self.strategy == RANDOM_FEATURES else self.strategy or ""

    def within(self, shared: "Side") -> "Side":
        """Return this selection, completed by the shared one where it leaves a value open."""
        names = [part.name for part in fields(Side)]
        own = {name: getattr(self, name) for name in names}
        return Side(**{name: getattr(shared, name) if own[name] is None else own[name] for name in names})


@dataclass
class Level(Side):
    """One condition of a slope, at a number of the axis."""

    at: float = MISSING


@dataclass
class Assumed:
    """Spreads that a claim expects before any run, for `bench plan`; all in the metric's unit."""

    seed_sd: float = MISSING  # of one condition's score over seeds
    item_sd: float = 0.0  # of the difference of two conditions over items
    n_items: int | None = None
    correlation: float | None = None  # of two conditions over seeds; None: their seeds are independent


@dataclass(frozen=True)
class Claim:
    """A falsifiable statement about `left` against `right`, or about the slope over `levels`.

    `smallest_effect` is the smallest difference that matters, in the metric's own unit: the margin of
    non-inferiority and equivalence; for a ratio of variances, the smallest ratio, above 1; for a slope, the
    smallest change of the score for each unit of the axis, or for each doubling.
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
    reason: str | None = None  # why the smallest effect is what it is
    primary: bool = False
    axis: str | None = None  # labels | tokens, for a crossover; linear | log2, for a slope
    between: list[float] | None = None  # where the crossover is claimed to lie
    levels: list[Level] = field(default_factory=list)  # of a slope, three or more
    assumed: Assumed | None = None

    def sides(self) -> dict[str, Side]:
        """Return the conditions that are compared, by their keys in the file."""
        sides: dict[str, Side] = {"left": self.left, "right": self.right} if self.test != SLOPE else {}
        return sides | {f"levels.{i}": level for i, level in enumerate(self.levels)}


@dataclass(frozen=True)
class Claims:
    """A study's claims by id, in their order."""

    written: str  # a date
    claims: dict[str, Claim]
    amendments: dict[str, str] = field(default_factory=dict)  # what was changed after the runs, by date
    pilot: str | None = None  # the study whose spreads `bench plan` takes

    def error_rates(self, alpha: float) -> dict[str, float]:
        """Return the error rate of each claim; they add up to alpha, so all intervals hold together.

        Weighted Bonferroni (Rosenthal and Rubin 1983): primary claims share `PRIMARY_SHARE` of alpha equally,
        and secondary claims the rest. If all claims are of one kind, they share alpha.
        """
        kinds = [claim.primary for claim in self.claims.values()]
        shares = {True: PRIMARY_SHARE, False: 1 - PRIMARY_SHARE} if len(set(kinds)) > 1 else {kinds[0]: 1.0}
        return {
            name: alpha * shares[claim.primary] / kinds.count(claim.primary)
            for name, claim in self.claims.items()
        }


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
        or set(raw) - {"amendments", "pilot"} != known
        or not isinstance(raw["claims"], dict)
        or not raw["claims"]
    ):
        raise ConfigError(f"{path}: has to have the keys `written`, a date, and `claims`, a mapping by id")
    amendments = raw.get("amendments", {})
    if not isinstance(amendments, dict):
        raise ConfigError(f"{path}: amendments: has to be a mapping from dates to what was changed")
    found = {str(name): _claim(node, f"{path}: claims.{name}") for name, node in raw["claims"].items()}
    n_primary = sum(claim.primary for claim in found.values())
    if n_primary > MOST_PRIMARY:
        raise ConfigError(f"{path}: {n_primary} primary claims; name at most {MOST_PRIMARY}")
    dated = {str(day): str(text) for day, text in amendments.items()}
    return Claims(str(raw["written"]), found, dated, raw.get("pilot") and str(raw["pilot"]))


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
    for name, side in claim.sides().items():
        if side.strategy is None:
            raise ConfigError(f"{where}.{name}.strategy: missing; name a strategy")
    if (claim.left.seeds is None) != (claim.right.seeds is None) or len(claim.left.seeds or ()) != len(
        claim.right.seeds or ()
    ):
        raise ConfigError(f"{where}: left.seeds and right.seeds differ in number; list as many on both sides")
    if claim.better is not None:
        _require_one_of(claim.better, BETTER, f"{where}.better")
    if claim.test in AXES:
        _require_one_of(str(claim.axis), AXES[claim.test], f"{where}.axis")
    if claim.test == SLOPE:
        _check_slope(claim, where)
    if claim.assumed is not None:
        _check_assumed(claim.assumed, f"{where}.assumed")
    if claim.test == CROSSOVER:
        _check_crossover(claim, where)
    elif claim.smallest_effect is None or not claim.smallest_effect > (claim.test == VARIANCE_RATIO):
        least = (
            "a ratio above 1" if claim.test == VARIANCE_RATIO else "a difference above 0 in the metric's unit"
        )
        raise ConfigError(f"{where}.smallest_effect={claim.smallest_effect}: give {least}")
    elif not (claim.reason or "").strip():
        raise ConfigError(
            f"{where}.reason: missing; say why smallest_effect is {claim.smallest_effect}: a share of the "
            "lead over the trivial baseline, a published difference, or another reason"
        )


def _check_crossover(claim: Claim, where: str) -> None:
    between = claim.between or []
    if len(between) != 2 or not 0 < between[0] < between[1]:
        raise ConfigError(
            f"{where}.between={claim.between}: give two numbers of the axis, the lower one first"
        )


def _check_assumed(own: Assumed, where: str) -> None:
    if min(own.seed_sd, own.item_sd) < 0 or not own.seed_sd + own.item_sd > 0:
        raise ConfigError(f"{where}: give seed_sd and item_sd of 0 or more, one of them above 0")
    if own.item_sd and (own.n_items is None or own.n_items < 2):
        raise ConfigError(f"{where}.n_items={own.n_items}: item_sd needs the number of items, 2 or more")
    if own.correlation is not None and not -1 < own.correlation < 1:
        raise ConfigError(f"{where}.correlation={own.correlation}: use a number between -1 and 1")


def _check_slope(claim: Claim, where: str) -> None:
    xs = [level.at for level in claim.levels]
    if len(set(xs)) < 3 or len(set(xs)) < len(xs):
        raise ConfigError(f"{where}.levels: give three or more levels, each with another number `at`")
    if claim.axis == "log2" and min(xs) <= 0:
        raise ConfigError(f"{where}.levels: at={min(xs):g} has no logarithm; give numbers above 0")


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
    fine_tuned: Collection[str] = ()  # the tasks that train the network itself


def require_baseline(name: str, task: str, where: str, *, is_trained: bool) -> None:
    """Refuse the name of the baseline without pretraining that a task does not have.

    Args:
        name: a strategy, which may be another one.
        task: the task.
        where: the key, for the message.
        is_trained: whether the task trains the network itself, so that its baseline is `scratch`.

    Raises:
        ConfigError: names the key and the right name.
    """
    right = SCRATCH if is_trained else RANDOM_FEATURES
    if name in (SCRATCH, RANDOM_FEATURES) and name != right:
        does = "trains the network itself" if is_trained else "keeps the network frozen"
        raise ConfigError(f"{where}={name}: {task} {does}, so its baseline without pretraining is {right}")


def plan(asked: Claims, sweep: Sweep) -> list[str]:
    """Return a line on the number of seeds, and one for each claim that the sweep cannot test.

    Raises:
        ConfigError: a claim names the baseline without pretraining that its task does not have.
    """
    from bench.analysis.stats import MIN_SEEDS  # scipy, which `bench train` needs for claims only

    n, n_seeds = len(asked.claims), len(sweep.seeds)
    few = f"; a test takes {MIN_SEEDS} or more" if n_seeds < MIN_SEEDS else ""
    lines = [f"{n} claim{'s' if n > 1 else ''} to be judged, {n_seeds} seeds{few}"]
    for name, claim in asked.claims.items():
        for key, side in claim.sides().items() if claim.task in sweep.tasks else ():
            where, is_trained = f"claims.{name}.{key}.strategy", claim.task in sweep.fine_tuned
            require_baseline(side.strategy or "", claim.task, where, is_trained=is_trained)
        own = claim.levels or (claim.left, claim.right)
        sides = [side.within(claim.cells) for side in own]
        missing = [f"strategy {side.recorded}" for side in sides if side.recorded not in sweep.strategies]
        missing += [f"budget {side.budget}" for side in sides if side.budget not in (None, *sweep.budgets)]
        missing += [f"task {claim.task}"] if claim.task not in sweep.tasks else []
        if missing:
            lines.append(f"claim {name}: {', '.join(dict.fromkeys(missing))} not in this sweep")
    return lines
