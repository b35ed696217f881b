"""Phases that differ in their shares train their common beginning once, and end with the same bits."""

from pathlib import Path

import pytest
from harness import HERE, Place, numbers

from bench.records import RunRecord, read_record


def phases(place: Place, share: float) -> tuple[str, ...]:
    shares = f"strategy.shares={{clm: {share}, mlm: {1 - share}}}"
    return (*place.sweep("strategy=clm_then_mlm", "budget.tokens=20000", shares), *HERE)


def record_of(place: Place, share: float) -> RunRecord:
    paths = (place.folder / "experiments/adhoc/records").glob("*.json")
    [record] = [r for r in map(read_record, paths) if r.config["strategy"]["shares"]["clm"] == share]
    return record


def weights(place: Place, record: RunRecord) -> bytes:
    return (place.folder / "experiments/adhoc/runs" / record.run_id / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Place:
    made = Place(tmp_path_factory.mktemp("alone"), settings)
    assert made.bench_here(*phases(made, 0.75)).returncode == 0
    return made


def test_a_branch_has_the_bits_of_a_run_that_was_trained_alone(place: Place, alone: Place):
    for share in (0.25, 0.75):
        done = place.bench_here(*phases(place, share))
        assert done.returncode == 0, done.stderr
    early, late, expected = record_of(place, 0.25), record_of(place, 0.75), record_of(alone, 0.75)
    assert "trunk" not in early.data
    assert late.data["trunk"] == {"run_id": early.run_id, "steps": 5}  # a quarter of 20 steps
    assert numbers(late) == numbers(expected)
    assert weights(place, late) == weights(alone, expected)


@pytest.mark.faults
def test_a_trunk_that_is_too_long_or_damaged_is_left_alone(place: Place):
    assert place.bench_here(*phases(place, 0.75)).returncode == 0
    [trunk] = trunks(place)
    assert place.bench_here(*phases(place, 0.25)).returncode == 0
    assert "trunk" not in record_of(place, 0.25).data
    for path in trunks(place):
        path.write_bytes(path.read_bytes()[:-1])
    assert place.bench_here(*phases(place, 0.5)).returncode == 0
    assert "trunk" not in record_of(place, 0.5).data
    assert trunk in trunks(place)


def trunks(place: Place) -> list[Path]:
    return sorted((place.folder / "experiments/adhoc/runs").glob("trunk-*/*.ckpt"))
