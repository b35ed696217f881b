"""From a study's run to a folder that transformers loads, and a refusal in one line where that cannot be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness import Place
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bench.cli import main
from bench.records import RunRecord, write_record
from bench.sweep.export import load

transformers = pytest.importorskip("transformers")

CLASSES = {
    "clm": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "clip": "AutoModel",
    "scratch": "AutoModel",
}


@pytest.fixture
def here(study: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, RunRecord]:
    """A copy of the study's experiments in the current folder, and its records."""
    shutil.copytree(study.folder / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    return study.records("first")


def run_folder(record: RunRecord) -> Path:
    return Path("experiments/first/runs") / record.run_id


def record_path(record: RunRecord) -> Path:
    return Path("experiments/first/records") / f"{record.run_id}.json"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command is refused by; it leaves nothing behind."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("bench: ")
    assert err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before
    return err


@pytest.mark.parametrize("strategy", CLASSES)
def test_a_run_of_a_study_loads_by_the_line_that_is_printed(
    strategy: str, here: dict[str, RunRecord], capsys: pytest.CaptureFixture[str]
):
    run_id = here[strategy].run_id
    assert main(["export", f"run={run_id[:8]}"]) == 0
    folder = Path("exports", run_id).absolute()
    line = f"transformers.{CLASSES[strategy]}.from_pretrained({str(folder)!r})"
    assert line in capsys.readouterr().out
    model = eval(line, {"transformers": transformers})  # noqa: S307 - our own line
    trained = load_file(run_folder(here[strategy]) / "weights.safetensors")
    assert_close(
        model.get_input_embeddings().weight.data, trained["backbone.embedding.weight"], rtol=0, atol=0
    )
    assert [path.name for path in folder.parent.iterdir()] == [run_id]
    card = (folder / "README.md").read_text()
    assert run_id in card
    assert ("Not pretrained" in card) == (strategy == "scratch")
    if strategy == "clip":
        weights = load(folder).state_dict()
        assert_close({name: weights[name] for name in trained}, trained, rtol=0, atol=0)


def test_the_folder_is_where_it_was_asked_for_and_masks_are_filled_in_from_it(
    here: dict[str, RunRecord], capsys: pytest.CaptureFixture[str]
):
    words = [f"run={here['mlm'].run_id}", "to=models/mine"]
    assert main(["export", *words]) == 0
    capsys.readouterr()
    assert main(["fill", "model=models/mine", "text=ab [MASK] = cd", "k=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("%" in line for line in lines)
    assert "holds no mask" in refusal(capsys, "fill", "model=models/mine", "text=ab cd")
    assert "already holds" in refusal(capsys, "export", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    {
        ("export",): "run=... is missing",
        ("export", "run="): "run=... is missing",
        ("export", "run=zz"): "run=zz: no record in",
        ("export", "rnu=zz"): "'rnu=zz' is not a setting; use run=",
        ("fill", "model=x"): "text=... is missing",
        ("fill", "model=x", "text=[MASK]", "k=0"): "k=0: use",
        ("fill", "model=x", "text=[MASK]"): "model=x is no folder",
    }.items(),
)
def test_a_wrong_word_is_refused_by_name(
    words: tuple[str, ...], said: str, here: dict[str, RunRecord], capsys: pytest.CaptureFixture[str]
):
    assert said in refusal(capsys, *words)


def fail(record: RunRecord) -> None:
    record_path(record).unlink()
    write_record(replace(record, status="failed", reason="out of luck"), record_path(record).parent)


def stop_early(record: RunRecord) -> None:
    record_path(record).unlink()


def take_a_checkpoint(record: RunRecord) -> None:
    model = record.config["model"] | {"name": "bert-base"}
    write_record(replace(record, config=record.config | {"model": model}), record_path(record).parent)


def lose_weights(record: RunRecord) -> None:
    (run_folder(record) / "weights.safetensors").unlink()


def lose_folder(record: RunRecord) -> None:
    shutil.rmtree(run_folder(record))


def outdate_the_config(record: RunRecord) -> None:
    path = run_folder(record) / "config.json"
    spec = json.loads(path.read_text())
    del spec["config"]["tokenizer"]["vocab_size"]
    path.write_text(json.dumps(spec))


def drop_a_weight(record: RunRecord) -> None:
    edit_weights(record, lambda weights: weights.pop("head.dense.weight"))


def add_a_weight(record: RunRecord) -> None:
    edit_weights(record, lambda weights: weights.update(stray=torch.ones(1)))


def reshape_a_weight(record: RunRecord) -> None:
    edit_weights(record, lambda weights: weights.update({"head.dense.weight": torch.ones(2, 2)}))


def edit_weights(record: RunRecord, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = run_folder(record) / "weights.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def truncate_weights(record: RunRecord) -> None:
    path = run_folder(record) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def change_the_corpus(record: RunRecord) -> None:
    write_record(
        replace(record, data=record.data | {"tokenizer_sha256": "another"}), record_path(record).parent
    )


def copy_with_a_similar_id(record: RunRecord) -> None:
    again = json.loads(record_path(record).read_text()) | {"run_id": f"{record.run_id}0"}
    (record_path(record).parent / f"{record.run_id}0.json").write_text(json.dumps(again))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (fail, "failed: out of luck"),
        (stop_early, "has not finished"),
        (take_a_checkpoint, "has the backbone of bert-base"),
        (lose_weights, "run it again with `bench train -m "),
        (lose_folder, "run it again with `bench train -m "),
        (outdate_the_config, "vocab_size"),
        (drop_a_weight, "head.dense.weight"),
        (add_a_weight, "stray"),
        (reshape_a_weight, "head.dense.weight"),
        (truncate_weights, "does not fit"),
        (change_the_corpus, "corpus.text has changed"),
        (copy_with_a_similar_id, "is ambiguous"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_reason(
    spoil: Callable[[RunRecord], None],
    said: str,
    here: dict[str, RunRecord],
    capsys: pytest.CaptureFixture[str],
):
    spoil(here["mlm"])
    assert said in refusal(capsys, "export", f"run={here['mlm'].run_id[:8]}")


def test_a_run_that_two_studies_hold_is_exported_from_where_its_weights_are(here: dict[str, RunRecord]):
    run_id = here["mlm"].run_id
    shutil.copytree("experiments/first/records", "experiments/again/records")
    assert main(["export", f"run={run_id}"]) == 0
