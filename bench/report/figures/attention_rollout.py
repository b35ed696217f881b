"""Attention rollout (arXiv:2005.00928): how much each token attends to the others, a map per strategy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from omegaconf import MISSING
from typing_extensions import override

from bench.analysis.format import EMPTY, number
from bench.analysis.frames import Condition, Tables
from bench.analysis.untrained import shown
from bench.report.figures.base import Figure
from bench.report.figures.style import WIDTH_IN, blank
from bench.report.tables.costs import Sample, shown_sample, visible

_NOTHING = "No attention rollout was recorded: nothing to draw."
_MOST_TICKS = 32
_LONGEST_TICK = 10  # characters


class Map(NamedTuple):
    """The rollout of one run."""

    task: str
    condition: Condition
    run: Sample
    shares: NDArray[np.floating[Any]]  # (T, T), row i is how much token i attends to each token
    tokens: list[str]


class AttentionRollout(Figure):
    """Show one run per strategy, of its largest cell and lowest seed: an example, not a measurement."""

    title = "Attention rollout: which tokens each token attends to"

    @dataclass(frozen=True)
    class Options:
        """Tasks that record a rollout; tasks that a study does not have are skipped."""

        tasks: list[str] = MISSING

    def maps(self, tables: Tables) -> list[Map]:
        """Return the maps that can be drawn.

        Raises:
            DataError: a file of outcomes is damaged.
        """
        found = []
        for task in self.options.tasks:
            for condition in tables.conditions:
                run = shown_sample(tables, condition, task)
                shares = None if run is None else tables.arrays(run.run_id, task).get("rollout")
                if run is None or shares is None:
                    continue
                tokens = [row.get("token", EMPTY) for row in run.texts]
                found.append(Map(task, shown(tables, condition, [task]), run, shares, tokens))
        return found

    @override
    def applies(self, tables: Tables) -> bool:
        return bool(self.maps(tables))

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw all maps on one colour scale; a square root makes small shares visible."""
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
                item.condition.label
                if len(self.options.tasks) == 1
                else f"{item.task}: {item.condition.label}"
            )
            is_same = i > 0 and item.tokens == found[i - 1].tokens
            below = found[i + n_columns].tokens if i + n_columns < len(found) else []
            _ticks(axes, item.tokens, side, x=item.tokens != below, y=i % n_columns == 0 or not is_same)
        bar = canvas.colorbar(image, ax=grid, fraction=0.03, aspect=30, ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.set_label("share of attention", fontsize=7)
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        found = self.maps(tables)
        if not found:
            return _NOTHING
        return (
            "An example: one text and one run per strategy (largest cell, lowest seed). Rows are tokens, and "
            "columns are the tokens that they attend to. The values are the product over layers of half the "
            "attention (mean over heads) plus half the identity; each row sums to 1. With a causal strategy, "
            "early tokens can attend to few others. Mean share of attention to a token itself and to the "
            f"first token: {'; '.join(map(_finding, found))}."
        )


def _columns(n_tokens: int) -> int:
    """Return how many maps are side by side, so that their tokens can be read."""
    return 4 if n_tokens <= 20 or n_tokens > _MOST_TICKS else 3 if n_tokens <= 26 else 2


def _ticks(axes: Axes, tokens: Sequence[str], side_in: float, *, x: bool, y: bool) -> None:
    """Write the tokens below and beside a map, each if wanted."""
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
    return f"{item.condition.label} ({place}, seed {item.run.seed}) {own} and {first}"
