"""Image-text pretraining with a sigmoid loss per pair (SigLIP, arXiv:2303.15343), without a softmax."""

import math
from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.objectives.base import Loss, ObjectiveOptions, Shapes
from bench.objectives.contrastive import TwoTowers, sigmoid_loss


class SigLip(TwoTowers):
    """Classify for every image and every text of the step whether they belong together."""

    n_directions = 1

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Scale and bias of the logits; both are learned, the scale through its logarithm."""

        initial_scale: float = MISSING  # the paper's t = exp(t'), an inverse temperature
        initial_bias: float = MISSING  # the paper's b: how rare a matching pair is among all pairs

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.initial_scale > 0:
                raise ConfigError(f"strategy.initial_scale={self.initial_scale}: use a number above 0")

    options: Options

    def __init__(self, options: Options, *, shapes: Shapes, optimizer: Optim) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer)
        self.log_scale = nn.Parameter(torch.tensor([math.log(options.initial_scale)]))
        self.bias = nn.Parameter(torch.tensor([float(options.initial_bias)]))

    def loss(self, batch: Batch) -> Loss:
        """Return the sigmoid loss of this rank's images with the texts of all ranks; the count is images."""
        images, texts = self.embed_images(batch["images"]), self.embed_texts(batch["captions"])
        return Loss(sigmoid_loss(images, texts, self.log_scale.exp(), self.bias), len(images))
