"""Execute runs as jobs of a Slurm array, by submitit. A job that Slurm stops saves its state and is requeued.

The runs' folders must be on a file system that the nodes share. This process only submits and watches: it may
be stopped and restarted, since a file in each run's folder names its job. submitit is imported late, so that
`bench status` can ask for the state of jobs without it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import Count, NonNegative, Text
from bench.config.installation import check_installed
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import write_atomically
from bench.sweep.launchers.base import (
    QUEUED,
    RUNNING,
    Launcher,
    LauncherOptions,
    check_cpus_for_ranks,
    watch,
)
from bench.sweep.progress import Display
from bench.sweep.worker import record_failure, run_one

ASK_EVERY_S = 5.0
SETTLE_S = 15.0  # until a shared file system shows a result that was written before its job ended
SQUEUE_TIMEOUT_S = 60.0
STOPPED = 143  # exit code after SIGTERM; 0 would tell Slurm that the job is complete
JOB_FILE = "job.json"
_OVER = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED"),
}


@dataclass(frozen=True)
class JobState:
    """The state of a job, in Slurm's words."""

    state: str
    reason: str  # why it waits, or "None"

    @property
    def is_over(self) -> bool:
        """Whether the job will never run again."""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """Whether the job is in the queue, before its start or after it was requeued."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Submission:
    """The latest job of a run, stored as `JOB_FILE` in the run's folder."""

    job_id: str
    label: str
    jobs_folder: str  # with its log and result

    def write(self, run_folder: Path) -> None:
        """Write it into the run's folder."""
        write_atomically(run_folder / JOB_FILE, json.dumps(asdict(self)) + "\n")


def read_submission(run_folder: Path) -> Submission | None:
    """Return the run's job; None if none was submitted or its file is damaged."""
    try:
        return Submission(**json.loads((run_folder / JOB_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def ask_squeue(job_ids: Iterable[str]) -> dict[str, JobState] | None:
    """Return the states of jobs by id, without those that Slurm has forgotten minutes after their end.

    Args:
        job_ids: `12`, or `12_0` for a job of an array.

    Returns:
        None if Slurm does not answer.
    """
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not arrays:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    command += ["--jobs", ",".join(arrays)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    rows = (line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
    return {job_id: JobState(state, reason) for job_id, state, reason in rows}


class Slurm(Launcher):
    """Launcher with one Slurm job per run."""

    @dataclass(frozen=True)
    class Options(LauncherOptions):
        """The resources of every job; conf/launcher/slurm.yaml explains null."""

        partition: Text | None = MISSING
        account: Text | None = MISSING
        qos: Text | None = MISSING
        timeout_min: Count = MISSING  # of one attempt
        max_timeouts: Annotated[int, Interval(ge=0, le=10**6)] = MISSING  # attempts that may end by timeout
        signal_delay_s: Count = MISSING  # how long before the time limit a job is signalled
        cpus_per_task: Count = MISSING  # also the number of threads of a run
        gpus_per_node: Annotated[int, Interval(ge=0, le=10**4)] | None = MISSING
        mem_gb: NonNegative | None = MISSING
        array_parallelism: Count = MISSING  # jobs of an array that run at the same time
        array_size: Count = MISSING
        additional_parameters: dict[str, Any] = MISSING  # further options of sbatch
        wait: bool = MISSING  # until all runs have ended

    options: Options

    @override
    def check(self, specs: Sequence[RunSpec]) -> None:
        check_cpus_for_ranks(specs, "cpus_per_task", self.options.cpus_per_task)
        delay_s, limit_min = self.options.signal_delay_s, self.options.timeout_min
        if delay_s >= limit_min * 60:
            raise ConfigError(
                f"launcher.signal_delay_s={delay_s} must be below launcher.timeout_min={limit_min}; lower it"
            )
        tools = ("sbatch", "srun", "squeue", "scontrol")
        if missing := [tool for tool in tools if shutil.which(tool) is None]:
            raise ConfigError(
                f"launcher=slurm: {missing[0]} is not on PATH; run this on a login node of a Slurm cluster, "
                "or choose launcher=local"
            )
        check_installed("submitit", "launcher=slurm")

    @override
    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        jobs = self._queued_already(todo)
        if jobs:
            display.say(f"{len(jobs)} runs are in the queue already")
        new = [spec for spec in todo if spec.run_id not in jobs]
        for begin in range(0, len(new), self.options.array_size):
            jobs |= self._submit(new[begin : begin + self.options.array_size], display)
        if not self.options.wait:
            return dict.fromkeys(jobs, QUEUED)
        try:
            return watch(todo, _Watcher(jobs).status, display)
        except KeyboardInterrupt:
            ids = " ".join(sorted({job.job_id.partition("_")[0] for job in jobs.values()}))
            display.say(
                f"the jobs stay in the queue: `bench status study={specs[0].study}` shows them, "
                f"the same command waits for them, `scancel {ids}` cancels them"
            )
            raise

    def _queued_already(self, specs: Sequence[RunSpec]) -> dict[str, Submission]:
        """Return the unfinished jobs of an earlier command by run id.

        Raises:
            ConfigError: Slurm does not answer, so runs could be submitted twice.
        """
        known = {spec.run_id: job for spec in specs if (job := read_submission(spec.folder))}
        states = ask_squeue(job.job_id for job in known.values())
        if states is None:
            raise ConfigError("launcher=slurm: squeue does not answer; try again when `squeue` does")
        return {
            run_id: job
            for run_id, job in known.items()
            if job.job_id in states and not states[job.job_id].is_over
        }

    def _submit(self, specs: Sequence[RunSpec], display: Display) -> dict[str, Submission]:
        """Submit runs as one array, or a single run as a plain job; raise ConfigError if Slurm refuses."""
        import submitit
        from submitit.core.utils import FailedJobError

        folder = specs[0].folder.parent / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.options.max_timeouts)
        executor.update_parameters(**self._parameters(specs))
        try:
            with executor.batch():
                jobs = [executor.submit(Job(s.to_json(), self.options.cpus_per_task)) for s in specs]
        except FailedJobError as error:
            reason = str(error).strip().splitlines()[-1:] or ["no reason given"]
            raise ConfigError(f"launcher=slurm: sbatch refuses ({reason[0]}); change launcher.*") from error
        found = {}
        for spec, job in zip(specs, jobs, strict=True):
            found[spec.run_id] = Submission(job.job_id, spec.label, str(folder))
            spec.folder.mkdir(parents=True, exist_ok=True)
            found[spec.run_id].write(spec.folder)
        last = "" if len(jobs) == 1 else f" to {jobs[-1].job_id}"
        display.say(f"submitted {len(jobs)} runs as {jobs[0].job_id}{last}; logs in {folder}")
        return found

    def _parameters(self, specs: Sequence[RunSpec]) -> dict[str, Any]:
        """Return the parameters of sbatch for an array."""
        options, trainers = self.options, [spec.config["trainer"] for spec in specs]
        gpus = options.gpus_per_node
        if gpus is None:
            gpus = max((t["devices"] for t in trainers if t["accelerator"] == "gpu"), default=None)
        asked = {
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "mem": None if options.mem_gb is None else f"{round(options.mem_gb * 1024)}M",
            "gpus_per_node": gpus,
        }
        return {name: value for name, value in asked.items() if value is not None} | {
            "job_name": f"bench-{specs[0].study}",
            "time": options.timeout_min,
            "cpus_per_task": options.cpus_per_task,
            "signal_delay_s": options.signal_delay_s,
            "array_parallelism": options.array_parallelism,
            "srun_args": [f"--cpus-per-task={options.cpus_per_task}"],  # steps do not inherit it
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options.additional_parameters},
        }


class _Watcher:
    """Watches the jobs of a sweep, by regular calls of squeue and by the results that the jobs leave."""

    def __init__(self, jobs: dict[str, Submission]) -> None:
        import submitit

        self.jobs = {run_id: submitit.SlurmJob(job.jobs_folder, job.job_id) for run_id, job in jobs.items()}
        self._states: dict[str, JobState] | None = None
        self._asked_at = -ASK_EVERY_S
        self._over_since: dict[str, float] = {}

    def status(self, spec: RunSpec) -> str:
        """Return the status of a run from its job."""
        self._ask()
        job = self.jobs[spec.run_id]
        state = self._states.get(job.job_id) if self._states is not None else JobState("PENDING", "unknown")
        if state is not None and state.is_waiting:
            return QUEUED
        if job.paths.result_pickle.exists():
            if job.exception() is None:
                return str(job.result())
            return record_failure(spec, f"Slurm job {job.job_id} failed; see {job.paths.stdout}")
        if state is not None and not state.is_over:
            return RUNNING
        since = self._over_since.setdefault(job.job_id, time.monotonic())
        if time.monotonic() - since < SETTLE_S:
            return RUNNING
        if state is None or state.state in ("CANCELLED", "TIMEOUT", "PREEMPTED", "REVOKED"):
            return "interrupted"
        return record_failure(spec, f"Slurm job {job.job_id} ended as {state.state}")

    def _ask(self) -> None:
        """Ask for all jobs every few seconds; while Slurm does not answer, keep the last answer."""
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            states = ask_squeue(job.job_id for job in self.jobs.values())
            self._states = self._states if states is None else states
            self._asked_at = time.monotonic()


@dataclass(frozen=True)
class Job:
    """The callable of one job: it executes one run."""

    text: str  # `RunSpec.to_json`
    threads: int

    def __call__(self) -> str:
        """Execute the run; if Slurm stops it without cancelling the job, requeue the job.

        Returns:
            The run's status; `interrupted` if the job may not be requeued.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler; the run replaces it while it lasts
        status = run_one(self.text, self.threads)
        if status != "interrupted":
            return status
        if not _is_running():
            sys.exit(STOPPED)  # leave no result: a job that was requeued from outside will run again
        from submitit.core.utils import UncompletedJobError

        assert callable(requeue)
        try:
            requeue(signal.SIGUSR2, None)  # ends this process, unless the job timed out too often
        except (UncompletedJobError, subprocess.SubprocessError) as error:
            print(error, flush=True)  # into the job's log
        return "interrupted"

    def checkpoint(self) -> Any:
        """Return what submitit calls after a requeue: the same job; the run's checkpoint holds its state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _is_running() -> bool:
    """Check that Slurm lets this job continue; a job cancelled or requeued from outside is completing."""
    import submitit

    job_id = submitit.JobEnvironment().job_id
    states = ask_squeue([job_id])
    return states is not None and job_id in states and states[job_id].state == "RUNNING"
