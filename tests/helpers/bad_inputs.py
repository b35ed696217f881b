"""What bad input must come to, and how often: one line that says what to change, soon, and no run."""

import io
import os
import pickle
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

import bench.sweep.launchers.local
from bench.cli import main
from bench.errors import BenchError

PHASE = "preparing the data of 1 run\n"  # is printed where no terminal shows progress
SOON_S = 5.0  # of computing, however busy the machine is
PATIENCE_S = 60.0  # of waiting
LEAST = {"settings": 200, "text": 20, "images": 20, "tokenizers": 20, "records": 120}  # distinct bad inputs
MARK = "touched"  # a file that a trap leaves where it was sprung


def many(n: int) -> Any:
    """Examples of Hypothesis: the same at every run, none kept on disk."""
    return settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,  # `soon` is one
        phases=[Phase.generate],  # a shorter example would take minutes to find, and is short already
        suppress_health_check=list(HealthCheck),
    )


def assert_one_line(text: str) -> None:
    """Something that a terminal shows as one line and does not obey."""
    assert text.strip()
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text), repr(text)
    assert "Traceback" not in text


@contextmanager
def soon() -> Iterator[None]:
    """What happens inside neither computes nor waits for long."""
    computed, waited = time.process_time(), time.monotonic()
    yield
    assert time.process_time() - computed < SOON_S
    assert time.monotonic() - waited < PATIENCE_S


def refusal(function: Callable[[], object]) -> str:
    """The one line of the error that a function must raise, and raise soon."""
    with soon(), pytest.raises(BenchError) as caught:
        function()
    return str(caught.value)


class Bench:
    """The command line in this process; runs are prepared as far as `prepare` goes, and never started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.started: list[str] = []
        for name in ("_run_here", "_run_in_pool"):
            monkeypatch.setattr(bench.sweep.launchers.local, name, self._start)

    def _start(self, specs: Any, *_: Any) -> dict[str, str]:
        self.started += [spec.label for spec in specs]
        return {spec.run_id: "failed" for spec in specs}

    def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command, which must come soon."""
        self.capsys.readouterr()
        with soon():
            code = main(words)
        return code, *self.capsys.readouterr()

    def refused(self, *words: str) -> str:
        """The line on stderr by which a command is refused."""
        code, out, err = self.run(*words)
        assert (code, out, self.started) == (2, "", []), (words, code, out, err, self.started)
        err = err.removeprefix(PHASE)  # what only the data show is found while they are prepared
        assert err.startswith("bench: ")
        assert err.endswith("\n")
        assert_one_line(err[:-1])
        return err


class Trap:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


def traps() -> dict[str, bytes]:
    """Files that run code where they are unpickled."""
    return {"pickle": pickle.dumps(Trap()), "object array": _saved(np.array([Trap()], dtype=object))}


def _saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()
