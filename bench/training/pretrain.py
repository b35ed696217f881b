"""The fit of one run: strategy and prepared data -> trained weights, and what they took."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from torch import Tensor

from bench.config.run_spec import RunSpec
from bench.config.schema import Config
from bench.data.batches import VALIDATION_SEED, Batch, BatchModule, PairRows, Rows, TextRows, make_batch
from bench.data.prepare import Prepared, check_epochs
from bench.errors import DataError, DivergedError
from bench.models import flops
from bench.models.flops import StepCost
from bench.objectives.base import Objective
from bench.objectives.precision import plugins_of
from bench.records import Divergence, Spent, write_atomically
from bench.training import checkpoint
from bench.training.callbacks import Progress, TrainingLoss, Validation
from bench.training.distributed import Agreement, WholeWeights, lost_ranks_named, strategy_of
from bench.training.energy import EnergyMeter
from bench.training.loggers import METRICS_FILE, StatusFile
from bench.training.shared_trunk import ENTERED, Trunk, phase_trunk, stable_trunk
from bench.training.step import computed_as
from bench.training.stopping import Stop

log = logging.getLogger(__name__)
DIVERGED = "divergences.json"  # in a run's folder: the attempts that were given up


@dataclass(frozen=True)
class Job:
    """A run under way: what it is, where it works, whom it tells, when it must stop."""

    spec: RunSpec
    folder: Path
    loggers: list[Logger]
    status: StatusFile
    stop: Stop
    energy: EnergyMeter


def pretrain_until_finite(
    job: Job, build: Callable[[float], Objective], data: Prepared
) -> tuple[Objective, Spent, dict[str, Tensor] | None]:
    """As `pretrain`; where the loss diverges, as often as the config allows, anew at half the peak rate.

    From the first step, since where the last checkpoint lies depends on the machine's speed: the result is
    that of a run which had the lower rate from the start.

    Args:
        job: the run.
        build: an untrained objective, at a share of the config's peak rate.
        data: to train on.
    """
    while True:
        before = divergences(job.folder)
        objective = build(0.5 ** len(before))
        try:
            return objective, *pretrain(job, objective, data, attempt=len(before))
        except DivergedError as error:
            if len(before) == job.spec.typed().optim.retries_on_divergence:
                raise
            found = Divergence(error.step, error.loss_nats, objective.optimizer.lr_peak)
            _set_aside(job.folder, [*before, found])


def divergences(folder: Path) -> list[Divergence]:
    """The attempts of a run that were given up so far."""
    path = folder / DIVERGED
    return [Divergence(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _set_aside(folder: Path, found: list[Divergence]) -> None:
    """Keep what the last attempt logged; its checkpoints have a folder of their own."""
    log.warning("%s diverged after step %d; anew at half the peak rate", folder.name, found[-1].step)
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
        What it took; the whole weights where `objective` holds only this rank's slices, else None.

    Raises:
        DivergedError: the loss left the finite numbers.
        InterruptedRunError: told to stop; the state is saved.
    """
    config = job.spec.typed()
    cost = objective.step_cost(config.optim.tokens_per_step)
    steps = flops.n_steps(config.budget, cost)
    train, validation = rows_of(job.spec, objective, data)
    epochs = flops.n_epochs(steps * cost.rows, len(train))
    if config.budget.tokens is None:  # only now known; a budget of tokens was checked before
        check_epochs(config.budget, epochs)
    batches = _batches(job.spec, objective, train, cost)
    checkpoints = job.folder / (f"checkpoints-{attempt}" if attempt else "checkpoints")
    start = checkpoint.latest(checkpoints)
    progress = Progress(job.status, job.stop, cost, checkpoints)
    gathered = WholeWeights()
    measured = held_out_batches(config, objective, validation, cost)
    held_out = Validation(measured, config.trainer.n_validations, cost)
    kept = checkpoint.Checkpoints(checkpoints, config.trainer.checkpoint_every_s)
    callbacks = [TrainingLoss(config.logger.log_every_n_steps), held_out, kept, progress, gathered]
    trunk = None if attempt else _trunk(job.spec, objective, steps, cost)
    if trunk is not None:
        callbacks.append(trunk)
        start = start or trunk.enter(cost)
    callbacks.append(Agreement(_input(job.spec, data, start)))
    trainer = make_trainer(config, steps, callbacks, job.loggers, has_idle_weights=objective.has_idle_weights)
    with lost_ranks_named(config.trainer), computed_as(objective, config.trainer):
        trainer.fit(objective, batches, ckpt_path=start, weights_only=True)
    unique: dict[str, Any] = data.unique(config.budget, objective.modality)
    return _spent(steps, cost, epochs=epochs, pretrain_s=progress.elapsed_s, **unique), gathered.weights


def _batches(spec: RunSpec, objective: Objective, train: Rows, cost: StepCost) -> BatchModule:
    """The training steps, each dealt to the ranks."""
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
    """What so many steps use, and what else is known of them."""
    return Spent(
        steps=steps,
        forward_tokens=steps * cost.forward_tokens,
        predicted_tokens=round(steps * cost.predicted_tokens),
        flops=steps * cost.flops,
        **also,
    )


def _input(spec: RunSpec, data: Prepared, start: Path | None) -> dict[str, str]:
    """What all ranks must begin with."""
    described = data.described()
    return {
        "config": spec.run_id,
        "text corpus": described["text"]["content_sha256"],
        "corpus of pairs": described["pairs"]["content_sha256"],
        "tokenizer": described["tokenizer_sha256"],
        "checkpoint": start.name if start else "",
    }


def _trunk(spec: RunSpec, objective: Objective, steps: int, cost: StepCost) -> Trunk | None:
    """The beginning that the run shares with others, if it does."""
    if objective.trunk_share is not None:
        return phase_trunk(spec, objective.trunk_share, steps)
    return stable_trunk(spec, steps, cost)


def held_out_batches(config: Config, objective: Objective, rows: Rows, cost: StepCost) -> list[Batch]:
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


def make_trainer(
    config: Config, steps: int, callbacks: list[Callback], loggers: list[Logger], *, has_idle_weights: bool
) -> Trainer:
    """Lightning's trainer for one rank of a run."""
    settings = config.trainer
    numbers = plugins_of(settings)
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy_of(settings, has_idle_weights=has_idle_weights),
        precision=None if numbers else settings.precision,  # type: ignore[arg-type]
        max_steps=steps,
        gradient_clip_val=config.optim.clip_norm,
        deterministic=True if settings.accelerator == "cpu" else "warn",
        logger=loggers,
        callbacks=callbacks,
        plugins=[checkpoint.InPlace(), *numbers],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )


def rows_of(spec: RunSpec, objective: Objective, data: Prepared) -> tuple[Rows, Rows]:
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
