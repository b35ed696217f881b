"""Check a run's settings against their ranges and against each other, before any compute. No torch.

Settings are written into records, logs and W&B, so secrets among them are refused: a client that needs a key
reads it from the environment.
"""

import math
import re
from collections.abc import Iterator, Mapping
from operator import attrgetter

from bench.config.schema import COMPUTE, MOST_PROCESSES, Budget, Config, Model, Optim, Trainer, given_compute
from bench.errors import ConfigError
from bench.records import LARGEST, is_text

MAX_CAPTION_TOKENS = 4096  # all captions of a corpus are held in memory at this length
MAX_VALIDATIONS = 1000  # per run, and batches of each, which are held in memory

CHOICES = {
    "strategy.modality": ("text", "pairs", "none"),
    "optim.schedule": ("cosine", "wsd"),
    "trainer.accelerator": ("cpu", "gpu"),
    "trainer.precision": ("32-true", "64-true", "16-mixed", "bf16-mixed"),
    "trainer.sharding": ("none", "full"),
    "trainer.profiler": (None, "simple", "advanced"),
}
RANGES: dict[str, tuple[int, float]] = {  # smallest and largest value
    "sequence_length": (8, math.inf),
    "caption_length": (2, MAX_CAPTION_TOKENS),
    "seed": (0, math.inf),
    "optim.warmup_share": (0, 1),
    "optim.cooldown_share": (0, 1),
    "optim.final_lr_share": (0, 1),
    "optim.weight_decay": (0, math.inf),
    "optim.retries_on_divergence": (0, math.inf),
    "trainer.nodes": (1, math.inf),
    "trainer.devices": (1, MOST_PROCESSES),
    "trainer.accumulate_grad_batches": (1, MOST_PROCESSES),
    "trainer.loader_workers": (0, MOST_PROCESSES),
    "trainer.n_validations": (1, MAX_VALIDATIONS),
    "trainer.validation_batches": (1, MAX_VALIDATIONS),
    "trainer.log_every_n_steps": (1, math.inf),
}
BELOW_ONE = ("optim.beta1", "optim.beta2")
POSITIVE = (
    *("optim.lr_peak", "optim.lr_width", "optim.clip_norm", "optim.tokens_per_step"),
    *("trainer.timeout_s", "trainer.checkpoint_every_s"),
)
POSITIVE_OR_NULL = (
    *("budget.unique_bytes", "budget.unique_pairs", *(f"budget.{key}" for key in COMPUTE)),
    "optim.warmup_tokens",
)
SECRET = re.compile(r"(api_?key|token|password|passwd|secret|credentials?)(\[\d+\])?$", re.IGNORECASE)
USER_OR_QUERY = re.compile(r"://([^/]*@|.*[?#])")  # in an address


def validate(config: Config) -> None:
    """Check all settings of a run.

    Raises:
        ConfigError: a setting cannot work; names the key and what to change.
    """
    _validate_model(config.model)
    _validate_values(config)
    _validate_budget(config.budget)
    _validate_optim(config.optim, config.budget)
    _validate_trainer(config.trainer)
    _require(
        config.trainer.n_ranks == 1 or not config.optim.retries_on_divergence,
        "optim.retries_on_divergence needs trainer.devices=1; set only one of the two",
    )
    _validate_texts(config)
    refuse_secrets("strategy", config.strategy)
    refuse_secrets("task", config.task)
    refuse_secrets("corpus", vars(config.corpus))
    refuse_secrets("model.name", config.model.name)
    refuse_secrets("logger", config.logger)
    refuse_secrets("callbacks", config.callbacks)


def _validate_values(config: Config) -> None:
    """Check each setting that has a list of choices or a range."""
    values = {key: attrgetter(key)(config) for key in (*CHOICES, *RANGES) if key != "strategy.modality"}
    values["strategy.modality"] = config.strategy.get("modality")
    for key, choices in CHOICES.items():
        names = ", ".join("null" if choice is None else choice for choice in choices)
        _require(values[key] in choices, f"{key}={values[key]!r}: choose one of {names}")
    for key, (low, high) in RANGES.items():
        _require(values[key] >= low, f"{key}={values[key]}: use {low} or more")
        _require(values[key] <= high, f"{key}={values[key]}: use {high} or less")
    for key in BELOW_ONE:
        value = attrgetter(key)(config)
        _require(0 <= value < 1, f"{key}={value}: use 0 or more, below 1")
    for key in (*POSITIVE, *POSITIVE_OR_NULL):
        value, null = attrgetter(key)(config), ", or null" if key in POSITIVE_OR_NULL else ""
        _require((value is None and bool(null)) or value > 0, f"{key}={value}: use a number above 0{null}")


def _validate_model(model: Model) -> None:
    if model.name is not None:
        _require(model.d_model == 0, f"model.name={model.name} has its own sizes; choose model=hf with it")
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
    width = model.d_model // model.n_heads
    _require(width % 2 == 0, f"model.d_model / model.n_heads = {width} must be even for RoPE; change one")


def _validate_budget(budget: Budget) -> None:
    given = given_compute(budget)
    _require(
        len(given) == 1,
        f"set exactly one of budget.{', budget.'.join(COMPUTE)} and the others to null; now {given}",
    )


def _validate_optim(optim: Optim, budget: Budget) -> None:
    shares = optim.warmup_share + optim.cooldown_share
    _require(
        shares <= 1, f"optim.warmup_share + optim.cooldown_share = {shares}: lower one, the sum is at most 1"
    )
    _require(
        optim.schedule != "wsd" or optim.cooldown_share > 0,
        "optim.cooldown_share=0 with optim.schedule=wsd: use a share above 0, such as 0.2",
    )
    if optim.warmup_tokens is None:
        return
    given, share = f"optim.warmup_tokens={optim.warmup_tokens}", f"optim.warmup_share={optim.warmup_share}"
    _require(optim.warmup_share == 0, f"{given} with {share}: set the share to 0, or the tokens to null")
    stable = (1 - optim.cooldown_share) * (budget.tokens or math.inf)
    reason = f"more than budget.tokens={budget.tokens} has before its cooldown; lower it"
    _require(optim.warmup_tokens <= stable, f"{given}: {reason}")


def _validate_trainer(trainer: Trainer) -> None:
    parts, is_half = trainer.accumulate_grad_batches, trainer.precision == "16-mixed"
    if trainer.sharding == "full":
        conflict = "does not work with trainer.sharding=full"
        _require(trainer.n_ranks > 1, "trainer.sharding=full needs trainer.devices=2 or more; or use none")
        _require(parts == 1, f"trainer.accumulate_grad_batches={parts} {conflict}; use trainer=ddp")
        _require(not trainer.compile, f"trainer.compile {conflict}; set only one of the two")
        _require(not is_half, f"trainer.precision=16-mixed {conflict}; use bf16-mixed")
    if is_half:
        reason = "its gradients are too small for trainer.precision=16-mixed; use bf16-mixed"
        _require(parts == 1, f"trainer.accumulate_grad_batches={parts}: {reason}")
        only_gpu = "trainer.precision=16-mixed needs trainer.accelerator=gpu; use bf16-mixed"
        _require(trainer.accelerator == "gpu", only_gpu)


def _validate_texts(config: Config) -> None:
    """Check names, codes and folders."""
    country = config.energy.country
    _require(
        re.fullmatch("[A-Z]{3}", country) is not None,
        f"energy.country={country!r}: give a country's three letters (ISO 3166-1 alpha-3), such as USA",
    )
    for key in ("data", "experiments", "reports"):
        path = getattr(config.paths, key)
        _require(bool(path.strip()), f"paths.{key} is empty; give a folder, such as {key}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_values(config: Mapping[str, object]) -> None:
    """Refuse values that no record can store and no file name can contain, whatever their key.

    Raises:
        ConfigError: a number is not finite or too large, or a text is not valid Unicode; names the key.
    """
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value}: give a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ConfigError(f"{key}={value}: give a number of at most {LARGEST}")
        if isinstance(value, str) and not is_text(value):
            raise ConfigError(f"{key}={value!r} holds a NUL or half a character; correct the text")


def _leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every single value with its key; names of mappings, such as those of tasks, count as values."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield key or "config", name
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node


def refuse_secrets(key: str, node: object) -> None:
    """Refuse keys and passwords among settings, as far as they can be recognized.

    Args:
        key: position of the node in the config.
        node: mappings and lists, down to single values.

    Raises:
        ConfigError: an address has more than host and path, a `*_variable` is not a variable's name, or a
        text
            has a name such as `api_key`.
    """
    for place, text in _leaves(node, key):
        if not isinstance(text, str):
            continue
        if USER_OR_QUERY.search(text):
            raise ConfigError(
                f"{place}: give the address without user, password or query, because settings are recorded"
            )
        if place.endswith("_variable") and not re.fullmatch("[A-Z_][A-Z0-9_]*", text):
            raise ConfigError(f"{place}: give the name of an environment variable, not its value")
        if SECRET.search(place):
            raise ConfigError(
                f"{place}: remove it, because settings are recorded; clients read keys from the environment"
            )
