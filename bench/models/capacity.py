"""Refuse a run that this machine cannot hold, before anything starts. No torch on import."""

import os

import psutil

from bench.config.schema import Config
from bench.errors import ConfigError
from bench.models.flops import text_parameters


def check_machine(config: Config) -> None:
    """Refuse what would bring this machine down before anything could say so.

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
        if n_bytes > (there := psutil.virtual_memory().total):
            raise ConfigError(
                f"model.d_model={config.model.d_model}, model.n_layers={config.model.n_layers} and so on are "
                f"{n_bytes / 1e9:,.0f} GB of weights, this machine has {there / 1e9:,.0f} GB; lower them"
            )


def _n_gpus() -> int:
    import torch  # late: the command line answers without it

    return torch.cuda.device_count()
