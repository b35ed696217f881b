"""No pretraining: the backbone as it is initialised, the baseline of every comparison."""

from typing import ClassVar

from bench.objectives.base import Modality, Objective
from bench.objectives.options import ScratchOptions


class Scratch(Objective):
    """An untrained backbone."""

    modality: ClassVar[Modality] = "none"
    Options = ScratchOptions
