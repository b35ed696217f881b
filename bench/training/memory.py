"""The memory that training needs, and the check that this machine can hold a run. No torch on import."""

import os

import psutil

from bench.config.schema import Config, Model
from bench.errors import ConfigError
from bench.models.flops import text_parameters

# A parameter, its gradient and AdamW's two moments in float32 (arXiv:1910.02054, sec. 3.1, counts 16 too).
STATE_BYTES = 16


def activation_bytes(model: Model, tokens: float, *, recompute: bool) -> float:
    """Return the bytes that the backbone saves for backward under bf16 autocast, with fused attention.

    A block saves 24 D + 8 F bytes per token. Attention: the input of its norm in float32 (4 D) and the output
    in bfloat16 (2 D), queries, keys and values (6 D), the first two again after RoPE (4 D), the mix (2 D).
    Feed-forward: norm (6 D), both halves of the gate (4 F), GELU of one (2 F), their product (2 F).
    With `recompute`: the input of every block (4 D), and all of one block at a time.
    """
    block = 24 * model.d_model + 8 * model.d_ff
    if recompute:
        return tokens * (model.n_layers * 4 * model.d_model + block)
    return tokens * model.n_layers * block


def check_machine(config: Config) -> None:
    """Refuse a run that this machine cannot hold, before anything starts.

    Raises:
        ConfigError: more ranks than cores or GPUs, or a model whose weights alone do not fit into memory.
    """
    devices, n_cores = config.trainer.devices, os.cpu_count() or 1
    if config.trainer.accelerator == "cpu" and devices > n_cores:
        raise ConfigError(f"trainer.devices={devices}: this machine has {n_cores} cores; lower it")
    if config.trainer.accelerator == "gpu" and devices > (n_gpus := _n_gpus()):
        raise ConfigError(
            f"trainer.accelerator=gpu, trainer.devices={devices}: torch finds {n_gpus} GPUs here; lower "
            "trainer.devices, or use trainer=cpu"
        )
    if config.model.name is None:
        n_bytes = 4 * text_parameters(config.model, config.tokenizer.vocab_size)
        if n_bytes > (available := psutil.virtual_memory().total):
            raise ConfigError(
                f"model.d_model={config.model.d_model}, model.n_layers={config.model.n_layers}: the weights "
                f"need {n_bytes / 1e9:,.0f} GB, this machine has {available / 1e9:,.0f} GB; lower them"
            )


def _n_gpus() -> int:
    import torch  # late: the command line does not import it

    return torch.cuda.device_count()
