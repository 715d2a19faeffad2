"""Copies of what labels hold: with a mark in place of a block's path, and from that with the path and the atoms of another."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from espalier.graph.integers import Attribute
from espalier.graph.labels import Product, Source
from espalier.graph.rows import Array

PATH = "\0"


class OfOthers(Exception):
    """What was done for a block is not of it alone."""


class _Copies:
    """Copies of what labels hold, with other names, rows and serials."""

    def text(self, text: str) -> str:
        raise NotImplementedError

    def rows(self, rows: Array) -> Array:
        raise NotImplementedError

    def serial(self, serial: int) -> int:
        raise NotImplementedError

    def mapped(self, value: Any) -> Any:
        """The copy."""
        kind = type(value)
        if kind is Product:  # most are
            rows = self.rows
            lengths = [(None if labels is None else rows(labels), size) for labels, size in value.lengths]
            return Product(self.text(value.module), value.op, tuple(lengths))
        if kind is tuple:
            return tuple([self.mapped(item) for item in value])
        if kind is np.ndarray:
            return self.rows(value) if value.dtype == np.int64 else value
        if kind is str:
            return self.text(value)
        if value is None or kind is int or kind is bool:
            return value
        if kind is list:
            return [self.mapped(item) for item in value]
        if kind is Source:
            return Source(self.serial(value.serial), self.mapped(value.names), value.dims, self.mapped(value.given), value.part)
        if issubclass(kind, tuple):  # a NamedTuple
            return kind(*map(self.mapped, value))
        if dataclasses.is_dataclass(kind):
            return kind(*[self.mapped(value.__dict__[each.name]) for each in dataclasses.fields(kind)])
        raise OfOthers


class Marked(_Copies):
    """With a mark in place of the block's path."""

    def __init__(self, path: str, serial: int, start: int) -> None:
        self._path = re.compile(rf"(^|\(){re.escape(path)}(?=$|[.:\[)])")
        self._serial, self._start = serial, start
        self.own: dict[int, bool] = {}  # whether rows are of the block's own atoms alone, by their id

    def text(self, text: str) -> str:
        return self._path.sub(rf"\1{PATH}", text)

    def rows(self, rows: Array) -> Array:
        self.own[id(rows)] = bool(rows.size) and int(rows.min()) >= self._start
        return rows

    def serial(self, serial: int) -> int:
        if serial <= self._serial:
            raise OfOthers
        return serial

    def mapped(self, value: Any) -> Any:
        copy = super().mapped(value)
        if type(value) is Attribute and PATH not in copy.path:
            raise OfOthers
        return copy


class Moved(_Copies):
    """With the path of another block, its atoms and its serials."""

    def __init__(
        self, path: str, start: int, atoms: int, serials: int, known: dict[int, Array], own: Mapping[int, bool]
    ) -> None:
        self._path, self._start, self._atoms, self._serials = path, start, atoms, serials
        self._known, self._own = known, own  # by id of those that were written down

    def text(self, text: str) -> str:
        return text.replace(PATH, self._path)

    def rows(self, rows: Array) -> Array:
        number = id(rows)
        found = self._known.get(number)
        if found is None:
            moved = rows + self._atoms
            found = self._known[number] = moved if self._own.get(number) else np.where(rows >= self._start, moved, rows)
        return found

    def serial(self, serial: int) -> int:
        return serial + self._serials
