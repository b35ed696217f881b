"""Checkpoints that cannot be used are refused in one line that names the folder and what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
from toy_checkpoints import LENGTH, opened, write_checkpoint

from bench.data.pretrained_files import open_checkpoint
from bench.errors import ConfigError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in ("bert", "t5", "clip")}


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def config_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights_without(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        kept = {name: weight for name, weight in load_file(path).items() if part not in name}
        path.unlink()
        save_file(kept, path, metadata={"format": "pt"})

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def garbled(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"{not this")  # type: ignore[return-value]


def foreign_tokenizer(folder: Path) -> None:
    write_checkpoint("gpt2", folder / "other")
    for path in folder.glob("tokenizer*"):
        shutil.copy(folder / "other" / path.name, path)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (without("config.json"), "no config.json"),
    "no weights": (without("model.safetensors"), "no weights"),
    "only pickles": (pickled, "only pytorch_model.bin, which may hold code; save it with safetensors"),
    "no fast tokenizer": (without("tokenizer.json"), "no tokenizer.json"),
    "a damaged tokenizer": (garbled("tokenizer.json"), "its tokenizer cannot be read"),
    "damaged weights": (garbled("model.safetensors"), "its weights cannot be read"),
    "an unknown architecture": (
        config_with(model_type="never_heard", architectures=["NeverHeardModel"]),
        "NeverHeardModel",
    ),
    "another's tokenizer": (foreign_tokenizer, "its embedding 120 rows"),
    "a layer lost": (weights_without("layer.1."), "are missing"),
    "a layer left over": (config_with(num_hidden_layers=1), "are left over"),
    "too short for the texts": (config_with(max_position_embeddings=20), "its weights cannot be read"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_one_line(what: str, folders: dict[str, Path], tmp_path: Path):
    damage, part = BROKEN[what]
    folder = tmp_path / "checkpoint"
    shutil.copytree(folders["bert"], folder)
    damage(folder)
    refused(lambda: opened(folder), str(folder), part)


def refused(act: Callable[[], object], name: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        act()
    line = str(caught.value)
    assert line.startswith(f"model.name={name}: ")
    assert part in line
    assert "\n" not in line


def test_texts_longer_than_its_positions_are_refused_by_their_key(tmp_path: Path):
    folder = write_checkpoint("bert", tmp_path / "short", max_position_embeddings=20)
    refused(lambda: opened(folder), str(folder), f"cannot read {LENGTH} tokens")
    refused(lambda: opened(folder), str(folder), "lower sequence_length")


def test_a_body_without_a_head_is_for_reference_alone(folders: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "headless"
    shutil.copytree(folders["bert"], folder)
    weights_without("cls.")(folder)
    opened(folder)
    refused(lambda: opened(folder, predicts=True), str(folder), "cls.predictions")
    for kind in ("t5", "clip"):
        refused(lambda: opened(folders[kind], predicts=True), str(folders[kind]), "strategy=reference")  # noqa: B023


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused(lambda: open_checkpoint("someone/model"), "someone/model", "ConnectionError: no route")
    nowhere = str(tmp_path / "nowhere")
    refused(lambda: open_checkpoint(nowhere), nowhere, "no such folder")


def test_a_record_tells_checkpoints_apart_by_their_weights(folders: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "other"
    shutil.copytree(folders["bert"], folder)
    same = open_checkpoint(str(folder)).described()
    weights_without("cls.")(folder)
    first, other = (open_checkpoint(str(f)).described() for f in (folders["bert"], folder))
    assert first["architecture"] == "BertForMaskedLM"
    assert first["weights_sha256"] == same["weights_sha256"] != other["weights_sha256"]


def reshaped(weights: dict[str, Any], name: str) -> None:
    weights[name] = weights[name].repeat(2, *[1] * (weights[name].ndim - 1))


def left_over(weights: dict[str, Any], name: str) -> None:
    weights[name.replace(".1.", ".2.")] = weights[name].clone()


WRONG: dict[str, tuple[Callable[[dict[str, Any], str], Any], str]] = {
    "missing": (lambda weights, name: weights.pop(name), "are missing"),
    "left over": (left_over, "are left over"),
    "of another shape": (reshaped, "its weights cannot be read"),
}
WAYS = {"bert": (False, True, None), "modernbert": (True,), "gpt2": (False, True, None)}
WAYS |= {"modernbert_decoder": (True,), "t5": (False,), "clip": (False, None)}


@pytest.mark.parametrize("kind", WAYS)
def test_a_wrong_weight_is_refused_for_every_architecture_head_and_way_to_load(kind: str, tmp_path: Path):
    folder = write_checkpoint(kind, tmp_path / kind)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for change, part in WRONG.values():
        path.write_bytes(whole)
        weights = load_file(path)
        name = min(
            name for name in weights if ".1." in name and name.endswith("weight") and "dec" not in name
        )
        change(weights, name)
        save_file(weights, path, metadata={"format": "pt"})
        for predicts in WAYS[kind]:
            refused(lambda: opened(folder, predicts=predicts), str(folder), part)  # noqa: B023
