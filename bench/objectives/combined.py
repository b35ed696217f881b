"""Strategies that combine others on one backbone and head, with one objective per step.

The objective of a step is drawn from the step's own generator (`Mixture`) or depends on the progress of the
run (`Phases`), so it is the same on all ranks. All rows of a step share it, so that each loss keeps its mean.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from bench.config.build import build, find_class, find_options
from bench.config.schema import Optim
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models.flops import StepCost
from bench.objectives.base import Core, Likelihood, Loss, Objective, Shapes, TextObjective
from bench.objectives.options import MixtureOptions, PhasesOptions
from bench.objectives.sampling import Sampling

PART = "part"  # batch key: the index of the step's objective, the same in every row


class Combined(TextObjective):
    """Text objectives that train one backbone and one prediction head; subclasses choose among them."""

    options: MixtureOptions

    def __init__(
        self, options: MixtureOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        shared = Core(self.backbone, self.head)
        self.parts = nn.ModuleDict(
            {
                name: build(node, Objective, _key(name), shapes=shapes, optimizer=optimizer, core=shared)
                for name, node in options.parts.items()
            }
        )
        self.names = sorted(options.shares)  # a run's id does not depend on the order of keys
        core_weights = {id(p) for module in (self.backbone, self.head) for p in module.parameters()}
        self.mask_shift = max(self.part(name).mask_shift for name in self.names)
        self.has_idle_weights = any(id(p) not in core_weights for p in self.parameters())

    @classmethod
    @override
    def n_extra_tokens(cls, options: Any, shapes: Shapes) -> int:
        needs = []
        for name, node in options.parts.items():
            part = find_class(node, Objective, _key(name))
            if part.modality != "text":
                raise ConfigError(f"{_key(name)} trains on {part.modality}; combine text strategies only")
            if issubclass(part, Combined):
                raise ConfigError(f"{_key(name)} has parts of its own; name them here instead")
            needs.append(part.n_extra_tokens(find_options(part.Options, node, _key(name)), shapes))
        return max(needs)  # parts share their sentinels

    def part(self, name: str) -> Objective:
        """Return one of the objectives."""
        return cast(Objective, self.parts[name])

    def corrupt_as(self, name: str, rows: Batch, generator: torch.Generator) -> Batch:
        """Return a batch for one of the objectives, with its index under `PART`."""
        batch = self.part(name).corrupt(rows, generator)
        n_rows = len(next(iter(batch.values())))
        return batch | {PART: torch.full((n_rows,), self.names.index(name))}

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of the objective for which the batch was made."""
        return self.part(self.names[int(batch[PART][0])]).loss(batch)

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Return the mean cost of the parts by their shares, at the number of rows that fits all of them."""
        costs = [self.part(name).step_cost(tokens_per_step) for name in self.names]
        return StepCost.mean(costs, [self.options.shares[name] for name in self.names])

    @property
    def isolates_documents(self) -> bool:  # type: ignore[override]
        """Whether all parts do."""
        return all(self.part(name).isolates_documents for name in self.names)

    @property
    def scorers(self) -> list[str]:
        """The names of the parts by which texts are scored."""
        return self.names

    @property
    def likelihoods(self) -> frozenset[Likelihood]:  # type: ignore[override]
        """The kinds that any of the scoring parts supports."""
        return frozenset().union(*(self.part(name).likelihoods for name in self.scorers))

    def token_nll(self, tokens: Tensor, kind: Likelihood, **how: Any) -> Tensor:
        """Score tokens by the first scoring part that supports this kind."""
        able = [self.part(name) for name in self.scorers if kind in self.part(name).likelihoods]
        return able[0].token_nll(tokens, kind, **how)

    @property
    def writes(self) -> str | None:  # type: ignore[override]
        """How the part that writes does it."""
        writer = self.writer()
        return writer.writes if writer else None

    @override
    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        writer = self.writer()
        return (writer.write if writer else super().write)(prompts, n_new, sampling, uniforms)

    def writer(self) -> Objective | None:
        """Return the first part with an exact likelihood, else the first that writes."""
        able = [self.part(name) for name in self.names if self.part(name).writes]
        return min(able, key=lambda part: "exact" not in part.likelihoods, default=None)


class Mixture(Combined):
    """Train one of the objectives in each step, drawn with the shares as probabilities."""

    Options = MixtureOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Draw the objective, then apply its corruption."""
        shares = torch.tensor([self.options.shares[name] for name in self.names])
        drawn = int(torch.multinomial(shares, 1, generator=generator))
        return self.corrupt_as(self.names[drawn], rows, generator)


class Phases(Combined):
    """Train one objective after the other.

    Optimizer state, learning-rate schedule and data order continue through all phases.
    """

    Options = PhasesOptions
    options: PhasesOptions

    @property
    def trunk_share(self) -> float:  # type: ignore[override]
        """The share of the first phase; see `bench.training.trunk`."""
        return self.options.shares[self.options.order[0]]

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Apply the corruption of the last phase."""
        return self.corrupt_as(self.options.order[-1], rows, generator)

    def corrupt_at(self, rows: Batch, generator: torch.Generator, progress: float) -> Batch:
        """Apply the corruption of the phase at `progress`."""
        return self.corrupt_as(self.phase_at(progress), rows, generator)

    @property
    @override
    def scorers(self) -> list[str]:
        """The last phase alone, since it may leave the predictions of an earlier one worse than chance."""
        return self.options.order[-1:]

    def writer(self) -> Objective | None:
        """Return the last phase if it writes, for the same reason."""
        last = self.part(self.options.order[-1])
        return last if last.writes else None

    def phase_at(self, progress: float) -> str:
        """Return the name of the objective after this share of the run."""
        end = 0.0
        for name in self.options.order:
            end += self.options.shares[name]
            if progress < end - 1e-9:  # shares such as 0.1 + 0.2 do not add up exactly
                return name
        return self.options.order[-1]


def _key(name: str) -> str:
    return f"strategy.parts.{name}"
