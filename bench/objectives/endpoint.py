"""A model behind an OpenAI-compatible API, as a reference: nothing is trained and no weights are here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.config.schema import Optim
from bench.errors import InapplicableError
from bench.models.api_client import PRICES, Endpoint, Served
from bench.objectives.base import Attention, Core, Modality, Objective, ObjectiveOptions, Shapes, TextNLL


class EndpointReference(Objective):
    """Gives likelihoods of texts; tasks that need features or ids do not apply to it."""

    modality: ClassVar[Modality] = "none"
    has_weights = False

    @dataclass(frozen=True)
    class Options(ObjectiveOptions, Served):
        """Which server, which model, what it may cost."""

        def __post_init__(self) -> None:
            ObjectiveOptions.__post_init__(self)
            Served.__post_init__(self)

    options: Options

    def __init__(self, options: Options, *, shapes: Shapes, optimizer: Optim) -> None:
        nothing = Core(nn.Module(), nn.Identity())  # type: ignore[arg-type]
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=nothing)
        self.endpoint: Endpoint | None = None  # once the folder of its answers is known

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """There are none."""
        raise InapplicableError("an endpoint gives no features")

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """There are none."""
        raise InapplicableError("an endpoint gives no features")

    def text_nll(self, texts: Sequence[str], data_dir: Path) -> TextNLL:
        """Asks for one text after the other; see `bench.models.api_client.Endpoint.log_likelihood`."""
        if self.endpoint is None:
            self.endpoint = Endpoint(self.options, data_dir / "endpoint")
        found = [self.endpoint.log_likelihood(text) for text in texts]
        return TextNLL(sum(scored.nll for scored in found), sum(scored.n_bytes for scored in found))

    def provenance(self) -> dict[str, Any]:
        """What was asked and what it cost."""
        prices = {name: getattr(self.options.access, name) for name in PRICES}
        return {"endpoint": asdict(self.endpoint.usage) | prices} if self.endpoint else {}
