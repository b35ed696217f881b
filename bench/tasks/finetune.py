"""Fine-tuning, equal for every strategy: several fits, a grid of learning rates, early stopping.

Follows Dodge et al. 2020 (arXiv:2002.06305) and Mosbach et al. 2021 (arXiv:2006.04884): a checkpoint is
fine-tuned several times, with warm-up and decay, and the share of failed fits is a result of its own.
Shapes: N items, B of them in a batch.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.objectives.base import Objective
from bench.tasks.base import Setting
from bench.tasks.options import ContrastiveFit, Tuning

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1  # of all steps
CLIP_NORM = 1.0

Head = Callable[[], nn.Module]
TuningLoss = Callable[[Objective, nn.Module, Tensor], Tensor]
Validate = Callable[[Objective, nn.Module], float]


def scaled(lr_at_64: float, d_model: int) -> float:
    """Scale a peak rate in inverse proportion to the width, as in pretraining (`bench.objectives.optim`)."""
    return lr_at_64 * 64 / d_model


def descend(
    loss: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    n_items: int,
    steps: int,
    batch_size: int,
    lr_peak: float,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> Iterator[int]:
    """Minimise a mean loss of items (B,) in place by AdamW, with linear warm-up and decay.

    Each item is used once before any is used twice, in an order drawn from `generator`. Yields the number of
    completed steps; the caller may inspect the parameters between steps, and stop early.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr_peak, weight_decay=WEIGHT_DECAY, fused=True)
    warmup = max(1, int(steps * WARMUP_SHARE))
    batch = min(batch_size, n_items)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        keep_going()
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(n_items, generator=generator)])
        index, order = order[:batch], order[batch:]
        share = min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = share * lr_peak
        optimizer.zero_grad()
        value = loss(index)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the fit's loss is not finite at step {step}; lower its learning rate")
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        yield step + 1


@dataclass(frozen=True)
class Tuned:
    """One fine-tuned model in its best state, in evaluation mode.

    Attributes:
        steps: number of completed steps.
        validation: validation score of the best state.
        failed: the fit diverged, or never exceeded the validation score of a constant predictor. In the
            second case the model is in its initial state, and `validation` is the constant predictor's score.
    """

    model: Objective
    head: nn.Module
    lr_at_64: float
    steps: int
    validation: float
    failed: bool


def fine_tune(
    model: Objective,
    *,
    head: Head,
    loss: TuningLoss,
    validate: Validate,
    n_items: int,
    tuning: Tuning,
    setting: Setting,
    floor: float,
) -> list[Tuned]:
    """Train copies of the whole backbone, each with a new head; `model` itself is not changed.

    Every rate of the grid is tried with every fit; a fit has the same order of items at all rates. The rate
    with the highest mean validation score over fits is chosen, the first of equal ones; a fit that diverged
    counts as `floor`.

    Args:
        head: makes a head; torch's global generator is seeded for each fit while it is called.
        loss: mean loss of a model and a head on the training items with indices (B,).
        validate: a model's score on validation items, without gradients; higher is better.
        n_items: the number of training items, N.
        floor: the validation score of a constant predictor.

    Returns:
        One result per fit, all at the chosen rate.

    Raises:
        FloatingPointError: every fit at every rate diverged.
    """
    trial = _Trial(head, loss, validate, n_items, tuning, setting, floor)
    root = torch.Generator().manual_seed(setting.seed)
    seeds = torch.randint(2**62, (tuning.n_fits,), generator=root).tolist()
    best: tuple[float, list[Tuned]] | None = None
    for lr_at_64 in tuning.lr_grid:
        fits = [trial.run(model, lr_at_64, seed) for seed in seeds]
        if all(diverged for _, diverged in fits):
            continue
        total = sum(floor if diverged else f.validation for f, diverged in fits)
        if best is None or total > best[0]:
            best = total, [fit for fit, _ in fits]
    if best is None:
        raise FloatingPointError(f"every fine-tuning diverged; lower task.*.lr_grid={list(tuning.lr_grid)}")
    return best[1]


@dataclass(frozen=True)
class _Trial:
    """The arguments that all fits of `fine_tune` share."""

    head: Head
    loss: TuningLoss
    validate: Validate
    n_items: int
    tuning: Tuning
    setting: Setting
    floor: float

    def run(self, model: Objective, lr_at_64: float, seed: int) -> tuple[Tuned, bool]:
        """Fit a copy; return it in its best state, and whether it diverged."""
        tuned = copy.deepcopy(model).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self.head().to(tuned.device).train()
        parts = nn.ModuleList([tuned.backbone, head])
        kept, highest, waited, done, diverged = _state(parts), -math.inf, 0, 0, False
        n, steps = self.tuning.n_validations, self.tuning.steps
        due = {round(k * steps / n) for k in range(1, n + 1)}
        try:
            for done in self._steps(tuned, head, list(parts.parameters()), lr_at_64, seed):
                if done in due:
                    score = self._score(tuned, head)
                    kept = _state(parts) if score > max(highest, self.floor) else kept
                    highest, waited = max(highest, score), 0 if score > highest else waited + 1
                    if waited == self.tuning.patience:
                        break
        except FloatingPointError:
            diverged = True
        parts.load_state_dict(kept)
        parts.zero_grad()
        failed = diverged or highest <= self.floor
        validation = max(highest, self.floor)
        return Tuned(tuned.eval(), head.eval(), lr_at_64, done, validation, failed), diverged

    def _steps(
        self, model: Objective, head: nn.Module, parameters: list[nn.Parameter], lr_at_64: float, seed: int
    ) -> Iterator[int]:
        return descend(
            lambda index: self.loss(model, head, index),
            parameters,
            n_items=self.n_items,
            steps=self.tuning.steps,
            batch_size=self.tuning.batch_size,
            lr_peak=scaled(lr_at_64, model.shapes.model.d_model),
            generator=torch.Generator().manual_seed(seed),
            keep_going=self.setting.keep_going,
        )

    @torch.no_grad()
    def _score(self, model: Objective, head: nn.Module) -> float:
        """Return the score on validation items; raise FloatingPointError if it is not finite."""
        model.eval()
        score = self.validate(model, head.eval())
        model.train()
        head.train()
        if not math.isfinite(score):
            raise FloatingPointError("the validation score is not finite")
        return score


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in module.state_dict().items()}


def minimise(
    fit: ContrastiveFit,
    loss: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    n_items: int,
    d_model: int,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> None:
    """Minimise a loss in place by all steps of `bench.tasks.finetune.descend`."""
    for _ in descend(
        loss,
        parameters,
        n_items=n_items,
        steps=fit.steps,
        batch_size=fit.batch_size,
        lr_peak=scaled(fit.lr_at_64, d_model),
        generator=generator,
        keep_going=keep_going,
    ):
        pass
