"""Captioning (CapPa, arXiv:2306.07915, sec. 3.1; its causal part, Cap): an image, then its text in order.

CapPa's decoder reads the image by cross-attention. Here its patches stand in front of the text, as in SimVLM
(arXiv:2108.10904, sec. 3.1), so that the shared blocks serve as decoder and no weight is the strategy's own
but the vision tower and a projection.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.data.tokenizer import BOS, EOS, MASK, PAD
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, head_flops, patch_flops, rows_per_step, vision_flops
from bench.models.transformer import initialise
from bench.models.vision import VisionTower, n_patches, to_float
from bench.objectives.base import Core, Loss, Modality, ObjectiveOptions, Shapes, TextObjective
from bench.objectives.masking import places

NEVER_WRITTEN = [PAD, MASK, BOS]  # never a target, so nothing is known of their logits


class Captioning(TextObjective):
    """The vision tower's patches, projected, stand before the caption; one causal stack reads both."""

    modality: ClassVar[Modality] = "pairs"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.vision = VisionTower(shapes.model, shapes.image_size)
        self.project_image = nn.Linear(shapes.model.d_model, shapes.model.d_model, bias=False)
        initialise(self.project_image, n_layers=1)

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """The pairs as they are: the target is the caption, shifted."""
        return rows

    def loss(self, batch: Batch) -> Loss:
        """Exact negative log-likelihood of each caption, its EOS included, given the image."""
        captions = batch["captions"]  # (B, L)
        is_padding = captions == PAD
        states = self._states(batch["images"], captions)
        return Loss(self.head.nats(states, captions.masked_fill(is_padding, IGNORED)), (~is_padding).sum())

    def logits(self, images: Tensor, captions: Tensor) -> Tensor:
        """Each caption token from the image and the tokens on its left.

        Args:
            images: (B, S, S, 3) uint8.
            captions: (B, L) ids, padded with PAD on the right.

        Returns:
            (B, L, V); the first of L is computed at the last patch.
        """
        return self.head(self._states(images, captions))

    def _states(self, images: Tensor, captions: Tensor) -> Tensor:
        """What predicts each caption token: (B, L, D)."""
        patches = self._patches(images)  # (B, P, D)
        (n_rows, n_seen, _), length = patches.shape, captions.shape[1]
        before = torch.arange(n_seen - 1, n_seen - 1 + length, device=patches.device)
        at = places(before.expand(n_rows, -1), n_seen + length)
        return self._read(patches, captions, at).view(n_rows, length, -1)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> what the vision tower sees (B, D)."""
        return self.vision(to_float(images))

    @torch.no_grad()
    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        """The likeliest token at each step, up to EOS.

        Args:
            images: (B, S, S, 3) uint8.
            n_new: tokens at most, EOS included.

        Returns:
            (B, n_new) ids, PAD behind EOS.
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
        """States of patches (B, P, D) with a caption (B, L) behind them: (B, P + L, D), or `at` places."""
        embedded = torch.cat([patches, self.backbone.embedding(captions)], dim=1)
        return self.backbone.blocks(embedded, causal=True, at=at)

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Patches and caption positions are processed, the patches by tower and stack.

        Logits are taken at all caption positions; as targets they count padding too: an upper bound.
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
