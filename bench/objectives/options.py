"""The options of every strategy with their bounds, so that settings are checked without torch.

The options of a class are named after it: `bench.objectives.mlm.MaskedLM` has `MaskedLMOptions`. A class
whose options are not listed here is imported when its settings are checked, which takes seconds.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Interval, MinLen
from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import (
    Checked,
    NonNegative,
    OptionError,
    PositiveShare,
    ShareBelowOne,
    Temperature,
    Text,
    choice,
)
from bench.config.build import find_options, listed_options
from bench.config.checks import MODALITIES
from bench.config.schema import Config
from bench.models.api_client import Served

POOLINGS = ("mean", "last", "first")
ROOM = "bench.objectives"
Scale = Annotated[float, Interval(gt=0, le=10**4)]


@dataclass(frozen=True)
class ObjectiveOptions(Checked):
    """Options that every strategy has."""

    usual_key: ClassVar[str] = "strategy"

    modality: Annotated[str, choice(*MODALITIES)] = MISSING  # the training data
    attention: Annotated[str, choice("causal", "bidirectional")] = MISSING  # when features are computed
    pooling: Annotated[str, choice(*POOLINGS)] = MISSING  # from hidden states to one feature vector

    @override
    def check_run(self, config: Config) -> None:
        if self.modality == "text" and config.optim.tokens_per_step < config.sequence_length:
            raise OptionError(
                "optim.tokens_per_step",
                config.optim.tokens_per_step,
                f"a step holds no row of sequence_length={config.sequence_length} tokens; raise it",
            )


@dataclass(frozen=True)
class TextOptions(ObjectiveOptions):
    """Options of a strategy that trains on text."""

    modality: Annotated[str, choice("text")] = MISSING


@dataclass(frozen=True)
class PairOptions(ObjectiveOptions):
    """Options of a strategy that trains on images with captions."""

    modality: Annotated[str, choice("pairs")] = MISSING


@dataclass(frozen=True)
class ScratchOptions(ObjectiveOptions):
    """Options of a strategy that is not trained."""

    modality: Annotated[str, choice("none")] = MISSING


TrivialOptions = ScratchOptions
PrefixLMOptions = MaskedDiffusionOptions = TextOptions
CaptioningOptions = PairOptions


@dataclass(frozen=True)
class ReferenceOptions(ScratchOptions):
    """The pooling of hidden states; attention is the checkpoint's own."""

    attention: Annotated[str, choice("own")] = MISSING

    @override
    def check_run(self, config: Config) -> None:
        if config.model.name is None:
            advice = "strategy=reference measures a checkpoint: choose model=hf model.name=PATH"
            raise OptionError("model.name", None, advice)


@dataclass(frozen=True)
class EndpointReferenceOptions(ScratchOptions, Served):
    """The server, the model, and the costs."""


@dataclass(frozen=True)
class CausalLMOptions(TextOptions):
    """Noise against overfitting on repeated data (Gao et al. 2025, arXiv:2510.04071); 0: none.

    With noise, CLM is a fair competitor of masked diffusion (Prabhudesai et al. 2025, arXiv:2507.15857).
    """

    dropout: ShareBelowOne = MISSING  # share of each block's output set to zero in training
    # Probability that an input token is replaced by [MASK] in training.
    input_mask_rate: ShareBelowOne = MISSING


@dataclass(frozen=True)
class MaskedLMOptions(TextOptions):
    """Which tokens are predicted and what the model sees in their place."""

    mask_rate: PositiveShare = MISSING  # share of tokens predicted
    # bert: 80 % [MASK], 10 % random, 10 % unchanged; mask: all [MASK]
    scheme: Annotated[str, choice("bert", "mask")] = MISSING


@dataclass(frozen=True)
class MaskedNextTokenOptions(TextOptions):
    """The share of masked tokens."""

    mask_rate: PositiveShare = MISSING  # share of tokens predicted; all of them are shown as [MASK]


@dataclass(frozen=True)
class ReplacedTokenDetectionOptions(TextOptions):
    """The masked share, the generator's size and the weight of the discriminator's loss."""

    mask_rate: PositiveShare = MISSING  # share of tokens that the generator fills
    generator_share: PositiveShare = MISSING  # its widths as a share of the discriminator's
    discriminator_weight: Scale = MISSING  # lambda of the paper


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt a text (UL2, table 1)."""

    rate: Annotated[float, Interval(gt=0, lt=1)] = MISSING  # share of tokens corrupted
    # Tokens; null: one span at the end, UL2's sequential denoiser.
    mean_span: Annotated[float, Ge(1)] | None = MISSING
    mode: Text | None = MISSING  # paradigm token before the text; null: none, as in T5


@dataclass(frozen=True)
class DenoisingOptions(TextOptions):
    """The denoisers, each with the same share of the steps."""

    denoisers: Annotated[list[Denoiser], MinLen(1)] = MISSING


@dataclass(frozen=True)
class ClipOptions(PairOptions):
    """The learned temperature."""

    initial_temperature: Temperature = MISSING
    min_temperature: Temperature = MISSING  # learned values are clipped here


@dataclass(frozen=True)
class SigLipOptions(PairOptions):
    """Scale and bias of the logits; both are learned, the scale through its logarithm."""

    initial_scale: Scale = MISSING  # the paper's t = exp(t'), an inverse temperature
    # The paper's b: how rare a matching pair is among all pairs.
    initial_bias: Annotated[float, Interval(ge=-(10**4), le=10**4)] = MISSING


@dataclass(frozen=True)
class MixtureOptions(TextOptions):
    """The parts and their shares of the steps, hence of the tokens read."""

    parts: dict[str, Any] = MISSING  # name -> options of a text strategy, from `defaults: - clm@parts.clm`
    shares: dict[str, NonNegative] = MISSING  # name -> share of the steps, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        named = f"name the same parts as strategy.parts: {', '.join(self.parts)}"
        self.require(bool(self.parts) and set(self.parts) == set(self.shares), "shares", named)
        total = sum(self.shares.values())
        is_whole = math.isclose(total, 1, abs_tol=1e-6) and all(share > 0 for share in self.shares.values())
        self.require(is_whole, "shares", f"they sum to {total:g}; use shares above 0 that sum to 1")
        for name, node in self.parts.items():
            self._check_part(f"{self.usual_key}.parts.{name}", name, node)

    def _check_part(self, key: str, name: str, node: Any) -> None:
        """Check the options of a part; those that are not listed here are checked when the part is built."""
        self.require(isinstance(node, dict), "parts", f"give {name} the options of a text strategy")
        listed = listed_options(node, ROOM)
        if listed is None:
            return
        options = find_options(listed, node, key)
        if options.modality != "text":
            raise OptionError("modality", options.modality, "combine text strategies only", key)
        if isinstance(options, MixtureOptions):
            raise OptionError("parts", list(options.parts), "name these parts beside the others instead", key)


@dataclass(frozen=True)
class PhasesOptions(MixtureOptions):
    """The order of the phases."""

    order: list[str] = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        named = f"name every part of strategy.shares once ({', '.join(self.shares)})"
        self.require(sorted(self.order) == sorted(self.shares), "order", named)
