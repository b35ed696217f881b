"""The only reader of `_target_`: class -> check base -> merge onto its Options dataclass -> construct.

A config names classes and runs no code of its own: only modules of this package are imported by name. A class
that lies elsewhere can be named once the program has imported it.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.errors import ConfigError

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


def build(node: Mapping[str, Any] | DictConfig, base: type[T], key: str, **context: Any) -> T:
    """Construct what `node` describes.

    Args:
        node: `_target_` (module.Class) and the class' options as plain scalars and lists.
        base: the class must be one of these; nothing else is ever constructed.
        key: the config key of the node, for messages.
        context: further constructor arguments, the same for all classes of this base.

    Raises:
        ConfigError: unknown class, wrong base, unknown, missing or mistyped option; names the key.
    """
    cls = find_class(node, base, key)
    return cls(find_options(cls, node, key), **context)  # type: ignore[call-arg]


def find_class(node: Mapping[str, Any] | DictConfig, base: type[T], key: str) -> type[T]:
    """Import the class that `node._target_` names and check that it is a `base`."""
    target = str(node.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if module not in sys.modules and not module.startswith(f"{PACKAGE}."):
        raise ConfigError(
            f"{key}._target_={target!r} is not in {PACKAGE}, and nothing else is imported because a config "
            f'says so; put its file into {PACKAGE}/, as the README\'s "Add your own" shows'
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module raises that was not meant to be imported
        raise ConfigError(f"{key}._target_={target!r} cannot be imported: {error}") from error
    is_one = isinstance(cls, type) and issubclass(cls, base) and hasattr(cls, "Options")
    if not is_one or inspect.isabstract(cls):
        raise ConfigError(f"{key}._target_={target!r} is not a {base.__name__}; choose a subclass of it")
    return cls


def find_options(cls: type[Any], node: Mapping[str, Any] | DictConfig, key: str) -> Any:
    """The node's options as an instance of `cls.Options`, checked."""
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls.Options), given)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        where = f"{key}.{error.full_key}" if error.full_key else key
        raise ConfigError(f"{where}: {problem} (options: {', '.join(_names(cls))})") from error


def _names(cls: type[Any]) -> list[str]:
    return [str(name) for name in OmegaConf.structured(cls.Options)]
