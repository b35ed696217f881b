"""What must not be recorded: settings are written into records, logs and W&B, so no key may be among them.

A key is read from the environment, by the client that needs it, and from nowhere else.
"""

import re
from collections.abc import Mapping

from omegaconf import OmegaConf

from bench.errors import ConfigError

SECRET = re.compile(r"(api_?key|token|password|passwd|secret|credentials?)(\[\d+\])?$", re.IGNORECASE)
USER_OR_QUERY = re.compile(r"://([^/]*@|.*[?#])")  # in an address


def refuse_secrets(key: str, node: object) -> None:
    """Refuse keys and passwords among settings, where they can be told.

    Args:
        key: where the node stands in the config.
        node: mappings and lists, down to single values.

    Raises:
        ConfigError: an address with more than host and path, something else than a name in `*_variable`, or
            a text under a name such as `api_key`.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            refuse_secrets(f"{key}.{name}", value)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            refuse_secrets(f"{key}[{i}]", value)
    elif isinstance(node, str):
        _refuse_secret(key, node)


def _refuse_secret(key: str, text: str) -> None:
    if USER_OR_QUERY.search(text):
        raise ConfigError(f"{key}: give the address without user, password or query; they would be recorded")
    if key.endswith("_variable") and not re.fullmatch("[A-Z_][A-Z0-9_]*", text):
        raise ConfigError(f"{key}: give the name of an environment variable, not what it holds")
    if SECRET.search(key):
        raise ConfigError(f"{key}: take it out; it would be recorded, and keys come from the environment")


def refuse_environment() -> None:
    """From now on `${oc.env:NAME}` in a config is an error: the shell can put `$NAME` on a command line."""
    OmegaConf.register_new_resolver("oc.env", _refuse, replace=True)


def _refuse(name: str, *_: str) -> str:
    raise ConfigError(f"settings are recorded, so none is read from the environment; write what {name} holds")
