"""Axes without a model."""

from __future__ import annotations

import pytest

from espalier.graph.axes import Axes


@pytest.fixture
def axes() -> Axes:
    return Axes()
