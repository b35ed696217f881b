"""Where YAML files of choices are found: conf/, and further folders with the same layout. No torch here.

Whatever lists or opens a choice asks this module. A run's id holds the name and the options of a choice, not
the folder in which its file was found; so a name may be in one folder only.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from bench.config.installation import CONF
from bench.config.plugins import plugins
from bench.errors import ConfigError

_added: ContextVar[tuple[Path, ...]] = ContextVar("added_folders", default=())


def search_path() -> tuple[Path, ...]:
    """Return the folders in which choices are looked up: conf/, those of plug-ins, those that were added.

    Raises:
        ConfigError: a plug-in has a file whose name is taken.
    """
    return (CONF, *_of_plugins(), *added_folders())


@cache
def _of_plugins() -> tuple[Path, ...]:
    """Return the folders of installed plug-ins, checked once."""
    folders = tuple(plugins().values())
    for i, folder in enumerate(folders):
        _check(folder, (CONF, *folders[:i]))
    return folders


def added_folders() -> tuple[Path, ...]:
    """Return the folders that the user has added."""
    return _added.get()


@contextmanager
def searching(folders: Sequence[str]) -> Iterator[None]:
    """Add folders of YAML files to the search path inside this context.

    Args:
        folders: Each a path, `file://PATH`, or `pkg://PACKAGE` for the folder of an installed package.

    Raises:
        ConfigError: A folder is not there, holds no choice, or has a file whose name is taken.
    """
    new = [folder for text in folders if (folder := _located(text)) not in _added.get()]
    token = _added.set((*_added.get(), *dict.fromkeys(new)))
    try:
        for folder in new:
            _check(folder, tuple(other for other in search_path() if other != folder))
        yield
    finally:
        _added.reset(token)


class AddedFolders(SearchPathPlugin):
    """Hydra's plug-in by which it composes from the added folders too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the added folders, so that the root configs are those of conf/."""
        for folder in _besides_conf():
            search_path.append(provider="bench", path=f"file://{folder}")


def _besides_conf() -> tuple[Path, ...]:
    return search_path()[1:]


def groups() -> list[str]:
    """Return the config groups that have choices, such as `corpus/text`."""
    folders = (path for path in CONF.rglob("*") if path.is_dir() and any(path.glob("*.yaml")))
    return sorted(folder.relative_to(CONF).as_posix() for folder in folders)


def is_group(name: str) -> bool:
    """Return whether a key names a config group."""
    return (CONF / name).is_dir()


def choices(group: str) -> list[str]:
    """Return the names of a group's choices in all folders."""
    return sorted({path.stem for folder in search_path() for path in (folder / group).glob("*.yaml")})


def find_choice(group: str, name: str) -> Path | None:
    """Return the file of a choice; None if no folder has it."""
    paths = (folder / group / f"{name}.yaml" for folder in search_path())
    return next((path for path in paths if path.is_file()), None)


def _located(text: str) -> Path:
    """Return the folder that a text names."""
    if text.startswith("pkg://"):
        return _package_folder(text)
    folder = Path(text.removeprefix("file://")).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{text}: no such folder; --config-dir and hydra.searchpath add folders")
    return folder


def _package_folder(text: str) -> Path:
    try:
        spec = importlib.util.find_spec(text.removeprefix("pkg://").replace("/", "."))
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{text}: no such package; install it, or give a folder")
    return Path(spec.submodule_search_locations[0]).resolve()


def _check(folder: Path, others: Sequence[Path]) -> None:
    """Refuse a folder that would have no effect, wholly or in part, beside the others."""
    files = [(group, path) for group in groups() for path in sorted((folder / group).glob("*.yaml"))]
    if not files:
        raise ConfigError(f"{folder} holds no choices; add files such as {folder.name}/strategy/x.yaml")
    for group, path in files:
        for other in others:
            if (other / group / path.name).is_file():
                raise ConfigError(f"{path}: {group}={path.stem} is in {other / group} too; rename one file")
