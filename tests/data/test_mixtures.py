"""Corpora of several corpora: shares hold in every data budget, and all parts are recorded."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpus_builders import assert_one_line, text_corpus
from toy_archive import ToyArchive
from toy_data import SETTINGS, texts_of

from bench.config.build import build
from bench.data.corpora.base import Pair, PairCorpus, TextCorpus
from bench.data.shards import prepare_text
from bench.errors import ConfigError

FILES = "bench.data.corpora.text_files.TextFiles"
MIXTURE = "bench.data.corpora.mixture"


@pytest.fixture
def lines(tmp_path: Path) -> dict[str, Any]:
    """Two parts, of 600 long lines and of 400 short ones."""
    parts = {}
    for name, n, rest in (("long", 600, "x" * 30), ("short", 400, "y")):
        path = tmp_path / f"{name}.txt"
        path.write_text("".join(f"{name} {i:04d} {rest}\n" for i in range(n)))
        parts[name] = {"_target_": FILES, "path": str(path), "document": "line", "split_by": "document"}
        parts[name]["pattern"] = "*.txt"
    return parts


def mixture(parts: dict[str, Any], shares: dict[str, float] | None) -> TextCorpus:
    node = {"_target_": f"{MIXTURE}.TextMixture", "parts": parts, "shares": shares}
    return build(node, TextCorpus, "corpus.text")


def test_every_budget_has_the_shares_and_lies_inside_the_next(lines: dict[str, Any], tmp_path: Path) -> None:
    data = prepare_text(mixture(lines, {"long": 0.25, "short": 0.75}), SETTINGS, tmp_path)
    whole = data.train()
    before: list[str] = []
    for budget in (1200, 2400, whole.n_bytes):
        texts = texts_of(data, data.train(budget))
        assert texts[: len(before)] == before
        before = texts
        n_bytes = Counter[str]()
        for text in texts:
            n_bytes[text.split()[0]] += len(text)
        assert n_bytes["long"] / sum(n_bytes.values()) == pytest.approx(0.25, abs=0.08)
    of_short = [text for text in texts_of(data, data.train()) if text.startswith("short")]
    alone = prepare_text(text_corpus("text_files", **lines["short"]), SETTINGS, tmp_path)
    assert of_short == texts_of(alone, alone.train())  # the scarcest part, whole and split as on its own
    provenance = data.manifest["provenance"]
    assert "long.txt" in provenance["source"]
    assert "short.txt" in provenance["source"]
    assert provenance["shares"] == "long 0.25, short 0.75"


def test_without_shares_all_is_used_and_the_order_of_keys_changes_nothing(
    lines: dict[str, Any], tmp_path: Path
) -> None:
    data = prepare_text(mixture(lines, None), SETTINGS, tmp_path)
    assert sum(split["documents"] for split in data.manifest["splits"].values()) == 1000
    turned = mixture(dict(reversed(lines.items())), None)
    assert prepare_text(turned, SETTINGS, tmp_path).folder == data.folder
    assert mixture(lines, {"long": 0.5, "short": 0.5}).fingerprint() != turned.fingerprint()


@pytest.mark.parametrize(
    ("shares", "problem"),
    [
        ({"long": 1.0}, "corpus.text.parts: long, short"),
        ({"long": 0.5, "short": 0.6}, "they sum to 1.1"),
        ({"long": 1.5, "short": -0.5}, "short"),
    ],
)
def test_shares_that_cannot_be_are_one_line(
    lines: dict[str, Any], shares: dict[str, float], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture(lines, shares)
    assert_one_line(caught.value, "corpus.text.shares", problem)


def test_options_of_a_part_are_checked_under_its_own_key(lines: dict[str, Any]) -> None:
    lines["long"]["document"] = "page"
    with pytest.raises(ConfigError) as caught:
        mixture(lines, None)
    assert_one_line(caught.value, "corpus.text.parts.long.document")


def test_one_part_is_no_mixture(lines: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture({"long": lines["long"]}, None)
    assert_one_line(caught.value, "corpus.text.parts", "two corpora")


def test_pairs_of_two_corpora_have_their_shares_and_one_size(toy_archive: ToyArchive, tmp_path: Path) -> None:
    def node(size: int) -> dict[str, Any]:
        parts = {
            stem: {"_target_": f"bench.data.corpora.{stem}.{cls}", "image_size": image_size, **options}
            for stem, cls, image_size, options in (
                ("openclipart", "Openclipart", 16, {"exclude": [], "test_share": 0.1}),
                ("openmoji", "Openmoji", size, {"flags": False, "skin_tones": False}),
            )
        }
        shares = {"openclipart": 0.2, "openmoji": 0.8}
        rest = {"image_size": 16, "test_share": 0.25, "shares": shares}
        return {"_target_": f"{MIXTURE}.PairMixture", "parts": parts, **rest}

    with pytest.raises(ConfigError) as caught:
        build(node(32), PairCorpus, "corpus.pairs")
    assert_one_line(caught.value, "corpus.pairs.parts.openmoji.image_size", "corpus.pairs.image_size=16")
    corpus = build(node(16), PairCorpus, "corpus.pairs")
    assert corpus.test_share == 0.25
    corpus.keep_downloads_in(tmp_path)
    pairs = [item for item in corpus.pairs() if isinstance(item, Pair)]
    drawn = [pair for pair in pairs if "folder" in pair.labels]
    assert len(drawn) == 12  # all of the scarcest part
    assert 30 < len(pairs) - len(drawn) < 70  # 48 in expectation
