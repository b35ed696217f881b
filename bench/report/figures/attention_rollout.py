"""What each token of a text draws on, by attention rollout: a heat map per strategy (arXiv:2005.00928)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.analysis.format import EMPTY, number
from bench.analysis.frames import Condition, Tables
from bench.report.figures.base import WIDTH_IN, Figure, blank
from bench.report.tables.costs import Sample, shown_sample, visible

_NOTHING = "No attention rollout was recorded: nothing to draw."
_MOST_TICKS = 32
_LONGEST_TICK = 10  # characters


class Map(NamedTuple):
    """The rollout of one run."""

    task: str
    arm: Condition
    run: Sample
    shares: NDArray[np.floating[Any]]  # (T, T), row i is what token i draws on
    tokens: list[str]


class AttentionRollout(Figure):
    """One run per strategy: its largest cell, its lowest seed. An example, not a measurement."""

    title = "What each token draws on, by attention rollout"

    @dataclass(frozen=True)
    class Options:
        """Tasks that record a rollout; those that a study has not done are passed over."""

        tasks: list[str] = MISSING

    def __init__(self, options: Options) -> None:
        self.options = options

    def maps(self, tables: Tables) -> list[Map]:
        """All that can be drawn.

        Raises:
            DataError: a file with arrays is damaged.
        """
        found = []
        for task in self.options.tasks:
            for arm in tables.conditions:
                run = shown_sample(tables, arm, task)
                shares = None if run is None else tables.arrays(run.run_id, task).get("rollout")
                if run is None or shares is None:
                    continue
                tokens = [row.get("token", EMPTY) for row in run.texts]
                found.append(Map(task, arm, run, shares, tokens))
        return found

    def applies(self, tables: Tables) -> bool:
        """Is there a map?"""
        return bool(self.maps(tables))

    def draw(self, tables: Tables) -> Canvas:
        """Shares on one scale of colour, its root taken so that small ones can be seen."""
        found = self.maps(tables)
        if not found:
            return blank(_NOTHING)
        n_columns = _columns(max(len(item.tokens) for item in found))
        side, n_rows = (WIDTH_IN - 1.2) / n_columns, -(-len(found) // n_columns)
        canvas = Canvas(figsize=(WIDTH_IN, n_rows * (side + 0.25) + 0.6), layout="compressed")
        grid = canvas.subplots(n_rows, n_columns, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        norm = PowerNorm(0.5, vmin=0, vmax=1)
        for i, (axes, item) in enumerate(zip(grid.flat, found, strict=False)):
            image = axes.imshow(item.shares, cmap="Blues", norm=norm, interpolation="nearest")
            axes.set_title(
                item.arm.label if len(self.options.tasks) == 1 else f"{item.task}: {item.arm.label}"
            )
            is_same = i > 0 and item.tokens == found[i - 1].tokens
            below = found[i + n_columns].tokens if i + n_columns < len(found) else []
            _ticks(axes, item.tokens, side, x=item.tokens != below, y=i % n_columns == 0 or not is_same)
        bar = canvas.colorbar(image, ax=grid, fraction=0.03, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.set_label("share drawn from a token", fontsize=7)
        return canvas

    def caption(self, tables: Tables) -> str:
        """Whose run is shown, and how much its tokens draw on themselves and on the first."""
        found = self.maps(tables)
        if not found:
            return _NOTHING
        return (
            "One text, one run per strategy (largest cell, lowest seed): an example. A row is a token, a "
            "column what it draws on: the product over layers of half the attention, mean over heads, and "
            "half the identity; rows sum to 1. A causal strategy's early tokens have few to draw on. "
            f"Mean shares: {'; '.join(map(_finding, found))}."
        )


def _columns(n_tokens: int) -> int:
    """Maps side by side, so that the tokens beside them can be read."""
    return 4 if n_tokens <= 20 or n_tokens > _MOST_TICKS else 3 if n_tokens <= 26 else 2


def _ticks(axes: Axes, tokens: Sequence[str], side_in: float, *, x: bool, y: bool) -> None:
    """Tokens below and beside a map, each where wanted."""
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=min(6.5, 0.85 * 72 * side_in / len(tokens)))
    if len(tokens) > _MOST_TICKS:
        return
    names = [_short(visible(token) or "␣") for token in tokens]
    axes.set_xticks(range(len(names)), names if x else [], rotation=90)
    axes.set_yticks(range(len(names)), names if y else [])


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST_TICK else f"{token[: _LONGEST_TICK - 1]}…"


def _finding(item: Map) -> str:
    place = ", ".join(part for part in item.run.cell[1:] if part)
    shares = item.shares.astype(np.float64)
    own, first = number(float(shares.diagonal().mean())), number(float(shares[:, 0].mean()))
    return f"{item.arm.label} ({place}, seed {item.run.seed}) from itself {own}, from the first token {first}"
