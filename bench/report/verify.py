"""`bench verify study=NAME`: is a report what its records say? Records -> report, held against the old one.

Nothing is written: the report is made again in memory and compared file by file, byte by byte.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
from omegaconf import DictConfig, OmegaConf

from bench.errors import ConfigError, printable
from bench.records import STUDY_NAME
from bench.report import write

_IMAGES = (".svg", ".png", ".pdf")
_EMBEDDED = re.compile(rb"data:image/svg\+xml;base64,[A-Za-z0-9+/=]*")
_DRAWN_BY = re.compile(rb"Matplotlib v([\w.+-]+)")
_LONGEST = 160  # characters of a line that are shown


@dataclass(frozen=True)
class Verified:
    """What was compared, and a line for each difference."""

    n_files: int
    differences: list[str]
    note: str = ""


def main(cfg: DictConfig) -> int:
    """Compare and say so; the exit code: 0 if nothing differs, 1 otherwise.

    Raises:
        ConfigError: no study named, without records, or without a report.
    """
    if OmegaConf.is_missing(cfg, "study"):
        raise ConfigError("study is not set; name one: bench verify study=NAME")
    found = verify(str(cfg.study), Path(cfg.experiments_dir), Path(cfg.reports_dir), cfg.figure)
    for line in found.differences:
        print(printable(line))
    verdict = f"{len(found.differences)} differ" if found.differences else "all as their records say"
    print(f"{cfg.study}: {found.n_files} files, {verdict}{found.note}")
    return 1 if found.differences else 0


def verify(study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]) -> Verified:
    """Hold reports/<study>/ against its records.

    Figures are compared by the matplotlib that drew them alone; another version may set them otherwise.

    Args:
        study: the study's name.
        experiments_dir: where the studies' records lie.
        reports_dir: where the reports lie.
        figures: a `_target_` node per figure.

    Raises:
        ConfigError: no such study, no record, or no report.
    """
    if not STUDY_NAME.fullmatch(study):
        raise ConfigError(f"study={study!r} is not a study's name; use letters, digits, '-', '_' and '.'")
    folder = reports_dir / study
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in write.files_in(folder)}
    if "report.html" not in there:
        raise ConfigError(f"study={study}: no report in {folder}; make it with `bench report study={study}`")
    made = write.make(study, experiments_dir, reports_dir, figures)
    drawn_by = {m[1].decode() for data in there.values() if (m := _DRAWN_BY.search(data))}
    note = ""
    if drawn_by - {mpl.__version__}:
        there, made = _without_images(there), _without_images(made)
        note = (
            f"; figures not compared: drawn by matplotlib {', '.join(sorted(drawn_by))}, "
            f"here is {mpl.__version__}; their captions and tables are compared"
        )
    differences = [
        line
        for name in sorted(there.keys() | made.keys())
        if (line := _difference(name, there.get(name), made.get(name)))
    ]
    return Verified(len(made), differences, note)


def _without_images(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: _EMBEDDED.sub(b"", data) for name, data in files.items() if not name.endswith(_IMAGES)}


def _difference(name: str, was: bytes | None, now: bytes | None) -> str | None:
    """The first line that differs; None where none does."""
    if was == now:
        return None
    if was is None:
        return f"{name}: is missing"
    if now is None:
        return f"{name}: is none of the report's files"
    if name.endswith(_IMAGES):
        return f"{name}: another picture"
    lines = zip_longest(was.decode(errors="replace").split("\n"), now.decode().split("\n"), fillvalue="")
    for i, (old, new) in enumerate(lines, start=1):
        if old != new:
            return f"{name}, line {i}: was {_around(old, new)!r}, records say {_around(new, old)!r}"
    return f"{name}: other bytes"


def _around(line: str, other: str) -> str:
    """The part of a line from a little before where it leaves the other."""
    pairs = enumerate(zip_longest(line, other))
    first = next((i for i, (a, b) in pairs if a != b), 0)
    start = max(0, first - _LONGEST // 4)
    return line[start : start + _LONGEST]
