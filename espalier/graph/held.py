"""Whether something has changed what modules hold."""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, deque
from collections.abc import Container, Iterable
from typing import Any

from torch import Tensor, nn

from espalier.graph.copying import UNCHANGEABLE, NoHooks
from espalier.graph.integers import Traced
from espalier.graph.labels import Labels

Inside = list[tuple[Any, list[Any]]]  # containers, what is in them


class Held:
    """What modules, or other objects with attributes, hold at one time: their attributes, and what is in those that are
    containers, or ``objects``."""

    def __init__(self, modules: Iterable[Any], *, objects: bool = True) -> None:
        self._held: dict[int, tuple[Any, Inside]] = {}  # by id
        self._empty: list[Any] = []  # of torch's own: most are
        self._objects: set[int] = set()  # ids of the attributes of objects that are kept
        for module in modules:
            attributes = module.__dict__
            inside: Inside = [(attributes, list(attributes.values()))]
            for name, value in attributes.items():
                kind = type(value)
                if kind in UNCHANGEABLE:
                    continue
                if kind in CONTAINERS:
                    if not value and name in TORCHS:
                        self._empty.append(value)
                    else:
                        inside.append((value, _inside(value)))
                elif objects and type(getattr(value, "__dict__", None)) is dict and not isinstance(value, OTHERS):
                    inside.append((value.__dict__, _inside(value.__dict__)))
                    self._objects.add(id(value.__dict__))
            self._held[id(module)] = module, inside

    def modules(self) -> list[Any]:
        """Whose it is."""
        return [module for module, _ in self._held.values()]

    def is_same(self) -> bool:
        """Whether they still hold the same objects."""
        if any(self._empty):
            return False
        return all(_same(_inside(container), values) for _, inside in self._held.values() for container, values in inside)

    def is_same_in(self, module: nn.Module, *, caches: bool = False) -> bool:
        """Whether one of them still does, but for the mode; and for dictionaries of tensors, if these are ``caches``."""
        _, inside = self._held.get(id(module), (None, ()))
        return all(
            _same(_inside(container), values)
            or (
                _is_same_but(container, values, caches) if container is module.__dict__ else caches and _is_cache_now(container)
            )
            for container, values in inside
        )

    def is_same_below(self, module: nn.Module, caching: Container[int]) -> bool:
        """Whether one of them and all that are inside still do, but for the mode, and for caches of those with these ids."""
        return self.is_same_in(module, caches=id(module) in caching) and all(
            self.is_same_below(child, caching)
            for child in module._modules.values()
            if child is not None and (child._modules or id(child) in self._held)
        )

    def changed(self, labels: Labels) -> list[nn.Module] | None:
        """The modules of which dictionaries hold something else, as a cache does; None if anything else has changed but the
        mode. Lists of tensors made anew, the like of those before and without axes, are no change (anchors of detectors)."""
        if any(self._empty):
            return None
        found: list[nn.Module] = []
        for module, inside in self._held.values():
            for container, values in inside:
                if _same(_inside(container), values):
                    continue
                if id(container) in self._objects:
                    return None
                if container is module.__dict__:
                    others = _others(labels, container, values)
                    if others is None:
                        return None
                    if not others:
                        continue
                elif any(container is module.__dict__.get(name) for name in TORCHS) or type(container) is not dict:
                    return None
                found.append(module)
        return found


OTHERS = (nn.Module, Tensor, Traced, types.ModuleType)  # looked at elsewhere, or by their identity
ROWS = frozenset({list, set, deque})
CONTAINERS = ROWS | {dict, OrderedDict, NoHooks}
TORCHS = frozenset(nn.Module().__dict__)


def _is_same_but(attributes: dict[str, Any], before: list[Any], caches: bool) -> bool:
    changed = _changed(attributes, before)
    old = dict(zip(attributes, before, strict=False))
    return changed is not None and all(
        name == "training" or (caches and _is_cache_now(old[name]) and _is_cache_now(attributes[name])) for name in changed
    )


def _is_cache_now(value: Any) -> bool:
    return type(value) is dict and all(isinstance(item, Tensor) for item in value.values())


def _others(labels: Labels, attributes: dict[str, Any], before: list[Any]) -> list[str] | None:
    """The attributes that are other caches now; None if others have changed."""
    changed = _changed(attributes, before)
    if changed is None:
        return None
    pairs = {name: (old, new) for (name, new), old in zip(attributes.items(), before, strict=True)}
    caches = [name for name in changed if name != "training" and not _made_anew(labels, *pairs[name])]
    return caches if all(_is_cache(name, *pairs[name]) for name in caches) else None


def _changed(attributes: dict[str, Any], before: list[Any]) -> list[str] | None:
    """The attributes that are others now; None if there are more or fewer."""
    if len(attributes) != len(before):
        return None
    return [name for (name, new), old in zip(attributes.items(), before, strict=True) if new is not old]


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
    return list(container if type(container) in ROWS else container.values())  # of a class it is no dictionary
