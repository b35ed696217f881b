"""The interface of launchers and what they share. A launcher executes the runs of a sweep in parallel.

A new launcher is one file here and one YAML file in conf/launcher/. This module never imports torch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.config.bounds import Checked
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.sweep.progress import Display

POLL_S = 0.25
GRACE_S = 60.0  # time for runs to save their state and stop
QUEUED, RUNNING = "queued", "running"  # statuses of unfinished runs


@dataclass(frozen=True)
class LauncherOptions(Checked):
    """Base of the options of launchers."""

    usual_key: ClassVar[str] = "launcher"


class Launcher(ABC):
    """A way to execute runs, with its settings in a frozen dataclass `Options`.

    Example: one run after the other in this process, as `launcher=in_turn`::

        class InTurn(Launcher):
            @dataclass(frozen=True)
            class Options:
                pass

            def check(self, specs):
                pass  # nothing can be wrong

            def launch(self, specs, todo, display):
                statuses = {}
                for spec in todo:
                    statuses[spec.run_id] = run_one(spec.to_json(), threads=None)  # bench.sweep.worker
                    display.finish(spec, statuses[spec.run_id])
                return statuses
    """

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def check(self, specs: Sequence[RunSpec]) -> None:
        """Validate the options for these runs, before anything is prepared.

        Raises:
            ConfigError: an option is out of range or a tool is missing; names the key and the fix.
        """

    @abstractmethod
    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        """Execute runs.

        Args:
            specs: all runs of the sweep.
            todo: the runs left to do, longest first.
            display: is notified of every finished run.

        Returns:
            The status, by id, of the runs of `todo` that were started; `QUEUED` or `RUNNING` if a run
            continues without this process.
        """


def check_cpus_for_ranks(specs: Sequence[RunSpec], name: str, cpus: int) -> None:
    """Raise ConfigError if the option `name` gives a run fewer CPUs than it has ranks."""
    ranks = max(spec.config["trainer"]["devices"] for spec in specs)
    if cpus < ranks:
        raise ConfigError(
            f"launcher.{name}={cpus}: trainer.devices={ranks} needs a CPU for each; use {ranks} or more"
        )


def watch(specs: Sequence[RunSpec], ask: Callable[[RunSpec], str], display: Display) -> dict[str, str]:
    """Show the runs until all have ended, and return their statuses by id.

    Args:
        specs: the runs that were started.
        ask: returns a run's status; `QUEUED` or `RUNNING` until it has ended.
        display: where they are shown.
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
