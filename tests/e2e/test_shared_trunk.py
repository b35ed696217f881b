"""Budgets of compute under WSD train one stable phase, and each ends with the bits of a run of its own."""

import pytest
from harness import HERE, Place, numbers

from bench.records import RunRecord, read_record

BUDGETS = (8_000, 16_000, 32_000)  # 8, 16 and 32 steps of 1,000 positions; the last tenth cools down
ENDS = (7, 14, 29)  # where they branch: 0.8, 1.6 and 3.2 steps of cooldown, rounded


def sweep(place: Place, *budgets: int) -> tuple[str, ...]:
    wsd = ("optim=wsd_trunk", "optim.tokens_per_step=1000", "optim.warmup_tokens=3000")
    tokens = f"budget.tokens={','.join(map(str, budgets))}"
    return (*place.sweep("strategy=mlm", tokens, *wsd), *HERE)


def records(place: Place) -> list[RunRecord]:
    paths = (place.folder / "experiments/adhoc/records").glob("*.json")
    return sorted(map(read_record, paths), key=lambda record: record.spent.forward_tokens)


def weights(place: Place, record: RunRecord) -> bytes:
    return (place.folder / "experiments/adhoc/runs" / record.run_id / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> list[Place]:
    """A place for each budget."""
    places = [Place(tmp_path_factory.mktemp("alone"), settings) for _ in BUDGETS]
    for place, budget in zip(places, BUDGETS, strict=True):
        assert place.bench_here(*sweep(place, budget)).returncode == 0
    return places


def test_each_branch_has_the_bits_of_a_run_that_was_trained_alone(place: Place, alone: list[Place]):
    done = place.bench_here(*sweep(place, *BUDGETS))
    assert done.returncode == 0, done.stderr
    branched = records(place)
    longest = branched[-1]
    assert "trunk" not in longest.data
    assert [record.data["trunk"] for record in branched[:-1]] == [
        {"run_id": longest.run_id, "steps": steps} for steps in ENDS[:-1]
    ]
    for record, other in zip(branched, alone, strict=True):
        [expected] = records(other)
        assert record.run_id == expected.run_id
        assert weights(place, record) == weights(other, expected)
        assert numbers(record)[-1:] == numbers(expected)[-1:]


def test_a_longer_budget_goes_on_from_the_trunk_of_a_shorter_one(place: Place, alone: list[Place]):
    for budget in BUDGETS[1:]:
        assert place.bench_here(*sweep(place, budget)).returncode == 0
    short, long = records(place)
    assert long.data["trunk"] == {"run_id": short.run_id, "steps": ENDS[1]}
    [expected] = records(alone[2])
    assert weights(place, long) == weights(alone[2], expected)
