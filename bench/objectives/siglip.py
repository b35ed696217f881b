"""Image-text pretraining with a sigmoid loss per pair (SigLIP, arXiv:2303.15343), without a softmax."""

import math

import torch
from torch import nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.objectives.base import Loss, Shapes
from bench.objectives.contrastive import TwoTowers, sigmoid_loss
from bench.objectives.options import SigLipOptions


class SigLip(TwoTowers):
    """Classify for every image and every text of the step whether they belong together."""

    n_directions = 1

    Options = SigLipOptions
    options: SigLipOptions

    def __init__(self, options: SigLipOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))
        self.bias = nn.Parameter(torch.tensor([float(options.initial_bias)]))

    def loss(self, batch: Batch) -> Loss:
        """Return the sigmoid loss of this rank's images with the texts of all ranks; the count is images."""
        images, texts = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        return Loss(sigmoid_loss(images, texts, self.log_scale.exp(), self.bias), len(images))
