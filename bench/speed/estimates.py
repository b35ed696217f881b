"""A study on paper: memory, hours, energy and CO2 of runs on many GPUs. Pure functions, no torch.

FLOPs and tokens come from `bench.models.flops`, as in the records. They are turned into the needs of a
machine under the assumptions in `conf/scale.yaml`. Memory is that of bf16-mixed training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

from bench.config.schema import Budget, Model
from bench.errors import ConfigError
from bench.models.flops import StepCost, n_steps
from bench.training.memory import STATE_BYTES, activation_bytes

CAST_BYTES = 2  # the copy in bfloat16 that autocast keeps for backward
BUCKET_BYTES = 4  # DDP copies gradients into buckets, unless configured to use views
# Softmax of the logits, its gradient and that of the logits, all float32, coexist when backward begins.
LOGIT_BYTES = 12
RECOMPUTED = 4 / 3  # activation checkpointing repeats the forward pass, a third of the FLOPs
NODE = 8  # GPUs within which communication is free


@dataclass
class Gpu:
    """One GPU with its share of the server."""

    name: str = MISSING
    peak_flops: float = MISSING  # per second, dense, in the precision of training
    memory_gb: float = MISSING
    watts: float = MISSING  # under load


@dataclass
class Mfu:
    """Model FLOPs utilisation: the share of the peak that the model's own FLOPs reach."""

    low: float = MISSING
    expected: float = MISSING
    high: float = MISSING


@dataclass
class Scale:
    """Root of the settings of `bench scale`."""

    strategies: list[str] = MISSING
    models: list[str] = MISSING
    tokens_per_parameter: list[float] = MISSING
    seeds: int = MISSING
    gpus: list[int] = MISSING
    vocab_size: int = MISSING
    sequence_length: int = MISSING
    caption_length: int = MISSING
    image_size: int = MISSING
    tokens_per_step: int = MISSING
    gpu: Gpu = field(default_factory=Gpu)
    memory_share: float = MISSING
    mfu: Mfu = field(default_factory=Mfu)
    loss_per_doubling: float = MISSING
    pue: float = MISSING
    co2_kg_per_kwh: float = MISSING


@dataclass(frozen=True)
class Planned:
    """A strategy at a model size, before a budget is set."""

    strategy: str
    model_name: str
    model: Model
    parameters: int
    vocab_size: int  # of the logits; 0: it predicts no tokens
    cost: StepCost
    peak_targets: float  # predicted tokens of a step, in the part of the strategy that has most
    cooldown_share: float
    has_phases: bool  # they change at steps that depend on the length of the run

    def steps(self, tokens: float) -> int:
        """Return the optimizer steps of a run of this many tokens."""
        return n_steps(Budget(tokens=round(tokens), repeat=True), self.cost)

    def flops(self, tokens: float) -> float:
        """Return the FLOPs of a run of this many tokens, as its record would state them."""
        return self.steps(tokens) * self.cost.flops


@dataclass(frozen=True)
class Layout:
    """How a run uses its GPUs: with sharded states, with activations recomputed in backward."""

    sharded: bool
    recompute: bool

    @property
    def name(self) -> str:
        """Return the name for tables."""
        return ("FSDP" if self.sharded else "DDP") + (", recompute" if self.recompute else "")


LAYOUTS = (Layout(False, False), Layout(True, False), Layout(False, True), Layout(True, True))


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU when backward begins."""

    states: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Return the sum of all parts."""
        return self.states + self.activations + self.logits


def state_bytes(parameters: int, n_layers: int, n_gpus: int, *, sharded: bool) -> float:
    """Return the bytes of weights, gradients and moments on each GPU.

    With sharding (FSDP, arXiv:2304.11277): a share of the states, and two blocks in bfloat16, the current one
    and the next one.
    """
    if sharded:
        return STATE_BYTES * parameters / n_gpus + 2 * CAST_BYTES * parameters / n_layers
    return (STATE_BYTES + CAST_BYTES + BUCKET_BYTES) * parameters


def memory(run: Planned, n_gpus: int, layout: Layout) -> Memory:
    """Return the memory of a run on each of `n_gpus`, with the rows of a step divided among them."""
    share = math.ceil(run.cost.rows / n_gpus) / run.cost.rows
    return Memory(
        state_bytes(run.parameters, run.model.n_layers, n_gpus, sharded=layout.sharded),
        activation_bytes(run.model, run.cost.forward_tokens * share, recompute=layout.recompute),
        LOGIT_BYTES * run.peak_targets * share * run.vocab_size,
    )


def fitting(run: Planned, n_gpus: int, available_bytes: float) -> Layout | None:
    """Return the first of `LAYOUTS` that fits, in order of their cost in time; None if none fits."""
    return next((x for x in LAYOUTS if memory(run, n_gpus, x).total <= available_bytes), None)


def efficiency(n_gpus: int, loss_per_doubling: float) -> float:
    """Return the throughput per GPU relative to one node."""
    return 1 - loss_per_doubling * max(0.0, math.log2(n_gpus / NODE))


def gpu_hours(flops: float, peak_flops: float, utilisation: float, *, recompute: bool = False) -> float:
    """Return the hours of one GPU.

    Args:
        flops: the model's own FLOPs, without recomputation.
        peak_flops: per second.
        utilisation: the share of the peak that they reach without recomputation.
        recompute: activations are recomputed in backward.
    """
    return flops * (RECOMPUTED if recompute else 1) / (peak_flops * utilisation) / 3600


def kwh(hours: float, watts: float, pue: float) -> float:
    """Return the energy of these GPU-hours at the data centre's meter."""
    return hours * watts * pue / 1000


def separately(budgets: Sequence[float]) -> float:
    """Return the cost of runs of these budgets if each is trained from its first step."""
    return sum(budgets)


def branched(budgets: Sequence[float], cooldown_share: float) -> float:
    """Return the cost of these runs as branches of one trunk (Haegele et al. 2024, arXiv:2405.18392).

    At a constant rate a short run, up to its cooldown, is the beginning of a longer one: the beginning is
    trained once, for the longest run, and each run adds its own cooldown.

    Args:
        budgets: of runs that differ only in length, in any unit that grows with the steps.
        cooldown_share: of each run.
    """
    return (1 - cooldown_share) * max(budgets) + cooldown_share * sum(budgets)


def validate(settings: Scale) -> None:
    """Raise ConfigError for settings without meaning; it names the key and the fix."""
    for key in ("strategies", "models", "tokens_per_parameter", "gpus"):
        values = getattr(settings, key)
        if not values or len({str(value) for value in values}) < len(values):
            raise ConfigError(f"{key}={values}: name one or more, each once")
    positive = {key: getattr(settings, key) for key in ("seeds", "vocab_size", "image_size")}
    positive |= {f"gpu.{key}": getattr(settings.gpu, key) for key in ("peak_flops", "memory_gb", "watts")}
    positive |= {f"gpus[{i}]": n for i, n in enumerate(settings.gpus)}
    positive |= {f"tokens_per_parameter[{i}]": n for i, n in enumerate(settings.tokens_per_parameter)}
    positive |= {"memory_share": settings.memory_share, "co2_kg_per_kwh": settings.co2_kg_per_kwh}
    for key, value in positive.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{key}={value}: use a number above 0")
    if settings.memory_share > 1:
        raise ConfigError(f"memory_share={settings.memory_share}: use a share up to 1")
    mfu = settings.mfu
    if not 0 < mfu.low <= mfu.expected <= mfu.high <= 1:
        raise ConfigError(
            f"mfu={mfu.low}, {mfu.expected}, {mfu.high}: use shares above 0, low <= expected <= high"
        )
    if not 1 <= settings.pue < math.inf:
        raise ConfigError(f"pue={settings.pue}: use 1 or more")
    least = efficiency(max(settings.gpus), settings.loss_per_doubling)
    if not 0 < least <= 1:
        raise ConfigError(
            f"loss_per_doubling={settings.loss_per_doubling} leaves {max(settings.gpus)} GPUs {least:g} of "
            "their throughput; use a smaller share, 0 or more"
        )
