"""Settings of `bench speed` -> what is to be measured: a cell for each size and strategy. No torch."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bench.config.checks import validate
from bench.config.compose import compose_config, compose_runs
from bench.config.overrides import CONF
from bench.config.run_spec import RunSpec
from bench.config.schema import MOST_PROCESSES
from bench.data.tokenizer import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE
from bench.errors import ConfigError
from bench.speed.contract import ABLATIONS, BARE, COMPILED, HUGGING_FACE, NANOGPT, OWN, SMALL, PeerName, Task

NEVER_S = 1e9  # seconds between checkpoints: longer than any run
HEAD_WIDTH, SMALL_AT_ONCE = 4, 8  # of small steps: values of a head; how many more of them are timed at once
MOST_STEPS, MOST_POSITIONS = 100_000, 2**20  # of a contender, of a step: data are made before the first


@dataclass
class Targets:
    """What a size should reach, each as a ratio within one run; null: no target."""

    over_best_peer: float | None = None  # positions a second over those of the fastest peer, at least
    share_of_limit: float | None = None  # of the largest rate of matrix products, at least
    lightning_share: float | None = None  # of a step, below
    data_share: float | None = None  # of a step, below


@dataclass
class Size:
    """A model and the rows of its step: texts of `sequence_length`, or as many positions of pairs."""

    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    d_ff: int = MISSING
    patch_size: int = MISSING
    rows_per_step: int = MISSING
    targets: Targets = field(default_factory=Targets)


@dataclass
class Place:
    """Where everyone's steps are done, in which numbers, compiled or not: as in `conf/trainer`."""

    accelerator: str = MISSING
    precision: str = MISSING
    compile: bool = MISSING


@dataclass
class Speed:
    """Root of `bench speed`."""

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
        """Of a contender whose blocks are so many times as long as most are.

        One more than are timed, since a real run ends with what no other step has.
        """
        return self.warmup_steps + self.rounds * times * self.steps_per_round + 1

    @property
    def model_py(self) -> Path | None:
        """The file that holds nanoGPT's model."""
        if self.nanogpt is None:
            return None
        path = Path(self.nanogpt).expanduser()
        return path / "model.py" if path.is_dir() else path

    @property
    def own(self) -> list[str]:
        """Our contenders, those among them that are asked for."""
        asked_for = {COMPILED: self.compiled, **dict.fromkeys(ABLATIONS, self.ablations)}
        return [name for name in OWN if asked_for.get(name, True)]

    def peers_of(self, strategy: str) -> list[str]:
        """Its peers that can be measured, best matches or nearest."""
        named = (self.peers | self.nearest).get(strategy, [])
        return [name for name in named if name != NANOGPT or self.nanogpt is not None]


@dataclass(frozen=True)
class Cell:
    """A strategy at a size, with all that is measured beside it."""

    strategy: str
    model: str
    tasks: tuple[Task, ...]


def settings_of(overrides: Sequence[str]) -> Speed:
    """`conf/speed.yaml` with overrides, checked.

    Raises:
        ConfigError: a value that cannot be, in one line.
    """
    ConfigStore.instance().store(name="speed_schema", node=Speed)
    composed = compose_config("speed", overrides)
    own = OmegaConf.masked_copy(composed, [part.name for part in fields(Speed)])
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Speed), own))
    assert isinstance(settings, Speed)
    _validate(settings)
    return settings


def plan(settings: Speed) -> list[Cell]:
    """Each strategy at each size, sizes first.

    Raises:
        ConfigError: a strategy that is unknown or not trained, or sizes that do not fit together.
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
    """As many blocks and weights, but narrow, and few rows: Python takes as long, the rest hardly any."""
    return replace(size, d_model=HEAD_WIDTH * size.n_heads, d_ff=HEAD_WIDTH * size.n_heads, rows_per_step=2)


def _spec(strategy: str, model: str, size: Size, settings: Speed) -> RunSpec:
    """The run as `bench train` composes it, without what happens rarely: validation and checkpoints."""
    positions = size.rows_per_step * settings.sequence_length
    shape = {key: getattr(size, key) for key in ("d_model", "n_layers", "n_heads", "d_ff", "patch_size")}
    line = [
        *(f"strategy={strategy}", "model=0.5m", *(f"model.{key}={value}" for key, value in shape.items())),
        *(f"trainer={settings.trainer.accelerator}", f"trainer.precision={settings.trainer.precision}"),
        *("task=[]", "study=speed", f"seed={settings.seed}", f"optim.tokens_per_step={positions}"),
        *(f"tokenizer.vocab_size={settings.vocab_size}", f"sequence_length={settings.sequence_length}"),
        *(f"caption_length={settings.caption_length}", f"budget.tokens={settings.n_steps() * positions}"),
        *("budget.unique_bytes=null", "budget.unique_pairs=null", "budget.repeat=true"),
        *(f"trainer.checkpoint_every_s={NEVER_S}", "trainer.n_validations=1", "trainer.validation_batches=1"),
        *(f"logger.log_every_n_steps={settings.steps_per_round}", "energy.metered=false"),
    ]
    (spec,) = compose_runs(line, multirun=False)
    try:
        validate(spec.typed())
    except ConfigError as error:
        raise ConfigError(f"models={model}: {error}") from error
    if spec.config["strategy"]["modality"] == "none":
        raise ConfigError(f"strategies: {strategy} is not trained, so it has no step to time; leave it out")
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
            raise ConfigError(f"{key}={names}: name one or more, each once")
    if unknown := [name for name in settings.models if name not in settings.sizes]:
        raise ConfigError(f"models: there is no size {unknown[0]}; choose of {', '.join(settings.sizes)}")
    _validate_place(settings)
    _validate_counts(settings)
    _validate_peers(settings)
    used = {name for strategy in settings.strategies for name in settings.peers_of(strategy)}
    if used & set(HUGGING_FACE) and importlib.util.find_spec("accelerate") is None:
        raise ConfigError("peers: Hugging Face's Trainer needs a package more: pip install accelerate")
    if settings.model_py is not None and not settings.model_py.is_file():
        raise ConfigError(
            f"nanogpt={settings.nanogpt}: there is no file {settings.model_py}; fetch it by "
            "git clone https://github.com/karpathy/nanoGPT and give its folder, or set nanogpt=null"
        )


def _validate_place(settings: Speed) -> None:
    for key, known in (("accelerator", ("cpu", "gpu")), ("precision", ("32-true", "bf16-mixed"))):
        value = getattr(settings.trainer, key)
        if value not in known:
            raise ConfigError(f"trainer.{key}={value}: choose {' or '.join(known)}")
    if settings.compiled and settings.trainer.compile:
        raise ConfigError("compiled=true: with trainer.compile=true all are compiled; set one of the two")


def _validate_counts(settings: Speed) -> None:
    counts = {key: getattr(settings, key) for key in ("rounds", "steps_per_round", "warmup_steps", "seed")}
    counts |= {key: getattr(settings, key) for key in ("sequence_length", "caption_length", "image_size")}
    counts |= {f"sizes.{n}.rows_per_step": s.rows_per_step for n, s in settings.sizes.items()}
    for key, value in counts.items():
        least = 0 if key == "seed" else 1
        if value < least:
            raise ConfigError(f"{key}={value}: use {least} or more")
    if (n_small := settings.n_steps(SMALL_AT_ONCE)) > MOST_STEPS:
        raise ConfigError(f"rounds x steps_per_round: {n_small} small steps are too many; lower one")
    if not MIN_VOCAB_SIZE <= settings.vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"vocab_size={settings.vocab_size}: use {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}")
    if settings.threads is not None and not 1 <= settings.threads <= MOST_PROCESSES:
        raise ConfigError(f"threads={settings.threads}: use 1 to {MOST_PROCESSES}, or null")
    if not settings.out.strip():
        raise ConfigError("out is empty; give a folder, such as reports/speed")
    for name, size in settings.sizes.items():
        if size.rows_per_step * settings.sequence_length > MOST_POSITIONS:
            raise ConfigError(
                f"sizes.{name}.rows_per_step={size.rows_per_step}: at {settings.sequence_length} tokens a "
                f"row more than {MOST_POSITIONS} positions; lower one"
            )
        if settings.image_size % max(1, size.patch_size):
            raise ConfigError(
                f"image_size={settings.image_size}: not a multiple of sizes.{name}.patch_size="
                f"{size.patch_size}; change one"
            )
        for key, value in vars(size.targets).items():
            if value is not None and not value > 0:
                raise ConfigError(f"sizes.{name}.targets.{key}={value}: use a number above 0, or null")


def _validate_peers(settings: Speed) -> None:
    rows = settings.peers | settings.nearest
    both = sorted(settings.peers.keys() & settings.nearest.keys())
    if both:
        raise ConfigError(f"nearest.{both[0]}: it has peers of its own; keep one of the two")
    known: Mapping[str, None] = dict.fromkeys(get_args(PeerName))
    for strategy, names in rows.items():
        if wrong := [name for name in names if name not in known]:
            raise ConfigError(f"peers.{strategy}: {wrong[0]} is no peer; choose of {', '.join(known)}")
    trained = {path.stem for path in (CONF / "strategy").glob("*.yaml")}
    for strategy in settings.strategies:
        if strategy in trained and strategy not in rows and _is_trained(strategy):
            raise ConfigError(f"peers: {strategy} has none; name them, as in peers.clm=[gpt2]")


def _is_trained(strategy: str) -> bool:
    node = OmegaConf.load(CONF / "strategy" / f"{strategy}.yaml")
    return OmegaConf.select(node, "modality") != "none"
