"""Runs as tasks of a Ray that is started for the sweep; skipped where the package ray is not installed."""

import importlib.util
import os
import signal

import psutil
import pytest
from harness import Place, assert_same_bits, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray"),
]
LONG = ("budget.tokens=160000", "trainer.checkpoint_every_s=0.2", "strategy=clm,clip")  # some seconds


def test_a_stopped_sweep_resumes_on_ray_to_the_bits_of_a_local_one(place: Place, settings: list[str]):
    alone = Place(place.folder / "alone", settings)
    assert alone.bench(*alone.sweep(*LONG, "launcher.threads_per_worker=1")).returncode == 0
    words = place.sweep(*LONG, "launcher=ray")
    command = place.start(*words)
    until(lambda: place.checkpointed("clm"))
    os.kill(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=90)
    assert command.returncode == 130, out + err
    assert place.state("clm")["status"] == "interrupted"
    assert place.records() == {}
    done = place.bench(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_bits(place, alone, "clm", "clip")


def test_a_killed_worker_fails_its_run_alone(place: Place):
    command = place.start(*place.sweep(*LONG, "launcher=ray"))
    until(lambda: place.checkpointed("clm"))
    psutil.Process(place.state("clm")["pid"]).kill()
    out, err = command.communicate(timeout=180)
    assert command.returncode == 1, out + err
    records = place.records()
    assert {name: record.status for name, record in records.items()} == {"clm": "failed", "clip": "finished"}
    assert "its Ray task failed: WorkerCrashedError" in str(records["clm"].reason)


def test_a_cluster_that_is_not_there_or_too_small_is_said_in_one_line(place: Place):
    for word in ("launcher.address=127.0.0.1:9", "launcher.cpus_per_run=4000"):
        refused = place.bench(*place.sweep("strategy=clm", "launcher=ray", word))
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith(f"bench: {word}: ")
