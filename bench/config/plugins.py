"""Find installed packages that add strategies, tasks, corpora, launchers, figures, loggers or callbacks.

Such a package declares the entry point `pretraining_bench.plugins`, whose value is the package's name:

    [project.entry-points."pretraining_bench.plugins"]
    my_strategies = "my_strategies"

The folder `conf` inside the package holds its YAML files, arranged as those of this project, for example
`my_strategies/conf/strategy/reversed_lm.yaml`. A `_target_` may then name a class of the package. Nothing of
a package is imported before one of its classes is built. `examples/my_strategies` is a complete example.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from bench.errors import ConfigError

GROUP = "pretraining_bench.plugins"
OURS = __name__.partition(".")[0]


@cache
def plugins() -> Mapping[str, Path]:
    """Return the `conf` folder of each installed plug-in by the name of its package, in alphabetical order.

    Raises:
        ConfigError: an entry point names no package, or a package without a folder `conf`.
    """
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.value)
    return {entry.value: _conf_folder(entry) for entry in found}


def _conf_folder(entry: EntryPoint) -> Path:
    """Find the folder without importing the package."""
    name = entry.value
    spec = find_spec(name) if name.isidentifier() else None
    places = [Path(place) / "conf" for place in (spec.submodule_search_locations or ())] if spec else []
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"plug-in {name!r}: expected a top-level package with a folder `conf` "
            f"(entry point {GROUP}); correct its pyproject.toml or uninstall it"
        )
    return folder


def may_import(module: str) -> bool:
    """Return whether a config may name a class of this module: one of `bench` or of a plug-in."""
    package = module.partition(".")[0]
    return package == OURS or package in plugins()
