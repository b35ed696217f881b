"""A Debian archive of toy packages, served by stand-ins of apt-get and apt-cache. dpkg-deb is real."""

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROSE = "This is the {} of the tools that are used by the people who work with it on most of their days."
GERMAN = "Dieses Kapitel beschreibt, wie man ein Paket baut und auf einem anderen Rechner wieder einspielt."
CODE = "x1 = f(a0) y2 = g(b1) z3 = h(c2) w4 = k(d3) v5 = l(e4) u6 = m(f5) t7 = n(g6)"
DRAWING = """
<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" width="{size}" height="{size}"><metadata><r:RDF><Work>
<dc:title>{title}</dc:title><dc:description>{text}</dc:description>
<dc:subject><r:Bag><r:li>computer</r:li><r:li>{keyword}</r:li></r:Bag></dc:subject>
</Work></r:RDF></metadata><rect width="{width}" height="9" fill="red"/></svg>
"""
APT_CACHE = """#!/bin/sh
echo "$@" >> "{log}"
[ -e "{root}/$3.deb" ] || exit 100
echo "Package: $3"
echo "Version: 1.0-2"
"""
APT_GET = """#!/bin/sh
echo "$@" >> "{log}"
cp "{root}/${{2%%=*}}.deb" "${{2%%=*}}_1.0-2_all.deb"
"""
CONTROL = """Package: {name}
Version: 1.0-2
Architecture: all
Maintainer: Toy <toy@example.org>
Description: toy
"""


def drawing(title: str, text: str = "", keyword: str = "", *, width: float = 9, size: str = "16") -> bytes:
    """An SVG with the metadata of Open Clip Art: a red bar."""
    return DRAWING.format(title=title, text=text, keyword=keyword, width=width, size=size).strip().encode()


class ToyArchive:
    """A folder of packages, and the calls of apt."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "calls"
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        for name, script in (("apt-cache", APT_CACHE), ("apt-get", APT_GET)):
            (self.bin / name).write_text(script.format(root=root, log=self.log))
            (self.bin / name).chmod(0o755)

    def add(self, name: str, files: dict[str, bytes | str]) -> None:
        """Build a package of these files."""
        folder = self.root / name
        (folder / "DEBIAN").mkdir(parents=True)
        (folder / "DEBIAN" / "control").write_text(CONTROL.format(name=name))
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(gzip.compress(data) if path.endswith((".gz", ".dz")) else data)
        command = ["dpkg-deb", "--root-owner-group", "-b", str(folder), str(self.root / f"{name}.deb")]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(folder)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(scope="session")
def toy_packages(tmp_path_factory: pytest.TempPathFactory) -> ToyArchive:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    archive = ToyArchive(tmp_path_factory.mktemp("archive"))
    copyright_file = "Format: 1.0\n\nFiles: *\nLicense: GPL-2\n\nFiles: debian/*\nLicense: MIT\n"
    start = f"<p>{PROSE.format('start')}</p>"
    pages = "".join(f"<p>{PROSE.format(f'page {i}')}</p>" for i in range(30))
    archive.add(
        "toy-doc",
        {
            "usr/share/doc/toy-doc/copyright": copyright_file,
            "usr/share/doc/toy-doc/html/a.html": f"{start}<pre>{CODE}</pre><p>{CODE}</p>",
            "usr/share/doc/toy-doc/html/b.html": f"<ul><li>{PROSE.format('start')}<li>{GERMAN}</ul>{pages}",
            "usr/share/doc/toy-doc/html/skipped/c.html": f"<p>{PROSE.format('excluded file')}</p>",
            "usr/share/doc/toy-doc/html/_sources/a.txt": PROSE.format("source of the page"),
        },
    )
    entries = f'Abjure \\Ab*jure"\\, v. t.\n   1. {PROSE.format("{oath}")}\n      [1913 Webster]\n'
    archive.add("toy-dict", {"usr/share/dictd/toy.dict.dz": entries})
    archive.add("toy-empty", {"usr/share/toy/data.bin": b"\0\1"})
    archive.add("wamerican", {"usr/share/dict/american-english": "black\ncat\nanimal\nred\nbar\nof\nthe\n"})
    root = "usr/share/openclipart/svg"
    drawings = {
        f"{root}/animals/cat_01.svg": drawing("Black cat", "A cat of the bar", "animal", width=3),
        f"{root}/animals/cat_02.svg": drawing("Black cat", keyword="animal", width=4, size="12pt"),
        f"{root}/animals/gatto.svg": drawing("Gatto nero", keyword="felino", width=5),
        f"{root}/animals/gatto_animal.svg": drawing("Gatto nero", keyword="animal", width=6),
        f"{root}/animals/same.svg": drawing("Red cat", width=6),
        f"{root}/empty/white.svg": drawing("Red bar", width=0),
        f"{root}/broken.svg": b"<svg",
        f"{root}/stars/star.svg": drawing("Red cat", width=2),
    }
    drawings |= {f"{root}/bars/red_bar_{i}.svg": drawing("Theme bar", width=7 + i / 4) for i in range(8)}
    archive.add("openclipart-svg", drawings)  # type: ignore[arg-type]
    return archive


@pytest.fixture
def toy_archive(toy_packages: ToyArchive, monkeypatch: pytest.MonkeyPatch) -> ToyArchive:
    """The archive in the place of the machine's own."""
    monkeypatch.setenv("PATH", f"{toy_packages.bin}{os.pathsep}{os.environ['PATH']}")
    toy_packages.log.unlink(missing_ok=True)
    return toy_packages
