"""Contrastive image-text pretraining (CLIP, arXiv:2103.00020): ViT and text backbone, InfoNCE."""

import math

import torch
from torch import nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.objectives.base import Loss, Shapes
from bench.objectives.contrastive import TwoTowers, info_nce
from bench.objectives.options import ClipOptions


class Clip(TwoTowers):
    """Classify which text of the step belongs to each image, and which image to each text."""

    n_directions = 2

    Options = ClipOptions
    options: ClipOptions

    def __init__(self, options: ClipOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(options.initial_temperature)]))

    def loss(self, batch: Batch) -> Loss:
        """Return the symmetric InfoNCE over the pairs of all ranks; the count is pairs."""
        images, texts = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        scale = self.log_scale.clamp(max=-math.log(self.options.min_temperature)).exp()
        return Loss(info_nce(images, texts, scale), len(images))
