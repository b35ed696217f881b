"""Evaluation of a run by its tasks, one after the other: pretrained model -> evaluation record.

Nothing here depends on the strategy. A failed task is a result with a reason, and the other tasks continue.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.config.build import build
from bench.config.run_spec import RunSpec, now
from bench.data.prepare import Prepared
from bench.errors import InapplicableError, InterruptedRunError, in_one_line
from bench.objectives.base import Objective
from bench.records import (
    EvaluationCost,
    EvaluationRecord,
    Score,
    TaskResult,
    items_path,
    replacing,
    without_targets,
    write_evaluation,
)
from bench.tasks.base import Outcome, Setting, Task
from bench.tasks.probe import FeatureCache
from bench.training import process
from bench.training.energy import EnergyMeter
from bench.training.metric_file import StatusFile
from bench.training.stopping import Stop

Items = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """Evaluates the pending tasks of a run, reports its status and stops when asked."""

    spec: RunSpec
    status: StatusFile
    stop: Stop
    energy: EnergyMeter

    def do(self, objective: Objective, data: Prepared) -> list[TaskResult]:
        """Evaluate every pending task and write one record, even if the run is asked to stop in between."""
        tasks, cache = self.spec.pending_tasks(), FeatureCache()
        started_at = now()
        results: list[TaskResult] = []
        items: Items = {}
        try:
            for i, (name, node) in enumerate(tasks.items()):
                self.stop.check()
                self.status.write("running", f"evaluate {name}", i, len(tasks))
                setting = setting_of(self.spec, data, self.stop.check, cache)
                result, found = self._measure(name, node, objective, setting)
                results.append(result)
                items |= found
        finally:
            if results:
                record = self.spec.evaluation(results, started_at)
                self._write(replace(record, data=objective.provenance()), items)
        return results

    def give_up(self, reason: str) -> list[TaskResult]:
        """Record that no pending task could be evaluated, and the reason."""
        record = self.spec.failed_evaluation(reason)
        self._write(record, {})
        return list(record.results)

    def _measure(
        self, name: str, node: Mapping[str, Any], objective: Objective, setting: Setting
    ) -> tuple[TaskResult, Items]:
        blank = TaskResult(task=name, status="finished", config=without_targets(dict(node)))
        meter, started = setting.meter, time.perf_counter()
        outcome = Outcome([])
        with self.energy.measured() as energy:
            try:
                task = build(node, Task, f"task.{name}")  # type: ignore[type-abstract]
                task.check(f"task.{name}")
                with meter.reads(objective.backbone, objective.shapes.model):
                    outcome = _outcome(task, objective, setting)
                done = self._scored(blank, outcome)
            except InterruptedRunError:
                raise
            except InapplicableError as error:
                done = replace(blank, status="inapplicable", reason=str(error))
            except Exception as error:
                (self.spec.folder / "error.log").write_text(traceback.format_exc())
                reason = in_one_line(error).replace("task.*", f"task.{name}")
                done = replace(blank, status="failed", reason=reason)
        cost = EvaluationCost(time.perf_counter() - started, meter.flops, energy())
        items = {f"{name}/{key}": values for key, values in outcome.items.items()}
        return replace(done, cost=cost, fits=tuple(setting.fits)), items if done.status == "finished" else {}

    def _scored(self, blank: TaskResult, outcome: Outcome) -> TaskResult:
        scores = tuple(Score(task=blank.task, **vars(measured)) for measured in outcome.scores)
        broken = [s.metric for s in scores if not np.isfinite([s.value, s.chance or 0.0]).all()]
        if broken:
            raise FloatingPointError(f"{broken[0]} is not a finite number")
        return replace(blank, scores=scores, counts=dict(outcome.counts), samples=list(outcome.samples))

    def _write(self, record: EvaluationRecord, items: Items) -> None:
        """Write the arrays first, since a record counts only together with them."""
        record = replace(record, environment=process.environment(self.spec.typed().trainer))
        folder = self.spec.evaluations
        folder.mkdir(parents=True, exist_ok=True)
        if items:
            write_items(items, items_path(folder, record))
        write_evaluation(record, folder)


def _outcome(task: Task, objective: Objective, setting: Setting) -> Outcome:
    if not objective.is_trivial:
        return task.evaluate(objective, setting)
    found = task.baseline(setting)
    if found is None:
        raise InapplicableError("the task has no trivial baseline besides chance")
    return found


def setting_of(spec: RunSpec, data: Prepared, keep_going: Callable[[], None], cache: FeatureCache) -> Setting:
    """Return everything that a task of a run may use besides the model."""
    config = spec.typed()
    return Setting(
        tokenizer=data.text.tokenizer(),
        sequence_length=config.sequence_length,
        text=data.text,
        pairs=data.pairs,
        data_dir=Path(config.paths.data),
        seed=spec.seed,
        keep_going=keep_going,
        cache=cache,
    )


def write_items(items: Items, path: Path) -> None:
    """Write compressed arrays atomically, with floats in single precision."""
    partial = path.with_name(f".{path.name}.partial")
    small = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in items.items()}
    with replacing(path, partial), partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **small)  # type: ignore[arg-type]
