"""The contract of a task: a downstream evaluation of a pretrained model, with a metric and a chance level."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bench.config.installation import check_installed
from bench.data.corpora.nltk import corpus_reader
from bench.data.pairs import PairData
from bench.data.shards import TextData
from bench.errors import InapplicableError as InapplicableError
from bench.objectives.base import Objective
from bench.records import Fit
from bench.tasks.meter import Meter
from bench.tasks.probe import FeatureCache


@dataclass(frozen=True)
class Setting:
    """Everything a task may use besides the model; equal for all strategies that are compared.

    The meter counts the FLOPs of the evaluation. Forward passes of the model's backbone are counted
    automatically; any other considerable work is reported by `setting.meter.add`.
    """

    tokenizer: Tokenizer
    sequence_length: int
    text: TextData
    pairs: PairData
    data_dir: Path
    seed: int
    keep_going: Callable[[], None]  # called between steps; raises when the run is asked to stop
    meter: Meter = field(default_factory=Meter)
    cache: FeatureCache = field(default_factory=FeatureCache)  # shared by all tasks of one checkpoint
    fits: list[Fit] = field(default_factory=list)  # every fine-tuning that was made, for the record
    permutes_labels: bool = False  # set by an audit: models trained on permuted labels must score chance

    def labels(self, given: Tensor) -> Tensor:
        """Return the training labels (N, ...) to fit to, which an audit permutes; not for test labels."""
        if not self.permutes_labels:
            return given
        return given[torch.randperm(len(given), generator=torch.Generator().manual_seed(self.seed))]


@dataclass(frozen=True)
class Measured:
    """One metric of one task.

    Attributes:
        chance: the score of an uninformed model; None where that is undefined.
        higher_is_better: None for a descriptive quantity that has no better or worse.
        n_labels: the number of labelled training items, for tasks with label budgets.
    """

    metric: str
    value: float
    chance: float | None
    n_items: int
    higher_is_better: bool | None = True
    n_labels: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a task.

    Attributes:
        scores: the headline metric first; each pair of metric and n_labels occurs once.
        items: the arrays that the scores are computed from, by the metric's name: the outcomes (N,) of the
            test items in a fixed order that is the same for every strategy, so that strategies can be paired
            by item. With label budgets the name is `metric@n_labels`; with several fits the shape is
            (fits, N). Figures are drawn from them too.
        counts: the number of items that could not be used, by reason ("label unseen in training").
        samples: texts for the reader of a report; each is a table row, column -> text.
    """

    scores: list[Measured]
    items: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)


class Task(ABC):
    """Base class of all tasks. A new task is one subclass in one file, and one YAML file in conf/task.

    `Options` declares the keys of the YAML file; they have no defaults in Python, and the types of the fields
    state their bounds (`bench.config.bounds`). `evaluate` receives a pretrained model and a `Setting`, and
    returns an `Outcome`. What it must respect:

    - Protocol. A frozen probe fits a classifier to the model's features (`bench.tasks.probe`), fine-tuning
      trains a copy of the model (`bench.tasks.finetune`), zero-shot fits nothing. State the protocol in the
      task's name or options; scores of different protocols are never compared with each other.
    - Fairness. Never ask which strategy the model belongs to. If the model lacks a needed input or output,
      raise `InapplicableError`. Draw training items with `setting.seed`; test items are the same for all.
    - Chance. Give every score the value that a model without any knowledge reaches in expectation; a model
      whose features are all equal must score exactly that. Ties must therefore not favour the right answer
      (see `bench.tasks.probe.hits`).
    - Label budgets. A task that fits to labels measures several numbers of labels, where smaller sets are
      prefixes of larger ones (`bench.tasks.label_budgets`). Pass training labels through `setting.labels`.
    - Items. Return the outcome of every test item, in a fixed order.
    - Cost. Call `setting.keep_going()` between batches. The meter counts passes through the backbone; add
      the FLOPs of prediction heads and of other models by `setting.meter.add`.

    For text classification, tagging and extractive question answering, subclass `TextClassification`,
    `Tagging` or `QuestionAnswering` instead, which need only the data. The contract tests find a new task by
    its YAML file, and `bench audit` checks its chance level and its ceiling.

    Example of a zero-shot task on pairs of a right and a wrong text::

        class Capitals(Task):
            Options = LikelihoodOptions  # keys of the YAML file beside `_target_`

            def evaluate(self, model: Objective, setting: Setting) -> Outcome:
                texts = [whole_text(text, setting.tokenizer) for pair in PAIRS for text in pair]
                nll = continuation_nll(model, texts, self.options, setting)
                scores = -normalised(nll, texts, self.options.length_normalisation)
                right = torch.zeros(len(PAIRS), dtype=torch.long)  # column of the right text
                correct = hits(torch.from_numpy(scores).view(-1, 2), right)  # (N,); ties count 0.5
                name = f"accuracy_{self.options.kind}"
                return Outcome([Measured(name, float(correct.mean()), 0.5, len(correct))], {name: correct})
    """

    Options: ClassVar[type[Any]]
    packages: tuple[str, ...] = ()  # optional packages that the task needs, besides nltk for its corpora
    nltk_corpora: tuple[str, ...] = ()  # corpora that the task reads from the user's NLTK data

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Measure a pretrained model without changing it.

        Raises:
            InapplicableError: the strategy lacks a needed input or output.
            DataError: the task's data are missing or too small.
        """

    def check(self, key: str) -> None:
        """Check, before any training, that packages and data which the user must provide are present.

        Args:
            key: the task's key in the config, for messages.

        Raises:
            ConfigError: a package is missing; the message says how to install it.
            DataError: data are missing; the message says how to get them.
        """
        for package in self.packages:
            check_installed(package, key)
        for name in self.nltk_corpora:
            corpus_reader(name, key)

    def baseline(self, setting: Setting) -> Outcome | None:
        """Return the outcome of a trivial predictor that knows nothing of pretraining; None without one.

        It fits to the same labels and answers the same items as `evaluate`, under the same metrics; see
        `bench.tasks.baselines`. A task on which no strategy beats it gives no verdict.
        """
        return None

    def ceiling(self, setting: Setting) -> Outcome | None:
        """Return the outcome of a model that knows every answer; None where no such model can exist."""
        return None
