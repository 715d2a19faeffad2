"""Sizes that must still fit after a cut: what they tie, and what they freeze."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.graph.constraints import LITERAL, Constraints
from espalier.graph.integers import Attribute, Expression, Length, origin_of
from tests.graph.rows import attribute, length, reasons, resolved, same


@pytest.fixture
def constraints(axes) -> Constraints:
    return Constraints(axes)


def demand(constraints: Constraints, number: int, rows: np.ndarray | None, size: int) -> None:
    assert int(number) == size
    constraints.demand(origin_of(number), rows, size, "here")


def test_a_length_written_as_a_number_is_frozen(axes, constraints):
    rows = axes.fresh(4, "a")
    demand(constraints, 4, rows, 4)
    assert all(LITERAL in reason for reason in reasons(axes, rows))


def test_the_first_use_of_an_attribute_says_what_it_counts(axes, constraints):
    rows, other = axes.fresh(4, "a"), axes.fresh(4, "b")
    demand(constraints, attribute(4), rows, 4)
    demand(constraints, attribute(4), other, 4)
    constraints.settle()
    assert constraints.attributes["heads"][0] is rows
    assert same(axes, rows, other)
    assert not axes.frozen()


def test_heads_times_width_settle_as_a_product(axes, constraints):
    """x.view(B, N, heads, C // heads)"""
    flat = axes.fresh(24, "qkv")
    channels = length(flat, 24)
    heads, each = axes.split(flat, (4, 6), (True, True), "view")
    demand(constraints, attribute(4), heads, 4)
    demand(constraints, channels // attribute(4), each, 6)
    constraints.settle()
    assert not axes.frozen()
    assert len(axes.atoms_in([flat])) == 10


def test_the_residual_stream_is_tied_to_heads_if_the_code_computes_with_its_width(axes, constraints):
    """x.view(B, N, heads, C // heads) where C is the width of another tensor."""
    stream, flat = axes.fresh(24, "stream"), axes.fresh(24, "q")
    heads, each = axes.split(flat, (4, 6), (True, True), "view")
    demand(constraints, attribute(4), heads, 4)
    demand(constraints, length(stream, 24) // attribute(4), each, 6)
    constraints.settle()
    assert not axes.frozen()
    assert same(axes, stream, flat)


def test_an_attribute_met_only_in_an_expression_is_learnt(axes, constraints):
    """self.dim // self.heads, where nothing has the length self.dim by itself."""
    flat = axes.fresh(24, "q")
    heads, each = axes.split(flat, (4, 6), (True, True), "view")
    demand(constraints, attribute(4), heads, 4)
    demand(constraints, attribute(24, "dim") // attribute(4), each, 6)
    constraints.settle()
    assert not axes.frozen()
    rows, size = constraints.attributes["dim"]
    assert size == 24
    assert same(axes, rows, flat)


def test_three_times_a_width_is_three_equal_parts(axes, constraints):
    """x.reshape(B, 3 * C) of something as wide as C says."""
    narrow, wide = axes.fresh(4, "c"), axes.fresh(12, "3c")
    demand(constraints, 3 * length(narrow, 4), wide, 12)
    constraints.settle()
    assert reasons(axes, narrow) == [None] * 4
    for part in range(3):
        mine = resolved(axes, wide[4 * part : 4 * part + 4])
        assert [set(row) & set(axes.atoms_in([narrow]).tolist()) for row in mine] == [
            set(row) for row in resolved(axes, narrow)
        ]


def test_slices_of_a_third_settle_on_small_axes(axes, constraints):
    """C = x.shape[-1] // 3; q, k, v = x[:C], x[C:2C], x[2C:]: the demand may hold by accident, but not always."""
    flat = axes.fresh(24, "qkv")
    parts = [flat[place : place + 8] for place in (0, 8, 16)]
    factors = [axes.split(part, (2, 4), (True, True), "view") for part in parts]
    for part in parts[:2]:
        demand(constraints, length(flat, 24) // 3, part, 8)
    for heads, _ in factors:
        demand(constraints, attribute(2), heads, 2)
    constraints.settle()
    assert not axes.frozen()
    assert len(axes.atoms_in([flat])) == 6


def test_what_cannot_be_made_to_fit_is_frozen(axes, constraints):
    rows, other = axes.fresh(4, "a"), axes.fresh(6, "b")
    demand(constraints, length(rows, 4) + 2, other, 6)
    constraints.settle()
    assert all("computed in a way that a cut would break" in reason for reason in reasons(axes, rows) + reasons(axes, other))


def test_numbers_that_the_code_compares_stay_equal(axes, constraints):
    rows, other = axes.fresh(4, "a"), axes.fresh(4, "b")
    demand(constraints, attribute(4, "dim"), rows, 4)
    constraints.equal(Attribute("dim", 4), Length(other, 4), "here")
    constraints.settle()
    assert same(axes, rows, other)


def test_an_expression_keeps_both_sides():
    origin = origin_of(attribute(12, "dim") // attribute(4))
    assert isinstance(origin, Expression)
    assert (origin.sign, origin.left, origin.right) == ("//", Attribute("dim", 12), Attribute("heads", 4))


def test_two_unknown_factors_are_told_apart_by_how_the_dimension_is_divided(axes, constraints):
    """x.reshape(N, heads, parts * width, L).chunk(parts, 2)"""
    rows = axes.fresh(12, "qkv")
    parts, width = axes.split(rows, (3, 4), (False, True), "chunk")
    demand(constraints, attribute(3, "parts") * attribute(4, "width"), rows, 12)
    constraints.settle()
    assert same(axes, constraints.attributes["width"][0], width)
    assert not axes.frozen()
    assert len(axes.atoms_in([width])) == 4
    assert axes.is_fixed(axes.resolve(parts)).all()


def test_a_dimension_divided_by_an_unknown_number_of_parts(axes, constraints):
    """torch.split(x, self.channels // self.parts, 1)"""
    part = axes.fresh(4, "part")
    demand(constraints, attribute(8, "channels") // attribute(2, "parts"), part, 4)
    constraints.settle()
    assert not axes.frozen()
    assert len(constraints.attributes["channels"][0]) == 8
    assert "parts" not in constraints.attributes


def test_an_attribute_that_nobody_knows_keeps_its_value(axes, constraints):
    rows = axes.fresh(12, "a")
    demand(constraints, attribute(3, "parts") * attribute(4, "width"), rows, 12)
    constraints.settle()
    assert all("computed in a way that a cut would break" in reason for reason in reasons(axes, rows))
