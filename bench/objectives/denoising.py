"""Span corruption (T5, arXiv:1910.10683, sec. 3.1.4) and mixtures of it (UL2, arXiv:2205.05131, sec. 3.1).

An encoder reads the text with its noise spans replaced by sentinels; a decoder writes sentinel, span,
sentinel, span, ... and ends with EOS. This follows T5's code, whose masks end with noise, so that the final
sentinel of the paper's figure 2 never occurs. The decoder starts with BOS, where T5 uses its padding token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from bench.config.schema import Optim
from bench.data.batches import DOCUMENTS, Batch
from bench.data.tokenizer import BOS, EOS
from bench.models.decoder import Decoder
from bench.models.flops import StepCost, blocks_flops, decoder_flops, head_flops, rows_per_step
from bench.models.transformer import EVERY
from bench.objectives.base import Core, Loss, Shapes, StockClass, TextObjective
from bench.objectives.corruption import noise_mask, numbers_at_spans, span_counts, split_at_spans
from bench.objectives.options import Denoiser, DenoisingOptions
from bench.objectives.sampling import Sampling, left_to_right, writable


class Denoising(TextObjective):
    """An encoder-decoder; each step draws one denoiser for all its rows, which therefore have one shape."""

    Options = DenoisingOptions
    options: DenoisingOptions
    isolates_documents = True
    writes = "span by span"

    def __init__(
        self, options: DenoisingOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.decoder = Decoder(shapes.model)
        first_mode = shapes.vocab_size + _n_sentinels(options, shapes)
        self.mode_ids = {mode: first_mode + i for i, mode in enumerate(_modes(options))}

    @classmethod
    @override
    def n_extra_tokens(cls, options: DenoisingOptions, shapes: Shapes) -> int:
        return _n_sentinels(options, shapes) + len(_modes(options))

    @property
    def stock_class(self) -> StockClass:
        """The encoder's class; no stock class holds the decoder."""
        return "ModernBertModel"

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Draw the step's denoiser, then the spans of each row.

        Returns:
            tokens: (B, S) encoder inputs: the mode, if any, and the text with sentinels; targets: (B, U);
            DOCUMENTS: (B, S), if given, for the encoder. The decoder reads its states of the whole row.
        """
        tokens = rows["tokens"]
        denoiser = self._draw(generator)
        n_noise, n_spans = span_counts(tokens.shape[1], denoiser.rate, denoiser.mean_span)
        mask = noise_mask(*tokens.shape, n_noise=n_noise, n_spans=n_spans, generator=generator)
        inputs, targets = split_at_spans(tokens, mask, first_sentinel=self.shapes.vocab_size, closing=EOS)
        batch = {"tokens": inputs, "targets": targets}
        if DOCUMENTS in rows:
            batch[DOCUMENTS] = numbers_at_spans(rows[DOCUMENTS], mask)
        if denoiser.mode is not None:
            before = {"tokens": self.mode_ids[denoiser.mode], DOCUMENTS: EVERY}
            batch |= {
                name: F.pad(batch[name], (1, 0), value=before[name]) for name in before if name in batch
            }
        return batch

    def loss(self, batch: Batch) -> Loss:
        """Return the NLL of the decoder's targets, each given those before it and the encoder's input."""
        targets = batch["targets"]  # (B, U)
        context = self.backbone(batch["tokens"], causal=False, documents=batch.get(DOCUMENTS))  # (B, S, D)
        written = F.pad(targets[:, :-1], (1, 0), value=BOS)
        hidden = self.decoder(self.backbone.embedding(written), context)  # (B, U, D)
        return Loss(self.head.summed_nll(hidden, targets), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Return the mean cost of the denoisers, at the number of rows that fills a step on average."""
        lengths = [self._lengths(denoiser) for denoiser in self.options.denoisers]
        n = len(lengths)
        rows = rows_per_step(tokens_per_step, math.ceil(sum(s + u for s, u in lengths) / n))
        costs = [StepCost.of_row(rows, s + u, u, self._forward_flops(s, u)) for s, u in lengths]
        return StepCost.mean(costs, [1 / n] * n)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write the span after the prompt with the decoder; then append it to the prompt, and repeat.

        EOS ends both a span and a text. Spans have one token or more, so an EOS at the start of a span is the
        end of the text. Rows of one length continue together.
        """
        start = prompts.shape[1]
        tokens = F.pad(prompts, (0, n_new), value=EOS)  # (B, P + N)
        lengths = torch.full((len(tokens),), start, device=tokens.device)
        for length in range(start, tokens.shape[1]):
            rows = (lengths == length).nonzero()[:, 0]  # texts that have ended no longer grow
            if not len(rows):
                continue
            draws = uniforms[rows, length - start :, 0].clone()
            draws[:, 0] = uniforms[rows, length - start, 1]  # the other one drew the end of the last span
            span = self._write_span(tokens[rows, :length], sampling, draws)
            tokens[rows, length:] = span
            lengths[rows] += (span != EOS).long().cumprod(dim=1).sum(dim=1)
        return tokens[:, start:]

    def _write_span(self, text: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
        """Write a span: (R, L) ids of a text, (R, K) uniforms -> (R, K) ids, undefined after EOS."""
        longest = max(self.options.denoisers, key=lambda d: d.mean_span or math.inf)
        read = F.pad(text, (0, 1), value=self.shapes.vocab_size)  # the first sentinel is at its end
        if longest.mode is not None:
            read = F.pad(read, (1, 0), value=self.mode_ids[longest.mode])
        context = self.backbone(read, causal=False)  # (R, S, D)

        def next_logits(written: Tensor) -> Tensor:
            last = self.decoder(self.backbone.embedding(written), context)[:, -1]  # (R, D)
            return writable(self.head(last), self.shapes.vocab_size)

        start = torch.tensor([BOS, self.shapes.vocab_size], device=text.device).expand(len(text), -1)
        return left_to_right(next_logits, start, draws.shape[1], sampling, draws)

    def _draw(self, generator: torch.Generator) -> Denoiser:
        denoisers = self.options.denoisers
        if len(denoisers) == 1:
            return denoisers[0]
        return denoisers[int(torch.randint(len(denoisers), (), generator=generator))]

    def _lengths(self, denoiser: Denoiser) -> tuple[int, int]:
        """Return the tokens of the encoder and of the decoder."""
        length = self.shapes.sequence_length
        n_noise, n_spans = span_counts(length, denoiser.rate, denoiser.mean_span)
        mode = denoiser.mode is not None
        return mode + length - n_noise + n_spans, n_noise + n_spans + 1

    def _forward_flops(self, read: int, written: int) -> float:
        model, vocab_size = self.shapes.model, self.backbone.embedding.num_embeddings
        stacks = blocks_flops(model, read) + decoder_flops(model, written, read)
        return stacks + head_flops(model, vocab_size, written)


def _n_sentinels(options: DenoisingOptions, shapes: Shapes) -> int:
    length = shapes.sequence_length
    return max(span_counts(length, d.rate, d.mean_span)[1] for d in options.denoisers)


def _modes(options: DenoisingOptions) -> list[str]:
    return sorted({d.mode for d in options.denoisers if d.mode is not None})
