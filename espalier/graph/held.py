"""Whether something has changed what modules hold."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any


class Held:
    """What modules, or other objects with attributes, hold at one time: their attributes, and what is in those that are
    dictionaries or lists."""

    def __init__(self, modules: Iterable[Any]) -> None:
        self._held: list[tuple[Any, list[Any]]] = []
        self._empty: list[Any] = []  # most are
        for module in modules:
            values = list(module.__dict__.values())
            self._held.append((module.__dict__, values))
            for value in values:
                if type(value) in CONTAINERS:
                    if value:
                        self._held.append((value, _inside(value)))
                    else:
                        self._empty.append(value)

    def is_same(self) -> bool:
        """Whether they still hold the same objects."""
        if any(self._empty):
            return False
        for container, values in self._held:
            now = _inside(container)
            if len(now) != len(values) or not all(map(operator.is_, now, values)):
                return False
        return True


CONTAINERS = frozenset({dict, OrderedDict, list})


def _inside(container: Any) -> list[Any]:
    return list(container if type(container) is list else container.values())
