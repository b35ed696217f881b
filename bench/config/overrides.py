"""Parse the overrides of a command line, and explain in one line what Hydra refuses. No torch."""

import itertools
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from bench.config.bounds import as_yaml
from bench.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
MOST_RUNS = 10_000  # of a sweep; a larger number is a typing error
STEM = re.compile(r"\w[\w.-]*")  # of a choice's file


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides as Hydra does.

    Raises:
        ConfigError: an override cannot be read, names no file of its group, or removes a required setting.
    """
    try:
        parsed = list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    for override in parsed:
        if override.is_delete() and not override.key_or_group.startswith("task"):
            raise ConfigError(f"{override.input_line}: every run needs this key; only tasks can be removed")
        group, value = override.key_or_group, override.value()
        if not group:
            raise ConfigError(f"cannot read {override.input_line!r}: write key=value")
        if (CONF / group).is_dir() and value is None:
            raise ConfigError(unknown_choice(group, "null"))
        for choice in value if isinstance(value, list) else [value]:
            if not (CONF / group).is_dir() or (isinstance(choice, str) and STEM.fullmatch(choice)):
                continue  # a path would lead to other files
            if isinstance(value, list) or isinstance(choice, str):
                raise ConfigError(unknown_choice(group, as_yaml(choice).strip("'")))
    return parsed


def elements(override: Override) -> list[str]:
    """Return the values of a sweep axis, each as an override.

    Raises:
        ConfigError: the values cannot be listed.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    try:
        values = itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)  # a range may be infinite
        return [f"{key}={value}" for value in values]
    except (HydraException, ValueError, ArithmeticError) as error:  # glob(*), range(0,9,0), range(nan)
        raise ConfigError(f"{override.input_line}: list the values, such as {key}=a,b") from error


def is_value(override: Override) -> bool:
    """Return whether the override replaces one value of a run's config."""
    is_change = override.type is OverrideType.CHANGE and override.package is None
    return is_change and not is_choice(override) and override.key_or_group.split(".")[0] != "hydra"


def is_choice(override: Override) -> bool:
    """Return whether the override chooses a file of a group; a mapping is merged into the chosen file."""
    is_group = override.key_or_group == "experiment" or (CONF / override.key_or_group).is_dir()
    return is_group and not isinstance(override.value(), dict)


def plain_settings(words: Sequence[str], **defaults: str | None) -> dict[str, str]:
    """Parse key=value without Hydra, which would read an id of digits as a number and [MASK] as a list.

    Args:
        words: from the command line.
        defaults: default of each key; None if the key is required.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    missing = [key for key, default in defaults.items() if default is None and not given.get(key)]
    wrong = [word for word in words if word.partition("=")[0] not in defaults]
    if missing or wrong:
        problem = f"{wrong[0]!r} is not a setting" if wrong else f"{missing[0]}=... is missing"
        raise ConfigError(f"{problem}; use {', '.join(f'{key}=' for key in defaults)}")
    return {key: default or "" for key, default in defaults.items()} | given


def explain(error: Exception) -> str:
    """Return in one line what an error of Hydra or OmegaConf means and what to change."""
    cause = error.__cause__ if error.__cause__ is not None else error
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, in quotes if it has spaces or brackets"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value; add {error.full_key}=VALUE"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return f"{cause.full_key}: there is no such key; {_nearest(cause)}"
    choice = re.search(r"Could not (?:find|load) '(.*)/([^/']*)'", str(error))
    if choice:
        return unknown_choice(choice[1], choice[2])
    # Hydra's own text: the first line of the message and of its cause, with the key if neither has it.
    lines = [(str(part).strip() or type(part).__name__).splitlines()[0] for part in (error, cause)]
    text = ": ".join(dict.fromkeys(lines)).replace("Error merging override ", "")
    key = getattr(cause, "full_key", None)
    return text if not key or key in text else f"{key}: {text}"


def unknown_choice(group: str, name: str) -> str:
    """Return the message for a file that a config group does not have."""
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    listed = f"choose one of {', '.join(choices)}" if choices else f"there is no group {group}"
    return f"{group}={name}: no such choice; {listed}"


def _nearest(error: ConfigAttributeError | ConfigKeyError) -> str:
    parent = error.parent_node
    keys = [str(key) for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
    close = get_close_matches(str(error.key), keys, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(keys)}"
