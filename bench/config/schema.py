"""The settings that every run has, as dataclasses that Hydra checks when it composes. No torch.

Pluggable parts (strategy, corpora, tasks, launcher, loggers, callbacks) are plain mappings with one
`_target_`, which `bench.config.build` merges onto the `Options` of their class.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval, Le
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bench.config.bounds import (
    Count,
    Positive,
    Share,
    ShareBelowOne,
    Text,
    choice,
    matches,
)
from bench.errors import ConfigError
from bench.records import LARGEST

MOST_PROCESSES = 256  # on one machine; a larger number is a typing error
MAX_CAPTION_TOKENS = 4096  # all captions of a corpus are held in memory at this length
MAX_VALIDATIONS = 1000  # per run, and batches of each, which are held in memory
MAX_SEQUENCE_TOKENS = 2**17
MIN_VOCAB_SIZE = 256 + 4  # every byte and special token has an id, so there is no unknown token
MAX_VOCAB_SIZE = 2**20  # the tokenizer's trainer allocates memory for all of them
COUNTRY = "give a country's three letters (ISO 3166-1 alpha-3), such as USA"
PROJECT = "use at most 128 letters, digits, '_', '.', '-'"

# Types of fields, with their bounds. Numbers beyond the upper ones are typing errors.
Processes = Annotated[int, Interval(ge=1, le=MOST_PROCESSES)]
Validations = Annotated[int, Interval(ge=1, le=MAX_VALIDATIONS)]
Size = Annotated[int, Interval(ge=0, le=2**20)]  # of a model; 0: read from its checkpoint
Amount = Annotated[int, Interval(ge=1, le=10**18)]  # of data or compute
Seed = Annotated[int, Interval(ge=0, le=LARGEST)]
Seconds = Annotated[Positive, Le(10**9)]


@dataclass
class Model:
    """A size preset of the backbone, or a Hugging Face checkpoint with its own sizes."""

    name: Text | None = None  # a checkpoint's folder or hub name, from which the sizes are read
    d_model: Size = MISSING
    n_layers: Size = MISSING
    n_heads: Size = MISSING
    d_ff: Size = MISSING  # width of the gated feed-forward layer
    # Pixels per side, for the vision tower, which has the same blocks.
    patch_size: Annotated[int, Interval(ge=1, le=512)] = MISSING


@dataclass
class Budget:
    """Unique data and compute. Exactly one key of `COMPUTE` is set; strategies are matched on it."""

    unique_bytes: Amount | None = None  # of training text; null: all
    unique_pairs: Amount | None = None  # training pairs; null: all
    tokens: Amount | None = None  # processed in pretraining, padding and image patches included
    predicted_tokens: Amount | None = None  # targets of the loss in pretraining
    flops: Annotated[Positive, Le(1e30)] | None = None  # of forward and backward passes in pretraining
    repeat: bool = MISSING  # true: more than one epoch over the unique data is allowed


COMPUTE = ("tokens", "predicted_tokens", "flops")  # units of a compute budget


def given_compute(budget: Budget) -> list[str]:
    """Return the keys of the compute budget that are set."""
    return [key for key in COMPUTE if getattr(budget, key) is not None]


@dataclass
class Corpus:
    """One corpus of text and one of (image, caption) pairs; a strategy trains on its own modality."""

    text: Any = MISSING
    pairs: Any = MISSING


@dataclass
class Tokenizer:
    """Byte-level BPE, trained on the training split of the text corpus; the same for all strategies."""

    vocab_size: Annotated[int, Interval(ge=MIN_VOCAB_SIZE, le=MAX_VOCAB_SIZE)] = MISSING
    train_bytes: Amount = MISSING  # size of the training sample


@dataclass
class Optim:
    """Optimizer, warmup and schedule; the same for all strategies of a study, but for tuned rates."""

    name: Annotated[str, choice("adamw", "muon")] = "adamw"  # configs of old runs lack it
    lr_peak: Positive = MISSING  # at width `lr_width`; bench.objectives.optim scales it to other widths
    lr_width: Annotated[int, Interval(ge=1, le=2**20)] = MISSING
    schedule: Annotated[str, choice("cosine", "wsd")] = MISSING
    warmup_share: Share = MISSING  # of all steps
    warmup_tokens: Amount | None = None  # instead of the share: WSD runs of different compute start alike
    cooldown_share: Share = MISSING  # of all steps, wsd only
    final_lr_share: Share = MISSING  # of the peak, reached after the last step
    weight_decay: Annotated[float, Interval(ge=0, le=1000)] = MISSING
    beta1: ShareBelowOne = MISSING
    beta2: ShareBelowOne = MISSING
    clip_norm: Positive = MISSING  # a huge one does not clip
    tokens_per_step: Count = MISSING  # in one optimizer step, over all ranks
    # Each restarts at half the peak rate; configs of old runs lack it.
    retries_on_divergence: Annotated[int, Interval(ge=0, le=100)] = 0


@dataclass
class Trainer:
    """Hardware and speed of a run; changes its result by rounding only."""

    # cuda and auto are replaced by these when a run is composed.
    accelerator: Annotated[str, choice("cpu", "gpu")] = MISSING
    devices: Processes = MISSING  # ranks on each node
    # With more than one, start torchrun on each, see conf/trainer/ddp.yaml.
    nodes: Annotated[int, Interval(ge=1, le=10_000)] = MISSING
    # none: each rank has all weights (DDP) | full: a slice of each tensor (FSDP).
    sharding: Annotated[str, choice("none", "full")] = MISSING
    timeout_s: Seconds = MISSING  # a rank that does not answer for this time fails the run
    precision: Annotated[str, choice("32-true", "64-true", "16-mixed", "bf16-mixed")] = MISSING
    recompute: bool = False  # recompute activations in backward: less memory, a third more time
    accumulate_grad_batches: Processes = 1  # parts into which a step's rows are divided: less memory
    compile: bool = False  # torch.compile; the start takes seconds
    loader_workers: Annotated[int, Interval(ge=0, le=MOST_PROCESSES)] = MISSING
    checkpoint_every_s: Seconds = MISSING
    n_validations: Validations = MISSING  # during the run, the final one included
    validation_batches: Validations = MISSING
    log_every_n_steps: Count = 10  # of the training loss; configs of old runs lack it, and the next
    # Lightning's, into the run's folder.
    profiler: Annotated[str, choice("simple", "advanced")] | None = None

    @property
    def n_ranks(self) -> int:
        """Processes that train one run together."""
        return self.nodes * self.devices


IN_SCIENCE = ("precision", "n_validations", "validation_batches")  # of a trainer; part of a run's identity


@dataclass
class EnergySettings:
    """Whether energy is measured, and for which country carbon emissions are estimated."""

    metered: bool | None = MISSING  # None: if codecarbon is installed
    country: Annotated[str, matches("[A-Z]{3}", COUNTRY)] = MISSING


@dataclass
class Paths:
    """Folders; not part of a run's identity."""

    data: Text = MISSING  # prepared corpora and tokenizers, safe to delete
    experiments: Text = MISSING  # runs and records
    reports: Text = MISSING
    config_dirs: list[str] = field(default_factory=list)  # the user's own YAML files; set by --config-dir


@dataclass
class Config:
    """All settings of a run."""

    study: str = MISSING
    seed: Seed = MISSING
    strategy: Any = MISSING
    model: Model = field(default_factory=Model)
    budget: Budget = field(default_factory=Budget)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    # Tokens of a text sequence, in pretraining and in tasks.
    sequence_length: Annotated[int, Interval(ge=8, le=MAX_SEQUENCE_TOKENS)] = MISSING
    # Pretraining rows hold several documents; false: tokens attend within their own. Old configs lack it.
    attention_across_documents: bool = True
    caption_length: Annotated[int, Interval(ge=2, le=MAX_CAPTION_TOKENS)] = MISSING  # tokens of a caption
    task: dict[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    tuned: Any = None  # only while a run is composed, which takes its strategy's rate into `optim`
    trainer: Trainer = field(default_factory=Trainer)
    energy: EnergySettings = field(default_factory=EnergySettings)
    logger: dict[str, Any] = field(default_factory=dict)  # mirrors of the metric file, by name
    callbacks: dict[str, Any] = field(default_factory=dict)  # observers of the fit, by name
    launcher: Any = MISSING
    sweeper: Any = None  # of an exploratory search; None for a sweep of all combinations
    paths: Paths = field(default_factory=Paths)


# Switches that may be null, which OmegaConf would set to true for any number.
FLAGS = ("energy.metered",)


@dataclass
class ReportConfig:
    """Settings of `bench report` and `bench status`."""

    study: str = MISSING
    experiments_dir: str = MISSING
    reports_dir: str = MISSING
    figure: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Register the schemas with Hydra; refuse `${oc.env:NAME}`, because settings are recorded."""
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(name="report_schema", node=ReportConfig)


def _refuse_environment(name: str, *_: str) -> str:
    raise ConfigError(
        f"settings are recorded, so they cannot come from the environment; write the value of {name}"
    )
