"""Execute one run: prepare data, pretrain, evaluate. Run spec -> run record and evaluation record."""

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.distributed as dist

from bench.config.build import build
from bench.config.run_spec import RunSpec
from bench.config.supervision import supervisors
from bench.data.prepare import Prepared, prepare
from bench.errors import DivergedError, InterruptedRunError, in_one_line
from bench.objectives.base import Objective
from bench.records import Data, RunRecord, Spent, write_atomically, write_record
from bench.tasks.base import Task
from bench.tasks.evaluate import Evaluation
from bench.training import checkpoint, loggers, process
from bench.training.energy import EnergyMeter
from bench.training.metric_file import StatusFile, curve
from bench.training.pretrain import Job, build_objective, divergences, make_observers, pretrain_until_finite
from bench.training.step import device_of
from bench.training.stopping import Stop
from bench.training.trunk import entered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A pretrained strategy, ready for its tasks."""

    objective: Objective
    data: Prepared


def execute(spec: RunSpec, threads: int | None = None, watched: Sequence[int] | None = None) -> str:
    """Execute one run until its records are written, or stop so that it can be resumed.

    Args:
        spec: the run.
        threads: torch threads for matrix products; None leaves the choice to torch.
        watched: process ids; the run stops when one of them ends. None means this worker's launcher.

    Returns:
        The run's status: finished, diverged, failed or interrupted.
    """
    process.set_up_process(threads)
    stop = Stop(supervisors() if watched is None else watched)
    stop.listen()
    folder = spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", spec.to_json())
    status = StatusFile(folder, spec.label)
    job = Job(spec, folder, loggers.make_loggers(spec), status, stop, EnergyMeter(spec.typed().energy))
    try:
        return _pretrain_and_evaluate(job)
    except (InterruptedRunError, KeyboardInterrupt, SystemExit):  # Lightning raises SystemExit on SIGTERM
        job.status.write("interrupted", "stopped")
        loggers.close(job.loggers)
        return "interrupted"


def _pretrain_and_evaluate(job: Job) -> str:
    """Pretrain unless the run is already pretrained, then evaluate the pending tasks."""
    before = job.spec.version()
    record = known = job.spec.recorded()
    trained: Trained | None = None
    if known is None or known.status != "finished" or not _has_model(job.spec):
        record, trained = _outcome(job)
        if record is None:  # only rank 0 writes the record
            return "finished"
        is_first = known is None or known.status != "finished"  # a repeated run keeps its first record
        if is_first and (record.status == "finished" or not _is_recorded_since(job.spec, before)):
            write_record(record, job.spec.records)
    assert record is not None
    status: str = record.status
    if status == "finished":
        status = _evaluate(job, trained)
    try:
        loggers.mirror_result(job.loggers, record, job.spec.results())
    except Exception:  # an error of an external logger must not lose the result
        (job.folder / "error.log").write_text(traceback.format_exc())
    job.status.write(status, "done")
    return status


def _has_model(spec: RunSpec) -> bool:
    """Check that the run has a model to evaluate; damaged weights are trained again."""
    if spec.weights.exists() and not checkpoint.is_whole(spec.weights):
        log.warning("the weights %s are damaged and will be trained again", spec.weights)
        return False
    return spec.can_be_evaluated()


def _outcome(job: Job) -> tuple[RunRecord | None, Trained | None]:
    """Return the run's record, whatever its status, and the trained model; None on ranks other than 0."""
    versions = process.environment(job.spec.typed().trainer)
    blank = replace(job.spec.record("finished"), environment=versions)
    try:
        return _run(job, blank)
    except InterruptedRunError:
        raise
    except DivergedError as error:
        lost = replace(blank, status="diverged", reason=str(error), curve=curve(job.folder))
        return replace(lost, divergences=tuple(divergences(job.folder))), None
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        return replace(blank, status="failed", reason=in_one_line(error)), None


def _is_recorded_since(spec: RunSpec, before: str) -> bool:
    """Check whether another rank failed first: its error is the cause, ours only the lost connection."""
    return dist.is_initialized() and spec.version() != before


def _run(job: Job, blank: RunRecord) -> tuple[RunRecord | None, Trained | None]:
    process.reset_peak_memory()
    job.status.write("running", "prepare")
    config = job.spec.typed()
    for name, node in config.task.items():  # find errors in a task's config before hours of pretraining
        build(node, Task, f"task.{name}").check(f"task.{name}")  # type: ignore[type-abstract]
    make_observers(config)
    data = prepare(job.spec)
    spent, energy = Spent(), None
    if config.strategy["modality"] == "none":
        objective = _build(job.spec, data)
    else:
        with job.energy.measured() as drawn:
            objective, spent, weights = pretrain_until_finite(job, partial(_build, job.spec, data), data)
        energy = drawn()
        if not _leave_process_group():
            return None, None
        if weights is not None:  # after FSDP, the trained object holds only shards of the weights
            objective = _build(job.spec, data)
            objective.load_state_dict(weights)
    if data.checkpoint is None or objective.modality != "none":  # an unchanged checkpoint stays where it is
        checkpoint.write_weights(objective, job.spec.weights)
    record = replace(
        blank,
        parameters=sum(p.numel() for p in objective.parameters()),
        spent=replace(spent, energy=energy, peak_memory_bytes=process.peak_memory_bytes(config.trainer)),
        curve=curve(job.folder),
        data=cast(Data, data.described() | entered(job.folder)),
        divergences=tuple(divergences(job.folder)),
    )
    return record, Trained(objective, data)


def _build(spec: RunSpec, data: Prepared, lr_share: float = 1.0) -> Objective:
    sizes = {"vocab_size": data.text.vocab_size, "image_size": data.pairs.image_size}
    objective = build_objective(spec, **sizes, lr_share=lr_share)
    # Lightning would convert to double only after loading, and thereby rounding, a checkpoint's weights.
    return objective.double() if spec.typed().trainer.precision == "64-true" else objective


def _evaluate(job: Job, trained: Trained | None) -> str:
    """Evaluate the pending tasks and return the status; if the model cannot be restored, all tasks fail."""
    if not job.spec.pending_tasks():
        return "finished"
    evaluation = Evaluation(job.spec, job.status, job.stop, job.energy)
    try:
        model = trained or _restored(job)
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        results = evaluation.give_up(in_one_line(error))
    else:
        model.objective.run_folder = job.folder
        # Lightning leaves the model on the CPU; tasks compute in float32 whatever the training precision.
        model.objective.to(device_of(job.spec.typed().trainer), torch.float32)
        results = evaluation.do(model.objective, model.data)
    return "failed" if any(result.status == "failed" for result in results) else "finished"


def _restored(job: Job) -> Trained:
    """Load the model of a run that is already pretrained."""
    job.status.write("running", "prepare")
    data = prepare(job.spec)
    trained = Trained(_build(job.spec, data), data)
    if job.spec.weights.exists():
        checkpoint.read_weights(trained.objective, job.spec.weights)
    return trained


def _leave_process_group() -> bool:
    """Leave the process group and return whether this is rank 0, which alone evaluates."""
    if not dist.is_initialized():
        return True
    rank = dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    return rank == 0
