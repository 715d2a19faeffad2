"""Shared set-up: one thread, fixed seeds, a cache of its own, so that tests neither race nor depend on one another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Keeps sums in one order, and leaves the other cores to the other test processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Points ESPALIER_CACHE at a temporary folder: tests neither read nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPALIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Starts every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Deterministic algorithms for the length of one test, for comparisons bit by bit."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def project() -> Path:
    """The top folder of the repository."""
    return Path(__file__).resolve().parent.parent
