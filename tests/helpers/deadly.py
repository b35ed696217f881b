"""`bench` in a process that may kill itself at its nth change of a file, without the seconds of all imports.

A fork server has torch and all of `bench` imported; each command is a fork of it that has run nothing yet.
"""

import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import bench
from bench.cli import main

MOVES = ("os.rename", "os.remove")  # audit events, the path first
EMPTIED = "emptied"  # ours: a file that was opened to be written anew, and holds nothing yet
MODULES = sorted(
    ".".join(path.relative_to(Path(bench.__file__).parents[1]).with_suffix("").parts)
    for path in Path(bench.__file__).parent.rglob("*.py")
    if path.stem not in ("__init__", "worker")
)
_server = get_context("forkserver")
_server.set_forkserver_preload([*MODULES, "datasets", "sklearn.linear_model", "scipy.stats", "torch.optim"])


class KillAt:
    """An audit hook: SIGKILL before the nth event below a folder, or with a file just emptied.

    Status files do not count: they are many, and nothing is decided by them.
    """

    def __init__(self, nth: int, below: Path, say: Path, events: Sequence[str]) -> None:
        self.left, self.below, self.say, self.events = nth, str(below), say, events
        self.is_over = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and "w" in str(args[1] or ""):
            event = EMPTIED
        if event not in self.events or self.is_over or not isinstance(args[0], str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(args[0]))  # noqa: PTH100 - as it stands, links and all
        if not path.startswith(self.below) or "status.json" in path:
            return
        self.left -= 1
        if self.left == 0:
            self.is_over = True
            if event == EMPTIED:
                Path(path).write_bytes(b"")
            self.say.write_text(f"{event} {path}")
            os.kill(os.getpid(), signal.SIGKILL)


def _command(folder: Path, words: Sequence[str], hook: KillAt | None, limits: dict[int, int]) -> None:
    set_start_method("fork", force=True)  # as in the real command
    os.chdir(folder)
    os.environ["COLUMNS"] = "400"  # no table is wrapped
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
    if hook is not None:
        sys.addaudithook(hook)
    code = main(words)
    sys.stdout.flush()
    os._exit(code)


def bench_in_fork(
    folder: Path, words: Sequence[str], hook: KillAt | None = None, limits: dict[int, int] | None = None
) -> int | None:
    """A command to its end, or to where the hook kills it.

    Args:
        folder: where it is given; what it said is then in `said.txt` there.
        words: the command.
        hook: kills it.
        limits: of `resource`, for this command alone.

    Returns:
        Its exit code; None where it was killed.
    """
    process = _server.Process(target=_command, args=(folder, list(words), hook, limits or {}))
    process.start()
    process.join(timeout=180)
    assert process.exitcode is not None, "hangs"
    return None if process.exitcode == -signal.SIGKILL else process.exitcode
