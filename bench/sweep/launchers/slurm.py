"""Runs as jobs of a Slurm array, by submitit. A job that Slurm stops saves its state, waits and resumes.

The runs' folders must lie where the nodes see them. This process only submits and watches: it may be stopped
and started again, and knows the jobs by the files that lie in the runs' folders.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.sweep.launchers import queue
from bench.sweep.launchers.base import QUEUED, RUNNING, Launcher, at_least, installed, room_for_ranks, watch
from bench.sweep.launchers.queue import JobState, Submission, read_submission
from bench.sweep.launchers.run import record_failure, run_one
from bench.sweep.progress import Display

ASK_EVERY_S = 5.0
SETTLE_S = 15.0  # until a shared file system shows a result that was written before its job ended
STOPPED = 143  # exit code of a process that SIGTERM has ended; 0 would tell Slurm that the job is complete


class Slurm(Launcher):
    """One job per run."""

    @dataclass(frozen=True)
    class Options:
        """What every job asks for; conf/launcher/slurm.yaml says what null means."""

        partition: str | None = MISSING
        account: str | None = MISSING
        qos: str | None = MISSING
        timeout_min: int = MISSING  # of one attempt
        max_timeouts: int = MISSING  # attempts that may end so
        signal_delay_s: int = MISSING  # a job is told this long before its time is over
        cpus_per_task: int = MISSING  # threads of a run as well
        gpus_per_node: int | None = MISSING
        mem_gb: float | None = MISSING
        array_parallelism: int = MISSING  # jobs of an array that run at a time
        array_size: int = MISSING
        additional_parameters: dict[str, Any] = MISSING  # further options of sbatch
        wait: bool = MISSING  # until all runs are over

    options: Options

    def check(self, specs: Sequence[RunSpec]) -> None:
        """Numbers have a least value, and Slurm and submitit are there."""
        at_least(self.options, timeout_min=1, max_timeouts=0, signal_delay_s=1, cpus_per_task=1)
        at_least(self.options, gpus_per_node=0, mem_gb=0, array_parallelism=1, array_size=1)
        room_for_ranks(specs, "cpus_per_task", self.options.cpus_per_task)
        delay_s, limit_min = self.options.signal_delay_s, self.options.timeout_min
        if delay_s >= limit_min * 60:
            raise ConfigError(
                f"launcher.signal_delay_s={delay_s} is all of launcher.timeout_min={limit_min}; lower it"
            )
        if missing := [
            tool for tool in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(tool) is None
        ]:
            raise ConfigError(
                f"launcher=slurm: {missing[0]} is not on PATH; run this on a login node of a Slurm cluster, "
                "or choose launcher=local"
            )
        installed("slurm", "submitit")

    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        """Submit the runs whose job is not in the queue yet, and wait for all unless told otherwise."""
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
                f"the jobs go on in the queue: `bench status study={specs[0].study}` shows them, "
                f"the same command waits for them, `scancel {ids}` cancels them"
            )
            raise

    def _queued_already(self, specs: Sequence[RunSpec]) -> dict[str, Submission]:
        """The jobs, by run id, that an earlier command submitted and that are not over.

        Raises:
            ConfigError: Slurm does not answer, so that runs could be submitted twice.
        """
        known = {spec.run_id: job for spec in specs if (job := read_submission(spec.folder))}
        states = queue.ask(job.job_id for job in known.values())
        if states is None:
            raise ConfigError("launcher=slurm: squeue does not answer; try again when `squeue` does")
        return {
            run_id: job
            for run_id, job in known.items()
            if job.job_id in states and not states[job.job_id].is_over
        }

    def _submit(self, specs: Sequence[RunSpec], display: Display) -> dict[str, Submission]:
        """One array; a single run is a plain job.

        Raises:
            ConfigError: Slurm refuses it.
        """
        import submitit
        from submitit.core.utils import FailedJobError

        folder = specs[0].folder.parent / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.options.max_timeouts)
        executor.update_parameters(**self._parameters(specs))
        try:
            with executor.batch():
                jobs = [executor.submit(Job(s.to_json(), self.options.cpus_per_task)) for s in specs]
        except FailedJobError as error:
            said = str(error).strip().splitlines()[-1:] or ["no reason given"]
            raise ConfigError(f"launcher=slurm: sbatch refuses ({said[0]}); change launcher.*") from error
        found = {}
        for spec, job in zip(specs, jobs, strict=True):
            found[spec.run_id] = Submission(job.job_id, spec.label, str(folder))
            spec.folder.mkdir(parents=True, exist_ok=True)
            found[spec.run_id].write(spec.folder)
        last = "" if len(jobs) == 1 else f" to {jobs[-1].job_id}"
        display.say(f"submitted {len(jobs)} runs as {jobs[0].job_id}{last}; logs in {folder}")
        return found

    def _parameters(self, specs: Sequence[RunSpec]) -> dict[str, Any]:
        """What sbatch is told of an array."""
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
            "srun_args": [f"--cpus-per-task={options.cpus_per_task}"],  # which steps do not inherit
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options.additional_parameters},
        }


class _Watcher:
    """How the jobs of a sweep go, by what Slurm says now and then and by the results that they leave."""

    def __init__(self, jobs: dict[str, Submission]) -> None:
        import submitit

        self.jobs = {run_id: submitit.SlurmJob(job.jobs_folder, job.job_id) for run_id, job in jobs.items()}
        self._states: dict[str, JobState] | None = None
        self._asked_at = -ASK_EVERY_S
        self._over_since: dict[str, float] = {}

    def status(self, spec: RunSpec) -> str:
        """A run's status by its job."""
        self._ask()
        job = self.jobs[spec.run_id]
        state = self._states.get(job.job_id) if self._states is not None else JobState("PENDING", "unknown")
        if state is not None and state.is_waiting:
            return QUEUED
        if job.paths.result_pickle.exists():
            if job.exception() is None:
                return str(job.result())
            return record_failure(spec, f"Slurm job {job.job_id} broke; see {job.paths.stdout}")
        if state is not None and not state.is_over:
            return RUNNING
        since = self._over_since.setdefault(job.job_id, time.monotonic())
        return RUNNING if time.monotonic() - since < SETTLE_S else _lost(spec, job.job_id, state)

    def _ask(self) -> None:
        """Every few seconds for all jobs; while Slurm does not answer, what it said last stands."""
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            states = queue.ask(job.job_id for job in self.jobs.values())
            self._states = self._states if states is None else states
            self._asked_at = time.monotonic()


def _lost(spec: RunSpec, job_id: str, state: JobState | None) -> str:
    """The status of a run whose job is over and left no result: cut off, or failed."""
    if state is None or state.state in ("CANCELLED", "TIMEOUT", "PREEMPTED", "REVOKED"):
        return "interrupted"
    return record_failure(spec, f"Slurm job {job_id} ended as {state.state}")


@dataclass(frozen=True)
class Job:
    """One run, as a job calls it."""

    text: str  # of its spec
    threads: int

    def __call__(self) -> str:
        """Do the run; if Slurm stops it and has not cancelled the job, put the job back into the queue.

        Returns:
            The run's status; `interrupted` if the job may not wait again.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's; the run itself listens while it lasts
        status = run_one(self.text, self.threads)
        if status != "interrupted":
            return status
        if not _is_running():
            sys.exit(STOPPED)  # no result: a job that was requeued from outside will run again
        from submitit.core.utils import UncompletedJobError

        assert callable(requeue)
        try:
            requeue(signal.SIGUSR2, None)  # and ends this process, unless time was over too often
        except (UncompletedJobError, subprocess.SubprocessError) as error:
            print(error, flush=True)  # into the job's log
        return "interrupted"

    def checkpoint(self) -> Any:
        """What submitit does after the requeue: the same again; the run's own checkpoint holds its state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _is_running() -> bool:
    """Does Slurm let this job run on? One that was cancelled or requeued from outside is completing."""
    import submitit

    job_id = submitit.JobEnvironment().job_id
    states = queue.ask([job_id])
    return states is not None and job_id in states and states[job_id].state == "RUNNING"
