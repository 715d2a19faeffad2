"""Sizes as the code wrote them: integers that remember where they come from."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

from espalier.graph.integers import Attribute, Traced, may_change, origin_of, plain, same_origin
from tests.graph.rows import attribute, length


@pytest.mark.parametrize(
    ("compute", "sign"),
    [(lambda a, b: a + b, "+"), (lambda a, b: a - b, "-"), (lambda a, b: a * b, "*"), (lambda a, b: a // b, "//")],
)
def test_arithmetic_keeps_the_origin(compute, sign):
    a, b = attribute(12, "a"), attribute(3, "b")
    for left, right in ((a, b), (a, 3), (12, b)):
        result = compute(left, right)
        assert result == compute(12, 3)
        assert result.origin.sign == sign
        assert same_origin(result.origin.left, origin_of(left))
        assert same_origin(result.origin.right, origin_of(right))


def test_other_operations_give_plain_numbers():
    a = attribute(12)
    for value in (a % 5, -a, abs(a), a**2, a / 2, a * 0.5, int(str(a)), a & 4):
        assert not isinstance(value, Traced)
    assert isinstance(a * 1.0, float)


def test_traced_integers_behave_as_integers():
    a = attribute(3)
    assert [10, 20, 30, 40][a] == 40
    assert list(range(a)) == [0, 1, 2]
    assert {3: "three"}[a] == "three"
    assert f"{a} {a:02d}" == "3 03"
    assert a < 4
    assert a != 4
    assert hash(a) == hash(3)
    assert type(pickle.loads(pickle.dumps(a))) is int
    assert copy.deepcopy([a])[0] is a
    assert type(plain(a)) is int
    assert plain("x") == "x"


class Watching:
    """Writes down what a trace is told about its integers."""

    def __init__(self) -> None:
        self.equal: list[tuple[int, int]] = []
        self.real: list[int] = []

    def met(self, one: Traced, other: Traced) -> None:
        self.equal.append((plain(one), plain(other)))

    def used_as_real(self, number: Traced) -> None:
        self.real.append(plain(number))


def test_equal_numbers_are_reported_and_different_ones_not():
    watch = Watching()
    a, b, c = (Traced(value, Attribute(name, value), watch) for value, name in ((3, "a"), (3, "b"), (4, "c")))
    assert (a == b, a == c, a != b, a == 3) == (True, False, False, True)
    assert watch.equal == [(3, 3), (3, 3)]


def test_numbers_that_become_real_are_reported():
    watch = Watching()
    number = Traced(16, Attribute("width", 16), watch)
    assert (number**-0.5, math.sqrt(number), 1 / number, number / 2, float(number)) == (0.25, 4.0, 1 / 16, 8.0, 16.0)
    assert watch.real == [16] * 5


def test_only_channels_and_attributes_may_change(axes):
    assert may_change(attribute(3))
    assert may_change(length(axes.fresh(3, "a"), 3))
    assert may_change(2 * attribute(3) + 1)
    assert not may_change(3)
    assert not may_change(length(None, 3))
    assert not may_change(length(None, 6) // 2)


def test_the_same_expression_has_the_same_origin(axes):
    rows = axes.fresh(12, "a")
    assert same_origin(origin_of(length(rows, 12) // 3), origin_of(length(rows, 12) // 3))
    assert not same_origin(origin_of(length(rows, 12) // 3), origin_of(length(rows, 12) // 4))
    assert not same_origin(Attribute("a", 3), Attribute("b", 3))
    assert not same_origin(length(rows, 12).origin, length(axes.fresh(12, "b"), 12).origin)
