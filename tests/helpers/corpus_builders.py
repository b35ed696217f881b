"""Corpora as conf/ ships them, with changes."""

from pathlib import Path
from typing import Any

import yaml

from bench.config.build import build
from bench.data.corpora.base import Document, PairCorpus, TextCorpus
from bench.errors import BenchError

CONF = Path(__file__).parents[2] / "conf" / "corpus"


def text_corpus(stem: str, **changes: Any) -> TextCorpus:
    return build(_node("text", stem, changes), TextCorpus, "corpus.text")


def pair_corpus(stem: str, **changes: Any) -> PairCorpus:
    return build(_node("pairs", stem, changes), PairCorpus, "corpus.pairs")


def _node(kind: str, stem: str, changes: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load((CONF / kind / f"{stem}.yaml").read_text()) | changes


def assert_one_line(error: BenchError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def texts_of(corpus: TextCorpus) -> list[str]:
    return [item.text for item in corpus.documents() if isinstance(item, Document)]
