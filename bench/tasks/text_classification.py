"""Text classification at label budgets: by frozen probe, by fine-tuning, or by a probe of every layer.

It answers how good a strategy is with 32 labels, with 128, with all available ones, and from how many labels
on pretraining stops helping. Label sets are nested, and balanced as far as the data allow.
Shapes: N training items, M test items, T tokens, C classes, S of them seen in training.
"""

import itertools
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from bench.config.bounds import given
from bench.data.corpora.base import Split
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import bag_of_ngrams, texts_of
from bench.tasks.class_scores import SCORES
from bench.tasks.finetune import Tuned, fine_tune
from bench.tasks.label_budgets import failed_fits, fit_spread, probe_choice
from bench.tasks.options import ClassificationOptions
from bench.tasks.probe import (
    as_attention,
    choose,
    encode,
    hits,
    layer_features,
    probe,
    text_features,
    trimmed,
)

ACCURACY = "accuracy"
Text = str | tuple[str, str]  # or a pair of texts


@dataclass(frozen=True)
class Texts:
    """Texts of the training and the test split by class; the classes of both splits, ordered by name."""

    train: list[list[Text]]
    test: list[list[Text]]

    @staticmethod
    def without_tested(
        train: Mapping[str, Sequence[Text]], test: Mapping[str, Sequence[Text]]
    ) -> tuple["Texts", Counter[str]]:
        """Leave out training texts that are also test texts; count them and the empty classes."""
        tested = {text for texts in test.values() for text in texts}
        names = sorted({*train, *test})
        kept = Texts(
            [[text for text in train.get(name, []) if text not in tested] for name in names],
            [list(test.get(name, [])) for name in names],
        )
        lost = sum(map(len, train.values())) - sum(map(len, kept.train))
        counts = {
            "training text that is also a test text": lost,
            "class without training texts": sum(not texts for texts in kept.train),
            "class without test texts": sum(not texts for texts in kept.test),
        }
        return kept, Counter(counts)

    @property
    def trainable(self) -> list[list[Text]]:
        """The classes that have training texts."""
        return [texts for texts in self.train if texts]


@dataclass(frozen=True)
class LabelledTexts:
    """Encoded texts, and the classes (N,) of the first N of them.

    `all_tokens` (N', T) are the texts of the largest budget, so that frozen features are computed once for
    all budgets.
    """

    all_tokens: Tensor
    labels: Tensor

    @property
    def tokens(self) -> Tensor:
        """(N, T)."""
        return self.all_tokens[: len(self.labels)]


@dataclass(frozen=True)
class BudgetData:
    """The data of one label budget."""

    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    n_classes: int
    positive: int  # the class whose F1 is measured, where a task asks for it

    @property
    def n_labels(self) -> int:
        """The number of labelled training items."""
        return len(self.train.labels)

    @property
    def seen(self) -> Tensor:
        """The classes (S,) that have a training item, in order."""
        return self.train.labels.unique()

    def hits(self, scores: Tensor, items: LabelledTexts) -> NDArray[np.float64]:
        """Return the hits (M,) of scores (M, S) for the seen classes."""
        return hits(self.of_all_classes(scores), items.labels)

    def of_all_classes(self, scores: Tensor) -> Tensor:
        """Return scores (M, S) for the seen classes as (M, C); other classes are never predicted."""
        whole = torch.full((len(scores), self.n_classes), -torch.inf, dtype=torch.float64)
        whole[:, self.seen] = scores.double().cpu()
        return whole

    def priors(self) -> Tensor:
        """Return the log share of each seen class (S,): the scores of a constant predictor."""
        counts = self.train.labels.bincount(minlength=self.n_classes)[self.seen]
        return (counts / counts.sum()).log()

    def measured(self, metric: str, correct: NDArray[np.float64]) -> Measured:
        """Return the mean of hits (M,) or (fits, M) as a metric; chance is the constant predictor's."""
        chance = float(self.hits(self._constant(), self.test).mean())
        return Measured(metric, float(correct.mean()), chance, len(self.test.labels), n_labels=self.n_labels)

    def value(self, metric: str, scores: Tensor) -> float:
        """Return a metric of scores (M, S): accuracy, or one of `bench.tasks.class_scores`."""
        if metric == ACCURACY:
            return float(self.hits(scores, self.test).mean())
        return SCORES[metric](self.of_all_classes(scores), self.test.labels, self.positive)

    def outcome(self, metrics: Sequence[str], fits: Sequence[Tensor]) -> Outcome:
        """Return the metrics of one or more fits' scores (M, S), each averaged over fits, and the hits.

        Chance is the constant predictor's score.
        """
        n = len(self.test.labels)
        scores = [
            Measured(
                metric,
                float(np.mean([self.value(metric, fit) for fit in fits])),
                self.value(metric, self._constant()),
                n,
                n_labels=self.n_labels,
            )
            for metric in metrics
        ]
        correct = np.stack([self.hits(fit, self.test) for fit in fits])
        return Outcome(scores, {ACCURACY: correct[0] if len(fits) == 1 else correct})

    def _constant(self) -> Tensor:
        return self.priors().expand(len(self.test.labels), -1)


class TextClassification(Task):
    """Base of text classifications; subclasses implement `examples`.

    Training and validation items are drawn by the run's seed, so that the spread over seeds includes the
    draw; all strategies and protocols of one seed share them. Test items are the same for all. Training texts
    that are also test texts are left out and counted.

    Validation labels are additional to the budget, but never more than it has. Fine-tuning uses them to
    choose its learning rate and state, a probe to choose its layer and penalty.
    """

    Options: ClassVar[type[Any]] = ClassificationOptions
    options: ClassificationOptions

    @property
    def metrics(self) -> Sequence[str]:
        """What is measured, the headline first: accuracy, or a name of `bench.tasks.class_scores`."""
        return (ACCURACY,)

    def positive_class(self) -> str | None:
        """Return the class whose F1 is measured; None if no metric needs one."""
        return None

    @abstractmethod
    def examples(self, split: Split, setting: Setting) -> Mapping[str, Sequence[Text]]:
        """Return the texts of the training or the test split by class, in a fixed order."""

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        measure = {"probe": self._probe, "finetune": self._fine_tune, "layers": self._layers}
        return self._outcome(setting, lambda budget: measure[self.options.protocol](model, budget, setting))

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of a bag of words and pairs of words."""

        def bag(budget: BudgetData) -> Outcome:
            train, test = (texts_of(part.tokens, setting.tokenizer) for part in (budget.train, budget.test))
            return budget.outcome(self.metrics, [bag_of_ngrams(train, budget.train.labels, test)])

        return self._outcome(setting, bag)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Return the outcome of a model that is right wherever the class was seen in training."""

        def oracle(budget: BudgetData) -> Outcome:
            scores = F.one_hot(budget.test.labels, budget.n_classes)[:, budget.seen]
            return budget.outcome(self.metrics, [scores])

        return self._outcome(setting, oracle)

    def _outcome(self, setting: Setting, measure: Callable[[BudgetData], Outcome]) -> Outcome:
        """Join the outcomes of all budgets, the largest first."""
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

    def _probe(self, model: Objective, budget: BudgetData, setting: Setting) -> Outcome:
        """Probe the layer, with the penalty, that validation items choose."""
        train, validation, test = self._layer_features(model, budget, setting)
        labels = budget.train.labels
        chosen = choose(
            train,
            labels,
            validation,
            lambda found: float(budget.hits(found, budget.validation).mean()),
            given(self.options.inverse_penalties),
        )
        scores = probe(train[:, chosen.layer], labels, test[:, chosen.layer], chosen.inverse_penalty)
        outcome = budget.outcome(self.metrics, [scores])
        return replace(outcome, scores=[*outcome.scores, *probe_choice(chosen, budget.n_labels)])

    def _layer_features(self, model: Objective, budget: BudgetData, setting: Setting) -> list[Tensor]:
        """Return the features of training, validation and test texts in every layer, each (N, L + 1, D)."""
        how = as_attention(self.options.attention), self.options.pooling
        return [
            layer_features(model, items.all_tokens, *how, cache=setting.cache)[: len(items.labels)]
            for items in (budget.train, budget.validation, budget.test)
        ]

    def _layers(self, model: Objective, budget: BudgetData, setting: Setting) -> Outcome:
        """Probe every layer; the headline is the layer with the best validation accuracy, the first of ties.

        Protocol `probe` measures the chosen layer alone, and chooses the penalty, too.
        """
        train, validation, test = self._layer_features(model, budget, setting)
        n, validated, correct = len(validation), [], {}
        for layer in range(train.shape[1]):
            setting.keep_going()
            held_out = torch.cat([validation[:, layer], test[:, layer]])
            scores = probe(train[:, layer], budget.train.labels, held_out)
            validated.append(budget.hits(scores[:n], budget.validation).mean())
            correct[f"accuracy_layer_{layer}"] = budget.hits(scores[n:], budget.test)
        correct = {"accuracy": correct[f"accuracy_layer_{int(np.argmax(validated))}"], **correct}
        return Outcome([budget.measured(*item) for item in correct.items()], correct)

    def _fine_tune(self, model: Objective, budget: BudgetData, setting: Setting) -> Outcome:
        fits = self._fits(model, budget, setting)
        found = [self._scores(fit, budget.test) for fit in fits]
        outcome = budget.outcome(self.metrics, found)
        headline = self.metrics[0]
        by_fit = np.array([budget.value(headline, scores) for scores in found])
        spread = fit_spread(headline, by_fit, budget.n_labels)
        failed = failed_fits([fit.failed for fit in fits], budget.n_labels)
        return replace(outcome, scores=[*outcome.scores, *spread, failed])

    def _fits(self, model: Objective, budget: BudgetData, setting: Setting) -> list[Tuned]:
        """Fine-tune with a linear classifier that starts as the constant predictor."""
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
            tuning=self.options.tuning,
            setting=setting,
            floor=float(budget.validation.labels.bincount().max()) / len(budget.validation.labels),
            n_labels=budget.n_labels,
        )

    @torch.no_grad()
    def _scores(self, fit: Tuned, items: LabelledTexts) -> Tensor:
        how = as_attention(self.options.attention), self.options.pooling
        scores: Tensor = fit.head(text_features(fit.model, items.tokens, *how))
        return scores

    def _budgets(self, setting: Setting) -> tuple[list[BudgetData], dict[str, int]]:
        """Return the data of each budget, the largest first, and the number of unusable items by reason."""
        options = self.options
        train_texts, test_texts = self.examples("train", setting), self.examples("test", setting)
        names = sorted({*train_texts, *test_texts})
        texts, counts = Texts.without_tested(train_texts, test_texts)
        held_out, rest = take(in_rounds(texts.train, setting.seed), options.validation_items)
        if len(texts.trainable) < 2 or not any(texts.test) or not any(rest):
            raise DataError(
                f"{type(self).__name__}: {sum(map(len, texts.train))} training texts of "
                f"{len(texts.trainable)} classes and {sum(map(len, texts.test))} test texts are too few; "
                f"lower task.*.validation_items={options.validation_items}, or choose other data"
            )
        lengths, beyond = budget_sizes(rest, options.label_budgets, options.max_labels)
        counts["label budget beyond the data"] = beyond
        tested = itertools.chain.from_iterable(in_rounds(texts.test, seed=0))
        pool = _encoded(take(rest, lengths[0])[0], setting)
        validation = _encoded(held_out, setting)
        test = _encoded(list(tested)[: options.test_items], setting)

        def first(items: LabelledTexts, n: int) -> LabelledTexts:
            return LabelledTexts(items.all_tokens, setting.labels(items.labels[:n]))

        positive = self.positive_class()
        place = 0 if positive is None else names.index(positive)
        budgets = [BudgetData(first(pool, n), first(validation, n), test, len(names), place) for n in lengths]
        return budgets, {reason: count for reason, count in counts.items() if count}


Rounds = list[list[tuple[Text, int]]]  # of (text, class); a round has one text of every class not used up


def in_rounds(texts: Sequence[Sequence[Text]], seed: int) -> Rounds:
    """Shuffle texts given by class, and arrange them in rounds of one text per class.

    After any round the classes are balanced as far as the data allow.
    """
    rng = random.Random(seed)  # noqa: S311 - not for cryptography
    shuffled = [rng.sample(of_class, len(of_class)) for of_class in texts]
    rounds: Rounds = []
    for i in range(max(map(len, shuffled), default=0)):
        texts_of_round = [
            (of_class[i], label) for label, of_class in enumerate(shuffled) if i < len(of_class)
        ]
        rng.shuffle(texts_of_round)
        rounds.append(texts_of_round)
    return rounds


def take(rounds: Rounds, n: int) -> tuple[list[tuple[Text, int]], Rounds]:
    """Take the complete rounds among the first `n` texts; return them and the rest.

    If the first round has more than `n` texts, its first `n` are taken. Complete rounds keep the classes of a
    budget equally frequent as long as no class is used up; otherwise a constant predictor would profit from a
    majority that the draw made.

    >>> rounds = [[("a", 0), ("b", 1)], [("c", 1), ("d", 0)]]
    >>> take(rounds, 3)
    ([('a', 0), ('b', 1)], [[('c', 1), ('d', 0)]])
    >>> take(rounds, 1)
    ([('a', 0)], [[('b', 1)], [('c', 1), ('d', 0)]])
    """
    ends = list(itertools.accumulate(map(len, rounds)))
    whole = sum(end <= n for end in ends)
    if whole or not rounds:
        return list(itertools.chain.from_iterable(rounds[:whole])), rounds[whole:]
    return rounds[0][:n], [rounds[0][n:], *rounds[1:]]


def budget_sizes(rounds: Rounds, budgets: Sequence[int | None], most: int) -> tuple[list[int], int]:
    """Return the number of texts of each budget, the largest first, and how many budgets exceed the data.

    Those are replaced by the largest possible one, which has `most` texts, or all available ones.

    >>> rounds = [[("a", 0), ("b", 1)], [("c", 1), ("d", 0)], [("e", 0)]]
    >>> budget_sizes(rounds, [3, 100, None], most=200)
    ([5, 2], 1)
    """
    available = sum(map(len, rounds))
    found = {len(take(rounds, most if n is None else n)[0]) for n in budgets}
    return sorted(found, reverse=True), sum(n is not None and n > available for n in budgets)


def _encoded(part: list[tuple[Text, int]], setting: Setting) -> LabelledTexts:
    tokens = encode([text for text, _ in part], setting.tokenizer, setting.sequence_length)
    return LabelledTexts(tokens, torch.tensor([label for _, label in part]))
