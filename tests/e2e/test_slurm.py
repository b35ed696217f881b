"""A study on a real Slurm: jobs that are preempted, requeued or short of time end with the same bits.

Takes the cluster of `one_node_slurm.sh`: jobs of partition `high` preempt those of `low`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from harness import Place, assert_same_bits, ctrl_c, numbers, steps_logged, weights
from harness import until as until_within

STRATEGIES = ("clm", "mlm", "clip")
LONG = ("budget.tokens=160000", "trainer.checkpoint_every_s=0.2")  # some seconds
PATIENCE_S = 240  # a job starts Python and torch anew, on a machine that may be busy
ONE_THREAD = "launcher.threads_per_worker=1"


def until(condition: Callable[[], object]) -> None:
    until_within(condition, PATIENCE_S)


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def why_not() -> str:
    """Why these tests cannot run here; "" if they can."""
    if shutil.which("sbatch") is None:
        return "no sbatch; see tests/e2e/one_node_slurm.sh"
    try:
        partitions = slurm("sinfo", "--noheader", "--format=%R").split()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "sinfo does not answer; see tests/e2e/one_node_slurm.sh"
    return "" if {"low", "high"} <= set(partitions) else "not the cluster of tests/e2e/one_node_slurm.sh"


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


def sweep(place: Place, strategies: Sequence[str], *words: str) -> list[str]:
    return place.sweep(*LONG, f"strategy={','.join(strategies)}", *words)


def submitted(place: Place, *strategies: str) -> list[str]:
    return sweep(place, strategies, "launcher=slurm")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Place:
    made = Place(tmp_path_factory.mktemp("undisturbed"), settings)
    assert made.bench(*sweep(made, STRATEGIES, ONE_THREAD)).returncode == 0
    return made


@pytest.fixture
def place(place: Place) -> Iterator[Place]:
    """A place whose jobs are gone from the queue afterwards."""
    yield place
    for job_id in jobs(place).values():
        subprocess.run(["scancel", job_id], check=False)
    until(lambda: not slurm("squeue", "--noheader"))


def jobs(place: Place) -> dict[str, str]:
    """Job ids by strategy."""
    files = (place.folder / "experiments/adhoc/runs").glob("*/job.json")
    found = [json.loads(path.read_text()) for path in files]
    return {job["label"].split()[0]: job["job_id"] for job in found}


def state(job_id: str) -> str:
    return slurm("squeue", "--noheader", "--states=all", "--jobs", job_id, "--format=%T").strip()


def restarts(job_id: str) -> int:
    return int(slurm("scontrol", "show", "job", job_id).partition("Restarts=")[2].split()[0])


def hasten(*job_ids: str) -> None:
    """Start requeued jobs now; Slurm would wait for two minutes."""
    for job_id in job_ids:
        until(lambda job_id=job_id: state(job_id) == "PENDING")  # type: ignore[misc]
    time.sleep(2)  # what starts in the second in which it was stopped fails: "Job credential revoked"
    for job_id in job_ids:
        slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def assert_resumed(place: Place, strategy: str) -> None:
    """The run went on where it was stopped: no step was logged twice."""
    assert restarts(jobs(place)[strategy]) == 1
    lines = steps_logged(place.folders()[strategy])
    assert len(lines) == len(set(lines))


def preempt() -> None:
    """Do a job that takes the whole node from those that run there, as Slurm sees fit."""
    options = ("--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    urgent = slurm("sbatch", *options).strip()
    until(lambda: state(urgent) == "COMPLETED")


def test_preempted_jobs_resume_to_the_same_bits_and_are_never_submitted_twice(
    place: Place, undisturbed: Place
):
    words = [*submitted(place, *STRATEGIES), "launcher.array_parallelism=2"]
    first = place.start(*words)
    until(lambda: any(place.checkpointed(s) for s in STRATEGIES))
    ids = jobs(place)
    ctrl_c(first.pid)
    out, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130
    assert f"submitted 3 runs as {min(ids.values())} to {max(ids.values())}" in err
    assert "the jobs stay in the queue" in err
    preempt()
    preempted = [s for s in STRATEGIES if restarts(ids[s])]
    assert any(place.checkpointed(s) for s in preempted)
    said = place.bench("status", "study=adhoc").stdout
    assert all(f"job {ids[s]} pending (BeginTime)" in said for s in preempted)
    second = place.start(*words)
    hasten(*(ids[s] for s in preempted))
    out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, out + err
    assert "runs are in the queue already" in err
    assert "submitted" not in err
    assert jobs(place) == ids
    for strategy in preempted:
        assert_resumed(place, strategy)
    assert_same_bits(place, undisturbed, *STRATEGIES)
    assert "3 finished" in place.bench("status", "study=adhoc").stdout


def requeue(job_id: str) -> None:
    slurm("scontrol", "requeue", job_id)  # as an administrator does, or Slurm when a node fails


def warn(job_id: str) -> None:
    slurm("scancel", "--signal=USR2", job_id)  # as Slurm does before the time limit


def test_jobs_that_are_requeued_or_near_their_time_limit_resume_to_the_same_bits(
    place: Place, undisturbed: Place
):
    command = place.start(*submitted(place, "clm", "clip"))
    for strategy, disturb in (("clm", warn), ("clip", requeue)):
        until(lambda strategy=strategy: place.checkpointed(strategy))  # type: ignore[misc]
        disturb(jobs(place)[strategy])
    hasten(*jobs(place).values())
    out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, out + err
    for strategy in ("clm", "clip"):
        assert_resumed(place, strategy)
    assert_same_bits(place, undisturbed, "clm", "clip")


def test_cancelled_jobs_stay_out_of_the_queue_and_the_same_command_finishes_them(
    place: Place, undisturbed: Place
):
    command = place.start(*submitted(place, "clm"))
    until(lambda: place.checkpointed("clm"))
    job_id = jobs(place)["clm"]
    slurm("scancel", job_id)
    out, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, state(job_id)) == (130, "CANCELLED"), out + err
    assert place.records() == {}
    assert "1 interrupted" in place.bench("status", "study=adhoc").stdout
    assert place.bench(*submitted(place, "clm")).returncode == 0
    assert jobs(place)["clm"] != job_id
    assert_same_bits(place, undisturbed, "clm")


def test_a_killed_job_fails_its_run_alone(place: Place):
    command = place.start(*submitted(place, "clm", "clip"))
    until(lambda: place.checkpointed("clm"))
    os.kill(place.state("clm")["pid"], signal.SIGKILL)
    out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1, out + err
    assert {name: record.status for name, record in place.records().items()} == {
        "clm": "failed",
        "clip": "finished",
    }
    assert f"Slurm job {jobs(place)['clm']} ended as FAILED" in str(place.records()["clm"].reason)


def test_ranks_of_a_distributed_run_are_stopped_and_resumed_together(place: Place, settings: list[str]):
    command = place.start(*submitted(place, "clm"), "trainer=ddp", "launcher.cpus_per_task=2")
    until(lambda: place.checkpointed("clm"))
    warn(jobs(place)["clm"])
    hasten(jobs(place)["clm"])
    out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, out + err
    assert_resumed(place, "clm")
    alone = Place(place.folder / "alone", settings)
    assert alone.bench(*sweep(alone, ["clm"], "trainer=ddp")).returncode == 0
    assert weights(place, "clm") == weights(alone, "clm")
    assert numbers(place.records()["clm"]) == numbers(alone.records()["clm"])


def test_a_command_that_does_not_wait_leaves_its_jobs_to_the_status(place: Place):
    command = place.bench(*place.sweep("strategy=clm", "launcher=slurm", "launcher.wait=false"))
    assert command.returncode == 0
    assert "1 queued of 1 runs" in command.stdout
    until(lambda: place.records())
    assert "1 finished" in place.bench("status", "study=adhoc").stdout


def test_what_slurm_refuses_is_said_in_one_line(place: Place):
    refused = place.bench(*submitted(place, "clm"), "launcher.partition=none")
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]  # after sbatch's own
    assert line.startswith("bench: launcher=slurm: sbatch refuses (")
    assert "Invalid partition name" in line
