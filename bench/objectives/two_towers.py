"""What contrastive image-text strategies share: two towers of one preset that meet in one space."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.models.flops import StepCost, blocks_flops, patch_flops, rows_per_step, vision_flops
from bench.models.transformer import initialise
from bench.models.vision import VisionTower, n_patches, to_float
from bench.objectives.base import Modality, Objective, ObjectiveOptions, Shapes


class TwoTowers(Objective):
    """A vision tower and, as text tower, the shared backbone, each with a linear projection.

    A subclass implements `loss` over the unit rows of both.
    """

    modality: ClassVar[Modality] = "pairs"
    couples_rows = True
    n_directions: ClassVar[int]  # products of all images with all texts that the loss takes

    def __init__(self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        model = shapes.model
        self.vision = VisionTower(model, shapes.image_size)
        self.project_image = nn.Linear(model.d_model, model.d_model, bias=False)
        self.project_text = nn.Linear(model.d_model, model.d_model, bias=False)
        for projection in (self.project_image, self.project_text):
            initialise(projection, n_layers=1)

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """The pairs as they are: their negatives are the other rows."""
        return rows

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Patches and caption positions are processed; each image and each text has a partner to find."""
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
        """(B, S, S, 3) uint8 -> what the tower sees (B, D), before the joint space."""
        return self.vision(to_float(images))

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> unit rows (B, D) of the joint space."""
        return F.normalize(self.project_image(self.image_features(images)), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> unit rows (B, D) of the joint space."""
        return F.normalize(self.project_text(self.features(tokens)), dim=-1)
