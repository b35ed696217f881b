"""A study on paper: memory, hours, energy and CO2 of runs on many GPUs. Pure functions, no torch.

FLOPs and positions come from `bench.models.flops`, as those of the records do. What is here turns them into
what a machine takes, under assumptions that `conf/scale.yaml` states. Memory is that of bf16-mixed training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import MISSING

from bench.config.schema import Budget, Model
from bench.errors import ConfigError
from bench.models.flops import StepCost, n_steps

# A parameter, its gradient and AdamW's two moments in float32 (arXiv:1910.02054, sec. 3.1, counts 16 too).
STATE_BYTES = 16
CAST_BYTES = 2  # the copy in bfloat16 that autocast keeps for backward
BUCKET_BYTES = 4  # DDP copies gradients into buckets, unless told to use views
# Softmax of the logits, its gradient and that of the logits, all float32, at once when backward begins.
LOGIT_BYTES = 12
RECOMPUTED = 4 / 3  # activation checkpointing runs the forward pass, a third of the whole, once more
NODE = 8  # GPUs within which communication is free


@dataclass
class Gpu:
    """One GPU and its share of the server."""

    name: str = MISSING
    peak_flops: float = MISSING  # a second, dense, in the precision of training
    memory_gb: float = MISSING
    watts: float = MISSING  # of the GPU with its share of the server, under load


@dataclass
class Mfu:
    """Model FLOPs utilisation: the share of the peak that the model's own FLOPs reach."""

    low: float = MISSING
    expected: float = MISSING
    high: float = MISSING


@dataclass
class Scale:
    """Root of `bench scale`."""

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
    """A strategy at a size, before a budget is set."""

    strategy: str
    model_name: str
    model: Model
    parameters: int
    vocab_size: int  # of the logits; 0: it predicts no tokens
    cost: StepCost
    peak_targets: float  # a step's, of the part that has most of them
    cooldown_share: float
    has_phases: bool  # where they change depends on the length of the run

    def steps(self, positions: float) -> int:
        """Optimizer steps of a run of this many positions."""
        return n_steps(Budget(tokens=round(positions), repeat=True), self.cost)

    def flops(self, positions: float) -> float:
        """Of a run of this many positions, as its record would hold them."""
        return self.steps(positions) * self.cost.flops


@dataclass(frozen=True)
class Layout:
    """How a run lies on its GPUs: are states sharded, are activations computed again in backward?"""

    sharded: bool
    recompute: bool

    @property
    def name(self) -> str:
        """As tables call it."""
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
        """All of them."""
        return self.states + self.activations + self.logits


def state_bytes(parameters: int, n_layers: int, n_gpus: int, *, sharded: bool) -> float:
    """Weights, gradients and moments on each GPU.

    Sharded (FSDP, arXiv:2304.11277): a share of the states, and two blocks in bfloat16, the one at work and
    the one that comes next.
    """
    if sharded:
        return STATE_BYTES * parameters / n_gpus + 2 * CAST_BYTES * parameters / n_layers
    return (STATE_BYTES + CAST_BYTES + BUCKET_BYTES) * parameters


def activation_bytes(model: Model, positions: float, *, recompute: bool) -> float:
    """What `bench.models.transformer` saves for backward under bf16 autocast, with a fused attention.

    A block saves 24 D + 8 F bytes a position. Attention: its norm's input in float32 (4 D) and output in
    bfloat16 (2 D), queries, keys and values (6 D), the first two again after RoPE (4 D), the mix (2 D).
    Feed-forward: norm (6 D), both halves of the gate (4 F), GELU of one (2 F), their product (2 F).
    Recomputed: the input of every block (4 D), and all of one block at a time.
    """
    block = 24 * model.d_model + 8 * model.d_ff
    if recompute:
        return positions * (model.n_layers * 4 * model.d_model + block)
    return positions * model.n_layers * block


def memory(run: Planned, n_gpus: int, layout: Layout) -> Memory:
    """What a run needs on each of `n_gpus`, with the step's rows divided among them."""
    share = math.ceil(run.cost.rows / n_gpus) / run.cost.rows
    return Memory(
        state_bytes(run.parameters, run.model.n_layers, n_gpus, sharded=layout.sharded),
        activation_bytes(run.model, run.cost.forward_tokens * share, recompute=layout.recompute),
        LOGIT_BYTES * run.peak_targets * share * run.vocab_size,
    )


def fitting(run: Planned, n_gpus: int, available_bytes: float) -> Layout | None:
    """The first of `LAYOUTS` that fits; those that cost no time come first. None: none does."""
    return next((x for x in LAYOUTS if memory(run, n_gpus, x).total <= available_bytes), None)


def efficiency(n_gpus: int, loss_per_doubling: float) -> float:
    """Throughput per GPU against that of one node."""
    return 1 - loss_per_doubling * max(0.0, math.log2(n_gpus / NODE))


def gpu_hours(flops: float, peak_flops: float, utilisation: float, *, recompute: bool = False) -> float:
    """Hours of one GPU.

    Args:
        flops: the model's own, without what is computed again.
        peak_flops: a second.
        utilisation: the share of the peak that they reach where nothing is computed again.
        recompute: are activations computed again?
    """
    return flops * (RECOMPUTED if recompute else 1) / (peak_flops * utilisation) / 3600


def kwh(hours: float, watts: float, pue: float) -> float:
    """Energy of so many GPU-hours, at the data centre's meter."""
    return hours * watts * pue / 1000


def separately(budgets: Sequence[float]) -> float:
    """What runs of these budgets cost when each is trained from its first step."""
    return sum(budgets)


def branched(budgets: Sequence[float], cooldown_share: float) -> float:
    """What they cost as branches of one trunk (Haegele et al. 2024, arXiv:2405.18392).

    With a constant rate, a short run up to its cooldown is the beginning of a longer one: that is trained
    once, for the longest, and each run adds its own cooldown.

    Args:
        budgets: of runs that differ in length alone, in any unit that grows with the steps.
        cooldown_share: of each run.
    """
    return (1 - cooldown_share) * max(budgets) + cooldown_share * sum(budgets)


def validate(settings: Scale) -> None:
    """Refuse what has no meaning.

    Raises:
        ConfigError: names the key and the fix.
    """
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
        raise ConfigError(f"mfu={mfu.low}, {mfu.expected}, {mfu.high}: use shares above 0 that do not fall")
    if not 1 <= settings.pue < math.inf:
        raise ConfigError(f"pue={settings.pue}: use 1 or more")
    least = efficiency(max(settings.gpus), settings.loss_per_doubling)
    if not 0 < least <= 1:
        raise ConfigError(
            f"loss_per_doubling={settings.loss_per_doubling} leaves {max(settings.gpus)} GPUs {least:g} of "
            "their throughput; use a smaller share, 0 or more"
        )
