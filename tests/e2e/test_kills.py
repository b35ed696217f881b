"""Killed at any moment, the same command ends with the bits of a run that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest
import torch
from deadly import EMPTIED, MOVES, KillAt, bench_in_fork
from harness import Place

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
    *("strategy=clm,clip", "budget.tokens=60000", "trainer.checkpoint_every_s=0.2", "launcher.workers=2"),
    *("paths.data=data", *SMALL),
)


def study_and_report(settings: list[str]) -> list[list[str]]:
    shared = [word for word in settings if not word.startswith("paths.data")]
    return [["train", "-m", *shared, *STUDY], ["report", "study=adhoc"]]


def phase(place: Place) -> str:
    """What was going on, by what lies there."""
    if list(place.folder.glob("reports/*")):
        return "reporting"
    if list(place.folder.glob("data/*.partial")):
        return "preparing data"
    states = [place.state(name) for name in ("clm", "clip")]
    said = sorted(str(state["phase"]).split()[0] for state in states if state)
    if said == ["done", "done"]:
        return "between training and report"
    return " and ".join(said) or "starting"


def test_a_study_killed_fifty_times_ends_with_the_same_bits(tmp_path: Path, settings: list[str]):
    """Launcher and workers at once, at seeded random points of the time that an undisturbed study takes."""
    commands = study_and_report(settings)
    undisturbed = Place(tmp_path / "undisturbed", settings)
    took_s = []
    for words in commands:
        started = time.monotonic()
        assert undisturbed.bench(*words).returncode == 0
        took_s.append(time.monotonic() - started)
    expected, hit = results(undisturbed.folder), Counter[str]()
    rng = random.Random(7)  # noqa: S311 - no secret
    n_studies = 0
    while hit.total() < N_KILLS:
        n_studies += 1
        place = Place(tmp_path / f"study-{n_studies}", settings)
        for words, seconds in zip(commands, took_s, strict=True):
            while hit.total() < N_KILLS and killed(place, words, rng.uniform(0, seconds)):
                hit[phase(place)] += 1
            done = place.bench(*words)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Traceback" not in done.stdout + done.stderr
        assert results(place.folder) == expected
        assert_nothing_is_left_half_written(place.folder / "experiments")
        assert place.bench("verify", "study=adhoc").returncode == 0
        assert place.processes() == []
    print(f"{hit.total()} kills in {n_studies} studies: {dict(hit)}")
    assert hit.keys() >= {"starting", "preparing data", "pretrain and pretrain", "reporting"}


def killed(place: Place, words: list[str], after_s: float) -> bool:
    """Was the command still under way after so many seconds? It and its workers are then gone."""
    process = place.start(*words)
    try:
        process.communicate(timeout=after_s)
    except TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False
