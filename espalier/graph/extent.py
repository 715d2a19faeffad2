"""Lengths of dimensions as functions of group widths: what makes the cost of any choice of widths arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """The length of one dimension.

    Attributes:
        terms: (count, groups) pairs, groups as positions in ``ChannelGraph.groups``. The length is the sum over pairs of
            count x the product of (width / size) of the groups: a concatenation is a sum, heads x head_dim a product.

    Example:
        >>> extent = Extent(((64, (0,)), (32, (0, 1)), (3, ())))
        >>> extent.size, extent.at([0.5, 0.25])
        (99, 39)
    """

    terms: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def fixed(cls, size: int) -> Extent:
        """A length that no cut changes."""
        return cls(((size, ()),))

    @property
    def size(self) -> int:
        """The present length."""
        return sum(count for count, _ in self.terms)

    @property
    def groups(self) -> frozenset[int]:
        """The groups whose widths the length depends on."""
        return frozenset(group for _, groups in self.terms for group in groups)

    def at(self, shares: Sequence[float]) -> int:
        """The length when each group keeps the given share of its channels."""
        return round(sum(count * math.prod(shares[group] for group in groups) for count, groups in self.terms))


@dataclass(frozen=True)
class Work:
    """One operation, or one stored output: the product of its extents counts multiply-accumulates, or elements."""

    module: str
    op: str
    extents: tuple[Extent, ...]

    def at(self, shares: Sequence[float]) -> int:
        """The product when each group keeps the given share of its channels."""
        return math.prod(extent.at(shares) for extent in self.extents)
