"""Execute runs as tasks of a Ray cluster, or of a local one that is started for the sweep.

All nodes of the cluster must share the same folders and have this package installed.
"""

import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import Text
from bench.config.installation import check_installed
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError, in_one_line
from bench.sweep.launchers.base import (
    GRACE_S,
    QUEUED,
    RUNNING,
    Launcher,
    LauncherOptions,
    check_cpus_for_ranks,
    watch,
)
from bench.sweep.progress import Display, read_status
from bench.sweep.worker import record_failure, run_one

CONNECTING_S = 10.0
STOP_REQUESTS = 4  # Ray sometimes loses one; a second one stops a run immediately


class Ray(Launcher):
    """Launcher with one Ray task per run."""

    @dataclass(frozen=True)
    class Options(LauncherOptions):
        """The cluster and the resources of each task; conf/launcher/ray.yaml explains null."""

        address: Text | None = MISSING
        # Also the number of threads of a run.
        cpus_per_run: Annotated[int, Interval(ge=1, le=10**4)] = MISSING
        gpus_per_run: Annotated[float, Interval(ge=0, le=10**4)] | None = MISSING

    options: Options

    @override
    def check(self, specs: Sequence[RunSpec]) -> None:
        check_cpus_for_ranks(specs, "cpus_per_run", self.options.cpus_per_run)
        check_installed("ray", "launcher=ray")

    @override
    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
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
        """Connect to the cluster, or start one; raise ConfigError if neither is possible."""
        import ray

        address, cpus = self.options.address, self.options.cpus_per_run
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
        try:
            _check_address(address)
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"launcher.address={address}: cannot connect to Ray ({in_one_line(error)})"
            ) from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ray.init replaced the handler
        has = int(ray.cluster_resources().get("CPU", 0))
        if address is None and cpus > has:
            ray.shutdown()
            raise ConfigError(f"launcher.cpus_per_run={cpus}: this machine has {has}; lower it")

    def _gpus(self, spec: RunSpec) -> float:
        """Return the GPUs per run: as many as the run trains on, unless the options set another number."""
        trainer = spec.config["trainer"]
        needed = trainer["devices"] if trainer["accelerator"] == "gpu" else 0
        return needed if self.options.gpus_per_run is None else self.options.gpus_per_run


def _check_address(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT, which Ray itself notices only after minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECTING_S).close()


def _do(text: str, threads: int, folder: str) -> str:
    """Execute one run in a worker of the cluster; paths in its config are relative to `folder`."""
    os.chdir(folder)
    return run_one(text, threads)


def _wait(specs: Sequence[RunSpec], tasks: dict[str, Any], display: Display) -> dict[str, str]:
    """Wait until all runs have ended, or after Ctrl-C have saved their state, and return their statuses."""
    import ray

    before = {spec.run_id: read_status(spec.folder) for spec in specs}
    try:
        return watch(specs, lambda spec: _status(spec, tasks[spec.run_id], before[spec.run_id]), display)
    except KeyboardInterrupt:
        display.say("stopping: runs save their state; the same command resumes them")
        waiting = list(tasks.values())
        for _ in range(STOP_REQUESTS):
            for task in waiting:
                ray.cancel(task)  # raises KeyboardInterrupt in its worker; a queued task never starts
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S / STOP_REQUESTS)
            if not waiting:
                break
        return {spec.run_id: _status_when_stopped(tasks[spec.run_id]) for spec in specs}


def _status(spec: RunSpec, task: Any, before: Any) -> str:
    """Return a run's status, and record the failure of a run whose worker died."""
    import ray

    ready, _ = ray.wait([task], timeout=0)
    if not ready:
        state = read_status(spec.folder)
        return QUEUED if state == before else RUNNING
    try:
        return str(ray.get(task))
    except Exception as error:  # Ray raises many types
        return record_failure(spec, f"its Ray task failed: {in_one_line(error)}")


def _status_when_stopped(task: Any) -> str:
    """Return the status that the run reported, or `interrupted` if it was cut off by the stop."""
    import ray

    try:
        return str(ray.get(task, timeout=0))
    except Exception:  # cancelled, timed out or dead
        return "interrupted"
