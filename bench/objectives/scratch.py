"""No pretraining: the backbone as it is initialised, the baseline of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from bench.objectives.base import Modality, Objective, ObjectiveOptions


class Scratch(Objective):
    """A backbone that goes to the tasks untrained."""

    modality: ClassVar[Modality] = "none"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""
