"""The audit of a study's tasks, as the report shows it: a row per task, a column per check."""

from bench.analysis.table import Tables
from bench.analysis.text import Entry, Link, View
from bench.records import AuditCheck, AuditRecord

_SIGN = {"passed": "passed", "failed": "FAILED", "not applicable": "n/a"}


def auditing(tables: Tables, audit: AuditRecord | None) -> View | None:
    """What the audit found of the tasks that this study was measured by; None where none was audited."""
    if audit is None:
        return None
    measured = {task for results in tables.results.values() for task in results}
    by_task: dict[str, dict[str, AuditCheck]] = {}
    for check in audit.checks:
        if check.task in measured:
            by_task.setdefault(check.task, {})[check.check] = check
    if not by_task:
        return None
    kinds = list(dict.fromkeys(check.check for check in audit.checks))
    rows: list[list[Entry]] = [
        [task, *(_entry(checks.get(kind)) for kind in kinds)] for task, checks in sorted(by_task.items())
    ]
    marks = [
        "failure" if any(check.verdict == "failed" for check in checks.values()) else ""
        for _, checks in sorted(by_task.items())
    ]
    note = (
        "Models that know nothing (constant, noise, a probe of permuted labels) must score chance, one that "
        "knows every answer the ceiling, and neither the size of a batch nor padding may change a score. "
        f"Audited {audit.started_at[:10]}, on the study's first run's data. {_unaudited(tables, audit)}"
    )
    align = "l" * (1 + len(kinds))
    return View("audit", "Audit of the tasks", note, ["task", *kinds], align, rows, marks=marks)


def failures(audit: AuditRecord | None) -> list[str]:
    """A warning for every check that failed."""
    if audit is None:
        return []
    failed = [check for check in audit.checks if check.verdict == "failed"]
    return [f"The audit of task {c.task} failed ({c.check}): {c.detail}." for c in failed]


def _entry(check: AuditCheck | None) -> Entry:
    return "–" if check is None else [Link(_SIGN[check.verdict], "", check.detail)]


def _unaudited(tables: Tables, audit: AuditRecord) -> str:
    """The tasks that were measured otherwise than audited, or were not audited."""
    configs = {task: r.config for results in tables.results.values() for task, r in results.items()}
    other = sorted(task for task, config in configs.items() if audit.tasks.get(task) != config)
    return f"Not audited in these settings: {', '.join(other)}." if other else ""
