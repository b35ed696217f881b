"""Quality against pretraining energy: a panel per task and way to know the energy, a point per cell."""

from bench.analysis.cost import SOURCES, energy_note, joules
from bench.analysis.format import amount
from bench.analysis.frames import Tables
from bench.report.figures.quality_vs_cost import Costs, QualityVsCost


class QualityVsEnergy(QualityVsCost):
    """The quality that energy buys. What was measured and what was estimated never share an axis."""

    title = "Quality against pretraining energy"
    nothing = "No finished run with its energy on record: nothing to draw."
    cost = "joules of pretraining"

    def applies(self, tables: Tables) -> bool:
        """Was any run's energy metered?"""
        return bool(self.costs(tables))

    def costs(self, tables: Tables) -> dict[str, Costs]:
        """By source; of every cell, the mean over those of its finished runs that have such an energy."""
        found = {source: joules(tables, source) for source in SOURCES}
        return {source: costs for source, costs in found.items() if costs}

    def value(self, cost: float) -> str:
        """In joules."""
        return f"{amount(cost)} J"

    def remark(self, tables: Tables) -> str:
        """By whom the energy is said; cells without are not drawn."""
        return f"; cells without it are left out. {energy_note(tables).rstrip('.')}"
