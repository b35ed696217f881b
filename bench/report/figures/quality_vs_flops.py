"""Quality against pretraining FLOPs: a panel per task, a point per cell. What each strategy costs."""

from bench.analysis.cost import flops
from bench.analysis.format import power
from bench.analysis.frames import Tables
from bench.report.figures.quality_vs_cost import Costs, QualityVsCost


class QualityVsFlops(QualityVsCost):
    """The quality that pretraining compute buys."""

    title = "Quality against pretraining compute"
    nothing = "No finished run with pretraining FLOPs: nothing to draw."
    cost = "pretraining FLOPs"

    def costs(self, tables: Tables) -> dict[str, Costs]:
        """Of every cell, the mean over its finished runs."""
        found = flops(tables)
        return {"": found} if found else {}

    def value(self, cost: float) -> str:
        """In FLOPs."""
        return f"{power(cost)} FLOPs"

    def remark(self, tables: Tables) -> str:
        """What is counted."""
        return ", forward and backward"
