"""Image-text retrieval among held-out pairs, and the joint space of images and texts that it needs.

Recall at 1, 5 and 10 in both directions (CLIP, arXiv:2103.00020), among distinct images and distinct
captions: any caption of an image is right for it, and any image of a caption. Protocol `zero_shot` uses the
strategy's own two towers. Protocol `fitted` is open to every strategy: its text features are frozen, and a
new vision tower is fitted to them on the training pairs. Captioning and image classification use the same
spaces.
Shapes: N items, S pixels per side, L tokens per caption, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from bench.data.batches import PairRows
from bench.data.pairs import PairArray
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
        test = partners(setting.pairs.test())
        text_rows, image_rows = joint.texts(test.captions), joint.images(test.images)
        similarity = image_rows.double() @ text_rows.double().T  # (I, C)
        return replace(recalls(similarity.cpu(), test.belong), counts=setting.pairs.skipped)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        belong = partners(setting.pairs.test()).belong
        return recalls(belong.double(), belong)


@dataclass(frozen=True)
class Partners:
    """The distinct images and captions of a split, in the order of their first pairs."""

    images: Tensor  # (I, S, S, 3) uint8
    captions: Tensor  # (C, L) ids; captions that are equal once they are cut to L tokens are one
    belong: Tensor  # (I, C) bool: they are a pair


def partners(pairs: PairArray) -> Partners:
    """Return each image and each caption once, and which belong together."""
    (image_of, images), (caption_of, captions) = _distinct(pairs.images), _distinct(pairs.captions)
    belong = torch.zeros(len(images), len(captions), dtype=torch.bool)
    belong[image_of, caption_of] = True
    rows = PairRows(pairs)
    return Partners(rows.read(images)["images"], rows.read(captions)["captions"], belong)


def _distinct(rows: NDArray[Any]) -> tuple[list[int], NDArray[np.int64]]:
    """Return the number of each row's content, in order of appearance, and the first row of each content."""
    numbers: dict[bytes, int] = {}
    of_row = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
    return of_row, np.unique(of_row, return_index=True)[1]


def recalls(similarity: Tensor, belong: Tensor) -> Outcome:
    """Return the recalls of similarities (I images, C captions), given which belong together (I, C).

    A query is a hit if any of its partners is among the K best, as on Flickr30k and COCO (Karpathy & Fei-Fei
    2015, arXiv:1412.2306). The items of `recall_at_5` are images: the mean of an image's own hit and of those
    of its captions, each of which counts once in all.
    """
    sides = {"image_to_text": (similarity, belong), "text_to_image": (similarity.T, belong.T)}
    items, chance = dict[str, NDArray[np.float64]](), dict[str, float]()
    for k in RECALLS:
        for name, (scores, right) in sides.items():
            items[f"{name}_recall_at_{k}"] = any_hit(scores, right, k)
            uninformed = any_hit(torch.zeros_like(scores), right, k)
            chance[f"{name}_recall_at_{k}"] = math.fsum(uninformed) / len(uninformed)
    by_image, by_caption = (f"{name}_recall_at_5" for name in sides)
    share = (belong / belong.sum(dim=0)).double().numpy() * len(belong) / belong.shape[1]  # (I, C)
    items["recall_at_5"] = (items[by_image] + share @ items[by_caption]) / 2
    chance["recall_at_5"] = (chance[by_image] + chance[by_caption]) / 2
    measured = [Measured(name, float(items[name].mean()), chance[name], len(items[name])) for name in items]
    return Outcome([measured[-1], *measured[:-1]], items)


def any_hit(scores: Tensor, belong: Tensor, k: int) -> NDArray[np.float64]:
    """Return whether any right candidate is among the k best of scores (N, C); ties count their expectation.

    belong: (N, C) bool, at least one candidate for each query. With one right candidate this is `hits`.
    """
    best, place = scores.masked_fill(~belong, -math.inf).max(dim=1)
    tied = scores == best[:, None]
    n_tied, n_right = tied.sum(dim=1), (tied & belong).sum(dim=1)
    n_free = k - (scores > best[:, None]).sum(dim=1)  # places that the tied candidates fill at random
    missed = torch.ones(len(scores), dtype=torch.float64)
    for i in range(k):
        wrong = (n_tied - n_right - i).clamp(min=0) / (n_tied - i).clamp(min=1).double()
        missed = torch.where(i < n_free, missed * wrong, missed)
    return np.where(n_right > 1, 1 - missed, hits(scores, place, k))
