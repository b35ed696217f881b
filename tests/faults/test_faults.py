"""Full disks, read-only folders, damage, wrong clocks, no memory: one clear line, and the same bits after."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from deadly import MOVES, KillAt, bench_in_fork
from test_kills import EVERY_STEP, HERE, assert_nothing_is_left_half_written, finish, results

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def words(settings: list[str]) -> list[str]:
    return ["train", *settings, *HERE, *EVERY_STEP]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, words)
    return folder


@pytest.fixture
def done(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the finished study."""
    return shutil.copytree(undisturbed, tmp_path / "done")


def said(folder: Path) -> str:
    text = (folder / "said.txt").read_text()
    assert "Traceback" not in text
    return text


def assert_same_bits(folder: Path, undisturbed: Path) -> None:
    assert results(folder) == results(undisturbed)
    assert_nothing_is_left_half_written(folder)


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A folder on a file system of its own, by its mount options; again: the same with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        remount = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(folder)]
        if (
            os.geteuid()
            or not shutil.which("mount")
            or subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip("needs root and mount")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


# A checkpoint takes 1.3 MB, and the third is written beside two.
@pytest.mark.parametrize("size", ["100k", "1m", "2m", "3m"])
def test_a_full_disk_is_said_in_one_line_and_costs_no_bit(
    size: str, disk: Callable[[str], Path], words: list[str], undisturbed: Path
):
    place = disk(f"size={size}")
    assert bench_in_fork(place, words) in (1, 2)
    assert "No space left on device" in said(place)
    assert "free space" in said(place)
    assert_nothing_is_left_half_written(place)
    disk("size=100m")
    finish(place, words)
    assert_same_bits(place, undisturbed)


@pytest.mark.parametrize("most_bytes", [300, 3_000, 1_000_000])
def test_a_file_that_may_not_grow_is_said_in_one_line_and_costs_no_bit(
    most_bytes: int, words: list[str], undisturbed: Path, tmp_path: Path
):
    code = bench_in_fork(tmp_path, words, limits={resource.RLIMIT_FSIZE: most_bytes})
    assert code in (1, 2)
    assert "File too large" in said(tmp_path)
    assert_nothing_is_left_half_written(tmp_path)
    finish(tmp_path, words)
    assert_same_bits(tmp_path, undisturbed)


def test_a_folder_that_becomes_read_only_is_named_and_costs_no_bit(
    disk: Callable[[str], Path], words: list[str], undisturbed: Path, tmp_path: Path
):
    place = disk("size=100m,rw")
    hook = KillAt(9, place, tmp_path / "killed_at.txt", MOVES)
    assert bench_in_fork(place, words, hook) is None
    disk("size=100m,ro")
    paths = [f"paths.experiments={place}/experiments"]
    assert bench_in_fork(tmp_path, [*words, *paths]) == 2
    [line] = said(tmp_path).splitlines()
    assert "Read-only file system" in line
    assert str(place) in line
    disk("size=100m,rw")
    finish(place, words)
    assert_same_bits(place, undisturbed)


def test_prepared_data_may_lie_on_a_read_only_disk_and_others_are_refused_there(
    disk: Callable[[str], Path], words: list[str], settings: list[str], undisturbed: Path, tmp_path: Path
):
    data = disk("size=100m,rw")
    [prepared] = [Path(word.partition("=")[2]) for word in settings if word.startswith("paths.data=")]
    shutil.copytree(prepared, data, dirs_exist_ok=True)
    disk("size=100m,ro")
    here = [*words, f"paths.data={data}"]
    finish(tmp_path, here)
    assert_same_bits(tmp_path, undisturbed)
    assert bench_in_fork(tmp_path, [*here, "tokenizer.vocab_size=301"]) == 2
    assert "Read-only file system" in said(tmp_path)


# Damage


@pytest.mark.parametrize(
    "victim", ["train.00000.bin", "train.offsets.npy", "manifest.json", "tokenizer.json"]
)
def test_prepared_data_with_a_flipped_bit_are_prepared_again(
    victim: str, words: list[str], undisturbed: Path, tmp_path: Path, settings: list[str]
):
    [prepared] = [Path(word.partition("=")[2]) for word in settings if word.startswith("paths.data=")]
    shutil.copytree(prepared, tmp_path / "data")
    [path] = (tmp_path / "data").glob(f"textfiles-tokens-*/{victim}")
    flip(path)
    finish(tmp_path, [*words, "paths.data=data"])
    assert "is damaged and will be prepared again" in said(tmp_path)
    assert victim in said(tmp_path)
    assert_same_bits(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], words: list[str], undisturbed: Path, tmp_path: Path
):
    hook = KillAt(1, tmp_path / "experiments/adhoc/records", tmp_path / "killed_at.txt", MOVES)
    assert bench_in_fork(tmp_path, words, hook) is None
    newest = max(tmp_path.glob("experiments/adhoc/runs/*/checkpoints/*.ckpt"))
    damage(newest)
    finish(tmp_path, words)
    assert f"{newest.name} is damaged; an earlier checkpoint" in said(tmp_path)
    assert_same_bits(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_weights_are_trained_again_before_they_are_measured(
    damage: Callable[[Path], None], words: list[str], undisturbed: Path, done: Path
):
    [weights] = done.glob("experiments/adhoc/runs/*/weights.safetensors")
    [evaluation] = done.glob("experiments/adhoc/evaluations/*.json")
    damage(weights)
    evaluation.unlink()
    finish(done, words)
    assert "weights.safetensors are damaged" in said(done)
    assert_same_bits(done, undisturbed)


@pytest.mark.parametrize("kind", ["records", "evaluations"])
def test_a_damaged_record_is_named_and_done_again(kind: str, words: list[str], undisturbed: Path, done: Path):
    [path] = done.glob(f"experiments/adhoc/{kind}/*.json")
    cut(path)
    finish(done, words)
    assert str(path.relative_to(done)) in said(done)
    assert_same_bits(done, undisturbed)


# Clocks


def test_a_clock_that_went_back_changes_nothing(words: list[str], undisturbed: Path, tmp_path: Path):
    hook = KillAt(4, tmp_path / "experiments", tmp_path / "killed_at.txt", MOVES)
    assert bench_in_fork(tmp_path, words, hook) is None
    tomorrow = {path: path.stat().st_mtime + 86400 for path in tmp_path.rglob("*")}
    for path in tmp_path.glob("experiments/adhoc/runs/*/status.json"):
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"updated_at": state["updated_at"] + 86400}))
    for path, time in tomorrow.items():
        os.utime(path, (time, time))
    assert bench_in_fork(tmp_path, ["status", "study=adhoc"]) == 0
    assert "1 interrupted" in said(tmp_path)
    finish(tmp_path, words)
    assert_same_bits(tmp_path, undisturbed)


# Memory


def test_a_run_without_enough_memory_fails_alone_and_says_so(
    words: list[str], undisturbed: Path, tmp_path: Path
):
    sweep = [
        "train",
        "-m",
        *words[1:],
        "model.d_model=64,16384",
    ]  # 9 GB of weights, 3.2 of them in one tensor
    assert bench_in_fork(tmp_path, sweep, limits={resource.RLIMIT_AS: 5 * 2**30}) == 1
    assert "1 failed, 1 finished of 2 runs" in said(tmp_path)
    assert "memory ran out: lower optim.tokens_per_step" in said(tmp_path)
    found = results(tmp_path)
    assert all(found[name] == content for name, content in results(undisturbed).items())


# Divergence


def test_a_run_that_diverges_is_stopped_and_keeps_its_last_good_checkpoint(
    settings: list[str], words: list[str], tmp_path: Path
):
    wild = ["optim.lr_peak=1e30", "optim.warmup_share=0.5", "optim.clip_norm=1e30"]
    assert bench_in_fork(tmp_path, [*words, *wild]) == 1
    assert "1 diverged of 1 runs" in said(tmp_path)
    [record] = [json.loads(path.read_text()) for path in tmp_path.glob("experiments/adhoc/records/*")]
    assert record["status"] == "diverged"
    assert "last finite loss" in record["reason"]
    for path in tmp_path.glob("experiments/adhoc/runs/*/checkpoints/*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(weight).all() for weight in state.values())


def test_a_retry_after_divergence_is_a_run_at_half_the_rate_and_recorded(words: list[str], tmp_path: Path):
    """1e5 overflows at once; some halvings later it is merely a bad rate."""
    wild = [*words, "optim.warmup_share=0", "optim.clip_norm=1e30", "optim.lr_peak=1e5"]
    places = [tmp_path / name for name in ("retried", "killed", "alone")]
    for place in places:
        place.mkdir()
    retried, killed, alone = places
    finish(retried, [*wild, "optim.retries_on_divergence=60"])
    [record] = [json.loads(path.read_text()) for path in retried.glob("experiments/adhoc/records/*")]
    tried = record["divergences"]
    assert [one["lr_peak"] for one in tried] == [1e5 * 0.5**n for n in range(len(tried))] != []
    shown = f"trained anew at {tried[-1]['lr_peak'] / 2:g}"
    assert shown in said(retried)
    assert bench_in_fork(retried, ["status", "study=adhoc"]) == 0
    assert shown in " ".join(said(retried).replace("│", " ").split())

    hook = KillAt(6, killed / "experiments", killed / "killed_at.txt", MOVES)
    assert bench_in_fork(killed, [*wild, "optim.retries_on_divergence=60"], hook) is None
    finish(killed, [*wild, "optim.retries_on_divergence=60"])
    assert_same_bits(killed, retried)

    finish(alone, [*wild, f"optim.lr_peak={tried[-1]['lr_peak'] / 2!r}"])
    assert weights(alone) == weights(retried)


def weights(folder: Path) -> bytes:
    [path] = folder.glob("experiments/adhoc/runs/*/weights.safetensors")
    return path.read_bytes()
