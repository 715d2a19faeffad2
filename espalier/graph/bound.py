"""Functions that know of a model, as its copy has them: its methods, closures over it, defaults and partial arguments."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Mapping, Sequence
from typing import Any


def knows_something(function: types.FunctionType) -> bool:
    """Whether a function has more than its code and its file."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__)


class Bound:
    """Makes functions anew where they know of a model. What they know of the world stays the same; but a variable that they
    share with others is one of their own.

    Args:
        copies: by ``id``, the copies of all that the model holds.
    """

    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = copies
        self._made: dict[int, tuple[types.FunctionType, types.FunctionType]] = {}  # by id, with the new ones
        self._cells: dict[int, tuple[types.CellType, types.CellType]] = {}  # their variables, and the new ones
        self._asked: set[int] = set()  # functions that are being looked at: they may know themselves

    def put(self, places: Sequence[tuple[Any, Any]]) -> None:
        """Replace functions.

        Args:
            places: dictionaries or lists that hold them, with key or index.
        """
        functions = [holder[key] for holder, key in places]
        known = -1
        while known < len(self._made):  # who shares a variable with one that was made anew is made anew as well
            known = len(self._made)
            for function in functions:
                self.of(function)
        for cell, own in self._cells.values():
            for content in contents(cell):
                own.cell_contents = self.of(content)
        for function, made in self._made.values():
            made.__defaults__ = tuple(map(self.of, function.__defaults__ or ())) or None
            made.__kwdefaults__ = {name: self.of(value) for name, value in (function.__kwdefaults__ or {}).items()}
        for (holder, key), function in zip(places, functions, strict=True):
            holder[key] = self.of(function)

    def of(self, value: Any) -> Any:
        """What the copy has in the place of a value; itself if it does not know of the model."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, types.MethodType):
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if type(value) is functools.partial:
            known = (value.func, *value.args, *value.keywords.values())
            function, *given = bound = [self.of(item) for item in known]
            if all(map(operator.is_, bound, known)):
                return value
            count = len(value.args)
            return functools.partial(function, *given[:count], **dict(zip(value.keywords, given[count:], strict=True)))
        return self._function(value) if type(value) is types.FunctionType else value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        number = id(function)
        if number not in self._made:
            if number in self._asked or not self._knows(function):
                return function
            cells = [self._cells.setdefault(id(cell), (cell, types.CellType()))[1] for cell in function.__closure__ or ()]
            made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, tuple(cells))
            made.__qualname__, made.__module__ = function.__qualname__, function.__module__
            made.__dict__.update(function.__dict__)
            self._made[number] = function, made
        return self._made[number][1]

    def _knows(self, function: types.FunctionType) -> bool:
        cells = function.__closure__ or ()
        if any(id(cell) in self._cells for cell in cells):
            return True
        known = [content for cell in cells for content in contents(cell)]
        known += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self._asked.add(id(function))
        try:
            return any([self.of(value) is not value for value in known])
        finally:
            self._asked.discard(id(function))


def contents(cell: types.CellType) -> list[Any]:
    """What is in a variable of a closure: nothing if it has not been filled yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []
