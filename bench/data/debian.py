"""Debian packages as sources of data: downloaded once by apt, without root, and read without unpacking.

A package lies as one file in a prepared folder (`bench.data.cache`), `debian-NAME` in the data folder. Its
version stays the same until that folder is deleted, so new uploads to the archive change no results.
"""

import gzip
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from bench.config.bounds import matches
from bench.data.cache import Manifest, prepare, read_manifest
from bench.errors import DataError

PackageName = Annotated[str, matches("[a-z0-9][a-z0-9.+-]+", "use the name of a Debian package")]
COMMON = re.compile(r"/usr/share/common-licenses/([\w.+-]*[\w+-])")
SHORT_NAME = 60  # characters of a licence; longer fields hold the text itself


@dataclass(frozen=True)
class Package:
    """A downloaded package."""

    name: str
    version: str
    licence: str  # a summary of its copyright file
    path: Path

    def files(self, wanted: Callable[[str], object]) -> Iterator[tuple[str, bytes]]:
        """Yield (path such as usr/share/doc/x, content) of regular files, in the order of the package.

        Args:
            wanted: says of a path whether the file is read; content of `.gz` and `.dz` is decompressed.

        Raises:
            DataError: the package cannot be read; names the folder to delete.
        """
        command = ["dpkg-deb", "--fsys-tarfile", str(self.path)]
        try:
            with (
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
                tarfile.open(fileobj=process.stdout, mode="r|") as archive,
            ):
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isreg() and wanted(name):
                        file = archive.extractfile(member)
                        assert file is not None
                        yield name, _decompressed(name, file.read())
        except (OSError, EOFError, tarfile.TarError) as error:
            raise DataError(f"{self.path} cannot be read ({error}); delete {self.path.parent}") from error

    def names(self) -> list[str]:
        """Return the paths of all regular files."""
        found: list[str] = []
        for _ in self.files(lambda name: found.append(name)):  # append returns None: nothing is read
            pass
        return found


def fetch(name: str, data_dir: Path, key: str) -> Package:
    """Return a package, after downloading it into `data_dir` if necessary.

    Raises:
        DataError: apt has no such package, is not there or cannot reach its archive; names `key`.
    """
    folder = _folder(name, data_dir)

    def build(partial: Path) -> Manifest:
        version = _candidate(name, key)
        _run(["apt-get", "download", f"{name}={version}"], name, key, folder=partial)
        (path,) = partial.glob("*.deb")
        path = path.rename(partial / f"{name}.deb")
        found = dict(Package(name, version, "", path).files(lambda file: file == _copyright(name)))
        text = found.get(_copyright(name), b"").decode("utf-8", "replace")
        return {"package": name, "version": version, "licence": licence_of(text, name)}

    manifest = prepare(folder, build)
    return Package(name, manifest["version"], manifest["licence"], folder / f"{name}.deb")


def version_of(name: str, data_dir: Path, key: str) -> str:
    """Return the version that `fetch` returns or would download; raise DataError as it does."""
    manifest = read_manifest(_folder(name, data_dir))
    return _candidate(name, key) if manifest is None else str(manifest["version"])


def licence_of(text: str, name: str) -> str:
    """Summarise a copyright file: the licence of `Files: *` if it is machine-readable (DEP-5).

    Otherwise, the texts in /usr/share/common-licenses that it refers to.

    >>> licence_of("Format: 1.0\\n\\nFiles: *\\nLicense: GPL-2\\n\\nFiles: a\\nLicense: MIT\\n", "x")
    'GPL-2, others for some files'
    """
    where = f"usr/share/doc/{name}/copyright"
    if re.match(r"Format(-Specification)?:", text):
        stanzas = [stanza for stanza in re.split(r"\n\s*\n", text) if stanza.startswith("Files:")]
        found = [found[1].strip() for s in stanzas if (found := re.search(r"^License:(.*)", s, re.MULTILINE))]
        if found and 0 < len(found[0]) <= SHORT_NAME:
            return found[0] + (", others for some files" if set(found) - {found[0]} else "")
    if common := sorted(set(COMMON.findall(text))):
        return f"refers to {', '.join(common)}, see {where}"
    return f"see {where}" if text else "see the copyright file of its source package"


def _folder(name: str, data_dir: Path) -> Path:
    return data_dir / f"debian-{name}"


def _copyright(name: str) -> str:
    return f"usr/share/doc/{name}/copyright"


def _decompressed(name: str, data: bytes) -> bytes:
    return gzip.decompress(data) if name.endswith((".gz", ".dz")) else data


def _candidate(name: str, key: str) -> str:
    """Return the version that apt would install."""
    shown = _run(["apt-cache", "show", "--no-all-versions", name], name, key)
    found = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
    if found is None:
        raise _unknown(name, key)
    return found[1]


def _run(command: list[str], name: str, key: str, folder: Path | None = None) -> str:
    where: dict[str, Any] = {"cwd": folder, "env": os.environ | {"LC_ALL": "C"}}
    try:
        done = subprocess.run(command, **where, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{key}: {command[0]} is missing, so {name} cannot be downloaded; use Debian or Ubuntu, or copy "
            f"the folder debian-{name} of a machine that has it into paths.data"
        ) from error
    if done.returncode and command[0] == "apt-cache":
        raise _unknown(name, key)
    if done.returncode:
        problem = next((line for line in done.stderr.splitlines() if line.startswith("E: ")), done.stderr)
        raise DataError(
            f"{key}: apt-get cannot download {name} ({problem.strip()}); run `sudo apt-get update` with a "
            "network, or remove it"
        )
    return done.stdout


def _unknown(name: str, key: str) -> DataError:
    return DataError(
        f"{key}: apt has no package {name!r}; run `sudo apt-get update`, or use the name that this release "
        f"has (`apt-cache search --names-only {name.rstrip('0123456789.-')}`)"
    )
