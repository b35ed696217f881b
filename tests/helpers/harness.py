"""`bench` as a user runs it: in a folder of its own, on a corpus of words, with runs of seconds."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from deadly import bench_in_fork

from bench.records import RunRecord, Score, TaskResult, read_evaluations, read_record, results_of

BENCH = [sys.executable, "-m", "bench.cli"]
HERE = ("launcher.workers=0", "launcher.threads_per_worker=1")  # on one thread, as workers of a study are
MARK = "BENCH_E2E"  # an environment variable that all descendants inherit


def write_corpus(folder: Path) -> Path:
    """Forty files of made-up words."""
    rng = random.Random(0)  # noqa: S311 - made-up words
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 7))) for _ in range(300)]
    folder.mkdir()
    for i in range(40):
        paragraphs = [" ".join(rng.choices(words, k=40)) for _ in range(6)]
        (folder / f"{i}.txt").write_text("\n\n".join(paragraphs))
    return folder


def tiny(corpus: Path, data: Path) -> list[str]:
    """Settings under which a run takes a second."""
    return [
        *("corpus/text=text_files", f"corpus.text.path={corpus}", f"paths.data={data}"),
        *("corpus.pairs.skin_tones=false", "tokenizer.vocab_size=300", "model=0.2m", "sequence_length=32"),
        *("budget.tokens=8000", "budget.unique_bytes=20000", "budget.unique_pairs=64"),
        *("optim.tokens_per_step=1024", "task=[retrieval_fitted,retrieval_zero_shot,bits_per_byte_exact]"),
        *("task.retrieval_fitted.steps=2", "task.bits_per_byte_exact.windows=8"),
        "trainer.log_every_n_steps=1",
    ]


class Place:
    """A folder with its own experiments, and all processes that were started from it."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder, self.settings = folder, settings
        self.mark = uuid.uuid4().hex
        folder.mkdir(exist_ok=True)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command in a session of its own, as a terminal would have it."""
        return self.start_process(*BENCH, *words)

    def start_process(self, *words: str) -> subprocess.Popen[str]:
        """As `start`, of any program."""
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=os.environ | {MARK: self.mark, "COLUMNS": "400"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def bench(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        process = self.start(*words)
        out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def bench_here(self, *words: str) -> subprocess.CompletedProcess[str]:
        """As `bench`, in a fork that has imported all: for commands that start no process, or few."""
        code = bench_in_fork(self.folder, words)
        said = (self.folder / "said.txt").read_text()
        return subprocess.CompletedProcess(words, -1 if code is None else code, said, said)

    def sweep(self, *words: str) -> list[str]:
        return ["train", "-m", *self.settings, *words]

    def folders(self, study: str = "adhoc") -> dict[str, Path]:
        """The runs' folders by strategy."""
        found = {}
        for path in (self.folder / "experiments" / study / "runs").glob("*/config.json"):
            found[json.loads(path.read_text())["strategy"]] = path.parent
        return found

    def records(self, study: str = "adhoc") -> dict[str, RunRecord]:
        """The records by strategy."""
        paths = (self.folder / "experiments" / study / "records").glob("*.json")
        return {record.strategy: record for record in map(read_record, paths)}

    def results(self, study: str = "adhoc") -> dict[str, dict[str, TaskResult]]:
        """What tasks found, by strategy and task."""
        evaluations, damaged = read_evaluations(self.folder / "experiments" / study / "evaluations")
        assert not damaged
        records = self.records(study)
        return {name: results_of(evaluations.get(record.run_id, [])) for name, record in records.items()}

    def state(self, strategy: str) -> dict[str, Any]:
        """The run's status file; empty if there is none."""
        path = self.folders().get(strategy, Path()) / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def processes(self) -> list[psutil.Process]:
        """All that descend from commands of this place and still live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def checkpointed(self, *strategies: str) -> bool:
        """Has every run a whole checkpoint?"""
        return all(list((self.folders().get(s, Path()) / "checkpoints").glob("*.ckpt")) for s in strategies)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait, but not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def weights(place: Place, strategy: str) -> bytes:
    return (place.folders()[strategy] / "weights.safetensors").read_bytes()


def numbers(record: RunRecord) -> tuple[object, ...]:
    """All of a record that does not tell the time."""
    spent = vars(record.spent) | {"pretrain_s": 0, "energy": None, "peak_memory_bytes": 0}
    return record.run_id, record.status, record.curve, spent


def scores(place: Place, strategy: str) -> list[Score]:
    return [score for result in place.results()[strategy].values() for score in result.scores]


def assert_same_bits(place: Place, undisturbed: Place, *strategies: str) -> None:
    for strategy in strategies:
        assert weights(place, strategy) == weights(undisturbed, strategy)
        assert numbers(place.records()[strategy]) == numbers(undisturbed.records()[strategy])
        assert scores(place, strategy) == scores(undisturbed, strategy) != []


def steps_logged(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def ctrl_c(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)  # as a terminal does: the launcher and its workers
