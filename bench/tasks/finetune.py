"""Fine-tuning, the same for every strategy: several fits, a grid of learning rates, early stopping.

As Dodge et al. 2020 (arXiv:2002.06305) and Mosbach et al. 2021 (arXiv:2006.04884) ask for: a checkpoint is
fine-tuned several times, with warm-up and decay, and the share of fits that fail is a result of its own.
Shapes: N items, B of them in a batch.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.objectives.base import Objective
from bench.tasks.base import Setting
from bench.tasks.descent import descend, scaled

Head = Callable[[], nn.Module]
TuningLoss = Callable[[Objective, nn.Module, Tensor], Tensor]
Validate = Callable[[Objective, nn.Module], float]


@dataclass(frozen=True)
class Tuning:
    """How fine-tuning is done, for every strategy, `scratch` included. A task's options may inherit it."""

    steps: int = MISSING  # at most
    batch_size: int = MISSING
    lr_grid: list[float] = MISSING  # peaks at width 64; one is chosen on validation items, mean over fits
    n_fits: int = MISSING  # fine-tunings of one checkpoint, each with its own order of items
    n_validations: int = MISSING  # along a fit; the best state is kept
    patience: int = MISSING  # validations without gain after which a fit stops

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "n_fits", "n_validations", "patience"):
            if getattr(self, key) < 1:
                raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose 1 or more")
        if not self.lr_grid or not all(0 < lr < math.inf for lr in self.lr_grid):
            raise ConfigError(f"task.*.lr_grid={list(self.lr_grid)}: choose one or more rates above 0")
        if self.n_validations > self.steps:
            raise ConfigError(f"task.*.n_validations={self.n_validations}: choose at most steps={self.steps}")


@dataclass(frozen=True)
class Tuned:
    """One fine-tuning in its best state, in evaluation mode.

    `validation` is that state's score. `failed`: the fit diverged, or never got above what a constant
    predictor scores on the validation items; one that never did is given back as it started, with that score.
    """

    model: Objective
    head: nn.Module
    lr_at_64: float
    steps: int  # that were done
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
    """Train copies of the whole backbone, each with a new head; `model` is left as it was.

    Every rate of the grid is tried with every fit, and of all rates each fit sees the items in its own order.
    A rate is worth its mean over fits on the validation items, where a fit that diverged counts `floor`; of
    equal ones the first is chosen.

    Args:
        head: makes a head from torch's global generator, which is the fit's own while it is called.
        loss: of a model, a head and the indices (B,) of training items: their mean.
        validate: a model's score on validation items, without gradients; higher is better.
        n_items: training items, N.
        floor: the validation score of a constant predictor.

    Returns:
        One per fit, all at the chosen rate.

    Raises:
        FloatingPointError: every fit of every rate diverged.
    """
    trial = _Trial(head, loss, validate, n_items, tuning, setting, floor)
    root = torch.Generator().manual_seed(setting.seed)
    seeds = torch.randint(2**62, (tuning.n_fits,), generator=root).tolist()
    best: tuple[float, list[Tuned]] | None = None
    for lr_at_64 in tuning.lr_grid:
        fits = [trial.run(model, lr_at_64, seed) for seed in seeds]
        if all(diverged for _, diverged in fits):
            continue
        worth = sum(floor if diverged else f.validation for f, diverged in fits)
        if best is None or worth > best[0]:
            best = worth, [fit for fit, _ in fits]
    if best is None:
        raise FloatingPointError(f"every fine-tuning diverged; lower task.*.lr_grid={list(tuning.lr_grid)}")
    return best[1]


@dataclass(frozen=True)
class _Trial:
    """What the fits of a fine-tuning share; see `fine_tune`."""

    head: Head
    loss: TuningLoss
    validate: Validate
    n_items: int
    tuning: Tuning
    setting: Setting
    floor: float

    def run(self, model: Objective, lr_at_64: float, seed: int) -> tuple[Tuned, bool]:
        """One fit of a copy, and whether it diverged; its best state until then is kept."""
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
        """On the validation items.

        Raises:
            FloatingPointError: no number.
        """
        model.eval()
        score = self.validate(model, head.eval())
        model.train()
        head.train()
        if not math.isfinite(score):
            raise FloatingPointError("the validation score is not finite")
        return score


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in module.state_dict().items()}
