"""`bench verify study=NAME`: check that a report is what its records say.

Nothing is written. The report is built again in memory and compared with its manifest and with the files in
its folder: the committed ones, and the others if the report was built there. Numbers and texts must agree on
every machine; figures are compared only if the versions that decide their bytes are those of the manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bench.config.installation import CONF
from bench.errors import ConfigError, printable
from bench.records import STUDY_NAME
from bench.report import write
from bench.report.manifest import IMAGES, MANIFEST, Manifest, digest, read_manifest, versions, without_figures

_LONGEST = 160  # characters of a line that are shown


@dataclass(frozen=True)
class Verified:
    """The number of files compared, and a line for each difference."""

    n_files: int
    differences: list[str]
    note: str = ""


def main(cfg: DictConfig) -> int:
    """Compare and print the result; return the exit code, 0 if nothing differs and 1 otherwise.

    Raises:
        ConfigError: no study is named, or it has no records or no report.
    """
    if OmegaConf.is_missing(cfg, "study"):
        raise ConfigError("study is not set; name one: bench verify study=NAME")
    found = verify(str(cfg.study), Path(cfg.experiments_dir), Path(cfg.reports_dir), cfg.figure)
    for line in found.differences:
        print(printable(line))
    verdict = f"{len(found.differences)} differ" if found.differences else "all agree with the records"
    print(f"{cfg.study}: {found.n_files} files, {verdict}{found.note}")
    return 1 if found.differences else 0


def verify(study: str, experiments_dir: Path, reports_dir: Path, figures: Mapping[str, Any]) -> Verified:
    """Compare reports/<study>/ with its records.

    Args:
        study: the study's name.
        experiments_dir: where the studies' records are.
        reports_dir: where the reports are.
        figures: a `_target_` node per figure.

    Raises:
        ConfigError: the study, its records or its report do not exist.
        DataError: the manifest is damaged.
    """
    if not STUDY_NAME.fullmatch(study):
        raise ConfigError(f"study={study!r} is not a study's name; use letters, digits, '-', '_' and '.'")
    folder = reports_dir / study
    noted = read_manifest(folder)
    if noted is None:
        raise ConfigError(f"study={study}: no report in {folder}; make it with `bench report study={study}`")
    there = {name: (folder / name).read_bytes() for name in write.files_in(folder)}
    shipped = {path.stem for path in (CONF / "figure").glob("*.yaml")}
    # A plug-in that was installed after the report was built adds nothing to it.
    asked = {n: node for n, node in figures.items() if n in shipped or f"figures/{n}.svg" in noted.sha256}
    made = write.make(study, experiments_dir, reports_dir, asked)
    is_built = any(not write.is_committed(name) for name in there)
    report = _Report(noted, there, made, is_built=is_built, same_figures=noted.rendered_with == versions())
    names = sorted((there.keys() | made.keys() | noted.sha256.keys()) - {MANIFEST})
    differences = [line for name in names if (line := report.difference(name))]
    return Verified(len(made), differences, report.note())


@dataclass(frozen=True)
class _Report:
    """A report as its manifest states it, as it lies in its folder, and as the records give it."""

    noted: Manifest
    there: Mapping[str, bytes]
    made: Mapping[str, bytes]
    is_built: bool  # all files should lie in the folder, not only the committed ones
    same_figures: bool  # the same data give the same image files here

    def difference(self, name: str) -> str | None:
        """Return a line on how a file differs from the records; None if it does not."""
        was, now, noted = self.there.get(name), self.made.get(name), self.noted.sha256.get(name)
        if now is None:
            return f"{name}: the records and the installed figures do not give this file"
        if was is None and (self.is_built or write.is_committed(name)):
            return f"{name}: is missing"
        if not self.same_figures:
            if name.endswith(IMAGES):  # other versions draw other bytes
                return None if was is None or digest(name, was) == noted else f"{name}: the picture differs"
            was, now = (data and without_figures(name, data) for data in (was, now))
        if was is not None and now is not None and was != now:
            return _first_difference(name, was, now)
        if noted != digest(name, self.made[name]):
            return f"{name}: {MANIFEST} has another SHA-256 than the records give; run `bench report` again"
        return None

    def note(self) -> str:
        """Return what was not compared."""
        if self.same_figures:
            return ""
        here = versions()
        other = {name: v for name, v in self.noted.rendered_with.items() if here.get(name) != v}
        found = ", ".join(f"{name} {v} (here {here.get(name, 'none')})" for name, v in other.items())
        return f"; figures not compared: drawn with {found}; their captions and all tables were compared"


def _first_difference(name: str, was: bytes, now: bytes) -> str:
    """Return the first line that differs."""
    if name.endswith(IMAGES):
        return f"{name}: the picture differs"
    lines = zip_longest(was.decode(errors="replace").split("\n"), now.decode().split("\n"), fillvalue="")
    for i, (old, new) in enumerate(lines, start=1):
        if old != new:
            return f"{name}, line {i}: was {_around(old, new)!r}, records say {_around(new, old)!r}"
    return f"{name}: the bytes differ"


def _around(line: str, other: str) -> str:
    """Return the part of a line that begins a little before the first difference."""
    pairs = enumerate(zip_longest(line, other))
    first = next((i for i, (a, b) in pairs if a != b), 0)
    start = max(0, first - _LONGEST // 4)
    return line[start : start + _LONGEST]
