"""From labels to a graph: atoms that always occur together, in the same blocks, are the channels of one group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from espalier.graph.graph import ChannelGraph, Dim, Group, Mask, Rescale, Term
from espalier.graph.labels import KERNEL, Attention, Labels, Product
from espalier.graph.rows import Array, Rows, stack


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


def _every_rows(labels: Labels) -> dict[int, Array]:
    """All rows that get a label, by ``id``: the labels of the trace hold them all, so that it stays unique."""
    found = {id(rows): rows for dims in labels.parameters.values() for rows in dims if rows is not None}
    for products in (labels.work, labels.activations):
        found.update({id(rows): rows for product in products for rows, _ in product.lengths if rows is not None})
    others = [*(rows for rows, _ in labels.constraints.attributes.values()), *(event.width for event in labels.attention)]
    return found | {id(rows): rows for rows in others if rows is not None}


SMALL = 2**31 - 1  # smaller numbers are sorted in half the time


class _Atoms:
    """Atoms of a trace as (group, channel)."""

    def __init__(self, labels: Labels, graph: ChannelGraph) -> None:
        self.labels, self.axes = labels, labels.axes
        self._sharing = {blocks[0]: blocks for _, blocks in self.axes.shared.values()}
        self._roots, self._blocks = self._occurrences()
        self.group, self.channel = self._grouped(graph)
        self._dims = self._labelled(_every_rows(labels))

    def _grouped(self, graph: ChannelGraph) -> tuple[Array, Array]:
        axes, event, reasons = self.axes, self.axes.frozen_by(), self.axes.reasons()
        atoms = self._roots_of_parameters(event)
        inexact = self._inexact_roots()
        kinds = self._alike(atoms, event[atoms] >= 0)
        free = [members for members in kinds if event[members[0]] < 0 and len(members) > 1]
        stuck = [members for members in kinds if event[members[0]] >= 0 or len(members) == 1]
        group, channel = np.full(axes.count + 1, -1), np.full(axes.count + 1, -1)
        made: list[Group] = []
        for number, (members, name) in enumerate(zip([*free, *stuck], self._names([*free, *stuck]), strict=True)):
            group[members], channel[members] = number, np.arange(len(members))
            frozen = reasons[event[members[0]]] if event[members[0]] >= 0 else "all its channels depend on one another"
            made.append(Group(graph, name, len(members), None if number < len(free) else frozen, not inexact[members[0]]))
        graph.groups, graph.frozen = tuple(made[: len(free)]), tuple(made[len(free) :])
        return group, channel

    def _roots_of_parameters(self, event: Array) -> Array:
        """Free atoms in parameters, in order; q, k and v are no channels, and neither are the places of a kernel."""
        every = self.axes.atoms_in(rows for dims in self.labels.parameters.values() for rows in dims)
        kernel = np.array([*(reason == KERNEL for reason in self.axes.reasons()), False])  # the last: not frozen, -1
        chosen: Array = every[~self.axes.is_fixed(every) & ~kernel[event[every]]]
        return chosen

    def _inexact_roots(self) -> Mask:
        lengths = self.labels.constraints.used_as_real()
        inexact = np.zeros(self.axes.count, dtype=bool)
        inexact[self.axes.atoms_in([*(rows for rows, _ in self.labels.inexact), *lengths])] = True
        return inexact

    def _occurrences(self) -> tuple[Array, Array]:
        """Every root with every block that it occurs in, sorted. Of blocks that share their rows only the first is there."""
        axes, shift = self.axes, len(self.axes.blocks).bit_length()
        table = axes.table()
        parts = [(table, axes.block_of(len(table)))]
        for width in {rows.shape[1] for rows, _ in axes.shared.values()}:
            some = [(rows, blocks[0]) for rows, blocks in axes.shared.values() if rows.shape[1] == width]
            block = np.repeat([first for _, first in some], [len(rows) for rows, _ in some])
            parts.append((axes.resolve(np.concatenate([rows for rows, _ in some])), block))
        columns = [(column, block) for rows, block in parts for column in rows.T]
        found = np.concatenate([column << shift | block for column, block in columns])  # a root and a block in one number
        found = np.sort(found if axes.count << shift > SMALL else found.astype(np.int32))
        first = np.searchsorted(found, 0)  # padding is below
        found = found[first:][np.diff(found[first:], prepend=-1) > 0].astype(np.int64)
        return found >> shift, found & (1 << shift) - 1

    def _alike(self, atoms: Array, frozen: Mask) -> list[Array]:
        """Atoms that occur in the same blocks, frozen ones apart: one set after another, by their first."""
        if not len(atoms):
            return []
        hashes = np.random.default_rng(0).integers(1, 2**62, len(self.axes.blocks) + 1).astype(np.uint64)
        starts = np.flatnonzero(np.diff(self._roots, prepend=-1))
        signature = np.zeros(self.axes.count, dtype=np.uint64)  # one number for the set of blocks
        signature[self._roots[starts]] = np.add.reduceat(hashes[self._blocks], starts)
        kind = signature[atoms] * np.uint64(2) + frozen
        runs = np.flatnonzero(np.concatenate([[True], kind[1:] != kind[:-1]]))  # a group is few of them
        sets: dict[int, list[Array]] = {}  # by kind, in the order of their first atoms
        for which, members in zip(kind[runs].tolist(), np.split(atoms, runs[1:]), strict=True):
            sets.setdefault(which, []).append(members)
        return [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in sets.values()]

    def _names(self, groups: list[Array]) -> list[str]:
        counted = self._counted()
        names: list[str] = []
        used: dict[str, int] = {}
        for members in groups:
            maker = int(members[0])
            block = self._maker(maker)
            name = block.rsplit(".", 1)[0] if ":" in block and "." in block else block.split(":")[0]
            if block.endswith("]") and maker in counted:
                name = counted[maker]
            used[name] = used.get(name, 0) + 1
            names.append(name if used[name] == 1 else f"{name}#{used[name]}")
        return names

    def _counted(self) -> dict[int, str]:
        """Attributes that are the length of a dimension of single atoms, by the first of these."""
        lengths = {
            path: rows for path, (rows, _) in self.labels.constraints.attributes.items() if rows is not None and len(rows)
        }
        firsts = stack([(rows[:1], 1) for rows in lengths.values()])
        if firsts is None:
            return {}
        counted: dict[int, str] = {}
        for path, row in zip(lengths, self.axes.resolve(firsts).tolist(), strict=True):
            if sum(atom >= 0 for atom in row) == 1:
                counted.setdefault(max(row), path)
        return counted

    def _maker(self, atom: int) -> str:
        """The block that an atom is named after: the first, unless that only reads the channels and another makes them."""
        blocks = self.axes.blocks
        first: str = blocks[int(self.axes.block_of(atom + 1)[atom])]
        if ":" not in first or first.endswith(":0"):
            return first
        start, end = np.searchsorted(self._roots, [atom, atom + 1])
        every = sorted(number for block in self._blocks[start:end].tolist() for number in self._sharing.get(block, [block]))
        return next((blocks[number] for number in every if blocks[number].endswith("weight:0")), first)

    # -- labels of the graph -------------------------------------------------------------------------------------

    def _labelled(self, every: dict[int, Array]) -> dict[int, Dim | int]:
        """The label of each of many rows, by the same keys."""
        keys = {number: (rows.shape, rows.tobytes()) for number, rows in every.items()}
        distinct = {keys[number]: rows for number, rows in every.items() if len(rows)}  # equal ones are made again and again
        found: dict[Any, Dim | int] = {}
        for width in {rows.shape[1] for rows in distinct.values()}:
            some = {key: rows for key, rows in distinct.items() if rows.shape[1] == width}
            found.update(zip(some, self._together(list(some.values())), strict=True))
        return {number: found.get(key, 0) for number, key in keys.items()}

    def _together(self, every: list[Array]) -> Iterator[Dim | int]:
        """Labels of rows of one width, looked up in one go: a call of numpy for each would take most of the time."""
        ends = np.cumsum([len(rows) for rows in every])
        starts = ends - [len(rows) for rows in every]
        resolved = self.axes.resolve(np.concatenate(every))
        groups, channels = self.group[resolved], self.channel[resolved]
        used = np.maximum.reduceat(resolved, starts) >= 0  # (rows, factors): left-justified, so the last ones are empty
        carried = np.maximum.reduceat(groups, starts).max(1) >= 0
        widths = np.maximum(used.sum(1), 1)
        places = zip(starts.tolist(), ends.tolist(), widths.tolist(), carried.tolist(), strict=True)
        for start, end, width, is_carried in places:
            yield Dim(groups[start:end, :width], channels[start:end, :width]) if is_carried else end - start

    def dim(self, rows: Rows, size: int) -> Dim | int:
        """The label of one dimension; a plain length if no group touches it."""
        return size if rows is None else self._dims[id(rows)]

    def dims(self, rows: list[Rows] | None, tensor: Tensor) -> tuple[Dim | int, ...]:
        """The labels of a parameter or buffer."""
        if rows is None:
            return tuple(tensor.shape)
        known = self._dims
        return tuple([size if r is None else known[id(r)] for r, size in zip(rows, tensor.shape, strict=True)])

    def term(self, product: Product) -> Term:
        """Work with labels of the graph."""
        known = self._dims
        lengths = tuple([size if rows is None else known[id(rows)] for rows, size in product.lengths])
        return Term(product.module, product.op, lengths)

    def rescale(self, event: Attention) -> Rescale | None:
        """Which rows of which parameters compute the query."""
        width = self.dim(event.width, 0)
        if not isinstance(width, Dim):
            return None
        source = event.source
        told_apart = self._fixed_in(*event.dims, *source.given)
        masks: dict[int, Mask] = {}  # weight and bias usually have the same rows
        every = [self.labels.parameters[name][dim] for name, dim in zip(source.names, source.dims, strict=True)]
        for rows in every:
            if id(rows) not in masks:
                resolved = np.empty((0, 1), dtype=np.int64) if rows is None else self.axes.resolve(rows)
                foreign = self.axes.is_fixed(resolved) & ~told_apart[resolved]
                own = ~np.logical_or.reduce(foreign, axis=1)
                masks[id(rows)] = own if source.part is None else own & source.part
        return Rescale(event.module, source.names, source.dims, [masks[id(rows)] for rows in every], width)

    def _fixed_in(self, *dims: Rows) -> Mask:
        """Which of all atoms only tell indices apart, and are in any of these dimensions."""
        found = np.zeros(self.axes.count + 1, dtype=bool)
        for rows in dims:
            if rows is not None:
                resolved = self.axes.resolve(rows)
                found[resolved] = self.axes.is_fixed(resolved)
        return found
