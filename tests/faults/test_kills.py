"""Killed at any moment, the same command ends with the bits of a run that nobody disturbed."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from deadly import EMPTIED, MOVES, KillAt, bench_in_fork
from harness import BENCH, Place

pytestmark = pytest.mark.faults

SMALL = ("launcher.threads_per_worker=1", "energy.metered=false", "trainer.n_validations=2")
HERE = ("launcher.workers=0", *SMALL)  # in the process that is killed
EVERY_STEP = ("strategy=clm", "budget.tokens=4000", "trainer.checkpoint_every_s=1e-9")
CLOCKS = ("started_at", "commit", "command", "pretrain_s", "peak_memory_bytes", "energy", "seconds")
N_KILLS = 50


def without_clocks(node: Any) -> Any:
    """A record without what differs from one time to the next."""
    if isinstance(node, dict):
        return {key: without_clocks(value) for key, value in node.items() if key not in CLOCKS}
    return [without_clocks(value) for value in node] if isinstance(node, list) else node


def results(folder: Path) -> dict[str, Any]:
    """All that a study leaves, by file: records without clocks, outcomes by item and weights as bytes."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "experiments/adhoc").rglob("*")):
        if path.parent.name in ("records", "evaluations") and path.suffix == ".json":
            found[path.name] = without_clocks(json.loads(path.read_text()))
        elif path.suffix in (".npz", ".safetensors"):
            found[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return found


def last_states(folder: Path) -> dict[str, Any]:
    """Of every run, step, weights and optimizer of the last checkpoint."""
    found = {}
    for checkpoints in folder.glob("experiments/adhoc/runs/*/checkpoints"):
        state = torch.load(max(checkpoints.glob("*.ckpt")), weights_only=True)
        optimizers = [optimizer["state"] for optimizer in state["optimizer_states"]]
        found[checkpoints.parent.name] = state["global_step"], state["state_dict"], optimizers
    return found


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_nothing_is_left_half_written(folder: Path) -> None:
    assert [path for path in folder.rglob("*") if ".partial" in path.name] == []


def finish(place: Path, words: list[str]) -> None:
    """The same command, to its end."""
    code = bench_in_fork(place, words)
    said = (place / "said.txt").read_text()
    assert code == 0, said
    assert "Traceback" not in said


def kill_at_each(
    folder: Path, words: list[str], below: str, check: Callable[[Path], None], *events: str, every: int = 1
) -> list[str]:
    """A command that is killed at its first change of a file, then another one at its second, and so on.

    Args:
        folder: for a folder per command.
        words: the command, which begins with nothing each time.
        below: where changes count.
        check: is called with the folder when the same command has then gone to its end.
        events: the changes that count.
        every: for the changes 1, 1 + every, 1 + 2 every, ...

    Returns:
        Where they were killed.
    """
    hit = []
    for nth in count(1, every):
        place = folder / f"killed-{nth}"
        place.mkdir(parents=True)
        hook = KillAt(nth, place / below, place / "killed_at.txt", events)
        if bench_in_fork(place, words, hook) is not None:
            break
        hit.append((place / "killed_at.txt").read_text().replace(str(place), ""))
        finish(place, words)
        check(place)
        shutil.rmtree(place)
    return hit


def assert_hit(hit: list[str], *windows: str) -> None:
    for window in windows:
        event, _, part = window.partition(" ")
        assert any(place.startswith(event) and part in place for place in hit), (window, hit)


def test_a_run_killed_at_any_change_of_a_file_ends_with_the_same_bits(tmp_path: Path, settings: list[str]):
    words = ["train", *settings, *HERE, *EVERY_STEP]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    finish(undisturbed, words)
    expected, state = results(undisturbed), last_states(undisturbed)

    def check(place: Path) -> None:
        assert results(place) == expected
        torch.testing.assert_close(last_states(place), state, rtol=0, atol=0)
        assert_nothing_is_left_half_written(place)

    hit = kill_at_each(tmp_path, words, "experiments", check, *MOVES, EMPTIED)
    assert_hit(
        hit,
        *("emptied step=000000001.partial", "emptied step=000000002.sha256"),  # of a checkpoint
        *("os.rename step=000000003.partial", "os.remove step=000000001.ckpt"),
        *("os.rename records/.", "emptied evaluations/.", "os.rename npz.partial", "os.rename evaluations/."),
        "os.rename weights.partial",
    )


def test_preparing_killed_at_any_change_of_a_file_ends_with_the_same_bits(
    tmp_path: Path, settings: list[str]
):
    shared = [word for word in settings if not word.startswith(("paths.data", "task"))]
    words = ["train", *shared, *HERE, "strategy=scratch", "task=[retrieval_zero_shot]", "paths.data=data"]
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    finish(undisturbed, words)
    expected = contents(undisturbed / "data")

    def check(place: Path) -> None:
        assert contents(place / "data") == expected
        assert_nothing_is_left_half_written(place)

    hit = kill_at_each(tmp_path, words, "data", check, *MOVES)
    assert_hit(hit, "os.rename .manifest.json", "os.remove train.unordered", "os.rename openmoji-pairs")
    assert len(kill_at_each(tmp_path / "emptied", words, "data", check, EMPTIED, every=9)) >= 2


def test_a_report_killed_at_changes_of_files_ends_with_the_same_bits(tmp_path: Path, study: Place):
    undisturbed = tmp_path / "undisturbed"
    words = ["report", "study=first", f"experiments_dir={study.folder}/experiments"]
    undisturbed.mkdir()
    finish(undisturbed, words)
    expected = contents(undisturbed / "reports")

    def check(place: Path) -> None:
        assert contents(place / "reports") == expected

    assert len(kill_at_each(tmp_path, words, "reports", check, EMPTIED, *MOVES, every=10)) >= 4


STUDY = (
    *("strategy=clm,clip", "budget.tokens=80000", "trainer.checkpoint_every_s=0.2", "launcher.workers=2"),
    *("paths.data=data", *SMALL),
)


def study_and_report(place: Place) -> "subprocess.Popen[str]":
    """Both commands, one after the other, as a script would give them."""
    shared = [word for word in place.settings if not word.startswith("paths.data")]
    train = shlex.join([*BENCH, "train", "-m", *shared, *STUDY])
    return place.start_process("sh", "-c", f"{train} && {shlex.join([*BENCH, 'report', 'study=adhoc'])}")


def files(place: Place) -> set[tuple[str, int]]:
    """All files of a place, by name and time."""
    found = set()
    for path in place.folder.rglob("*"):
        with suppress(FileNotFoundError):
            found.add((str(path.relative_to(place.folder)), path.stat().st_mtime_ns))
    return found


def phase(place: Place, before: set[tuple[str, int]]) -> str:
    """What was going on, by the files that have changed and by what the runs said of themselves."""
    changed = {Path(name).parts[0] for name, _ in files(place) - before}
    said = {str(place.state(name).get("phase", "starting")).split()[0] for name in ("clm", "clip")}
    if said == {"done"}:
        return "report"
    if "experiments" in changed:
        return " and ".join(sorted(said))
    return "preparing data" if "data" in changed else "starting"


def finished_in(place: Place, kill_after_s: float) -> float | None:
    """The seconds to its end; None: it was still under way when all its processes were killed."""
    process, started = study_and_report(place), time.monotonic()
    try:
        out, err = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    return time.monotonic() - started


@pytest.mark.timeout(3000)
def test_a_study_killed_fifty_times_ends_with_the_same_bits(tmp_path: Path, settings: list[str]):
    """Launcher and workers at once, at seeded random points of the time that an undisturbed study takes."""
    undisturbed = Place(tmp_path / "undisturbed", settings)
    took_s = finished_in(undisturbed, kill_after_s=600)
    assert took_s is not None
    expected, hit = results(undisturbed.folder), Counter[str]()
    rng, n_studies = random.Random(7), 0  # noqa: S311 - no secret
    while hit.total() < N_KILLS:
        n_studies, n_before = n_studies + 1, hit.total()
        place = Place(tmp_path / f"study-{n_studies}", settings)
        before = files(place)
        while (end_s := finished_in(place, rng.uniform(0, took_s) if hit.total() < N_KILLS else 600)) is None:
            hit[phase(place, before)] += 1
            before = files(place)
        if hit.total() == n_before:
            took_s = end_s  # undisturbed again: what a study takes now
        elif hit.total() > n_before + 8:
            took_s *= 1.5  # the machine has become slower, and nothing but the beginning is hit
        assert results(place.folder) == expected
        assert_nothing_is_left_half_written(place.folder / "experiments")
        assert place.processes() == []
        print(f"{hit.total()} kills in {n_studies} studies of {took_s:.0f} s: {dict(hit)}", flush=True)
    assert place.bench("verify", "study=adhoc").returncode == 0  # its report
    assert hit["report"] > 0
    assert sum(n for name, n in hit.items() if "pretrain" in name) > 0
