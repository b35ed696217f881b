"""What a task is: something that a pretrained strategy is asked to do, with a metric and a chance level."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bench.data.corpora.nltk import corpus_reader
from bench.data.pairs import PairData
from bench.data.shards import TextData
from bench.errors import InapplicableError as InapplicableError
from bench.objectives.base import Objective
from bench.tasks.feature_cache import FeatureCache
from bench.tasks.meter import Meter


@dataclass(frozen=True)
class Setting:
    """What a task may use besides the model: the same for every strategy of a run's cell.

    The meter counts what the evaluation costs: forward passes of the model's backbone by themselves, anything
    else that is not small by `setting.meter.add`.
    """

    tokenizer: Tokenizer
    sequence_length: int
    text: TextData
    pairs: PairData
    data_dir: Path
    seed: int
    keep_going: Callable[[], None]  # called between steps; raises when the run is told to stop
    meter: Meter = field(default_factory=Meter)
    cache: FeatureCache = field(default_factory=FeatureCache)  # shared by the tasks of one checkpoint
    permutes_labels: bool = False  # in an audit: what is learnt from such labels must score chance

    def labels(self, given: Tensor) -> Tensor:
        """The labels (N, ...) to fit to: as given; in an audit, of other items. Never those of test items."""
        if not self.permutes_labels:
            return given
        return given[torch.randperm(len(given), generator=torch.Generator().manual_seed(self.seed))]


@dataclass(frozen=True)
class Measured:
    """One metric of one task.

    `chance` is what a model that knows nothing scores, None where that is not defined. `n_labels` is the
    number of labelled items that were fitted to, where a task is measured at several (label budgets).
    `higher_is_better` is None for what only describes: nothing is better or worse.
    """

    metric: str
    value: float
    chance: float | None
    n_items: int
    higher_is_better: bool | None = True
    n_labels: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task found.

    Attributes:
        scores: the headline metric first; a (metric, n_labels) occurs once.
        items: arrays that the scores are made of, under the metric's name: (N,) outcomes of the test items in
            a fixed order, the same for every strategy, so that strategies can be paired by item. With label
            budgets `metric@n_labels`; with several fits (fits, N). Also what figures are drawn from.
        counts: items that could not count, by the reason ("label unseen in training").
        samples: texts for a reader, each a row of a small table: column -> text.
    """

    scores: list[Measured]
    items: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)


class Task(ABC):
    """Base of all tasks."""

    Options: ClassVar[type[Any]]
    nltk_corpora: tuple[str, ...] = ()  # that it reads from the user's NLTK data

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Measure a pretrained strategy; `model` is left as it was.

        Raises:
            InapplicableError: the strategy has no such input or output.
            DataError: the task's data is missing or too small.
        """

    def check(self, key: str) -> None:
        """Look for data that a user must bring, before anything is trained.

        Args:
            key: of the task in the config, for messages.

        Raises:
            DataError: missing; says how to get them.
        """
        for name in self.nltk_corpora:
            corpus_reader(name, key)

    def ceiling(self, setting: Setting) -> Outcome | None:
        """What one that knows every answer gets through the task's own scoring; None: nobody can know it."""
        return None
