"""Replaced token detection (ELECTRA, arXiv:2003.10555, sec. 2): detect tokens that a small MLM replaced.

A generator fills masked tokens; the discriminator, which is the backbone, classifies every token. No gradient
passes through the sampled tokens. Both share the embedding, as in the paper's sec. 3.2.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from bench.config.schema import Model, Optim
from bench.data.batches import DOCUMENTS, Batch, numbers_of
from bench.data.tokenizer import MASK
from bench.errors import ConfigError
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, generator_flops, label_flops, rows_per_step
from bench.models.transformer import Blocks, flat_indices, initialise, layer_norm
from bench.objectives.base import Core, Loss, Modality, Objective, Shapes, StockClass
from bench.objectives.corruption import choose_tokens
from bench.objectives.options import ReplacedTokenDetectionOptions
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

    def forward(self, embedded: Tensor, positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """embedded: (B, T, D); positions: (B, K); documents as in `Blocks` -> logits (B, K, V)."""
        at = flat_indices(positions, embedded.shape[1])
        hidden = self.blocks(self.project(embedded), documents=documents, at=at)  # (B K, its own D)
        hidden = hidden.view(*positions.shape, -1)  # (B, K, its own D)
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class ReplacedHead(nn.Module):
    """One logit per token: the head of ModernBertForTokenClassification with one label."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model, bias=False)
        self.norm = layer_norm(d_model)
        self.classifier = nn.Linear(d_model, 1)
        initialise(self, n_layers=1)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D) -> logits (...), positive where a token is predicted to be replaced."""
        return self.classifier(self.norm(F.gelu(self.dense(hidden))))[..., 0]


class ReplacedTokenDetection(Objective):
    """Train a generator and a discriminator together; features are the discriminator's."""

    modality: ClassVar[Modality] = "text"
    isolates_documents = True

    Options = ReplacedTokenDetectionOptions
    options: ReplacedTokenDetectionOptions

    def __init__(
        self,
        options: ReplacedTokenDetectionOptions,
        *,
        shapes: Shapes,
        optimizer: Optim,
        core: Core | None = None,
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        if not isinstance(self.backbone.embedding, nn.Embedding):
            raise ConfigError(
                "strategy.generator_share: the generator needs the weights of the embedding, but model.name "
                "keeps them internal; use a model preset"
            )
        self.generator_model = narrow(shapes.model, options.generator_share)
        self.generator = Generator(self.generator_model, self.backbone.embedding)
        self.head = ReplacedHead(shapes.model.d_model)

    @property
    @override
    def stock_class(self) -> StockClass:
        return "ModernBertForTokenClassification"

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Mask tokens and draw the uniform numbers from which the generator's samples are made.

        Returns:
            originals: (B, T); tokens: (B, T) with [MASK] at targets; positions: (B, K); targets: (B, K),
            IGNORED where a special token stands; uniforms: (B, K) in [0, 1).
        """
        tokens = rows["tokens"]
        positions, targets = choose_tokens(tokens, self._n_targets(), generator)
        shown = torch.where(targets == IGNORED, tokens.gather(1, positions), MASK)
        batch = {
            "originals": tokens,
            "tokens": tokens.scatter(1, positions, shown),
            "positions": positions,
            "targets": targets,
            "uniforms": torch.rand(positions.shape, generator=generator),
        }
        return batch | numbers_of(rows)

    def loss(self, batch: Batch) -> Loss:
        """Return two terms: the generator's cross-entropy, lambda times the discriminator's binary one."""
        targets, originals = batch["targets"], batch["originals"]
        documents, embedded = batch.get(DOCUMENTS), self.backbone.embedding(batch["tokens"])
        logits = self.generator(embedded, batch["positions"], documents)  # (B, K, V)
        generator_nll = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
        )
        filled = self.fill(batch, logits)
        predicted = self.head(self.backbone(filled, causal=False, documents=documents))  # (B, T)
        is_replaced = (filled != originals).to(predicted)  # a sample equal to the original counts as original
        detection_nll = F.binary_cross_entropy_with_logits(predicted, is_replaced, reduction="sum")
        sums = torch.stack([generator_nll, self.options.discriminator_weight * detection_nll])
        return Loss(
            sums, torch.stack([(targets != IGNORED).sum(), torch.tensor(predicted.numel()).to(targets)])
        )

    @staticmethod
    def fill(batch: Batch, logits: Tensor) -> Tensor:
        """Return the texts with the generator's samples: (B, K, V) logits -> (B, T) ids."""
        sampled = sample(logits.detach(), batch["uniforms"])
        originals, positions = batch["originals"], batch["positions"]
        kept = originals.gather(1, positions)
        return originals.scatter(1, positions, torch.where(batch["targets"] == IGNORED, kept, sampled))

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count each token once as read, although two networks read it, and once as predicted."""
        model, length = self.shapes.model, self.shapes.sequence_length
        vocab_size = self.backbone.embedding.num_embeddings
        small = generator_flops(model, self.generator_model, vocab_size, length, self._n_targets())
        forward = small + blocks_flops(model, length) + label_flops(model, 1, length)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length, forward)

    def _n_targets(self) -> int:
        return max(1, round(self.options.mask_rate * self.shapes.sequence_length))


def narrow(model: Model, share: float) -> Model:
    """Scale the widths of a model by `share`; its heads keep their width where that divides the new one."""
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
