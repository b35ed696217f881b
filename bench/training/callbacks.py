"""What happens between two optimizer steps: losses are logged, progress is shown, a trunk is shared."""

import json
import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from bench.config.run_spec import RunSpec
from bench.data.batches import Batch
from bench.errors import DivergedError, InterruptedRunError
from bench.models.flops import StepCost, n_steps
from bench.objectives import optim
from bench.objectives.base import Objective, mean_over_ranks
from bench.records import write_atomically
from bench.training import checkpoint, trunk
from bench.training.metric_file import METRICS_FILE, StatusFile
from bench.training.stopping import Stop


class TrainingLoss(Callback):
    """Log the loss of every n-th step, before that step's checkpoint.

    Lightning logs after the checkpoint, by a counter that lags: a resumed run would lack a step and shift the
    others.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    @override
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        assert isinstance(module, Objective)
        if trainer.global_step % self.every_n_steps == 0 and module.last_finite:
            for logger in trainer.loggers:
                logger.log_metrics({"train_loss_nats": module.last_finite[1]}, step=trainer.global_step)


class Validation(Callback):
    """Measure the objective's own loss on fixed held-out batches, at evenly spaced steps of the run."""

    def __init__(self, batches: Sequence[Batch], n_times: int, cost: StepCost) -> None:
        self.batches, self.n_times, self.cost = batches, n_times, cost

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Log the loss with the tokens and FLOPs used so far, at `n_times` steps, the last one included.

        Raises:
            DivergedError: the loss is not finite; all ranks raise it.
        """
        assert isinstance(module, Objective)
        step = trainer.global_step
        if step in validation_steps(trainer.max_steps, self.n_times):
            loss = validation_loss(module, self.batches)
            if not math.isfinite(loss):  # no training loss follows the last step
                raise DivergedError(*(module.last_finite or (0, None)))
            row = {
                "validation_loss_nats": loss,
                "forward_tokens": step * self.cost.forward_tokens,
                "flops": step * self.cost.flops,
            }
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step)


def validation_steps(total: int, n_times: int) -> set[int]:
    """Return the steps after which to validate: evenly spaced, the last one included."""
    return {max(1, round(total * i / n_times)) for i in range(1, n_times + 1)}


@torch.no_grad()
def validation_loss(module: Objective, batches: Sequence[Batch]) -> float:
    """Return the mean loss in nats per target over all batches; each rank computes its slice of them."""
    rank, world = module.global_rank, module.trainer.world_size
    module.eval()
    total = n_targets = 0.0
    for batch in batches:
        share = len(next(iter(batch.values()))) // world
        mine = {k: v[rank * share : (rank + 1) * share].to(module.device) for k, v in batch.items()}
        mean, counts, _ = mean_over_ranks(module.loss(mine))
        total += float(mean * counts.sum())
        n_targets += float(counts.sum())
    module.train()
    return total / n_targets


class Progress(Callback):
    """Write the run's status file, count the seconds of training over all attempts, and stop on request."""

    def __init__(self, status: StatusFile, stop: Stop, cost: StepCost, checkpoints: Any) -> None:
        self.status, self.stop, self.cost, self.checkpoints = status, stop, cost, checkpoints
        self.elapsed_s = 0.0
        self._ticked_at = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Return the state for checkpoints, so that a resumed run counts the time before it."""
        return {"elapsed_s": self.elapsed_s}

    @override
    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.elapsed_s = state_dict["elapsed_s"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock and handle signals: Lightning's own SIGTERM handler exits without saving."""
        self.stop.listen()
        self._started_at_step = trainer.global_step
        self._ticked_at = self._started_at = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Count the time, write the status, and stop if any rank was asked to."""
        now = time.perf_counter()
        self.elapsed_s += now - self._ticked_at
        self._ticked_at = now
        if trainer.is_global_zero and self.status.due():
            step, total = trainer.global_step, trainer.max_steps
            steps_per_s = (step - self._started_at_step) / (now - self._started_at)
            self.status.write(
                *("running", "pretrain", step, total),
                tokens_per_s=steps_per_s * self.cost.forward_tokens,
                seconds_left=(total - step) / steps_per_s,
            )
        if trainer.strategy.reduce_boolean_decision(self.stop.wanted(), all=False):
            checkpoint.save(trainer, self.checkpoints)
            raise InterruptedRunError()


class Trunk(Callback):
    """Save and reuse the beginning that runs share; see `bench.training.trunk`.

    The runs have the same seed, data order and rate up to the end of the trunk. A run saves its state there
    and where shorter runs branch off; another run whose own trunk is at least as long starts from it. Results
    are those of a run that was trained alone, on a CPU bit for bit.
    """

    def __init__(self, spec: RunSpec, folder: Path, ends: Collection[int]) -> None:
        """`ends`: the steps after which to save the state; the largest is the end of this run's trunk."""
        self.run_id, self.own, self.folder = spec.run_id, spec.folder, folder
        self.ends, self.end = frozenset(ends), max(ends)

    def enter(self, cost: StepCost) -> Path | None:
        """Return the last checkpoint in the trunk that is not past the end of this run's trunk, if any.

        The metrics logged up to there are copied into this run, with FLOPs at its own cost per step.
        """
        for path in checkpoint.undamaged(self.folder):
            origin = json.loads(path.with_suffix(".json").read_text())
            if origin["steps"] <= self.end:
                rows = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
                own = [row | ({"flops": row["step"] * cost.flops} if "flops" in row else {}) for row in rows]
                write_atomically(self.own / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in own))
                write_atomically(self.own / trunk.ENTERED, json.dumps(origin))
                return path
        return None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Save the state where runs branch off, unless another run has saved it."""
        step = trainer.global_step
        path = checkpoint.path_at(self.folder, step)
        if step not in self.ends or trainer.strategy.broadcast(path.exists()):
            return
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            logged = (self.own / METRICS_FILE).read_text(encoding="utf-8")
            write_atomically(path.with_suffix(".jsonl"), logged)
            origin = {"run_id": self.run_id, "steps": step}
            write_atomically(path.with_suffix(".json"), json.dumps(origin))
        checkpoint.write(trainer, path, self.own / "trunk.partial")


def trunk_of(spec: RunSpec, objective: Objective, steps: int, cost: StepCost) -> Trunk | None:
    """Return the trunk of a run of `steps`: its first phase, or its stable phase; None if it shares none."""
    if objective.trunk_share is not None:
        strategy = {key: value for key, value in spec.science["strategy"].items() if key != "shares"}
        folder = trunk.trunk_folder(spec, [spec.science | {"strategy": strategy}, steps])
        return Trunk(spec, folder, [math.ceil(objective.trunk_share * steps - 1e-9)])
    stable = trunk.stable_phase_folder(spec)
    if stable is None:
        return None
    lengths = {n_steps(other, cost) for other in trunk.announced_budgets(stable)}
    ends = {optim.cooldown_start(n, spec.typed().optim) for n in (*lengths, steps) if n <= steps}
    return Trunk(spec, stable, ends)
