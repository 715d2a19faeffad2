"""What a model does otherwise in training mode.

Calls that have read ``training`` are made again in that mode, with the arguments they were given; what they call in turn
returns what it has returned before, as long as it is given the like. A call that then returns something else makes whoever
made it be repeated as well, up to the model itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from espalier.graph.calls import CALLED, Call, Calls, snapshot
from espalier.graph.held import Held
from espalier.graph.integers import plain
from espalier.graph.labels import Event, Labels, Source
from espalier.graph.modes import without_functions
from espalier.graph.repeats import Harmless, same_events
from espalier.graph.replica import named_modules
from espalier.graph.rows import Rows


def settled(calls: Calls, last: Callable[[Any], object]) -> bool:
    """Label what is done otherwise in training mode, which the modules are in. False if all has to be run for that.

    Args:
        calls: of the pass in evaluation mode.
        last: told what the model returns in training mode, if that is something else.
    """
    labels, ended = calls.labels, calls.ended
    calls.ended = []
    asking = frozenset(id(call.module) for call in ended if call.asked)
    harmless = Harmless()
    try:
        for call in ended:
            changed = any(each.differs for each in call.inside)
            if not call.asked and not changed:
                continue
            before = call.events(labels)
            with without_functions():
                if not changed and harmless.has_the_like(call, before):
                    continue
            again = _Again(calls, call, asking).made()
            if again is None:
                return False
            out, events = again
            with without_functions():
                like, same = _alike(labels, call.out, out), not changed and same_events(labels, before, events)
            if call.others and not (like and same):  # what it does there, they would do as well
                return False
            if like and same:
                harmless.add(call, before)
            elif not like:
                if call.lost:
                    return False
                call.differs, call.trained = True, out
                if not call.path:
                    last(out)
        return True
    finally:
        calls.ended = ended


class _Again:
    """One call made again."""

    def __init__(self, calls: Calls, call: Call, asking: frozenset[int]) -> None:
        self._calls, self._call = calls, call
        self._asking = asking  # ids of modules that ask for the mode: their caches are their own affair
        self._left = call.inside[::-1]
        self._first = calls.labels.axes.count
        self._begun = False

    def made(self) -> tuple[Any, list[Event]] | None:
        """What it returns, and what it did itself; None if that cannot be told, since it fails or keeps something."""
        calls, call = self._calls, self._call
        before, start = Held(calls.without_leaves(module for _, module in named_modules(call.module))), len(calls.labels.events)
        calls.repeat = self
        try:
            out = call.module(*call.args, **call.kwargs)
        except Exception:  # the pass of the whole model will say
            return None
        finally:
            calls.repeat = None
        with without_functions():  # shapes are compared
            nothing_kept = before.is_same() or before.changed(calls.labels) == []
        return (out, calls.labels.events[start:]) if nothing_kept else None

    def inside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
        """What a module returns; see ``Repeat``."""
        if not self._begun:  # the call itself
            self._begun = True
            return run()
        if self._left and self._left[-1].module is module and self._is_as_it_was(call := self._left.pop()):
            out = call.trained if call.differs else call.out
            with without_functions():
                like = _can_be_returned(out) and _alike(
                    self._calls.labels, (call.args, call.kwargs), (args, kwargs), self._first
                )
            if like:
                self._calls.labels.events.append((CALLED, call, out))
                return snapshot(out)
        self._calls.repeat = None
        try:
            return run()
        finally:
            self._calls.repeat = self

    def _is_as_it_was(self, call: Call) -> bool:
        """Whether nobody has told a module or one inside anything for this call, or for the one before."""
        held = self._calls.held
        return not call.told and held is not None and held.is_same_below(call.module, self._asking)


def _can_be_returned(out: Any) -> bool:
    """Whether nobody can have changed it since it was returned: tensors, or a snapshot of some."""
    kind = type(out)
    items = out.values() if kind is dict or kind is OrderedDict else out if kind is tuple or kind is list else (out,)
    return all(isinstance(item, Tensor | None) for item in items)


def _alike(labels: Labels, one: Any, other: Any, first: int | None = None) -> bool:
    """Whether the rest of a model cannot tell two results apart: same shapes, same axes. From the ``first`` atom on all are
    new, those of positions that were counted again, say: an axis of such atoms becomes one with the axis in its place."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one is other:
            return True
        rows = zip(labels.of(one), labels.of(other), strict=False)
        return (
            one.shape == other.shape
            and all(labels.same(mine, theirs) or _made_same(labels, mine, theirs, first) for mine, theirs in rows)
            and labels.weight_name(one) == labels.weight_name(other)
            and _same_source(labels.source_of(one), labels.source_of(other))
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(labels, one[key], other[key], first) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_alike(labels, a, b, first) for a, b in zip(one, other, strict=True))
    if one is other or isinstance(one, int | float | str):
        return one is other or bool(plain(one) == plain(other))
    held, there = getattr(one, "__dict__", None), getattr(other, "__dict__", None)  # such as the batches of detectors
    return bool(held) and not callable(one) and _alike(labels, held, there, first)


def _made_same(labels: Labels, one: Rows, other: Rows, first: int | None) -> bool:
    if first is None or one is None or other is None or int(labels.axes.resolve(other).min()) < first:
        return False
    labels.unify(one, other, "counting again")
    return True


def _same_source(one: Source | None, other: Source | None) -> bool:
    if one is None or other is None:
        return one is other
    parts = one.part is other.part or (one.part is not None and other.part is not None and np.array_equal(one.part, other.part))
    return parts and one.names == other.names and one.dims == other.dims and len(one.given) == len(other.given)
