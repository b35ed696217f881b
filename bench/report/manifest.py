"""manifest.json of a report: the SHA-256 of every file, and the versions that decide how figures look.

Only the short report is committed, with its manifest; the other files are built. The manifest lets
`bench verify` check all of them.
"""

import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from matplotlib import font_manager, ft2font

from bench.errors import DataError
from bench.records import as_json, read_json
from bench.report.figures.style import STYLE

MANIFEST = "manifest.json"
IMAGES = (".svg", ".png", ".pdf")
_EMBEDDED = re.compile(rb"data:image/svg\+xml;base64,[A-Za-z0-9+/=]*")
_PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "pillow")
_FONT_VERSION = (1, 0, 0, 5)  # of the name table of a TrueType font
_NAME = re.compile(r"((tables|figures)/)?[\w-][\w.-]*")


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    study: str
    rendered_with: dict[str, str]  # versions by package
    sha256: dict[
        str, str
    ]  # by file; report.html counts without its embedded figures, which are files themselves


def manifest_of(study: str, files: Mapping[str, bytes]) -> Manifest:
    """Return the manifest of a report's files, rendered here."""
    return Manifest(study, versions(), {name: digest(name, files[name]) for name in sorted(files)})


def manifest_text(found: Manifest) -> bytes:
    """Return a manifest as the contents of its file."""
    return as_json(found).encode()


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a report; None if the folder has none.

    Raises:
        DataError: the file is damaged, or names a file outside the report.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = read_json(Manifest, path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not a report's manifest ({error}); run `bench report` again") from error
    if foreign := [name for name in found.sha256 if not _NAME.fullmatch(name)]:
        raise DataError(f"{path}: {foreign[0]!r} is not a file of a report; run `bench report` again")
    return found


def digest(name: str, data: bytes) -> str:
    """Return the SHA-256 of a report's file, of a page without the figures that it embeds."""
    return hashlib.sha256(without_figures(name, data)).hexdigest()


def without_figures(name: str, data: bytes) -> bytes:
    """Return a page without the figures that it embeds, and any other file as it is."""
    return _EMBEDDED.sub(b"", data) if name.endswith(".html") else data


def versions() -> dict[str, str]:
    """Return the versions that decide the bytes of a figure: packages, font and compression."""
    font = font_manager.get_font(font_manager.findfont(STYLE["font.family"]))
    name = font.get_sfnt()[_FONT_VERSION].decode("latin-1")
    return {package: version(package) for package in _PACKAGES} | {
        "freetype": ft2font.__freetype_version__,
        STYLE["font.family"]: name.removeprefix("Version "),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
