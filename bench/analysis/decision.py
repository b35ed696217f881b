"""Scores, data and compute -> a decision: the best strategy and model within a budget, and its certainty.

Candidates are the cells whose unique data and pretraining FLOPs lie within the caps; scratch is always one.
The certainty is the share of simulated means, given the errors of seeds and items, in which the best mean
stays best.
Nothing is interpolated or extrapolated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.analysis.cost import flops
from bench.analysis.error_model import Difference, Sample, difference, mean_of, sample, simulated_means
from bench.analysis.format import EMPTY
from bench.analysis.frames import BASELINE, Cell, Measure, Tables
from bench.analysis.gate import informative
from bench.analysis.stats import LEVEL, MIN_SEEDS, Floats, Interval, holm

_APART = 2  # compute levels that are closer than this factor are merged


class Caps(NamedTuple):
    """The largest data and compute that may be used; None means no limit."""

    data_bytes: float | None
    flops: float | None


@dataclass(frozen=True)
class Decision:
    """The best cell within the caps, and how it compares with scratch and the other candidates."""

    measure: Measure
    caps: Caps
    best: Cell
    interval: Interval
    certainty: float | None  # None if a candidate has fewer than three seeds
    scratch: Cell | None  # the best without pretraining; None: none was measured
    to_scratch: Difference | None  # best - scratch
    p_holm: float  # of `to_scratch`, corrected over all pretrained candidates
    ahead: tuple[Cell, ...]  # pretrained candidates that are shown to beat scratch, by p_holm
    tied: tuple[Cell, ...]
    missing: tuple[Cell, ...]  # within the caps, without a number
    n_candidates: int
    n_tested: int  # candidates that are compared with scratch


class Need(NamedTuple):
    """The data and compute of a cell; None if unknown."""

    data_bytes: float | None
    flops: float | None

    def fits(self, caps: Caps) -> bool:
        """Return whether it lies within the caps; an unknown amount does not."""
        return _is_within(self.data_bytes, caps.data_bytes) and _is_within(self.flops, caps.flops)


def _is_within(need: float | None, cap: float | None) -> bool:
    return cap is None or (need is not None and need <= cap)


def needs(tables: Tables) -> dict[Cell, Need]:
    """Return unique text and pretraining FLOPs of every cell; external models are not a choice."""
    spent = flops(tables)
    return {
        cell: Need(0.0, 0.0)
        if cell.condition.strategy == BASELINE
        else Need(_data_bytes(tables, cell), spent.get(cell))
        for cell in tables.cells
        if not cell.condition.is_external
    }


def _data_bytes(tables: Tables, cell: Cell) -> float | None:
    """Return the text of a cell's data budget; image-text strategies train on the pairs of that budget."""
    runs = tables.runs_of(cell)
    for config, used in zip(runs["config"], runs["unique_bytes"], strict=True):
        granted = config.get("budget", {}).get("unique_bytes")
        if granted or not pd.isna(used):
            return float(granted or used)
    return None


def pretrained(tables: Tables, measure: Measure, takes: Mapping[Cell, Need]) -> dict[Cell, Need]:
    """Return the needs of each pretrained cell that has a score."""
    scored = set(tables.cells_with(measure))
    return {c: need for c, need in takes.items() if c in scored and c.condition.strategy != BASELINE}


def decide(tables: Tables, measure: Measure, caps: Caps, takes: Mapping[Cell, Need]) -> Decision | None:
    """Return the decision within the caps; None without a candidate, or for a measure that only describes.

    Args:
        tables: of the study.
        measure: the score to maximise or minimise.
        caps: on data and compute.
        takes: see `needs`.
    """
    return _decide(tables, measure, caps, _grid(tables, measure, takes))


@dataclass(frozen=True, eq=False)  # hashed by identity, so that its tests can be cached
class _Grid:
    """C cells with scores for S seeds, and the cells whose scores are missing."""

    cells: tuple[Cell, ...]
    sign: int  # 1 where higher is better, -1 where lower is
    samples: tuple[Sample, ...]  # (C,)
    means: Floats  # (C,), higher is better
    takes: Floats  # (C, 2) as in Need; NaN: not known
    is_scratch: NDArray[np.bool_]  # (C,)
    lacking: tuple[tuple[Cell, Need], ...]

    def within(self, caps: Caps) -> NDArray[np.bool_]:
        """Return for each cell (C,) whether it lies within the caps; an unknown amount does not."""
        limits = np.array([np.inf if cap is None else cap for cap in caps])
        return ((self.takes <= limits) | np.isinf(limits)).all(axis=1)


@lru_cache(maxsize=2**10)  # the best cell and the best of scratch are the same at many levels
def _p_against(grid: _Grid, i: int) -> Floats:
    """Return the p values (C,) of the differences of all cells to the i-th."""
    gaps = (difference(own, grid.samples[i]) for own in grid.samples)
    return np.array([1.0 if gap is None else gap.p for gap in gaps])


@lru_cache(maxsize=2**6)
def _draws(grid: _Grid) -> Floats:
    """Return simulated means (R, C) of the cells with three or more seeds; NaN for the others."""
    known = [i for i, own in enumerate(grid.samples) if len(own.seeds) >= MIN_SEEDS]
    drawn = grid.sign * simulated_means([grid.samples[i] for i in known])
    found = np.full((len(drawn), len(grid.samples)), np.nan)
    found[:, known] = drawn
    return found


def _grid(tables: Tables, measure: Measure, takes: Mapping[Cell, Need]) -> _Grid:
    scored = set(tables.cells_with(measure))
    cells = [cell for cell in takes if cell in scored]
    sign = tables.measures[measure].sign
    samples = tuple(sample(tables, measure, [cell]) for cell in cells)
    tried = [cell for cell in takes if cell not in scored]
    return _Grid(
        tuple(cells),
        sign,
        samples,
        np.array([sign * own.mean for own in samples], dtype=np.float64),
        np.array([[np.nan if own is None else own for own in takes[cell]] for cell in cells]).reshape(-1, 2),
        np.array([cell.condition.strategy == BASELINE for cell in cells], dtype=np.bool_),
        tuple(
            (cell, takes[cell]) for cell in tried if (cell.condition, measure.task) not in tables.inapplicable
        ),
    )


def _decide(tables: Tables, measure: Measure, caps: Caps, grid: _Grid) -> Decision | None:
    own = np.flatnonzero(grid.within(caps)) if tables.measures[measure].sign else np.array([], dtype=int)
    if not len(own):
        return None
    cells, means, is_scratch = [grid.cells[i] for i in own], grid.means[own], grid.is_scratch[own]
    best = int(np.argmax(means))
    scratch = int(np.argmax(np.where(is_scratch, means, -np.inf))) if is_scratch.any() else None
    spread = mean_of(tables, measure, [cells[best]])
    assert spread is not None
    tested = np.flatnonzero(~is_scratch) if scratch is not None else np.array([], dtype=int)
    p_scratch = np.ones(len(own)) if scratch is None else _p_against(grid, int(own[scratch]))[own]
    p_holm = dict(zip(tested.tolist(), holm(p_scratch[tested]), strict=True))
    is_above = means > (np.inf if scratch is None else means[scratch])
    is_behind = (_p_against(grid, int(own[best]))[own] <= 1 - LEVEL) & (means < means[best])
    drawn = _draws(grid)[:, own]
    return Decision(
        measure,
        caps,
        cells[best],
        spread,
        certainty=None if np.isnan(drawn).any() else float((drawn.argmax(axis=1) == best).mean()),
        scratch=None if scratch is None else cells[scratch],
        to_scratch=None
        if scratch in (None, best)
        else difference(grid.samples[own[best]], grid.samples[own[scratch]]),
        p_holm=p_holm.get(best, 1.0),
        ahead=tuple(cells[i] for i, p in p_holm.items() if p <= 1 - LEVEL and is_above[i]),
        tied=tuple(cell for i, cell in enumerate(cells) if not is_behind[i] and i != best),
        missing=_missing(grid, caps),
        n_candidates=len(cells),
        n_tested=len(tested),
    )


def _missing(grid: _Grid, caps: Caps) -> tuple[Cell, ...]:
    """Return the cells within the caps without a score; a lost run may lack its compute, too."""
    data_only = Caps(caps.data_bytes, None)
    return tuple(c for c, need in grid.lacking if need.fits(data_only if need.flops is None else caps))


def levels(takes: Mapping[Cell, Need]) -> list[Caps]:
    """Return every data budget combined with every compute level, both ascending.

    A compute level is the cost of the most expensive strategy of a model and budget, so that all of them fit.
    """
    dearest: dict[tuple[str, str | None], float] = {}
    for cell, need in takes.items():
        place = cell.model, cell.budget
        dearest[place] = max(need.flops or 0.0, dearest.get(place, 0.0))
    merged: list[float] = []
    for level in sorted(filter(None, dearest.values()), reverse=True):
        if not merged or level * _APART <= merged[-1]:
            merged.append(level)
    sizes: list[float | None] = [*sorted({need.data_bytes for need in takes.values() if need.data_bytes})]
    return [Caps(size, level) for size in sizes or [None] for level in reversed(merged)]


@lru_cache(maxsize=1)  # for the page and for its CSV
def all_decisions(tables: Tables) -> tuple[Decision, ...]:
    """Return the decisions on every task's headline metric."""
    takes = needs(tables)
    return tuple(row for measure in informative(tables) for row in decisions(tables, measure, takes))


def decisions(tables: Tables, measure: Measure, takes: Mapping[Cell, Need]) -> list[Decision]:
    """Return a decision at each level whose pretrained candidates differ from those of all earlier levels."""
    found: list[Decision] = []
    grid = _grid(tables, measure, takes)
    seen = {bytes(len(grid.cells))}
    for caps in levels(pretrained(tables, measure, takes)):
        candidates = (grid.within(caps) & ~grid.is_scratch).tobytes()
        decision = _decide(tables, measure, caps, grid) if candidates not in seen else None
        found += [decision] if decision is not None else []
        seen.add(candidates)
    return found


def certainty(row: Decision) -> str:
    """Format the certainty: `98 %`, or a word if there are too few seeds or one candidate."""
    if row.n_candidates == 1:
        return "no rival"
    return EMPTY if row.certainty is None else f"{100 * row.certainty:.0f} %"
