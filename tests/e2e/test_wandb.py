"""W&B offline mirrors a run and changes nothing in it."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from harness import Place

from bench.records import RunRecord

KEY = "0123456789abcdef" * 2 + "fedcba98"  # as long as a key of W&B
KEYS = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD")
ONE_THREAD = "launcher.threads_per_worker=1"  # as the study had with two workers: rounding depends on it


def leet(folder: Path, *flags: str) -> str:
    """What W&B's own reader says of an offline run."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", *flags, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def without_times(record: RunRecord) -> dict[str, Any]:
    """All of a record but clock readings, peak memory, command and commit, which may move meanwhile."""
    plain = asdict(record)
    environment = {key: value for key, value in plain["environment"].items() if key != "commit"}
    spent = {key: value for key, value in plain["spent"].items() if key not in ("pretrain_s", "energy")}
    del spent["peak_memory_bytes"]
    return plain | {"environment": environment, "spent": spent, "started_at": "", "command": ""}


def offline_run(run: Path) -> Path:
    (found,) = (run / "wandb").glob("offline-run-*")
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in leet(folder).splitlines()]


def holders(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text, W&B's binary log among them."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(folder)) for path in files if text.encode() in path.read_bytes()]


@pytest.mark.product
def test_each_run_of_a_worker_becomes_a_silent_offline_run_of_its_own(
    place: Place, study: Place, monkeypatch: pytest.MonkeyPatch
):
    for name in KEYS:
        monkeypatch.setenv(name, KEY)
    words = place.sweep(
        "strategy=clm,clip", "study=first", "logger=[wandb,csv]", "launcher.workers=1", ONE_THREAD
    )
    done = place.bench(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb" not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert holders(place.folder, KEY) == []
    assert holders(place.folder, "train_loss_nats")  # it would be found
    for name in ("clm", "clip"):
        record, without = place.records("first")[name], study.records("first")[name]
        assert without_times(record) == without_times(without)
        folder = offline_run(place.folders("first")[name])
        summary = json.loads(leet(folder, "--summary"))
        assert summary["run_id"] == record.run_id
        assert summary["config"]["strategy"] == record.config["strategy"]
        assert {name, "0.2m", "text_files", "openmoji", "seed=0"} <= set(summary["tags"])
        own = place.results("first")[name].values()
        for score in (score for result in own for score in result.scores):
            assert summary["summary"][f"{score.task}/{score.metric}"] == score.value
        assert summary["summary"]["spent/flops"] == record.spent.flops
        assert summary["summary"]["status"] == "finished"
        assert summary["state"] == "finished"
        text = leet(folder)
        assert '"run_group":"first"' in text or '"group":"first"' in text
        assert text.count("train_loss_nats") >= record.spent.steps
        assert "validation_loss_nats" in text
