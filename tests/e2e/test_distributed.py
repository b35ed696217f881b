"""Two processes on one node give the weights of one, one record, and never a hang."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from capabilities import product
from harness import MARK, Place, until
from safetensors.numpy import load_file

STRATEGIES = ("clm", "mlm", "clip")
ONE_THREAD = "launcher.threads_per_worker=1"


# Clip holds the rows of both ranks against each other.
@pytest.mark.parametrize("strategy", product(STRATEGIES, {"clip"}))
def test_two_ranks_give_the_weights_of_one_process(strategy: str, place: Place, study: Place):
    done = place.bench(*place.sweep(f"strategy={strategy}", "trainer=ddp", "launcher.workers=1"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.processes() == []
    assert len(list((place.folder / "experiments/adhoc/records").glob("*"))) == 1
    record, alone = place.records()[strategy], study.records("first")[strategy]
    assert (record.status, record.run_id) == ("finished", alone.run_id)
    assert record.spent.forward_tokens == alone.spent.forward_tokens
    assert_close(place.folders()[strategy], study.folders("first")[strategy])


# Parts with weights of their own: every step leaves some of them idle.
MIXTURE = (
    *("strategy=mixture", "strategy.shares={clm: 0.1, mlm: 0.1, prefix_lm: 0.1}"),
    *("budget.tokens=16000", "optim.tokens_per_step=1050"),  # even rows; each part is drawn
    *("+strategy@strategy.parts.rtd=rtd", "+strategy.shares.rtd=0.2"),
    *("+strategy@strategy.parts.t5=span_corruption", "+strategy.shares.t5=0.2"),
    *("+strategy@strategy.parts.diffusion=masked_diffusion", "+strategy.shares.diffusion=0.3"),
)


@pytest.mark.product
@pytest.mark.parametrize("words", [("strategy=siglip",), MIXTURE], ids=["siglip", "mixture"])
def test_ranks_that_share_texts_or_leave_weights_idle_give_the_weights_of_one_process(
    words: tuple[str, ...], place: Place
):
    done = place.bench_here(*place.sweep(*words, "study=alone", ONE_THREAD, "launcher.workers=0"))
    assert done.returncode == 0, done.stderr
    done = place.bench(*place.sweep(*words, "study=ranks", "trainer=ddp", ONE_THREAD))
    assert done.returncode == 0, done.stdout + done.stderr
    [(strategy, alone)] = place.records("alone").items()
    assert place.records("ranks")[strategy].run_id == alone.run_id
    assert_close(place.folders("ranks")[strategy], place.folders("alone")[strategy])


def assert_close(one: Path, other: Path) -> None:
    """Within 1e-4 of each tensor's norm, and no element off by a hundredth of what one step moves it.

    Not element by element relative to itself: Adam divides a gradient by its own size, so that the rounding
    of a vanishing one moves its weight visibly. A step moves a weight by about lr_peak = 6e-3.
    """
    mine, theirs = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        difference = values - theirs[name]
        assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(theirs[name]), name
        assert np.abs(difference).max() <= 6e-5, name


@pytest.mark.product
def test_sharded_ranks_give_the_weights_of_one_process_and_are_evaluated(place: Place, study: Place):
    done = place.bench(*place.sweep("strategy=clip", "trainer=fsdp", ONE_THREAD))
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.records()["clip"].run_id == study.records("first")["clip"].run_id
    assert {result.status for result in place.results()["clip"].values()} <= {"finished", "inapplicable"}
    assert_close(place.folders()["clip"], study.folders("first")["clip"])


@pytest.mark.product
def test_two_nodes_give_the_weights_of_one_process(place: Place, study: Place):
    words = place.sweep("strategy=clm", "trainer=ddp", "trainer.nodes=2", "trainer.devices=1")
    refused = place.bench(*words)
    assert "trainer.nodes=2: on each node run torchrun --nnodes 2 --nproc-per-node 1" in refused.stderr
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    config = place.folders()["clm"] / "config.json"
    assert str(config.relative_to(place.folder)) in refused.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"localhost:{port}",
        "-m",
        "bench.sweep.torchrun_worker",
    ]
    env = os.environ | {MARK: place.mark, "OMP_NUM_THREADS": "1"}
    nodes = [subprocess.Popen([*torchrun, config], cwd=place.folder, env=env) for _ in range(2)]
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    assert place.records()["clm"].status == "finished"
    assert_close(place.folders()["clm"], study.folders("first")["clm"])


@pytest.mark.product
def test_rows_that_do_not_divide_among_ranks_fail_in_one_line_that_names_the_keys(place: Place):
    done = place.bench_here(*place.sweep("strategy=clm", "trainer=ddp", "optim.tokens_per_step=1056"))
    assert done.returncode == 1
    assert "33 rows per step cannot be divided among 2 ranks; change optim.tokens_per_step" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def is_rank(process: psutil.Process, rank: int) -> bool:
    try:
        return process.environ().get("RANK") == str(rank)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.mark.faults
def test_a_killed_rank_fails_its_run_and_nothing_hangs(place: Place):
    words = ["strategy=clm", "trainer=ddp", "budget.tokens=2000000", "trainer.checkpoint_every_s=0.2"]
    launcher = place.start(*place.sweep(*words))
    until(lambda: place.checkpointed("clm"))
    (victim,) = [process for process in place.processes() if is_rank(process, 1)]
    os.kill(victim.pid, signal.SIGKILL)
    out, err = launcher.communicate(timeout=45)
    assert launcher.returncode == 1
    assert place.records()["clm"].status == "failed"
    assert "Traceback" not in out + err
    assert place.processes() == []


@pytest.mark.faults
def test_a_rank_that_dies_before_the_first_meeting_fails_its_run(place: Place):
    launcher = place.start(*place.sweep("strategy=clm", "trainer=ddp"))
    until(lambda: [p for p in place.processes() if is_rank(p, 1)])
    for process in place.processes():
        if is_rank(process, 1):
            os.kill(process.pid, signal.SIGKILL)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert place.records()["clm"].status == "failed"
    assert "Traceback" not in out + err
    assert place.processes() == []


@pytest.mark.faults
def test_a_rank_that_is_silent_for_too_long_fails_its_run_in_one_line_that_names_the_key(place: Place):
    words = ["strategy=clm", "trainer=ddp", "budget.tokens=2000000", "trainer.checkpoint_every_s=0.2"]
    launcher = place.start(*place.sweep(*words, "trainer.timeout_s=5"))
    until(lambda: place.checkpointed("clm"))
    (silent,) = [process for process in place.processes() if is_rank(process, 1)]
    os.kill(silent.pid, signal.SIGSTOP)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert "was silent for trainer.timeout_s=5" in str(place.records()["clm"].reason)
    assert "Traceback" not in out + err
    assert place.processes() == []


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ranks_stop_with_their_launcher(number: signal.Signals, place: Place):
    words = ["strategy=clm", "trainer=ddp", "budget.tokens=2000000", "trainer.checkpoint_every_s=0.2"]
    launcher = place.start(*place.sweep(*words))
    until(lambda: place.checkpointed("clm"))
    os.kill(launcher.pid, number)
    until(lambda: place.processes() == [], seconds=30)
    launcher.communicate()
    assert place.state("clm")["status"] == "interrupted"
    assert launcher.returncode == (130 if number == signal.SIGINT else -9)
    assert place.records() == {}
