"""Contrastive image-text pretraining: the two towers and the losses that CLIP and SigLIP share."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.models.flops import StepCost, blocks_flops, patch_flops, rows_per_step, vision_flops
from bench.models.transformer import initialise
from bench.models.vision import VisionTower, n_patches, to_float
from bench.objectives.base import Modality, Objective, ObjectiveOptions, Shapes


class TwoTowers(Objective):
    """A vision tower and, as text tower, the shared backbone, each with a linear projection into one space.

    Subclasses implement `loss` over the unit rows of both.
    """

    modality: ClassVar[Modality] = "pairs"
    couples_rows = True
    n_directions: ClassVar[int]  # products of all images with all texts in the loss

    def __init__(self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        model = shapes.model
        self.vision = VisionTower(model, shapes.image_size)
        self.project_image = nn.Linear(model.d_model, model.d_model, bias=False)
        self.project_text = nn.Linear(model.d_model, model.d_model, bias=False)
        for projection in (self.project_image, self.project_text):
            initialise(projection, n_layers=1)

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Return the pairs unchanged: the negatives of a pair are the other rows."""
        return rows

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count patches and caption tokens; each image and each text is one target."""
        model, length = self.shapes.model, self.shapes.caption_length
        tokens = n_patches(model, self.shapes.image_size) + length
        rows = rows_per_step(tokens_per_step, tokens)
        projections = 2 * 2 * model.d_model**2
        similarities = self.n_directions * 2 * rows * model.d_model  # of one row with all rows
        towers = blocks_flops(model, length) + vision_flops(model, self.shapes.image_size)
        forward = towers + projections + similarities
        pixels = patch_flops(model, self.shapes.image_size)
        return StepCost.of_row(rows, tokens, 2, forward, data_flops=pixels)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images, before the projection: (B, S, S, 3) uint8 -> (B, D)."""
        return self.vision(to_float(images))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images in the shared space: (B, S, S, 3) uint8 -> unit rows (B, D)."""
        return F.normalize(self.project_image(self.image_features(images)), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Embed texts in the shared space: (B, L) ids -> unit rows (B, D)."""
        return F.normalize(self.project_text(self.features(tokens)), dim=-1)


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss (CLIP, arXiv:2103.00020, fig. 3), summed over this rank's rows.

    It is the mean of both directions' cross-entropies, in nats; negatives come from all ranks.

    Args:
        images, texts: (B, D) unit rows of this rank; row i of one belongs to row i of the other.
        scale: scalar, the inverse temperature.
    """
    all_images, all_texts = gather_rows(images), gather_rows(texts)  # (W B, D)
    own = torch.arange(len(images), device=images.device) + _rank() * len(images)
    image_to_text = F.cross_entropy(scale * images @ all_texts.T, own, reduction="sum")
    text_to_image = F.cross_entropy(scale * texts @ all_images.T, own, reduction="sum")
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the pairwise sigmoid loss (SigLIP, arXiv:2303.15343, sec. 3.2), summed over this rank's images.

    Every image is paired with the texts of all ranks.

    Args:
        images, texts: (B, D) unit rows of this rank; row i of one belongs to row i of the other.
        scale: scalar, the inverse temperature.
        bias: scalar, added to the logits as in the paper's algorithm 1; its eq. 1 has the other sign.
    """
    chunks = gather_rows(texts).split(len(images))
    return chunked_sigmoid_loss(images, chunks, _rank(), scale, bias)


def chunked_sigmoid_loss(
    images: Tensor, chunks: Sequence[Tensor], own: int, scale: Tensor, bias: Tensor
) -> Tensor:
    """Return the sigmoid loss in nats, computed with the logits of one chunk of texts at a time (sec. 3.3).

    chunks: texts, (B, D) each; own: the chunk whose row i belongs to image i, the others are negatives.
    """
    if len(chunks) == 1:
        return _sigmoid_chunk(images, chunks[0], True, scale, bias)
    terms = [  # recomputed in backward, which would otherwise keep the logits of all chunks
        checkpoint(_sigmoid_chunk, images, texts, i == own, scale, bias, use_reentrant=False)
        for i, texts in enumerate(chunks)
    ]
    return torch.stack(terms).sum()


def _sigmoid_chunk(images: Tensor, texts: Tensor, paired: bool, scale: Tensor, bias: Tensor) -> Tensor:
    """Sum over all pairs of one chunk; `paired`: row i of the texts belongs to row i of the images."""
    logits = scale * images @ texts.T + bias  # (B, B)
    partners = torch.eye(len(images), dtype=images.dtype, device=images.device) * paired
    return -F.logsigmoid((2 * partners - 1) * logits).sum()


def gather_rows(rows: Tensor) -> Tensor:
    """Gather rows of all ranks in rank order, with gradient to every rank: (B, D) -> (W B, D)."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return torch.cat(dist_nn.all_gather(rows.contiguous()))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
