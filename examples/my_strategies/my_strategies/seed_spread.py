"""The score of every run: a panel per task, a column per strategy, a point per run."""

from matplotlib.figure import Figure as Canvas

from bench.analysis.frames import Tables
from bench.report.figures.base import TaskFigure
from bench.report.figures.style import GREY, finish, wrapped


class SeedSpread(TaskFigure):
    """Draw single runs instead of means, so that a reader sees how much seeds, models and budgets differ."""

    title = "The score of every run"

    def draw(self, tables: Tables) -> Canvas:
        """Draw one point per finished run; a run that failed has no point."""
        measures = self.measures(tables)
        number = {measure: i for i, measure in enumerate(tables.measures)}
        canvas, panels = wrapped(len(measures))
        names = [condition.label for condition in tables.conditions]
        for axes, measure in zip(panels, measures, strict=True):
            own = tables.scores[tables.scores["measure"] == number[measure]]
            columns = [names.index(tables.cells[cell].condition.label) for cell in own["cell"]]
            axes.plot(columns, own["value"], "o", color=GREY, alpha=0.6, markersize=3)
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
            finish(axes, tables, measure)
        return canvas

    def caption(self, tables: Tables) -> str:
        """Return what is shown, with the number of runs."""
        n = tables.scores["run_id"].nunique()
        return f"Each point is one of {n} finished runs: a strategy, a model, a data budget and a seed."
