"""What launchers promise without a cluster: Slurm's commands are scripts that say what a test tells them."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench.config.build import build
from bench.config.compose import compose_runs
from bench.config.run_spec import RunSpec
from bench.config.search_path import CONF
from bench.errors import ConfigError
from bench.sweep import status
from bench.sweep.launchers import slurm
from bench.sweep.launchers.base import Launcher
from bench.sweep.launchers.slurm import Job
from bench.sweep.progress import Display
from bench.training.stopping import SIGNALS, Stop

STEMS = sorted(path.stem for path in (CONF / "launcher").glob("*.yaml"))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with Slurm's commands: squeue says what `queue` holds, sbatch numbers jobs from 1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "squeue": f"cat {folder}/queue",
        "sbatch": f'echo "$1" >>{folder}/submitted; echo job $(wc -l <{folder}/submitted)',
        "srun": "",
        "scontrol": "",
    }
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def sweep(folder: Path, *words: str) -> list[RunSpec]:
    """Three runs."""
    settings = ("strategy=clm,mlm,clip", "launcher=slurm", f"paths.experiments={folder}", *words)
    return compose_runs(settings, multirun=True)


def launch(specs: list[RunSpec]) -> dict[str, str]:
    launcher = build(specs[0].config["launcher"], Launcher, "launcher")
    launcher.check(specs)
    with Display(len(specs), 0) as display:
        return launcher.launch(specs, specs, display)


def says(cluster: Path, *lines: str) -> None:
    (cluster / "queue").write_text("".join(f"{line}\n" for line in lines))


def scripts(cluster: Path) -> list[str]:
    """What sbatch was given, in order."""
    path = cluster / "submitted"
    return [Path(line).read_text() for line in path.read_text().splitlines()] if path.exists() else []


def log_folder(spec: RunSpec) -> Path:
    submission = slurm.read_submission(spec.folder)
    assert submission is not None
    return Path(submission.jobs_folder)


# Options


@pytest.mark.parametrize("stem", STEMS)
def test_every_launcher_builds_from_its_yaml_which_gives_every_option_a_value(stem: str):
    node = OmegaConf.load(CONF / "launcher" / f"{stem}.yaml")
    launcher = build(node, Launcher, "launcher")  # type: ignore[arg-type]
    assert set(vars(launcher.options)) == set(node) - {"_target_"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("launcher=local", "launcher.workers=-1"), "launcher.workers=-1: use 0 or more"),
        (("launcher=local", "launcher.threads_per_worker=0"), "launcher.threads_per_worker=0: use 1 or more"),
        (("launcher=slurm", "launcher.timeout_min=0"), "launcher.timeout_min=0: use 1 or more"),
        (
            ("launcher=slurm", "launcher.signal_delay_s=14400"),
            "launcher.signal_delay_s=14400 must be below",
        ),
        (("launcher=ray", "launcher.cpus_per_run=0"), "launcher.cpus_per_run=0: use 1 or more"),
        (("launcher=slurm", "trainer.devices=2"), "launcher.cpus_per_task=1: trainer.devices=2"),
    ],
)
def test_options_out_of_range_are_refused_by_their_key(words: tuple[str, ...], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        launch(compose_runs(words, multirun=False))


def test_where_there_is_no_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"launcher=slurm: sbatch is not on PATH.*launcher=local"):
        launch(sweep(tmp_path))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("package", ["submitit", "ray"])
def test_a_package_that_is_missing_is_named(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    stem = {"submitit": "slurm", "ray": "ray"}[package]
    with pytest.raises(ConfigError, match=rf"launcher={stem} needs .*{package}: pip install .*\[{stem}\]"):
        launch(compose_runs([f"launcher={stem}"], multirun=False))


# Submitting


def test_runs_are_submitted_as_an_array_with_the_options_of_the_config(cluster: Path, tmp_path: Path):
    words = ("partition=p", "account=a", "qos=q", "mem_gb=1.5", "gpus_per_node=2", "array_parallelism=2")
    specs = sweep(
        tmp_path / "x",
        *(f"launcher.{word}" for word in words),
        "+launcher.additional_parameters.constraint=big",
        "launcher.wait=false",
    )
    assert launch(specs) == {spec.run_id: "queued" for spec in specs}
    [script] = scripts(cluster)
    flags = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert flags >= {
        *("--partition=p", "--account=a", "--qos=q", "--mem=1536M", "--gpus-per-node=2", "--array=0-2%2"),
        *("--constraint=big", "--time=240", "--cpus-per-task=1", "--signal=USR2@120", "--requeue"),
    }
    files = [slurm.read_submission(spec.folder) for spec in specs]
    assert [file.job_id for file in files if file] == ["1_0", "1_1", "1_2"]


def test_gpus_follow_the_trainer_unless_they_are_given(cluster: Path, tmp_path: Path):
    words = ("trainer=gpu", "trainer.devices=4", "launcher.wait=false")
    launch(sweep(tmp_path / "x", *words, "launcher.cpus_per_task=4"))
    launch(sweep(tmp_path / "y", "launcher.wait=false"))
    with_gpus, without = scripts(cluster)
    assert "--gpus-per-node=4" in with_gpus
    assert "--cpus-per-task=4" in with_gpus[with_gpus.index("\nsrun ") :]  # a step does not inherit it
    assert "--gpus-per-node" not in without


def test_an_array_holds_no_more_runs_than_it_may(cluster: Path, tmp_path: Path):
    launch(sweep(tmp_path / "x", "launcher.array_size=2", "launcher.wait=false"))
    assert ["--array=0-1%" in script for script in scripts(cluster)] == [True, False]


def test_runs_whose_job_waits_or_runs_are_not_submitted_again(cluster: Path, tmp_path: Path):
    specs = sweep(tmp_path / "x", "launcher.wait=false")
    launch(specs)
    says(cluster, "1_0|PENDING|Priority", "1_1|RUNNING|None", "1_2|CANCELLED|None")
    launch(specs)
    assert len(scripts(cluster)) == 2
    files = [slurm.read_submission(spec.folder) for spec in specs]
    assert [file.job_id for file in files if file] == ["1_0", "1_1", "2"]


def test_nothing_is_submitted_while_slurm_does_not_answer(cluster: Path, tmp_path: Path):
    (cluster / "squeue").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    specs = sweep(tmp_path / "x", "launcher.wait=false")
    launch(specs)  # no job is known, so that squeue need not be asked
    with pytest.raises(ConfigError, match="squeue does not answer"):
        launch(specs)
    assert len(scripts(cluster)) == 1


# Waiting


def test_a_job_that_left_no_result_failed_or_was_cut_off(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(slurm, "SETTLE_S", 0.0)
    specs = sweep(tmp_path / "x")
    says(cluster, "1_0|OUT_OF_MEMORY|None", "1_1|TIMEOUT|None")  # and the third is forgotten
    assert list(launch(specs).values()) == ["failed", "interrupted", "interrupted"]
    assert specs[0].why_lost() == "Slurm job 1_0 ended as OUT_OF_MEMORY"
    assert [spec.recorded() for spec in specs[1:]] == [None, None]


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_what_slurm_and_supervisors_send_is_an_orderly_stop(number: signal.Signals):
    stop = Stop([])
    stop.listen()
    signal.raise_signal(number)
    assert stop.wanted()


@pytest.mark.usefixtures("_handlers")
def test_a_stopped_job_goes_back_into_the_queue_unless_slurm_has_ended_it(monkeypatch: pytest.MonkeyPatch):
    requeued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))  # as submitit does
    monkeypatch.setattr(slurm, "run_one", lambda text, threads: "interrupted")
    monkeypatch.setattr(slurm, "_is_running", lambda: True)  # preempted, or its time is over
    Job("", 1)()
    assert requeued == [signal.SIGUSR2]
    monkeypatch.setattr(slurm, "_is_running", lambda: False)  # cancelled
    with pytest.raises(SystemExit) as ended:
        Job("", 1)()
    assert ended.value.code == 143  # not 0, which would be a success
    assert len(requeued) == 1


@pytest.mark.usefixtures("_handlers")
def test_a_job_whose_time_was_over_too_often_ends_as_interrupted(monkeypatch: pytest.MonkeyPatch):
    from submitit.core.utils import UncompletedJobError

    def refuse(number: int, frame: object) -> None:
        raise UncompletedJobError("timed-out too many times")

    signal.signal(signal.SIGUSR2, refuse)
    monkeypatch.setattr(slurm, "run_one", lambda text, threads: "interrupted")
    monkeypatch.setattr(slurm, "_is_running", lambda: True)
    assert Job("", 1)() == "interrupted"


# bench status


def test_status_shows_the_queue_and_the_progress_of_jobs(cluster: Path, tmp_path: Path):
    specs = sweep(tmp_path / "x", "launcher.wait=false")
    launch(specs)
    running = {"status": "running", "label": "mlm", "phase": "pretrain", "step": 3, "total_steps": 9}
    running |= {"tokens_per_s": 100.0, "updated_at": 0.0, "pid": 0}  # silent for long, on another node
    (specs[1].folder / "status.json").write_text(json.dumps(running))
    says(cluster, "1_0|PENDING|Priority", "1_1|RUNNING|None", "1_2|COMPLETED|None")
    rows = {row.run_id: row for row in status.rows("adhoc", tmp_path / "x")}
    queued, under_way, ended = (rows[spec.run_id] for spec in specs)
    assert (queued.state, queued.detail) == ("queued", "job 1_0 pending (Priority)")
    assert under_way.state == "running"
    assert under_way.detail.startswith("job 1_1 running, pretrain, step 3 of 9, 100 tokens/s")
    assert (ended.state, str(log_folder(specs[2])) in ended.detail) == ("interrupted", True)


def test_status_works_where_there_is_no_slurm(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launch(sweep(tmp_path / "x", "launcher.wait=false"))
    shutil.rmtree(cluster)
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = status.rows("adhoc", tmp_path / "x")
    assert {row.state for row in rows} == {"queued"}
    assert "submitted as job 1_" in rows[0].detail
