"""What labelling does for a block, written down to be done again for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph.again import Made
from espalier.graph.calls import Call
from espalier.graph.held import Held
from espalier.graph.labels import Labels, Source
from espalier.graph.modes import without_operations
from espalier.graph.moved import Marked, Moved, OfOthers
from espalier.graph.repeats import described
from espalier.graph.rows import Rows
from espalier.graph.shortcuts import META


@dataclass
class Block:
    """A call of a block, and all that decides what labelling does."""

    path: str
    module: nn.Module
    key: Any
    given: list[Tensor]
    names: list[str]  # of its parameters and buffers, below its path
    state: list[Any]  # of the labels of what it is given

    @classmethod
    def of(cls, labels: Labels, call: Call) -> Block | None:
        """None if that is not the whole story."""
        given = [value for value in call.args if value is not None]
        if call.kwargs or any(type(value) is not Tensor for value in given):
            return None
        if any(labels.source_of(value) is not None or labels.weight_name(value) is not None for value in given):
            return None
        found = described([call.args, call.module])
        if found is None:
            return None
        key, tensors = found
        names = [labels.name_of(tensor) or "" for tensor in tensors[len(given) :]]
        start = f"{call.path}."
        if not all(name.startswith(start) and name not in labels.parameters for name in names):
            return None
        state = [rows if rows is None else labels.axes.state_of(rows) for value in given for rows in labels.of(value)]
        return cls(call.path, call.module, key, given, [name[len(start) :] for name in names], state)


class Before:
    """How things were before a block was labelled."""

    def __init__(self, labels: Labels, block: Block) -> None:
        self.labels, self.block = labels, block
        self.lengths = [len(each) for each in (*_lists(labels), *_tables(labels))]
        self.faults, self.serial, self.multiplied = len(labels.faults), labels.serial, set(labels.multiplied)
        self.held = Held(block.module.modules())
        self.atoms = labels.axes.mark()
        self.dims = [labels.of(tensor) for tensor in block.given]

    def pattern(self, out: Any) -> Pattern | None:
        """What was done for the block; None if not only things of its own have changed, or not all can be told."""
        labels, block = self.labels, self.block
        same = all(labels.of(tensor) is dims for tensor, dims in zip(block.given, self.dims, strict=True))
        if not same or len(labels.faults) != self.faults or not self.held.is_same() or not labels.axes.is_as_at(self.atoms):
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
            marked = Marked(block.path, self.serial, self.atoms.atoms)
            written = marked.mapped([new, made.blocks, returned])
        except OfOthers:
            return None
        rows = [rows for dims in self.dims for rows in dims]
        return Pattern(block, rows, made, written, marked.own, multiplied, self.serial, labels.serial, out)

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
    given: list[Rows]
    made: Made
    written: Any  # what lists and tables have got, the names of blocks, the labels of the results
    own: dict[int, bool]  # whether rows in that are of atoms of the block alone, by their id
    multiplied: list[int]
    serial: int  # of the last call of a layer before
    last: int  # and of the block's last
    out: Any

    def fits(self, block: Block) -> bool:
        """Whether it would do the same for another."""
        return self.block.names == block.names and self.block.state == block.state

    def repeat(self, labels: Labels, block: Block) -> Any:
        """Do it for another. Returns what that returns."""
        axes, start = labels.axes, self.made.mark.atoms
        dims = [rows for value in block.given for rows in labels.of(value)]
        known = {id(mine): rows for mine, rows in zip(self.given, dims, strict=True) if mine is not None and rows is not None}
        moved = Moved(block.path, start, axes.count - start, labels.serial - self.serial, known, self.own)
        new, names, returned = moved.mapped(self.written)
        axes.make_again(self.made, moved.rows, names)
        lists = _lists(labels)
        for each, added in zip(lists, new, strict=False):
            each += added
        for table, added in zip(_tables(labels), new[len(lists) :], strict=True):
            table.update(added)
        labels.multiplied.update(map(moved.serial, self.multiplied))
        labels.serial += self.last - self.serial
        results = [self._result(labels, one, *told) for one, told in zip(self._results(), returned, strict=True)]
        return tuple(results) if type(self.out) is tuple else results[0]

    def _results(self) -> Sequence[Tensor]:
        return self.out if type(self.out) is tuple else (self.out,)

    def _result(self, labels: Labels, like: Tensor, dims: list[Rows], source: Source | None, newest: int) -> Tensor:
        guard = without_operations()
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=META)
        del guard
        labels.put(made, dims)
        labels.put_source(made, source)
        labels.put_newest(made, newest + labels.serial - self.last)
        return made
