"""Text classification: labelled texts, balanced classes, by frozen probe or by fine-tuning."""

import random
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from omegaconf import MISSING
from torch import Tensor, nn

from bench.corpora.base import Split
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.protocols import Tuning, encode, fine_tune, hits, probe, text_features, trimmed
from bench.tasks.base import Measured, Outcome, Setting, Task

Labelled = list[tuple[str, int]]


@dataclass(frozen=True)
class ClassificationOptions(Tuning):
    """What every text classification declares."""

    protocol: str = MISSING  # probe | finetune
    train_per_class: int = MISSING
    test_per_class: int = MISSING  # at most; fewer where a class has fewer
    validation_share: float = MISSING  # of the training items, in fine-tuning

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in ("probe", "finetune"):
            raise ConfigError(f"task.*.protocol={self.protocol!r}: choose probe or finetune")


class TextClassification(Task):
    """A subclass gives the texts.

    Training items are drawn by the run's seed, so that the spread over seeds holds the luck of the draw;
    strategies of one seed share them. Test items are the same for all.
    """

    options: ClassificationOptions

    @abstractmethod
    def examples(self, split: Split, setting: Setting) -> dict[str, list[str]]:
        """Texts of a split by class, in a fixed order."""

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Accuracy on a balanced test split."""
        train = self._draw("train", self.options.train_per_class, setting.seed, setting)
        test = self._draw("test", self.options.test_per_class, 0, setting)
        train_tokens, test_tokens = (
            encode([text for text, _ in part], setting.tokenizer, setting.sequence_length)
            for part in (train, test)
        )
        train_labels, test_labels = (torch.tensor([label for _, label in part]) for part in (train, test))
        train_labels = setting.labels(train_labels)
        if self.options.protocol == "probe":
            scores = probe(
                text_features(model, train_tokens), train_labels, text_features(model, test_tokens)
            )
        else:
            scores = self._fine_tuned(model, train_tokens, train_labels, test_tokens, setting)
        correct = hits(scores, test_labels)
        accuracy = Measured("accuracy", float(correct.mean()), 1 / scores.shape[1], len(test))
        return Outcome([accuracy], {"accuracy": correct})

    def _fine_tuned(
        self, model: Objective, tokens: Tensor, labels: Tensor, test: Tensor, setting: Setting
    ) -> Tensor:
        """Scores (M, C) of the test items, by the first fit."""
        n = max(1, round(self.options.validation_share * len(tokens)))
        n_classes = int(labels.max()) + 1

        def loss(tuned: Objective, head: nn.Module, index: Tensor) -> Tensor:
            features = tuned.features(trimmed(tokens[n:][index]).to(tuned.device))
            return F.cross_entropy(head(features), labels[n:][index].to(tuned.device))

        def validate(tuned: Objective, head: nn.Module) -> float:
            return float(hits(head(text_features(tuned, tokens[:n])).cpu(), labels[:n]).mean())

        def head() -> nn.Module:
            linear = nn.Linear(model.shapes.model.d_model, n_classes)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            return linear

        fits = fine_tune(
            model,
            head=head,
            loss=loss,
            validate=validate,
            n_items=len(tokens) - n,
            tuning=self.options,
            setting=setting,
            floor=float(labels[:n].bincount().max()) / n,
        )
        with torch.no_grad():
            return fits[0].head(text_features(fits[0].model, test)).cpu()  # type: ignore[no-any-return]

    def _draw(self, split: Split, per_class: int, seed: int, setting: Setting) -> Labelled:
        """The same number of items of each class, shuffled."""
        by_class = self.examples(split, setting)
        n = min(per_class, *(len(texts) for texts in by_class.values()))
        if n == 0 or len(by_class) < 2:
            empty = sorted(name for name, texts in by_class.items() if not texts) or sorted(by_class)
            raise DataError(f"{type(self).__name__}: no {split} texts for {', '.join(empty)}")
        rng = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
        drawn = [
            (text, label)
            for label, name in enumerate(sorted(by_class))
            for text in rng.sample(by_class[name], n)
        ]
        rng.shuffle(drawn)
        return drawn
