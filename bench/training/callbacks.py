"""What happens between two optimizer steps: held-out losses, progress, an orderly stop."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from bench.data.batches import Batch
from bench.errors import DivergedError, InterruptedRunError
from bench.models.flops import StepCost
from bench.objectives.base import Objective, mean_over_ranks
from bench.training import checkpoint
from bench.training.loggers import StatusFile
from bench.training.stopping import Stop


class TrainingLoss(Callback):
    """Logs the loss of every n-th step, before that step's checkpoint.

    Lightning logs after it, by a counter that lags: a resumed run would lack a step and shift the others.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Log it under the number of steps done."""
        assert isinstance(module, Objective)
        if trainer.global_step % self.every_n_steps == 0 and module.last_finite:
            for logger in trainer.loggers:
                logger.log_metrics({"train_loss_nats": module.last_finite[1]}, step=trainer.global_step)


class Validation(Callback):
    """Measures the objective's own loss on fixed held-out batches, evenly along the run."""

    def __init__(self, batches: Sequence[Batch], n_times: int, cost: StepCost) -> None:
        self.batches, self.n_times, self.cost = batches, n_times, cost

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Log the loss with the tokens and FLOPs it took, at `n_times` steps, the last one included.

        Raises:
            DivergedError: the loss is not finite, on all ranks alike.
        """
        assert isinstance(module, Objective)
        step = trainer.global_step
        if step in validation_steps(trainer.max_steps, self.n_times):
            loss = validation_loss(module, self.batches)
            if not math.isfinite(loss):  # the last step has no training loss after it
                raise DivergedError(*(module.last_finite or (0, None)))
            row = {
                "validation_loss_nats": loss,
                "forward_tokens": step * self.cost.forward_tokens,
                "flops": step * self.cost.flops,
            }
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step)


def validation_steps(total: int, n_times: int) -> set[int]:
    """Steps after which to validate: evenly spaced, the last one included."""
    return {max(1, round(total * i / n_times)) for i in range(1, n_times + 1)}


@torch.no_grad()
def validation_loss(module: Objective, batches: Sequence[Batch]) -> float:
    """Mean loss in nats per target over all batches and all ranks, each rank doing its slice."""
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
    """Writes the run's status file, counts the seconds of training over all attempts, and stops in order."""

    def __init__(self, status: StatusFile, stop: Stop, cost: StepCost, checkpoints: Any) -> None:
        self.status, self.stop, self.cost, self.checkpoints = status, stop, cost, checkpoints
        self.elapsed_s = 0.0
        self._ticked_at = time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Kept in checkpoints, so that a resumed run counts its first part."""
        return {"elapsed_s": self.elapsed_s}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Back from a checkpoint."""
        self.elapsed_s = state_dict["elapsed_s"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock; take back SIGTERM, for which Lightning leaves between two steps without saving."""
        self.stop.listen()
        self._started_at_step = trainer.global_step
        self._ticked_at = self._started_at = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Count, show, and stop if any rank was told to."""
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
