"""Records -> report: the page, the tables, the figures. The only writer into reports/.

Nothing here is typed by hand and nothing depends on when it is built: the same records give the same bytes.
"""

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf
from threadpoolctl import threadpool_limits

from bench.analysis.table import load
from bench.analysis.text import View, html_table, latex_table, markdown_escape, markdown_table
from bench.errors import ConfigError
from bench.records import write_atomically
from bench.report import views
from bench.report.claim_views import claims
from bench.report.csv_tables import csv_tables, csv_text
from bench.report.figures.drawn import drawing
from bench.report.page import Page, assemble, latex_views
from bench.report.rendering import TEMPLATES, template
from bench.report.studies import SUMMARY, studies_view, summary


def main(cfg: DictConfig) -> Path:
    """`bench report study=NAME`, or every study that has records; and the list of all studies.

    Returns:
        The page of the study, or the list.

    Raises:
        ConfigError: a study without records, or no study at all.
    """
    experiments_dir, reports_dir = Path(cfg.experiments_dir), Path(cfg.reports_dir)
    is_one = not OmegaConf.is_missing(cfg, "study")
    names = [str(cfg.study)] if is_one else sorted(p.parent.name for p in experiments_dir.glob("*/records"))
    if not names:
        raise ConfigError(f"no study has records in {experiments_dir}; run one with `bench train`")
    pages = [write(name, experiments_dir, reports_dir, cfg.figure) for name in names]
    index = write_index(experiments_dir, reports_dir)
    return pages[0] if is_one else index


def write_index(experiments_dir: Path, reports_dir: Path) -> Path:
    """Write reports/index.html, the list of all studies."""
    view = studies_view(experiments_dir, reports_dir)
    path = reports_dir / "index.html"
    write_atomically(path, _render("index.html.j2", is_html=True, view=view))
    return path


def write(study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]) -> Path:
    """Build reports/<study>/ from experiments/<study>/; tables and figures that it no longer has are removed.

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
    contents = make(study, experiments_dir, reports_dir, figures)
    folder = reports_dir / study
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in files_in(folder):
        if path.relative_to(folder).as_posix() not in contents:
            path.unlink()
    return folder / "report.html"


def files_in(folder: Path) -> list[Path]:
    """The files of a report, as they lie in its folder."""
    return sorted(
        path for pattern in ("report.*", SUMMARY, "tables/*", "figures/*") for path in folder.glob(pattern)
    )


def make(
    study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]
) -> dict[str, bytes]:
    """The files of a report by their path in its folder; as `write`, which puts them there."""
    tables, damaged = load(study, experiments_dir)
    records = quote(os.path.relpath(experiments_dir / study / "records", reports_dir / study))
    with threadpool_limits(limits=1, user_api="blas"), drawing(figures, tables) as drawn:
        csv = csv_tables(tables, experiments_dir / study)
        page = assemble(tables, damaged, sorted(csv), records_href=records, study=experiments_dir / study)
        texts = {f"tables/{name}.csv": csv_text(rows) for name, rows in csv.items()}
        texts |= {f"tables/{view.name}.tex": latex_table(view) for view in latex_views(tables, page)}
        page = page.with_figures(*drawn())
    texts |= {"report.md": _render("report.md.j2", is_html=False, page=page), SUMMARY: summary(page)}
    texts |= {"report.html": _render("report.html.j2", is_html=True, page=page)}
    images = {f"figures/{f.name}.{suffix}": image for f in page.figures for suffix, image in f.images.items()}
    return {name: text.encode() for name, text in texts.items()} | images


def headline_markdown(study: str, experiments_dir: Path) -> str:
    """The headline table of a study with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    return _markdown(views.headline(tables))


def cells_markdown(study: str, experiments_dir: Path, task: str) -> str:
    """Every cell of a study on a task's headline metric, with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    [measure] = [measure for measure in tables.headlines if measure.task == task]
    return _markdown(views.cells(tables, measure))


def claims_markdown(study: str, experiments_dir: Path) -> str:
    """The claims of a study with effect and verdict, as Markdown."""
    tables, _ = load(study, experiments_dir)
    view = claims(tables, experiments_dir / study)
    assert view is not None
    kept = [view.header.index(name) for name in ("claim", "left is better by", "n", "verdict")]
    rows = [[row[i] for i in kept] for row in view.rows]
    header, align = [view.header[i] for i in kept], "".join(view.align[i] for i in kept)
    return markdown_table(View("", "", "", header, align, rows))


def _markdown(view: View) -> str:
    note = f"\n{markdown_escape(view.note)}\n" if view.note else ""
    return markdown_table(view) + note


def _render(name: str, *, is_html: bool, **shown: Page | View) -> str:
    opened = template(name, is_html=is_html, plain=markdown_escape, table=_markdown, html=html_table)
    inline = {kind: (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    hashes = {f"{kind}_hash": _sha256(text) for kind, text in inline.items()}
    return opened.render(**shown, **inline, **hashes)


def _sha256(text: str) -> str:
    """As a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
