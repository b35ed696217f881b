"""Overrides of a command line, parsed by Hydra and refused where it would go wrong later. No torch."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from bench.config.hydra_errors import explain, unknown_choice
from bench.errors import ConfigError

CONF = Path(__file__).resolve().parents[2] / "conf"
MOST_RUNS = 10_000  # of a sweep: what is more was mistyped
STEM = re.compile(r"\w[\w.-]*")  # of a choice's file


def parse(overrides: Sequence[str]) -> list[Override]:
    """Words as Hydra understands them.

    Raises:
        ConfigError: what cannot be read, names no file of its group, or would take out what every run needs.
    """
    try:
        parsed = list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error, CONF)) from error
    for override in parsed:
        if override.is_delete() and not override.key_or_group.startswith("task"):
            raise ConfigError(f"{override.input_line}: every run needs it; only tasks can be left out")
        group, value = override.key_or_group, override.value()
        if not group:
            raise ConfigError(f"cannot read {override.input_line!r}: write key=value")
        if (CONF / group).is_dir() and value is None:
            raise ConfigError(unknown_choice(group, "null", CONF))
        for choice in value if isinstance(value, list) else [value]:
            if (CONF / group).is_dir() and isinstance(choice, str) and not STEM.fullmatch(choice):
                raise ConfigError(unknown_choice(group, choice, CONF))  # a path leads to other files
    return parsed


def elements(override: Override) -> list[str]:
    """The values of an axis of a sweep, each as an override of its own.

    Raises:
        ConfigError: values that cannot be listed.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    try:
        values = itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)  # a range may have no end
        return [f"{key}={value}" for value in values]
    except (HydraException, ValueError, ArithmeticError) as error:  # glob(*), range(0,9,0), range(nan)
        raise ConfigError(f"{override.input_line}: list the values, such as {key}=a,b") from error


def is_value(override: Override) -> bool:
    """Does it replace one value of a run's config?"""
    is_change = override.type is OverrideType.CHANGE and override.package is None
    return is_change and not is_choice(override) and override.key_or_group.split(".")[0] != "hydra"


def is_choice(override: Override) -> bool:
    """Does it pick a file of a group? A mapping is merged into what was picked."""
    is_group = override.key_or_group == "experiment" or (CONF / override.key_or_group).is_dir()
    return is_group and not isinstance(override.value(), dict)


def plain_settings(words: Sequence[str], **defaults: str | None) -> dict[str, str]:
    """key=value words as they are; Hydra would read an id of digits as a number, a [MASK] as a list.

    Args:
        words: from the command line.
        defaults: for each key that there is; None: it must be given.

    Raises:
        ConfigError: a key that there is not, or one that is missing.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    missing = [key for key, default in defaults.items() if default is None and not given.get(key)]
    wrong = [word for word in words if word.partition("=")[0] not in defaults]
    if missing or wrong:
        what = f"{wrong[0]!r} is no setting" if wrong else f"{missing[0]}=... is missing"
        raise ConfigError(f"{what}; there are {', '.join(f'{key}=' for key in defaults)}")
    return {key: default or "" for key, default in defaults.items()} | given
