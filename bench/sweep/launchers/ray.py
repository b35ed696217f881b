"""Runs as tasks of a Ray cluster, or of one that is started here for the sweep.

The cluster's nodes see the same folders and have this package installed.
"""

import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bench.config.run_spec import RunSpec
from bench.errors import ConfigError, in_one_line
from bench.sweep.launchers.base import (
    GRACE_S,
    QUEUED,
    RUNNING,
    Launcher,
    at_least,
    installed,
    room_for_ranks,
    watch,
)
from bench.sweep.launchers.run import record_failure, run_one
from bench.sweep.progress import Display, read_status

CONNECTING_S = 10.0
CALLS = 4  # to stop; Ray has been seen to lose one, and a second stops a run at once


class Ray(Launcher):
    """One task per run."""

    @dataclass(frozen=True)
    class Options:
        """The cluster, and what every task asks of it; conf/launcher/ray.yaml says what null means."""

        address: str | None = MISSING
        cpus_per_run: int = MISSING  # threads of a run as well
        gpus_per_run: float | None = MISSING

    options: Options

    def check(self, specs: Sequence[RunSpec]) -> None:
        """Numbers have a least value, and ray is there."""
        at_least(self.options, cpus_per_run=1, gpus_per_run=0)
        room_for_ranks(specs, "cpus_per_run", self.options.cpus_per_run)
        installed("ray", "ray")

    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        """Hand all runs to the cluster, which does as many at a time as it has room for.

        Raises:
            ConfigError: there is no such cluster, or this machine is too small to be one.
        """
        if not todo:
            return {}
        self._join()
        import ray

        try:
            threads, folder = self.options.cpus_per_run, str(Path.cwd())
            do = ray.remote(_do).options(num_cpus=threads, num_gpus=self._gpus(todo[0]), max_retries=0)
            tasks = {spec.run_id: do.remote(spec.to_json(), threads, folder) for spec in todo}
            return _wait(todo, tasks, display)
        finally:
            ray.shutdown()

    def _join(self) -> None:
        """Connect to the cluster, or start one."""
        import ray

        address, cpus = self.options.address, self.options.cpus_per_run
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
        try:
            _knock(address)
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"launcher.address={address}: no Ray answers ({in_one_line(error)})") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init took it over
        has = int(ray.cluster_resources().get("CPU", 0))
        if address is None and cpus > has:
            ray.shutdown()
            raise ConfigError(f"launcher.cpus_per_run={cpus}: this machine has {has}; lower it")

    def _gpus(self, spec: RunSpec) -> float:
        """Per run; as many as it trains on, unless the options say otherwise."""
        trainer = spec.config["trainer"]
        needed = trainer["devices"] if trainer["accelerator"] == "gpu" else 0
        return needed if self.options.gpus_per_run is None else self.options.gpus_per_run


def _knock(address: str | None) -> None:
    """Ray itself takes minutes to find that nobody is at HOST:PORT.

    Raises:
        OSError: nobody is.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECTING_S).close()


def _do(text: str, threads: int, folder: str) -> str:
    """One run, in a worker of the cluster; paths in its config are relative to `folder`."""
    os.chdir(folder)
    return run_one(text, threads)


def _wait(specs: Sequence[RunSpec], tasks: dict[str, Any], display: Display) -> dict[str, str]:
    """The runs' statuses once all are over; after Ctrl-C, once those under way have saved their state."""
    import ray

    before = {spec.run_id: read_status(spec.folder) for spec in specs}
    try:
        return watch(specs, lambda spec: _status(spec, tasks[spec.run_id], before[spec.run_id]), display)
    except KeyboardInterrupt:
        display.say("stopping: runs save their state; the same command resumes them")
        waiting = list(tasks.values())
        for _ in range(CALLS):
            for task in waiting:
                ray.cancel(task)  # Ctrl-C in its worker; what has not started never will
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S / CALLS)
            if not waiting:
                break
        return {spec.run_id: _status_when_stopped(tasks[spec.run_id]) for spec in specs}


def _status(spec: RunSpec, task: Any, before: Any) -> str:
    """A run's status; a worker that died could not record its run, so that is done here."""
    import ray

    ready, _ = ray.wait([task], timeout=0)
    if not ready:
        state = read_status(spec.folder)
        return QUEUED if state == before else RUNNING
    try:
        return str(ray.get(task))
    except Exception as error:  # of Ray's many kinds
        return record_failure(spec, f"its Ray task broke: {in_one_line(error)}")


def _status_when_stopped(task: Any) -> str:
    """The run's own word if it had one; a run cut off by the stop did not fail."""
    import ray

    try:
        return str(ray.get(task, timeout=0))
    except Exception:  # cancelled, timed out or dead
        return "interrupted"
