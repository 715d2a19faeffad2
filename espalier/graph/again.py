"""Atoms that can be made again: the same steps, once more, on new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.graph.atoms import Atoms
from espalier.graph.rows import Array


@dataclass(frozen=True)
class Mark:
    """How many atoms and blocks there were at one time, and how things stood with them."""

    atoms: int
    blocks: int
    bound: int
    roots: Array
    state: NDArray[np.uint8]  # of the roots
    shared: dict[int, int]  # how many blocks share rows, by their id


@dataclass(frozen=True)
class Made:
    """The atoms and blocks that were made since."""

    mark: Mark
    roots: Array
    block: Array
    state: NDArray[np.uint8]
    place: Array
    parts: Array
    blocks: list[str]
    shared: list[tuple[Array, list[int]]]


class AtomsAgain(Atoms):
    """Atoms that remember how things stood."""

    def state_of(self, rows: Array) -> tuple[Any, ...]:
        """All that decides what can become of rows, as a value to compare."""
        found, resolved = self._find(rows), self.resolve(rows)
        arrays = (found, self._state[found], resolved, self._state[resolved])
        return rows.shape, resolved.shape, *[array.tobytes() for array in arrays]

    def mark(self) -> Mark:
        """How things stand."""
        roots = self._find(np.arange(self.count))
        shared = {number: len(blocks) for number, (_, blocks) in self.shared.items()}
        return Mark(self.count, len(self.blocks), self._bound, roots, self._state[roots], shared)

    def is_as_at(self, mark: Mark) -> bool:
        """Whether things stand with the atoms of that time as they did."""
        roots = self._find(np.arange(mark.atoms))
        return np.array_equal(roots, mark.roots) and np.array_equal(self._state[roots], mark.state)

    def made_since(self, mark: Mark) -> Made:
        """What came after."""
        new = slice(mark.atoms, self.count)
        shared = [
            (rows, [block - mark.blocks for block in blocks[mark.shared.get(number, 0) :]])
            for number, (rows, blocks) in self.shared.items()
            if len(blocks) > mark.shared.get(number, 0)
        ]
        roots = self._find(np.arange(mark.atoms, self.count))
        block, state, place = self._block[new].copy(), self._state[new].copy(), self._place[new].copy()
        parts = self._parts[mark.bound : self._bound].copy()
        return Made(mark, roots, block, state, place, parts, self.blocks[mark.blocks :], shared)

    def make_again(self, made: Made, moved: Callable[[Array], Array], names: Sequence[str]) -> None:
        """Make the like of atoms that were made before.

        Args:
            made: before.
            moved: tells for rows of theirs the new ones.
            names: of the new blocks.
        """
        start, first, mark = self.count, len(self.blocks), made.mark
        self.count += len(made.roots)
        while self.count >= len(self._parent):
            self._grow()
        new = slice(start, self.count)
        self._parent[new] = moved(made.roots)
        self._block[new] = made.block + (first - mark.blocks)
        self._state[new] = made.state
        self._place[new] = made.place + (self._bound - mark.bound)
        self._note_products(moved(made.parts))
        self.blocks += names
        for rows, blocks in made.shared:
            like = moved(rows)
            self.shared.setdefault(id(like), (like, []))[1].extend(first + block for block in blocks)
        self._changed()
