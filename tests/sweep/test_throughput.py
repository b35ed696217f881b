"""Workers by throughput: the fastest number is found once, by real steps side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.config.compose import compose_runs
from bench.config.run_spec import RunSpec
from bench.errors import BenchError
from bench.sweep import throughput
from bench.sweep.throughput import fastest


def spec(folder: Path, *words: str) -> RunSpec:
    [one] = compose_runs(["strategy=clm", "model=0.2m", f"paths.data={folder}", *words], multirun=False)
    return one


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was measured: workers and threads. Two workers are fastest, four as good as that."""
    asked: list[tuple[int, int]] = []

    def rate(spec: RunSpec, workers: int, threads: int) -> float:
        asked.append((workers, threads))
        return {1: 50.0, 2: 100.0, 4: 98.0, 6: 90.0}[workers]

    monkeypatch.setattr(throughput, "steps_per_s", rate)
    return asked


def test_of_numbers_that_are_as_fast_the_most_workers_are_taken(
    tmp_path: Path, measured: list[tuple[int, int]]
):
    assert fastest(spec(tmp_path), cores=8, most=6) == 4
    assert measured == [(1, 8), (2, 4), (4, 2), (6, 1)]


def test_it_is_measured_once_for_a_shape_whatever_the_seed(tmp_path: Path, measured: list[tuple[int, int]]):
    for seed in (1, 2):
        assert fastest(spec(tmp_path, f"seed={seed}"), cores=2, most=2) == 2
    assert len(measured) == 2
    fastest(spec(tmp_path, "optim.tokens_per_step=4096"), cores=2, most=2)
    assert len(measured) == 4


def test_nothing_is_measured_where_there_is_no_choice(tmp_path: Path, measured: list[tuple[int, int]]):
    assert fastest(spec(tmp_path), cores=8, most=1) == 1
    assert not measured


@pytest.mark.faults
def test_processes_train_together_and_one_that_cannot_is_named(tmp_path: Path):
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text(f"{i} is a number of words. " * 100)
    text = (
        "budget.unique_bytes=null",
        "corpus/text=text_files",
        f"corpus.text.path={tmp_path / 'text'}",
        "tokenizer.vocab_size=300",
    )
    tiny = spec(tmp_path / "data", *text, "optim.tokens_per_step=1024", "corpus.pairs.skin_tones=false")
    assert throughput.steps_per_s(tiny, workers=2, threads=1) > 0
    broken = replace(tiny, config=tiny.config | {"strategy": tiny.config["strategy"] | {"pooling": "no"}})
    with pytest.raises(BenchError, match=r"launcher\.workers_by=throughput: .*strategy\.pooling"):
        throughput.steps_per_s(broken, workers=2, threads=1)
