"""The algebra beneath a trace: atoms and rows, their unions, products and splits."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.graph.atoms import FACTORS, ROOM
from espalier.graph.axes import Axes
from espalier.graph.rows import merge, stack
from tests.graph.rows import reasons, resolved, same

# -- union -------------------------------------------------------------------------------------------------------------


def test_atoms_that_occur_several_times_become_one(axes: Axes):
    rows = axes.fresh(4, "x")
    axes.unify(rows[[0, 1]], rows[[1, 1]], "")  # the second pair says nothing, the first must not be forgotten over it
    assert resolved(axes, rows) == [[0], [0], [2], [3]]
    axes.unify(rows[[3, 3, 2]], rows[[2, 1, 2]], "")
    assert resolved(axes, rows) == [[0], [0], [0], [0]]


def test_fresh_rows_are_distinct_atoms_in_blocks_of_their_own(axes):
    one, other = axes.fresh(3, "a"), axes.fresh(2, "b")
    assert resolved(axes, one) == [[0], [1], [2]]
    assert resolved(axes, other) == [[3], [4]]
    assert [axes.blocks[block] for block in axes.block_of(5)] == ["a", "a", "a", "b", "b"]


def test_blocks_may_share_the_atoms_of_others_unless_some_have_to_stay(axes):
    rows = axes.fresh(4, "a")
    assert axes.share(rows, ["b", "c"])
    assert axes.shared[id(rows)][1] == [1, 2]
    assert axes.count == 4
    outer, inner = axes.split(rows, (2, 2), (True, True), "x")
    assert axes.share(rows, ["d"])
    axes.freeze(inner, "stays")
    assert not axes.share(rows, ["e"])
    assert axes.share(outer, ["e"])
    assert not axes.share(stack([(None, 1), (outer, 2)]), ["f"])


def test_many_atoms_outgrow_the_first_tables(axes):
    rows = [axes.fresh(ROOM // 2, str(number)) for number in range(4)]
    axes.unify(rows[0], rows[3], "")
    assert same(axes, rows[0], rows[3])
    assert resolved(axes, rows[1])[0] == [ROOM // 2]


def test_union_is_transitive_and_index_by_index(axes):
    a, b, c = (axes.fresh(3, name) for name in "abc")
    axes.unify(a, b, "")
    axes.unify(c, b[::-1], "")
    assert same(axes, a, b)
    assert same(axes, c, a[::-1])
    assert len(axes.atoms_in([a, b, c])) == 3


def test_a_cycle_of_unions_with_a_shift_makes_all_one(axes):
    a = axes.fresh(4, "a")
    axes.unify(a, np.roll(a, 1, axis=0), "")
    assert len(axes.atoms_in([a])) == 1


def test_a_large_union_equals_many_small_ones(axes):
    generator = np.random.default_rng(0)
    a, b = axes.fresh(200, "a"), axes.fresh(200, "b")
    order = generator.permutation(200)
    axes.unify(a, b[order], "")
    other = Axes()
    c, d = other.fresh(200, "a"), other.fresh(200, "b")
    for index in range(200):
        other.unify(c[index : index + 1], d[order[index] : order[index] + 1], "")
    assert resolved(axes, np.concatenate([a, b])) == resolved(other, np.concatenate([c, d]))


# -- concatenations and products ---------------------------------------------------------------------------------------


def test_a_concatenation_is_a_stack_of_rows(axes):
    a, b, whole = axes.fresh(2, "a"), axes.fresh(3, "b"), axes.fresh(6, "whole")
    axes.unify(whole, stack([(a, 2), (None, 1), (b, 3)]), "pads")
    assert same(axes, whole[:2], a)
    assert same(axes, whole[3:], b)
    assert reasons(axes, whole) == [None, None, "pads", None, None, None]


def test_a_stack_of_nothing_is_nothing():
    assert stack([(None, 2), (None, 3)]) is None
    assert merge([(None, 2), (None, 3)]) is None


def test_merge_lists_one_factor_per_column(axes):
    a, b = axes.fresh(2, "a"), axes.fresh(3, "b")
    rows = merge([(a, 2), (None, 2), (b, 3)])
    assert resolved(axes, rows) == [[i, j] for i in (0, 1) for _ in range(2) for j in (2, 3, 4)]


def test_an_atom_unified_with_a_product_becomes_it(axes):
    flat, heads, each = axes.fresh(6, "flat"), axes.fresh(2, "heads"), axes.fresh(3, "each")
    axes.unify(flat, merge([(heads, 2), (each, 3)]), "")
    assert resolved(axes, flat) == [[6, 8], [6, 9], [6, 10], [7, 8], [7, 9], [7, 10]]


def test_a_bound_atom_unified_with_another_product_unifies_the_factors(axes):
    flat, factors = axes.fresh(6, "flat"), [axes.fresh(size, str(size)) for size in (2, 3, 2, 3)]
    axes.unify(flat, merge([(factors[0], 2), (factors[1], 3)]), "")
    axes.unify(flat, merge([(factors[2], 2), (factors[3], 3)]), "")
    assert same(axes, factors[0], factors[2])
    assert same(axes, factors[1], factors[3])


def test_products_of_other_factors_are_frozen_with_the_reason(axes):
    flat = axes.fresh(8, "flat")
    axes.unify(flat, merge([(axes.fresh(2, "a"), 2), (axes.fresh(4, "b"), 4)]), "")
    cube = merge([(axes.fresh(2, name), 2) for name in "cde"])
    axes.unify(flat, cube, "add")
    assert all("products of different factors" in reason for reason in reasons(axes, flat) + reasons(axes, cube))


def test_the_same_atoms_bound_twice_are_unified(axes):
    few, outer = axes.fresh(2, "few"), axes.fresh(4, "outer")
    inner = axes.fresh(4, "inner")
    product = np.concatenate([outer, inner], axis=1)
    axes.unify(np.concatenate([few, few]), product, "")  # index 0 is both (outer 0, inner 0) and (outer 2, inner 2)
    assert same(axes, outer[:2], outer[2:])
    assert same(axes, inner[:2], inner[2:])


def test_what_would_contain_itself_is_frozen(axes):
    a, b = axes.fresh(3, "a"), axes.fresh(3, "b")
    axes.unify(a, np.concatenate([a, b], axis=1), "loops")
    assert reasons(axes, a) == ["loops"] * 3
    axes.resolve(a)  # and it comes to an end


def test_more_factors_than_there_is_room_for_are_frozen(axes):
    flat = axes.fresh(2, "flat")
    wide = np.concatenate([axes.fresh(2, str(number)) for number in range(FACTORS + 1)], axis=1)
    axes.unify(flat, wide, "is too much")
    assert reasons(axes, flat) == ["is too much"] * 2


def test_bindings_are_followed_through_bindings(axes):
    flat, outer, rest = axes.fresh(8, "flat"), axes.fresh(2, "outer"), axes.fresh(4, "rest")
    axes.unify(flat, merge([(outer, 2), (rest, 4)]), "")
    two, three = axes.fresh(2, "two"), axes.fresh(2, "three")
    axes.unify(rest, merge([(two, 2), (three, 2)]), "")
    assert all(len(row) == 3 for row in resolved(axes, flat))
    assert set(axes.atoms_in([flat]).tolist()) == set(axes.atoms_in([outer, two, three]).tolist())


# -- split -------------------------------------------------------------------------------------------------------------


def test_split_gives_new_factors_and_merge_undoes_it(axes):
    flat = axes.fresh(12, "flat")
    outer, inner = axes.split(flat, (3, 4), (True, True), "view")
    assert (len(outer), len(inner)) == (3, 4)
    assert same(axes, flat, merge([(outer, 3), (inner, 4)]))


def test_split_again_finds_the_same_factors(axes):
    flat = axes.fresh(12, "flat")
    first = axes.split(flat, (3, 4), (True, True), "view")
    again = axes.split(flat, (3, 4), (True, True), "view")
    assert all(same(axes, one, two) for one, two in zip(first, again, strict=True))


def test_split_of_a_product_gives_its_factors_back(axes):
    outer, inner = axes.fresh(3, "outer"), axes.fresh(4, "inner")
    found = axes.split(merge([(outer, 3), (inner, 4)]), (3, 4), (True, True), "view")
    assert same(axes, found[0], outer)
    assert same(axes, found[1], inner)


def test_a_factor_of_length_one_is_none(axes):
    flat = axes.fresh(4, "flat")
    assert axes.split(flat, (1, 4), (True, True), "view") == (None, flat)
    assert axes.split(flat, (4, 1), (True, True), "view") == (flat, None)
    assert axes.split(None, (2, 2), (True, True), "view") == (None, None)


def test_a_fixed_factor_tells_indices_apart_but_cannot_go(axes):
    flat = axes.fresh(6, "qkv")
    three, each = axes.split(flat, (3, 2), (False, True), "view")
    assert axes.is_fixed(axes.resolve(three)).all()
    assert not axes.is_fixed(axes.resolve(each)).any()
    assert len({tuple(row) for row in resolved(axes, flat)}) == 6
    axes.unify(flat[:2], flat[2:4], "matmul")  # q and k: one axis, still told apart
    assert not axes.frozen()
    assert not same(axes, flat[:2], flat[2:4])


def test_a_factor_that_was_there_is_frozen_if_its_length_is_fixed(axes):
    heads, each = axes.fresh(2, "heads"), axes.fresh(3, "each")
    axes.split(merge([(heads, 2), (each, 3)]), (2, 3), (False, True), "shuffle")
    assert all("fixed number of parts" in reason for reason in reasons(axes, heads))
    assert reasons(axes, each) == [None] * 3


def test_split_across_a_border_of_a_concatenation_keeps_all_right(axes):
    """Four and five channels, viewed as three times three: an index goes with its row or its column."""
    a, b = axes.fresh(4, "a"), axes.fresh(5, "b")
    outer, inner = axes.split(stack([(a, 4), (b, 5)]), (3, 3), (True, True), "view")
    assert same(axes, np.concatenate([a, b]), merge([(outer, 3), (inner, 3)]))


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_frozen_atoms_keep_their_first_reason(axes):
    a, b = axes.fresh(2, "a"), axes.fresh(2, "b")
    axes.freeze(a, "first")
    axes.freeze(a, "second")
    axes.unify(b, a, "tied")
    assert reasons(axes, a) == ["first", "first"]
    assert reasons(axes, b) == ["tied", "tied"]


def test_freezing_an_atom_later_bound_freezes_its_factors(axes):
    flat = axes.fresh(6, "flat")
    axes.freeze(flat[:1], "output")
    outer, inner = axes.split(flat, (2, 3), (True, True), "view")
    assert reasons(axes, outer) == ["output", None]
    assert reasons(axes, inner) == ["output", None, None]


def test_what_meets_something_without_axes_is_frozen(axes):
    a = axes.fresh(2, "a")
    axes.unify(a, None, "meets a constant")
    assert reasons(axes, a) == ["meets a constant"] * 2
    axes.unify(None, None, "nothing")
    axes.freeze(None, "nothing")
    assert set(axes.frozen().values()) == {"meets a constant"}


# -- a free atom that meets a bound one --------------------------------------------------------------------------------


def bound(axes: Axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A dimension of 6 bound to (2, 3), and both factors."""
    whole = axes.fresh(6, "whole")
    outer, inner = axes.split(whole, (2, 3), (True, True), "view")
    return whole, outer, inner


@pytest.mark.parametrize("turned", [False, True])
def test_new_atoms_join_bound_ones(axes, turned):
    whole, outer, inner = bound(axes)
    new = axes.fresh(6, "new")
    axes.unify(*((new, whole) if turned else (whole, new)), "add")
    assert resolved(axes, new) == resolved(axes, whole) == [[int(o), int(i)] for o in outer[:, 0] for i in inner[:, 0]]
    axes.table()
    assert resolved(axes, new) == resolved(axes, whole)


def test_one_atom_for_two_bound_ones_unifies_these(axes):
    whole, outer, _ = bound(axes)
    one = axes.fresh(1, "one")
    axes.unify(np.repeat(one, 2, axis=0), whole[[0, 3]], "add")  # (0, 0) and (1, 0)
    assert same(axes, outer[:1], outer[1:])
    assert not axes.frozen()


def test_a_factor_of_the_product_cannot_join_it(axes):
    whole, _, inner = bound(axes)
    axes.unify(inner, whole[:3], "add")
    assert set(axes.frozen().values()) == {"add"}


def test_new_atoms_leave_out_what_stays(axes):
    whole = axes.fresh(6, "qkv")
    axes.split(whole, (2, 3), (False, True), "view")  # the outer factor only tells indices apart
    new = axes.fresh(6, "new")
    axes.unify(whole, new, "add")
    assert [len(row) for row in resolved(axes, whole)] == [2] * 6
    assert [len(row) for row in resolved(axes, new)] == [1] * 6
