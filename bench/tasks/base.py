"""What a task is: something that a pretrained strategy is asked to do, with a metric and a chance level."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer

from bench.errors import InapplicableError as InapplicableError
from bench.objectives.base import Objective
from bench.pairs import PairData
from bench.tokens import TextData


@dataclass(frozen=True)
class Setting:
    """What a task may use besides the model: the same for every strategy of a run's cell."""

    tokenizer: Tokenizer
    sequence_length: int
    text: TextData
    pairs: PairData
    data_dir: Path
    seed: int
    keep_going: Callable[[], None]  # called between steps; raises when the run is told to stop


@dataclass(frozen=True)
class Measured:
    """One metric of one task."""

    metric: str
    value: float
    chance: float
    n_items: int
    higher_is_better: bool = True


class Task(ABC):
    """Base of all tasks."""

    Options: ClassVar[type[Any]]

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, model: Objective, setting: Setting) -> list[Measured]:
        """Metrics of a pretrained strategy, the headline metric first; `model` is left as it was.

        Raises:
            InapplicableError: the strategy has no such input or output.
            DataError: the task's data is missing or too small.
        """
