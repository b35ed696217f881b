"""Config -> prepared data, and every check of a budget against it. No torch: the launcher does this first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.build import build
from bench.compose import RunSpec
from bench.corpora.base import PairCorpus, TextCorpus
from bench.errors import ConfigError
from bench.pairs import PairData, prepare_pairs
from bench.schema import Budget
from bench.tokens import TextData, prepare_text


@dataclass(frozen=True)
class Prepared:
    """The two corpora of a run, tokenised with one tokenizer."""

    text: TextData
    pairs: PairData

    def unique(self, budget: Budget, modality: str) -> dict[str, int]:
        """The unique data that a budget gives to a strategy, as `Spent` names it."""
        if modality == "pairs":
            return {"unique_pairs": len(self.pairs.train(budget.unique_pairs))}
        tokens = self.text.train(budget.unique_bytes)
        return {"unique_bytes": tokens.n_bytes, "unique_tokens": tokens.n_tokens}

    def described(self) -> dict[str, Any]:
        """Hashes and provenance, as recorded beside every result."""
        return {
            kind: {key: data.manifest[key] for key in ("content_sha256", "provenance", "splits")}
            for kind, data in (("text", self.text), ("pairs", self.pairs))
        } | {"tokenizer_sha256": self.text.manifest["tokenizer_sha256"], "vocab_size": self.text.vocab_size}


def prepare(spec: RunSpec) -> Prepared:
    """Tokenise the run's corpora, unless that is already done, and hold its budget against them.

    Raises:
        DataError: a corpus that is missing, empty or unreadable.
        ConfigError: a budget larger than the corpus, or epochs that were not asked for.
    """
    config = spec.typed()
    data_dir = Path(config.paths.data)
    text = prepare_text(build(config.corpus.text, TextCorpus, "corpus.text"), config.tokenizer, data_dir)
    pairs = build(config.corpus.pairs, PairCorpus, "corpus.pairs")
    data = Prepared(text, prepare_pairs(pairs, text.tokenizer_path, config.caption_length, data_dir))
    modality = config.strategy["modality"]
    if modality != "none":
        unique = data.unique(config.budget, modality)
        _check_epochs(config.budget, unique.get("unique_tokens"))
    return data


def _check_epochs(budget: Budget, unique_tokens: int | None) -> None:
    """Repeating text must be meant."""
    if budget.repeat or budget.tokens is None or unique_tokens is None or budget.tokens <= unique_tokens:
        return
    raise ConfigError(
        f"budget.tokens={budget.tokens} is more than one epoch of {unique_tokens} unique tokens; set "
        "budget.repeat=true to train for several epochs, or lower budget.tokens"
    )
