"""A study for notebooks: records -> DataFrames, comparisons and figures, as its report shows them.

No torch is imported.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from bench.analysis import frames
from bench.analysis.claims import suggestion
from bench.analysis.contrast import contrast
from bench.analysis.frames import Measure, Tables
from bench.config.build import build
from bench.config.compose import compose_config
from bench.errors import ConfigError
from bench.report.figures.base import Figure
from bench.report.figures.style import STYLE
from bench.report.tables.claims import claim_frame

_PLACES = ["cell", "measure"]  # columns of numbers that only `Tables` can resolve


def load(study: str, experiments: str | Path = "experiments") -> "Study":
    """Read the records of a study; a damaged record is left out, with a warning that names it.

    Args:
        study: the study's name, such as "quickstart".
        experiments: the folder that holds a folder per study.

    Raises:
        ConfigError: there is no such study, or none of its records can be read.
    """
    tables, damaged = frames.load(study, Path(experiments))
    for error in damaged:
        warnings.warn(f"damaged record left out: {error}", stacklevel=2)
    return Study(tables, Path(experiments) / study)


@dataclass(frozen=True, eq=False)
class Study:
    """The records of one study.

    Only finished runs have scores; a diverged or failed run is a row of `runs` with its status and reason.
    What a run does not have is absent (NaN, NA or None), never 0. Every frame has the axes of a run:
    `run_id`, `status`, `strategy`, `model`, `budget`, `variant` (other swept settings, "" if none), `seed`.
    """

    tables: Tables
    folder: Path

    def __repr__(self) -> str:
        """Return the name of the study, with the number of its runs, conditions and tasks."""
        n_tasks = len({measure.task for measure in self.tables.measures})
        return (
            f"Study({self.tables.study!r}: {len(self.tables.runs)} runs, "
            f"{len(self.tables.conditions)} conditions, {n_tasks} tasks)"
        )

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Return one row per run; `bench.analysis.frames.run_frame` documents the columns and their units."""
        return self.tables.runs.drop(columns="cell")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Return one row per finished run, task, metric and label count.

        `bench.analysis.frames.score_frame` documents the columns and their units.
        """
        return self.tables.scores.drop(columns=_PLACES)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Return one row per point of a finished run's pretraining curve.

        `bench.analysis.frames.curve_frame` documents the columns and their units.
        """
        return self.tables.curves.drop(columns="cell")

    @cached_property
    def energies(self) -> pd.DataFrame:
        """Return one row per metered stage of a run.

        `bench.analysis.frames.energy_frame` documents the columns and their units.
        """
        axes = self.tables.runs[frames.AXES].drop(columns="status")
        return axes.merge(self.tables.energies.drop(columns="cell"), on="run_id")

    def items(self, task: str) -> pd.DataFrame:
        """Return the outcome of each test item of a task, by run; read from disk at every call.

        The axes of the run; `name` of the metric, with `@labels` where the task is measured at several label
        counts; `fit`, the number of the fine-tuning or probe; `item`, the number of the test item, the same
        in all runs; `value`, in the metric's unit.

        Raises:
            ConfigError: the study has no such task.
            DataError: a file of outcomes is damaged.
        """
        self._measures(task)
        axes = self.tables.runs[frames.AXES].drop(columns="seed")
        return axes.merge(self.tables.items(task).drop(columns="cell"), on="run_id")

    def compare(
        self,
        left: str,
        right: str,
        *,
        task: str | None = None,
        metric: str | None = None,
        model: str | None = None,
        budget: str | None = None,
        smallest_effect: float | None = None,
    ) -> pd.DataFrame:
        """Compare two conditions, on the first metric of every task by default.

        Args:
            left: a strategy, or a condition's label such as "mlm [optim=cosine]".
            right: what it is compared with.
            task: one task; None: all tasks, corrected together by Holm's procedure.
            metric: a metric of the task; None: the task's first that can be better or worse.
            model: one model size; None: the average over all.
            budget: one data budget; None: the average over all.
            smallest_effect: the smallest difference that matters, in the metric's unit.

        Returns:
            One row per task; `bench.analysis.contrast.contrast` documents the columns.

        Raises:
            ConfigError: the study has no such condition, task or metric.
        """
        if metric is not None and task is None:
            raise ConfigError(f"metric={metric!r} belongs to a task; name the task, too")
        measures = self.tables.headlines if task is None else [self._measure(task, metric)]
        return contrast(
            self.tables, left, right, measures, model=model, budget=budget, smallest_effect=smallest_effect
        )

    def claims(self) -> pd.DataFrame:
        """Return one row per claim of the study's claims.yaml; empty where it has none.

        `effect`, `low` and `high` (the interval at `level`) in the metric's unit, `p` and `p_adjusted`,
        `n_seeds`, `n_items`, `verdict`.

        Raises:
            ConfigError: the file is malformed.
        """
        return claim_frame(self.tables, self.folder)

    def plot(self, figure: str, **options: Any) -> Canvas:
        """Draw a figure of the report.

        Args:
            figure: a file of conf/figure or of a plug-in, such as "quality_vs_flops".
            options: keys of its YAML file, such as `tasks=["library_probe"]`.

        Raises:
            ConfigError: there is no such figure or option, or the study did not measure what it shows.
        """
        nodes = compose_config("report", []).figure
        if figure not in nodes:
            known = [str(name) for name in nodes]
            raise ConfigError(
                f"no figure {figure!r}{suggestion(figure, known)} (figures: {', '.join(known)})"
            )
        node = {str(key): value for key, value in nodes[figure].items()} | options
        drawn = build(node, Figure, f"figure.{figure}")  # type: ignore[type-abstract]
        if not drawn.applies(self.tables):
            raise ConfigError(f"figure {figure!r}: study {self.tables.study} did not measure what it shows")
        with mpl.rc_context(STYLE):
            return drawn.draw(self.tables)

    def _measure(self, task: str, metric: str | None) -> Measure:
        """Return a metric of a task, with the most labels where it was measured at several counts."""
        own = self._measures(task)
        wanted = [m for m in own if m.metric == metric or (metric is None and m in self.tables.headlines)]
        if not wanted:
            names = sorted({measure.metric for measure in own})
            raise ConfigError(f"{task}: no metric {metric!r} (metrics: {', '.join(names)})")
        return max(wanted, key=lambda measure: measure.n_labels or 0)

    def _measures(self, task: str) -> Sequence[Measure]:
        own = [measure for measure in self.tables.measures if measure.task == task]
        if not own:
            known = sorted({measure.task for measure in self.tables.measures})
            raise ConfigError(f"no task {task!r}{suggestion(task, known)} (tasks: {', '.join(known)})")
        return own
