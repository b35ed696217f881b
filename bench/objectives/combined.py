"""Strategies made of other strategies: one backbone and head, an objective for each step.

Which objective a step trains is drawn from the step's own generator (`Mixture`) or follows from its place in
the run (`Phases`); never from a rank. All of a step's rows share it, so that losses keep their own mean.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from bench.config.build import build, find_class, find_options
from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models.flops import StepCost
from bench.objectives.base import Core, Likelihood, Loss, Objective, ObjectiveOptions, Shapes, TextObjective
from bench.objectives.sampling import Sampling

PART = "part"  # batch key: the index of the step's objective, the same in every row


@dataclass(frozen=True)
class CombinedOptions(ObjectiveOptions):
    """What is combined. Shares are of the steps, hence of the positions processed."""

    parts: dict[str, Any] = MISSING  # name -> a text strategy's own YAML; by `defaults: - clm@parts.clm`
    shares: dict[str, float] = MISSING  # name -> share of the steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if set(self.parts) != set(self.shares):
            raise ConfigError(
                f"strategy.shares names {', '.join(self.shares)}, strategy.parts {', '.join(self.parts)}; "
                "give every part one share"
            )
        total = sum(self.shares.values())
        if not math.isclose(total, 1, abs_tol=1e-6) or not all(share > 0 for share in self.shares.values()):
            raise ConfigError(f"strategy.shares sum to {total:g}; use shares above 0 that sum to 1")


class Combined(TextObjective):
    """Text objectives that train one backbone, and the head that predicts its tokens.

    A subclass chooses among them.
    """

    options: CombinedOptions

    def __init__(
        self, options: CombinedOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        shared = Core(self.backbone, self.head)
        self.parts = nn.ModuleDict(
            {
                name: build(node, Objective, _key(name), shapes=shapes, optimizer=optimizer, core=shared)
                for name, node in options.parts.items()
            }
        )
        self.names = sorted(options.shares)  # a run's id does not know the order of keys
        core_weights = {id(p) for module in (self.backbone, self.head) for p in module.parameters()}
        self.mask_shift = max(self.part(name).mask_shift for name in self.names)
        self.has_idle_weights = any(id(p) not in core_weights for p in self.parameters())

    @classmethod
    def n_extra_tokens(cls, options: Any, shapes: Shapes) -> int:
        """As many as the neediest part: parts share their sentinels."""
        needs = []
        for name, node in options.parts.items():
            part = find_class(node, Objective, _key(name))
            if part.modality != "text":
                raise ConfigError(f"{_key(name)} trains on {part.modality}; combine strategies of text")
            if issubclass(part, Combined):
                raise ConfigError(f"{_key(name)} is itself made of parts; name its parts here")
            needs.append(part.n_extra_tokens(find_options(part, node, _key(name)), shapes))
        return max(needs)

    def part(self, name: str) -> Objective:
        """One of the objectives."""
        return cast(Objective, self.parts[name])

    def corrupt_as(self, name: str, rows: Batch, generator: torch.Generator) -> Batch:
        """A batch for one of the objectives, marked as such."""
        batch = self.part(name).corrupt(rows, generator)
        n_rows = len(next(iter(batch.values())))
        return batch | {PART: torch.full((n_rows,), self.names.index(name))}

    def loss(self, batch: Batch) -> Loss:
        """The loss of the objective that the batch was made for."""
        return self.part(self.names[int(batch[PART][0])]).loss(batch)

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """The mean over the parts by their shares, at the number of rows that fits all of them."""
        costs = [self.part(name).step_cost(tokens_per_step) for name in self.names]
        return StepCost.mean(costs, [self.options.shares[name] for name in self.names])

    @property
    def likelihoods(self) -> frozenset[Likelihood]:  # type: ignore[override]
        """What any part can give."""
        return frozenset().union(*(self.part(name).likelihoods for name in self.names))

    def token_nats(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """By the first part that has this kind."""
        able = [self.part(name) for name in self.names if kind in self.part(name).likelihoods]
        return able[0].token_nats(tokens, kind, samples=samples, generator=generator, scored=scored)

    @property
    def writes(self) -> str | None:  # type: ignore[override]
        """As the part that writes."""
        writer = self.writer()
        return writer.writes if writer else None

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """As the part that writes."""
        writer = self.writer()
        return (writer.write if writer else super().write)(prompts, n_new, sampling, uniforms)

    def writer(self) -> Objective | None:
        """The first part that has a likelihood to draw texts from, or else the first that writes at all."""
        able = [self.part(name) for name in self.names if self.part(name).writes]
        return min(able, key=lambda part: "exact" not in part.likelihoods, default=None)


class Mixture(Combined):
    """Each step trains one of the objectives, drawn by their shares."""

    @dataclass(frozen=True)
    class Options(CombinedOptions):
        """Nothing beyond the parts and their shares."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Draw the objective, then corrupt as it does."""
        shares = torch.tensor([self.options.shares[name] for name in self.names])
        drawn = int(torch.multinomial(shares, 1, generator=generator))
        return self.corrupt_as(self.names[drawn], rows, generator)


class Phases(Combined):
    """One objective after the other.

    Optimizer state, learning-rate schedule and the order of the data run on through all phases: a phase
    begins at the first step that is not before its share, with that step's rows.
    """

    @dataclass(frozen=True)
    class Options(CombinedOptions):
        """The phases' order."""

        order: list[str] = MISSING

        def __post_init__(self) -> None:
            super().__post_init__()
            if sorted(self.order) != sorted(self.shares):
                raise ConfigError(
                    f"strategy.order={self.order}: name every part of strategy.shares once "
                    f"({', '.join(self.shares)})"
                )

    options: Options

    @property
    def trunk_share(self) -> float:  # type: ignore[override]
        """The first phase; see `bench.training.shared_trunk`."""
        return self.options.shares[self.options.order[0]]

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """As the last phase does."""
        return self.corrupt_as(self.options.order[-1], rows, generator)

    def corrupt_at(self, rows: Batch, generator: torch.Generator, progress: float) -> Batch:
        """As the phase at `progress` does."""
        return self.corrupt_as(self.phase_at(progress), rows, generator)

    def writer(self) -> Objective | None:
        """The last phase that writes: what came before it is partly overwritten."""
        able = [self.part(name) for name in self.options.order if self.part(name).writes]
        return able[-1] if able else None

    def phase_at(self, progress: float) -> str:
        """The objective in force after this share of the run."""
        end = 0.0
        for name in self.options.order:
            end += self.options.shares[name]
            if progress < end - 1e-9:  # shares such as 0.1 + 0.2 do not add up exactly
                return name
        return self.options.order[-1]


def _key(name: str) -> str:
    return f"strategy.parts.{name}"
