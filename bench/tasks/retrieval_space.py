"""One space for images and texts, as image-text tasks use it: a strategy's own, or one that is fitted.

Shapes: N items, S pixels a side, L tokens a caption, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bench.data.batches import PairRows
from bench.errors import InapplicableError
from bench.models.flops import vision_flops
from bench.objectives.base import Objective
from bench.tasks.base import Setting
from bench.tasks.probe import Fit, fit_vision, in_batches, text_features

TIED_DIGITS = 9  # of cosines of float32 rows


@runtime_checkable
class JointSpace(Protocol):
    """A strategy that embeds images and texts into one space."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> unit rows (B, D)."""
        ...

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> unit rows (B, D)."""
        ...


@dataclass(frozen=True)
class Space:
    """Both sides over whole sets, a batch at a time."""

    images: Callable[[Tensor], Tensor]  # (N, S, S, 3) uint8 -> unit rows (N, D)
    texts: Callable[[Tensor], Tensor]  # (N, L) ids, padded on the right -> unit rows (N, D)


def space(model: Objective, options: Any, setting: Setting) -> Space:
    """The space that a task's options ask for.

    Args:
        model: the strategy.
        options: `protocol`: fitted, or else the strategy's own space; for fitted `steps`, `batch_size`,
            `lr_at_64` and `temperature` of the fit.
        setting: of the task.

    Raises:
        InapplicableError: the strategy's own space is asked for, and it has none.
    """
    if options.protocol == "fitted":
        return fitted_space(model, options, setting)
    return own_space(model, setting)


def own_space(model: Objective, setting: Setting) -> Space:
    """The strategy's two towers."""
    if not isinstance(model, JointSpace):
        raise InapplicableError("no image tower of its own")
    model.eval()
    return Space(
        images=lambda images: through_tower(model.embed_images, images, model, setting),
        texts=lambda tokens: in_batches(model.embed_texts, tokens, model.device),
    )


def fitted_space(model: Objective, options: Any, setting: Setting) -> Space:
    """Frozen text features, standardised, and a new vision tower fitted to them on all training pairs."""
    train = PairRows(setting.pairs.train()).all()
    features = text_features(model, train["captions"])
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    fit = Fit(options.steps, options.batch_size, options.lr_at_64)
    partners = setting.labels(torch.arange(len(features))).to(features.device)  # of the images
    image_side, text_side = fit_vision(
        (features[partners] - mean) / std,
        train["images"],
        model,
        fit=fit,
        temperature=options.temperature,
        generator=torch.Generator().manual_seed(setting.seed),
        keep_going=setting.keep_going,
    )
    n_seen = fit.steps * min(fit.batch_size, len(train["images"]))
    setting.meter.add(n_seen * vision_flops(model.shapes.model, model.shapes.image_size))
    return Space(
        images=lambda images: through_tower(image_side, images, model, setting),
        texts=lambda tokens: in_batches(text_side, (text_features(model, tokens) - mean) / std, model.device),
    )


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines (N, M) of unit rows (N, D) and (M, D), on CPU; what differs by rounding alone is tied."""
    return (images.double() @ texts.double().T).round(decimals=TIED_DIGITS).cpu()


@torch.no_grad()
def through_tower(
    tower: Callable[[Tensor], Tensor], images: Tensor, model: Objective, setting: Setting
) -> Tensor:
    """`tower` over images (N, S, S, 3) -> (N, D), with its cost counted."""
    setting.meter.add(len(images) * vision_flops(model.shapes.model, model.shapes.image_size))
    return in_batches(tower, images, model.device)
