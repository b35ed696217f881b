"""Prepare a run's data and check its budget against them, before a run starts. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.build import build
from bench.config.run_spec import RunSpec
from bench.config.schema import Budget, Config
from bench.data.corpora.base import PairCorpus, TextCorpus
from bench.data.pairs import PairData, prepare_pairs
from bench.data.pretrained_files import Checkpoint, open_checkpoint
from bench.data.shards import TextData, prepare_text
from bench.errors import ConfigError


@dataclass(frozen=True)
class Prepared:
    """The two corpora of a run, tokenized with one tokenizer."""

    text: TextData
    pairs: PairData
    checkpoint: Checkpoint | None  # the run starts from it and uses its tokenizer

    def unique(self, budget: Budget, modality: str) -> dict[str, int]:
        """Return the unique data that a budget gives to a strategy, by the field names of `Spent`."""
        if modality == "pairs":
            return {"unique_pairs": len(self.pairs.train(budget.unique_pairs))}
        tokens = self.text.train(budget.unique_bytes)
        return {"unique_bytes": tokens.n_bytes, "unique_tokens": tokens.n_tokens}

    def described(self) -> dict[str, Any]:
        """Return hashes and provenance, as recorded with every result."""
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
    """Tokenize the run's corpora, unless that is already done, and check its budget against them.

    Raises:
        DataError: a corpus is missing, empty or unreadable.
        ConfigError: the budget is larger than the corpus, or needs several epochs without `budget.repeat`.
        CheckpointError: the checkpoint cannot be used.
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
        check_epochs(config.budget, config.budget.tokens / _tokens_per_epoch(config, data))
    return data


def check_epochs(budget: Budget, epochs: float) -> None:
    """Raise a ConfigError if there is more than one epoch and `budget.repeat` is not set."""
    if epochs > 1 and not budget.repeat:
        raise ConfigError(
            f"the compute budget is {epochs:.2f} epochs of the unique data; set budget.repeat=true to train "
            "for several epochs, or lower the compute budget"
        )


def _tokens_per_epoch(config: Config, data: Prepared) -> int:
    """Return the number of tokens, image patches included, that one epoch processes."""
    unique = data.unique(config.budget, config.strategy["modality"])
    patches = (data.pairs.image_size // config.model.patch_size) ** 2
    return unique.get("unique_tokens", 0) + unique.get("unique_pairs", 0) * (patches + config.caption_length)
