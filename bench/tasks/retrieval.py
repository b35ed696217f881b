"""Image-text retrieval among held-out pairs: recall at 1, 5 and 10, both ways (CLIP, arXiv:2103.00020).

`zero_shot` uses the strategy's own two towers. `fitted` gives every strategy the same chance: its text
features are frozen and a new vision tower is fitted to them on the training pairs.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.data import PairRows
from bench.errors import ConfigError
from bench.objectives.base import Objective
from bench.protocols import Fit, fit_vision, hits, in_batches, text_features
from bench.tasks.base import InapplicableError, Measured, Outcome, Setting, Task

RECALLS = (1, 5, 10)


@runtime_checkable
class JointSpace(Protocol):
    """A strategy that embeds images and texts into one space."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> unit rows (B, D)."""
        ...

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> unit rows (B, D)."""
        ...


class Retrieval(Task):
    """Every test image against every test caption."""

    @dataclass(frozen=True)
    class Options:
        """The protocol and, for `fitted`, the fit of the vision tower."""

        protocol: str = MISSING  # fitted | zero_shot
        steps: int = MISSING
        batch_size: int = MISSING
        lr_at_64: float = MISSING
        temperature: float = MISSING

        def __post_init__(self) -> None:
            if self.protocol not in ("fitted", "zero_shot"):
                raise ConfigError(f"task.*.protocol={self.protocol!r}: choose fitted or zero_shot")

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Mean of both directions' recall@5 first, then each recall of each direction."""
        test = PairRows(setting.pairs.test()).all()
        embed = self._zero_shot if self.options.protocol == "zero_shot" else self._fitted
        image_rows, text_rows = embed(model, test["images"], test["captions"], setting)
        similarity = image_rows.double() @ text_rows.double().T  # (N, N)
        return recalls(similarity.cpu())

    def ceiling(self, setting: Setting) -> Outcome:
        """Every image is like its own caption alone."""
        return recalls(torch.eye(len(setting.pairs.test()), dtype=torch.float64))

    def _zero_shot(
        self, model: Objective, images: Tensor, captions: Tensor, setting: Setting
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(model, JointSpace):
            raise InapplicableError("no image tower of its own")
        model.eval()
        return (
            in_batches(model.embed_images, images, model.device),
            in_batches(model.embed_texts, captions, model.device),
        )

    def _fitted(
        self, model: Objective, images: Tensor, captions: Tensor, setting: Setting
    ) -> tuple[Tensor, Tensor]:
        train = PairRows(setting.pairs.train()).all()
        texts = text_features(model, train["captions"])
        mean, std = texts.mean(dim=0), texts.std(dim=0).clamp(min=1e-6)
        image_side, text_side = fit_vision(
            (texts - mean) / std,
            train["images"],
            model,
            fit=Fit(self.options.steps, self.options.batch_size, self.options.lr_at_64),
            temperature=self.options.temperature,
            generator=torch.Generator().manual_seed(setting.seed),
            keep_going=setting.keep_going,
        )
        test_texts = (text_features(model, captions) - mean) / std
        return (
            in_batches(image_side, images, model.device),
            in_batches(text_side, test_texts, model.device),
        )


def recalls(similarity: Tensor) -> Outcome:
    """Recalls of a square similarity (images x texts) whose diagonal holds the partners."""
    n = len(similarity)
    partners = torch.arange(n)
    items = {
        f"{name}_recall_at_{k}": hits(scores, partners, k)
        for k in RECALLS
        for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T))
    }
    items["recall_at_5"] = (items["image_to_text_recall_at_5"] + items["text_to_image_recall_at_5"]) / 2
    chance = {name: min(1.0, int(name.rpartition("_")[2]) / n) for name in items}
    scores = [Measured(name, float(items[name].mean()), chance[name], n) for name in items]
    return Outcome([scores[-1], *scores[:-1]], items)
