"""Calls that need not be repeated in training mode: like ones did the same in both modes.

On meta no value can be read. What a call does follows from the plain attributes of its modules, from the shapes of tensors and
from what it is given. So where one call did exactly the same in both modes, the next block with the same description will, too.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph.calls import Call
from espalier.graph.copying import NoHooks
from espalier.graph.integers import Expression, Length, Origin, Traced, plain
from espalier.graph.labels import LOOKED, Event, Labels
from espalier.graph.modes import without_functions
from espalier.graph.operands import tensors_among

VALUES = frozenset({
    int, float, complex, bool, str, bytes, type(None), type, types.BuiltinFunctionType, torch.dtype, torch.device,
})  # fmt: skip

ALL_BUT_LENGTHS = VALUES - {int}

DROPOUT = frozenset({nn.Dropout.__module__, "timm.layers.drop", "torchvision.ops.stochastic_depth"})  # files of nothing else

EMPTY = frozenset({dict, OrderedDict, NoHooks, list, tuple, set})


class Unusual(Exception):
    """Something may depend on more than its description."""


class Harmless:
    """Calls that do exactly the same in both modes."""

    def __init__(self) -> None:
        self._calls: dict[Any, list[tuple[Call, Sequence[Event]]]] = {}  # by a rough description: a full one takes its time
        self._described: dict[Any, set[Any]] = {}

    def add(self, call: Call, events: Sequence[Event]) -> None:
        """Note a finished call, and what it did itself."""
        self._calls.setdefault(_roughly(call, events), []).append((call, events))

    def has_the_like(self, call: Call, events: Sequence[Event]) -> bool:
        """Whether one of them has the same description."""
        rough = _roughly(call, events)
        known = self._described.setdefault(rough, set())
        known.update(description(*each) for each in self._calls.pop(rough, ()))
        known.discard(None)
        return bool(known) and description(call, events) in known


def _roughly(call: Call, events: Sequence[Event]) -> Any:
    shapes = [value.shape for value in call.args if isinstance(value, Tensor)] if _is_exact(call, events) else []
    return type(call.module), tuple([event[0] for event in events]), tuple(shapes)


def _is_exact(call: Call, events: Sequence[Event]) -> bool:
    """Whether lengths matter: not to a batch norm that looks at none."""
    return not isinstance(call.module, nn.modules.batchnorm._BatchNorm) or any(event[0] == LOOKED for event in events)


def description(call: Call, events: Sequence[Event]) -> Any:
    """What decides what a call does, as a value to compare; None if that cannot be told.

    Args:
        call: finished.
        events: what it did itself.
    """
    found = described([call.args, call.kwargs, call.module], exact=_is_exact(call, events))
    return None if found is None else (found[0], tuple([event[0] for event in events]))


def described(parts: Sequence[Any], *, exact: bool = True) -> tuple[Any, list[Tensor | nn.Module]] | None:
    """What decides what code does with these, as a value to compare, and the tensors and modules in them in the order of the
    description. None if that cannot be told. If not ``exact``, lengths are left out: for a batch norm that looks at none."""
    seen: dict[int, int] = {}  # objects that outlive the description, by id: their numbers
    objects: list[Tensor | nn.Module] = []
    try:
        with without_functions():  # plain sizes: traced ones take note of every comparison
            return tuple([_described(part, seen, objects, exact) for part in parts]), objects
    except Unusual:
        return None


def _described(value: Any, seen: dict[int, int], objects: list[Tensor | nn.Module], exact: bool) -> Any:
    """What was seen before is described by its number alone: code may ask whether two of its objects are one."""
    kind = type(value)
    if kind is Traced:
        value, kind = plain(value), int
    if kind in VALUES:
        return (kind, value) if exact or kind is not int else kind
    if kind is tuple and exact and VALUES.issuperset(map(type, value)):  # plain all through
        return kind, value
    if kind is types.FunctionType and value.__closure__ is None:
        return kind, value
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    if kind in EMPTY and not value:
        return kind
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise Unusual
        objects.append(value)
        if not exact:
            return kind, value.dim(), value.dtype, value.requires_grad
        return kind, value.shape, value.stride(), value.dtype, value.requires_grad
    if kind in (dict, OrderedDict):
        return kind, tuple([(key, _described(item, seen, objects, exact)) for key, item in value.items()])
    if kind in (tuple, list, torch.Size):
        return kind, tuple([_described(item, seen, objects, exact) for item in value])
    if kind in (set, frozenset) and VALUES.issuperset(map(type, value)):
        return kind, frozenset(value)
    if isinstance(value, nn.Module):
        objects.append(value)
        held = value.__dict__
        kinds, values = tuple(map(type, held.values())), tuple(held.values())
        plain_ones, lengths, others = _places(kinds, exact)
        inside = [values[place] for place in others if kinds[place] not in EMPTY or values[place]]
        described = tuple([_described(item, seen, objects, exact) for item in inside])
        settings = [values[place] for place in plain_ones]
        if exact:
            settings += [plain(values[place]) for place in lengths]
        if kind.__module__ in DROPOUT:
            settings = [_share(setting) if type(setting) is float else setting for setting in settings]
        return kind, tuple(held), kinds, tuple(settings), described
    raise Unusual


def _share(rate: float) -> tuple[bool, bool]:
    """All that matters of the rate of a dropout: whether nothing is dropped, or everything. Each block may have its own."""
    return rate > 0, rate >= 1


@functools.lru_cache(512)
def _places(kinds: tuple[type, ...], exact: bool) -> tuple[list[int], list[int], list[int]]:
    """Where there are values to compare, numbers that remember where they come from, and things to describe."""
    values = VALUES if exact else ALL_BUT_LENGTHS
    places = range(len(kinds))
    traced = [at for at in places if kinds[at] is Traced]
    return [at for at in places if kinds[at] in values], traced, [at for at in places if kinds[at] not in {*VALUES, Traced}]


def same_events(labels: Labels, one: Sequence[Event], other: Sequence[Event]) -> bool:
    """Whether two runs of a call did the same with the same: then the second has told nothing new."""
    twins: dict[int, Tensor] = {}  # what one run made -> what the other made in its place
    for (mine, my_arguments, my_results), (theirs, their_arguments, their_results) in zip(one, other, strict=False):
        if mine != theirs or not _same(labels, my_arguments, their_arguments, twins):
            return False
        for result, twin in zip(tensors_among([my_results]), tensors_among([their_results]), strict=True):
            twins[id(result)] = twin  # anew where dropout returns what it was given in one mode only
    return len(one) == len(other)


def _same(labels: Labels, one: Any, other: Any, twins: dict[int, Tensor]) -> bool:
    if isinstance(one, Tensor):
        return twins.get(id(one), one) is other
    if isinstance(one, Traced) and isinstance(other, Traced):
        return int.__eq__(one, other) is True and _same_origin(labels, one.origin, other.origin)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_same(labels, a, b, twins) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(labels, one[key], other[key], twins) for key in one)
    if isinstance(one, slice):
        bounds = [(each.start, each.stop, each.step) for each in (one, other)]
        return _same(labels, bounds[0], bounds[1], twins)
    return one is other or (type(one) in VALUES and bool(one == other))


def _same_origin(labels: Labels, one: Origin, other: Origin) -> bool:
    if isinstance(one, Expression) and isinstance(other, Expression):
        pairs = ((one.left, other.left), (one.right, other.right))
        return one.sign == other.sign and all(_same_origin(labels, a, b) for a, b in pairs)
    if isinstance(one, Length) and isinstance(other, Length):
        return one.size == other.size and labels.same(one.rows, other.rows)
    return one == other
