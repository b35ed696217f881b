"""Settings of a command beside those of its runs: `tune.share=0.5` -> a typed dataclass. No torch."""

from collections.abc import Sequence
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.installation import CONF
from bench.config.overrides import explain
from bench.errors import ConfigError

T = TypeVar("T")


def split_settings(command: str, schema: type[T], words: Sequence[str]) -> tuple[T, list[str]]:
    """Return a command's own settings, which start with its name, and the overrides of the runs.

    Args:
        command: its name; conf/<command>.yaml holds the values of all settings.
        schema: a dataclass of the settings.
        words: of the command line.

    Raises:
        ConfigError: A key is unknown, or a value has another type; names the key.
    """
    own = [word for word in words if word.startswith(f"{command}.")]
    usual = OmegaConf.load(CONF / f"{command}.yaml")
    assert isinstance(usual, DictConfig)
    try:
        merged = OmegaConf.merge({command: OmegaConf.structured(schema)}, usual, OmegaConf.from_dotlist(own))
        settings = OmegaConf.to_object(OmegaConf.select(merged, command))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(settings, schema)
    return settings, [word for word in words if word not in own]
