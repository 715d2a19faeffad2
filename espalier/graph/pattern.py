"""What labelling does for a block, written down to be done again for another."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph.again import Made
from espalier.graph.calls import Call
from espalier.graph.held import Held
from espalier.graph.labels import Labels, Source
from espalier.graph.meta.operations import META
from espalier.graph.modes import without_operations
from espalier.graph.moved import PATH, Marked, Moved, OfOthers
from espalier.graph.repeats import described
from espalier.graph.rows import Rows

SETTINGS = frozenset({type(None), bool, float, str})  # arguments that the description tells all of


@dataclass
class Block:
    """A call of a block, and all that decides what labelling does."""

    call: Call
    key: Any
    objects: list[Tensor | nn.Module]  # that the description is of
    given: list[Tensor]
    names: list[str]  # of its parameters, buffers and modules, below its path
    state: list[Any]  # of the labels of what it is given

    @classmethod
    def of(cls, labels: Labels, call: Call, known: Mapping[int, str]) -> Block | None:
        """None if that is not the whole story: all that is inside must be of this block alone, and met for the first time.

        Args:
            labels: of the pass.
            call: of the block.
            known: the paths of all modules, by their id.
        """
        given = [value for value in (*call.args, *call.kwargs.values()) if type(value) not in SETTINGS]
        if any(type(value) is not Tensor for value in given):
            return None
        if any(labels.source_of(value) is not None or labels.weight_name(value) is not None for value in given):
            return None
        found = described([call.args, call.kwargs, call.module])
        if found is None:
            return None
        key, objects = found
        start = f"{call.path}."
        names: list[str] = []
        for value in objects:
            if value is call.module or any(value is each for each in given):
                continue
            name = labels.name_of(value) if isinstance(value, Tensor) else known.get(id(value))
            if name is None or not name.startswith(start) or name in labels.parameters:
                return None
            names.append(name[len(start) :])
        if any(path.startswith(start) for path in labels.constraints.attributes):
            return None
        state = [rows if rows is None else labels.axes.state_of(rows) for value in given for rows in labels.of(value)]
        return cls(call, key, objects, given, names, state)

    def is_as_described(self) -> bool:
        """Whether it still holds the same."""
        found = described([self.call.args, self.call.kwargs, self.call.module])
        return found is not None and found[0] == self.key and all(map(operator.is_, found[1], self.objects))


class Before:
    """How things were before a block was labelled."""

    def __init__(self, labels: Labels, block: Block, homes: Sequence[Any]) -> None:
        self.labels, self.block = labels, block
        self.lengths = [len(each) for each in (*_lists(labels), *_tables(labels))]
        self.faults, self.serial, self.multiplied = len(labels.faults), labels.serial, set(labels.multiplied)
        self.homes = Held(homes, objects=False)  # these are among them
        self.atoms = labels.axes.mark()
        self.told = [self._told(tensor) for tensor in block.given]

    def _told(self, tensor: Tensor) -> tuple[list[Rows], Source | None, int]:
        return list(self.labels.of(tensor)), self.labels.source_of(tensor), self.labels.newest(tensor)

    def _nothing_else(self) -> bool:
        """Whether no more has changed than what grows while labels are made."""
        labels, block = self.labels, self.block
        for tensor, (dims, source, newest) in zip(block.given, self.told, strict=True):
            now = self._told(tensor)
            if now[1:] != (source, newest) or not all(map(operator.is_, now[0], dims)):
                return False
        kept = block.is_as_described() and self.homes.is_same()
        return kept and len(labels.faults) == self.faults and labels.axes.is_as_at(self.atoms)

    def pattern(self, out: Any, asking: list[Call]) -> Pattern | None:
        """What was done for the block; None if not only things of its own have changed, or not all can be told."""
        labels, block = self.labels, self.block
        if not self._nothing_else():
            return None
        results = out if type(out) is tuple else (out,)
        if not all(self._is_new(result) for result in results) or len(set(map(id, results))) < len(results):
            return None
        lists, tables = _lists(labels), _tables(labels)
        new = [each[length:] for each, length in zip(lists, self.lengths, strict=False)]
        new += [list(each.items())[length:] for each, length in zip(tables, self.lengths[len(lists) :], strict=True)]
        made = labels.axes.made_since(self.atoms)
        returned = [(labels.of(result), labels.source_of(result), labels.newest(result)) for result in results]
        multiplied = [serial for serial in labels.multiplied if serial not in self.multiplied]
        if any(serial <= self.serial for serial in multiplied):
            return None
        try:
            marked = Marked(block.call.path, self.serial, self.atoms.atoms)
            written = marked.mapped([new, made.blocks, returned])
        except OfOthers:
            return None
        if any(PATH not in name for table in written[0][len(lists) :] for name, _ in table):
            return None
        rows = [rows for dims, _, _ in self.told for rows in dims]
        layouts = [(result.shape, result.stride(), result.dtype) for result in results]
        serials = self.serial, labels.serial
        is_tuple = type(out) is tuple
        return Pattern(block, self.homes, rows, made, written, marked.own, multiplied, serials, layouts, is_tuple, asking)

    def _is_new(self, result: Any) -> bool:
        labels = self.labels
        if type(result) is not Tensor or any(result is given for given in self.block.given):
            return False
        return result.is_meta and labels.weight_name(result) is None and labels.newest(result) > self.serial


def _lists(labels: Labels) -> list[list[Any]]:
    """All that grows while labels are made."""
    return [labels.work, labels.activations, labels.attention, labels.inexact, *labels.constraints.lists, labels.axes.freezes]


def _tables(labels: Labels) -> list[dict[str, Any]]:
    return [labels.parameters, labels.constraints.attributes]


@dataclass
class Pattern:
    """What labelling has done for a block."""

    block: Block
    homes: Held  # what was kept where code may keep what all blocks share
    given: list[Rows]
    made: Made
    written: Any  # what lists and tables have got, the names of blocks, the labels of the results
    own: dict[int, bool]  # whether rows in that are of atoms of the block alone, by their id
    multiplied: list[int]
    serials: tuple[int, int]  # of the last call of a layer before, and of the block's last
    layouts: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]  # of the results
    is_tuple: bool
    asking: list[Call]  # those that have read ``training``

    def fits(self, block: Block) -> bool:
        """Whether it would do the same for another."""
        return self.block.names == block.names and self.block.state == block.state and self.homes.is_same()

    def repeat(self, labels: Labels, block: Block) -> Any:
        """Do it for another. Returns what that returns."""
        axes, start = labels.axes, self.made.mark.atoms
        dims = [rows for value in block.given for rows in labels.of(value)]
        known = {id(mine): rows for mine, rows in zip(self.given, dims, strict=True) if mine is not None and rows is not None}
        (before, last), shift = self.serials, labels.serial - self.serials[0]
        moved = Moved(block.call.path, start, axes.count - start, shift, known, self.own)
        new, names, returned = moved.mapped(self.written)
        axes.make_again(self.made, moved.rows, names)
        lists = _lists(labels)
        for each, added in zip(lists, new, strict=False):
            each += added
        for table, added in zip(_tables(labels), new[len(lists) :], strict=True):
            table.update(added)
        labels.multiplied.update(map(moved.serial, self.multiplied))
        labels.serial += last - before
        results: list[Tensor] = []
        for (shape, stride, dtype), (rows, source, newest) in zip(self.layouts, returned, strict=True):
            results.append(_empty(shape, stride, dtype))
            labels.put(results[-1], rows)
            labels.put_source(results[-1], source)
            labels.put_newest(results[-1], newest + shift)
        for call in self.asking:
            call.others = True
        return tuple(results) if self.is_tuple else results[0]


def _empty(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    guard = without_operations()
    made = torch.empty_strided(shape, stride, dtype=dtype, device=META)
    del guard
    return made
