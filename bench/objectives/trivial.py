"""No network at all: each task is answered by its trivial baseline, as a reference beside all strategies."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from bench.config.schema import Optim
from bench.errors import InapplicableError
from bench.objectives.base import Attention, Core, Modality, Objective, Shapes, TextNLL
from bench.objectives.options import TrivialOptions


class Trivial(Objective):
    """Has no weights; `bench.tasks.evaluate` asks each task for its baseline (`Task.baseline`)."""

    modality: ClassVar[Modality] = "none"
    has_weights = False
    is_trivial = True

    Options = TrivialOptions

    def __init__(self, options: TrivialOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        nothing = Core(nn.Module(), nn.Identity())  # type: ignore[arg-type]
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=nothing)

    @override
    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        raise InapplicableError("a trivial baseline has no features")

    @override
    def text_nll(self, texts: Sequence[str], data_dir: Path) -> TextNLL:
        raise InapplicableError("a trivial baseline has no likelihood of its own")

    @override
    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        raise InapplicableError("a trivial baseline has no features")
