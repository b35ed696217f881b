"""Tables and figures -> a page: a header and a list of sections, in the order in which a reader meets them.

One line in `_sections` adds a table. It then stands in the page and in the full Markdown report, and as a
LaTeX file if its section has `latex=True`. `one_page` is the short page for readers on a code host.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from bench.analysis.error_model import damaged as damaged_items
from bench.analysis.format import EMPTY, Entry, Link, View
from bench.analysis.frames import Tables, text
from bench.analysis.readme import blocks
from bench.errors import DataError, in_brief
from bench.records import AuditRecord, read_audit
from bench.report.figures.base import Drawn
from bench.report.tables import provenance
from bench.report.tables import results as views
from bench.report.tables.claims import claims
from bench.report.tables.costs import cost, evaluation, pareto, samples
from bench.report.tables.findings import across_tasks, label_budgets, learning, stability
from bench.report.tables.fits import convergence
from bench.report.tables.provenance import auditing, failures
from bench.report.tables.scaling import budget_crossings, scaling

PAGE, FULL_TEXT = "report.html", "report_full.md"  # the whole report
FIRST_FIGURE = "quality_vs_flops"  # on the one page; the second is the first other figure of the study
N_FIGURES = 2

Text = tuple[str, Entry]  # kind and text; a kind is h (heading), p (paragraph), li (list item) or pre (code)


@dataclass(frozen=True)
class Section:
    """A part of a page under one heading: texts, tables and figures, in this order."""

    anchor: str
    title: str
    tables: Sequence[View] = ()
    texts: Sequence[Text] = ()
    figures: Sequence[Drawn] = ()
    fold_over: int | None = None  # tables with more rows start folded; None: tables cannot be folded
    latex: bool = False  # the tables are written as LaTeX, too


@dataclass(frozen=True)
class Page:
    """The contents of a study's page."""

    study: str
    status: str  # the number of runs by status
    dates: str
    warnings: Sequence[str]
    sections: Sequence[Section]

    def section(self, anchor: str) -> Section | None:
        """Return a section; None if the study has nothing to show in it."""
        return next((section for section in self.sections if section.anchor == anchor), None)

    def with_figures(self, figures: Sequence[Drawn], undrawn: Sequence[str]) -> "Page":
        """Return the page with its figures, and warnings for those that could not be drawn."""
        sections = [replace(s, figures=figures) if s.anchor == "figures" else s for s in self.sections]
        return replace(self, warnings=[*self.warnings, *undrawn], sections=_shown(sections))


def assemble(
    tables: Tables, damaged: Sequence[DataError], files: Sequence[str], *, records_href: str, study: Path
) -> Page:
    """Return the page of a study, still without figures.

    Args:
        tables: the study's records.
        damaged: the errors of the records that could not be read.
        files: paths of the study's CSV tables, relative to the page.
        records_href: link from the page to the folder of records.
        study: the study's folder, for its README, claims and audit.
    """
    unread = [f"Damaged record left out: {in_brief(error)}" for error in damaged]
    unread += [f"Outcomes by item left out of the errors: {in_brief(e)}" for e in damaged_items(tables)]
    audit, unaudited = _audit(study)
    return Page(
        study=tables.study,
        status=_counts(tables, len(damaged)),
        dates=provenance.dates(tables),
        warnings=unread + unaudited + provenance.warnings(tables) + failures(audit),
        sections=_sections(tables, audit, files, records_href, study),
    )


def _sections(
    tables: Tables, audit: AuditRecord | None, files: Sequence[str], records_href: str, study: Path
) -> list[Section]:
    """Return every section of a study's page; a table that is None does not apply to the study."""
    results = [
        Section("headline", "Headline", _applicable(views.headline(tables), views.gated(tables)), latex=True),
        Section("decisions", "Best strategy", [views.decision_table(tables)], latex=True),
        Section("figures", "Figures"),
        Section(
            "findings",
            "Findings",
            _applicable(
                views.verdicts(tables),
                across_tasks(tables),
                pareto(tables),
                cost(tables),
                learning(tables),
                label_budgets(tables),
                stability(tables),
                convergence(tables),
                scaling(tables),
                budget_crossings(tables),
            ),
            fold_over=30,
            latex=True,
        ),
        Section(
            "cells",
            "Scores by cell",
            [views.cells(tables, m) for m in tables.measures if m in tables.headlines],
            [("p", "A cell is a strategy, a model and a data budget. Seeds link to the runs.")],
            fold_over=12,
        ),
        Section(
            "other-cells",
            "Scores by cell: other metrics",
            [views.cells(tables, m) for m in tables.measures if m not in tables.headlines],
            fold_over=0,
        ),
        Section("differences", "Differences between strategies", [views.pairs(tables)], fold_over=0),
        Section("samples", "Samples", samples(tables), fold_over=0),
    ]
    sections = [
        Section("question", "Question", texts=_readme(study)),
        Section("claims", "Claims and their verdicts", _applicable(claims(tables, study)), latex=True),
        Section("setup", "Setup", [provenance.axes_view(tables), provenance.settings_view(tables)]),
        *(results if tables.measures else [_NO_RESULTS]),
        Section("audit", "Audit of the tasks", _applicable(auditing(tables, audit))),
        Section("evaluation", "Evaluation: cost and coverage", _applicable(evaluation(tables))),
        Section(
            "run-status", "Runs", [views.runs(tables, records_href)], _lost(tables), fold_over=200, latex=True
        ),
        Section(
            "provenance",
            "Data, environment and settings",
            [view(tables) for view in provenance.DETAILS],
            fold_over=0,
        ),
        Section("again", "Reproduce", texts=_again(tables, files)),
    ]
    return _shown(sections, keep="figures")


_NO_RESULTS = Section(
    "results",
    "Results",
    texts=[
        (
            "p",
            "No run of this study finished with a score, so there is nothing to compare. "
            "The runs and the reasons are below.",
        )
    ],
)


def one_page(page: Page, records_href: str) -> Page:
    """Return what a reader must know of a study, short enough to read on a code host.

    Args:
        page: the whole page.
        records_href: link from the page to the folder of records.
    """
    question, judged, headline, figures, found, again = map(
        page.section, ("question", "claims", "headline", "figures", "findings", "again")
    )
    sections = []
    if question is not None:
        readme = Link("README", f"{records_href.removesuffix('records')}README.md")
        more: Text = ("p", [Link("Prediction and method:"), readme])
        sections.append(replace(question, texts=[*_first_paragraph(question.texts), more]))
    if judged is not None:
        sections.append(replace(judged, tables=[short_claims(view) for view in judged.tables]))
    sections += [headline] if headline is not None else []
    sections += [_NO_RESULTS] if page.section("results") is not None else []
    if figures is not None:
        chosen = sorted(figures.figures, key=lambda figure: figure.name != FIRST_FIGURE)[:N_FIGURES]
        sections.append(replace(figures, figures=chosen))
    if found is not None:
        total = [_total(view) for view in found.tables if view.name == "cost"]
        sections.append(Section("cost", "Cost", total))
    if again is not None:
        sections.append(replace(again, texts=_rest(page.study, again.texts, records_href)))
    return replace(page, sections=_shown(sections))


def short_claims(view: View) -> View:
    """Return the columns of the claims table that state effect and verdict."""
    kept = [view.header.index(name) for name in ("claim", "effect", "n", "verdict")]
    return replace(_columns(view, kept), note=view.note.partition(". ")[0] + ".")


def _total(view: View) -> View:
    """Return the last row of the cost table, the whole study's, without empty columns."""
    row = view.rows[-1]
    view = replace(view, rows=[row], marks=[], note="")
    return _columns(view, [i for i, entry in enumerate(row) if i >= 3 and entry != EMPTY])


def _columns(view: View, kept: Sequence[int]) -> View:
    return replace(
        view,
        header=[view.header[i] for i in kept],
        align="".join(view.align[i] for i in kept),
        rows=[[row[i] for i in kept] for row in view.rows],
    )


def latex_tables(tables: Tables, page: Page) -> list[View]:
    """Return the tables that are also written as LaTeX."""
    shown = [view for section in page.sections if section.latex for view in section.tables]
    return [*shown, views.differences(tables), _stacked(page)]


def _stacked(page: Page) -> View:
    """Return the tables of all cells as one, with the task's metric as its first column."""
    every = [
        view
        for section in page.sections
        if section.anchor in ("cells", "other-cells")
        for view in section.tables
    ]
    places = [(view, i) for view in every for i in range(len(view.rows))]
    rows: list[list[Entry]] = [[view.title, *view.rows[i][:-1]] for view, i in places]
    best = frozenset((k, 1 + j) for k, (view, i) in enumerate(places) for at, j in view.best if at == i)
    header = ["task: metric", *every[0].header[:-1]] if every else ["task: metric"]
    return View("cells", "Scores by cell", "", header, "l" * len(header), rows, best=best)


def _readme(study: Path) -> list[Text]:
    path = study / "README.md"
    return list(blocks(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _first_paragraph(texts: Sequence[Text]) -> Sequence[Text]:
    """Return a README's texts up to its first paragraph."""
    first = next((i for i, (kind, _) in enumerate(texts) if kind == "p"), len(texts) - 1)
    return texts[: first + 1]


def _again(tables: Tables, files: Sequence[str]) -> list[Text]:
    """Return the commands of a study, and links to the files of its report."""
    commands = sorted(set(tables.runs["command"]) - {""})
    found = ("pre", "\n".join([*commands, f"bench report study={tables.study}"]))
    links = [(PAGE, "this report as a page"), (FULL_TEXT, "as text"), *((path, "a table") for path in files)]
    files_of = [("li", [Link(Path(path).name, quote(path)), Link(f"({what})")]) for path, what in links]
    return [found, *files_of, ("p", "The tables are also in tables/ as LaTeX.")]


def _rest(study: str, again: Sequence[Text], records_href: str) -> list[Text]:
    """Return the commands, and what else the study's folder holds once the report is built."""
    commands = "".join(str(text) for kind, text in again if kind == "pre")
    return [
        (
            "pre",
            f"{commands}   # builds the full report in this folder\nbench verify study={study}   # checks it",
        ),
        (
            "p",
            "The full report is report.html (all tables and figures, with links to every run), "
            "report_full.md (the same as text), tables/ (CSV and LaTeX) and figures/ (SVG, PDF and PNG). "
            "manifest.json holds the SHA-256 of every file.",
        ),
        ("p", [Link("All numbers are computed from the"), Link("run records", records_href)]),
    ]


def _audit(study: Path) -> tuple[AuditRecord | None, list[str]]:
    """Return the audit of a study, and a warning if it is damaged."""
    try:
        return read_audit(study), []
    except DataError as error:
        return None, [f"Damaged audit left out: {in_brief(error)}"]


def _applicable(*found: View | None) -> list[View]:
    return [view for view in found if view is not None]


def _shown(sections: Iterable[Section], keep: str = "") -> list[Section]:
    """Return the sections that are not empty, and the one that is still to be filled."""
    return [s for s in sections if s.texts or s.tables or s.figures or s.anchor == keep]


def _counts(tables: Tables, n_damaged: int) -> str:
    statuses = Counter(tables.runs["status"])
    counts = [f"{statuses[status]} {status}" for status in sorted(statuses)]
    return ", ".join([*counts, *([f"{n_damaged} damaged"] if n_damaged else [])])


def _lost(tables: Tables) -> list[Text]:
    lines = _losses(tables)
    intro: Text = ("p", "These runs have no score, and no mean or interval includes them:")
    return [intro, *(("li", line) for line in lines)] if lines else []


def _losses(tables: Tables) -> list[str]:
    """Return a line for each run without numbers, and for each task that failed, with the reason."""
    failed: dict[str, list[str]] = {}
    for row in tables.results[tables.results["status"] == "failed"].itertuples():
        failed.setdefault(row.run_id, []).append(f"task {row.task} failed, {text(row.reason)}")
    lines = []
    for run in tables.runs.itertuples():
        budget = tables.cells[run.cell].budget or "no data budget"
        found = [f"{run.status}, {text(run.reason) or 'no reason recorded'}"]
        if run.status == "finished":
            found = failed.get(run.run_id, [])
        axes = f"{run.strategy}, {run.model}, {budget}, seed {run.seed}"
        lines += [f"{run.run_id} ({axes}): {what}" for what in found]
    return lines
