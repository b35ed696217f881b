"""What Slurm says of jobs, and which job does a run. No package: `bench status` answers at once."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.records import write_atomically

JOB_FILE = "job.json"
_OVER = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "PREEMPTED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
}
_OVER |= {"DEADLINE", "REVOKED"}
_ASKING_S = 60.0


@dataclass(frozen=True)
class JobState:
    """Where a job stands, in Slurm's words."""

    state: str
    reason: str  # why it waits; "None" where it does not

    @property
    def is_over(self) -> bool:
        """Will it never run again?"""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """Is it in the queue, before its start or after it was requeued?"""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Submission:
    """The job that was last submitted for a run; its file lies in the run's folder."""

    job_id: str
    label: str
    jobs_folder: str  # with its log and result

    def write(self, run_folder: Path) -> None:
        """Keep it with the run."""
        write_atomically(run_folder / JOB_FILE, json.dumps(asdict(self)) + "\n")


def read_submission(run_folder: Path) -> Submission | None:
    """The run's job; None if none was submitted or its file is damaged."""
    try:
        return Submission(**json.loads((run_folder / JOB_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def ask(job_ids: Iterable[str]) -> dict[str, JobState] | None:
    """The states of jobs by id; those that Slurm has forgotten, minutes after their end, are left out.

    Args:
        job_ids: `12`, or `12_0` of an array.

    Returns:
        None where Slurm does not answer.
    """
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not arrays:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    command += ["--jobs", ",".join(arrays)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_ASKING_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if said.returncode and "Invalid job id" not in said.stderr:
        return None
    rows = (line.strip().split("|", 2) for line in said.stdout.splitlines() if line.count("|") >= 2)
    return {job_id: JobState(state, reason) for job_id, state, reason in rows}
