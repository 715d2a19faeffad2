"""Whether something has changed what modules hold."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from espalier.graph.labels import Labels


class Held:
    """What modules, or other objects with attributes, hold at one time: their attributes, and what is in those that are
    dictionaries or lists."""

    def __init__(self, modules: Iterable[Any]) -> None:
        self._held: list[tuple[Any, Any, list[Any]]] = []  # owners, containers, what is in them
        self._empty: list[Any] = []  # most are
        self._owners: list[Any] = []  # of the empty ones
        for module in modules:
            values = list(module.__dict__.values())
            self._held.append((module, module.__dict__, values))
            for value in values:
                if type(value) in CONTAINERS:
                    if value:
                        self._held.append((module, value, _inside(value)))
                    else:
                        self._empty.append(value)
                        self._owners.append(module)

    def is_same(self) -> bool:
        """Whether they still hold the same objects."""
        if any(self._empty):
            return False
        return all(_same(_inside(container), values) for _, container, values in self._held)

    def changed(self, labels: Labels) -> list[nn.Module] | None:
        """The modules of which dictionaries hold something else, as a cache does; None if anything else has changed but the
        mode. Lists of tensors made anew, the like of those before and without axes, are no change (anchors of detectors)."""
        found = []
        for module, container, values in [*self._held, *((owner, each, []) for owner, each in self._of_empty())]:
            if _same(_inside(container), values):
                continue
            if container is module.__dict__:
                rows = list(zip(container.items(), values, strict=False))
                others = [(name, old, new) for (name, new), old in rows if old is not new and name != "training"]
                others = [each for each in others if not _made_anew(labels, *each[1:])]
                if len(container) != len(values) or not all(_is_cache(name, old, new) for name, old, new in others):
                    return None
                if not others:
                    continue
            elif any(container is module.__dict__.get(name) for name in TORCHS) or type(container) is not dict:
                return None
            found.append(module)
        return found

    def _of_empty(self) -> Iterable[tuple[Any, Any]]:
        return zip(self._owners, self._empty, strict=True)


CONTAINERS = frozenset({dict, OrderedDict, list})
TORCHS = frozenset(nn.Module().__dict__)


def _is_cache(name: str, old: Any, new: Any) -> bool:
    """Whether one dictionary was put in the place of another."""
    return name not in TORCHS and type(old) is type(new) is dict


def _made_anew(labels: Labels, old: Any, new: Any) -> bool:
    if not type(old) is type(new) is list or len(old) != len(new) or not all(isinstance(item, Tensor) for item in old + new):
        return False
    like = all((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) for a, b in zip(old, new, strict=True))
    return like and not any(rows is not None for tensor in new for rows in labels.of(tensor))


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _inside(container: Any) -> list[Any]:
    return list(container if type(container) is list else container.values())
