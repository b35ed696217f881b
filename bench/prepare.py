"""Config -> prepared data; checks against it and the machine. No torch: the launcher does this first."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.budget import text_parameters
from bench.build import build
from bench.corpora.base import PairCorpus, TextCorpus
from bench.errors import ConfigError
from bench.pairs import PairData, prepare_pairs
from bench.pretrained import Checkpoint, open_checkpoint
from bench.schema import Budget, Config
from bench.spec import RunSpec
from bench.tokens import TextData, prepare_text


@dataclass(frozen=True)
class Prepared:
    """The two corpora of a run, tokenised with one tokenizer."""

    text: TextData
    pairs: PairData
    checkpoint: Checkpoint | None  # that the run begins with, and whose tokenizer it is

    def unique(self, budget: Budget, modality: str) -> dict[str, int]:
        """The unique data that a budget gives to a strategy, as `Spent` names it."""
        if modality == "pairs":
            return {"unique_pairs": len(self.pairs.train(budget.unique_pairs))}
        tokens = self.text.train(budget.unique_bytes)
        return {"unique_bytes": tokens.n_bytes, "unique_tokens": tokens.n_tokens}

    def described(self) -> dict[str, Any]:
        """Hashes and provenance, as recorded beside every result."""
        begins_with = {"checkpoint": self.checkpoint.described()} if self.checkpoint else {}
        return (
            begins_with
            | {
                kind: {key: data.manifest[key] for key in ("content_sha256", "provenance", "splits")}
                for kind, data in (("text", self.text), ("pairs", self.pairs))
            }
            | {"tokenizer_sha256": self.text.manifest["tokenizer_sha256"], "vocab_size": self.text.vocab_size}
        )


def prepare(spec: RunSpec) -> Prepared:
    """Tokenise the run's corpora, unless that is already done, and hold its budget against them.

    Raises:
        DataError: a corpus that is missing, empty or unreadable.
        ConfigError: a budget larger than the corpus, or epochs that were not asked for.
        CheckpointError: a checkpoint that cannot be used.
    """
    config = spec.typed()
    data_dir = Path(config.paths.data)
    checkpoint = None if config.model.name is None else open_checkpoint(config.model.name)
    corpus = build(config.corpus.text, TextCorpus, "corpus.text")
    text = prepare_text(
        corpus, config.tokenizer, data_dir, given=checkpoint.tokenizer if checkpoint else None
    )
    pairs = build(config.corpus.pairs, PairCorpus, "corpus.pairs")
    data = Prepared(
        text, prepare_pairs(pairs, text.tokenizer_path, config.caption_length, data_dir), checkpoint
    )
    if config.budget.tokens is not None and config.strategy["modality"] != "none":
        check_epochs(config.budget, config.budget.tokens / _unique_positions(config, data))
    return data


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


def check_epochs(budget: Budget, epochs: float) -> None:
    """Repeating data must be meant.

    Raises:
        ConfigError: more than one epoch without `budget.repeat`.
    """
    if epochs > 1 and not budget.repeat:
        raise ConfigError(
            f"the compute budget is {epochs:.2f} epochs of the unique data; set budget.repeat=true to train "
            "for several epochs, or lower the compute budget"
        )


def _unique_positions(config: Config, data: Prepared) -> int:
    """Positions that one epoch processes."""
    unique = data.unique(config.budget, config.strategy["modality"])
    patches = (data.pairs.image_size // config.model.patch_size) ** 2
    return unique.get("unique_tokens", 0) + unique.get("unique_pairs", 0) * (patches + config.caption_length)
