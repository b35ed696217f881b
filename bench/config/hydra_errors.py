"""What Hydra and OmegaConf refuse, and what they let pass, as one line with key and fix. No torch."""

import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from bench.errors import ConfigError
from bench.records import LARGEST, is_text


def explain(error: Exception, conf: Path) -> str:
    """One line on what to change.

    Args:
        error: whatever Hydra or OmegaConf raised.
        conf: the folder of config groups, for the choices there are.
    """
    cause = error.__cause__ if error.__cause__ is not None else error
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, in quotes if it has spaces or brackets"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value; add {error.full_key}=VALUE"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return f"{cause.full_key}: there is no such key; {_nearest(cause)}"
    choice = re.search(r"Could not (?:find|load) '(.*)/([^/']*)'", str(error))
    if choice:
        return unknown_choice(choice[1], choice[2], conf)
    return _in_one_line(error, cause)


def unknown_choice(group: str, name: str, conf: Path) -> str:
    """What to say of a file that a config group does not have."""
    choices = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    listed = f"choose one of {', '.join(choices)}" if choices else f"there is no group {group}"
    return f"{group}={name}: no such choice; {listed}"


def _nearest(error: ConfigAttributeError | ConfigKeyError) -> str:
    parent = error.parent_node
    keys = [str(key) for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
    close = get_close_matches(str(error.key), keys, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(keys)}"


def _in_one_line(error: Exception, cause: BaseException) -> str:
    """Hydra's own words: the first line of the message and of its cause, with the key if neither has it."""
    lines = [(str(part).strip() or type(part).__name__).splitlines()[0] for part in (error, cause)]
    text = ": ".join(dict.fromkeys(lines)).replace("Error merging override ", "")
    key = getattr(cause, "full_key", None)
    return text if not key or key in text else f"{key}: {text}"


def check_values(config: Mapping[str, object]) -> None:
    """Refuse what no record could hold, and no file be named by, whatever it is set for.

    Raises:
        ConfigError: a number that is not finite or beyond 64 bits, a text that is none.
    """
    for key, value in _leaves(config):
        _check_value(key, value)


def _check_value(key: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: give a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{key}={value}: give a number of at most {LARGEST}")
    if isinstance(value, str) and not is_text(value):
        raise ConfigError(f"{key}={value!r} holds what is no text (a NUL, half a character); write it anew")


def _leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Every single value by its key; names of tasks and the like are values as well."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield key or "config", name
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node
