"""Rows: what a dimension is made of, index by index; see ``axes.py``. Here are the operations that need to know no atoms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Rows = Array | None


def equal(one: Array, other: Array) -> bool:
    """Whether two arrays of one dtype are equal: ten times as quick as numpy's own comparison on the usual short ones."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def crossed(grid: Array) -> bool:
    """Whether some factor of a grid belongs neither to its rows nor to its columns alone."""
    columns = np.moveaxis(grid, -1, 0)
    return any(not (c == c[:, :1]).all() and not (c == c[:1]).all() for c in columns)


def merge(factors: Sequence[tuple[Rows, int]]) -> Rows:
    """Rows of the flattened product of dimensions, given as (rows, length)."""
    carried = [(place, rows) for place, (rows, _) in enumerate(factors) if rows is not None]
    if not carried:
        return None
    if len(factors) == 1:
        return carried[0][1]
    sizes = [size for _, size in factors]
    grid = np.empty((*sizes, sum(rows.shape[1] for _, rows in carried)), dtype=np.int64)
    column = 0
    for place, rows in carried:
        width = rows.shape[1]
        grid[..., column : column + width] = rows.reshape(-1, *[1] * (len(sizes) - place - 1), width)
        column += width
    return grid.reshape(-1, column)


def stack(parts: Sequence[tuple[Rows, int]]) -> Rows:
    """Rows of a concatenation of dimensions, given as (rows, length)."""
    if all(rows is None for rows, _ in parts):
        return None
    width = max(rows.shape[1] for rows, _ in parts if rows is not None)
    return np.concatenate([_widened(rows, size, width) for rows, size in parts])


def _widened(rows: Rows, size: int, width: int) -> Array:
    if rows is not None and rows.shape[1] == width:
        return rows
    wide = np.full((size, width), -1)
    if rows is not None:
        wide[:, : rows.shape[1]] = rows
    return wide


def tidy(rows: Array) -> Array:
    """Without repeats in a row, and padding at the end. Columns are few and compared one by one: numpy is slow along them."""
    width = rows.shape[1]
    if width == 1:
        return rows
    if width == 2:
        return _tidy_pairs(rows)
    for column in range(1, width):
        repeated = rows[:, 0] == rows[:, column]
        for earlier in range(1, column):
            repeated |= rows[:, earlier] == rows[:, column]
        if repeated.any():
            rows[repeated, column] = -1
    present = rows >= 0
    used = int(present.sum(1).max(initial=1))
    if not np.count_nonzero(present[:, 1:] > present[:, :-1]):  # nothing after a gap
        return rows[:, :used]
    place = np.cumsum(present, axis=1) - 1
    index = np.nonzero(present)
    made = np.full((len(rows), used), -1)
    made[index[0], place[index]] = rows[index]
    return made


def _tidy_pairs(rows: Array) -> Array:
    """The usual case, (head, position) and the like, without sorting."""
    first, second = rows[:, 0], rows[:, 1]
    second[first == second] = -1
    if int(first.min(initial=0)) < 0:
        gaps = first < 0
        first[gaps] = second[gaps]
        second[gaps] = -1
    return rows if int(second.max(initial=-1)) >= 0 else rows[:, :1]


def alive_in(rows: Array, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which indices are left when these atoms are: those whose atoms are all alive. ``alive[-1]`` is for the padding.

    ``alive`` may have a column for each of several cuts; so has the result then.
    """
    left: NDArray[np.bool_] = alive[rows[:, 0]]
    for column in range(1, rows.shape[1]):
        left &= alive[rows[:, column]]
    return left
