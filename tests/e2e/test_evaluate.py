"""Tasks are added to finished runs: nothing is trained again, and the runs' records stay as they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import HERE, Place

from bench.records import items_path, read_evaluations


@pytest.fixture
def done(study: Place, place: Place) -> Place:
    """A copy of a finished study of four strategies."""
    shutil.copytree(study.folder / "experiments", place.folder / "experiments", dirs_exist_ok=True)
    place.settings = [word for word in place.settings if not word.startswith("task")]
    return place


def evaluate(place: Place, *words: str):
    paths = [word for word in place.settings if word.startswith("paths")]
    return place.bench_here("evaluate", "study=first", *HERE, *paths, *words)


def records(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.folder.glob("experiments/first/records/*")}


def logged(place: Place) -> dict[str, str]:
    return {p.parent.name: p.read_text() for p in place.folder.glob("experiments/first/runs/*/metrics.jsonl")}


def test_a_task_is_added_without_training_again(done: Place):
    before, curves = records(done), logged(done)
    ended = evaluate(done, "task=[retrieval_fitted,bits_per_byte_pseudo]", "task.retrieval_fitted.steps=3")
    assert ended.returncode == 0, ended.stderr
    assert (records(done), logged(done)) == (before, curves)
    results = done.results("first")
    assert results["mlm"]["bits_per_byte_pseudo"].status == "finished"
    assert results["clm"]["bits_per_byte_pseudo"].status == "inapplicable"
    assert results["mlm"]["bits_per_byte_exact"].status == "inapplicable"  # of before, still there
    again = evaluate(done, "task=[bits_per_byte_pseudo]")
    assert "4 of 4 runs are done already" in again.stderr


def test_an_evaluation_states_its_costs_and_keeps_outcomes_by_item(done: Place):
    assert (
        evaluate(done, "task=[bits_per_byte_pseudo]", "task.bits_per_byte_pseudo.windows=5").returncode == 0
    )
    cost = done.results("first")["mlm"]["bits_per_byte_pseudo"].cost
    assert cost.seconds
    assert cost.flops
    folder = done.folder / "experiments/first/evaluations"
    evaluations, _ = read_evaluations(folder)
    mlm = evaluations[done.records("first")["mlm"].run_id]
    (found,) = [e for e in mlm if any(r.task == "bits_per_byte_pseudo" and r.scores for r in e.results)]
    with np.load(items_path(folder, found), allow_pickle=False) as items:
        assert items["bits_per_byte_pseudo/nats"].shape == (5,)


def test_a_task_that_fails_costs_no_other_and_is_done_again(done: Place, tmp_path: Path):
    pairs = tmp_path / "data"
    (tmp_path / "no_pairs.jsonl").write_text("{")
    words = [
        "task=[minimal_pairs_exact,bits_per_byte_exact]",
        f"task.minimal_pairs_exact.path={tmp_path / 'no_pairs.jsonl'}",
    ]
    ended = evaluate(done, *words, "task.bits_per_byte_exact.windows=4")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "no_pairs.jsonl" in ended.stdout  # the closing table says why
    results = done.results("first")
    assert results["clm"]["minimal_pairs_exact"].status == "failed"
    assert results["clm"]["bits_per_byte_exact"].config["windows"] == 4
    status = done.bench_here("status", "study=first")
    assert "no_pairs.jsonl" in "".join(status.stdout.split())
    assert not pairs.exists()


def test_a_run_whose_weights_are_gone_is_named_and_trained_again_by_train_alone(done: Place):
    folder = done.folders("first")["clm"]
    (folder / "weights.safetensors").unlink()
    ended = evaluate(done, "task=[bits_per_byte_exact]", "task.bits_per_byte_exact.windows=4")
    assert ended.returncode == 1
    assert "weights are gone" in ended.stderr
    assert "bench train" in ended.stderr
    assert not (folder / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=[library_probe]"], "study=NAME"),
        (["study=first"], "task=[A,B]"),
        (["study=first", "task=[library_probe]", "model=1m"], "model is fixed"),
        (["study=nothing", "task=[library_probe]"], "no finished run"),
        (["study=first", "task=[nonsense]"], "nonsense"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(words: list[str], said: str, done: Place):
    ended = done.bench_here("evaluate", *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_every_result_says_by_which_settings(done: Place):
    for results in done.results("first").values():
        for result in results.values():
            assert json.dumps(result.config)
            assert result.config
            assert "_target_" not in result.config
