"""What evaluation took and what it left out, task by task; and the texts that tasks show to readers."""

from collections.abc import Iterable, Sequence
from statistics import mean

from bench.analysis.table import Arm, Tables
from bench.analysis.text import EMPTY, Entry, View, amount
from bench.records import Energy, RunRecord, TaskResult, finished

_LINE_END = " ⏎ "


def evaluation(tables: Tables) -> View | None:
    """A row per task; None where no task was done."""
    by_task = _by_task(tables)
    rows = [_row(task, by_task[task]) for task in sorted(by_task)]
    if not rows:
        return None
    note = (
        "Results of finished runs; a task is inapplicable where a strategy has no such input or output. "
        "Seconds, FLOPs of forward and backward passes, and joules are means over the results that have "
        "them, apart from pretraining. Measured and estimated joules do not compare. Left out: items that "
        "could not count, by reason, over all runs and as a range over runs."
    )
    header = ["task", "finished", "inapplicable", "failed", "seconds", "FLOPs", "joules, measured"]
    header += ["joules, estimated", "energy by", "items left out"]
    return View("evaluation", "Evaluation: cost and coverage", note, header, "lrrrrrrrll", rows)


def _by_task(tables: Tables) -> dict[str, list[TaskResult]]:
    found: dict[str, list[TaskResult]] = {}
    for record in finished(tables.records):
        for task, result in tables.results.get(record.run_id, {}).items():
            found.setdefault(task, []).append(result)
    return found


def _row(task: str, results: Sequence[TaskResult]) -> list[Entry]:
    statuses = [result.status for result in results]
    done = [result for result in results if result.status == "finished"]
    energies = [result.cost.energy for result in done if result.cost.energy is not None]
    drawn = [[e.joules for e in energies if e.source == source] for source in ("measured", "estimated")]
    return [
        task,
        *(str(statuses.count(status)) for status in ("finished", "inapplicable", "failed")),
        _mean(result.cost.seconds for result in done),
        _mean(result.cost.flops for result in done),
        *(_mean(joules) for joules in drawn),
        _methods(energies),
        left_out(done),
    ]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return amount(mean(known)) if known else EMPTY


def _methods(energies: Iterable[Energy]) -> str:
    return "; ".join(sorted({f"{e.method} ({e.source})" for e in energies})) or EMPTY


def left_out(results: Sequence[TaskResult]) -> str:
    """`label unseen in training: 12 (0 to 5 a run)`, reason by reason."""
    parts = []
    for reason in sorted({reason for result in results for reason in result.counts}):
        counts = [result.counts.get(reason, 0) for result in results]
        low, high = min(counts), max(counts)
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        parts.append(f"{reason}: {sum(counts):,} ({span} a run)")
    return "; ".join(parts) or EMPTY


def samples(tables: Tables) -> list[View]:
    """One table per task that shows texts: each strategy's in its largest cell, of the lowest seed."""
    tasks = sorted(
        {task for own in tables.results.values() for task, result in own.items() if result.samples}
    )
    return [view for task in tasks if (view := _samples(tables, task)) is not None]


def _samples(tables: Tables, task: str) -> View | None:
    shown = [(arm, run) for arm in tables.arms if (run := shown_run(tables, arm, task)) is not None]
    texts = {arm: tables.results[run.run_id][task].samples for arm, run in shown}
    columns = list(dict.fromkeys(name for rows in texts.values() for row in rows for name in row))
    rows: list[list[Entry]] = [
        [arm.label, *(visible(row.get(name, EMPTY)) for name in columns)]
        for arm, own in texts.items()
        for row in (own if len(columns) > 1 else _joined(own))
    ]
    if not rows:
        return None
    places = sorted({f"{run.model}, {run.budget or 'no data'}, seed {run.seed}" for _, run in shown})
    note = (
        f"Of one run of each strategy, its largest cell and lowest seed ({'; '.join(places)}). ⏎: line end."
    )
    header = ["strategy", *columns]
    return View(f"samples-{task}", f"Samples: {task}", note, header, "l" * len(header), rows)


def shown_run(tables: Tables, arm: Arm, task: str) -> RunRecord | None:
    """The run that stands for an arm where only one can be shown: largest cell, lowest seed, with samples."""
    for cell in reversed([cell for cell in tables.cells if cell.arm == arm]):
        for record in tables.runs_of[cell]:
            result = tables.results.get(record.run_id, {}).get(task)
            if record.status == "finished" and result is not None and result.samples:
                return record
    return None


def visible(text: str) -> str:
    """On one line, with line ends as signs; what cannot be shown is a replacement mark."""
    flat = _LINE_END.join(text.strip().splitlines())
    return "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"
        for char in flat
    )


def _joined(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of a single column as one."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: " · ".join(row[name].strip() for row in rows if name in row) for name in names}]
