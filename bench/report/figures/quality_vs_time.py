"""Quality against pretraining time: a panel per task, a point per cell. What a strategy costs one machine."""

from bench.analysis.cost import seconds
from bench.analysis.format import amount
from bench.analysis.frames import Tables
from bench.report.figures.quality_vs_cost import Costs, QualityVsCost


class QualityVsTime(QualityVsCost):
    """The quality that wall time buys, on the machine that the runs were done on."""

    title = "Quality against pretraining time"
    nothing = "No finished run with a pretraining time: nothing to draw."
    cost = "pretraining seconds"

    def applies(self, tables: Tables) -> bool:
        """Did any run write its time down?"""
        return bool(seconds(tables))

    def costs(self, tables: Tables) -> dict[str, Costs]:
        """Of every cell, the mean over its finished runs."""
        found = seconds(tables)
        return {"": found} if found else {}

    def value(self, cost: float) -> str:
        """In seconds."""
        return f"{amount(cost)} s"

    def remark(self, tables: Tables) -> str:
        """Seconds are no property of a strategy alone."""
        return ", which depend on the machine and on what else it did"
