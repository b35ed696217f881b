"""Runs that are stopped in any way go on to the same bits; nothing is left running."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Place, assert_same_bits, ctrl_c, steps_logged, until

pytestmark = pytest.mark.faults

LONG = ["budget.tokens=160000", "trainer.checkpoint_every_s=0.2"]  # some seconds


def sweep(place: Place) -> list[str]:
    return place.sweep(*LONG, "strategy=clm,clip")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Place:
    made = Place(tmp_path_factory.mktemp("undisturbed"), settings)
    assert made.bench(*sweep(made)).returncode == 0
    return made


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)  # as a supervisor does: the launcher alone


@pytest.mark.parametrize("stop", [ctrl_c, terminate])
def test_a_stopped_sweep_saves_and_goes_on_to_the_same_bits(
    stop: Callable[[int], None], place: Place, undisturbed: Place
):
    launcher = place.start(*sweep(place))
    until(lambda: place.state("clm").get("seconds_left") and place.checkpointed("clm", "clip"))
    stop(launcher.pid)
    out, err = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert "2 interrupted of 2 runs" in out
    assert "Traceback" not in out + err
    assert place.processes() == []
    assert {place.state(s)["status"] for s in ("clm", "clip")} == {"interrupted"}
    assert place.records() == {}
    assert "2 interrupted" in place.bench("status").stdout
    assert place.bench(*sweep(place)).returncode == 0
    assert_same_bits(place, undisturbed, "clm", "clip")


def test_a_killed_worker_fails_its_run_alone_and_the_run_goes_on_to_the_same_bits(
    place: Place, undisturbed: Place
):
    launcher = place.start(*sweep(place))
    until(lambda: place.checkpointed("clm"))
    os.kill(place.state("clm")["pid"], signal.SIGKILL)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    records = place.records()
    assert {name: record.status for name, record in records.items()} == {"clm": "failed", "clip": "finished"}
    assert "the worker process died: killed by signal 9" in str(records["clm"].reason)
    assert "memory" in str(records["clm"].reason)
    assert "Traceback" not in out + err
    logged = len(steps_logged(place.folders()["clm"]))
    assert place.bench(*sweep(place)).returncode == 0
    rerun = len(steps_logged(place.folders()["clm"])) - logged
    assert rerun < len(steps_logged(undisturbed.folders()["clm"]))  # it did not start again
    assert_same_bits(place, undisturbed, "clm", "clip")


def test_workers_do_not_outlive_a_killed_launcher_and_their_runs_go_on(place: Place, undisturbed: Place):
    launcher = place.start(*sweep(place))
    until(lambda: place.checkpointed("clm"))
    launcher.kill()
    until(lambda: not place.processes(), seconds=10)
    launcher.communicate()
    damage(newest(place.folders()["clm"] / "checkpoints"))
    assert place.bench(*sweep(place)).returncode == 0
    assert_same_bits(place, undisturbed, "clm", "clip")


def test_the_runs_of_a_killed_launcher_are_taken_over_by_another_that_waits(place: Place, undisturbed: Place):
    first = place.start(*sweep(place))
    until(lambda: place.checkpointed("clm", "clip"))
    os.killpg(first.pid, signal.SIGSTOP)
    second = place.start(*sweep(place))
    assert second.stderr is not None
    for line in second.stderr:
        if "waiting for 2 runs of another launcher" in line:
            break
    assert line.count("process ") == 2
    first.kill()
    os.killpg(first.pid, signal.SIGCONT)
    first.communicate()
    out, err = second.communicate(timeout=120)
    assert (second.returncode, "2 finished of 2 runs" in out) == (0, True), out + err
    assert_same_bits(place, undisturbed, "clm", "clip")


def test_workers_that_are_still_importing_stop_as_well(place: Place):
    launcher = place.start(*sweep(place))
    until(lambda: len(place.processes()) > 2)
    terminate(launcher.pid)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert place.processes() == []
    assert place.records() == {}


def newest(checkpoints: Path) -> Path:
    return max(checkpoints.glob("*.ckpt"))


def damage(path: Path) -> None:
    """One flipped byte, which torch would load without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
