"""`bench status`: print the state of a study's runs, and the outcome of a sweep. Records -> terminal.

It imports neither torch nor matplotlib, so it answers immediately.
"""

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.config.run_spec import RunSpec
from bench.errors import ConfigError, printable
from bench.records import (
    STUDY_NAME,
    EvaluationRecord,
    RunRecord,
    failures_of,
    read_evaluations,
    read_records,
    results_of,
    studies,
)
from bench.sweep.launchers import slurm
from bench.sweep.locks import is_held

STATES = ("finished", "running", "queued", "interrupted", "diverged", "failed", "damaged")
_COLOURS = {"finished": "green", "running": "cyan", "queued": "blue", "interrupted": "yellow"}


@dataclass(frozen=True)
class RunState:
    """One run, as shown on the terminal."""

    run_id: str
    label: str
    state: str
    detail: str


def rows(study: str, experiments_dir: Path) -> list[RunState]:
    """Return every run of a study, by its records, status files and Slurm jobs.

    Raises:
        ConfigError: no such study.
    """
    folder = experiments_dir / study
    if not STUDY_NAME.fullmatch(study) or not folder.is_dir():
        known = ", ".join(studies(experiments_dir)) or "none"
        raise ConfigError(f"study={study}: no folder {folder}; studies with runs: {known}")
    records, damaged = read_records(folder / "records")
    evaluations, unreadable = read_evaluations(folder / "evaluations")
    damaged += unreadable
    done = {record.run_id: _recorded(record, evaluations.get(record.run_id, [])) for record in records}
    unfinished = {path.parent.name: _unfinished(path) for path in (folder / "runs").glob("*/status.json")}
    unfinished |= _by_jobs(folder / "runs", unfinished, done.keys())
    again = {
        name: row
        for name, row in unfinished.items()
        if name not in done or row.state in ("running", "queued")  # repeated, or evaluated by more tasks
    }
    found = [*(done | again).values(), *(RunState("", "", "damaged", str(error)) for error in damaged)]
    return sorted(found, key=lambda row: (STATES.index(row.state), row.label, row.run_id))


def table(study: str, experiments_dir: Path) -> Table:
    """Return a table with one line per run."""
    found = rows(study, experiments_dir)
    view = Table(title=escape(printable(f"{study}: {summary(found)}")), title_justify="left")
    for name in ("run", "what", "state", "detail"):
        view.add_column(name, overflow="fold")
    for row in found:
        colour = _COLOURS.get(row.state, "red")
        run_id, label, detail = (escape(printable(text)) for text in (row.run_id, row.label, row.detail))
        view.add_row(run_id, label, f"[{colour}]{row.state}[/]", detail)
    return view


def overview(experiments_dir: Path) -> Table:
    """Return a table with one line per study."""
    view = Table(title=escape(f"Studies in {experiments_dir}"), title_justify="left")
    view.add_column("study")
    view.add_column("runs")
    for study in studies(experiments_dir):
        view.add_row(escape(printable(study)), summary(rows(study, experiments_dir)))
    return view


def summary(found: Sequence[RunState]) -> str:
    """Return the number of runs in each state, such as `12 finished, 1 running`."""
    counts = Counter(row.state for row in found)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no runs"


def main(cfg: DictConfig) -> None:
    """Print the runs of `cfg.study`, or one line per study if none is given."""
    experiments_dir = Path(cfg.experiments_dir)
    named = not OmegaConf.is_missing(cfg, "study") and cfg.study is not None
    Console().print(table(str(cfg.study), experiments_dir) if named else overview(experiments_dir))


def _recorded(record: RunRecord, evaluations: Sequence[EvaluationRecord]) -> RunState:
    """Return the state of a recorded run; it is failed if a task failed, since that task is retried."""
    parts = [record.strategy, record.variant, record.model, record.budget, f"seed={record.seed}"]
    results = results_of(evaluations).values()
    failed = failures_of(evaluations)
    seconds = record.spent.pretrain_s + sum(result.cost.seconds or 0.0 for result in results)
    detail = record.reason or "; ".join(failed) or f"{seconds:.0f} s, {len(results)} tasks"
    detail = "; ".join(filter(None, [detail, record.retried]))
    state = "failed" if failed and record.status == "finished" else record.status
    return RunState(record.run_id, " ".join(part for part in parts if part), state, detail)


def _unfinished(path: Path) -> RunState:
    run_id = path.parent.name
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        state, age_s = str(status["status"]), time.time() - float(status["updated_at"])
        share = f"step {status['step']} of {status['total_steps']}"
        speed = f"{float(status['tokens_per_s']):,.0f} tokens/s"
        label, phase = str(status["label"]), str(status["phase"])
        if state == "running" and not is_held(path.parent):
            state = "interrupted"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunState(run_id, "", "damaged", f"{path}: cannot be read as a status file ({error!r})")
    if state not in STATES:
        return RunState(run_id, label, "damaged", f"{path}: unknown status {state!r}")
    return RunState(run_id, label, state, f"{phase}, {share}, {speed}, {_age(age_s)} ago")


def _by_jobs(runs: Path, known: Mapping[str, RunState], recorded: Collection[str]) -> dict[str, RunState]:
    """Return the states of runs by Slurm, for unfinished jobs and for jobs that ended without a result.

    Args:
        runs: the folder of the study's runs.
        known: states by the runs' status files, by id.
        recorded: ids of the runs that have a record.
    """
    files = runs.glob(f"*/{slurm.JOB_FILE}")
    jobs = {path.parent.name: job for path in files if (job := slurm.read_submission(path.parent))}
    states = slurm.ask_squeue(job.job_id for job in jobs.values())
    found = {}
    for run_id, job in jobs.items():
        own, state = known.get(run_id), (states or {}).get(job.job_id)
        if state is not None and not state.is_over:
            if state.is_waiting or own is None or own.state in ("running", "interrupted"):
                found[run_id] = _in_queue(run_id, job, state, own)
        elif own is None and run_id not in recorded:
            ended = f"job {job.job_id} ended without a result; logs in {job.jobs_folder}"
            unknown = f"submitted as job {job.job_id}; squeue does not answer here"
            where = ("queued", unknown) if states is None else ("interrupted", ended)
            found[run_id] = RunState(run_id, job.label, *where)
    return found


def _in_queue(run_id: str, job: slurm.Submission, state: slurm.JobState, own: RunState | None) -> RunState:
    """Return the state of a run whose job waits or runs, with the details of the run's status file."""
    where = "queued" if state.is_waiting else "running"
    why = f"job {job.job_id} {state.state.lower()}" + (f" ({state.reason})" if state.is_waiting else "")
    return RunState(run_id, job.label, where, f"{why}, {own.detail}" if own else why)


def _age(seconds: float) -> str:
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def listing(specs: Sequence[RunSpec]) -> list[str]:
    """Return one line per run of a sweep: id, label, study and state; `new` if nothing is known of it."""
    folders = {spec.study: spec.records.parent for spec in specs}
    known = {
        (study, row.run_id): row.state
        for study, folder in folders.items()
        for row in (rows(study, folder.parent) if folder.is_dir() else ())
    }
    width = max(len(spec.label) for spec in specs)
    return [
        f"{spec.run_id}  {spec.label:<{width}}  {spec.study}  {known.get((spec.study, spec.run_id), 'new')}"
        for spec in specs
    ]


def print_outcome(specs: Sequence[RunSpec], statuses: dict[str, str]) -> None:
    """Print the number of runs by status, and every run without a result with the reason."""
    counts = Counter(statuses.values())
    print(", ".join(f"{n} {name}" for name, n in sorted(counts.items())) + f" of {len(specs)} runs")
    for spec in specs:
        state = statuses.get(spec.run_id, "not started")
        if state in ("finished", "queued"):
            continue
        reason = ""
        if state in ("failed", "diverged"):
            reason = spec.why_lost()
        print(printable(f"  {state:<11} {spec.label}  {spec.folder}  {reason or ''}".rstrip()))
    if len(specs) == 1 and counts["finished"]:
        _print_scores(specs[0])
    print(f"records: {specs[0].records}   report: bench report study={specs[0].study}")


def _print_scores(spec: RunSpec) -> None:
    for result in spec.results().values():
        for score in result.scores:
            labels = "" if score.n_labels is None else f" with {score.n_labels} labels"
            chance = "" if score.chance is None else f"chance {score.chance:.3f}, "
            print(f"  {score.task}/{score.metric}{labels}: {score.value:.3f} ({chance}n={score.n_items})")
