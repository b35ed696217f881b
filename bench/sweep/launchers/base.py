"""What a launcher is: it does a sweep's runs somewhere, side by side, and says how each went. No torch.

A newcomer is one file here and one YAML in conf/launcher/.
"""

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.sweep.progress import Display

POLL_S = 0.25
GRACE_S = 60.0  # for runs to save and stop
QUEUED, RUNNING = "queued", "running"  # of a run that is not over


class Launcher(ABC):
    """A way to do runs. What it is told stands in its frozen dataclass `Options`."""

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def check(self, specs: Sequence[RunSpec]) -> None:
        """Refuse what cannot work, before anything is prepared.

        Raises:
            ConfigError: an option out of range, or a tool that is not there; names the key and the fix.
        """

    @abstractmethod
    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        """Do runs.

        Args:
            specs: the whole sweep.
            todo: its runs that are left to do, the longest first.
            display: is told of every run that is over.

        Returns:
            The status of those of `todo` that were begun, by id; `QUEUED` or `RUNNING` where a run goes on
            without this process.
        """


def at_least(options: Any, **lows: int) -> None:
    """Every named option is null or large enough.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, low in lows.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigError(f"launcher.{name}={value}: use {low} or more")


def at_most(options: Any, **highs: int) -> None:
    """As `at_least`, for what is too large to be meant."""
    for name, high in highs.items():
        value = getattr(options, name)
        if value is not None and value > high:
            raise ConfigError(f"launcher.{name}={value}: use {high} or less")


def installed(launcher: str, package: str) -> None:
    """An optional package is there, whose extra has the launcher's name.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"launcher={launcher} needs the package {package}: pip install 'pretraining-bench[{launcher}]'"
        )


def room_for_ranks(specs: Sequence[RunSpec], name: str, cpus: int) -> None:
    """Every rank of a run has a core.

    Raises:
        ConfigError: names the option, `name`, that gives a run its `cpus`.
    """
    ranks = max(spec.config["trainer"]["devices"] for spec in specs)
    if cpus < ranks:
        raise ConfigError(f"launcher.{name}={cpus}: trainer.devices={ranks} processes; give one to each")


def watch(specs: Sequence[RunSpec], ask: Callable[[RunSpec], str], display: Display) -> dict[str, str]:
    """Show the runs until all are over.

    Args:
        specs: runs under way.
        ask: a run's status; `QUEUED` or `RUNNING` while it is not over.
        display: where they are shown.

    Returns:
        Their statuses by id.
    """
    statuses: dict[str, str] = {}
    waiting = list(specs)
    while waiting:
        time.sleep(POLL_S)
        now = {spec.run_id: ask(spec) for spec in waiting}
        for spec in waiting:
            if now[spec.run_id] == RUNNING:
                display.update(spec)
            elif now[spec.run_id] != QUEUED:
                statuses[spec.run_id] = now[spec.run_id]
                display.finish(spec, now[spec.run_id])
        waiting = [spec for spec in waiting if spec.run_id not in statuses]
        display.queue(sum(status == QUEUED for status in now.values()))
    return statuses
