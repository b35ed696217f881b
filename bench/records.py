"""The run record: the only thing that training hands to analysis. Standard library and pandas only.

A record is one JSON file, written once, atomically, after everything else of the run has succeeded or
failed. A failure is a status with a reason, never a number.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.errors import DataError

SCHEMA_VERSION = 1
STUDY_NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # it names folders
PRETRAINING_ONLY = ("budget", "optim", "validation")  # parts of a config that scratch does not have
Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class Score:
    """One number of one task.

    `chance` is what a model that knows nothing scores, None where that is not defined; `n_labels` the number
    of labelled items that were fitted to, where a task is measured at several.
    """

    task: str
    metric: str
    value: float
    chance: float | None
    n_items: int
    higher_is_better: bool = True
    n_labels: int | None = None


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
    evaluate_s: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class CurvePoint:
    """One point of the pretraining curve; losses in nats per supervised target, None where not measured."""

    step: int
    forward_tokens: int
    flops: float
    train_loss_nats: float | None = None
    validation_loss_nats: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """One run: its axes, what it spent, what it scored. See DESIGN: one cell x seed -> one record.

    `budget` is None for a strategy that is not pretrained (`scratch`): it stands beside every budget.
    `variant` names any other swept science setting ("optim.lr_peak=0.001"), "" otherwise.
    `inapplicable` maps a task to the reason why this strategy cannot do it at all.
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
    scores: tuple[Score, ...] = ()
    inapplicable: dict[str, str] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)  # content hashes and provenance
    environment: dict[str, str] = field(default_factory=dict)  # versions, git commit, cpu
    started_at: str = ""
    command: str = ""  # that asked for the run
    schema_version: int = SCHEMA_VERSION


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `<folder>/<run_id>.json` so that a reader sees it whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_id}.json"
    write_atomically(path, json.dumps(asdict(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step that survives a crash at any moment."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_record(path: Path) -> RunRecord:
    """Read one record.

    Raises:
        DataError: truncated, foreign or of another schema version; names the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{path}: record schema {raw['schema_version']!r}, this version reads {SCHEMA_VERSION}; "
                "run it again or use the version that wrote it"
            )
        raw["spent"] = Spent(**raw["spent"])
        raw["scores"] = tuple(Score(**score) for score in raw["scores"])
        raw["curve"] = tuple(CurvePoint(**point) for point in raw["curve"])
        return RunRecord(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a run record ({error}); delete it and run the study again") from error


def read_records(folder: Path) -> tuple[list[RunRecord], list[DataError]]:
    """All readable records of a study, sorted by run id, and one error for each that is not readable."""
    records: list[RunRecord] = []
    damaged: list[DataError] = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except DataError as error:
            damaged.append(error)
    return records, damaged


def finished(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Only the runs whose numbers count."""
    return [record for record in records if record.status == "finished"]
