"""A Hugging Face checkpoint beside a study: as it is, or trained on from; what breaks fails alone."""

import json
from pathlib import Path

import pytest
from harness import HERE, Place
from toy_checkpoints import write_checkpoint

from bench.records import RunRecord, Spent, read_evaluations, read_record, results_of


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Place:
    """BERT and CLIP as they are, a BERT trained on, one drawn anew, a folder with nothing in it."""
    made = Place(tmp_path_factory.mktemp("beside"), [word for word in settings if word != "model=0.2m"])
    for kind in ("bert", "clip", "gpt2"):
        write_checkpoint(kind, made.folder / kind)
    (made.folder / "empty").mkdir()
    ours = made.bench_here(*made.sweep("model=0.2m", "strategy=scratch,mlm", "study=s", *HERE))
    assert ours.returncode == 0, ours.stderr
    return made


@pytest.fixture(scope="module")
def records(beside: Place) -> dict[tuple[str, str], RunRecord]:
    """All of the study's by strategy and model, after sweeps with the reference, and from the checkpoint."""
    as_they_are = ["strategy=reference", "model.name=bert,clip,gpt2,empty"]
    for words in (as_they_are, ["strategy=mlm,scratch,clm,captioning", "model.name=bert"]):
        done = beside.bench_here(*beside.sweep("model=hf", "study=s", *words, *HERE))
        assert done.returncode == 1  # some of each fail
        assert "Traceback" not in done.stdout + done.stderr
    found = map(read_record, (beside.folder / "experiments/s/records").glob("*.json"))
    return {(record.strategy, record.model): record for record in found}


def test_a_reference_is_measured_in_every_task_and_spends_nothing(
    beside: Place, records: dict[tuple[str, str], RunRecord]
):
    evaluations, _ = read_evaluations(beside.folder / "experiments/s/evaluations")

    def done(record: RunRecord) -> set[str]:
        results = results_of(evaluations[record.run_id]).values()
        return {result.task for result in results if result.status == "finished"}

    bert, clip = (records["reference", f"hf[name={name}]"] for name in ("bert", "clip"))
    assert (bert.status, clip.status) == ("finished", "finished")
    assert done(clip) == {"retrieval_fitted", "retrieval_zero_shot"}
    assert done(bert) == {"retrieval_fitted"}
    gpt2 = records["reference", "hf[name=gpt2]"]
    assert done(gpt2) == {"retrieval_fitted", "bits_per_byte_exact"}
    for record in (bert, clip):
        spent = record.spent
        assert spent == Spent(peak_memory_bytes=spent.peak_memory_bytes)
        assert record.parameters > 0
        assert record.budget is None
    assert bert.data["checkpoint"]["architecture"] == "BertForMaskedLM"
    assert len(bert.data["checkpoint"]["weights_sha256"]) == 64
    assert bert.data["tokenizer_sha256"] != clip.data["tokenizer_sha256"]


def test_a_checkpoint_is_trained_on_from_its_weights(records: dict[tuple[str, str], RunRecord]):
    trained, own = records["mlm", "hf[name=bert]"], records["mlm", "0.2m"]
    assert (trained.status, trained.spent.steps) == ("finished", own.spent.steps)
    assert trained.spent.flops > 0
    assert trained.data["checkpoint"] == records["reference", "hf[name=bert]"].data["checkpoint"]
    assert records["scratch", "hf[name=bert]"].status == "finished"


def test_what_cannot_be_used_fails_alone_with_its_reason(records: dict[tuple[str, str], RunRecord]):
    empty, clm = records["reference", "hf[name=empty]"], records["clm", "hf[name=bert]"]
    assert (empty.status, clm.status) == ("failed", "failed")
    assert empty.reason == (
        "model.name=empty: it has no config.json; give a folder written by save_pretrained"
    )
    assert clm.reason is not None
    assert "has bidirectional attention" in clm.reason
    assert "choose strategy=mlm" in clm.reason
    captioning = records["captioning", "hf[name=bert]"]
    assert captioning.reason == "model.name=bert: Captioning cannot use a checkpoint; choose a model preset"


def test_a_report_shows_the_references_outside_its_verdicts(
    beside: Place, records: dict[tuple[str, str], RunRecord]
):
    done = beside.bench_here("report", "study=s")
    assert done.returncode == 0, done.stderr
    page = (beside.folder / "reports/s/report.html").read_text()
    assert "reference [hf[name=clip]" in page
    assert "(external)" in page
    assert "trained elsewhere on other data and compute" in page


def test_a_checkpoint_that_was_not_trained_is_not_copied(
    beside: Place, records: dict[tuple[str, str], RunRecord]
):
    folders = {p.parent: json.loads(p.read_text()) for p in Path(beside.folder).rglob("runs/*/config.json")}
    kept = {
        (config["strategy"], config["model"])
        for folder, config in folders.items()
        if (folder / "weights.safetensors").exists()
    }
    assert ("mlm", "hf[name=bert]") in kept
    assert not any(strategy == "reference" for strategy, _ in kept)


def test_a_reference_without_a_checkpoint_says_what_to_choose(place: Place):
    done = place.bench_here("train", *place.settings, "strategy=reference")
    assert done.returncode == 2
    assert "choose model=hf model.name=PATH" in done.stderr
