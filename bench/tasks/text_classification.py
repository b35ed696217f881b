"""Text classification at label budgets: by frozen probe, by fine-tuning, by a probe of every layer.

How good is a strategy with 32 labels, with 128, with all there are, and from how many on does pretraining
stop helping? Label sets are nested, and balanced as far as the data allow (`bench.tasks.label_budgets`).
Shapes: N training items, M test items, C classes, S of them seen in training.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor, nn

from bench.data.corpora.base import Split
from bench.errors import ConfigError, DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.label_budgets import Budget, Items, Texts, check_label_budgets, cut, in_turns, sizes
from bench.tasks.probe import (
    Tuned,
    Tuning,
    as_attention,
    check_pooling,
    encode,
    fine_tune,
    layer_features,
    probe,
    text_features,
    trimmed,
)

PROTOCOLS = ("probe", "finetune", "layers")


@dataclass(frozen=True)
class ClassificationOptions(Tuning):
    """What every text classification declares; `Tuning` is of effect with protocol finetune alone."""

    protocol: str = MISSING  # probe | finetune | layers
    attention: str = MISSING  # own | causal | bidirectional: own is the strategy's
    pooling: str = MISSING  # own | mean | last | first: hidden states to one feature vector
    # Labelled training items, less what would unbalance the classes; null: max_labels, or all there are.
    label_budgets: list[int | None] = MISSING
    max_labels: int = MISSING
    validation_items: int = MISSING  # out of the training split, at most as many as there are labels
    test_items: int = MISSING  # at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"task.*.protocol={self.protocol!r}: choose {', '.join(PROTOCOLS)}")
        as_attention(self.attention)
        check_pooling(self.pooling)
        for key in ("max_labels", "validation_items", "test_items"):
            if getattr(self, key) < 1:
                raise ConfigError(f"task.*.{key}={getattr(self, key)}: choose 1 or more")
        check_label_budgets(self.label_budgets, self.max_labels)


class TextClassification(Task):
    """A subclass gives the texts.

    Training and validation items are drawn by the run's seed, so that the spread over seeds holds the luck of
    the draw; strategies of one seed, and all protocols, share them. Test items are the same for all. A
    training text that is also a test text is left out, and counted.

    Validation labels come on top of a budget, never more than it has; fine-tuning chooses its rate and state
    by them, `layers` its layer, and the probe does without.
    """

    options: ClassificationOptions

    @abstractmethod
    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        """Texts of the training or the test split by class, in a fixed order."""

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Accuracy at each label budget, the largest first."""
        measure = {"probe": self._probe, "finetune": self._fine_tune, "layers": self._layers}
        return self._outcome(setting, lambda budget: measure[self.options.protocol](model, budget, setting))

    def ceiling(self, setting: Setting) -> Outcome:
        """Right wherever the class was seen in training."""

        def oracle(budget: Budget) -> Outcome:
            scores = F.one_hot(budget.test.labels, budget.n_classes)[:, budget.seen]
            return _accuracy(budget, budget.hits(scores, budget.test))

        return self._outcome(setting, oracle)

    def _outcome(self, setting: Setting, measure: Callable[[Budget], Outcome]) -> Outcome:
        """What is measured at each budget, under names that tell them apart."""
        budgets, counts = self._budgets(setting)
        scores: list[Measured] = []
        items: dict[str, NDArray[np.float64]] = {}
        for budget in budgets:
            setting.keep_going()
            found, n = measure(budget), budget.n_labels
            scores += found.scores
            items |= {f"{name}@{n}": values for name, values in found.items.items()}
            if unseen := int((~torch.isin(budget.test.labels, budget.seen)).sum()):
                counts[f"test item of a label unseen in training@{n}"] = unseen
        return Outcome(scores, items, counts)

    # Protocols

    def _probe(self, model: Objective, budget: Budget, setting: Setting) -> Outcome:
        how = as_attention(self.options.attention), self.options.pooling
        train, test = (
            text_features(model, items.all_tokens, *how, cache=setting.cache)[: len(items.labels)]
            for items in (budget.train, budget.test)
        )
        scores = probe(train, budget.train.labels, test)
        return _accuracy(budget, budget.hits(scores, budget.test))

    def _layers(self, model: Objective, budget: Budget, setting: Setting) -> Outcome:
        """The headline is of the layer that validates best, the first of equals.

        Not of the last layer: that is what `probe` measures, and what a strategy knows may lie below the
        layers that serve its own predictions. The choice costs no test item.
        """
        how = as_attention(self.options.attention), self.options.pooling
        train, validation, test = (
            layer_features(model, items.all_tokens, *how, cache=setting.cache)[: len(items.labels)]
            for items in (budget.train, budget.validation, budget.test)
        )
        n, validated, correct = len(validation), [], {}
        for layer in range(train.shape[1]):
            setting.keep_going()
            held_out = torch.cat([validation[:, layer], test[:, layer]])
            scores = probe(train[:, layer], budget.train.labels, held_out)
            validated.append(budget.hits(scores[:n], budget.validation).mean())
            correct[f"accuracy_layer_{layer}"] = budget.hits(scores[n:], budget.test)
        correct = {"accuracy": correct[f"accuracy_layer_{int(np.argmax(validated))}"], **correct}
        return Outcome([budget.measured(*item) for item in correct.items()], correct)

    def _fine_tune(self, model: Objective, budget: Budget, setting: Setting) -> Outcome:
        fits = self._fits(model, budget, setting)
        correct = np.stack([budget.hits(self._scores(fit, budget.test), budget.test) for fit in fits])
        outcome = _accuracy(budget, correct)
        spread = float(correct.mean(axis=1).std(ddof=1)) if len(fits) > 1 else None
        extra = {"accuracy_fit_sd": spread, "failed_fits": sum(fit.failed for fit in fits) / len(fits)}
        scores = [
            Measured(name, value, None, len(fits), higher_is_better=False, n_labels=budget.n_labels)
            for name, value in extra.items()
            if value is not None
        ]
        return replace(outcome, scores=outcome.scores + scores)

    def _fits(self, model: Objective, budget: Budget, setting: Setting) -> list[Tuned]:
        """A linear classifier on the features that starts as the constant predictor."""
        how = as_attention(self.options.attention), self.options.pooling
        train, seen = budget.train, budget.seen

        def head() -> nn.Module:
            linear = nn.Linear(model.shapes.model.d_model, len(seen))
            nn.init.zeros_(linear.weight)
            linear.bias.data.copy_(budget.priors())
            return linear

        def loss(tuned: Objective, classifier: nn.Module, index: Tensor) -> Tensor:
            features = tuned.features(trimmed(train.tokens[index]).to(tuned.device), *how)
            targets = torch.searchsorted(seen, train.labels[index])
            return F.cross_entropy(classifier(features), targets.to(tuned.device))

        def validate(tuned: Objective, classifier: nn.Module) -> float:
            features = text_features(tuned, budget.validation.tokens, *how)
            return float(budget.hits(classifier(features), budget.validation).mean())

        return fine_tune(
            model,
            head=head,
            loss=loss,
            validate=validate,
            n_items=budget.n_labels,
            tuning=self.options,
            setting=setting,
            floor=float(budget.validation.labels.bincount().max()) / len(budget.validation.labels),
        )

    @torch.no_grad()
    def _scores(self, fit: Tuned, items: Items) -> Tensor:
        how = as_attention(self.options.attention), self.options.pooling
        scores: Tensor = fit.head(text_features(fit.model, items.tokens, *how))
        return scores

    def _budgets(self, setting: Setting) -> tuple[list[Budget], dict[str, int]]:
        """The budgets, the largest first; what could not count, by reason."""
        options = self.options
        texts, counts = Texts.without_tested(self.examples("train", setting), self.examples("test", setting))
        held_out, rest = cut(in_turns(texts.train, setting.seed), options.validation_items)
        if len(texts.trainable) < 2 or not any(texts.test) or not any(rest):
            raise DataError(
                f"{type(self).__name__}: {sum(map(len, texts.train))} training texts of "
                f"{len(texts.trainable)} classes and {sum(map(len, texts.test))} test texts are too few; "
                f"lower task.*.validation_items={options.validation_items}, or choose other data"
            )
        lengths, beyond = sizes(rest, options.label_budgets, options.max_labels)
        counts["label budget beyond the data"] = beyond
        tested = itertools.chain.from_iterable(in_turns(texts.test, seed=0))
        pool = _items(cut(rest, lengths[0])[0], setting)
        validation = _items(held_out, setting)
        test = _items(list(tested)[: options.test_items], setting)

        def first(items: Items, n: int) -> Items:
            return Items(items.all_tokens, setting.labels(items.labels[:n]))

        budgets = [Budget(first(pool, n), first(validation, n), test, len(texts.train)) for n in lengths]
        return budgets, {reason: count for reason, count in counts.items() if count}


def _items(part: list[tuple[str, int]], setting: Setting) -> Items:
    tokens = encode([text for text, _ in part], setting.tokenizer, setting.sequence_length)
    return Items(tokens, torch.tensor([label for _, label in part]))


def _accuracy(budget: Budget, correct: NDArray[np.float64]) -> Outcome:
    return Outcome([budget.measured("accuracy", correct)], {"accuracy": correct})
