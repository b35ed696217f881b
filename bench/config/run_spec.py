"""What a run is before it is done: its axes, its config and its identity. No torch.

A run's id is the hash of its science: what could change its weights. Where it runs, where its files lie, how
it is logged and which tasks it is measured by are left out.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config import schema
from bench.errors import ConfigError, DataError
from bench.evaluations import EvaluationRecord, TaskResult, evaluation_id, read_evaluations, results_of
from bench.reading import parse, typed
from bench.records import PRETRAINING_ONLY, RunRecord, Status, read_record

STATUS_FILE = "status.json"  # in a run's folder: what it last said of itself
_ABSENT_IF_UNUSED = ("retries_on_divergence", "warmup_tokens")
NOT_SCIENCE = ("study", "task", "trainer", "energy", "logger", "launcher", "paths")


@dataclass(frozen=True)
class RunSpec:
    """One run to do: its axes, as named in tables, and its whole config as plain containers."""

    run_id: str
    study: str
    strategy: str
    model: str
    budget: str | None
    variant: str
    seed: int
    corpus: dict[str, str]
    config: dict[str, Any]
    command: str  # that asked for it

    @property
    def label(self) -> str:
        """How the run is called on screen."""
        parts = [self.strategy, self.model, self.budget, self.variant, f"seed={self.seed}"]
        return " ".join(part for part in parts if part)

    @property
    def science(self) -> dict[str, Any]:
        """The part of the config that may change the weights."""
        return science_of(self.config)

    @property
    def folder(self) -> Path:
        """Where the run works; may be deleted once its record is written."""
        return self._experiment / "runs" / self.run_id

    @property
    def records(self) -> Path:
        """Where the records of its study lie."""
        return self._experiment / "records"

    @property
    def record_path(self) -> Path:
        """The run's own record, there or not."""
        return self.records / f"{self.run_id}.json"

    @property
    def weights(self) -> Path:
        """Its last weights, there or not."""
        return self.folder / "weights.safetensors"

    @property
    def evaluations(self) -> Path:
        """Where the evaluations of its study lie."""
        return self._experiment / "evaluations"

    def pending_tasks(self) -> dict[str, Any]:
        """The tasks, with their settings, that the run was not yet measured by in this way."""
        done = {name: r.config for name, r in self.results().items() if r.status != "failed"}
        return {name: node for name, node in self.config["task"].items() if done.get(name) != node}

    def results(self) -> dict[str, TaskResult]:
        """What tasks have found of the run so far."""
        return read_results(self.evaluations, self.run_id)

    def recorded(self) -> RunRecord | None:
        """The run's record; None where there is none or it is damaged: the run is then done again."""
        try:
            return read_record(self.record_path) if self.record_path.exists() else None
        except DataError:
            return None

    def why_lost(self) -> str:
        """Why the run, or a task of it, has no numbers; "" where nothing has failed."""
        record = self.recorded()
        failed = [f"{r.task}: {r.reason}" for r in self.results().values() if r.status == "failed"]
        return (record.reason if record else None) or "; ".join(failed)

    def can_be_evaluated(self) -> bool:
        """Is a model there to evaluate, without pretraining it (again)?"""
        return self.weights.exists() or self.config["strategy"]["modality"] == "none"

    def is_done(self) -> bool:
        """Is nothing left to do? A run that diverged would diverge again."""
        record = self.recorded()
        if record is None or record.status == "failed":
            return False
        return record.status == "diverged" or not self.pending_tasks()

    def has_failed(self) -> bool:
        """Is all that is left to do recorded as failed?"""
        record, results = self.recorded(), self.results()
        if record is None or record.status != "finished":
            return record is not None and record.status == "failed"
        pending = self.pending_tasks()
        return bool(pending) and all(n in results and results[n].status == "failed" for n in pending)

    def version(self) -> str:
        """Another one whenever the run's record or an evaluation of it is written, by whichever process."""
        if not self.record_path.exists():  # nor is there an evaluation; looking for one takes time
            return ""
        paths = [self.record_path, *sorted(self.evaluations.glob(f"{self.run_id}.*.json"))]
        found = [(path.name, path.stat()) for path in paths]
        return json.dumps([(name, stat.st_ino, stat.st_mtime_ns) for name, stat in found])

    @property
    def _experiment(self) -> Path:
        return Path(self.config["paths"]["experiments"]) / self.study

    def typed(self) -> schema.Config:
        """The config as checked dataclasses.

        Returns:
            The caller's own copy, to change as it likes.

        Raises:
            ConfigError: it is of another version, or damaged.
        """
        return deepcopy(self._typed)

    @cached_property
    def _typed(self) -> schema.Config:
        """Checked once: that takes some 30 ms, and a run asks twenty times."""
        try:
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.Config), self.config))
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise ConfigError(f"run {self.run_id}: its config does not fit here ({problem})") from error
        assert isinstance(config, schema.Config)
        return config

    def record(self, status: Status, reason: str | None = None) -> RunRecord:
        """A record of this run that holds its axes and no numbers yet."""
        axes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "config"}
        return RunRecord(**axes, status=status, reason=reason, config=self.science, started_at=now())

    def evaluation(self, results: Sequence[TaskResult], started_at: str) -> EvaluationRecord:
        """A record of what these tasks found of this run; dated after all that there are, whatever the clock
        says: the latest word on a task counts.
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
        """A record that no pending task could be done, and why."""
        pending = self.pending_tasks().items()
        return self.evaluation([TaskResult(name, "failed", dict(n), reason) for name, n in pending], now())

    def to_json(self) -> str:
        """The run as text, for a worker process."""
        return json.dumps(asdict(self))


def read_spec(folder: Path) -> RunSpec:
    """The run that works in a folder.

    Raises:
        DataError: its file is absent or damaged; names it.
    """
    path = folder / "config.json"
    try:
        spec: RunSpec = typed(RunSpec, parse(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not the config of a run ({error})") from error
    return spec


def read_results(evaluations: Path, run_id: str) -> dict[str, TaskResult]:
    """What tasks have found of a run so far; evaluations that are not readable do not count."""
    found, _ = read_evaluations(evaluations, run_id)
    return results_of(found.get(run_id, []))


def now() -> str:
    """The time, as records state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _just_after(time: str) -> str:
    return (datetime.fromisoformat(time) + timedelta(seconds=1)).isoformat(timespec="seconds")


def science_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that may change weights; without pretraining, budget and optimizer cannot."""
    trainer = config["trainer"]
    science = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    science["precision"] = trainer["precision"]
    # When losses are measured, and on how much, stands in the record's curve.
    science["validation"] = {key: trainer[key] for key in ("n_validations", "validation_batches")}
    # How a server is reached and paid changes no answer of it.
    science["strategy"] = {key: value for key, value in config["strategy"].items() if key != "access"}
    # What is not used changes nothing; ids are those of before there was such a setting.
    optim = config["optim"].items()
    science["optim"] = {key: value for key, value in optim if value or key not in _ABSENT_IF_UNUSED}
    is_pretrained = config["strategy"]["modality"] != "none"
    return {key: value for key, value in science.items() if is_pretrained or key not in PRETRAINING_ONLY}
