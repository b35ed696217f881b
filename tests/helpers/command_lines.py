"""Command lines -> runs, by ours and by Hydra alone."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from bench.config.compose import compose_config, compose_runs
from bench.config.run_spec import RunSpec


def one(*overrides: str) -> RunSpec:
    (spec,) = compose_runs(overrides, multirun=False)
    return spec


def many(*overrides: str) -> list[RunSpec]:
    return compose_runs(overrides, multirun=True)


def composed_whole(overrides: Sequence[str]) -> DictConfig:
    """A run's config as Hydra composes it."""
    composed = compose_config("config", overrides)
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
