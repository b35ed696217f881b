"""Share one study among several launchers: each run is done by one of them, the others wait or take over.

A run belongs to the process that holds the lock in its folder. The operating system releases the lock when
that process ends, on a shared file system too, so no clock is involved.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import read_evaluations
from bench.sweep.progress import Display, read_status

LOCK = "lock"
POLL_S = 0.5
_SECOND = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(1)
"""  # a process that takes a lock, if it can


def lock(folder: Path) -> FileLock:
    """Return the lock to hold while doing the run in `folder`; entering it raises Timeout if it is taken."""
    return FileLock(folder / LOCK, timeout=0)


def check(folder: Path) -> None:
    """Raise ConfigError unless the file system of `folder` gives a lock to one of two processes only."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".lock-check-{os.getpid()}"
    try:
        with FileLock(path, timeout=0):
            second = None if os.name == "nt" else [sys.executable, "-I", "-S", "-c", _SECOND, str(path)]
            is_shared = second is not None and subprocess.run(second, check=False).returncode == 0
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise ConfigError(f"paths.experiments={folder.parent}: {_NO_LOCKS}") from None
    finally:
        path.unlink(missing_ok=True)
    if is_shared:
        raise ConfigError(f"paths.experiments={folder.parent}: {_NO_LOCKS}")


_NO_LOCKS = (
    "this file system has no locks (flock), so two launchers could do the same run; choose a local folder, "
    "or mount it with locks (NFS 4, or Lustre with the option flock)"
)


def is_held(folder: Path) -> bool:
    """Check whether a process is doing the run in `folder`; a read-only folder counts as held."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock(folder):
            return False
    except (Timeout, OSError):
        return True


def ended(spec: RunSpec, before: str | None = None) -> str | None:
    """Return the run's status if nothing is left to do, or if it failed in another process; else None.

    Args:
        spec: the run.
        before: its `RunSpec.version` when this launcher started; None means that failed runs are retried.
    """
    record = spec.recorded()
    if record is not None and spec.is_done():
        return record.status
    return "failed" if before not in (None, spec.version()) and spec.has_failed() else None


def remove_partial_files(spec: RunSpec) -> None:
    """Remove the half-written files of a killed process; call it only while holding the run's lock."""
    for left in (
        *spec.folder.rglob("*.partial"),
        *spec.records.glob(f".{spec.run_id}.*.partial"),
        *spec.evaluations.glob(f".{spec.run_id}.*.partial"),
    ):
        left.unlink(missing_ok=True)


def damaged_files(todo: Sequence[RunSpec]) -> list[str]:
    """Return one line for each unreadable record or evaluation of the pending runs."""
    lines = []
    for spec in todo:
        if spec.record_path.exists():
            if spec.recorded() is None:
                lines.append(f"{spec.record_path} is damaged; the run is repeated")
            lines += map(str, read_evaluations(spec.evaluations, spec.run_id)[1])
    return lines


def share(
    todo: Sequence[RunSpec], do: Callable[[Sequence[RunSpec]], dict[str, str]], display: Display
) -> dict[str, str]:
    """Do the runs; wait for those that another launcher is doing, and do them if it ends without a result.

    Args:
        todo: the runs.
        do: does some of them and returns their statuses by id, `busy` for a run that another process holds.
        display: shows which runs are waited for.
    """
    before = {spec.run_id: spec.version() for spec in todo}
    statuses = do(todo)
    while "interrupted" not in statuses.values():
        busy = [spec for spec in todo if statuses.get(spec.run_id) == "busy"]
        if not busy:
            break
        free = _wait(busy, display)
        over = {spec.run_id: status for spec in free if (status := ended(spec, before[spec.run_id]))}
        for spec in free:
            if spec.run_id in over:
                display.finish(spec, over[spec.run_id])
        left = [spec for spec in free if spec.run_id not in over]
        statuses |= over | (do(left) if left else {})
    return statuses


def _wait(busy: Sequence[RunSpec], display: Display) -> list[RunSpec]:
    """Wait until at least one of the runs is released by its process, and return those that are."""
    owners = ", ".join(f"{spec.label} ({_owner(spec)})" for spec in busy)
    display.say(f"waiting for {len(busy)} runs of another launcher: {owners}")
    while not (free := [spec for spec in busy if not is_held(spec.folder)]):
        for spec in busy:
            display.update(spec)
        time.sleep(POLL_S)
    return free


def _owner(spec: RunSpec) -> str:
    state = read_status(spec.folder)
    return f"process {state['pid']} on {state['host']}" if state and "host" in state else "just started"
