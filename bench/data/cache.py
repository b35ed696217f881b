"""Folders that are prepared once: complete or absent, for any number of processes.

A folder counts as prepared if its manifest, written last, lists every file with its SHA-256 and carries its
own.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from bench.data.signals import interrupted_by_signals
from bench.records import write_atomically

T = TypeVar("T")
log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # raised when a damaged folder is read
Manifest = dict[str, Any]


def cache_folder(data_dir: Path, name: str, key: dict[str, Any]) -> Path:
    """Return the folder for what `key` (JSON-able) describes; equal keys share it."""
    text = json.dumps(key, sort_keys=True)
    return data_dir / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def prepare(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """Return the manifest of `folder`, after filling the folder with `build` if necessary.

    Args:
        folder: where the result is stored; a damaged folder is rebuilt, with a warning.
        build: writes the files into the (empty) folder that it is given and returns the manifest.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with interrupted_by_signals(), _locked(folder):
        try:
            return _read(folder)  # another process may have built it meanwhile
        except DAMAGE as damage:
            if folder.exists():
                log.warning("%s is damaged and will be prepared again (%s)", folder, damage)
            return _build(folder, build)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from preparing the folder."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for another process that is preparing %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest, or None if the folder is absent or damaged."""
    try:
        return _read(folder)
    except DAMAGE:
        return None


def _read(folder: Path) -> Manifest:
    """Return the manifest of an undamaged folder; raise one of `DAMAGE` otherwise."""
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{MANIFEST}: {error}") from error
    if manifest != _sealed(manifest):
        raise ValueError(f"not as written: {MANIFEST}")
    changed = [name for name, digest in manifest["files"].items() if _digest(folder / name) != digest]
    if changed:
        raise ValueError(f"not as written: {', '.join(changed)}")
    return manifest


def _digest(path: Path) -> str | None:
    """Return a file's SHA-256, or None if it is absent; it is read once per process unless it changes."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _digest_of(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@cache
def _digest_of(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(manifest: Manifest) -> Manifest:
    """Return the manifest with the digest of all its other entries."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    partial = folder.with_name(f"{folder.name}.partial")  # only the holder of the lock touches it
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        manifest = build(partial)
        files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        manifest = _sealed(manifest | {"files": files})
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        if folder.exists():  # damaged; it stays until now because other processes may be reading it
            shutil.rmtree(folder)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def show_progress(items: Iterable[T], description: str) -> Iterator[T]:
    """Yield the items and count them on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        yield from progress.track(items, description=description)
