"""`bench` in a process that kills itself at its nth change of a file, without the seconds that imports take.

A fork server has torch and all of `bench` imported; each command is a fork of it that has run nothing yet.
"""

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench
from bench.cli import main

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")  # audit events, the path first
MODULES = sorted(
    ".".join(path.relative_to(Path(bench.__file__).parents[1]).with_suffix("").parts)
    for path in Path(bench.__file__).parent.rglob("*.py")
    if path.stem not in ("__init__", "worker")
)
_server = get_context("forkserver")
_server.set_forkserver_preload([*MODULES, "datasets", "sklearn.linear_model", "scipy.stats", "torch.optim"])


class KillAt:
    """An audit hook: SIGKILL at the nth change of a file below a folder.

    A file that is opened to be written anew counts twice: once as it was before, once empty.
    """

    def __init__(self, nth: int, below: Path, say: Path) -> None:
        self.left, self.below, self.say = nth, str(below), say
        self.own = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or self.own or not isinstance(args[0], str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(args[0]))  # noqa: PTH100 - as it stands, links and all
        writes, empties = _opened(args) if event == "open" else (True, False)
        if not writes or not path.startswith(self.below):
            return
        self._count(f"{event} {path}")
        if empties:
            self._count(f"emptied {path}", empty=path)

    def _count(self, what: str, empty: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            self.own = True
            if empty:
                Path(empty).write_bytes(b"")
            self.say.write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)


def _opened(args: tuple[Any, ...]) -> tuple[bool, bool]:
    """Is a file opened to be written, and is it emptied by that?"""
    _, mode, flags = args
    if isinstance(mode, str):
        return any(letter in mode for letter in "wxa+"), "w" in mode
    return bool(flags & (os.O_WRONLY | os.O_RDWR)), bool(flags & os.O_TRUNC)


def _command(folder: Path, words: Sequence[str], below: Path | None, nth: int) -> None:
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    if below is not None:
        sys.addaudithook(KillAt(nth, below, folder / "killed_at.txt"))
    code = main(words)
    sys.stdout.flush()
    os._exit(code)


def bench_in_fork(folder: Path, words: Sequence[str], *, below: Path | None = None, nth: int = 0) -> int | None:
    """A command to its end, or to the nth change of a file below a folder.

    Returns:
        Its exit code; None where it was killed. What it said is in `said.txt`, where in `killed_at.txt`.
    """
    process = _server.Process(target=_command, args=(folder, list(words), below, nth))
    process.start()
    process.join(timeout=120)
    assert process.exitcode is not None, "hangs"
    return None if process.exitcode == -signal.SIGKILL else process.exitcode
