"""Build the object that a config names: `_target_` -> class -> checked Options -> object.

Only this module reads `_target_`. A config cannot run code of its own: only modules of this package and of
installed plug-ins (`bench.config.plugins`) are imported by name.
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.bounds import Checked, OptionError, check
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
    return cls(find_options(cls.Options, node, key), **context)  # type: ignore[call-arg, attr-defined]


def find_class(node: Mapping[str, Any] | DictConfig, base: type[T], key: str) -> type[T]:
    """Import the class that `node._target_` names and check that it is a `base`."""
    target = str(node.get("_target_", ""))
    module, _, name = target.rpartition(".")
    _refuse_foreign(target, key)
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module that is not meant to be imported may raise anything
        raise ConfigError(f"{key}._target_={target!r} cannot be imported: {error}") from error
    is_one = isinstance(cls, type) and issubclass(cls, base) and hasattr(cls, "Options")
    if not is_one or inspect.isabstract(cls):
        raise ConfigError(f"{key}._target_={target!r} is not a {base.__name__}; choose a subclass of it")
    return cls


def listed_options(node: Mapping[str, Any] | DictConfig, room: str) -> type[Any] | None:
    """Return the `Options` of the class that `node` names from the room's module `options`, without torch.

    Args:
        node: `_target_` and the options.
        room: a package, such as `bench.tasks`; in its module `options`, the options of `C` are `COptions`.

    Returns:
        None if the class lies elsewhere or its options are not listed.
    """
    module, _, name = str(node.get("_target_", "")).rpartition(".")
    if not module.startswith(f"{room}."):
        return None
    return getattr(importlib.import_module(f"{room}.options"), f"{name}Options", None)


def refuse_target(node: Mapping[str, Any] | DictConfig, room: str, key: str) -> None:
    """Refuse a class that a part of the config cannot have, as far as that is known without torch.

    Raises:
        ConfigError: the class lies in another room of this package, or its module may not be imported.
    """
    target = str(node.get("_target_", ""))
    if target.startswith(f"{OURS}.") and not target.startswith(f"{room}."):
        raise OptionError("_target_", target, f"choose a class of {room}", key)
    _refuse_foreign(target, key)


def _refuse_foreign(target: str, key: str) -> None:
    """Raise ConfigError for a class whose module a config may not import."""
    if not may_import(target.rpartition(".")[0]):
        raise ConfigError(
            f"{key}._target_={target!r} is neither in {OURS} nor in an installed plug-in; "
            f"declare its package as one (entry point {GROUP}, see examples/my_strategies)"
        )


def find_options(cls: type[Any], node: Mapping[str, Any] | DictConfig, key: str) -> Any:
    """Return the node's options as a checked instance of the dataclass `cls`.

    Raises:
        ConfigError: an option is unknown, missing, of a wrong type or out of bounds; names it under `key`.
    """
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    usual_key = getattr(cls, "usual_key", "")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
        if not isinstance(options, Checked):
            check(options, usual_key)
    except OptionError as error:
        raise error.moved(usual_key, key) from None
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        where = f"{key}.{error.full_key}" if error.full_key else key
        names = ", ".join(field.name for field in fields(cls))
        raise ConfigError(f"{where}: {problem} (options: {names})") from error
    return options
