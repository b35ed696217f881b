"""What every corpus in conf/corpus keeps; a new YAML is tested without an edit here."""

import io
import json
from collections.abc import Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import composed_whole
from omegaconf import OmegaConf
from toy_archive import ToyArchive
from toy_models import CONF, stems

from bench.config.build import build, find_class
from bench.data.corpora.base import Corpus, Document, Pair, PairCorpus, SkippedItems, TextCorpus
from bench.errors import ConfigError, DataError

BASES: dict[str, Any] = {"text": TextCorpus, "pairs": PairCorpus}
CHOICES = [(kind, stem) for kind in BASES for stem in stems(f"corpus/{kind}")]
every_corpus = pytest.mark.parametrize(("kind", "stem"), CHOICES)
SOME = 20


def node_of(kind: str, stem: str) -> dict[str, Any]:
    node = OmegaConf.load(CONF / "corpus" / kind / f"{stem}.yaml")
    if "defaults" in node:  # its parts are other files
        node = composed_whole([f"corpus/{kind}={stem}"]).corpus[kind]
        return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
    return OmegaConf.to_container(node)  # type: ignore[return-value]


@pytest.fixture
def toy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_archive: ToyArchive) -> Path:
    """Text files, a parquet file with texts, images and captions, and an archive of Debian packages."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "png")
    texts = [f"A text, number {i}." for i in range(5)]
    images = [{"bytes": picture.getvalue(), "path": None}] * 5
    columns = {"text": texts, "image": images, "caption": texts}
    columns |= {"jpg": images, "txt": texts, "url": texts, "cocoid": list(range(5)), "filename": texts}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    return tmp_path


def make(kind: str, stem: str, folder: Path) -> Corpus:
    """The corpus as shipped, its ??? filled: a folder of texts, or local files in place of a hub's."""
    node = node_of(kind, stem)
    for part in [node, *node.get("parts", {}).values()]:
        if "path" in part:
            part["path"] = str(folder / "texts")
        if "data_files" in part:
            local = {"data_files": [str(folder / "rows.parquet")], "config": None, "split": "train"}
            part |= {"name": "parquet", **local}
        if part["_target_"].endswith(".DebianDocs"):
            part["packages"] = ["toy-doc", "toy-dict"]
    corpus: Corpus = build(node, BASES[kind], f"corpus.{kind}")
    corpus.keep_downloads_in(folder / "data")
    return corpus


def read(corpus: Corpus) -> Sequence[Document | Pair]:
    """The first items, or a skip where the user has to get the data first."""
    try:
        items = corpus.documents() if isinstance(corpus, TextCorpus) else corpus.pairs()  # type: ignore[attr-defined]
        return list(islice(SkippedItems().separated(items), SOME))
    except DataError as error:
        if "nltk.downloader" in str(error):
            pytest.skip("needs NLTK data, named by NLTK_DATA")
        raise


@every_corpus
def test_the_yaml_sets_every_option_and_no_other(kind: str, stem: str, toy_files: Path):
    node = node_of(kind, stem)
    options = find_class(node, BASES[kind], kind).Options
    assert set(node) - {"_target_"} == {field.name for field in fields(options)}
    with pytest.raises(ConfigError, match="nonsense"):
        build(node | {"nonsense": 1}, BASES[kind], f"corpus.{kind}")


@every_corpus
def test_what_the_user_must_fill_in_is_asked_for_by_its_key(kind: str, stem: str):
    node = node_of(kind, stem)
    for key in [key for key, value in node.items() if value == "???"]:
        with pytest.raises(ConfigError, match=f"corpus.{kind}.*{key}"):
            build(node, BASES[kind], f"corpus.{kind}")


@pytest.mark.slow
@every_corpus
def test_items_have_content_and_a_group(kind: str, stem: str, toy_files: Path):
    corpus = make(kind, stem, toy_files)
    items = read(corpus)
    assert items
    for item in items:
        assert item.group
        assert all(isinstance(part, str) for pair in item.labels.items() for part in pair)
        if isinstance(item, Document):
            assert item.text.strip()
        else:
            assert isinstance(corpus, PairCorpus)
            assert item.caption.strip()
            assert item.image.dtype == np.uint8
            assert item.image.shape == (corpus.image_size, corpus.image_size, 3)


@pytest.mark.slow
@every_corpus
def test_reading_again_gives_the_same_items(kind: str, stem: str, toy_files: Path):
    first, again = (read(make(kind, stem, toy_files)) for _ in range(2))
    assert [repr(item) for item in first] == [repr(item) for item in again]


@pytest.mark.slow
@every_corpus
def test_the_fingerprint_is_stable_json(kind: str, stem: str, toy_files: Path):
    read(make(kind, stem, toy_files))
    first, again = (make(kind, stem, toy_files).fingerprint() for _ in range(2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert str(toy_files) not in json.dumps(first)


@pytest.mark.slow
@every_corpus
def test_the_source_and_the_licence_are_named(kind: str, stem: str, toy_files: Path):
    read(make(kind, stem, toy_files))
    provenance = make(kind, stem, toy_files).provenance()
    assert {"source", "licence"} <= provenance.keys()
    assert all(isinstance(value, str) and value for value in provenance.values())
