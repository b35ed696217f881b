"""A study from the command line to its page; what it does with runs that go wrong."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from harness import HERE, Place
from safetensors.numpy import load_file

from bench.records import Spent, read_evaluations, read_record

STRATEGIES = {"clm", "mlm", "clip", "scratch"}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.json")}


def test_every_run_of_a_study_leaves_a_complete_record(study: Place):
    records = study.records("first")
    assert set(records) == STRATEGIES
    for record in records.values():
        assert record.status == "finished"
        assert {"torch", "pytorch-lightning", "commit", "python"} <= record.environment.keys()
        assert all(len(record.data[kind]["content_sha256"]) == 64 for kind in ("text", "pairs"))
        assert len(record.data["tokenizer_sha256"]) == 64
        assert study.results("first")[record.strategy]["retrieval_fitted"].scores
        assert record.parameters > 0
        assert record.spent.peak_memory_bytes > 0


def test_the_costs_in_a_record_are_those_of_its_steps(study: Place):
    records = study.records("first")
    for name in ("clm", "mlm", "clip"):
        spent = records[name].spent
        assert spent.steps == 8  # 8,000 tokens by 1,024
        assert spent.forward_tokens == records[name].curve[-1].forward_tokens
        assert spent.flops == records[name].curve[-1].flops > 0
        assert spent.epochs > 0
    assert records["clm"].spent.predicted_tokens == 8 * 32 * 31  # all but the first of 32 rows of 32
    assert records["mlm"].spent.predicted_tokens < records["clm"].spent.predicted_tokens
    assert records["clip"].spent.unique_pairs == 64
    untrained = records["scratch"].spent
    assert untrained.flops == untrained.steps == untrained.forward_tokens == 0
    assert records["scratch"].budget is None


def test_bits_per_byte_are_recorded_as_better_when_lower(study: Place):
    results = study.results("first")
    (score,) = results["clm"]["bits_per_byte_exact"].scores
    assert (score.metric, score.n_items, score.higher_is_better) == ("bits_per_byte_exact", 8, False)
    assert 0 < score.value < score.chance
    refused = results["mlm"]["bits_per_byte_exact"]
    assert (refused.status, refused.reason) == ("inapplicable", "a pseudo-likelihood only")


@pytest.mark.parametrize(
    ("setting", "tolerance"), [("trainer.recompute=true", 0.0), ("trainer.accumulate_grad_batches=3", 6e-5)]
)
def test_how_a_step_is_computed_changes_no_weight_beyond_rounding(
    setting: str, tolerance: float, place: Place, study: Place
):
    done = place.bench_here(*place.sweep("strategy=clm", setting, *HERE))
    assert done.returncode == 0, done.stderr
    assert place.records()["clm"].run_id == study.records("first")["clm"].run_id
    folders = (place.folders()["clm"], study.folders("first")["clm"])
    mine, theirs = (load_file(folder / "weights.safetensors") for folder in folders)
    assert all(np.abs(values - theirs[name]).max() <= tolerance for name, values in mine.items())


@pytest.mark.parametrize("precision", [pytest.param("bf16-mixed", marks=pytest.mark.product), "64-true"])
def test_a_run_in_other_numbers_trains_as_far_and_does_its_tasks(precision: str, place: Place, study: Place):
    done = place.bench_here(*place.sweep("strategy=clm,mlm,clip", f"trainer.precision={precision}", *HERE))
    assert done.returncode == 0, done.stdout + done.stderr
    for name, record in place.records().items():
        full = study.records("first")[name].curve
        losses = [point.validation_loss_nats for point in record.curve]
        assert losses == pytest.approx([point.validation_loss_nats for point in full], rel=0.01)
        assert losses != [point.validation_loss_nats for point in full]


def test_a_report_names_every_run(study: Place):
    done = study.bench("report", "study=first")
    assert done.returncode == 0, done.stderr
    page = (study.folder / "reports" / "first" / "report.html").read_text()
    assert all(record.run_id in page for record in study.records("first").values())
    assert all(name in page for name in STRATEGIES)


def test_status_lists_studies_and_runs(study: Place):
    assert "4 finished" in study.bench("status").stdout
    one = study.bench("status", "study=first").stdout
    assert all(record.run_id in one for record in study.records("first").values())


def test_a_finished_study_is_skipped_at_once(study: Place, monkeypatch: pytest.MonkeyPatch):
    records = study.folder / "experiments" / "first" / "records"
    before, runs = contents(records), study.folder / "experiments" / "first" / "runs"
    touched = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # names each module on stderr
    done = study.bench(*study.sweep("strategy=clm,mlm,clip,scratch", "study=first"))
    assert done.returncode == 0
    assert "4 of 4 runs are done already" in done.stderr
    assert contents(records) == before
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == touched  # no worker came near
    imported = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "bench.sweep.launchers" in imported
    assert "torch" not in imported  # it would take longer than all the rest


def test_a_study_is_complete_without_its_run_folders(study: Place, place: Place):
    for kind in ("records", "evaluations"):
        shutil.copytree(study.folder / "experiments/first" / kind, place.folder / "experiments/first" / kind)
    done = place.bench_here(*place.sweep("strategy=clm,mlm,clip,scratch", "study=first"))
    assert "4 of 4 runs are done already" in done.stderr
    assert place.bench_here("report", "study=first").returncode == 0


class Broken(NamedTuple):
    """A sweep with one run that diverges, two that fail and one that finishes, done once."""

    place: Place
    words: list[str]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Broken:
    made = Place(tmp_path_factory.mktemp("broken"), settings)
    axes = ["budget.unique_pairs=2,64", "optim.lr_peak=6e-3,1e30"]  # two pairs fill no step
    words = made.sweep(
        "strategy=clip", "optim.clip_norm=1e30", "optim.warmup_share=0", "launcher.workers=1", *axes
    )
    return Broken(made, words, made.bench_here(*words))


def test_a_run_that_fails_or_diverges_stops_no_other(broken: Broken):
    place, _, done = broken
    assert done.returncode == 1
    paths = (place.folder / "experiments/adhoc/records").glob("*.json")
    records = [read_record(path) for path in paths]
    evaluated, _ = read_evaluations(place.folder / "experiments/adhoc/evaluations")
    assert Counter(r.status for r in records) == {"finished": 1, "diverged": 1, "failed": 2}
    for record in records:
        if record.status != "finished":
            assert record.spent == Spent()
            assert record.run_id not in evaluated
            assert record.reason
            assert "\n" not in record.reason
            assert record.reason in done.stdout  # the closing table
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 diverged, 2 failed, 1 finished of 4 runs" in done.stdout


def test_what_failed_is_tried_again_and_what_diverged_is_not(broken: Broken):
    place, words, _ = broken
    records = place.folder / "experiments" / "adhoc" / "records"
    before = contents(records)
    done = place.bench_here(*words)
    assert done.returncode == 1
    assert "2 of 4 runs are done already" in done.stderr
    after = contents(records)
    rewritten = {name for name in before if before[name][1] != after[name][1]}
    assert len(rewritten) == 2
    assert all('"failed"' in after[name][0].decode() for name in rewritten)
