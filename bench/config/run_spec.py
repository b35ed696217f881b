"""A run before it is done: its axes, its config, and the places of its files. No torch here."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config import schema
from bench.config.identity import science_of
from bench.errors import ConfigError, DataError
from bench.records import (
    EvaluationRecord,
    RunRecord,
    Settings,
    Status,
    TaskResult,
    checked,
    evaluation_id,
    failures_of,
    holds_settings,
    read_evaluations,
    read_json,
    read_record,
    results_of,
    upgraded_config,
    without_targets,
)

STATUS_FILE = "status.json"  # in a run's folder: its progress


@checked
@dataclass(frozen=True)
class RunSpec:
    """One run to do: its axes, as named in tables, and its whole config as plain containers."""

    run_id: str  # its identity, or the id of an older record of it; see `bench.config.identity`
    study: str
    strategy: str
    model: str
    budget: str | None
    variant: str
    seed: int
    corpus: dict[str, str]
    config: dict[str, Any]
    command: str  # the command line that asked for the run

    @property
    def label(self) -> str:
        """Human-readable run name."""
        parts = [self.strategy, self.model, self.budget, self.variant, f"seed={self.seed}"]
        return " ".join(part for part in parts if part)

    @property
    def science(self) -> dict[str, Any]:
        """The part of the config that may change the weights."""
        return science_of(self.config, self.strategy, self.corpus)

    @property
    def folder(self) -> Path:
        """Working folder of the run; may be deleted once its record is written."""
        return self._experiment / "runs" / self.run_id

    @property
    def records(self) -> Path:
        """Folder of the study's run records."""
        return self._experiment / "records"

    @property
    def record_path(self) -> Path:
        """Path of the run's record, which may not exist."""
        return self.records / f"{self.run_id}.json"

    @property
    def weights(self) -> Path:
        """Path of the final weights, which may not exist."""
        return self.folder / "weights.safetensors"

    @property
    def evaluations(self) -> Path:
        """Folder of the study's evaluation records."""
        return self._experiment / "evaluations"

    def pending_tasks(self) -> dict[str, Any]:
        """Return the tasks, with their settings, that have no result in these settings."""
        done = {name: r.config for name, r in self.results().items() if r.status != "failed"}
        tasks = self.config["task"].items()
        return {
            name: node for name, node in tasks if name not in done or not holds_settings(done[name], node)
        }

    def results(self) -> dict[str, TaskResult]:
        """Return the results of the run's tasks so far."""
        return read_results(self.evaluations, self.run_id)

    def recorded(self) -> RunRecord | None:
        """Return the run's record; None if there is none or it is damaged: the run is then done again."""
        try:
            return read_record(self.record_path) if self.record_path.exists() else None
        except DataError:
            return None

    def why_lost(self) -> str:
        """Return why the run or one of its tasks has no numbers; "" if nothing has failed."""
        record = self.recorded()
        failed = failures_of(read_evaluations(self.evaluations, self.run_id)[0].get(self.run_id, []))
        return (record.reason if record else None) or "; ".join(failed)

    def can_be_evaluated(self) -> bool:
        """Return whether there is a model to evaluate without pretraining."""
        return self.weights.exists() or self.config["strategy"]["modality"] == "none"

    def is_done(self) -> bool:
        """Return whether nothing is left to do; a run that diverged would diverge again."""
        record = self.recorded()
        if record is None or record.status == "failed":
            return False
        return record.status == "diverged" or not self.pending_tasks()

    def has_failed(self) -> bool:
        """Return whether everything that is left to do is recorded as failed."""
        record, results = self.recorded(), self.results()
        if record is None or record.status != "finished":
            return record is not None and record.status == "failed"
        pending = self.pending_tasks()
        return bool(pending) and all(n in results and results[n].status == "failed" for n in pending)

    def version(self) -> str:
        """Return a text that changes whenever any process writes the run's record or an evaluation of it."""
        if not self.record_path.exists():  # without a record there is no evaluation to look for
            return ""
        paths = [self.record_path, *sorted(self.evaluations.glob(f"{self.run_id}.*.json"))]
        found = [(path.name, path.stat()) for path in paths]
        return json.dumps([(name, stat.st_ino, stat.st_mtime_ns) for name, stat in found])

    @property
    def _experiment(self) -> Path:
        return Path(self.config["paths"]["experiments"]) / self.study

    def typed(self) -> schema.Config:
        """Return the config as checked dataclasses; the caller may change its copy.

        Raises:
            ConfigError: The config is damaged or of another version.
        """
        return deepcopy(self._typed)

    @cached_property
    def _typed(self) -> schema.Config:
        """The checked config, cached because a check takes 30 ms and a run asks for it 20 times."""
        try:
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Config), self.config))
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(f"run {self.run_id}: its config does not fit here ({problem})") from error
        assert isinstance(config, schema.Config)
        return config

    def record(self, status: Status, reason: str | None = None) -> RunRecord:
        """Return a record of this run that holds its axes and no numbers yet."""
        axes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "config"}
        config = cast(Settings, self.science)
        chosen = self.config.get("sweeper") is not None
        return RunRecord(
            **axes, status=status, reason=reason, config=config, started_at=now(), exploratory=chosen
        )

    def evaluation(self, results: Sequence[TaskResult], started_at: str) -> EvaluationRecord:
        """Return a record of these results.

        It is dated after all earlier evaluations, even if the clock was set back, since the latest result of
        a task counts.
        """
        found, _ = read_evaluations(self.evaluations, self.run_id)
        earlier = [
            evaluation.started_at for evaluation in found.get(self.run_id, []) if evaluation.started_at
        ]
        return EvaluationRecord(
            evaluation_id=evaluation_id(self.run_id, {r.task: r.config for r in results}),
            run_id=self.run_id,
            study=self.study,
            results=tuple(results),
            started_at=max([started_at, *map(_just_after, earlier)]),
            command=self.command,
        )

    def failed_evaluation(self, reason: str) -> EvaluationRecord:
        """Return a record that every pending task has failed for one reason."""
        pending = self.pending_tasks().items()
        failed = [TaskResult(name, "failed", without_targets(node), reason) for name, node in pending]
        return self.evaluation(failed, now())

    def to_json(self) -> str:
        """Return the run as text, for a worker process."""
        return json.dumps(asdict(self))


def read_spec(folder: Path) -> RunSpec:
    """Return the run that a folder belongs to, with the keys of today and the classes of its time.

    Raises:
        DataError: The file is absent or damaged.
    """
    path = folder / "config.json"
    try:
        spec = read_json(RunSpec, path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the config of a run ({error})") from error
    return replace(spec, config=upgraded_config(spec.config))


def read_results(evaluations: Path, run_id: str) -> dict[str, TaskResult]:
    """Return the results of a run's tasks so far; unreadable evaluations do not count."""
    found, _ = read_evaluations(evaluations, run_id)
    return results_of(found.get(run_id, []))


def now() -> str:
    """Return the time as records state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _just_after(time: str) -> str:
    return (datetime.fromisoformat(time) + timedelta(seconds=1)).isoformat(timespec="seconds")
