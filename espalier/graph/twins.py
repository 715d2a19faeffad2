"""Blocks that are alike are labelled once.

A deep network repeats one block. What labelling has done for one, it would do for the next: the same steps, on atoms,
parameters and integers of its own. So what it has changed for one is written down, and done again for the others with all atoms
and names moved, as long as nothing tells them apart: their descriptions are equal (``repeats.py``), and so are the labels of
what they are given. Whatever is unusual is labelled as if there were no other.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from espalier.graph.calls import Call, Calls, Modules
from espalier.graph.classes import is_skipped
from espalier.graph.modes import transform, without_functions
from espalier.graph.pattern import Before, Block, Pattern

FEWEST = 4  # siblings
WORTH = 100  # modules in all like blocks but one: with fewer it would take longer
TRIES = 3  # blocks of one kind that are written down in vain before it is given up: each may have a scale of its own


class Twins:
    """The like blocks of one pass.

    Args:
        calls: of the pass.
        modules: of the model.
    """

    def __init__(self, calls: Calls, modules: Modules) -> None:
        self.calls, self.labels = calls, calls.labels
        self.paths = _like_ones(modules)
        self._known = {id(module): path for path, module in modules} if self.paths else {}
        self._homes = _homes(modules) if self.paths else []
        self._patterns: dict[Any, Pattern] = {}
        self._tries: dict[int, int] = {}  # by kind

    def run(self, call: Call, label: Callable[[], Any]) -> Any:
        """What a block returns.

        Args:
            call: of the block.
            label: runs and labels it.
        """
        if transform() is not None:  # inside vmap a tensor is larger than it says
            return label()
        kind = self.paths[call.path]
        with without_functions():
            block = Block.of(self.labels, call, self._known) if self._tries.get(kind, 0) <= TRIES else None
            pattern = None if block is None else self._patterns.get(block.key)
            if block is not None and pattern is not None and pattern.fits(block):
                self._tries[kind] = 0
                call.out = pattern.repeat(self.labels, block)
                self.calls.end(call)
                self.calls.alike.append((pattern.block.call.module, call.module))
                return call.out
            before = None if block is None else self._before(block, kind)
        out = label()
        if block is None or before is None:
            return out
        with without_functions():
            made = before.pattern(out, self.calls.asking_since(call.earlier))
        if made is not None:
            self._patterns[block.key] = made
        return out

    def _before(self, block: Block, kind: int) -> Before | None:
        tries = self._tries[kind] = self._tries.get(kind, 0) + 1
        return Before(self.labels, block, self._homes) if tries <= TRIES else None


def _homes(modules: Modules) -> list[Any]:
    """The classes of modules, the files that these are from, and objects in those: code may keep something there that all
    blocks share."""
    classes = {base for _, module in modules for base in type(module).__mro__ if not is_skipped(base.__module__)}
    files = {base.__module__: sys.modules[base.__module__] for base in classes if base.__module__ in sys.modules}
    objects = {id(value): value for file in files.values() for value in vars(file).values() if _may_keep(value)}
    return [*classes, *files.values(), *objects.values()]


def _may_keep(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type | types.FunctionType | types.ModuleType)


def _like_ones(modules: Modules) -> dict[str, int]:
    """Paths of the outermost modules that several of their siblings resemble, with a number that they have in common."""
    chosen: dict[str, int] = {}
    kinds: dict[int, tuple[int, int] | None] = {}
    for path, module in modules:  # outer ones first
        if len(module._modules) < FEWEST or any(path == other or path.startswith(f"{other}.") for other in chosen):
            continue
        prefix = f"{path}." if path else ""
        like: dict[tuple[int, int], list[str]] = {}
        for name, child in module._modules.items():
            if child is not None and child._modules and (found := _kind(child, kinds)) is not None:
                like.setdefault(found, []).append(name)
        for (kind, inside), names in like.items():
            if inside * (len(names) - 1) >= WORTH:
                chosen.update((prefix + name, kind) for name in names)
    return chosen


def _kind(module: nn.Module, known: dict[int, tuple[int, int] | None]) -> tuple[int, int] | None:
    """A number that modules have in common that are alike in their classes, the shapes of their parameters and what is inside,
    and how many are inside. None for modules with hooks: whoever set them wants them called. Known ones by their id."""
    if id(module) not in known:
        known[id(module)] = _kind_of(module, known)
    return known[id(module)]


def _kind_of(module: nn.Module, known: dict[int, tuple[int, int] | None]) -> tuple[int, int] | None:
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    inside = 0
    kinds: list[Any] = [type(module)]
    for name, parameter in module._parameters.items():
        kinds += name, None if parameter is None else parameter.shape
    for name, child in module._modules.items():
        if child is not None:
            kind = _kind(child, known)
            if kind is None:
                return None
            kinds += name, kind[0]
            inside += kind[1] + 1
    return hash(tuple(kinds)), inside
