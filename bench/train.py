"""One run: prepare, build, fit, evaluate, record. config -> run record."""

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
from bench.errors import BenchError, DataError, DivergedError, InterruptedRunError
from bench.objectives.base import Batch, Core, Objective, Shapes, TextObjective
from bench.objectives.reference import Reference
from bench.prepare import Prepared, check_epochs, prepare
from bench.pretrained import CheckpointError, open_checkpoint
from bench.records import RunRecord, Score, Spent, write_atomically, write_record
from bench.schema import Config
from bench.spec import RunSpec
from bench.stopping import Stop, supervisors
from bench.tasks.base import InapplicableError, Setting, Task
from bench.trunk import Trunk, entered


@dataclass(frozen=True)
class Job:
    """A run under way: what it is, where it works, whom it tells, when it must stop."""

    spec: RunSpec
    folder: Path
    loggers: list[Logger]
    status: tracking.StatusFile
    stop: Stop


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
    job = Job(spec, folder, tracking.make_loggers(spec), tracking.StatusFile(folder, spec.label), stop)
    started_at = time.time()
    try:
        record = _outcome(job)
    except (InterruptedRunError, KeyboardInterrupt, SystemExit):  # Lightning's answer to SIGTERM
        job.status.write("interrupted", "stopped")
        tracking.close(job.loggers)
        return "interrupted"
    if record is None:  # rank 0 records for all
        return "finished"
    if record.status == "finished" or not _is_recorded_since(spec, started_at):
        write_record(record, spec.records)
    try:
        tracking.mirror_result(job.loggers, record)
    except Exception:  # a mirror that breaks costs no result
        (folder / "error.log").write_text(traceback.format_exc())
    job.status.write(record.status, "done")
    return record.status


def _outcome(job: Job) -> RunRecord | None:
    """The run's record, whether it finished or not; None on a rank that has none to write."""
    environment = machine.environment(job.spec.typed().trainer)
    blank = replace(job.spec.record("finished"), environment=environment)
    try:
        return _run(job, blank)
    except InterruptedRunError:
        raise
    except DivergedError as error:
        return replace(blank, status="diverged", reason=str(error), curve=tracking.curve(job.folder))
    except Exception as error:
        (job.folder / "error.log").write_text(traceback.format_exc())
        reason = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return replace(blank, status="failed", reason=" ".join(reason.split()))


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


def _run(job: Job, blank: RunRecord) -> RunRecord | None:
    machine.reset_peak_memory()
    job.status.write("running", "prepare")
    config = job.spec.typed()
    tasks = {name: build(node, Task, f"task.{name}") for name, node in config.task.items()}
    data = prepare(job.spec)
    objective = build_objective(job.spec, vocab_size=data.text.vocab_size, image_size=data.pairs.image_size)
    spent = Spent()
    if objective.modality != "none":
        spent = _pretrain(job, objective, data)
        if not _is_rank_zero_alone():
            return None
    if data.checkpoint is None or objective.modality != "none":  # a checkpoint as it is lies elsewhere
        checkpoint.write_weights(objective, job.folder / "weights.safetensors")
    objective.to("cuda" if config.trainer.accelerator == "gpu" else "cpu")  # Lightning left it on the CPU
    started = time.perf_counter()
    scores, inapplicable = _evaluate(job, objective, data, tasks)
    evaluate_s, peak = time.perf_counter() - started, machine.peak_memory_bytes(config.trainer)
    return replace(
        blank,
        parameters=sum(p.numel() for p in objective.parameters()),
        spent=replace(spent, evaluate_s=evaluate_s, peak_memory_bytes=peak),
        scores=scores,
        inapplicable=inapplicable,
        curve=tracking.curve(job.folder),
        data=data.described() | entered(job.folder) | objective.provenance(),
    )


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
    return Spent(
        steps=steps,
        forward_tokens=steps * cost.forward_tokens,
        supervised_tokens=round(steps * cost.supervised_tokens),
        flops=steps * cost.flops,
        epochs=epochs,
        pretrain_s=progress.elapsed_s,
        **data.unique(config.budget, objective.modality),
    )


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


def _evaluate(
    job: Job, objective: Objective, data: Prepared, tasks: dict[str, Task]
) -> tuple[tuple[Score, ...], dict[str, str]]:
    config = job.spec.typed()
    setting = Setting(
        tokenizer=data.text.tokenizer(),
        sequence_length=config.sequence_length,
        text=data.text,
        pairs=data.pairs,
        data_dir=Path(config.paths.data),
        seed=job.spec.seed,
        keep_going=job.stop.check,
    )
    scores: list[Score] = []
    inapplicable: dict[str, str] = {}
    for i, (name, task) in enumerate(tasks.items()):
        job.stop.check()
        job.status.write("running", f"evaluate {name}", i, len(tasks))
        try:
            outcome = task.evaluate(objective, setting)
            scores += [Score(name, **vars(m)) for m in outcome.scores]
        except InapplicableError as reason:
            inapplicable[name] = str(reason)
    return tuple(scores), inapplicable


def _is_rank_zero_alone() -> bool:
    """Leave the process group; evaluation is one process' work."""
    if not dist.is_initialized():
        return True
    rank = dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    return rank == 0
