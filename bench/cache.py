"""Folders that are prepared once: seen whole or not at all, by any number of processes.

A folder counts as prepared when its manifest, written last, lists every file with its size. Sizes catch
truncated files, not flipped bits.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.records import write_atomically

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
Manifest = dict[str, Any]


def cache_folder(data_dir: Path, name: str, key: dict[str, Any]) -> Path:
    """The folder of what `key` (JSON-able) describes; equal keys share it."""
    text = json.dumps(key, sort_keys=True)
    return data_dir / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def prepare(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """The manifest of `folder`, after filling the folder with `build` if need be.

    Args:
        folder: where the result lies; a damaged one is rebuilt, with a warning.
        build: writes the files into the (empty) folder that it is given and returns the manifest.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        manifest = read_manifest(folder)  # another process may have built it meanwhile
        if manifest is not None:
            return manifest
        if folder.exists():
            log.warning("%s is damaged and will be prepared again", folder)
            shutil.rmtree(folder)
        return _build(folder, build)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, or None if the folder is absent or damaged."""
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes: dict[str, int] = manifest["files"]
        intact = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if intact else None


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    partial = folder.with_name(f"{folder.name}.partial")  # only the holder of the lock touches it
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir()
    try:
        manifest = build(partial)
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        manifest = manifest | {"files": files}
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest
