"""Settings of `bench speed` -> the plan: for each size and strategy, the tasks of all contenders.

This module never imports torch, unlike a contender's process, which executes a task.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bench.config.checks import validate
from bench.config.compose import compose_config, compose_runs
from bench.config.run_spec import RunSpec
from bench.config.schema import MOST_PROCESSES
from bench.config.search_path import choices, find_choice
from bench.data.tokenizer import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE
from bench.errors import ConfigError

OURS, COMPILED, DATA, LIMIT = "ours", "ours_compiled", "data", "limit"
SMALL, BARE = "ours_small", "bare_small"  # short steps: under Lightning, and in a bare loop
ALL_PLAIN = "all_plain"
ABLATIONS = {  # our step without one of its optimisations
    "last_block_everywhere": "last block at all tokens",
    "logits_everywhere": "last block and logits at all tokens",
    "whole_logits": "logits of all targets at once, cross-entropy by autograd",
    "rope_by_autograd": "RoPE by autograd",
    "separate_products": "a product for each of q, k, v, gate and value; RoPE by autograd",
    "unfused_adamw": "AdamW by operations on each parameter",
    "filled_tensors": "new tensors filled with NaN, as in torch's deterministic mode",
    ALL_PLAIN: "all of these",
}
OWN = (OURS, COMPILED, SMALL, BARE, DATA, LIMIT, *ABLATIONS)  # contenders of ours, for every strategy
NANOGPT = "nanogpt"
HUGGING_FACE = ("gpt2", "modernbert_decoder", "modernbert", "t5", "clip")
PEERS = (NANOGPT, *HUGGING_FACE)

NEVER_S = 1e9  # seconds between checkpoints: longer than any run
HEAD_WIDTH, SMALL_AT_ONCE = (
    4,
    8,
)  # of small steps: the width of a head, and how many times as many in a block
MOST_STEPS, MOST_TOKENS = 100_000, 2**20  # of a contender and of a step: data are generated beforehand
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What the process of one contender does."""

    contender: str
    spec: RunSpec  # our run, whose sizes and batches all contenders share
    n_steps: int
    warmup_steps: int
    steps_per_round: int
    image_size: int
    threads: int | None
    model_py: str | None  # nanoGPT's


@dataclass(frozen=True)
class Facts:
    """What a contender computes in one step."""

    what: str  # description for readers
    parameters: int
    tokens: int  # of the data; a peer's own class token does not count
    flops: float  # of matrix products, forward and backward
    peak_memory_bytes: int = 0  # of the first steps: allocated on the GPU, else of the process


@dataclass(frozen=True)
class Failure:
    """The reason why a contender failed, in one line."""

    reason: str


class Pace(Protocol):
    """The interface by which a contender is timed."""

    def start(self, facts: Facts) -> None:
        """Describe the step; called before the first one."""

    def step(self) -> None:
        """Mark the end of a step; returns once the next block may start."""

    def tell(self, seconds: float) -> None:
        """Report the seconds of a step, in place of `step`, by a contender that times itself."""


@dataclass
class Targets:
    """The targets of a size, each a ratio within one run; null means no target."""

    over_best_peer: float | None = None  # our tokens/s over those of the fastest peer, at least
    share_of_limit: float | None = None  # of the largest rate of matrix products, at least
    lightning_share: float | None = None  # of a step, below
    data_share: float | None = None  # of a step, below


@dataclass
class Size:
    """A model and the rows of its step: texts of `sequence_length`, or pairs with as many tokens in all."""

    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    d_ff: int = MISSING
    patch_size: int = MISSING
    rows_per_step: int = MISSING
    targets: Targets = field(default_factory=Targets)


@dataclass
class Place:
    """Device, precision and compilation of all contenders, with the keys of `conf/trainer`."""

    accelerator: str = MISSING
    precision: str = MISSING
    compile: bool = MISSING


@dataclass
class Speed:
    """The root schema of `bench speed`."""

    strategies: list[str] = MISSING
    models: list[str] = MISSING
    sizes: dict[str, Size] = MISSING
    sequence_length: int = MISSING
    vocab_size: int = MISSING
    caption_length: int = MISSING
    image_size: int = MISSING
    rounds: int = MISSING
    steps_per_round: int = MISSING
    warmup_steps: int = MISSING
    trainer: Place = field(default_factory=Place)
    threads: int | None = MISSING
    compiled: bool = MISSING
    ablations: bool = MISSING
    seed: int = MISSING
    nanogpt: str | None = MISSING
    out: str = MISSING
    peers: dict[str, list[str]] = MISSING
    nearest: dict[str, list[str]] = MISSING

    def n_steps(self, times: int = 1) -> int:
        """Return the steps of a contender whose blocks are `times` as long as usual.

        It is one more than are timed, since the last step of a run does additional work.
        """
        return self.warmup_steps + self.rounds * times * self.steps_per_round + 1

    @property
    def model_py(self) -> Path | None:
        """Return the path of nanoGPT's model file."""
        if self.nanogpt is None:
            return None
        path = Path(self.nanogpt).expanduser()
        return path / "model.py" if path.is_dir() else path

    @property
    def own(self) -> list[str]:
        """Return our contenders that the settings enable."""
        enabled = {COMPILED: self.compiled, **dict.fromkeys(ABLATIONS, self.ablations)}
        return [name for name in OWN if enabled.get(name, True)]

    def peers_of(self, strategy: str) -> list[str]:
        """Return the strategy's peers that can be measured, whether they match or are the nearest."""
        named = (self.peers | self.nearest).get(strategy, [])
        return [name for name in named if name != NANOGPT or self.nanogpt is not None]


@dataclass(frozen=True)
class Cell:
    """A strategy at a size, with the tasks of all its contenders."""

    strategy: str
    model: str
    tasks: tuple[Task, ...]


def compose_settings(name: str, root: type[T], overrides: Sequence[str]) -> T:
    """Compose `conf/<name>.yaml` with overrides into its schema, which the YAML calls `<name>_schema`."""
    ConfigStore.instance().store(name=f"{name}_schema", node=root)
    composed = compose_config(name, overrides)
    own = OmegaConf.masked_copy(composed, [part.name for part in fields(root)])  # type: ignore[arg-type]
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(root), own))
    assert isinstance(settings, root)
    return settings


def settings_of(overrides: Sequence[str]) -> Speed:
    """Compose `conf/speed.yaml` with overrides; raise ConfigError for an invalid value."""
    settings = compose_settings("speed", Speed, overrides)
    _validate(settings)
    return settings


def plan(settings: Speed) -> list[Cell]:
    """Plan each strategy at each size, in the order of sizes.

    Raises:
        ConfigError: a strategy is unknown or has no training, or sizes are inconsistent.
    """
    found = []
    for model in settings.models:
        for strategy in settings.strategies:
            size = settings.sizes[model]
            spec = _spec(strategy, model, size, settings)
            small = _spec(strategy, model, _smallest(size), settings)
            given = {
                name: (small, SMALL_AT_ONCE) if name in (SMALL, BARE) else (spec, 1)
                for name in (*settings.own, *settings.peers_of(strategy))
            }
            tasks = tuple(_task(name, *what, settings) for name, what in given.items())
            found.append(Cell(strategy, model, tasks))
    return found


def _smallest(size: Size) -> Size:
    """Return a size with as many blocks and weights but narrow and with few rows, where Python dominates."""
    return replace(size, d_model=HEAD_WIDTH * size.n_heads, d_ff=HEAD_WIDTH * size.n_heads, rows_per_step=2)


def _spec(strategy: str, model: str, size: Size, settings: Speed) -> RunSpec:
    """Compose the run as `bench train` does, without the rare validations and checkpoints."""
    tokens = size.rows_per_step * settings.sequence_length
    shape = {key: getattr(size, key) for key in ("d_model", "n_layers", "n_heads", "d_ff", "patch_size")}
    line = [
        *(f"strategy={strategy}", "model=0.5m", *(f"model.{key}={value}" for key, value in shape.items())),
        *(f"trainer={settings.trainer.accelerator}", f"trainer.precision={settings.trainer.precision}"),
        *("task=[]", "study=speed", f"seed={settings.seed}", f"optim.tokens_per_step={tokens}"),
        *(f"tokenizer.vocab_size={settings.vocab_size}", f"sequence_length={settings.sequence_length}"),
        *(f"caption_length={settings.caption_length}", f"budget.tokens={settings.n_steps() * tokens}"),
        *("budget.unique_bytes=null", "budget.unique_pairs=null", "budget.repeat=true"),
        *(f"trainer.checkpoint_every_s={NEVER_S}", "trainer.n_validations=1", "trainer.validation_batches=1"),
        *(f"trainer.log_every_n_steps={settings.steps_per_round}", "energy.metered=false"),
    ]
    (spec,) = compose_runs(line, multirun=False)
    try:
        validate(spec.typed())
    except ConfigError as error:
        raise ConfigError(f"models={model}: {error}") from error
    if spec.config["strategy"]["modality"] == "none":
        raise ConfigError(f"strategies: {strategy} has no pretraining step to time; remove it")
    return spec


def _task(name: str, spec: RunSpec, times: int, settings: Speed) -> Task:
    trainer = spec.config["trainer"] | {"compile": settings.trainer.compile or name == COMPILED}
    return Task(
        contender=name,
        spec=replace(spec, config=spec.config | {"trainer": trainer}),
        n_steps=settings.n_steps(times),
        warmup_steps=settings.warmup_steps,
        steps_per_round=times * settings.steps_per_round,
        image_size=settings.image_size,
        threads=settings.threads,
        model_py=None if settings.model_py is None else str(settings.model_py.resolve()),
    )


def _validate(settings: Speed) -> None:
    for key in ("strategies", "models"):
        names = getattr(settings, key)
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"{key}={names}: list at least one, each once")
    if unknown := [name for name in settings.models if name not in settings.sizes]:
        raise ConfigError(f"models: unknown size {unknown[0]}; choose from {', '.join(settings.sizes)}")
    _validate_place(settings)
    _validate_counts(settings)
    _validate_peers(settings)
    used = {name for strategy in settings.strategies for name in settings.peers_of(strategy)}
    if used & set(HUGGING_FACE) and importlib.util.find_spec("accelerate") is None:
        raise ConfigError("peers: Hugging Face's Trainer needs a further package: pip install accelerate")
    if settings.model_py is not None and not settings.model_py.is_file():
        raise ConfigError(
            f"nanogpt={settings.nanogpt}: no such file {settings.model_py}; set it to a folder made by "
            "git clone https://github.com/karpathy/nanoGPT, or set nanogpt=null"
        )


def _validate_place(settings: Speed) -> None:
    for key, known in (("accelerator", ("cpu", "gpu")), ("precision", ("32-true", "bf16-mixed"))):
        value = getattr(settings.trainer, key)
        if value not in known:
            raise ConfigError(f"trainer.{key}={value}: choose {' or '.join(known)}")
    if settings.compiled and settings.trainer.compile:
        raise ConfigError("compiled=true: trainer.compile=true already compiles all contenders; set only one")


def _validate_counts(settings: Speed) -> None:
    counts = {key: getattr(settings, key) for key in ("rounds", "steps_per_round", "warmup_steps", "seed")}
    counts |= {key: getattr(settings, key) for key in ("sequence_length", "caption_length", "image_size")}
    counts |= {f"sizes.{n}.rows_per_step": s.rows_per_step for n, s in settings.sizes.items()}
    for key, value in counts.items():
        least = 0 if key == "seed" else 1
        if value < least:
            raise ConfigError(f"{key}={value}: use {least} or more")
    if (n_small := settings.n_steps(SMALL_AT_ONCE)) > MOST_STEPS:
        raise ConfigError(f"rounds x steps_per_round: {n_small} small steps exceed {MOST_STEPS}; lower one")
    if not MIN_VOCAB_SIZE <= settings.vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"vocab_size={settings.vocab_size}: use {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}")
    if settings.threads is not None and not 1 <= settings.threads <= MOST_PROCESSES:
        raise ConfigError(f"threads={settings.threads}: use 1 to {MOST_PROCESSES}, or null")
    if not settings.out.strip():
        raise ConfigError("out is empty; set it to a folder, such as reports/speed")
    for name, size in settings.sizes.items():
        if size.rows_per_step * settings.sequence_length > MOST_TOKENS:
            raise ConfigError(
                f"sizes.{name}.rows_per_step={size.rows_per_step}: with {settings.sequence_length} tokens "
                f"per row a step exceeds {MOST_TOKENS} tokens; lower one"
            )
        if settings.image_size % max(1, size.patch_size):
            raise ConfigError(
                f"image_size={settings.image_size} must be a multiple of sizes.{name}.patch_size="
                f"{size.patch_size}; change one"
            )
        for key, value in vars(size.targets).items():
            if value is not None and not value > 0:
                raise ConfigError(f"sizes.{name}.targets.{key}={value}: use a number above 0, or null")


def _validate_peers(settings: Speed) -> None:
    rows = settings.peers | settings.nearest
    both = sorted(settings.peers.keys() & settings.nearest.keys())
    if both:
        raise ConfigError(f"nearest.{both[0]} is also in peers; keep only one")
    for strategy, names in rows.items():
        if wrong := [name for name in names if name not in PEERS]:
            raise ConfigError(f"peers.{strategy}: unknown peer {wrong[0]}; choose from {', '.join(PEERS)}")
    trained = choices("strategy")
    for strategy in settings.strategies:
        if strategy in trained and strategy not in rows and _is_trained(strategy):
            raise ConfigError(f"peers: {strategy} has none; add some, as in peers.clm=[gpt2]")


def _is_trained(strategy: str) -> bool:
    path = find_choice("strategy", strategy)
    assert path is not None
    node = OmegaConf.load(path)
    return OmegaConf.select(node, "modality") != "none"
