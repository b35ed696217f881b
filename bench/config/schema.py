"""The settings that every run has, as dataclasses that Hydra checks when it composes. No torch.

Pluggable parts (strategy, corpora, tasks, launcher, loggers, callbacks) are plain mappings with one
`_target_`, which `bench.config.build` merges onto the `Options` of their class.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from bench.errors import ConfigError

MOST_PROCESSES = 256  # on one machine; a larger number is a typing error


@dataclass
class Model:
    """A size preset of the backbone, or a Hugging Face checkpoint with its own sizes."""

    name: str | None = None  # a checkpoint's folder or hub name, from which the sizes are read
    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    d_ff: int = MISSING  # width of the gated feed-forward layer
    patch_size: int = MISSING  # pixels per side, for the vision tower, which has the same blocks


@dataclass
class Budget:
    """Unique data and compute. Exactly one key of `COMPUTE` is set; strategies are matched on it."""

    unique_bytes: int | None = None  # of training text; null: all
    unique_pairs: int | None = None  # training pairs; null: all
    tokens: int | None = None  # processed in pretraining, padding and image patches included
    predicted_tokens: int | None = None  # targets of the loss in pretraining
    flops: float | None = None  # of forward and backward passes in pretraining
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

    vocab_size: int = MISSING
    train_bytes: int = MISSING  # size of the training sample


@dataclass
class Optim:
    """AdamW, warmup and schedule; the same for all strategies of a study."""

    lr_peak: float = MISSING  # at width `lr_width`; bench.objectives.optim scales it to other widths
    lr_width: int = MISSING
    schedule: str = MISSING  # cosine | wsd
    warmup_share: float = MISSING  # of all steps
    warmup_tokens: int | None = None  # instead of the share: WSD runs of different compute start alike
    cooldown_share: float = MISSING  # of all steps, wsd only
    final_lr_share: float = MISSING  # of the peak, reached after the last step
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    clip_norm: float = MISSING
    tokens_per_step: int = MISSING  # in one optimizer step, over all ranks
    retries_on_divergence: int = 0  # each restarts at half the peak rate; configs of old runs lack it


@dataclass
class Trainer:
    """Hardware and speed of a run; changes its result by rounding only."""

    accelerator: str = MISSING  # cpu | gpu; cuda and auto are replaced by these when a run is composed
    devices: int = MISSING  # ranks on each node
    nodes: int = MISSING  # with more than one, start torchrun on each, see conf/trainer/ddp.yaml
    sharding: str = MISSING  # none: each rank has all weights (DDP) | full: a slice of each tensor (FSDP)
    timeout_s: float = MISSING  # a rank that does not answer for this time fails the run
    precision: str = MISSING
    recompute: bool = False  # recompute activations in backward: less memory, a third more time
    accumulate_grad_batches: int = 1  # parts into which a step's rows are divided: less memory
    compile: bool = False  # torch.compile; the start takes seconds
    loader_workers: int = MISSING
    checkpoint_every_s: float = MISSING
    n_validations: int = MISSING  # during the run, the final one included
    validation_batches: int = MISSING
    log_every_n_steps: int = 10  # of the training loss; configs of old runs lack it, and the next
    profiler: str | None = None  # simple | advanced: Lightning's, into the run's folder

    @property
    def n_ranks(self) -> int:
        """Processes that train one run together."""
        return self.nodes * self.devices


IN_SCIENCE = ("precision", "n_validations", "validation_batches")  # of a trainer; part of a run's identity


@dataclass
class EnergySettings:
    """Whether energy is measured, and for which country carbon emissions are estimated."""

    metered: bool | None = MISSING  # None: if codecarbon is installed
    country: str = MISSING  # ISO 3166-1 alpha-3


@dataclass
class Paths:
    """Folders; not part of a run's identity."""

    data: str = MISSING  # prepared corpora and tokenizers, safe to delete
    experiments: str = MISSING  # runs and records
    reports: str = MISSING
    config_dirs: list[str] = field(default_factory=list)  # the user's own YAML files; set by --config-dir


@dataclass
class Config:
    """All settings of a run."""

    study: str = MISSING
    seed: int = MISSING
    strategy: Any = MISSING
    model: Model = field(default_factory=Model)
    budget: Budget = field(default_factory=Budget)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    sequence_length: int = MISSING  # tokens of a text sequence, in pretraining and in tasks
    caption_length: int = MISSING  # tokens of a caption
    task: dict[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    trainer: Trainer = field(default_factory=Trainer)
    energy: EnergySettings = field(default_factory=EnergySettings)
    logger: dict[str, Any] = field(default_factory=dict)  # mirrors of the metric file, by name
    callbacks: dict[str, Any] = field(default_factory=dict)  # observers of the fit, by name
    launcher: Any = MISSING
    sweeper: Any = None  # of an exploratory search; None for a sweep of all combinations
    paths: Paths = field(default_factory=Paths)


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
