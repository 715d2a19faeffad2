"""Which indices of which dimensions live and die together: union-find over atoms, with products.

An *atom* is something that can be removed: one channel, one head, one position inside every head. A dimension of length n is
described by *rows*, an integer array of shape (n, f): index i of the dimension goes as soon as any of the (up to f) atoms in
row i goes; -1 pads, and ``None`` stands for a dimension that nothing can shorten. A concatenation is a stack of rows, a
flattened product has one column per factor, a permutation is a permuted array: no other notion of structure is needed.

Two rows can be *unified* (they live and die together). An atom unified with a row of several atoms becomes bound to it:
the rows of a fused projection turn into (head, position) pairs when the code views them so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espalier.graph.again import AtomsAgain
from espalier.graph.atoms import BOUND, FACTORS, FIXED, MANY, STUCK
from espalier.graph.rows import Array, Rows, crossed, equal, merge, tidy


class Axes(AtomsAgain):
    """The atoms of one trace. Blocks are dimensions of parameters and factors of views."""

    def __init__(self) -> None:
        super().__init__()
        self.freezes: list[tuple[Array, str]] = []  # rows that stay, with the reason

    # -- joining -----------------------------------------------------------------------------------------------

    def unify(self, one: Rows, other: Rows, why: str) -> None:
        """Make index i of both die together, for all i. What meets an index that cannot die is frozen."""
        if one is other or (one is None and other is None):
            return
        if one is None or other is None:
            self.freeze(one if other is None else other, why)
            return
        if self._unite_single(one, other):
            return
        a, b = self._removable(one), self._removable(other)
        if equal(a, b):
            return
        count_a, count_b = (a >= 0).sum(1), (b >= 0).sum(1)
        self.freeze(a[(count_b == 0)], why)
        self.freeze(b[(count_a == 0)], why)
        single = (count_a == 1) & (count_b == 1)
        if single.any():
            self._union(a[single, 0], b[single, 0])
        for mine, theirs, choice in ((a, b, (count_a == 1) & (count_b > 1)), (b, a, (count_b == 1) & (count_a > 1))):
            if choice.any():
                self._bind(self._removable(mine[choice]), self._removable(theirs[choice]), why)
        many = (count_a > 1) & (count_b > 1)
        if many.any():
            self._unify_products(self._removable(a[many]), self._removable(b[many]), why)

    def _unite_single(self, one: Array, other: Array) -> bool:
        """The quick way where every index is one atom on both sides, and nothing has to stay. False if it is not so."""
        if one.shape != other.shape or one.shape[1] != 1:
            return False
        both = self._find(np.concatenate((one, other))[:, 0])
        a, b, state = both[: len(one)], both[len(one) :], self._state.take(both)
        if not np.count_nonzero(state):
            self._union(a, b)
            return True
        mine, theirs = state[: len(one)], state[len(one) :]
        if np.count_nonzero(mine):
            a, b, mine, theirs = b, a, theirs, mine
        if np.count_nonzero(mine):
            return False
        return not np.count_nonzero(theirs != BOUND) and self._join(a, b)

    def _join(self, atoms: Array, bound: Array) -> bool:
        """Free atoms become one with bound ones, if their products have nothing that stays, and nothing of their own."""
        factors = self.resolve(bound[:, None])
        if np.count_nonzero(self._state.take(factors) & (FIXED | STUCK)):
            return False
        if self._overlap(atoms, factors):
            return False
        self._parent[atoms] = bound
        if not equal(self._parent[atoms], bound):  # one atom for several bound ones: these have to be unified
            self._parent[atoms] = atoms
            return False
        self._changed()
        return True

    def _unify_products(self, a: Array, b: Array, why: str) -> None:
        if equal(a, b):
            return
        same = (a >= 0).sum(1) == (b >= 0).sum(1)
        if not same.all():
            self.freeze(a, f"{why}, and both are products of different factors")
            self.freeze(b, f"{why}, and both are products of different factors")
            return
        for column in range(min(a.shape[1], b.shape[1])):
            mine, theirs = self.resolve(a[:, column : column + 1]), self.resolve(b[:, column : column + 1])
            live = (a[:, column] >= 0) & (b[:, column] >= 0)
            self.unify(mine[live], theirs[live], why)

    def _bind(self, atoms: Array, rows: Array, why: str) -> None:
        """Each atom (n, 1) becomes the product of the atoms in its row."""
        if atoms.shape[1] != 1 or (atoms < 0).any() or self._overlap(atoms, rows):
            if equal(atoms, rows):
                return
            self.freeze(atoms, why)
            self.freeze(rows, why)
            return
        if rows.shape[1] > FACTORS:
            self.freeze(atoms, why)
            self.freeze(rows, why)
            return
        if _ascends(atoms[:, 0]):  # as those of a new block: each comes once
            self._bind_to(atoms[:, 0], rows)
            return
        first, where = np.unique(atoms[:, 0], return_index=True)
        again = np.setdiff1d(np.arange(len(atoms)), where, assume_unique=True)
        self._bind_to(first, rows[where])
        if len(again):
            self.unify(atoms[again], rows[again], why)

    # -- freezing ----------------------------------------------------------------------------------------------

    def freeze(self, rows: Rows, reason: str) -> None:
        """No index in ``rows`` may ever be removed."""
        if rows is not None and rows.size:
            if self.freezes and self.freezes[-1][0] is rows and self.freezes[-1][1] == reason:  # one index after the other
                return
            self.freezes.append((rows, reason))
            atoms = self.resolve(rows if rows.size <= MANY else self.listed([rows])[:, None])  # long rows repeat few atoms
            self._state[atoms[atoms >= 0]] |= STUCK
            self._free.clear()

    def frozen(self) -> dict[int, str]:
        """Free atoms that are frozen, with the first reason."""
        number = self.frozen_by()
        return {atom: self.freezes[number[atom]][1] for atom in np.flatnonzero(number >= 0).tolist()}

    def frozen_by(self) -> Array:
        """For each atom, the number of the first freeze that hit it as a free atom; -1 for none."""
        table, number = self.table(), np.full(self.count + 1, -1)
        first = {id(rows): event for event, (rows, _) in reversed(list(enumerate(self.freezes)))}
        for event in sorted(first.values(), reverse=True):
            rows = self.freezes[event][0]
            number[table[rows[rows >= 0] if rows.size <= MANY else self.listed([rows])]] = event
        return number[:-1]

    def reasons(self) -> list[str]:
        """Of all freezes, in order."""
        return [reason for _, reason in self.freezes]

    def _removable(self, rows: Array) -> Array:
        """Resolved rows without the atoms that stay anyway: frozen ones, and those that only tell indices apart."""
        rows = self.resolve(rows)
        staying = (self._state.take(rows) & (FIXED | STUCK)) > 0
        return tidy(np.where(staying, -1, rows)) if np.count_nonzero(staying) else rows

    # -- products ----------------------------------------------------------------------------------------------

    def split(self, rows: Rows, sizes: tuple[int, int], free: tuple[bool, bool], name: str) -> tuple[Rows, Rows]:
        """Rows of both factors of a dimension that is viewed as two.

        Args:
            rows: of the whole, of length sizes[0] * sizes[1].
            sizes: lengths of the outer and the inner factor.
            free: whether each factor may become shorter.
            name: what to call new factors.
        """
        if rows is None or sizes[0] == 1:
            return None, rows
        if sizes[1] == 1:
            return rows, None
        grid = self.resolve(rows).reshape(*sizes, -1)
        if not all(free) and self.is_fixed(grid).any() and crossed(grid):
            grid = self._tied(grid, free)  # told apart already: shuffles in a row would pile up factors
        outer: list[Array] = []
        inner: list[Array] = []
        for column in np.moveaxis(grid, -1, 0):
            if column[0, 0] == column[0, 1] and (column == column[:, :1]).all():
                outer.append(column[:, 0])
                self._keep_unless(free[0], column[:, :1], name)
            elif column[0, 0] == column[1, 0] and (column == column[:1]).all():
                inner.append(column[0])
                self._keep_unless(free[1], column[0][:, None], name)
            else:
                one, two = self._factors(column, sizes, free, name)
                outer.append(one[:, 0])
                inner.append(two[:, 0])
        return self._stacked(outer), self._stacked(inner)

    def divided(self, rows: Array, sizes: tuple[int, int]) -> tuple[Rows, Rows] | None:
        """Rows of both factors of a dimension that is the product of two such lengths already; None if it is not."""
        if 1 in sizes or crossed(self.resolve(rows).reshape(*sizes, -1)):
            return None
        return self.split(rows, sizes, (True, True), "")

    def _keep_unless(self, may: bool, rows: Array, name: str) -> None:
        """Freeze a factor that was there already, if the code fixes its length."""
        if not may:
            self.freeze(rows, f"it is divided into a fixed number of parts ({name})")

    def _tied(self, grid: Array, free: tuple[bool, bool]) -> Array:
        """Make all rows of a grid one, or all columns, or both."""
        for whole, axis in ((not free[0], 0), (not free[1], 1)):
            if whole:
                first = np.broadcast_to(np.take(grid, [0], axis=axis), grid.shape).reshape(-1, grid.shape[-1])
                self.unify(first, grid.reshape(-1, grid.shape[-1]), "its parts have to lose the same places")
        shape = grid.shape[:2]
        return self._removable(grid.reshape(-1, grid.shape[-1])).reshape(*shape, -1)

    def _factors(self, grid: Array, sizes: tuple[int, int], free: tuple[bool, bool], name: str) -> tuple[Array, Array]:
        """Bind a grid of atoms to the product of two new blocks."""
        made = [(self.fresh if may else self.fixed)(size, f"{name}[{place}]")
                for size, may, place in zip(sizes, free, ("outer", "inner"), strict=True)]  # fmt: skip
        product = merge([(made[0], sizes[0]), (made[1], sizes[1])])
        assert product is not None
        why = f"its parts overlap ({name})"
        whole = self.resolve(grid.reshape(-1, 1))
        if whole.shape[1] > 1 or int(whole.min()) < 0:
            self.freeze(whole, why)
            self.freeze(product, why)
        elif _ascends(whole[:, 0]):  # each comes once
            self._bind_to(whole[:, 0], product)
        else:  # not unified: that would forget the atoms that only tell indices apart
            self._bind(whole, product, why)
        return made[0], made[1]

    def _stacked(self, columns: Sequence[Array]) -> Rows:
        if not columns:
            return None
        rows = np.stack(columns, axis=1)
        if len(columns) > 1:  # a single one is resolved or new
            rows = self.resolve(tidy(rows))
        return rows if (rows >= 0).any() else None


def _ascends(atoms: Array) -> bool:
    return bool(np.count_nonzero(atoms[1:] > atoms[:-1]) == len(atoms) - 1)
