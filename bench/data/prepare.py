"""Config -> prepared data; checks against it and the machine. No torch: the launcher does this first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.build import build
from bench.config.run_spec import RunSpec
from bench.config.schema import Budget, Config
from bench.data.corpora.base import PairCorpus, TextCorpus
from bench.data.pairs import PairData, prepare_pairs
from bench.data.pretrained_files import Checkpoint, open_checkpoint
from bench.data.tokens import TextData, prepare_text
from bench.errors import ConfigError


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
