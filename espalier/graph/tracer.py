"""Label every tensor that a model computes.

Two modes watch. The function mode sees Python-level calls, with the integers as the code wrote them; the dispatch mode sees
the operations below, after composite functions have been taken apart, and applies their rules.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from espalier.graph import rules
from espalier.graph.calls import Modules
from espalier.graph.composites import COMPOSITES
from espalier.graph.functions import DROPOUT, REPLACED, attention, frame_of, lengths_as_values
from espalier.graph.integers import Attribute, Length, Traced
from espalier.graph.labels import LOOKED, Labels, Product
from espalier.graph.meta.shortcuts import run_on_meta
from espalier.graph.modes import TorchDispatchMode, without_functions, without_operations
from espalier.graph.operands import arguments_of, tensors_among

MAKERS = ("empty", "zeros", "ones", "full", "rand", "randn")
SHAPE_ONLY = {
    form.format(name) for name in MAKERS for form in ("{}_like", "new_{}")
}  # the noise of dropout: no value of x is in it


COUNTED = {Tensor.numel, Tensor.nelement, torch.numel}
COUNTS = {func.__name__ for func in COUNTED}
COUNTING_UP = {Tensor.add_, Tensor.__iadd__}


class Functions(TorchFunctionMode):
    """Gives shapes their origin and tells the rules which call an operation belongs to."""

    def __init__(self, labels: Labels, operations: Operations) -> None:
        super().__init__()
        self.labels, self.operations = labels, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, labels = kwargs or {}, self.labels
        name = getattr(func, "__name__", "")
        if func is functional.scaled_dot_product_attention:
            attention(labels, *args, **kwargs)
        if func in COMPOSITES and (out := self._in_one_go(func, name, args, kwargs)) is not None:
            return out
        if name == "__get__" and func == _shape:  # made anew at each access
            return self._shape(args[0])
        if name == "size" and func == Tensor.size:
            return _pick(self._shape(args[0]), *args[1:], **kwargs)
        if name in COUNTS and func in COUNTED:
            return self._count(args[0])
        if name == "__len__" and func == Tensor.__len__ and args[0].dim():
            return func(*args)  # len() accepts plain integers only
        if func in DROPOUT:
            return self._dropout(func, name, args, kwargs)
        if func in COUNTING_UP and self._is_counter(args[0]):
            return self._uncounted(func, args, kwargs)
        labels.events.append((func, (args, kwargs), None))
        if func in REPLACED:
            with self:
                return REPLACED[func](labels, *args, **kwargs)
        for number in lengths_as_values(name, args, kwargs):
            labels.used_as_real(number)
        return self._called(func, name, args, kwargs)

    def _called(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        frames = self.labels.frames
        frames.append(frame_of(name, args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            frames.pop()

    def at_once(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Label a composite that is about to be called; None for a call that does nothing. None where it has to be taken
        apart."""
        if func is None:
            return args[0]
        return self._in_one_go(func, func.__name__, args, {}) if func in COMPOSITES else None

    def _in_one_go(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Label a composite. None where it has to be taken apart."""
        composite, frames = COMPOSITES[func], self.labels.frames
        named = composite.named(args, kwargs)
        given = None if named is None else composite.given(named)
        if named is None or given is None:
            return None
        out = composite.result(given) if self.operations.meta else composite.computed(func, args, kwargs, given)
        if out is None:
            return None
        frames.append(frame_of(name, args, kwargs))
        self.labels.events.append((func, composite.telling(named), out))
        operation = _described_by_name(composite.name, in_place=out is given.get("self"))
        self.operations.label(operation, given, out, list(out) if type(out) is tuple else [out])
        frames.pop()
        return out

    def _dropout(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """One event in both modes: what dropout does in training, its noise above all, says nothing of axes."""
        x = args[0] if args else kwargs.get("input")
        guard = without_operations()
        try:
            out = func(*args, **kwargs)
        finally:
            del guard
        self.labels.events.append((func, (x,), out))
        if out is not x:
            self.operations.label(_described_by_name("dropout", in_place=False), {"input": x}, out, [out])
        return out

    def _is_counter(self, tensor: Any) -> bool:
        return (
            self.operations.meta and tensor.dim() == 0 and not tensor.is_floating_point() and bool(self.labels.name_of(tensor))
        )

    def _uncounted(self, func: Any, args: Any, kwargs: Any) -> Any:
        """No event: nobody can tell how often a batch norm has been called, where there are no values."""
        guard = without_operations()
        out = func(*args, **kwargs)
        del guard
        return out

    def _shape(self, tensor: Tensor) -> torch.Size:
        rows = self.labels.of(tensor)
        self.labels.events.append((LOOKED, (tensor,), None))
        return torch.Size(
            [Traced(size, Length(rows[dim], size), self.labels) for dim, size in enumerate(_shape(tensor))]
        )  # fmt: skip

    def _count(self, tensor: Tensor) -> int:
        """Of all entries: the product of all lengths."""
        return math.prod(self._shape(tensor))


_shape = Tensor.shape.__get__  # type: ignore[attr-defined]


def _pick(shape: torch.Size, dim: int | None = None) -> Any:
    return shape if dim is None else shape[dim]


@dataclass(frozen=True)
class _Operation:
    """What is the same in every call of an ATen operation."""

    name: str
    rule: rules.Rule | None
    makes: bool  # whether results have memory of their own


@functools.cache
def _described(func: Any) -> _Operation:
    name, schema = func.overloadpacket.__name__, func._schema
    aliased = schema.is_mutable or name == "_unsafe_view" or any(result.alias_info for result in schema.returns)
    return _Operation(name, rules.find(name, func.tags), not aliased)


@functools.cache
def _described_by_name(name: str, *, in_place: bool) -> _Operation:
    name = f"{name}_" if in_place else name
    return _Operation(name, rules.find(name, (torch.Tag.pointwise,)), makes=not in_place)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every operation."""

    def __init__(self, labels: Labels, *, meta: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels, self.meta = labels, meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with without_functions():
            out = run_on_meta(func, args, kwargs) if self.meta else func(*args, **kwargs)
            self.labels.events.append((func, (args, kwargs), out))
            results = [out] if isinstance(out, Tensor) else tensors_among(out) if isinstance(out, tuple | list) else []
            if results:
                self.label(_described(func), arguments_of(func, args, kwargs), out, results)
        return out

    def label(self, operation: _Operation, given: dict[str, Any], out: Any, results: list[Tensor]) -> None:
        """Apply the rule of one operation."""
        labels, name = self.labels, operation.name
        try:
            if operation.rule is None:
                raise LookupError
            operation.rule(labels, name, given, out)
        except LookupError:
            _unknown(labels, name, given)
        except Exception as error:  # a fault of a rule must not stop anybody's training
            labels.faults.append(
                f"The rule of {name} failed in {labels.module or 'the model'} ({type(error).__name__}: {error})."
            )
            _unknown(labels, name, given)
        if name not in SHAPE_ONLY and (newest := labels.newest(*tensors_among(given.values()))):
            for result in results:
                labels.put_newest(result, newest)
        if operation.makes:
            for result in results[:1] if "_norm" in name else results:  # norms keep statistics for training alone
                if result.numel():
                    lengths = tuple(zip(labels.of(result), result.shape, strict=True))
                    labels.activations.append(Product(labels.module, name, lengths))


def _unknown(labels: Labels, name: str, given: dict[str, Any]) -> None:
    for tensor in tensors_among(given.values()):
        for rows in labels.of(tensor):
            labels.freeze(rows, f"passes through {name}, for which there is no rule")


@contextlib.contextmanager
def integers_traced(modules: Modules, labels: Labels) -> Iterator[None]:
    """Let the integers that the modules of a replica keep remember where they come from."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for path, module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        prefix, attributes = f"{path}." if path else "", module.__dict__
        skipped = SPATIAL if isinstance(module, CONVOLUTIONS) else ()
        for name, value in attributes.items():
            kind = type(value)
            if kind in COUNTING and name not in skipped:
                traced = _traced(value, f"{prefix}{name}", labels)
                if traced is not None:
                    changed.append((attributes, name, value))
                    attributes[name] = traced  # an old key: the dictionary keeps its size
    try:
        yield
    finally:
        for attributes, name, value in changed:
            attributes[name] = value


COUNTING = frozenset({int, tuple, list, torch.Size})
CONVOLUTIONS = torch.nn.modules.conv._ConvNd
SPATIAL = frozenset(
    {
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "output_padding",
        "_reversed_padding_repeated_twice",
    }
)  # these count no channels: a size that is made of one is fixed


def _traced(value: Any, path: str, labels: Labels) -> Any:
    if type(value) is int:
        return Traced(value, Attribute(path, value), labels)
    if not 0 < len(value) <= 16:
        return None
    for item in value:
        if type(item) is not int:
            return None
    return type(value)([Traced(item, Attribute(f"{path}[{place}]", item), labels) for place, item in enumerate(value)])


@contextlib.contextmanager
def labelled(modules: Modules, labels: Labels, *, meta: bool) -> Iterator[Functions]:
    """Label what a replica computes inside."""
    operations = Operations(labels, meta=meta)
    functions = Functions(labels, operations)
    with integers_traced(modules, labels), functions, operations:
        yield functions
