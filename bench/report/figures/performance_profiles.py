"""Performance profiles (Agarwal et al. 2021, arXiv:2108.13264): the share of runs and tasks above a score."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from typing_extensions import override

from bench.analysis.compare import is_compared
from bench.analysis.format import with_interval, with_seeds
from bench.analysis.frames import BASELINE, Condition, Tables
from bench.analysis.stats import LEVEL, Floats, Profile, interquartile_mean, profile
from bench.analysis.untrained import baseline_name, shown
from bench.report.figures.base import Figure
from bench.report.figures.style import (
    GREY,
    Stroke,
    baseline_label,
    blank,
    bundles,
    draw_strokes,
    grey_line,
    looks,
    wrapped,
)
from bench.report.tables.findings import Suite, improvement, suite

_NOTHING = "Too few tasks that every strategy can do: nothing to draw."
_SCRATCH = Condition(BASELINE, "")
_PALE = "#cfcfcf"


class PerformanceProfiles(Figure):
    """Draw a panel per strategy, with the baseline as reference and all others in the background."""

    title = "Performance profiles across tasks"

    @dataclass(frozen=True)
    class Options:
        """The number of thresholds at which a profile is computed."""

        n_thresholds: int

    @override
    def applies(self, tables: Tables) -> bool:
        found = suite(tables)
        return found is not None and bool(_compared(found))

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw the profiles; a line that stays higher is better at every score."""
        found = suite(tables)
        if found is None or not _compared(found):
            return blank(_NOTHING)
        thresholds = self._thresholds(found)
        profiles = {condition: profile(m.scores, thresholds) for condition, m in found.matrices.items()}
        conditions, style = _compared(found), looks(tables)
        panels = bundles(tables, conditions)
        canvas, flat = wrapped(len(panels))
        pale = [
            Stroke(np.column_stack([thresholds, profiles[condition].share]), _PALE, "-", 0.7)
            for condition in conditions
        ]
        for axes, (title, own) in zip(flat, panels.items(), strict=True):
            draw_strokes(axes, pale)
            if _SCRATCH in profiles:
                _line(axes, thresholds, profiles[_SCRATCH], GREY, "--")
            for condition in own:
                _line(axes, thresholds, profiles[condition], style[condition].colour, style[condition].dash)
            axes.axvline(0, color=GREY, linestyle=":", linewidth=1)
            axes.set_ylim(-0.02, 1.02)
            axes.set_title(title)
        canvas.supxlabel("normalised score τ (0: chance, 1: perfect)", fontsize=8)
        canvas.supylabel("share of runs × tasks above τ", fontsize=8)
        _legend(canvas, baseline_label(tables, _tasks(found)))
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        found = suite(tables)
        if found is None or not _compared(found):
            return _NOTHING
        means = {condition: interquartile_mean(m.scores) for condition, m in found.matrices.items()}
        best = max(means, key=lambda condition: means[condition].mean)
        chances = improvement(tables, found, best)
        name = baseline_name(tables, _tasks(found))
        over = f", P(better than {name}) {with_interval(chances)}" if chances is not None else ""
        base = f"; {name} {with_seeds(means[_SCRATCH])}" if _SCRATCH in means and best != _SCRATCH else ""
        return (
            f"Share of runs × tasks ({len(found.measures)} tasks) whose normalised score is above τ; bands: "
            f"{100 * LEVEL:.0f} % percentile bootstrap over whole seeds, pointwise; grey: the other "
            f"strategies. {self._finding(found, name)}"
            "Highest interquartile mean (biased upward, since it was chosen): "
            f"{shown(tables, best, _tasks(found)).label} {with_seeds(means[best])}{over}{base}. "
            "The table across tasks lists the tasks."
        )

    def _thresholds(self, found: Suite) -> Floats:
        """Return thresholds from just below the lowest score to just above the highest."""
        scores = np.concatenate([matrix.scores.ravel() for matrix in found.matrices.values()])
        low, high = min(0.0, float(scores.min())), float(scores.max())
        margin = 0.02 * (high - low)
        return np.linspace(low - margin, high + margin, self.options.n_thresholds)

    def _finding(self, found: Suite, baseline: str) -> str:
        """Return strategies by whether their profile is above or below the baseline's, at every threshold."""
        if _SCRATCH not in found.matrices:
            return ""
        thresholds = self._thresholds(found)
        scratch = profile(found.matrices[_SCRATCH].scores, thresholds).share
        groups: dict[str, list[str]] = {}
        for condition in _compared(found):
            gap = profile(found.matrices[condition].scores, thresholds).share - scratch
            groups.setdefault(_side(gap, baseline), []).append(condition.label)
        return (
            "; ".join(f"{side}: {', '.join(conditions)}" for side, conditions in sorted(groups.items()))
            + ". "
        )


def _tasks(found: Suite) -> list[str]:
    return [measure.task for measure in found.measures]


def _compared(found: Suite) -> list[Condition]:
    return [condition for condition in found.matrices if is_compared(condition)]


def _line(axes: Axes, thresholds: Floats, own: Profile, colour: str, dash: object) -> None:
    axes.plot(thresholds, own.share, color=colour, linestyle=dash)
    if own.low is not None and own.high is not None:
        axes.fill_between(thresholds, own.low, own.high, color=colour, alpha=0.18, linewidth=0)


def _legend(canvas: Canvas, baseline: str) -> None:
    """Draw the legend of all lines but each panel's own strategy, which its title names."""
    drawn = ((GREY, "--", baseline), (_PALE, "-", "other strategies"))
    handles = [Line2D([], [], color=colour, linestyle=dash, label=label) for colour, dash, label in drawn]
    handles.append(grey_line(":", "chance"))
    canvas.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=3)


def _side(gap: Floats, baseline: str) -> str:
    """Return on which side of the baseline a profile is, given their difference `gap` (K,)."""
    above, below = gap > 1e-9, gap < -1e-9
    if not above.any() and not below.any():
        return f"The same profile as {baseline}"
    if not below.any():
        return f"Never below the profile of {baseline}"
    if not above.any():
        return f"Never above the profile of {baseline}"
    return f"Above the profile of {baseline} at some τ and below it at others"
