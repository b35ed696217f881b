"""Fixtures for tests of whole commands: one corpus, one folder of prepared data and one study for all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from harness import Place, tiny, write_corpus


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist share, so that each thing in it is made once."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def settings(shared: Path) -> list[str]:
    with FileLock(shared / "corpus.lock"):
        corpus = shared / "text"
        if not corpus.exists():
            write_corpus(corpus)
    return tiny(corpus, shared / "data")


@pytest.fixture
def place(tmp_path: Path, settings: list[str]) -> Iterator[Place]:
    made = Place(tmp_path / "place", settings)
    yield made
    for process in made.processes():
        process.kill()


@pytest.fixture(scope="session")
def study(shared: Path, settings: list[str]) -> Place:
    """The four strategies, finished, in a study of their own; read only."""
    with FileLock(shared / "study.lock"):
        made = Place(shared / "study", settings)
        finished = made.folder / "finished"
        if not finished.exists():
            done = made.bench(*made.sweep("strategy=clm,mlm,clip,scratch", "study=first"))
            assert done.returncode == 0, done.stderr
            assert "4 finished of 4 runs" in done.stdout
            finished.touch()
    return made
