"""What every run shares, as dataclasses that Hydra checks at compose. No torch here.

Pluggable parts (strategy, corpora, tasks, launcher) are plain mappings with one `_target_`;
`bench.config.build` merges them onto the `Options` of their class.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from bench.config.secrecy import refuse_environment

MOST_PROCESSES = 256  # side by side on a machine: what is more was mistyped


@dataclass
class Model:
    """A size preset of the backbone, or a Hugging Face checkpoint with sizes of its own."""

    name: str | None = None  # a checkpoint's folder or hub name; the sizes are then read from it
    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    d_ff: int = MISSING  # width of the gated feed-forward
    patch_size: int = MISSING  # pixels a side, for the vision tower built of the same blocks


@dataclass
class Budget:
    """Unique data and compute. Exactly one of `COMPUTE` is given; strategies are matched on it."""

    unique_bytes: int | None = None  # of training text; null: all there is
    unique_pairs: int | None = None  # of training pairs; null: all there are
    tokens: int | None = None  # positions processed in pretraining
    predicted_tokens: int | None = None  # targets of the loss in pretraining
    flops: float | None = None  # forward and backward of pretraining
    repeat: bool = MISSING  # true: more than one epoch over the unique data is meant


COMPUTE = ("tokens", "predicted_tokens", "flops")  # what a compute budget may be stated in


def given_compute(budget: Budget) -> list[str]:
    """The keys of the compute budget that are set."""
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
    train_bytes: int = MISSING  # size of the sample it is trained on


@dataclass
class Optim:
    """AdamW, warmup and a schedule; the same for all strategies of a study."""

    lr_peak: float = MISSING  # at width `lr_width`; other widths by the rule in bench.objectives.optim
    lr_width: int = MISSING
    schedule: str = MISSING  # cosine | wsd
    warmup_share: float = MISSING  # of all steps
    warmup_tokens: int | None = None  # instead: positions, so that WSD runs of other compute begin alike
    cooldown_share: float = MISSING  # of all steps, wsd only
    final_lr_share: float = MISSING  # of the peak, reached after the last step
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    clip_norm: float = MISSING
    tokens_per_step: int = MISSING  # positions in one optimizer step, over all ranks
    retries_on_divergence: int = 0  # each anew at half the peak rate; configs of old runs lack it


@dataclass
class Trainer:
    """Where a run happens; changes its speed, never its result beyond rounding."""

    accelerator: str = MISSING  # cpu | gpu
    devices: int = MISSING  # ranks on each node
    nodes: int = MISSING  # more than one: started by torchrun on each, see conf/trainer/ddp.yaml
    sharding: str = MISSING  # none: each rank holds all weights (DDP) | full: a slice of each tensor (FSDP)
    timeout_s: float = MISSING  # a rank that is silent for so long fails the run
    precision: str = MISSING
    recompute: bool = False  # blocks' activations, in backward: less memory, a third more time
    accumulate_grad_batches: int = 1  # parts of a step's rows, one at a time: less memory
    compile: bool = False  # the blocks, by torch.compile; it takes seconds to start
    loader_workers: int = MISSING
    checkpoint_every_s: float = MISSING
    n_validations: int = MISSING  # validation losses along the run, the last one included
    validation_batches: int = MISSING

    @property
    def n_ranks(self) -> int:
        """Processes that train one run together."""
        return self.nodes * self.devices


@dataclass
class EnergySettings:
    """Is energy metered, and which grid's carbon intensity stands for it."""

    metered: bool = MISSING
    country: str = MISSING  # ISO 3166-1 alpha-3


@dataclass
class Logger:
    """Mirrors of the local metric files; the files themselves are always written."""

    wandb: bool = MISSING
    wandb_mode: str = MISSING  # offline | online
    wandb_project: str = MISSING
    log_every_n_steps: int = MISSING


@dataclass
class Paths:
    """Where things lie; never part of a run's identity."""

    data: str = MISSING  # prepared corpora and tokenizers, safe to delete
    experiments: str = MISSING  # runs and records
    reports: str = MISSING


@dataclass
class Config:
    """A run."""

    study: str = MISSING
    seed: int = MISSING
    strategy: Any = MISSING
    model: Model = field(default_factory=Model)
    budget: Budget = field(default_factory=Budget)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    sequence_length: int = MISSING  # tokens of a text, in pretraining and in tasks
    caption_length: int = MISSING  # tokens of a caption
    task: dict[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    trainer: Trainer = field(default_factory=Trainer)
    energy: EnergySettings = field(default_factory=EnergySettings)
    logger: Logger = field(default_factory=Logger)
    launcher: Any = MISSING
    paths: Paths = field(default_factory=Paths)


@dataclass
class ReportConfig:
    """Root of `bench report` and `bench status`."""

    study: str = MISSING
    experiments_dir: str = MISSING
    reports_dir: str = MISSING
    figure: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schemas known to Hydra under the names `schema` and `report_schema`."""
    refuse_environment()
    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(name="report_schema", node=ReportConfig)
