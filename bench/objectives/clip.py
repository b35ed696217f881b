"""Contrastive image-text pretraining (CLIP, arXiv:2103.00020): ViT and text backbone, InfoNCE."""

import math
from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.objectives.base import Loss, ObjectiveOptions, Shapes
from bench.objectives.contrastive import TwoTowers, info_nce


class Clip(TwoTowers):
    """Classify which text of the step belongs to each image, and which image to each text."""

    n_directions = 2

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """The learned temperature."""

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
        self.log_scale = nn.Parameter(torch.tensor([-math.log(options.initial_temperature)]))

    def loss(self, batch: Batch) -> Loss:
        """Return the symmetric InfoNCE over the pairs of all ranks; the count is pairs."""
        images, texts = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        scale = self.log_scale.clamp(max=-math.log(self.options.min_temperature)).exp()
        return Loss(info_nce(images, texts, scale), len(images))
