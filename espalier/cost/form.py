"""Sums of products of extents as a few numpy calls: what a choice of widths costs, in microseconds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.graph.extent import Extent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Form:
    """One number per row, each the product of the row's extents, for any shares of channels kept.

    Whole numbers below 2**53 are exact in float64, so results are exact; fixed extents are multiplied out once.

    Args:
        rows: the extents of each row.
        groups: how many groups the extents speak of.

    Example:
        >>> form = Form([(Extent(((8, (0,)),)), Extent.fixed(3)), (Extent(((6, (0, 1)), (2, ()))),)], groups=2)
        >>> form.rows(np.array([[1.0, 1.0], [0.5, 0.5]])).tolist()
        [[24.0, 8.0], [12.0, 4.0]]
    """

    def __init__(self, rows: Iterable[Sequence[Extent]], groups: int) -> None:
        found: dict[Extent, int] = {}
        factors: list[float] = []
        parts: list[list[int]] = []
        for row in rows:
            moving = [extent for extent in row if extent.groups]
            factors.append(float(np.prod([extent.size for extent in row if not extent.groups], dtype=object)))
            parts.append([found.setdefault(extent, len(found)) for extent in moving])
        terms = [(term, place) for extent, place in found.items() for term in extent.terms]
        self.factors: Floats = np.array(factors, dtype=np.float64)
        self._one = groups  # a share that is always 1 stands where a term or a row has fewer factors than the others
        self._counts: Floats = np.array([count for (count, _), _ in terms] or [0], dtype=np.float64)
        self._groups = _columns([list(held) for (_, held), _ in terms] or [[]], fill=groups)
        # Each sum ends where the next begins; a last entry without terms is the 1 that pads the rows.
        lengths = [len(extent.terms) for extent in found]
        self._starts: Ints | None = np.cumsum([0, *lengths[:-1]]) if any(n > 1 for n in lengths) else None
        self._extents = _columns(parts or [[]], fill=len(lengths) if lengths else 1)

    def rows(self, shares: Floats) -> Floats:
        """Every row at the given shares, (..., groups) -> (..., rows)."""
        ones = np.ones((*shares.shape[:-1], 1))
        padded = np.concatenate((shares, ones), axis=-1)
        lengths = _product(self._counts, padded, self._groups)
        if self._starts is not None:
            lengths = np.add.reduceat(lengths, self._starts, axis=-1)
        lengths = np.concatenate((np.rint(lengths), ones), axis=-1)
        return _product(self.factors, lengths, self._extents)

    def total(self, shares: Floats) -> Floats:
        """The sum of all rows, (..., groups) -> (...)."""
        return np.asarray(self.rows(shares).sum(axis=-1))


class Grouping:
    """Adds the rows of a form up by a key, modules say.

    Example:
        >>> Grouping(["a", "b", "a"], {"a": 0, "b": 1, "c": 2}).add(np.array([1.0, 5.0, 2.0])).tolist()
        [3.0, 5.0, 0.0]
    """

    def __init__(self, keys: Iterable[Hashable], places: Mapping[Any, int]) -> None:
        self._places: Ints = np.array([places[key] for key in keys], dtype=np.int64)
        self._size = len(places)

    def add(self, values: Floats) -> Floats:
        """(rows,) -> (keys,)."""
        return np.bincount(self._places, weights=values, minlength=self._size).astype(np.float64)


def _columns(lists: Sequence[Sequence[int]], fill: int) -> list[Ints]:
    """Ragged lists as columns: the first entries of all, the second ones, and so on."""
    longest = max(map(len, lists))
    padded = [[*row, *([fill] * (longest - len(row)))] for row in lists]
    return [np.array([row[k] for row in padded], dtype=np.int64) for k in range(longest)]


def _product(factors: Floats, values: Floats, columns: Sequence[Ints]) -> Floats:
    product = np.broadcast_to(factors, (*values.shape[:-1], len(factors)))
    for column in columns:
        product = product * values[..., column]
    return product
