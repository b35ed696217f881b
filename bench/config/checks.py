"""Check a run's settings against their ranges and against each other, before any compute. No torch.

Settings are written into records, logs and W&B, so secrets among them are refused: a client that needs a key
reads it from the environment.
"""

import math
import re
from collections.abc import Iterator, Mapping

from bench.config.bounds import OptionError, check
from bench.config.schema import COMPUTE, Budget, Config, Model, Optim, Trainer, given_compute
from bench.errors import ConfigError
from bench.records import LARGEST, is_text

SECRET = re.compile(r"(api_?key|token|password|passwd|secret|credentials?)(\[\d+\])?$", re.IGNORECASE)
MODALITIES = ("text", "pairs", "none")
USER_OR_QUERY = re.compile(r"://([^/]*@|.*[?#])")  # in an address


def validate(config: Config) -> None:
    """Check all settings of a run.

    Raises:
        ConfigError: a setting cannot work; names the key and what to change.
    """
    check(config)
    modality = config.strategy.get("modality")
    if modality not in MODALITIES:
        raise OptionError("strategy.modality", modality, f"choose one of {', '.join(MODALITIES)}")
    _validate_model(config.model)
    _require(
        config.attention_across_documents or config.model.name is None or modality != "text",
        "attention_across_documents=false: checkpoints of model.name attend across documents; "
        "set it to true, or choose a model preset",
    )
    _validate_budget(config.budget)
    _validate_optim(config.optim, config.budget)
    _validate_trainer(config.trainer)
    _require(
        config.optim.name != "muon" or config.trainer.sharding == "none",
        "optim.name=muon needs whole matrices; use trainer=ddp instead of trainer.sharding=full",
    )
    _require(
        config.trainer.n_ranks == 1 or not config.optim.retries_on_divergence,
        "optim.retries_on_divergence needs trainer.devices=1; set only one of the two",
    )
    refuse_secrets("strategy", config.strategy)
    refuse_secrets("task", config.task)
    refuse_secrets("corpus", vars(config.corpus))
    refuse_secrets("model.name", config.model.name)
    refuse_secrets("logger", config.logger)
    refuse_secrets("callbacks", config.callbacks)


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


def check_first_step(config: Config) -> None:
    """Raise OptionError if the compute budget is below one optimizer step, whatever the strategy."""
    if config.strategy["modality"] == "none":
        return
    per_step = config.optim.tokens_per_step
    rows = max(1, per_step // config.sequence_length)  # each of which has a target at least
    least = {"tokens": per_step, "predicted_tokens": rows, "flops": per_step * max(1, config.model.d_model)}
    (key,) = given_compute(config.budget)
    value = getattr(config.budget, key)
    if value < least[key]:
        reason = f"less than one step of optim.tokens_per_step={per_step}"
        raise OptionError(f"budget.{key}", value, f"{reason}; use {least[key]} or more")


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
            text has a name such as `api_key`.
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
