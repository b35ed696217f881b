"""Run records: with those of evaluations, all that training hands to analysis. Light to import.

A run's record says how it was pretrained. It is one JSON file, written once, atomically, after everything
else has succeeded or failed. A failure is a status with a reason, never a number.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from bench.errors import DataError
from bench.reading import parse, typed

R = TypeVar("R")
SCHEMA_VERSION = 2
STUDY_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # it names folders
JOULES_PER_KWH = 3.6e6
PRETRAINING_ONLY = ("budget", "optim", "validation")  # parts of a config that scratch does not have
Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Score:
    """One number of one task.

    `chance` is what a model that knows nothing scores, None where that is not defined; `n_labels` the number
    of labelled items that were fitted to, where a task is measured at several. `higher_is_better` is None for
    what only describes: it is shown and never judged.
    """

    task: str
    metric: str
    value: float
    chance: float | None
    n_items: int
    higher_is_better: bool | None = True
    n_labels: int | None = None


@dataclass(frozen=True)
class Energy:
    """What was drawn from the wall, by whom it is said, and how: measured and estimated are never compared.

    `co2_kg` follows from the grid's mean intensity in `country` (ISO 3166-1 alpha-3).
    """

    joules: float
    source: Literal["measured", "estimated"]
    method: str
    co2_kg: float
    country: str

    @property
    def kwh(self) -> float:
        """The unit that it is billed in."""
        return self.joules / JOULES_PER_KWH


@dataclass(frozen=True)
class Spent:
    """What a run used. Tokens count the positions that the model processed, padding included.

    `supervised_tokens` counts what was predicted: all positions but the first for a CLM, the mask rate of
    them for an MLM, one partner per image and one per caption for CLIP. `epochs` is passes over the unique
    data. `flops` counts matrix products of forward and backward of pretraining only.
    """

    steps: int = 0
    forward_tokens: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    epochs: float = 0.0
    unique_bytes: int = 0
    unique_tokens: int = 0
    unique_pairs: int = 0
    pretrain_s: float = 0.0
    peak_memory_bytes: int = 0
    energy: Energy | None = None


@dataclass(frozen=True)
class CurvePoint:
    """One point of the pretraining curve; losses in nats per supervised target, None where not measured."""

    step: int
    forward_tokens: int
    flops: float
    train_loss_nats: float | None = None
    validation_loss_nats: float | None = None


@dataclass(frozen=True)
class Divergence:
    """An attempt that left the finite numbers: its last finite step and loss there, and its peak rate."""

    step: int
    loss_nats: float | None  # None: it was never finite
    lr_peak: float


@dataclass(frozen=True)
class RunRecord:
    """One run: its axes, how it trained, what that cost. One cell x seed -> one record.

    `budget` is None for a strategy that is not pretrained (`scratch`): it stands beside every budget.
    `variant` names any other swept science setting ("optim.lr_peak=0.001"), "" otherwise.
    """

    run_id: str
    study: str
    status: Status
    strategy: str
    model: str
    budget: str | None
    variant: str
    seed: int
    corpus: dict[str, str]  # {"text": "docstrings", "pairs": "openmoji"}
    config: dict[str, Any]  # the science part of the resolved config
    reason: str | None = None  # why it did not finish, in one line
    parameters: int = 0
    spent: Spent = field(default_factory=Spent)
    curve: tuple[CurvePoint, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)  # content hashes and provenance
    environment: dict[str, str] = field(default_factory=dict)  # versions, git commit, cpu
    started_at: str = ""
    command: str = ""  # that asked for the run
    divergences: tuple[Divergence, ...] = ()  # attempts before the one that the rest describes
    schema_version: int = SCHEMA_VERSION

    @property
    def retried(self) -> str:
        """How often and when it diverged before; "" where it did not."""
        tries = [f"at optim.lr_peak={d.lr_peak:g} after step {d.step}" for d in self.divergences]
        again = f", trained anew at {self.divergences[-1].lr_peak / 2:g}" if tries else ""
        return f"diverged {', '.join(tries)}{again}" if tries else ""


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `<folder>/<run_id>.json` so that a reader sees it whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_id}.json"
    write_atomically(path, as_json(record))
    return path


def write_atomically(path: Path, text: str, *, is_durable: bool = True) -> None:
    """Replace `path` by `text` in one step that survives a crash at any moment.

    Args:
        path: of the file.
        text: all of it.
        is_durable: on disk when this returns, which may take long over a network; else in its time.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with replacing(path, partial, is_durable=is_durable), partial.open("w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def replacing(path: Path, partial: Path, *, is_durable: bool = True) -> Iterator[None]:
    """Inside, `partial` is written; then it is `path`, on disk before it has that name if it is durable.

    Where writing fails nothing is left: a full disk needs the room.
    """
    try:
        yield
        if is_durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_record(path: Path) -> RunRecord:
    """Read one record.

    Raises:
        DataError: truncated, foreign or of another schema version; names the file.
    """
    with readable(path, "a run record") as raw:
        record = typed(RunRecord, raw)
        if not STUDY_NAME.fullmatch(record.study):
            raise ValueError(f"study {record.study!r} names no folder")
        return named(path, record.run_id, record)


def read_records(folder: Path) -> tuple[list[RunRecord], list[DataError]]:
    """All readable records of a study, sorted by run id, and one error for each that is not readable."""
    records: list[RunRecord] = []
    damaged: list[DataError] = []
    for path in sorted(folder.glob("*.json"), key=lambda path: path.name):
        try:
            records.append(read_record(path))
        except DataError as error:
            damaged.append(error)
    return records, damaged


def named(path: Path, stem: str, record: R) -> R:
    """The record; a copy under another name would count twice, and its name lead to other files."""
    if path.name != f"{stem}.json":
        raise DataError(
            f"{path}: holds run {stem}, whose record is {stem}.json; delete the copy, or rename it if that "
            "file is gone"
        )
    return record


@contextmanager
def readable(path: Path, kind: str, fix: str = "run the study again") -> Iterator[dict[str, Any]]:
    """The file's JSON of this schema version; whatever is wrong with it or its use becomes one line."""
    try:
        raw = parse(path.read_bytes())
        if raw["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{path}: record schema {raw['schema_version']!r}, this version reads {SCHEMA_VERSION}; "
                "run it again or use the version that wrote it"
            )
        yield raw
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not {kind} ({error}); delete it and {fix}") from error


def as_json(record: Any) -> str:
    """A record, a dataclass, as the text of its file."""
    return json.dumps(asdict(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def finished(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Only the runs whose numbers count."""
    return [record for record in records if record.status == "finished"]


def studies(experiments_dir: Path) -> list[str]:
    """Names of the studies that have records or runs."""
    folders = [path.parent for name in ("records", "runs") for path in experiments_dir.glob(f"*/{name}")]
    return sorted({folder.name for folder in folders})
