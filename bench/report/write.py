"""Records -> report: the pages, the tables, the figures and their manifest. The only writer into reports/.

The same records give the same bytes. At the top of a study's folder lies what is committed: the one-page
report.md, headline.csv, claims.csv, two figures and manifest.json. The rest (`BUILT`, tables/ and figures/)
is ignored by git and built where it is wanted.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf
from threadpoolctl import threadpool_limits

from bench.analysis.format import latex_table, markdown_table
from bench.analysis.frames import load
from bench.errors import ConfigError, DataError
from bench.records import write_atomically
from bench.report.csv_tables import csv_tables, csv_text
from bench.report.figures.base import drawing
from bench.report.index import SUMMARY, studies_view, summary
from bench.report.manifest import MANIFEST, manifest_of, manifest_text, read_manifest
from bench.report.page import FULL_TEXT, PAGE, assemble, latex_tables, one_page, short_claims
from bench.report.rendering import html, markdown, table_and_note
from bench.report.tables import results as views
from bench.report.tables.claims import claims

BUILT = (PAGE, FULL_TEXT, SUMMARY)  # at the top of a study's folder, but not committed
_SHORT_CSV = ("claims", "headline")  # at the top, committed


def main(cfg: DictConfig) -> Path:
    """Write the report of a study, or of every study that has records, and the list of all studies.

    Returns:
        The page of the study, or the list.

    Raises:
        ConfigError: a study has no records, or there is no study.
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
    path = reports_dir / "index.html"
    write_atomically(path, html("index.html.j2", view=studies_view(experiments_dir, reports_dir)))
    return path


def write(study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]) -> Path:
    """Build reports/<study>/ from experiments/<study>/; remove files that only an earlier report had.

    Args:
        study: the study's name.
        experiments_dir: where the studies' records are.
        reports_dir: where the report goes, in a folder of the study's name.
        figures: a `_target_` node per figure.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the study or its records do not exist, or a figure cannot be built.
    """
    contents = make(study, experiments_dir, reports_dir, figures)
    folder = reports_dir / study
    earlier = files_in(folder)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name in earlier.difference(contents):
        (folder / name).unlink()
    return folder / PAGE


def files_in(folder: Path) -> set[str]:
    """Return the names of a report's files that lie in its folder, without a reader's own notes."""
    try:
        noted = read_manifest(folder)
    except DataError:  # `write` replaces it, and `verify` names it
        noted = None
    names = {MANIFEST, "report.md", *BUILT, *(f"{name}.csv" for name in _SHORT_CSV)}
    names |= {
        path.relative_to(folder).as_posix()
        for kind in ("tables", "figures")
        for path in folder.glob(f"{kind}/*")
    }
    return {name for name in names.union(noted.sha256 if noted else ()) if (folder / name).is_file()}


def is_committed(name: str) -> bool:
    """Return whether a file of a report is committed; .gitignore names the others."""
    return "/" not in name and name not in BUILT


def make(
    study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the files of a report by their path in its folder; as `write`, which puts them there."""
    tables, damaged = load(study, experiments_dir)
    folder = experiments_dir / study
    records = quote(os.path.relpath(folder / "records", reports_dir / study))
    with threadpool_limits(limits=1, user_api="blas"), drawing(figures, tables) as drawn:
        csv = {_csv_path(name): rows for name, rows in csv_tables(tables, folder).items()}
        page = assemble(tables, damaged, sorted(csv), records_href=records, study=folder)
        texts = {name: csv_text(rows) for name, rows in csv.items()}
        texts |= {f"tables/{view.name}.tex": latex_table(view) for view in latex_tables(tables, page)}
        page = page.with_figures(*drawn())
    short = one_page(page, records)
    texts["report.md"] = markdown("report.md.j2", page=short, images="")
    texts[FULL_TEXT] = markdown("report.md.j2", page=page, images="figures/")
    texts[PAGE] = html("report.html.j2", page=page)
    texts[SUMMARY] = summary(page)
    files = {name: text.encode() for name, text in texts.items()}
    for section in page.sections:
        for figure in section.figures:
            files |= {f"figures/{figure.name}.{suffix}": image for suffix, image in figure.images.items()}
    # SVG is sharp at every size and, for these figures, smaller than a PNG of readable size.
    files |= {
        f"{figure.name}.svg": figure.images["svg"] for section in short.sections for figure in section.figures
    }
    return files | {MANIFEST: manifest_text(manifest_of(study, files))}


def _csv_path(name: str) -> str:
    return f"{name}.csv" if name in _SHORT_CSV else f"tables/{name}.csv"


def headline_markdown(study: str, experiments_dir: Path) -> str:
    """Return the headline table of a study with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    return table_and_note(views.headline(tables))


def cells_markdown(study: str, experiments_dir: Path, task: str) -> str:
    """Return every cell of a study on a task's headline metric, with its note, as Markdown."""
    tables, _ = load(study, experiments_dir)
    [measure] = [measure for measure in tables.headlines if measure.task == task]
    return table_and_note(views.cells(tables, measure))


def claims_markdown(study: str, experiments_dir: Path) -> str:
    """Return the claims of a study with effect and verdict, as Markdown."""
    tables, _ = load(study, experiments_dir)
    view = claims(tables, experiments_dir / study)
    assert view is not None
    return markdown_table(short_claims(view))
