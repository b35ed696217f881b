"""The figure of `bench speed`: ours and peers, over the fastest peer and over the limit, by size."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from bench.report.figures.base import COLOURS, GREY, MARKERS, panels
from bench.speed.contract import OURS
from bench.speed.settings import Targets
from bench.speed.timings import Result, Spread

ROW_IN = 0.22  # of a strategy
APART = 0.11  # contenders of a strategy, in rows
Measure = Callable[[Result, str], Spread | None]


def draw(results: Sequence[Result], targets: dict[str, Targets]) -> Canvas:
    """Medians over rounds with their intervals; dotted: the target of ours.

    Args:
        results: of at least one cell.
        targets: of each size.
    """
    models = list(dict.fromkeys(result.model for result in results))
    strategies = list(dict.fromkeys(result.strategy for result in results))
    names = [OURS, *dict.fromkeys(name for result in results for name in result.peers)]
    canvas, grid = panels(2, len(models), 0.9 + ROW_IN * len(strategies), sharey=True)
    rows: list[tuple[str, str, Measure]] = [
        ("speed, fastest peer = 1", "over_best_peer", _over_best),
        ("share of the limit", "share_of_limit", lambda result, name: result.share_of_limit(name)),
    ]
    for axes_row, (label, target, measure) in zip(grid, rows, strict=True):
        for axes, model in zip(axes_row, models, strict=True):
            own = [result for result in results if result.model == model]
            _panel(axes, own, strategies, names, measure)
            goal = getattr(targets[model], target)
            for level, dash in ((1.0, "-"), (goal, ":")):
                if level is not None:
                    axes.axvline(level, color=GREY, linestyle=dash, linewidth=0.9)
            axes.set_title(model)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
    has_target = any(getattr(targets[model], key) is not None for model in models for _, key, _ in rows)
    canvas.legend(
        handles=_handles(names, has_target=has_target),
        loc="outside upper center",
        ncols=min(len(names) + 1, 7),
    )
    return canvas


def _over_best(result: Result, name: str) -> Spread | None:
    return None if result.best_peer is None else result.over(name, result.best_peer)


def _panel(
    axes: Axes, results: Sequence[Result], strategies: list[str], names: list[str], measure: Measure
) -> None:
    """A row per strategy, a mark per contender."""
    for i, name in enumerate(names):
        for result in results:
            spread = measure(result, name) if name == OURS or name in result.peers else None
            if spread is None:
                continue
            contenders = [OURS, *result.peers]
            shift = APART * (contenders.index(name) - (len(contenders) - 1) / 2)
            y = strategies.index(result.strategy) + shift
            colour, marker = _look(i)
            axes.plot([spread.low, spread.high], [y, y], color=colour, linewidth=0.9)
            axes.plot(spread.median, y, marker=marker, color=colour, linestyle="none")
    axes.set_yticks(range(len(strategies)), strategies)
    axes.set_ylim(len(strategies) - 0.4, -0.6)


def _look(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]


def _handles(names: list[str], *, has_target: bool) -> list[Line2D]:
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=name)
        for i, name in enumerate(names)
        for colour, marker in [_look(i)]
    ]
    target = Line2D([], [], color=GREY, linestyle=":", linewidth=0.9, label="target")
    return [*marks, target] if has_target else marks
