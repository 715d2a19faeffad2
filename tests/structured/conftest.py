"""Quick cuts: ``es.cut`` looks through all living objects for forgotten optimizers, and a test process has many."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> Iterator[None]:
    """Hides what was there before the module from ``gc.get_objects``."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
