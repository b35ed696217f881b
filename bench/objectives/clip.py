"""Contrastive image-text pretraining (CLIP, arXiv:2103.00020): ViT and text backbone, InfoNCE."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor, nn

from bench.backbones.transformer import initialise
from bench.backbones.vision import VisionTower, n_patches, to_float
from bench.budget import StepCost, blocks_flops, patch_flops, rows_per_step, vision_flops
from bench.contrastive import info_nce
from bench.errors import ConfigError
from bench.objectives.base import Batch, Loss, Modality, Objective, ObjectiveOptions, Shapes
from bench.schema import Optim


class Clip(Objective):
    """Two towers of the same preset that meet in one space; the text tower is the shared backbone."""

    modality: ClassVar[Modality] = "pairs"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """The temperature; it is learned."""

        initial_temperature: float = MISSING
        min_temperature: float = MISSING  # learned values are clipped here

        def __post_init__(self) -> None:
            super().__post_init__()
            for key in ("initial_temperature", "min_temperature"):
                if getattr(self, key) <= 0:
                    raise ConfigError(f"strategy.{key}={getattr(self, key)}: use a number above 0")

    options: Options

    def __init__(self, options: Options, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        model = shapes.model
        self.vision = VisionTower(model, shapes.image_size)
        self.project_image = nn.Linear(model.d_model, model.d_model, bias=False)
        self.project_text = nn.Linear(model.d_model, model.d_model, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(options.initial_temperature)))
        for projection in (self.project_image, self.project_text):
            initialise(projection, n_layers=1)

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """The pairs as they are: their negatives are the other rows."""
        return rows

    def loss(self, batch: Batch) -> Loss:
        """Symmetric InfoNCE over the pairs of all ranks; the count is pairs."""
        images, texts = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        scale = self.log_scale.clamp(max=-math.log(self.options.min_temperature)).exp()
        return Loss(info_nce(images, texts, scale), len(images))

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Patches and caption positions are processed; each image and each text predicts its partner."""
        model, length = self.shapes.model, self.shapes.caption_length
        tokens = n_patches(model, self.shapes.image_size) + length
        rows = rows_per_step(tokens_per_step, tokens)
        projections = 2 * 2 * model.d_model**2
        similarities = 2 * 2 * rows * model.d_model  # of one pair with all rows, both ways
        towers = blocks_flops(model, length) + vision_flops(model, self.shapes.image_size)
        forward = towers + projections + similarities
        pixels = patch_flops(model, self.shapes.image_size)
        return StepCost.of_row(rows, tokens, 2, forward, data_flops=pixels)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> unit rows (B, D) of the joint space."""
        return F.normalize(self.project_image(self.vision(to_float(images))), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> unit rows (B, D) of the joint space."""
        return F.normalize(self.project_text(self.features(tokens)), dim=-1)
