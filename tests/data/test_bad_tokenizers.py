"""Tokenizers of checkpoints that do not serve: one line with the folder and the fix."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import LEAST, MARK, assert_one_line, refusal, traps

from bench.data.pretrained_files import open_checkpoint
from bench.errors import printable


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toy_checkpoints import write_checkpoint

    return write_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2") / "good")


def without(name: str) -> Callable[[Any], Any]:
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def with_model(**changes: Any) -> Callable[[Any], Any]:
    return lambda tree: tree | {"model": tree["model"] | changes}


def with_ids(change: Callable[[dict[str, int]], dict[str, int]]) -> Callable[[Any], Any]:
    return lambda tree: tree | {"model": tree["model"] | {"vocab": change(tree["model"]["vocab"])}}


def erasing(tree: Any) -> Any:
    return tree | {"normalizer": {"type": "Replace", "pattern": {"Regex": "[^x]*"}, "content": ""}}


TREES: dict[str, Callable[[Any], Any]] = {
    "no model": without("model"),
    "no added tokens": without("added_tokens"),
    "another kind of model": with_model(type="Nothing"),
    "no vocabulary": with_model(vocab={}),
    "a list for a vocabulary": with_model(vocab=[]),
    "a text for a vocabulary": with_model(vocab="words"),
    "a merge of unknown tokens": with_model(merges=[["qq", "zz"]]),
    "a merge of one": with_model(merges=[["a"]]),
    "a hole": with_ids(lambda vocab: {k: i for k, i in vocab.items() if i != 280}),
    "a shared id": with_ids(lambda vocab: {k: min(i, 290) for k, i in vocab.items()}),
    "a negative id": with_ids(lambda vocab: vocab | {"zzz": -1}),
    "an id far out": with_ids(lambda vocab: vocab | {"zzz": 2**31}),
    "a text for an id": with_ids(lambda vocab: vocab | {"zzz": "3"}),  # type: ignore[dict-item]
    "few bytes": with_ids(lambda vocab: dict(list(vocab.items())[:9])),
    "no text is left": erasing,
    "an unbalanced pattern": lambda tree: (
        tree | {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}}}
    ),
    "an unknown normalizer": lambda tree: tree | {"normalizer": {"type": "Nothing"}},
}
CONTENTS = {"nothing": b"", "a brace": b"{", "a list": b"[]", "null": b"null", "a pickle": b"\x80\x04K\x01."}
assert len(TREES) + len(CONTENTS) >= LEAST["tokenizers"]


@pytest.mark.parametrize("what", [*TREES, *CONTENTS])
def test_a_tokenizer_that_is_damaged_is_told_by_its_checkpoint(what: str, checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    path = folder / "tokenizer.json"
    if what in TREES:
        path.write_text(json.dumps(TREES[what](json.loads(path.read_text()))))
    else:
        path.write_bytes(CONTENTS[what])
    line = refusal(lambda: open_checkpoint(str(folder)))
    assert line.startswith(f"model.name={folder}: ")
    assert "tokenizer" in line
    assert_one_line(printable(line))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "model.pt", "model.safetensors"])
def test_a_checkpoint_that_is_a_pickle_is_refused_and_nothing_in_it_runs(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bench.models.from_huggingface import load

    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(traps()["pickle"])

    def use() -> None:
        load(open_checkpoint(str(folder)), patch_size=4, length=16, pretrained=True, predicts=True)

    assert f"model.name={folder}" in refusal(use)
    assert not (tmp_path / MARK).exists()


def test_weights_that_are_no_numbers_give_none(checkpoint: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from bench.models.from_huggingface import load

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = {name: tensor * np.nan for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(str(folder))
    line = refusal(lambda: load(found, patch_size=4, length=16, pretrained=True, predicts=True))
    assert "hidden states are not finite" in line


def test_code_beside_a_checkpoint_is_never_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    from bench.models.fill import fill

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "evil.py").write_text("import os; os.mkdir('touched')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForMaskedLM"), "evil.M"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "model=" in refusal(lambda: fill(folder, "[MASK]", 1))
    assert not (tmp_path / "touched").exists()


def test_the_law_counts_two_hundred_distinct_inputs():
    assert sum(LEAST.values()) >= 200
