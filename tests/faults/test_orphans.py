"""No process outlives the one that started it, whatever it waits for; a finished record stays."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.config import supervision

pytestmark = pytest.mark.faults

# A child that waits for a second rank, which never comes, as a rank does while it connects.
CONNECTING = """
import sys
from bench.config.supervision import end_with
end_with([int(sys.argv[1])])
import torch.distributed as dist
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=0, world_size=2)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def parent() -> Iterator["subprocess.Popen[str]"]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PARENT, CONNECTING, port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_rank_that_connects_ends_with_its_parent(parent: "subprocess.Popen[str]"):
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(random.Random(0).uniform(0, 3))  # noqa: S311 - no secret
    parent.send_signal(signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        child.wait(timeout=10 * supervision.WATCH_S)
    assert not child.is_running()


def test_this_process_does_not_watch_itself():
    supervision.end_with([os.getpid()])  # would end the tests otherwise


def test_the_folder_of_a_killed_export_is_removed_by_the_next_one(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from bench.sweep.export import _in_one_step\n"
        "with _in_one_step(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_text('half'); os.kill(os.getpid(), int(sys.argv[2]))"
    )
    for number in (signal.SIGKILL, 0):
        subprocess.run([sys.executable, "-c", code, tmp_path / "export", str(int(number))], check=False)
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["export"]
