"""One run: prepare, build, fit, record, evaluate. config -> run record, evaluation record."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from bench import budget, checkpoint, machine, tracking
from bench.backbones.checkpoint import Loaded, load
from bench.budget import StepCost
from bench.build import build, find_class
from bench.callbacks import Progress, TrainingLoss, Validation
from bench.data import VALIDATION_SEED, BatchModule, PairRows, Rows, TextRows, make_batch
from bench.energy import EnergyMeter
from bench.errors import DataError, DivergedError, InterruptedRunError, in_one_line
from bench.evaluate import Evaluation, device_of
from bench.objectives.base import Batch, Core, Objective, Shapes, TextObjective
from bench.objectives.reference import Reference
from bench.prepare import Prepared, check_epochs, prepare
from bench.pretrained import CheckpointError, open_checkpoint
from bench.records import RunRecord, Spent, write_atomically, write_record
from bench.schema import Config
from bench.spec import RunSpec
from bench.stopping import Stop, supervisors
from bench.tasks.base import Task
from bench.trunk import Trunk, entered


@dataclass(frozen=True)
class Job:
    """A run under way: what it is, where it works, whom it tells, when it must stop."""

    spec: RunSpec
    folder: Path
    loggers: list[Logger]
    status: tracking.StatusFile
    stop: Stop
    energy: EnergyMeter


@dataclass(frozen=True)
class Trained:
    """A pretrained strategy, ready for its tasks."""

    objective: Objective
    data: Prepared


def execute(spec: RunSpec, threads: int | None = None, watched: Sequence[int] | None = None) -> str:
    """Do one run to its record, or leave it resumable.

    Args:
        spec: the run.
        threads: for matrix products; None: torch's choice.
        watched: processes without which to stop; None: the launcher that this is a worker of.

    Returns:
        The status: finished, diverged, failed or interrupted.
    """
    machine.quiet_libraries()
    torch.set_flush_denormal(True)  # vanishing weights otherwise cost up to three times the CPU time
    stop = Stop(supervisors() if watched is None else watched)
    stop.listen()
    if threads:
        torch.set_num_threads(threads)
    folder = spec.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", spec.to_json())
    status = tracking.StatusFile(folder, spec.label)
    job = Job(spec, folder, tracking.make_loggers(spec), status, stop, EnergyMeter(spec.typed().energy))
    try:
        return _do(job)
    except (InterruptedRunError, KeyboardInterrupt, SystemExit):  # Lightning's answer to SIGTERM
        job.status.write("interrupted", "stopped")
        tracking.close(job.loggers)
        return "interrupted"


def _do(job: Job) -> str:
    """Pretrain unless that is done, then evaluate by the tasks that are not."""
    started_at = time.time()
    record = known = job.spec.recorded()
    trained: Trained | None = None
    if known is None or known.status != "finished" or not job.spec.can_be_evaluated():
        record, trained = _outcome(job)
        if record is None:  # rank 0 records for all
            return "finished"
        is_first = known is None or known.status != "finished"  # a run that is done again keeps its record
        if is_first and (record.status == "finished" or not _is_recorded_since(job.spec, started_at)):
            write_record(record, job.spec.records)
    assert record is not None
    status: str = record.status
    if status == "finished":
        status = _evaluate(job, trained)
    try:
        tracking.mirror_result(job.loggers, record, job.spec.results())
    except Exception:  # a mirror that breaks costs no result
        (job.folder / "error.log").write_text(traceback.format_exc())
    job.status.write(status, "done")
    return status


def _outcome(job: Job) -> "tuple[RunRecord | None, Trained | None]":
    """The run's record, whether it finished or not, and the trained model; None on a rank that has none."""
    environment = machine.environment(job.spec.typed().trainer)
    blank = replace(job.spec.record("finished"), environment=environment)
    try:
        return _run(job, blank)
    except InterruptedRunError:
        raise
    except DivergedError as error:
        return replace(blank, status="diverged", reason=str(error), curve=tracking.curve(job.folder)), None
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        return replace(blank, status="failed", reason=in_one_line(error)), None


def _is_recorded_since(spec: RunSpec, started_at: float) -> bool:
    """Has another rank failed first? Its reason is the cause, this rank's is the lost connection."""
    path = spec.record_path
    return dist.is_initialized() and path.exists() and path.stat().st_mtime >= started_at


def build_objective(spec: RunSpec, *, vocab_size: int, image_size: int) -> Objective:
    """The strategy with its backbone, initialised from the run's seed."""
    config = spec.typed()
    shapes = Shapes(
        model=config.model,
        vocab_size=vocab_size,
        sequence_length=config.sequence_length,
        caption_length=config.caption_length,
        image_size=image_size,
    )
    cls = find_class(config.strategy, Objective, "strategy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if config.model.name is None or not cls.has_weights:
            return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim)
        loaded = _load_checkpoint(config, cls)
        shapes = replace(shapes, model=loaded.model)
        core = Core(loaded.backbone, loaded.head)  # type: ignore[arg-type]  # called as a Transformer is
        return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim, core=core)


def _load_checkpoint(config: Config, cls: type[Objective]) -> Loaded:
    """The weights of `model.name`; where a strategy neither measures nor trains them, its architecture."""
    assert config.model.name is not None
    measures = issubclass(cls, Reference)
    trains_on = cls.modality == "text" and issubclass(cls, TextObjective)
    if cls.modality != "none" and not trains_on:
        raise CheckpointError(
            config.model.name, f"{cls.__name__} needs a backbone of our own; choose a preset"
        )
    return load(
        open_checkpoint(config.model.name),
        patch_size=config.model.patch_size,
        length=max(config.sequence_length, config.caption_length),
        pretrained=trains_on or measures,
        predicts=None if measures else trains_on,
    )


def _run(job: Job, blank: RunRecord) -> "tuple[RunRecord | None, Trained | None]":
    machine.reset_peak_memory()
    job.status.write("running", "prepare")
    config = job.spec.typed()
    for name, node in config.task.items():  # a mistake in a task is said before hours of pretraining
        build(node, Task, f"task.{name}")  # type: ignore[type-abstract]
    data = prepare(job.spec)
    objective = _build(job.spec, data)
    spent, energy = Spent(), None
    if objective.modality != "none":
        with job.energy.measured() as drawn:
            spent = _pretrain(job, objective, data)
        energy = drawn()
        if not _is_rank_zero_alone():
            return None, None
    if data.checkpoint is None or objective.modality != "none":  # a checkpoint as it is lies elsewhere
        checkpoint.write_weights(objective, job.spec.weights)
    record = replace(
        blank,
        parameters=sum(p.numel() for p in objective.parameters()),
        spent=replace(spent, energy=energy, peak_memory_bytes=machine.peak_memory_bytes(config.trainer)),
        curve=tracking.curve(job.folder),
        data=data.described() | entered(job.folder),
    )
    return record, Trained(objective, data)


def _build(spec: RunSpec, data: Prepared) -> Objective:
    return build_objective(spec, vocab_size=data.text.vocab_size, image_size=data.pairs.image_size)


def _evaluate(job: Job, trained: Trained | None) -> str:
    """finished, or failed if a task has; what keeps every task from being done fails them all."""
    if not job.spec.pending_tasks():
        return "finished"
    evaluation = Evaluation(job.spec, job.status, job.stop, job.energy)
    try:
        model = trained or _restored(job)
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        results = evaluation.give_up(in_one_line(error))
    else:
        model.objective.to(device_of(job.spec.typed().trainer.accelerator))  # Lightning left it on the CPU
        results = evaluation.do(model.objective, model.data)
    return "failed" if any(result.status == "failed" for result in results) else "finished"


def _restored(job: Job) -> Trained:
    """The model of a run that was trained before."""
    job.status.write("running", "prepare")
    data = prepare(job.spec)
    trained = Trained(_build(job.spec, data), data)
    if job.spec.weights.exists():
        checkpoint.read_weights(trained.objective, job.spec.weights)
    return trained


def _pretrain(job: Job, objective: Objective, data: Prepared) -> Spent:
    config = job.spec.typed()
    cost = objective.step_cost(config.optim.tokens_per_step)
    steps = budget.n_steps(config.budget, cost)
    train, validation = _rows(job.spec, objective, data)
    epochs = budget.n_epochs(steps * cost.rows, len(train))
    if config.budget.tokens is None:  # only now known; a budget of tokens was checked before
        check_epochs(config.budget, epochs)
    batches = BatchModule(
        train=train,
        corrupt=objective.corrupt_at,
        seed=job.spec.seed,
        rows_per_step=cost.rows,
        loader_workers=config.trainer.loader_workers,
    )
    checkpoints = job.folder / "checkpoints"
    start = checkpoint.latest(checkpoints)
    progress = Progress(job.status, job.stop, cost, checkpoints)
    callbacks = [
        TrainingLoss(config.logger.log_every_n_steps),
        Validation(_held_out(config, objective, validation, cost), config.trainer.n_validations, cost),
        checkpoint.Checkpoints(checkpoints, config.trainer.checkpoint_every_s),
        progress,
    ]
    if objective.trunk_share is not None:
        trunk = Trunk(job.spec, objective.trunk_share, steps)
        callbacks.append(trunk)
        start = start or trunk.enter(cost)
    trainer = _trainer(job, steps, callbacks, has_idle_weights=objective.has_idle_weights)
    trainer.fit(objective, batches, ckpt_path=start, weights_only=True)
    spent = Spent(
        steps=steps,
        forward_tokens=steps * cost.forward_tokens,
        supervised_tokens=round(steps * cost.supervised_tokens),
        flops=steps * cost.flops,
        epochs=epochs,
        pretrain_s=progress.elapsed_s,
    )
    return replace(spent, **data.unique(config.budget, objective.modality))  # type: ignore[arg-type]


def _held_out(config: Config, objective: Objective, rows: Rows, cost: StepCost) -> list[Batch]:
    """The batches that the objective's own loss is measured on; phases are measured by their last one."""
    return [
        make_batch(
            rows,
            objective.corrupt_at,
            seed=VALIDATION_SEED,
            step=i,
            rows_per_step=cost.rows,
            progress=1.0,
        )
        for i in range(config.trainer.validation_batches)
    ]


def _trainer(job: Job, steps: int, callbacks: list[Callback], *, has_idle_weights: bool) -> Trainer:
    config = job.spec.typed()
    settings = config.trainer
    ddp = "ddp_find_unused_parameters_true" if has_idle_weights else "ddp"
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=ddp if settings.devices > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=config.optim.clip_norm,
        deterministic=True if settings.accelerator == "cpu" else "warn",
        logger=job.loggers,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


def _rows(spec: RunSpec, objective: Objective, data: Prepared) -> tuple[Rows, Rows]:
    """Training and validation rows of the strategy's modality."""
    config = spec.typed()
    if objective.modality == "pairs":
        return PairRows(data.pairs.train(config.budget.unique_pairs)), PairRows(data.pairs.validation())
    length = config.sequence_length
    train = TextRows(data.text.train(config.budget.unique_bytes), length)
    validation = TextRows(data.text.validation(), length)
    if not len(validation):
        raise DataError(f"the validation split holds less than sequence_length={length} tokens; lower it")
    return train, validation


def _is_rank_zero_alone() -> bool:
    """Leave the process group; evaluation is one process' work."""
    if not dist.is_initialized():
        return True
    rank = dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    return rank == 0
