"""Records -> report: the page, the tables, the figures. The only writer into reports/.

Nothing here is typed by hand and nothing depends on when it is built: the same records give the same bytes.
"""

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from omegaconf import DictConfig, OmegaConf

from bench.analysis import frames, provenance, views
from bench.analysis.across_tasks import across_tasks
from bench.analysis.auditing import auditing, failures
from bench.analysis.cost import cost
from bench.analysis.decision import decision_table
from bench.analysis.evaluation import evaluation, samples
from bench.analysis.label_budgets import label_budgets
from bench.analysis.learning import learning
from bench.analysis.pareto import pareto
from bench.analysis.stability import stability
from bench.analysis.table import Tables, load
from bench.analysis.text import View, latex_table, markdown_escape, markdown_table
from bench.audits import read_audit
from bench.build import build
from bench.errors import ConfigError, DataError
from bench.figures.base import Figure, render
from bench.records import RunRecord, write_atomically

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Drawn:
    """A figure as it goes into the page."""

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def data_uri(self) -> str:
        """The SVG, for an `img` that needs no file beside the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class Page:
    """All that the templates show."""

    study: str
    dates: str
    readme: list[tuple[str, str]]  # (h, p, li or pre; text)
    status: str
    warnings: list[str]
    lost: list[str]  # one line per run without numbers
    headline: View
    decisions: View
    verdicts: View
    learning: View
    findings: list[View]  # cost; and what only some studies have
    figures: list[Drawn]
    cells: list[View]  # of the tasks' headline metrics
    more_cells: list[View]  # of all other metrics
    pairs: View
    samples: list[View]
    audit: View | None
    evaluation: View | None
    runs: View
    setup: list[View]
    details: list[View]
    commands: list[str]  # that asked for the runs
    files: list[str]
    has_scores: bool


def main(cfg: DictConfig) -> Path:
    """`bench report study=NAME`.

    Raises:
        ConfigError: no study named, or one without records.
    """
    if OmegaConf.is_missing(cfg, "study"):
        raise ConfigError("study is not set; name one: bench report study=NAME")
    return write(str(cfg.study), Path(cfg.experiments_dir), Path(cfg.reports_dir), cfg.figure)


def write(study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]) -> Path:
    """Build reports/<study>/ from experiments/<study>/.

    Args:
        study: the study's name.
        experiments_dir: where the studies' records lie.
        reports_dir: where the report goes, in a folder of the study's name.
        figures: a `_target_` node per figure.

    Returns:
        The path of the page.

    Raises:
        ConfigError: no such study, no record, or a figure that cannot be built.
    """
    tables, damaged = load(study, experiments_dir)
    folder = reports_dir / study
    drawn, undrawn = _draw_all(figures, tables)
    frames_by_name = frames.csv_tables(tables)
    records_href = quote(os.path.relpath(experiments_dir / study / "records", folder))
    warnings = [f"Damaged record left out: {_short(error)}" for error in damaged] + undrawn
    counts = _counts(tables, len(damaged))
    files = sorted(frames_by_name)
    page = _page(
        tables, warnings, counts, drawn, files, records_href=records_href, study=experiments_dir / study
    )
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    for name, frame in frames_by_name.items():
        write_atomically(folder / "tables" / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    for view in _latex_views(tables, page):
        write_atomically(folder / "tables" / f"{view.name}.tex", latex_table(view))
    for figure in drawn:
        (folder / "figures" / f"{figure.name}.svg").write_bytes(figure.svg)
        (folder / "figures" / f"{figure.name}.png").write_bytes(figure.png)
    write_atomically(folder / "report.md", _render("report.md.j2", page, is_html=False))
    path = folder / "report.html"
    write_atomically(path, _render("report.html.j2", page, is_html=True))
    return path


def headline_markdown(study: str, experiments_dir: Path) -> str:
    """The headline table of a study with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    return _markdown(views.headline(tables))


def cells_markdown(study: str, experiments_dir: Path, task: str) -> str:
    """Every cell of a study on a task's headline metric, with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    [measure] = [measure for measure in tables.headlines if measure.task == task]
    return _markdown(views.cells(tables, measure))


def _draw_all(figures: Mapping[str, Any], tables: Tables) -> tuple[list[Drawn], list[str]]:
    """The figures that apply to the study, and a warning for each whose data is damaged."""
    drawn: list[Drawn] = []
    warnings: list[str] = []
    for name, node in figures.items():
        if not name.isidentifier():
            raise ConfigError(f"figure.{name}: a figure's name is a file name; use letters, digits and '_'")
        figure = build(node, Figure, f"figure.{name}")  # type: ignore[type-abstract]
        try:
            if figure.applies(tables):
                images = render(figure, tables, name)
                caption = figure.caption(tables)
                drawn.append(Drawn(name, figure.title, caption, images["svg"], images["png"]))
        except DataError as error:
            warnings.append(f"Figure {name} left out: {_short(error)}")
    return drawn, warnings


def _page(
    tables: Tables,
    warnings: list[str],
    status: str,
    drawn: list[Drawn],
    files: list[str],
    *,
    records_href: str,
    study: Path,
) -> Page:
    headlines, readme = set(tables.headlines), study / "README.md"
    audit = read_audit(study)
    return Page(
        study=tables.study,
        dates=provenance.dates(tables),
        readme=blocks(readme.read_text(encoding="utf-8")) if readme.is_file() else [],
        status=status,
        warnings=warnings + provenance.warnings(tables) + failures(audit),
        lost=[line for record in tables.records for line in _losses(tables, record)],
        headline=views.headline(tables),
        decisions=decision_table(tables),
        verdicts=views.verdicts(tables),
        learning=learning(tables),
        findings=[
            view
            for view in (
                across_tasks(tables),
                pareto(tables),
                cost(tables),
                label_budgets(tables),
                stability(tables),
            )
            if view is not None
        ],
        figures=drawn,
        cells=[views.cells(tables, measure) for measure in tables.measures if measure in headlines],
        more_cells=[views.cells(tables, measure) for measure in tables.measures if measure not in headlines],
        pairs=views.pairs(tables),
        samples=samples(tables),
        audit=auditing(tables, audit),
        evaluation=evaluation(tables),
        runs=views.runs(tables, records_href),
        setup=[provenance.axes_view(tables), provenance.settings_view(tables)],
        details=[view(tables) for view in provenance.DETAILS],
        commands=sorted({record.command for record in tables.records if record.command}),
        files=files,
        has_scores=bool(tables.measures),
    )


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


def _latex_views(tables: Tables, page: Page) -> list[View]:
    every = [*page.cells, *page.more_cells]
    cells = [[view.title, *row[:-1]] for view in every for row in view.rows]
    header = ["task: metric", *every[0].header[:-1]] if every else ["task: metric"]
    align = "l" * len(header)
    stacked = View("cells", "Every cell", "", header, align, cells)
    return [
        page.headline,
        page.decisions,
        page.verdicts,
        page.learning,
        *page.findings,
        views.differences(tables),
        stacked,
        page.runs,
    ]


def blocks(text: str) -> list[tuple[str, str]]:
    """The little Markdown that a README of a study needs: headings, items, paragraphs, fenced code."""
    found: list[tuple[str, str]] = []
    for i, part in enumerate(re.split(r"^```.*$\n?", text, flags=re.MULTILINE)):
        found += [("pre", part.rstrip())] if i % 2 else _prose(part)
    return found


def _prose(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    paragraph: list[str] = []
    kind = "p"
    for line in [*text.splitlines(), ""]:
        stripped = line.strip().replace("`", "")
        is_heading, is_item = stripped.startswith("#"), stripped[:2] in ("- ", "* ")
        if paragraph and (not stripped or is_heading or is_item):
            found.append((kind, " ".join(paragraph)))
            paragraph = []
        if is_heading:
            found.append(("h", stripped.lstrip("# ")))
        elif stripped:
            kind = "li" if is_item else kind if paragraph else "p"
            paragraph.append(stripped[2:] if is_item else stripped)
    return found


def _short(error: DataError) -> str:
    where, _, what = str(error).partition(": ")
    return f"{Path(where).name}: {what}"


def _markdown(view: View) -> str:
    note = f"\n{markdown_escape(view.note)}\n" if view.note else ""
    return markdown_table(view) + note


def _render(template: str, page: Page, *, is_html: bool) -> str:
    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=is_html,  # noqa: S701 -- Markdown has its own escape, the filter `plain`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown_escape, "table": _markdown}
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(page=page, css=css)
