"""Image-text retrieval among held-out pairs, and the joint space of images and texts that it needs.

Recall at 1, 5 and 10 in both directions (CLIP, arXiv:2103.00020). Protocol `zero_shot` uses the strategy's
own two towers. Protocol `fitted` is open to every strategy: its text features are frozen, and a new vision
tower is fitted to them on the training pairs. Captioning and image classification use the same spaces.
Shapes: N items, S pixels per side, L tokens per caption, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from bench.data.batches import PairRows
from bench.errors import InapplicableError
from bench.models.flops import vision_flops
from bench.models.transformer import initialise
from bench.models.vision import VisionTower, to_float
from bench.objectives.base import Objective
from bench.objectives.contrastive import info_nce
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.finetune import minimise
from bench.tasks.options import ContrastiveFit, JointSpaceOptions, RetrievalOptions
from bench.tasks.probe import hits, in_batches, text_features

RECALLS = (1, 5, 10)
TIED_DIGITS = 9  # cosines of float32 rows that agree to so many decimals are tied


@runtime_checkable
class JointSpace(Protocol):
    """A strategy that embeds images and texts in one space."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> unit rows (B, D)."""
        ...

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> unit rows (B, D)."""
        ...


@dataclass(frozen=True)
class Space:
    """Embedders of whole sets of images and texts, which work batch by batch."""

    images: Callable[[Tensor], Tensor]  # (N, S, S, 3) uint8 -> unit rows (N, D)
    texts: Callable[[Tensor], Tensor]  # (N, L) ids, padded on the right -> unit rows (N, D)


def space(model: Objective, options: JointSpaceOptions, setting: Setting) -> Space:
    """Return the strategy's own joint space, or the fitted one if `options.protocol` is `fitted`."""
    if options.protocol == "fitted":
        return _fitted_space(model, options.fit, setting)
    if not isinstance(model, JointSpace):
        raise InapplicableError("no image tower of its own")
    model.eval()
    return Space(
        images=lambda images: through_tower(model.embed_images, images, model, setting),
        texts=lambda tokens: in_batches(model.embed_texts, tokens, model.device),
    )


def _fitted_space(model: Objective, fit: ContrastiveFit, setting: Setting) -> Space:
    """Fit a new vision tower to standardised, frozen text features on all training pairs."""
    train = PairRows(setting.pairs.train()).all()
    features = text_features(model, train["captions"])
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    partners = setting.labels(torch.arange(len(features))).to(features.device)  # of the images
    image_side, text_side = fit_vision(
        (features[partners] - mean) / std,
        train["images"],
        model,
        fit=fit,
        generator=torch.Generator().manual_seed(setting.seed),
        keep_going=setting.keep_going,
    )
    n_seen = fit.steps * min(fit.batch_size, len(train["images"]))
    setting.meter.add(n_seen * vision_flops(model.shapes.model, model.shapes.image_size))
    return Space(
        images=lambda images: through_tower(image_side, images, model, setting),
        texts=lambda tokens: in_batches(text_side, (text_features(model, tokens) - mean) / std, model.device),
    )


def fit_vision(
    texts: Tensor,
    images: Tensor,
    model: Objective,
    *,
    fit: ContrastiveFit,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> tuple[nn.Module, nn.Module]:
    """Fit a new vision tower to frozen text features (LiT, arXiv:2111.07991, with the sides swapped).

    From standardised features (N, D) and images (N, S, S, 3) uint8, return the image embedder (B, S, S, 3) ->
    (B, D) and the text embedder (B, D) -> (B, D), with unit rows.
    """
    size, device = model.shapes, model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        project = nn.Linear(size.model.d_model, size.model.d_model, bias=False)
        initialise(project, n_layers=1)
        tower = VisionTower(size.model, size.image_size)
    image_side = nn.Sequential(_ToFloat(), tower, _Unit()).to(device)
    text_side = nn.Sequential(project, _Unit()).to(device)
    scale = torch.tensor(1 / fit.temperature, device=device)

    def loss(index: Tensor) -> Tensor:
        rows = info_nce(image_side(images[index].to(device)), text_side(texts[index.to(device)]), scale)
        return rows / len(index)

    minimise(
        fit,
        loss,
        [*image_side.parameters(), *text_side.parameters()],
        n_items=len(images),
        d_model=size.model.d_model,
        generator=generator,
        keep_going=keep_going,
    )
    return image_side.eval(), text_side.eval()


class _ToFloat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return to_float(images)


class _Unit(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Return cosines (N, M) of unit rows (N, D) and (M, D), on CPU; rounding errors become ties."""
    return (images.double() @ texts.double().T).round(decimals=TIED_DIGITS).cpu()


@torch.no_grad()
def through_tower(
    tower: Callable[[Tensor], Tensor], images: Tensor, model: Objective, setting: Setting
) -> Tensor:
    """Apply a vision tower to images (N, S, S, 3) -> (N, D), and count the cost."""
    setting.meter.add(len(images) * vision_flops(model.shapes.model, model.shapes.image_size))
    return in_batches(tower, images, model.device)


class Retrieval(Task):
    """Rank every test caption for every test image, and the reverse."""

    Options = RetrievalOptions
    options: RetrievalOptions

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        joint = space(model, self.options, setting)
        test = PairRows(setting.pairs.test()).all()
        text_rows, image_rows = joint.texts(test["captions"]), joint.images(test["images"])
        similarity = image_rows.double() @ text_rows.double().T  # (N, N)
        return replace(recalls(similarity.cpu()), counts=setting.pairs.skipped)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        return recalls(torch.eye(len(setting.pairs.test()), dtype=torch.float64))


def recalls(similarity: Tensor) -> Outcome:
    """Return the recalls of a square similarity (images x texts) whose diagonal holds the true pairs."""
    n = len(similarity)
    partners = torch.arange(n)
    items = {
        f"{name}_recall_at_{k}": hits(scores, partners, k)
        for k in RECALLS
        for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T))
    }
    items["recall_at_5"] = (items["image_to_text_recall_at_5"] + items["text_to_image_recall_at_5"]) / 2
    chance = {name: min(1.0, int(name.rpartition("_")[2]) / n) for name in items}
    scores = [Measured(name, float(items[name].mean()), chance[name], n) for name in items]
    return Outcome([scores[-1], *scores[:-1]], items)
