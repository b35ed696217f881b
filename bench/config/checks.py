"""Every check of one setting against another, before any compute. No torch here."""

import math
import re

from bench.config.schema import (
    COMPUTE,
    MOST_PROCESSES,
    Budget,
    Config,
    Logger,
    Model,
    Optim,
    Trainer,
    given_compute,
)
from bench.config.secrecy import refuse_secrets
from bench.errors import ConfigError

MOST_CAPTION_TOKENS = 4096  # all captions of a corpus are held in memory at this length
MOST_VALIDATIONS = 1000  # and batches of each, held in memory


def validate(config: Config) -> None:
    """Hold all settings of a run against each other.

    Raises:
        ConfigError: names the key and what to change.
    """
    _validate_model(config.model)
    _validate_budget(config.budget)
    _validate_optim(config.optim)
    _validate_warmup(config.optim, config.budget)
    least = {"sequence_length": 8, "caption_length": 2, "seed": 0}
    for key, low in least.items():
        _require(getattr(config, key) >= low, f"{key}={getattr(config, key)}: use {low} or more")
    length = config.caption_length
    _require(length <= MOST_CAPTION_TOKENS, f"caption_length={length}: use {MOST_CAPTION_TOKENS} or less")
    _validate_ranks(config.trainer)
    _validate_place(config)
    refuse_secrets("strategy", config.strategy)
    refuse_secrets("task", config.task)
    refuse_secrets("corpus", vars(config.corpus))
    refuse_secrets("model.name", config.model.name)
    _one_of("strategy.modality", config.strategy.get("modality"), ("text", "pairs", "none"))


def _validate_ranks(trainer: Trainer) -> None:
    _require(trainer.nodes >= 1, f"trainer.nodes={trainer.nodes}: use 1 or more")
    _require(trainer.timeout_s > 0, f"trainer.timeout_s={trainer.timeout_s}: use a number above 0")
    _one_of("trainer.sharding", trainer.sharding, ("none", "full"))
    is_whole = trainer.sharding == "none"
    _require(
        is_whole or trainer.n_ranks > 1, "trainer.sharding=full needs trainer.devices=2 or more; or use none"
    )
    parts = trainer.accumulate_grad_batches
    alone = f"trainer.accumulate_grad_batches={parts} does not go with trainer.sharding=full; use trainer=ddp"
    _require(is_whole or parts == 1, alone)
    _require(
        is_whole or not trainer.compile, "trainer.compile does not go with trainer.sharding=full; set one"
    )
    small = "its gradients are too small for trainer.precision=16-mixed; use bf16-mixed"
    _require(
        parts == 1 or trainer.precision != "16-mixed", f"trainer.accumulate_grad_batches={parts}: {small}"
    )
    mixed = "trainer.precision=16-mixed does not go with trainer.sharding=full; use bf16-mixed"
    _require(is_whole or trainer.precision != "16-mixed", mixed)


def _validate_place(config: Config) -> None:
    trainer = config.trainer
    _one_of("trainer.accelerator", trainer.accelerator, ("cpu", "gpu"))
    _one_of("trainer.precision", trainer.precision, ("32-true", "64-true", "16-mixed", "bf16-mixed"))
    _require(
        trainer.precision != "16-mixed" or trainer.accelerator == "gpu",
        "trainer.precision=16-mixed needs trainer.accelerator=gpu; use bf16-mixed",
    )
    counts = {
        "trainer.devices": (1, trainer.devices, MOST_PROCESSES),
        "trainer.accumulate_grad_batches": (1, trainer.accumulate_grad_batches, MOST_PROCESSES),
        "trainer.loader_workers": (0, trainer.loader_workers, MOST_PROCESSES),
        "trainer.n_validations": (1, trainer.n_validations, MOST_VALIDATIONS),
        "trainer.validation_batches": (1, trainer.validation_batches, MOST_VALIDATIONS),
    }
    for key, (low, value, high) in counts.items():
        _require(value is None or low <= value <= high, f"{key}={value}: use {low} or more, up to {high}")
    _validate_logger(config.logger)
    _require(
        config.trainer.n_ranks == 1 or not config.optim.retries_on_divergence,
        "optim.retries_on_divergence needs trainer.devices=1; set one of the two",
    )
    every_s, country = trainer.checkpoint_every_s, config.energy.country
    _require(every_s > 0, f"trainer.checkpoint_every_s={every_s}: use a number above 0")
    _require(
        re.fullmatch("[A-Z]{3}", country) is not None,
        f"energy.country={country!r}: give a country's three letters (ISO 3166-1 alpha-3), such as USA",
    )
    for key, path in vars(config.paths).items():
        _require(bool(path.strip()), f"paths.{key} is empty; give a folder, such as {key}")


def _validate_logger(logger: Logger) -> None:
    _one_of("logger.wandb_mode", logger.wandb_mode, ("offline", "online"))
    every_n, project = logger.log_every_n_steps, logger.wandb_project
    _require(every_n >= 1, f"logger.log_every_n_steps={every_n}: use 1 or more")
    _require(
        re.fullmatch(r"[\w.-]{1,128}", project, re.ASCII) is not None,
        f"logger.wandb_project={project!r}: use at most 128 letters, digits, '_', '.', '-'",
    )


def _validate_model(model: Model) -> None:
    if model.name is not None:
        mixed = f"model.name={model.name} brings its own sizes; choose model=hf with it"
        _require(model.d_model == 0, mixed)
        return
    _require(
        model.d_model != 0,
        "model.d_model=0: with model=hf, give a checkpoint's folder or hub name as model.name",
    )
    for key in ("d_model", "n_layers", "n_heads", "d_ff", "patch_size"):
        _require(getattr(model, key) >= 1, f"model.{key}={getattr(model, key)}: use 1 or more")
    _require(
        model.d_model % model.n_heads == 0,
        f"model.d_model={model.d_model} is not a multiple of model.n_heads={model.n_heads}; change one",
    )
    _require(
        model.d_model // model.n_heads % 2 == 0,
        f"model.d_model / model.n_heads = {model.d_model // model.n_heads} must be even for RoPE; change one",
    )


def _validate_budget(budget: Budget) -> None:
    given = given_compute(budget)
    _require(
        len(given) == 1,
        f"set exactly one of budget.{', budget.'.join(COMPUTE)}, the others to null; now {given}",
    )
    for key in ("unique_bytes", "unique_pairs", *COMPUTE):
        value = getattr(budget, key)
        _require(value is None or value > 0, f"budget.{key}={value}: use a number above 0, or null")


def _validate_optim(optim: Optim) -> None:
    _one_of("optim.schedule", optim.schedule, ("cosine", "wsd"))
    for key in ("warmup_share", "cooldown_share", "final_lr_share"):
        value = getattr(optim, key)
        _require(0 <= value <= 1, f"optim.{key}={value}: use a share from 0 to 1")
    for key in ("beta1", "beta2"):
        value = getattr(optim, key)
        _require(0 <= value < 1, f"optim.{key}={value}: use 0 or more, below 1")
    _require(optim.weight_decay >= 0, f"optim.weight_decay={optim.weight_decay}: use 0 or more")
    for key in ("lr_peak", "lr_width", "clip_norm", "tokens_per_step"):
        value = getattr(optim, key)
        _require(value > 0, f"optim.{key}={value}: use a number above 0")
    shares = optim.warmup_share + optim.cooldown_share
    _require(shares <= 1, f"optim.warmup_share + optim.cooldown_share = {shares}: at most 1")
    retries = optim.retries_on_divergence
    _require(retries >= 0, f"optim.retries_on_divergence={retries}: use 0 or more")
    _require(
        optim.schedule != "wsd" or optim.cooldown_share > 0,
        "optim.cooldown_share=0 with optim.schedule=wsd: use a share above 0, such as 0.2",
    )


def _validate_warmup(optim: Optim, budget: Budget) -> None:
    if optim.warmup_tokens is None:
        return
    given = f"optim.warmup_tokens={optim.warmup_tokens}"
    _require(optim.warmup_tokens > 0, f"{given}: use a number above 0, or null")
    share = f"optim.warmup_share={optim.warmup_share}"
    _require(optim.warmup_share == 0, f"{given} with {share}: set the share to 0, or the tokens to null")
    stable = (1 - optim.cooldown_share) * (budget.tokens or math.inf)
    reason = f"more than budget.tokens={budget.tokens} has before its cooldown; lower it"
    _require(optim.warmup_tokens <= stable, f"{given}: {reason}")


def _one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{key}={value!r}: choose one of {', '.join(choices)}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
