"""What an audit of tasks has found, as a file that the report reads. Light to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.reading import typed
from bench.records import SCHEMA_VERSION, as_json, readable, write_atomically


@dataclass(frozen=True)
class AuditCheck:
    """One thing that must hold for a task's scores to count, and whether it does."""

    task: str
    check: str  # constant | noise | permuted labels | ceiling | batch size | padding
    verdict: Literal["passed", "failed", "not applicable"]
    detail: str


@dataclass(frozen=True)
class AuditRecord:
    """The last audit of a study's tasks: `audit.json` beside its records."""

    study: str
    checks: tuple[AuditCheck, ...]
    tasks: dict[str, Any]  # their settings
    environment: dict[str, str]
    started_at: str
    schema_version: int = SCHEMA_VERSION


def write_audit(record: AuditRecord, folder: Path) -> Path:
    """Write `<folder>/audit.json`; an older one gives way."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "audit.json", as_json(record))
    return folder / "audit.json"


def read_audit(folder: Path) -> AuditRecord | None:
    """The audit of a study; None where there was none.

    Raises:
        DataError: not readable.
    """
    path = folder / "audit.json"
    if not path.exists():
        return None
    with readable(path, "an audit", fix="do it again by `bench audit`") as raw:
        audit: AuditRecord = typed(AuditRecord, raw)
        return audit
