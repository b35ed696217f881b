"""One corpus and one folder of prepared data for all tests of the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Place, tiny, write_corpus


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    return tiny(write_corpus(folder / "text"), folder / "data")


@pytest.fixture
def place(tmp_path: Path, settings: list[str]) -> Iterator[Place]:
    made = Place(tmp_path / "place", settings)
    yield made
    for process in made.processes():
        process.kill()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Place:
    """The four strategies, finished, in a study of their own; read only."""
    made = Place(tmp_path_factory.mktemp("study"), settings)
    done = made.bench(*made.sweep("strategy=clm,mlm,clip,scratch", "study=first"))
    assert done.returncode == 0, done.stderr
    assert "4 finished of 4 runs" in done.stdout
    return made
