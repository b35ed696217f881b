"""Docstrings of installed Python packages, read with `ast`; no package is imported or run.

They are technical English with code, labelled by library and kind of object. The default packages are
dependencies of the benchmark, so they are available offline.
"""

import ast
import functools
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from omegaconf import MISSING
from pebble import ProcessExpired, ProcessPool
from typing_extensions import override

from bench.config.bounds import Checked, Count, Names
from bench.config.schema import Config
from bench.data.corpora.base import (
    Document,
    TextCorpus,
    TextCorpusOptions,
    package_folder,
    without_surrogates,
)
from bench.errors import ConfigError, DataError

# Tests have few docstrings; vendored copies are another library's text under the wrong label.
SKIPPED = {"tests", "test", "testing", "_vendor", "_vendored", "vendored", "vendor", "extern", "externals"}
FEW_FILES = 256  # parsed sooner than a process starts
FILES_AT_ONCE = 32
MAX_PARSERS = 8  # processes of about 60 MB each
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class File(NamedTuple):
    """A source file of a package."""

    path: Path
    relative: Path  # to the parent folder of the package
    package: str


@dataclass(frozen=True)
class DocstringsOptions(TextCorpusOptions):
    """Which packages are read, and the shortest docstring."""

    packages: Names = field(default_factory=lambda: MISSING)  # import names
    min_chars: Count = MISSING

    @override
    def check_run(self, config: Config) -> None:
        require_installed(self, self.packages)


def require_installed(options: Checked, packages: Sequence[str]) -> None:
    """Raise OptionError if one of the packages, an option of that name, is not installed."""
    for name in packages:
        advice = f"{name!r} is not an installed package; run `pip install {name}` or remove it from the list"
        options.require(package_folder(name) is not None, "packages", advice)


class Docstrings(TextCorpus):
    """One document per module, class and function; each source file is a group."""

    Options: ClassVar[type[Any]] = DocstringsOptions
    options: DocstringsOptions
    labelled = True

    def fingerprint(self) -> dict[str, Any]:
        """Return package versions, options, and the Python version, on which parsing depends."""
        return {
            "versions": {name: _version(name) for name in self.options.packages},
            "min_chars": self.options.min_chars,
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        }

    def provenance(self) -> dict[str, str]:
        """Return each package with its version and licence."""
        sources = [f"{name} {_version(name)} ({_licence(name)})" for name in self.options.packages]
        return {"source": "docstrings of " + ", ".join(sources), "licence": "that of each package"}

    def documents(self) -> Iterator[Document]:
        """Yield all docstrings, package by package, file by file."""
        files = [file for package in self.options.packages for file in _files(package)]
        yield from chain.from_iterable(_map_in_parallel(self._documents_of, files))

    def _documents_of(self, file: File) -> list[Document]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about invalid escapes in the packages' files
                tree = ast.parse(file.path.read_bytes())
        except (SyntaxError, ValueError):  # a template, or a file for another Python version
            return []
        module = ".".join(file.relative.with_suffix("").parts).removesuffix(".__init__")
        found = []
        for scope, name in _scopes(tree, module):
            text = _docstring(scope)
            if len(text) >= self.options.min_chars:
                labels = {"library": file.package, "kind": _kind(scope), "name": name}
                found.append(Document(text=text, group=file.relative.as_posix(), labels=labels))
        return found


def _files(package: str) -> Iterator[File]:
    root = _locate(package)
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root.parent)
        if not SKIPPED.intersection(relative.parts) and path.name != "conftest.py":
            yield File(path, relative, package)


def _map_in_parallel(parse: Callable[[File], list[Document]], files: list[File]) -> Iterator[list[Document]]:
    """Parse the files and yield their documents in order.

    Many files are parsed in several processes, unless this is itself a child process.

    Raises:
        DataError: one of the processes died.
    """
    if len(files) < FEW_FILES or parent_process():
        yield from map(parse, files)
        return
    pool = ProcessPool(max_workers=min(os.cpu_count() or 1, MAX_PARSERS), context=get_context("spawn"))
    try:
        yield from pool.map(parse, files, chunksize=FILES_AT_ONCE).result()
    except ProcessExpired as error:
        raise DataError(f"corpus.text: a process that parses docstrings died ({error}); run again") from error
    finally:
        pool.stop()
        pool.join()


def _scopes(scope: Scope, name: str) -> Iterator[tuple[Scope, str]]:
    yield scope, name
    for child in scope.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _scopes(child, f"{name}.{child.name}")


def _docstring(scope: Scope) -> str:
    match scope.body:
        case [ast.Expr(value=ast.Constant(value=str(text))), *_]:
            return without_surrogates(inspect.cleandoc(text)).strip()
    return ""


def _kind(scope: Scope) -> str:
    if isinstance(scope, ast.Module):
        return "module"
    return "class" if isinstance(scope, ast.ClassDef) else "function"


def _locate(package: str) -> Path:
    folder = package_folder(package)
    if folder is None:
        raise ConfigError(
            f"corpus.text.packages: {package!r} is not an installed package; "
            f"run `pip install {package}` or remove it from the list"
        )
    return folder.resolve()


@functools.cache
def _distributions() -> dict[str, str]:
    found = importlib.metadata.packages_distributions()  # sklearn -> scikit-learn
    return {package: names[0] for package, names in found.items()}


def _version(package: str) -> str:
    _locate(package)
    name = _distributions().get(package)
    return importlib.metadata.version(name) if name else "unknown"


def _licence(package: str) -> str:
    name = _distributions().get(package)
    if name is None:
        return "licence unknown"
    metadata = importlib.metadata.metadata(name).json
    classifiers = [line for line in metadata.get("classifier", []) if line.startswith("License ::")]
    trove = classifiers[0].split(" :: ")[-1] if classifiers else None
    stated = metadata.get("license_expression") or trove or metadata.get("license") or "licence unknown"
    return str(stated).splitlines()[0]
