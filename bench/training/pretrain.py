"""Pretrain one run: build its objective, fit it to prepared data -> trained weights and what they cost."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from torch import Tensor

from bench.config.build import build, find_class
from bench.config.run_spec import RunSpec
from bench.config.schema import Config
from bench.data.batches import VALIDATION_SEED, Batch, BatchModule, PairRows, Rows, TextRows, make_batch
from bench.data.prepare import Prepared, check_epochs
from bench.data.pretrained_files import CheckpointError, open_checkpoint
from bench.errors import ConfigError, DataError, DivergedError
from bench.models import flops
from bench.models.flops import StepCost
from bench.models.from_huggingface import Loaded, load
from bench.objectives.base import Core, Objective, Shapes, TextObjective
from bench.records import Divergence, Spent, write_atomically
from bench.training import checkpoint
from bench.training.callbacks import Progress, TrainingLoss, Validation, trunk_of
from bench.training.distributed import Agreement, WholeWeights, lost_ranks_named, strategy_of
from bench.training.energy import EnergyMeter
from bench.training.loggers import RunLogger
from bench.training.metric_file import METRICS_FILE, MetricFile, StatusFile
from bench.training.step import computed_as, precision_plugins
from bench.training.stopping import Stop
from bench.training.trunk import ENTERED

log = logging.getLogger(__name__)
DIVERGED = "divergences.json"  # in a run's folder: the attempts that diverged


@dataclass(frozen=True)
class Job:
    """A run in progress: its settings and folder, where it reports, and its request to stop."""

    spec: RunSpec
    folder: Path
    loggers: list[RunLogger]
    status: StatusFile
    stop: Stop
    energy: EnergyMeter


def build_objective(spec: RunSpec, *, vocab_size: int, image_size: int, lr_share: float = 1.0) -> Objective:
    """Return the objective of a run, initialised from its seed or checkpoint.

    `lr_share` scales the peak learning rate.
    """
    config = spec.typed()
    config.optim.lr_peak *= lr_share
    shapes = Shapes.of(config, vocab_size=vocab_size, image_size=image_size)
    cls = find_class(config.strategy, Objective, "strategy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if config.model.name is None or not cls.has_weights:
            return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim)
        loaded = _load_checkpoint(config, cls)
        shapes = replace(shapes, model=loaded.model)
        core = Core(loaded.backbone, loaded.head)  # type: ignore[arg-type]  # same interface as Transformer
        return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim, core=core)


def _load_checkpoint(config: Config, cls: type[Objective]) -> Loaded:
    """Load `model.name`: its weights, or only its architecture if the strategy does not use the weights."""
    assert config.model.name is not None
    measures = cls.measures_checkpoint
    trains_on = cls.modality == "text" and issubclass(cls, TextObjective)
    if cls.modality != "none" and not trains_on:
        raise CheckpointError(
            config.model.name, f"{cls.__name__} cannot use a checkpoint; choose a model preset"
        )
    return load(
        open_checkpoint(config.model.name),
        patch_size=config.model.patch_size,
        length=max(config.sequence_length, config.caption_length),
        pretrained=trains_on or measures,
        predicts=None if measures else trains_on,
    )


def pretrain_until_finite(
    job: Job, build: Callable[[float], Objective], data: Prepared
) -> tuple[Objective, Spent, dict[str, Tensor] | None]:
    """Pretrain; if the loss diverges, try again at half the peak rate, as often as the config allows.

    Each attempt starts at the first step, because the step of the last checkpoint depends on the machine's
    speed: the result is that of a run which had the lower rate from the start. `build` returns an untrained
    objective, given its share of the config's peak rate.
    """
    while True:
        before = divergences(job.folder)
        objective = build(0.5 ** len(before))
        try:
            return objective, *pretrain(job, objective, data, attempt=len(before))
        except DivergedError as error:
            if len(before) == job.spec.typed().optim.retries_on_divergence:
                raise
            divergence = Divergence(error.step, error.loss_nats, objective.optimizer.lr_peak)
            _set_aside(job.folder, [*before, divergence])


def divergences(folder: Path) -> list[Divergence]:
    """Return the attempts of a run that have diverged so far."""
    path = folder / DIVERGED
    return [Divergence(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _set_aside(folder: Path, found: list[Divergence]) -> None:
    """Keep the metrics of the last attempt; its checkpoints have their own folder."""
    step = found[-1].step
    log.warning("%s diverged after step %d; trying again at half the peak rate", folder.name, step)
    metrics = folder / METRICS_FILE
    if metrics.exists():
        metrics.replace(folder / f"diverged-{len(found)}.jsonl")
    (folder / ENTERED).unlink(missing_ok=True)
    write_atomically(folder / DIVERGED, json.dumps([asdict(one) for one in found]))


def pretrain(
    job: Job, objective: Objective, data: Prepared, *, attempt: int = 0
) -> tuple[Spent, dict[str, Tensor] | None]:
    """Train to the end of the compute budget, from the attempt's last good checkpoint if there is one.

    Returns:
        The cost; the whole weights if `objective` holds only this rank's slices, else None.

    Raises:
        DivergedError: the loss is not finite.
        InterruptedRunError: the run was asked to stop; its state is saved.
    """
    config = job.spec.typed()
    cost = objective.step_cost(config.optim.tokens_per_step)
    steps = flops.n_steps(config.budget, cost)
    train, validation = rows_of(job.spec, objective, data)
    epochs = flops.n_epochs(steps * cost.rows, len(train))
    if config.budget.tokens is None:  # known only now; budgets of tokens were checked before
        check_epochs(config.budget, epochs)
    batches = _batches(job.spec, objective, train, cost)
    checkpoints = job.folder / (f"checkpoints-{attempt}" if attempt else "checkpoints")
    start = checkpoint.latest(checkpoints)
    progress = Progress(job.status, job.stop, cost, checkpoints)
    gathered = WholeWeights()
    measured = held_out_batches(config, objective, validation, cost)
    held_out = Validation(measured, config.trainer.n_validations, cost)
    kept = checkpoint.Checkpoints(checkpoints, config.trainer.checkpoint_every_s)
    callbacks = [TrainingLoss(config.trainer.log_every_n_steps), held_out, kept, progress, gathered]
    trunk = None if attempt else trunk_of(job.spec, objective, steps, cost)
    if trunk is not None:
        callbacks.append(trunk)
        start = start or trunk.enter(cost)
    callbacks += [Agreement(_input(job.spec, data, start)), *make_observers(config)]
    mirrors = [MetricFile(job.folder), *(logger.lightning for logger in job.loggers)]
    profiler = profiler_of(config.trainer.profiler, job.folder)
    trainer = make_trainer(
        *(config, steps, callbacks, mirrors), has_idle_weights=objective.has_idle_weights, profiler=profiler
    )
    with lost_ranks_named(config.trainer), computed_as(objective, config.trainer):
        trainer.fit(objective, batches, ckpt_path=start, weights_only=True)
    unique: dict[str, Any] = data.unique(config.budget, objective.modality)
    return _spent(steps, cost, epochs=epochs, pretrain_s=progress.elapsed_s, **unique), gathered.weights


def _batches(spec: RunSpec, objective: Objective, train: Rows, cost: StepCost) -> BatchModule:
    """Return the training steps, each divided among the ranks."""
    settings = spec.typed().trainer
    return BatchModule(
        train=train,
        corrupt=objective.corrupt_at,
        seed=spec.seed,
        rows_per_step=cost.rows,
        ranks=settings.n_ranks,
        loader_workers=settings.loader_workers,
    )


def _spent(steps: int, cost: StepCost, **also: Any) -> Spent:
    """Return what these steps used."""
    return Spent(
        steps=steps,
        forward_tokens=steps * cost.forward_tokens,
        predicted_tokens=round(steps * cost.predicted_tokens),
        flops=steps * cost.flops,
        **also,
    )


def _input(spec: RunSpec, data: Prepared, start: Path | None) -> dict[str, str]:
    """Return the input that all ranks must have in common."""
    described = data.described()
    return {
        "config": spec.run_id,
        "text corpus": described["text"]["content_sha256"],
        "corpus of pairs": described["pairs"]["content_sha256"],
        "tokenizer": described["tokenizer_sha256"],
        "checkpoint": start.name if start else "",
    }


def held_out_batches(config: Config, objective: Objective, rows: Rows, cost: StepCost) -> list[Batch]:
    """Return the batches for the validation loss; with phases, they are those of the last phase."""
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


def make_observers(config: Config) -> list[Callback]:
    """Return the callbacks that the config adds; see `bench.training.observers`.

    Raises:
        ConfigError: a class or an option is unknown; names the key.
    """
    return [build(node, Callback, f"callbacks.{name}") for name, node in config.callbacks.items()]


def profiler_of(name: str | None, folder: Path) -> Profiler | None:
    """Return Lightning's profiler of that name, which writes fit-profile.txt into the run's folder."""
    if name is None:
        return None
    return {"simple": SimpleProfiler, "advanced": AdvancedProfiler}[name](folder, "profile")


def make_trainer(
    config: Config,
    steps: int,
    callbacks: list[Callback],
    loggers: list[Logger],
    *,
    has_idle_weights: bool,
    profiler: Profiler | None = None,
) -> Trainer:
    """Return Lightning's trainer for one rank of a run."""
    settings = config.trainer
    precision = precision_plugins(settings)
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy_of(settings, has_idle_weights=has_idle_weights),
        precision=None if precision else settings.precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=config.optim.clip_norm,
        deterministic=True if settings.accelerator == "cpu" else "warn",
        logger=loggers,
        log_every_n_steps=settings.log_every_n_steps,
        profiler=profiler,
        callbacks=callbacks,
        plugins=[checkpoint.InPlace(), *precision],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


def rows_of(spec: RunSpec, objective: Objective, data: Prepared) -> tuple[Rows, Rows]:
    """Return training and validation rows of the strategy's modality."""
    config = spec.typed()
    if objective.modality == "pairs":
        return PairRows(data.pairs.train(config.budget.unique_pairs)), PairRows(data.pairs.validation())
    length = config.sequence_length
    isolated = not config.attention_across_documents
    if isolated and not objective.isolates_documents:
        raise ConfigError(f"attention_across_documents=false: strategy={spec.strategy} does not support it")
    train = TextRows(data.text.train(config.budget.unique_bytes), length, numbered=isolated)
    validation = TextRows(data.text.validation(), length, numbered=isolated)
    if not len(validation):
        raise DataError(f"sequence_length={length}: the validation split has fewer tokens; lower it")
    return train, validation
