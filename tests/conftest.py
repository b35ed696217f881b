"""What all tests share: one thread and one seed, so that none depends on the machine or on another test."""

from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["places", "toy_archive"]  # fixtures of whole commands, and of Debian packages


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before all fixtures: weights are drawn from torch's global generator."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands are slow; what takes a GPU is skipped where there is none."""
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker("slow")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch finds no GPU here"))
