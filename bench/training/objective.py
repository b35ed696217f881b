"""A run -> its objective: the strategy with its backbone, initialised from the seed or from a checkpoint."""

from dataclasses import replace

import torch

from bench.config.build import build, find_class
from bench.config.run_spec import RunSpec
from bench.config.schema import Config
from bench.data.pretrained_files import CheckpointError, open_checkpoint
from bench.models.from_huggingface import Loaded, load
from bench.objectives.base import Core, Objective, Shapes, TextObjective
from bench.objectives.reference import Reference


def build_objective(spec: RunSpec, *, vocab_size: int, image_size: int, lr_share: float = 1.0) -> Objective:
    """The strategy with its backbone, initialised from the run's seed; `lr_share`: of the peak rate."""
    config = spec.typed()
    config.optim.lr_peak *= lr_share
    shapes = Shapes.of(config, vocab_size=vocab_size, image_size=image_size)
    cls = find_class(config.strategy, Objective, "strategy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if config.model.name is None or not cls.has_weights:
            return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim)
        loaded = _load_checkpoint(config, cls)
        shapes = replace(shapes, model=loaded.model)
        core = Core(loaded.backbone, loaded.head)  # type: ignore[arg-type]  # called as a Transformer is
        return build(config.strategy, Objective, "strategy", shapes=shapes, optimizer=config.optim, core=core)


def _load_checkpoint(config: Config, cls: type[Objective]) -> Loaded:
    """The weights of `model.name`; where a strategy neither measures nor trains them, its architecture."""
    assert config.model.name is not None
    measures = issubclass(cls, Reference)
    trains_on = cls.modality == "text" and issubclass(cls, TextObjective)
    if cls.modality != "none" and not trains_on:
        raise CheckpointError(
            config.model.name, f"{cls.__name__} needs a backbone of our own; choose a preset"
        )
    return load(
        open_checkpoint(config.model.name),
        patch_size=config.model.patch_size,
        length=max(config.sequence_length, config.caption_length),
        pretrained=trains_on or measures,
        predicts=None if measures else trains_on,
    )
