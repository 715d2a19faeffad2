"""Integers that remember where they come from.

Code that reshapes tensors computes sizes: ``x.view(B, N, self.num_heads, C // self.num_heads)``. Whether a cut may change such
a size, and which integers a module must be told anew, depends on where each number comes from. While a model is traced, the
integers that its modules keep and the shapes of its tensors are instances of ``Traced``, which behave as ``int`` and
carry their origin through ``+ - * //``; a plain ``int`` in a size is a number written in the code, which no cut may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from espalier.graph.rows import Rows


@dataclass(frozen=True, eq=False)
class Length:
    """The length of a dimension."""

    rows: Rows
    size: int


class Attribute(NamedTuple):
    """An integer that a module keeps, such as ``blocks.0.attn.num_heads`` or ``norm.normalized_shape[0]``, and its value."""

    path: str
    value: int


@dataclass(frozen=True, eq=False)
class Expression:
    """``left sign right``, with sign one of ``+ - * //``."""

    sign: str
    left: Origin
    right: Origin


Origin = Length | Attribute | Expression | int


class Watch(Protocol):
    """Who wants to know what the code does with its integers."""

    def met(self, one: Traced, other: Traced) -> None:
        """Two numbers were found equal: the code may insist on that."""

    def used_as_real(self, number: Traced) -> None:
        """A number became a float: results depend on the length itself, as a scale 1 / sqrt(width) does."""


class Traced(int):
    """An integer with an origin."""

    origin: Origin
    watch: Watch | None

    def __new__(cls, value: int, origin: Origin, watch: Watch | None = None) -> Traced:
        self = int.__new__(cls, value)
        self.origin = origin
        self.watch = watch
        return self

    def _real(self) -> int:
        if self.watch is not None:
            self.watch.used_as_real(self)
        return int.__add__(self, 0)

    def __float__(self) -> float:
        return float(self._real())

    def __truediv__(self, other: Any) -> Any:
        return self._real() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._real()

    def __pow__(self, other: Any, *rest: Any) -> Any:
        return pow(self._real(), other, *rest)

    def _with(self, other: Any, sign: str, value: Any, *, swapped: bool = False) -> Any:
        if not isinstance(other, int) or isinstance(other, bool) or not isinstance(value, int):
            return value
        mine, theirs = self.origin, origin_of(other)
        left, right = (theirs, mine) if swapped else (mine, theirs)
        return Traced(value, Expression(sign, left, right), self.watch)

    def __add__(self, other: Any) -> Any:
        return self._with(other, "+", int.__add__(self, other))

    def __radd__(self, other: Any) -> Any:
        return self._with(other, "+", int.__radd__(self, other), swapped=True)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, "-", int.__sub__(self, other))

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, "-", int.__rsub__(self, other), swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, "*", int.__mul__(self, other))

    def __rmul__(self, other: Any) -> Any:
        return self._with(other, "*", int.__rmul__(self, other), swapped=True)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(other, "//", int.__floordiv__(self, other))

    def __rfloordiv__(self, other: Any) -> Any:
        return self._with(other, "//", int.__rfloordiv__(self, other), swapped=True)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other) is True
        if same and isinstance(other, Traced) and self.watch is not None:
            self.watch.met(self, other)
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: object) -> Traced:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__add__(self, 0),)


def origin_of(number: int) -> Origin:
    """Where a number comes from; a plain one from the code."""
    return number.origin if isinstance(number, Traced) else int(number)


def plain(number: Any) -> Any:
    """A plain integer for a traced one; everything else as it is."""
    return int.__add__(number, 0) if isinstance(number, Traced) else number


def same_origin(one: Origin, other: Origin) -> bool:
    """Whether two numbers are equal because they come from one place, not by accident."""
    if isinstance(one, Expression) and isinstance(other, Expression):
        return one.sign == other.sign and same_origin(one.left, other.left) and same_origin(one.right, other.right)
    if isinstance(one, Length) and isinstance(other, Length):
        return one.rows is other.rows and one.size == other.size
    return one == other


def may_change(number: int) -> bool:
    """Whether a cut could change a number: it counts channels, or a module keeps it."""
    return _may_change(origin_of(number))


def _may_change(origin: Origin) -> bool:
    if isinstance(origin, Expression):
        return _may_change(origin.left) or _may_change(origin.right)
    return isinstance(origin, Attribute) or (isinstance(origin, Length) and origin.rows is not None)
