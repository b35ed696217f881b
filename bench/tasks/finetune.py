"""Fine-tuning to a plateau, equal for every strategy: a grid of learning rates, several fits, early stopping.

A fit keeps its peak rate until the validation score has not improved for some validations, and then cools
down; the best state is kept. The number of steps is therefore that which a checkpoint needs, and no schedule
has to be guessed (Hägele et al. 2024, arXiv:2405.18392, for the cooldown). Every rate of the grid is tried
with one fit; the other fits are made at the best rate. Follows Dodge et al. 2020 (arXiv:2002.06305) and
Mosbach et al. 2021 (arXiv:2006.04884): a checkpoint is fine-tuned several times, long enough and with
warm-up, and the share of failed fits is a result of its own. Shapes: N items, B of them in a batch.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from bench.objectives.base import Objective
from bench.records import Fit
from bench.tasks.base import Setting
from bench.tasks.options import ContrastiveFit, Tuning

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1  # of all steps, where their number is given
CLIP_NORM = 1.0
COOLDOWN_SHARE = 0.2  # of the steps before it

Head = Callable[[], nn.Module]
TuningLoss = Callable[[Objective, nn.Module, Tensor], Tensor]
Validate = Callable[[Objective, nn.Module], float]
Schedule = Callable[[int], float]  # step from 0 -> share of the peak rate


def scaled(lr_at_64: float, d_model: int) -> float:
    """Scale a peak rate in inverse proportion to the width, as in pretraining (`bench.objectives.optim`)."""
    return lr_at_64 * 64 / d_model


def warm_up_and_decay(steps: int) -> Schedule:
    """Return linear warm-up, then linear decay to 0 after `steps` steps."""
    warmup = max(1, int(steps * WARMUP_SHARE))
    return lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


@dataclass
class PlateauSchedule:
    """Linear warm-up, a constant rate until `cool_down` is called, then linear decay to 0.

    Attributes:
        warmup: steps of the warm-up.
        cooldown: first step of the cooldown and its number of steps; None: not yet.
    """

    warmup: int
    cooldown: tuple[int, int] | None = None

    def cool_down(self, done: int) -> int:
        """Begin the cooldown after `done` steps; return the number of all steps."""
        self.cooldown = done, max(1, round(COOLDOWN_SHARE * done))
        return sum(self.cooldown)

    def __call__(self, step: int) -> float:
        """Return the share of the peak rate at a step, from 0."""
        if self.cooldown is not None:
            start, length = self.cooldown
            return max(0.0, 1 - (step - start) / length)
        return min(1.0, (step + 1) / self.warmup)


def descend(
    loss: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    n_items: int,
    steps: int,
    batch_size: int,
    lr_peak: float,
    schedule: Schedule,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> Iterator[int]:
    """Minimise a mean loss of items (B,) in place by AdamW.

    Each item is used once before any is used twice, in an order drawn from `generator`. Yields the number of
    completed steps; the caller may inspect the parameters between steps, and stop early.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr_peak, weight_decay=WEIGHT_DECAY, fused=True)
    batch = min(batch_size, n_items)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        keep_going()
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(n_items, generator=generator)])
        index, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * lr_peak
        optimizer.zero_grad()
        value = loss(index)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the fit's loss is not finite at step {step}; lower its learning rate")
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        yield step + 1


@dataclass
class Course:
    """What became of a fit to a plateau.

    Attributes:
        curve: completed steps and validation score of each validation.
        highest: the best validation score, at least the floor.
        stopped: by the plateau, by the cap of steps, or since it diverged.
    """

    highest: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    stopped: Literal["plateau", "cap", "diverged"] = "cap"

    @property
    def steps(self) -> int:
        """The number of completed steps."""
        return self.curve[-1][0] if self.curve else 0


def fit_to_plateau(
    loss: Callable[[Tensor], Tensor],
    parts: nn.Module,
    validate: Callable[[], float],
    *,
    tuning: Tuning,
    n_items: int,
    lr_peak: float,
    floor: float,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> Course:
    """Train `parts` in place until validation stops improving, and leave them in their best state.

    The rate is constant until `patience` validations in a row brought no improvement, or until the cooldown
    has to begin to end within `steps`; then it falls to 0. States that do not exceed `floor` are not kept.
    """
    schedule = PlateauSchedule(tuning.validate_every)
    latest = max(1, math.floor(tuning.steps / (1 + COOLDOWN_SHARE)))  # start of the cooldown
    end, waited, course, kept = tuning.steps, 0, Course(floor), _state(parts)
    steps = descend(
        loss,
        list(parts.parameters()),
        n_items=n_items,
        steps=tuning.steps,
        batch_size=tuning.batch_size,
        lr_peak=lr_peak,
        schedule=schedule,
        generator=generator,
        keep_going=keep_going,
    )
    try:
        for done in steps:
            if done % tuning.validate_every == 0 or done in (latest, end):
                score = validate()
                course.curve.append((done, score))
                waited = 0 if score > course.highest else waited + 1
                if score > course.highest:
                    course.highest, kept = score, _state(parts)
            if schedule.cooldown is None and (waited >= tuning.patience or done == latest):
                course.stopped = "plateau" if waited >= tuning.patience else "cap"
                end = schedule.cool_down(done)
            if done == end:
                break
    except FloatingPointError:
        course.stopped = "diverged"
    parts.load_state_dict(kept)
    parts.zero_grad()
    return course


@dataclass(frozen=True, eq=False)
class Tuned:
    """One fine-tuned model in its best state, in evaluation mode.

    Attributes:
        course: validation scores and the end of the fit.
        failed: the fit diverged, or never exceeded the validation score of a constant predictor. In the
            second case the model is in its initial state, and `validation` is the constant predictor's score.
    """

    model: Objective
    head: nn.Module
    lr_at_64: float
    course: Course
    failed: bool

    @property
    def validation(self) -> float:
        """The validation score of the best state, at least the constant predictor's."""
        return self.course.highest

    @property
    def steps(self) -> int:
        """The number of completed steps."""
        return self.course.steps


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
    n_labels: int | None = None,
) -> list[Tuned]:
    """Train copies of the whole backbone, each with a new head; `model` itself is not changed.

    Every rate of the grid is tried with the first fit, which has the same order of items at all rates. The
    rate with the highest validation score is chosen, the first of equal ones, among those at which it did not
    diverge. The other fits are made at this rate.

    Args:
        head: makes a head; torch's global generator is seeded for each fit while it is called.
        loss: mean loss of a model and a head on the training items with indices (B,).
        validate: a model's score on validation items, without gradients; higher is better.
        n_items: the number of training items, N.
        setting: of the task; every fit is added to its `fits`.
        floor: the validation score of a constant predictor.
        n_labels: the label budget, for the record.

    Returns:
        One result per fit, all at the chosen rate.

    Raises:
        FloatingPointError: the first fit diverged at every rate.
    """
    trial = _Trial(head, loss, validate, n_items, tuning, setting, floor)
    root = torch.Generator().manual_seed(setting.seed)
    first, *others = torch.randint(2**62, (tuning.n_fits,), generator=root).tolist()
    rates = tuning.lr_grid
    trials = [trial.run(model, rate, first) for rate in rates]
    sound = [fit for fit in trials if fit.course.stopped != "diverged"]
    if not sound:
        raise FloatingPointError(f"every fine-tuning diverged; lower task.*.lr_grid={list(rates)}")
    best = max(sound, key=lambda fit: fit.validation)
    fits = [best, *(trial.run(model, best.lr_at_64, seed) for seed in others)]
    setting.fits.extend(_recorded(fit, fit in fits, n_labels) for fit in [*trials, *fits[1:]])
    return fits


def _recorded(fit: Tuned, is_chosen: bool, n_labels: int | None) -> Fit:
    return Fit(n_labels, fit.lr_at_64, is_chosen, fit.course.stopped, tuple(fit.course.curve))


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

    def run(self, model: Objective, lr_at_64: float, seed: int) -> Tuned:
        """Fit a copy; return it in its best state."""
        tuned = copy.deepcopy(model).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self.head().to(tuned.device).train()
        course = fit_to_plateau(
            lambda index: self.loss(tuned, head, index),
            nn.ModuleList([tuned.backbone, head]),
            lambda: self._score(tuned, head),
            tuning=self.tuning,
            n_items=self.n_items,
            lr_peak=scaled(lr_at_64, model.shapes.model.d_model),
            floor=self.floor,
            generator=torch.Generator().manual_seed(seed),
            keep_going=self.setting.keep_going,
        )
        failed = course.stopped == "diverged" or course.highest <= self.floor
        return Tuned(tuned.eval(), head.eval(), lr_at_64, course, failed)

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
        schedule=warm_up_and_decay(fit.steps),
        generator=generator,
        keep_going=keep_going,
    ):
        pass
