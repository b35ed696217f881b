"""The vision tower: patch embedding (ViT, arXiv:2010.11929) in front of the backbone's blocks."""

import torch
from torch import Tensor, nn

from bench.config.schema import Model
from bench.errors import ConfigError
from bench.models.transformer import Blocks, initialise, truncated_normal


class VisionTower(nn.Module):
    """Encode images as patch states. Patches have learned position embeddings, besides the blocks' RoPE."""

    def __init__(self, model: Model, image_size: int) -> None:
        super().__init__()
        if image_size % model.patch_size:
            raise ConfigError(
                f"model.patch_size={model.patch_size} does not divide corpus.pairs.image_size={image_size}; "
                "choose a divisor"
            )
        self.patches = nn.Conv2d(3, model.d_model, model.patch_size, stride=model.patch_size, bias=False)
        self.position = nn.Parameter(torch.zeros(n_patches(model, image_size), model.d_model))
        self.blocks = Blocks(model)
        initialise(self, model.n_layers)
        truncated_normal(self.position)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) float in [-1, 1] -> mean over patches (B, D)."""
        return self.hidden(images).mean(dim=1)

    def hidden(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) float in [-1, 1] -> hidden states of the P patches (B, P, D)."""
        images = images.to(self.position.dtype)  # float64 in runs that compute in it
        embedded = self.patches(images).flatten(2).transpose(1, 2) + self.position  # (B, P, D)
        return self.blocks(embedded)


def n_patches(model: Model, image_size: int) -> int:
    """Return the number of patches of a square image."""
    return (image_size // model.patch_size) ** 2


def to_float(images: Tensor) -> Tensor:
    """Convert images: (B, S, S, 3) uint8 -> (B, 3, S, S) float in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
