"""Tables and figures -> what the page of a study shows, in its order: verdicts first, then what they rest on.

A further table of findings is one line in `FINDINGS`; it then stands in the page, in report.md and as LaTeX.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.analysis.cost import cost
from bench.analysis.decision import decision_table
from bench.analysis.pareto import pareto
from bench.analysis.table import Tables
from bench.analysis.text import View
from bench.errors import DataError, in_brief
from bench.records import AuditRecord, RunRecord, read_audit
from bench.report import provenance, views
from bench.report.across_tasks import across_tasks
from bench.report.auditing import auditing, failures
from bench.report.budget_crossings import budget_crossings
from bench.report.claim_views import claims
from bench.report.evaluation import evaluation, samples
from bench.report.figures.drawn import Drawn
from bench.report.label_budgets import label_budgets
from bench.report.learning import learning
from bench.report.readme import Block, blocks
from bench.report.scaling_views import scaling
from bench.report.stability import stability

# Verdicts that a study asked for before its runs: they stand above all else. (tables, the study's folder) ->
# table, or None for a study that asked for none.
VERDICTS: tuple[Callable[[Tables, Path], View | None], ...] = (claims,)

# What else is found, below the figures. tables -> table, or None for a study without such measurements.
FINDINGS: tuple[Callable[[Tables], View | None], ...] = (
    views.verdicts,
    across_tasks,
    pareto,
    cost,
    learning,
    label_budgets,
    stability,
    scaling,
    budget_crossings,
)


@dataclass(frozen=True)
class Page:
    """All that the templates show."""

    study: str
    dates: str
    readme: list[Block]
    status: str  # how many runs of each status
    warnings: list[str]
    lost: list[str]  # one line per run without numbers
    verdicts: list[View]  # on what the study asked
    setup: list[View]
    headline: View
    decisions: View
    figures: list[Drawn]
    findings: list[View]
    cells: list[View]  # of the tasks' headline metrics
    more_cells: list[View]  # of all other metrics
    pairs: View
    samples: list[View]
    audit: View | None
    evaluation: View | None
    runs: View
    details: list[View]  # data, environment, all settings
    commands: list[str]  # that asked for the runs
    files: list[str]  # names of the CSV tables
    has_scores: bool

    def with_figures(self, drawn: list[Drawn], undrawn: list[str]) -> "Page":
        """The page with its figures, and warnings for those that could not be drawn."""
        return replace(self, figures=drawn, warnings=self.warnings + undrawn)


def assemble(
    tables: Tables,
    damaged: Sequence[DataError],
    files: list[str],
    *,
    records_href: str,
    study: Path,
) -> Page:
    """The page of a study, still without figures.

    Args:
        tables: its records.
        damaged: the errors of those that could not be read.
        files: names of its CSV tables.
        records_href: where the records lie, as a link from the page.
        study: its folder, for the README, the claims and the audit.
    """
    headlines, readme = set(tables.headlines), study / "README.md"
    unread = [f"Damaged record left out: {in_brief(error)}" for error in damaged]
    audit, unaudited = _audit(study)
    return Page(
        study=tables.study,
        dates=provenance.dates(tables),
        readme=blocks(readme.read_text(encoding="utf-8")) if readme.is_file() else [],
        status=_counts(tables, len(damaged)),
        warnings=unread + unaudited + provenance.warnings(tables) + failures(audit),
        lost=[line for record in tables.records for line in _losses(tables, record)],
        verdicts=_present([make(tables, study) for make in VERDICTS]),
        setup=[provenance.axes_view(tables), provenance.settings_view(tables)],
        headline=views.headline(tables),
        decisions=decision_table(tables),
        figures=[],
        findings=_present([make(tables) for make in FINDINGS]),
        cells=[views.cells(tables, measure) for measure in tables.measures if measure in headlines],
        more_cells=[views.cells(tables, measure) for measure in tables.measures if measure not in headlines],
        pairs=views.pairs(tables),
        samples=samples(tables),
        audit=auditing(tables, audit),
        evaluation=evaluation(tables),
        runs=views.runs(tables, records_href),
        details=[view(tables) for view in provenance.DETAILS],
        commands=sorted({record.command for record in tables.records if record.command}),
        files=files,
        has_scores=bool(tables.measures),
    )


def latex_views(tables: Tables, page: Page) -> list[View]:
    """The tables that are also written as LaTeX."""
    every = [*page.cells, *page.more_cells]
    cells = [[view.title, *row[:-1]] for view in every for row in view.rows]
    places = [(view, i) for view in every for i in range(len(view.rows))]
    best = frozenset(
        (k, 1 + j)
        for k, (view, i) in enumerate(places)
        for j in range(len(view.header))
        if (i, j) in view.best
    )
    header = ["task: metric", *every[0].header[:-1]] if every else ["task: metric"]
    stacked = View("cells", "Every cell", "", header, "l" * len(header), cells, best=best)
    found = [*page.verdicts, page.headline, page.decisions, *page.findings, views.differences(tables)]
    return [*found, stacked, page.runs]


def _audit(study: Path) -> tuple[AuditRecord | None, list[str]]:
    """The audit of a study, and a warning where it is damaged."""
    try:
        return read_audit(study), []
    except DataError as error:
        return None, [f"Damaged audit left out: {in_brief(error)}"]


def _present(found: Sequence[View | None]) -> list[View]:
    return [view for view in found if view is not None]


def _counts(tables: Tables, n_damaged: int) -> str:
    statuses = Counter(record.status for record in tables.records)
    counts = [f"{statuses[status]} {status}" for status in sorted(statuses)]
    return ", ".join([*counts, *([f"{n_damaged} damaged"] if n_damaged else [])])


def _losses(tables: Tables, record: RunRecord) -> list[str]:
    """What of a run has no numbers, and why: the run, or tasks that failed; a line each."""
    axes = f"{record.strategy}, {record.model}, {record.budget or 'no data budget'}, seed {record.seed}"
    found = [f"{record.status}, {record.reason or 'no reason recorded'}"]
    if record.status == "finished":
        results = tables.results.get(record.run_id, {}).values()
        found = [f"task {r.task} failed, {r.reason}" for r in results if r.status == "failed"]
    return [f"{record.run_id} ({axes}): {what}" for what in found]
