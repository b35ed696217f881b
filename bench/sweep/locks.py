"""Several launchers on one study: each run is done by one of them; the others wait for it, or take it over.

A run belongs to the process that holds the lock in its folder. The system takes the lock from a process that
is gone, on a shared file system as well, and no clock is asked.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from bench.config.run_spec import RunSpec
from bench.records import read_evaluations
from bench.sweep.progress import Display, read_status

LOCK = "lock"
POLL_S = 0.5


def lock(folder: Path) -> FileLock:
    """To be held while a run is done in its folder; entering it raises Timeout where another process does."""
    return FileLock(folder / LOCK, timeout=0)


def is_held(folder: Path) -> bool:
    """Is some process doing the run of this folder? Also where it cannot be asked: a read-only folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with lock(folder):
            return False
    except (Timeout, OSError):
        return True


def ended(spec: RunSpec, before: str | None = None) -> str | None:
    """The run's status, if nothing is left to do of it or it failed in other hands.

    Args:
        spec: the run.
        before: its `RunSpec.version` when this launcher began; None: whatever failed is tried again.
    """
    record = spec.recorded()
    if record is not None and spec.is_done():
        return record.status
    return "failed" if before not in (None, spec.version()) and spec.has_failed() else None


def tidy(spec: RunSpec) -> None:
    """Clear away what a killed process has left half-written; for the holder of the run's lock."""
    for left in (
        *spec.folder.rglob("*.partial"),
        *spec.records.glob(f".{spec.run_id}.*.partial"),
        *spec.evaluations.glob(f".{spec.run_id}.*.partial"),
    ):
        left.unlink(missing_ok=True)


def damage(todo: Sequence[RunSpec]) -> list[str]:
    """What of the runs to do was done, but its file is not readable."""
    lines = []
    for spec in todo:
        if spec.record_path.exists():
            if spec.recorded() is None:
                lines.append(f"{spec.record_path} is damaged; the run is done again")
            lines += map(str, read_evaluations(spec.evaluations, spec.run_id)[1])
    return lines


def share(
    todo: Sequence[RunSpec], do: Callable[[Sequence[RunSpec]], dict[str, str]], display: Display
) -> dict[str, str]:
    """Do runs; wait for those that another launcher does, and do them if it is gone.

    Args:
        todo: the runs.
        do: does some of them and returns their statuses by id, `busy` where another process does the run.
        display: is told who is waited for.
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
    """Those of the runs that no process holds any more; at least one."""
    owners = ", ".join(f"{spec.label} ({_owner(spec)})" for spec in busy)
    display.say(f"waiting for {len(busy)} runs that another launcher does: {owners}")
    while not (free := [spec for spec in busy if not is_held(spec.folder)]):
        for spec in busy:
            display.update(spec)
        time.sleep(POLL_S)
    return free


def _owner(spec: RunSpec) -> str:
    state = read_status(spec.folder)
    return f"process {state['pid']} on {state['host']}" if state and "host" in state else "just begun"
