"""Sizes that code computes must still fit after a cut.

``x.view(B, N, H, C // H)`` demands that the last dimension has C // H indices, whatever is cut. Each such demand is kept as
(origin of the number, rows of the dimension). When the trace is done, demands are tried on random cuts. Most hold, because
the axes were unified on the way. One that does not is made to hold by unifying further, which is stricter than equal numbers
but always right; where that is impossible the axes are frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.graph.axes import Axes
from espalier.graph.integers import Attribute, Expression, Length, Origin
from espalier.graph.rows import Rows, alive_in, merge, stack

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv}
FEW, TRIES, SMALL = 3, 16, 128  # lengths of short dimensions agree by chance more often
ROUNDS = 12

Mask = NDArray[np.bool_]  # of atoms; here a column for each cut that is tried
Counts = int | NDArray[np.int64] | NDArray[np.float64]
LITERAL = "its length is written as a number in the code"


@dataclass(frozen=True, eq=False)
class Demand:
    """``rows`` must have as many indices as ``origin`` says."""

    origin: Origin
    rows: Rows
    size: int
    where: str


class Constraints:
    """All demands of one trace, and what the integers of modules turned out to count."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.attributes: dict[str, tuple[Rows, int]] = {}
        self._demands: list[Demand] = []
        self.real: list[Origin] = []
        self.layers: dict[str, Rows] = {}  # what attributes of torch's layers count
        self._equal: list[tuple[Origin, Length, str]] = []

    @property
    def lists(self) -> list[list[Any]]:
        """All that is noted but for the attributes."""
        return [self._demands, self.real, self._equal]

    def demand(self, origin: Origin, rows: Rows, size: int, where: str) -> None:
        """Note that a dimension has the length that ``origin`` says."""
        if isinstance(origin, int):
            self.axes.freeze(rows, f"{LITERAL} ({where})")
            return
        if isinstance(origin, Attribute) and origin.path not in self.attributes:
            self.attributes[origin.path] = (rows, size)
        elif not (isinstance(origin, Length) and origin.rows is rows):
            self._demands.append(Demand(origin, rows, size, where))

    def equal(self, one: Origin, other: Origin, where: str) -> None:
        """Note that the code found two numbers equal. Attributes that have a use of their own are looked at first."""
        for mine, theirs in ((one, other), (other, one)):
            if isinstance(theirs, Length) and theirs.rows is not None and not isinstance(mine, int):
                self._equal.append((mine, theirs, where))
                return

    def settle(self) -> None:
        """Unify or freeze until every demand holds on random cuts."""
        for origin, length, where in self._equal:
            self.demand(origin, length.rows, length.size, where)
        for learn in (self._learn, self._guess):  # attributes that are only met in expressions
            for demand in self._demands:
                learn(demand.origin, demand.rows, demand.size)
        tried: set[int] = set()
        for _ in range(ROUNDS):
            broken = self._broken(self._demands)
            if not broken:
                return
            mended: set[str] = set()
            for demand in broken:
                if id(demand) in tried:
                    self._freeze(demand)
                elif demand.where not in mended:  # one in a module may mend the others
                    self._solve(demand.origin, demand.rows, demand.size, demand.where)
                    tried.add(id(demand))
                    mended.add(demand.where)
        for demand in self._broken(self._demands):
            self._freeze(demand)

    def used_as_real(self) -> Iterator[Rows]:
        """The dimensions whose lengths enter the results as real numbers."""
        return (rows for origin in self.real for rows in self._counted(origin))

    def _counted(self, origin: Origin) -> Iterator[Rows]:
        if isinstance(origin, Expression):
            yield from self._counted(origin.left)
            yield from self._counted(origin.right)
        elif isinstance(origin, Attribute) and origin.path not in self.attributes:
            yield self.layers.get(origin.path)
        elif (found := self._rows(origin)) is not None:
            yield found[0]

    # -- trying ------------------------------------------------------------------------------------------------

    def _broken(self, demands: Sequence[Demand]) -> list[Demand]:
        axes = self.axes
        lengths = [rows for demand in demands for rows, _ in self._lengths(demand.origin)]
        counted = axes.listed([*lengths, *(demand.rows for demand in demands)])
        if not len(counted):
            return []
        counted_as = axes.table()[counted]
        free = axes.listed([counted_as])
        mortal = free[(axes.frozen_by()[free] < 0) & ~axes.is_fixed(free)]
        alive = np.ones((axes.count + 1, TRIES), dtype=bool)  # a cut in each column; the last place is that of the padding
        alive[mortal] = np.random.default_rng(0).random((len(mortal), TRIES)) < 0.6
        alive[counted] = alive_in(counted_as, alive)  # of bound atoms too
        few = np.ascontiguousarray(alive[:, :FEW])
        return [demand for demand in demands if self._fails(demand, alive if demand.size <= SMALL else few)]

    def _fails(self, demand: Demand, alive: Mask) -> bool:
        wanted = self._value(demand.origin, alive)
        return bool(np.any((wanted != _count(demand.rows, demand.size, alive)) & ~np.isnan(wanted)))

    def _lengths(self, origin: Origin) -> Iterator[tuple[Rows, int]]:
        """The dimensions that a number comes from."""
        if isinstance(origin, Expression):
            yield from self._lengths(origin.left)
            yield from self._lengths(origin.right)
        elif (found := self._rows(origin)) is not None:
            yield found

    def _value(self, origin: Origin, alive: Mask) -> Counts:
        """What a number is after each cut: nan where it is divided by 0. No cut changes an attribute of which it is not known
        what it counts."""
        if isinstance(origin, int):
            return origin
        if isinstance(origin, Length):
            return _count(origin.rows, origin.size, alive)
        if isinstance(origin, Attribute):
            return _count(*self.attributes[origin.path], alive) if origin.path in self.attributes else origin.value
        left, right = self._value(origin.left, alive), self._value(origin.right, alive)
        if origin.sign == "//":
            right = np.where(right == 0, np.nan, right)
        found: Counts = SIGNS[origin.sign](left, right)
        return found

    # -- mending -----------------------------------------------------------------------------------------------

    def _rows(self, origin: Origin) -> tuple[Rows, int] | None:
        if isinstance(origin, int):
            return None, origin
        if isinstance(origin, Attribute):
            return self.attributes.get(origin.path)
        if isinstance(origin, Length):
            return origin.rows, origin.size
        return None

    def _learn(self, origin: Origin, rows: Rows, size: int) -> None:
        """Give an attribute that was never used alone the rows that an expression says it has."""
        if isinstance(origin, Attribute) and origin.path not in self.attributes:
            self.attributes[origin.path] = (rows, size)
        elif isinstance(origin, Expression) and origin.sign == "//" and (divisor := self._rows(origin.right)) is not None:
            self._learn(origin.left, merge([divisor, (rows, size)]), divisor[1] * size)
        elif isinstance(origin, Expression) and origin.sign == "-" and (other := self._rows(origin.right)) is not None:
            self._learn(origin.left, stack([other, (rows, size)]), other[1] + size)
        elif isinstance(origin, Expression) and origin.sign == "*":
            for known, unknown in ((origin.left, origin.right), (origin.right, origin.left)):
                factor = self._rows(known)
                if factor is not None and self._rows(unknown) is None and factor[1] and size % factor[1] == 0:
                    _, inner = self.axes.split(
                        rows, (factor[1], size // factor[1]), (not isinstance(known, int), True), "product"
                    )
                    self._learn(unknown, inner, size // factor[1])

    def _guess(self, origin: Origin, rows: Rows, size: int) -> None:
        """What two attributes count that are met in one expression alone: ``self.parts * self.width``, where the dimension is
        divided so already, or ``self.dim // self.parts``, with a number of parts that no cut changes."""
        if not isinstance(origin, Expression) or rows is None:
            return
        left, right = origin.left, origin.right
        if not isinstance(left, Attribute) or not isinstance(right, Attribute):
            return
        if left.path in self.attributes or right.path in self.attributes:
            return
        if origin.sign == "//" and left.value == right.value * size:
            self._learn(left, merge([(None, right.value), (rows, size)]), left.value)
        elif origin.sign == "*" and left.value * right.value == size:
            for outer, inner in ((left, right), (right, left)):
                if (parts := self.axes.divided(rows, (outer.value, inner.value))) is not None:
                    for attribute, part in zip((outer, inner), parts, strict=True):
                        self._learn(attribute, part, attribute.value)
                    return

    def _solve(self, origin: Origin, rows: Rows, size: int, where: str) -> None:
        found = self._rows(origin)
        if found is not None and not isinstance(origin, int):
            if found[1] == size:
                self.axes.unify(found[0], rows, f"the code makes two lengths equal ({where})")
        elif isinstance(origin, Expression) and origin.sign == "//" and (divisor := self._rows(origin.right)) is not None:
            self._solve(origin.left, merge([divisor, (rows, size)]), divisor[1] * size, where)
        elif isinstance(origin, Expression) and origin.sign == "-" and (other := self._rows(origin.right)) is not None:
            self._solve(origin.left, stack([other, (rows, size)]), other[1] + size, where)
        elif isinstance(origin, Expression) and origin.sign == "*" and rows is not None:
            for known, unknown in ((origin.left, origin.right), (origin.right, origin.left)):
                factor = self._rows(known)
                if factor is not None and factor[1] and size % factor[1] == 0:
                    outer, inner = self.axes.split(rows, (factor[1], size // factor[1]), (False, True), where)
                    self.axes.freeze(outer, LITERAL)
                    self._solve(unknown, inner, size // factor[1], where)
                    return

    def _freeze(self, demand: Demand) -> None:
        why = f"its length is computed in a way that a cut would break ({demand.where})"
        self.axes.freeze(demand.rows, why)
        for rows, _ in self._lengths(demand.origin):
            self.axes.freeze(rows, why)


def _count(rows: Rows, size: int, alive: Mask) -> Counts:
    return size if rows is None else np.asarray(alive_in(rows, alive).sum(0))
