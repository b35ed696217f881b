"""Captioning (CapPa, arXiv:2306.07915, sec. 3.1; its causal part, Cap): predict a text from its image.

CapPa's decoder reads the image by cross-attention. Here the image's patches stand in front of the text, as in
SimVLM (arXiv:2108.10904, sec. 3.1), so that the shared blocks serve as the decoder: the strategy adds only a
vision tower and a projection.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.data.tokenizer import BOS, EOS, MASK, PAD
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, head_flops, patch_flops, rows_per_step, vision_flops
from bench.models.transformer import flat_indices, initialise
from bench.models.vision import VisionTower, n_patches, to_float
from bench.objectives.base import Core, Loss, Modality, ObjectiveOptions, Shapes, TextObjective
from bench.objectives.options import PairOptions

NEVER_WRITTEN = [PAD, MASK, BOS]  # never a target in training, so their logits are arbitrary


class Captioning(TextObjective):
    """One causal stack reads the projected patches of the vision tower, then the caption."""

    modality: ClassVar[Modality] = "pairs"
    Options = PairOptions

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.vision = VisionTower(shapes.model, shapes.image_size)
        self.project_image = nn.Linear(shapes.model.d_model, shapes.model.d_model, bias=False)
        initialise(self.project_image, n_layers=1)

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Return the pairs unchanged: the target is the caption, shifted."""
        return rows

    def loss(self, batch: Batch) -> Loss:
        """Return the exact negative log-likelihood of each caption with its EOS, given the image."""
        captions = batch["captions"]  # (B, L)
        is_padding = captions == PAD
        states, targets = self._states(batch["images"], captions), captions.masked_fill(is_padding, IGNORED)
        return Loss(self.head.summed_nll(states, targets), (~is_padding).sum())

    def logits(self, images: Tensor, captions: Tensor) -> Tensor:
        """Predict each caption token from the image and the tokens on its left.

        Args:
            images: (B, S, S, 3) uint8.
            captions: (B, L) ids, padded with PAD on the right.

        Returns:
            (B, L, V); the first of L is predicted from the last patch.
        """
        return self.head(self._states(images, captions))

    def _states(self, images: Tensor, captions: Tensor) -> Tensor:
        """Return the states from which each caption token is predicted: (B, L, D)."""
        patches = self._patches(images)  # (B, P, D)
        (n_rows, n_read, _), length = patches.shape, captions.shape[1]
        before = torch.arange(n_read - 1, n_read - 1 + length, device=patches.device)
        at = flat_indices(before.expand(n_rows, -1), n_read + length)
        return self._read(patches, captions, at).view(n_rows, length, -1)

    def image_features(self, images: Tensor) -> Tensor:
        """Encode images by the vision tower: (B, S, S, 3) uint8 -> (B, D)."""
        return self.vision(to_float(images))

    @torch.no_grad()
    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        """Write the most likely token at each step, up to EOS.

        Args:
            images: (B, S, S, 3) uint8.
            n_new: the most tokens to write, EOS included.

        Returns:
            (B, n_new) ids, PAD after EOS.
        """
        patches = self._patches(images)
        captions = torch.full((len(images), n_new), PAD, device=patches.device)
        has_ended = torch.zeros(len(images), dtype=torch.bool, device=patches.device)
        for t in range(n_new):
            logits = self.head(self._read(patches, captions[:, :t])[:, -1])  # (B, V)
            logits[:, NEVER_WRITTEN] = -torch.inf
            captions[:, t] = logits.argmax(dim=1).masked_fill(has_ended, PAD)
            has_ended |= captions[:, t] == EOS
            if has_ended.all():
                break
        return captions

    def _patches(self, images: Tensor) -> Tensor:
        return self.project_image(self.vision.hidden(to_float(images)))

    def _read(self, patches: Tensor, captions: Tensor, at: Tensor | None = None) -> Tensor:
        """Return states of patches (B, P, D) followed by a caption (B, L): (B, P + L, D), or those `at`."""
        embedded = torch.cat([patches, self.backbone.embedding(captions)], dim=1)
        return self.backbone.blocks(embedded, causal=True, at=at)

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count patches, read by tower and stack, and caption tokens.

        Logits are computed at all caption tokens; as targets, padding is counted too: an upper bound.
        """
        model, length = self.shapes.model, self.shapes.caption_length
        patches = n_patches(model, self.shapes.image_size)
        tokens = patches + length
        projection = 2 * patches * model.d_model**2
        stack = blocks_flops(model, tokens, length) + head_flops(
            model, self.backbone.embedding.num_embeddings, length
        )
        forward = vision_flops(model, self.shapes.image_size) + projection + stack
        pixels = patch_flops(model, self.shapes.image_size)
        rows = rows_per_step(tokens_per_step, tokens)
        return StepCost.of_row(rows, tokens, length, forward, data_flops=pixels)
