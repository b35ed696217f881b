"""Build the object that a config names: `_target_` -> class -> checked Options -> object.

Only this module reads `_target_`. A config cannot run code of its own: only modules of this package and of
installed plug-ins (`bench.config.plugins`) are imported by name.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.plugins import GROUP, OURS, may_import
from bench.errors import ConfigError

T = TypeVar("T")


def build(node: Mapping[str, Any] | DictConfig, base: type[T], key: str, **context: Any) -> T:
    """Construct the object that `node` describes.

    Args:
        node: `_target_` (module.Class) and the options of the class as plain scalars and lists.
        base: base class; only its subclasses are constructed.
        key: the config key of the node, for messages.
        context: further constructor arguments, the same for all subclasses of `base`.

    Raises:
        ConfigError: the class is unknown or has another base, or an option is unknown, missing or of a
            wrong type; names the key.
    """
    cls = find_class(node, base, key)
    return cls(find_options(cls, node, key), **context)  # type: ignore[call-arg]


def find_class(node: Mapping[str, Any] | DictConfig, base: type[T], key: str) -> type[T]:
    """Import the class that `node._target_` names and check that it is a `base`."""
    target = str(node.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if not may_import(module):
        raise ConfigError(
            f"{key}._target_={target!r} is neither in {OURS} nor in an installed plug-in; "
            f"declare its package as one (entry point {GROUP}, see examples/my_strategies)"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module that is not meant to be imported may raise anything
        raise ConfigError(f"{key}._target_={target!r} cannot be imported: {error}") from error
    is_one = isinstance(cls, type) and issubclass(cls, base) and hasattr(cls, "Options")
    if not is_one or inspect.isabstract(cls):
        raise ConfigError(f"{key}._target_={target!r} is not a {base.__name__}; choose a subclass of it")
    return cls


def find_options(cls: type[Any], node: Mapping[str, Any] | DictConfig, key: str) -> Any:
    """Return the node's options as a checked instance of `cls.Options`."""
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls.Options), given)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        where = f"{key}.{error.full_key}" if error.full_key else key
        names = ", ".join(map(str, OmegaConf.structured(cls.Options)))
        raise ConfigError(f"{where}: {problem} (options: {names})") from error
