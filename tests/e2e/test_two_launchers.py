"""Two launchers on one study: no run is done twice, both see it through."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Place, steps_logged

from bench.config.compose import compose_runs
from bench.config.run_spec import RunSpec
from bench.records import (
    TaskResult,
    read_evaluations,
    results_of,
    without_targets,
    write_evaluation,
    write_record,
)
from bench.sweep import locks
from bench.sweep.progress import Display


def outcome(launcher: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = launcher.communicate(timeout=120)
    assert "Traceback" not in out + err
    return launcher.returncode, out, err


@pytest.mark.product
def test_two_launchers_prepare_once_divide_the_runs_and_both_see_them_through(place: Place, tmp_path: Path):
    words = place.sweep("strategy=clm,mlm,clip,scratch", "launcher.workers=1", f"paths.data={tmp_path}/data")
    both = [place.start(*words) for _ in range(2)]
    done = [outcome(launcher) for launcher in both]
    assert [code for code, _, _ in done] == [0, 0]
    assert all("4 finished of 4 runs" in out for _, out, _ in done)
    assert "that is preparing" in done[0][2] + done[1][2]
    assert "is damaged" not in done[0][2] + done[1][2]
    assert {r.status for r in place.records().values()} == {"finished"}
    assert len(place.records()) == 4
    evaluations = list((place.folder / "experiments/adhoc/evaluations").glob("*.json"))
    assert len(evaluations) == 4
    for name, folder in place.folders().items():
        lines = steps_logged(folder) if name != "scratch" else []
        assert len(lines) == len(set(lines))
        assert len([line for line in lines if "train_loss_nats" in line]) == (0 if name == "scratch" else 8)


@pytest.fixture
def spec(settings: list[str], tmp_path: Path) -> RunSpec:
    [made] = compose_runs([*settings, f"paths.experiments={tmp_path}"], multirun=False)
    made.folder.mkdir(parents=True)
    return made


def fail(spec: RunSpec) -> str:
    write_record(spec.record("failed", "out of luck"), spec.records)
    return "failed"


def test_what_failed_before_is_tried_again_and_what_fails_elsewhere_meanwhile_is_not(spec: RunSpec):
    fail(spec)
    before = spec.version()
    assert locks.ended(spec, before) is None
    fail(spec)
    assert locks.ended(spec, before) == "failed"
    assert locks.ended(spec, None) is None


def test_a_run_whose_tasks_failed_elsewhere_has_failed_and_one_stopped_half_way_has_not(spec: RunSpec):
    before = spec.version()
    write_record(spec.record("finished"), spec.records)
    assert locks.ended(spec, before) is None
    write_evaluation(spec.failed_evaluation("out of luck"), spec.evaluations)
    assert locks.ended(spec, before) == "failed"
    assert locks.ended(spec, spec.version()) is None
    pending = without_targets(spec.pending_tasks())
    good = [TaskResult(name, "finished", node) for name, node in pending.items()]
    write_evaluation(spec.evaluation(good, "1999-01-01T00:00:00+00:00"), spec.evaluations)
    assert locks.ended(spec, spec.version()) == "finished"


def test_a_run_whose_owner_is_gone_without_a_word_is_done_here(spec: RunSpec):
    asked: list[int] = []

    def do(specs):
        asked.append(len(specs))
        return {spec.run_id: "busy" if len(asked) == 1 else "finished" for spec in specs}

    with Display(1, 0) as display:
        assert locks.share([spec], do, display) == {spec.run_id: "finished"}
    assert asked == [1, 1]


def test_the_latest_word_on_a_task_does_not_depend_on_the_clock(spec: RunSpec):
    name, node = next(iter(without_targets(spec.pending_tasks()).items()))
    result = TaskResult(name, "finished", node)
    for reason, clock in (("first", "2030-01-01"), ("second", "2020-01-01"), ("third", "2020-01-01")):
        config = result.config | {"said": reason}  # another evaluation of the same task
        found = [replace(result, config=config, reason=reason)]
        write_evaluation(spec.evaluation(found, f"{clock}T00:00:00+00:00"), spec.evaluations)
        evaluations, _ = read_evaluations(spec.evaluations)
        assert results_of(evaluations[spec.run_id])[name].reason == reason
