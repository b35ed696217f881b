"""Corpora of the hub by name, read from local files of the same schema; which commit is read is recorded."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corpus_builders import assert_one_line, pair_corpus, text_corpus, texts_of
from PIL import Image

from bench.data.corpora.base import Pair, Skipped
from bench.errors import ConfigError, DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(file, "png")
    return file.getvalue()


def flickr(path: Path, captions: list[Any]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": png(colour), "path": None} for colour in ("red", "blue")]
    table = pa.table({"image": images, "caption": captions, "filename": ["1.jpg", "2.jpg"]})
    pq.write_table(table, path / "rows.parquet")
    return str(path / "rows.parquet")


def local(path: str, **changes: Any) -> dict[str, Any]:
    return {"name": "parquet", "data_files": [path], "split": "train", "image_size": 8} | changes


def test_each_caption_of_a_list_is_a_pair_of_the_images_group(tmp_path: Path) -> None:
    path = flickr(tmp_path, [["A red field.", "", "Red."], []])
    items = list(pair_corpus("flickr30k", **local(path)).pairs())
    assert [(p.caption, p.group) for p in items if isinstance(p, Pair)] == [
        ("A red field.", "1.jpg"),
        ("Red.", "1.jpg"),
    ]
    assert [item.place for item in items if isinstance(item, Skipped)] == ["row 1"]


def test_a_list_of_other_values_is_refused_by_its_column(tmp_path: Path) -> None:
    path = flickr(tmp_path, [[1], [2]])
    with pytest.raises(ConfigError) as caught:
        list(pair_corpus("flickr30k", **local(path)).pairs())
    assert_one_line(caught.value, "corpus.pairs.caption_column", "int", "row 0")


@pytest.mark.parametrize("streaming", [True, False])
def test_webdataset_shards_are_read_as_a_stream_or_not(tmp_path: Path, streaming: bool) -> None:
    with tarfile.open(tmp_path / "cc3m-train-0000.tar", "w") as shard:
        for i, colour in enumerate(("red", "blue")):
            for kind, data in (("jpg", png(colour)), ("txt", f"a {colour} field".encode())):
                member = tarfile.TarInfo(f"{i:06d}.{kind}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    path = str(tmp_path / "cc3m-train-0000.tar")
    corpus = pair_corpus("cc3m", **local(path, name="webdataset", streaming=streaming))
    pairs = [item for item in corpus.pairs() if isinstance(item, Pair)]
    assert [pair.caption for pair in pairs] == ["a red field", "a blue field"]
    assert (pairs[1].image[4, 4] == [0, 0, 255]).all()


def test_the_commit_that_is_read_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked, read = [], []

    class Api:
        def dataset_info(self, name: str, **how: Any) -> Any:
            asked.append((name, how["revision"]))
            return SimpleNamespace(sha="abc123")

    def load_dataset(*names: Any, **how: Any) -> Any:
        read.append((*names, how["revision"]))
        return datasets.Dataset.from_dict({"text": ["One day, a cat."]})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = text_corpus("tinystories", revision="main")
    assert texts_of(corpus) == ["One day, a cat."]
    assert "TinyStories abc123, split train" in corpus.provenance()["source"]
    assert asked == [("roneneldan/TinyStories", "main")]
    assert read == [("roneneldan/TinyStories", None, "abc123")]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        texts_of(text_corpus("wikitext103"))
    assert_one_line(caught.value, "corpus.text.name", "reach the Hub", "network", "corpus.text.data_files")
