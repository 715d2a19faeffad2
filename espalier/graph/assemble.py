"""From labels to a graph: atoms that always occur together, in the same blocks, are the channels of one group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from espalier.graph.graph import ChannelGraph, Dim, Group, Mask, Rescale, Term
from espalier.graph.labels import KERNEL, Attention, Labels, Product
from espalier.graph.rows import Array, Rows


def assemble(labels: Labels, tensors: Mapping[str, Tensor], buffers: frozenset[str]) -> ChannelGraph:
    """The graph of a finished trace.

    Args:
        labels: of all passes, with constraints settled.
        tensors: parameters and buffers by name.
        buffers: the names that are buffers.
    """
    graph = ChannelGraph()
    atoms = _Atoms(labels, graph)
    graph.buffers = buffers
    graph.element_size = next((t.element_size() for t in tensors.values() if t.is_floating_point()), graph.element_size)
    graph.tensors = {name: atoms.dims(labels.parameters.get(name), tensor) for name, tensor in tensors.items()}
    graph.attributes = {
        path: dim
        for path, (rows, size) in labels.constraints.attributes.items()
        if isinstance(dim := atoms.dim(rows, size), Dim)
    }
    graph._work = [atoms.term(product) for product in labels.work]
    graph._activations = [atoms.term(product) for product in labels.activations]
    for event in labels.attention:
        found = atoms.rescale(event)
        if found is not None and not any(_same(found, known) for known in graph.rescales):
            graph.rescales.append(found)
    return graph


def _same(one: Rescale, other: Rescale) -> bool:
    """Traced twice, in evaluation and in training mode, or one layer in two places."""
    equal = one.module == other.module and one.names == other.names
    return equal and all(np.array_equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))


class _Atoms:
    """Atoms of a trace as (group, channel)."""

    def __init__(self, labels: Labels, graph: ChannelGraph) -> None:
        self.labels, self.axes = labels, labels.axes
        self._known: dict[tuple[tuple[int, ...], bytes], Dim | int] = {}
        self.group, self.channel = self._grouped(graph)

    def _grouped(self, graph: ChannelGraph) -> tuple[Array, Array]:
        axes = self.axes
        rows = axes.table()
        reasons = axes.frozen()
        in_parameters = {atom for atom in self._roots_of_parameters() if reasons.get(atom) != KERNEL}
        frozen = {atom: why for atom, why in reasons.items() if atom in in_parameters}
        inexact = self._inexact_roots()
        signature = self._signatures(rows)
        found: dict[tuple[int, bool], list[int]] = {}
        for atom in sorted(in_parameters):
            found.setdefault((int(signature[atom]), atom in frozen), []).append(atom)
        free = [a for (_, is_frozen), a in found.items() if not is_frozen and len(a) > 1]
        stuck = [a for (_, is_frozen), a in found.items() if is_frozen or len(a) == 1]
        group, channel = np.full(axes.count + 1, -1), np.full(axes.count + 1, -1)
        names = self._names([*free, *stuck])
        made: list[Group] = []
        for number, members in enumerate([*free, *stuck]):
            group[members], channel[members] = number, np.arange(len(members))
            reason = None if number < len(free) else frozen.get(members[0], "all its channels depend on one another")
            made.append(Group(graph, names[number], len(members), reason, members[0] not in inexact))
        graph.groups, graph.frozen = tuple(made[: len(free)]), tuple(made[len(free) :])
        return group, channel

    def _roots_of_parameters(self) -> set[int]:
        every = self.axes.atoms_in(rows for dims in self.labels.parameters.values() for rows in dims)
        return set(every[~self.axes.is_fixed(every)].tolist())  # q, k and v are no channels

    def _inexact_roots(self) -> set[int]:
        lengths = self.labels.constraints.used_as_real()
        return set(self.axes.atoms_in([*(rows for rows, _ in self.labels.inexact), *lengths]).tolist())

    def _signatures(self, rows: Array) -> NDArray[np.uint64]:
        """One number per root for the set of blocks that it occurs in."""
        hashes = np.random.default_rng(0).integers(1, 2**62, len(self.axes.blocks) + 1).astype(np.uint64)
        block = np.broadcast_to(self.axes.block_of(len(rows))[:, None], rows.shape)[rows >= 0]
        count = len(self.axes.blocks)
        pairs = np.sort(rows[rows >= 0] * count + block)
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        signature = np.zeros(self.axes.count + 1, dtype=np.uint64)
        np.add.at(signature, pairs // count, hashes[pairs % count])
        return signature

    def _names(self, groups: list[list[int]]) -> list[str]:
        counted: dict[int, str] = {}
        for path, (rows, _) in self.labels.constraints.attributes.items():
            if rows is not None and len(first := self.axes.atoms_in([rows[:1]])) == 1:
                counted.setdefault(int(first[0]), path)
        names: list[str] = []
        used: dict[str, int] = {}
        for members in groups:
            block = self._maker(members[0])
            name = block.rsplit(".", 1)[0] if ":" in block and "." in block else block.split(":")[0]
            if block.endswith("]") and members[0] in counted:
                name = counted[members[0]]
            used[name] = used.get(name, 0) + 1
            names.append(name if used[name] == 1 else f"{name}#{used[name]}")
        return names

    def _maker(self, atom: int) -> str:
        """The block that an atom is named after: the first, unless that only reads the channels and another makes them."""
        blocks, block_of = self.axes.blocks, self.axes.block_of(self.axes.count)
        first: str = blocks[int(block_of[atom])]
        if ":" not in first or first.endswith(":0"):
            return first
        every = [blocks[block] for block in np.unique(block_of[(self.axes.table() == atom).any(1)]).tolist()]
        return next((block for block in every if block.endswith("weight:0")), first)

    # -- labels of the graph -------------------------------------------------------------------------------------

    def dim(self, rows: Rows, size: int) -> Dim | int:
        """The label of one dimension; a plain length if no group touches it."""
        if rows is None:
            return size
        key = (rows.shape, rows.tobytes())  # equal rows are made again and again
        if key not in self._known:
            resolved = self.axes.resolve(rows)
            groups = self.group[resolved]
            self._known[key] = Dim(groups, self.channel[resolved]) if (groups >= 0).any() else len(rows)
        return self._known[key]

    def dims(self, rows: list[Rows] | None, tensor: Tensor) -> tuple[Dim | int, ...]:
        """The labels of a parameter or buffer."""
        if rows is None:
            return tuple(tensor.shape)
        return tuple(self.dim(r, size) for r, size in zip(rows, tensor.shape, strict=True))

    def term(self, product: Product) -> Term:
        """Work with labels of the graph."""
        return Term(product.module, product.op, tuple(self.dim(rows, size) for rows, size in product.lengths))

    def rescale(self, event: Attention) -> Rescale | None:
        """Which rows of which parameters compute the query."""
        width = self.dim(event.width, 0)
        if not isinstance(width, Dim):
            return None
        fixed = self._fixed_in(*event.dims, *event.source.given)
        masks: list[Mask] = []
        source = event.source
        for name, dim in zip(source.names, source.dims, strict=True):
            rows = self.labels.parameters[name][dim]
            resolved = np.empty((0, 1), dtype=np.int64) if rows is None else self.axes.resolve(rows)
            foreign = self.axes.is_fixed(resolved) & ~np.isin(resolved, fixed)
            masks.append(np.asarray(~foreign.any(1)) if source.part is None else ~foreign.any(1) & source.part)
        return Rescale(event.module, source.names, source.dims, masks, width)

    def _fixed_in(self, *dims: Rows) -> Array:
        atoms = [self.axes.resolve(rows).ravel() for rows in dims if rows is not None]
        every = np.concatenate(atoms) if atoms else np.empty(0, dtype=np.int64)
        return every[self.axes.is_fixed(every)]
