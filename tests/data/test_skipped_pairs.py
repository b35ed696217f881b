"""What of a source is no pair is counted beside the data, and changes nothing else."""

from pathlib import Path

import pytest
from colour_squares import SKIPPED, make_setting, rows, squares
from corpus_builders import assert_one_line, pair_corpus

from bench.errors import DataError
from bench.tasks.base import Setting


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("squares"))


def test_what_is_no_pair_is_counted_beside_the_data_and_its_neighbours_stay(setting: Setting) -> None:
    manifest = setting.pairs.manifest
    assert setting.pairs.skipped == SKIPPED
    assert "image that does not decode: 2 (row 510, row 511)" in manifest["provenance"]["skipped"]
    assert sum(part["pairs"] for part in manifest["splits"].values()) == len(rows()) - 3


def test_skipped_rows_and_unread_labels_change_no_content_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dirty = squares(tmp_path, rows(), label_columns=[])
    clean = squares(tmp_path, rows()[:-3], "clean", label_columns=[])
    assert dirty.manifest["content_sha256"] == clean.manifest["content_sha256"]
    assert "skipped" not in clean.manifest["provenance"]
    assert "labels" not in pair_corpus("hf_image_text", name="x").fingerprint()  # prepared data stays found


def test_a_data_set_of_which_no_image_decodes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        squares(tmp_path, [row | {"image": b"text"} for row in rows()[:9]])
    assert_one_line(caught.value, "corpus.pairs", "image that does not decode: 9", "row 0", "columns")
