"""A model behind an OpenAI-compatible API, as an external reference: nothing is trained here."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from bench.config.schema import Optim
from bench.errors import InapplicableError
from bench.models.api_client import PRICES, Endpoint
from bench.objectives.base import Attention, Core, Modality, Objective, Shapes, TextNLL
from bench.objectives.options import EndpointReferenceOptions


class EndpointReference(Objective):
    """Scores texts; tasks that need features or token ids do not apply to it."""

    modality: ClassVar[Modality] = "none"
    has_weights = False

    Options = EndpointReferenceOptions
    options: EndpointReferenceOptions

    def __init__(self, options: EndpointReferenceOptions, *, shapes: Shapes, optimizer: Optim) -> None:
        nothing = Core(nn.Module(), nn.Identity())  # type: ignore[arg-type]
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=nothing)
        self.endpoint: Endpoint | None = None  # created when the folder of its answers is known

    @property
    def _ledger(self) -> Path | None:
        return None if self.run_folder is None else self.run_folder / "endpoint.json"

    @override
    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        raise InapplicableError("an endpoint gives no features")

    @override
    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        raise InapplicableError("an endpoint gives no features")

    @override
    def text_nll(self, texts: Sequence[str], data_dir: Path) -> TextNLL:
        if self.endpoint is None:
            self.endpoint = Endpoint(self.options, data_dir / "endpoint", self._ledger)
        scores = [self.endpoint.log_likelihood(text) for text in texts]
        return TextNLL(sum(scored.nll for scored in scores), sum(scored.n_bytes for scored in scores))

    def provenance(self) -> dict[str, Any]:
        """Return the requests, tokens and costs so far, with the prices."""
        prices = {name: getattr(self.options.access, name) for name in PRICES}
        return {"endpoint": asdict(self.endpoint.usage) | prices} if self.endpoint else {}
