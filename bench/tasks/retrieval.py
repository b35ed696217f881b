"""Image-text retrieval among held-out pairs: recall at 1, 5 and 10, both ways (CLIP, arXiv:2103.00020).

`zero_shot` uses the strategy's own two towers. `fitted` gives every strategy the same chance: its text
features are frozen and a new vision tower is fitted to them on the training pairs.
"""

from dataclasses import dataclass, replace

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import PairRows
from bench.errors import ConfigError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.probe import check_fit, hits
from bench.tasks.retrieval_space import space

RECALLS = (1, 5, 10)


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
            if self.protocol == "fitted":
                check_fit(self)

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Mean of both directions' recall@5 first, then each recall of each direction."""
        joint = space(model, self.options, setting)
        test = PairRows(setting.pairs.test()).all()
        text_rows, image_rows = joint.texts(test["captions"]), joint.images(test["images"])
        similarity = image_rows.double() @ text_rows.double().T  # (N, N)
        return replace(recalls(similarity.cpu()), counts=setting.pairs.skipped)

    def ceiling(self, setting: Setting) -> Outcome:
        """Every image is like its own caption alone."""
        return recalls(torch.eye(len(setting.pairs.test()), dtype=torch.float64))


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
