"""The atoms of a trace: which are one (union-find), which are products of others, which have to stay.

What atoms and rows are is told in ``axes.py``. All is written for few calls on long arrays: a trace asks thousands of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from espalier.graph.rows import Array, Rows, equal, stack, tidy

MANY = 4096
ROOM = 16384  # atoms to begin with: what is not there need not be written

FACTORS = 8  # most atoms that one index may depend on

BOUND, FIXED, STUCK, PADDING = 1, 2, 4, 8  # bits of an atom's state; read at roots


class Atoms:
    """Atoms and what is known of each. Blocks are runs of atoms made together, or made of the atoms of others."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.shared: dict[int, tuple[Array, list[int]]] = {}  # by id of the rows: blocks made of atoms that others made
        self.count = 0
        self._parent = np.arange(ROOM)
        self._block = np.zeros(ROOM, dtype=np.int64)
        self._state = np.zeros(ROOM, dtype=np.uint8)
        self._place = np.zeros(ROOM, dtype=np.int64)  # of a bound atom in
        self._parts = np.empty((0, 0), dtype=np.int64)  # what bound atoms are products of, with room for more
        self._bound = 0  # so many
        self._marked = np.zeros(ROOM, dtype=bool)  # used for the time of one question
        self._parent[-1], self._state[-1] = -1, PADDING  # -1 is found in the last place, which no atom gets
        self._table: Array | None = None
        self._free: dict[int, Array] = {}  # rows that can be shared, by their id, until something changes

    # -- making ------------------------------------------------------------------------------------------------

    def fresh(self, size: int, name: str) -> Array:
        """Rows of ``size`` new atoms."""
        start, self.count = self.count, self.count + size
        while self.count >= len(self._parent):
            self._grow()
        self._block[start : self.count] = len(self.blocks)
        self.blocks.append(name)
        return np.arange(start, self.count)[:, None]

    def fresh_to_share(self, size: int, name: str) -> Array:
        """Rows of new atoms that other blocks are likely to have as well."""
        rows = self.fresh(size, name)
        self._free[id(rows)] = rows
        return rows

    def share(self, rows: Array, names: Sequence[str]) -> bool:
        """Let new blocks have the atoms of ``rows``, as if they had been made and unified with them. False, and nothing done,
        where that would say more than that they are one: what has to stay makes others stay."""
        if id(rows) not in self._free and not self._is_free(rows):
            return False
        blocks = self.shared.setdefault(id(rows), (rows, []))[1]
        blocks += range(len(self.blocks), len(self.blocks) + len(names))
        self.blocks += names
        self._free[id(rows)] = rows
        return True

    def _is_free(self, rows: Array) -> bool:
        """Whether each index has atoms, and none of them has to stay."""
        found = self.resolve(rows)
        state = self._state.take(found)
        if found.shape[1] == 1:
            return not np.count_nonzero(state)
        return found.shape[1] <= FACTORS and not np.count_nonzero(state & (FIXED | STUCK)) and not np.count_nonzero(state[:, 0])

    def fixed(self, size: int, name: str) -> Array:
        """Rows of ``size`` new atoms that nothing can remove but that tell indices apart (q, k and v of a fused qkv)."""
        rows = self.fresh(size, name)
        self._state[rows] = FIXED
        return rows

    def _grow(self) -> None:
        room = len(self._parent)
        self._parent = np.concatenate([self._parent[:-1], np.arange(room - 1, 2 * room)])
        self._block = np.concatenate([self._block, np.zeros(room, dtype=np.int64)])
        self._state = np.concatenate([self._state[:-1], np.zeros(room + 1, dtype=np.uint8)])
        self._place = np.concatenate([self._place, np.zeros(room, dtype=np.int64)])
        self._marked = np.zeros(2 * room, dtype=bool)
        self._parent[-1], self._state[-1] = -1, PADDING

    # -- looking up --------------------------------------------------------------------------------------------

    def resolve(self, rows: Array) -> Array:
        """The same rows in terms of free atoms: followed through unions and bindings, left-justified, without repeats."""
        if self._table is not None and len(self._table) == self.count + 1:
            return _replaced(rows, self._table)
        if rows.size > MANY:
            return self._resolve_many(rows)
        rows = self._find(rows)
        if not self._parts.shape[1]:  # nothing was ever bound
            return rows
        while count := np.count_nonzero(bound := (self._state[rows] & BOUND) > 0):
            if count == len(rows) and rows.shape[1] == 1:  # (n, 1) -> (n, factors)
                rows = tidy(self._find(self._parts[self._place[rows[:, 0]]]))
                continue
            expanded = np.where(bound[..., None], self._parts[self._place[rows]], -1)
            expanded[..., 0] = np.where(bound, expanded[..., 0], rows)
            rows = tidy(self._find(expanded.reshape(len(rows), rows.shape[1] * self._parts.shape[1])))
        return rows

    def _resolve_many(self, rows: Array) -> Array:
        """Long rows repeat few atoms: resolve each of those once."""
        atoms = self.listed([rows])
        if len(atoms) > MANY:
            self.table()
            return self.resolve(rows)
        place = np.full(self.count + 1, len(atoms))
        place[atoms] = np.arange(len(atoms))
        return _replaced(place[rows], _with_padding(self.resolve(atoms[:, None])))

    def listed(self, every: Iterable[Rows]) -> Array:
        """The atoms in several rows, each once, in order."""
        hit = np.zeros(self.count + 1, dtype=bool)  # the last place is that of the padding
        for rows in every:
            if rows is not None:
                hit[rows] = True
        return np.flatnonzero(hit[:-1])

    def atoms_in(self, every: Iterable[Rows]) -> Array:
        """The free atoms in several rows, each once, in order."""
        return self.listed([self.table()[self.listed(every)]])

    def table(self) -> Array:
        """All atoms, resolved; kept until something changes."""
        if self._table is None or len(self._table) != self.count + 1:
            every = np.arange(self.count)
            roots = self._find(every)
            bound = np.flatnonzero((roots == every) & ((self._state[: self.count] & BOUND) > 0))
            parts = [self.resolve(bound[start : start + MANY, None]) for start in range(0, len(bound), MANY)]
            made = stack([(part, len(part)) for part in parts])
            found = np.full((self.count, 1 if made is None else made.shape[1]), -1)
            found[:, 0] = every
            if made is not None:
                found[bound] = made
            self._table = _with_padding(found[roots])
        return self._table[:-1]

    def _find(self, atoms: Array) -> Array:
        """Roots of atoms; that of the padding is the padding."""
        found = self._parent[atoms]
        above = self._parent[found]
        if equal(above, found):
            return found
        while not equal(above, found):
            found, above = above, self._parent[above]
        self._parent[atoms] = found
        return found

    def _overlap(self, one: Array, other: Array) -> bool:
        """Whether two arrays have an atom in common."""
        self._marked[other] = True
        found = bool(self._marked[one].any())
        self._marked[other] = False
        return found

    def block_of(self, count: int) -> Array:
        """The block of each of the first ``count`` atoms."""
        return self._block[:count]

    def is_fixed(self, atoms: Array) -> NDArray[np.bool_]:
        """Which free atoms only tell indices apart."""
        return (self._state[atoms] & FIXED) > 0

    def _changed(self) -> None:
        """What was looked up may be otherwise now."""
        self._table = None
        self._free.clear()

    # -- joining -----------------------------------------------------------------------------------------------

    def _union(self, a: Array, b: Array) -> None:
        """Make roots one."""
        while not equal(a, b):
            self._changed()
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low
            if equal(self._parent[high], low):
                return
            a, b = self._find(low), self._find(high)  # one root for several others: only the last of them has it
            apart = a != b  # what is one by now must not write over the others
            a, b = a[apart], b[apart]

    def _bind_to(self, atoms: Array, rows: Array) -> None:
        """Roots become the products of the atoms in their rows."""
        self._place[atoms] = np.arange(self._bound, self._bound + len(atoms))
        self._note_products(rows)
        self._changed()
        self._state[atoms] |= BOUND

    def _note_products(self, rows: Array) -> None:
        """Take down what further atoms are bound to."""
        start, end = self._bound, self._bound + len(rows)
        room, width = self._parts.shape
        if end > room or rows.shape[1] > width:
            wider = np.full((max(room, 2 * end), max(width, rows.shape[1])), -1)
            wider[:start, :width] = self._parts[:start]
            self._parts = wider
        self._parts[start:end, : rows.shape[1]] = rows
        self._bound = end


def _with_padding(table: Array) -> Array:
    """A last row, found at -1, that is nothing but padding."""
    return np.concatenate([table, np.full((1, table.shape[1]), -1)])


def _replaced(rows: Array, table: Array) -> Array:
    """Each atom of the rows replaced by the row that a table has for it."""
    if rows.shape[1] > 1:
        return tidy(table[rows].reshape(len(rows), rows.shape[1] * table.shape[1]))
    found = table[rows[:, 0]]
    if table.shape[1] == 1:
        return found
    width = table.shape[1]
    while width > 1 and not np.count_nonzero(found[:, width - 1] >= 0):  # left-justified, so empty columns are last
        width -= 1
    return found[:, :width]
