"""`bench compare A B`: compare two studies, or one study at two git revisions, in the terminal and in a file.

A study at a revision is read from git into a temporary folder: nothing is checked out or run.
"""

import io
import subprocess
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.table import Table

from bench.analysis.format import View, markdown_escape, plain
from bench.analysis.frames import load
from bench.errors import ConfigError, DataError, in_brief, printable
from bench.records import write_atomically
from bench.report.csv_tables import csv_text
from bench.report.rendering import html, table_and_note
from bench.report.tables.two_studies import Side, numbers, views

FORMATS = (".md", ".html", ".csv")
_PIPE_WIDTH = 160  # of output to a pipe; the default of 80 would wrap every number
_JUSTIFY: dict[str, JustifyMethod] = {"l": "left", "r": "right", "c": "center"}


def main(left: str, right: str, experiments_dir: Path, *, to: Path | None, every: bool) -> None:
    """Print the comparison, and write it to a file if one is named.

    Args:
        left: NAME or NAME@REVISION.
        right: the same; differences are right - left.
        experiments_dir: where the studies' records lie.
        to: a file; its ending decides the format.
        every: compare all measures, not only each task's first.

    Raises:
        ConfigError: a study, revision or file ending is unknown.
    """
    if to is not None and (to.suffix not in FORMATS or not to.parent.is_dir()):
        raise ConfigError(f"to={to}: give a file in an existing folder that ends in {', '.join(FORMATS)}")
    sides, notes = zip(*(read(asked, experiments_dir) for asked in (left, right)), strict=True)
    lines, tables = views(*sides, every=every)
    lines = [*lines, *notes[0], *notes[1]]
    _show(lines, tables)
    if to is not None:
        write_atomically(to, _text(to.suffix, sides, lines, tables, every=every))
        print(to)


def read(asked: str, experiments_dir: Path) -> tuple[Side, list[str]]:
    """Return a study, today or at a revision, and a line for each record that cannot be read.

    Args:
        asked: NAME or NAME@REVISION.
        experiments_dir: where the studies' records are, today and at the revision.

    Raises:
        ConfigError: the study or revision does not exist.
    """
    study, at, revision = asked.partition("@")
    if not at:
        tables, damaged = load(study, experiments_dir)
        return Side(asked, tables), _left_out(asked, damaged)
    with tempfile.TemporaryDirectory() as folder:
        _unpack(asked, revision, experiments_dir, Path(folder))
        try:
            tables, damaged = load(study, Path(folder))
        except ConfigError as error:  # name the file as git does
            raise ConfigError(str(error).replace(f"{folder}/", f"{revision}:")) from error
    return Side(asked, tables), _left_out(asked, damaged)


def _unpack(asked: str, revision: str, experiments_dir: Path, folder: Path) -> None:
    """Write the repository as it was at a revision into a folder."""
    try:
        commit = _git(experiments_dir, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
        packed = _git(experiments_dir, "archive", "--format=zip", commit.decode().strip())
    except (OSError, subprocess.CalledProcessError) as error:
        problem = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise ConfigError(
            f"{asked}: git cannot read it ({' '.join(problem.split())}); put a commit, tag or branch of the "
            f"repository of {experiments_dir} after the @"
        ) from error
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)


def _git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True).stdout


def _left_out(asked: str, damaged: list[DataError]) -> list[str]:
    return [f"{asked}: damaged record left out: {in_brief(error)}" for error in damaged]


def _show(lines: list[str], tables: list[View]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)  # names may contain markup
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    for view in tables:
        table = Table(title=printable(view.title), title_justify="left")
        for name, side in zip(view.header, view.align, strict=True):
            table.add_column(printable(name), justify=_JUSTIFY[side], overflow="fold")
        for row in view.rows:
            table.add_row(*(printable(plain(entry)) for entry in row))
        console.print(table)
        console.print(printable(view.note))
    for line in lines:
        console.print(printable(line))


def _text(ending: str, sides: tuple[Side, ...], lines: list[str], tables: list[View], *, every: bool) -> str:
    """Return the comparison as a page or as Markdown, or its numbers as CSV."""
    left, right = sides
    if ending == ".csv":
        return csv_text(numbers(left, right, every=every))
    title = f"{left.name} and {right.name}"
    if ending == ".md":
        parts = [f"# {markdown_escape(title)}\n", *(f"- {markdown_escape(line)}" for line in lines)]
        parts += [f"\n## {markdown_escape(view.title)}\n\n{table_and_note(view)}" for view in tables]
        return "\n".join(parts) + "\n"
    return html("side_by_side.html.j2", title=title, lines=lines, views=tables)
