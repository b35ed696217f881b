"""Replaced token detection (ELECTRA, arXiv:2003.10555, sec. 2): which tokens did a small MLM make up?

A generator fills hidden positions; the discriminator, which is the backbone, judges every position. No
gradient passes through the filling. The embedding is shared by both, as in the paper's sec. 3.2.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor, nn

from bench.config.schema import Model, Optim
from bench.data.batches import Batch
from bench.data.tokenizer import MASK
from bench.errors import ConfigError
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, generator_flops, label_flops, rows_per_step
from bench.models.transformer import Blocks, initialise, layer_norm
from bench.objectives.base import Core, Loss, Modality, Objective, ObjectiveOptions, Shapes, StockClass
from bench.objectives.masking import choose_words, places
from bench.objectives.sampling import draw


class Generator(nn.Module):
    """A narrow MLM between projections from and to the shared embedding."""

    def __init__(self, model: Model, embedding: nn.Embedding) -> None:
        super().__init__()
        vocab_size, width = embedding.weight.shape
        self.project = nn.Linear(width, model.d_model, bias=False)
        self.blocks = Blocks(model)
        self.dense = nn.Linear(model.d_model, width, bias=False)
        self.norm = layer_norm(width)
        self.decoder = nn.Linear(width, vocab_size)
        initialise(self, model.n_layers)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = embedding.weight

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """embedded: (B, T, D); positions: (B, K) -> logits there (B, K, V)."""
        at = places(positions, embedded.shape[1])
        hidden = self.blocks(self.project(embedded), at=at).view(*positions.shape, -1)  # (B, K, its own D)
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class ReplacedHead(nn.Module):
    """One logit a position: what ModernBertForTokenClassification puts on the backbone for one label."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model, bias=False)
        self.norm = layer_norm(d_model)
        self.classifier = nn.Linear(d_model, 1)
        initialise(self, n_layers=1)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D) -> logits (...), positive where a token seems replaced."""
        return self.classifier(self.norm(F.gelu(self.dense(hidden))))[..., 0]


class ReplacedTokenDetection(Objective):
    """Two networks trained together; features are the discriminator's."""

    modality: ClassVar[Modality] = "text"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """How much is hidden, the generator's size and the weight of the two losses."""

        mask_rate: float = MISSING  # share of positions that the generator fills
        generator_share: float = MISSING  # its widths as a share of the discriminator's
        discriminator_weight: float = MISSING  # lambda of the paper

        def __post_init__(self) -> None:
            super().__post_init__()
            for key in ("mask_rate", "generator_share"):
                if not 0 < getattr(self, key) <= 1:
                    raise ConfigError(f"strategy.{key}={getattr(self, key)}: choose a share in (0, 1]")
            if not self.discriminator_weight > 0:
                raise ConfigError(
                    f"strategy.discriminator_weight={self.discriminator_weight}: use a number above 0"
                )

    options: Options

    def __init__(
        self, options: Options, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        if not isinstance(self.backbone.embedding, nn.Embedding):
            raise ConfigError(
                "strategy.generator_share: the generator shares the embedding, but model.name "
                "keeps its own to itself; use a model of our own"
            )
        self.generator_model = narrow(shapes.model, options.generator_share)
        self.generator = Generator(self.generator_model, self.backbone.embedding)
        self.head = ReplacedHead(shapes.model.d_model)

    @property
    def stock_class(self) -> StockClass:
        """The discriminator."""
        return "ModernBertForTokenClassification"

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Hide positions and draw what the generator's samples are made from.

        Returns:
            originals: (B, T); tokens: (B, T) with [MASK] at targets; positions: (B, K); targets: (B, K),
            IGNORED where a special token stands; uniforms: (B, K) in [0, 1).
        """
        tokens = rows["tokens"]
        positions, targets = choose_words(tokens, self._n_targets(), generator)
        seen = torch.where(targets == IGNORED, tokens.gather(1, positions), MASK)
        return {
            "originals": tokens,
            "tokens": tokens.scatter(1, positions, seen),
            "positions": positions,
            "targets": targets,
            "uniforms": torch.rand(positions.shape, generator=generator),
        }

    def loss(self, batch: Batch) -> Loss:
        """Two terms: the generator's cross-entropy, and lambda times the discriminator's binary one."""
        targets, originals = batch["targets"], batch["originals"]
        logits = self.generator(self.backbone.embedding(batch["tokens"]), batch["positions"])  # (B, K, V)
        fills = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
        )
        filled = self.fill(batch, logits)
        judged = self.head(self.backbone(filled, causal=False))  # (B, T)
        is_replaced = (filled != originals).to(judged)  # a fill that hits the original is one
        judgements = F.binary_cross_entropy_with_logits(judged, is_replaced, reduction="sum")
        sums = torch.stack([fills, self.options.discriminator_weight * judgements])
        return Loss(sums, torch.stack([(targets != IGNORED).sum(), torch.tensor(judged.numel()).to(targets)]))

    @staticmethod
    def fill(batch: Batch, logits: Tensor) -> Tensor:
        """The texts with the generator's samples: (B, K, V) logits -> (B, T) ids."""
        sampled = sample(logits.detach(), batch["uniforms"])
        originals, positions = batch["originals"], batch["positions"]
        kept = originals.gather(1, positions)
        return originals.scatter(1, positions, torch.where(batch["targets"] == IGNORED, kept, sampled))

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """A row's positions count once, though two networks read them; each has a target."""
        model, length = self.shapes.model, self.shapes.sequence_length
        vocab_size = self.backbone.embedding.num_embeddings
        small = generator_flops(model, self.generator_model, vocab_size, length, self._n_targets())
        forward = small + blocks_flops(model, length) + label_flops(model, 1, length)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length, forward)

    def _n_targets(self) -> int:
        return max(1, round(self.options.mask_rate * self.shapes.sequence_length))


def narrow(model: Model, share: float) -> Model:
    """As many layers, widths by `share`; heads as wide as the model's where that divides the width."""
    head_width = model.d_model // model.n_heads
    width = max(2, 2 * round(share * model.d_model / 2))
    most = max(1, width // head_width)
    heads = max(n for n in range(1, most + 1) if width % (2 * n) == 0)  # even heads, for RoPE
    return Model(
        d_model=width,
        n_layers=model.n_layers,
        n_heads=heads,
        d_ff=max(1, round(share * model.d_ff)),
        patch_size=model.patch_size,
    )


def sample(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw ids from logits (..., V) by uniforms (...) in [0, 1)."""
    return draw(logits.float().softmax(dim=-1), uniforms)
