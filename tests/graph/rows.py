"""What an axis has become, index by index."""

from __future__ import annotations

import numpy as np

from espalier.graph.axes import Axes
from espalier.graph.integers import Attribute, Length, Traced


def resolved(axes: Axes, rows: np.ndarray | None) -> list[list[int]]:
    """Free atoms per index, without the padding."""
    assert rows is not None
    return [[atom for atom in row if atom >= 0] for row in axes.resolve(rows).tolist()]


def same(axes: Axes, one: np.ndarray, other: np.ndarray) -> bool:
    return resolved(axes, one) == resolved(axes, other)


def reasons(axes: Axes, rows: np.ndarray) -> list[str | None]:
    """Of each index the reason why it cannot go, if there is one."""
    frozen = axes.frozen()
    return [next((frozen[atom] for atom in row if atom in frozen), None) for row in resolved(axes, rows)]


def length(rows: np.ndarray | None, size: int) -> Traced:
    return Traced(size, Length(rows, size))


def attribute(value: int, path: str = "heads") -> Traced:
    return Traced(value, Attribute(path, value))
