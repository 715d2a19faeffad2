"""Whether the code of a model may ask for the exact class of an object, as ``type(layer) is nn.Identity`` does.

Such code would take another way where modules have subclasses for the time of a pass. It is found by reading: forward,
hooks, and the methods and functions that these call, as far as they can be followed by name. Code of torch, numpy and the
standard library is left out: it asks with ``isinstance`` where it matters.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from espalier.graph.bound import contents

SKIPPED = sys.stdlib_module_names | {"torch", "numpy"}
NAMES = frozenset({"__name__", "__qualname__", "__module__"})  # the same for the subclasses


class Reading(NamedTuple):
    """What the code of a function, and of the functions that it names, tells."""

    asks: bool
    names: frozenset[str]  # of whatever it may call


_known: WeakKeyDictionary[types.FunctionType, Reading] = WeakKeyDictionary()  # of functions: methods may be replaced


def asks_for_classes(modules: Sequence[tuple[str, nn.Module]]) -> bool:
    """Whether code that these modules run may ask for an exact class."""
    kinds: set[type] = {type(module) for _, module in modules}
    for _, module in modules:
        kinds.update(map(type, module.__dict__.values()))  # helpers that modules keep
    bases = {base for kind in kinds for base in kind.__mro__ if not is_skipped(base.__module__)}
    left = [
        (name, function)
        for base in bases
        for name, held in vars(base).items()
        if type(held) in CALLED and (function := _function(held))
    ]
    run = [function for _, module in modules for function in _hooks(module)]
    if not CALLED.isdisjoint(kinds):
        run += [function for _, module in modules for function in _functions(module.__dict__.values())]
    called = set(ALWAYS)
    while run or any(name in called for name, _ in left):
        run += [function for name, function in left if name in called]
        left = [(name, function) for name, function in left if name not in called]
        for function in run:
            reading = _read(function)
            if reading.asks:
                return True
            called |= reading.names
        run = []
    return False


ALWAYS = frozenset({
    "forward", "__call__", "__getattr__", "__getattribute__", "__setattr__", "__getitem__", "__len__", "__iter__",
    "__contains__", "__bool__", "__enter__", "__exit__",
})  # fmt: skip


def _hooks(module: nn.Module) -> Sequence[types.FunctionType]:
    if not module._forward_hooks and not module._forward_pre_hooks:
        return ()
    return _functions([*module._forward_hooks.values(), *module._forward_pre_hooks.values()])


def _functions(values: Iterable[Any]) -> list[types.FunctionType]:
    """Those among values, such as methods that were set on one module alone."""
    return [function for value in values if type(value) in CALLED and (function := _function(value))]


def _read(function: types.FunctionType) -> Reading:
    if function not in _known:
        _known[function] = _read_all([function])
    return _known[function]


def _read_all(left: list[Any]) -> Reading:
    seen = set[types.FunctionType]()
    names = set[str]()
    while left:
        function = _function(left.pop())
        if function is not None and function not in seen and not is_skipped(function.__module__):
            seen.add(function)
            for code in _codes(function.__code__):
                if _code_asks(code):
                    return Reading(True, frozenset())
                names.update(code.co_names, (value for value in code.co_consts if type(value) is str))
            left += _called(function)
    return Reading(False, frozenset(names))


def _function(value: Any) -> types.FunctionType | None:
    """What is called in the end."""
    for name in ("fget", "func", "__func__"):
        if type(value) in WRAPPERS:
            value = getattr(value, name, value)
    return value if type(value) is types.FunctionType else None


WRAPPERS = frozenset({property, functools.cached_property, functools.partial, classmethod, staticmethod, types.MethodType})
CALLED = WRAPPERS | {types.FunctionType}


def is_skipped(module: str | None) -> bool:
    """Whether a file is torch's, numpy's or of the standard library."""
    return (module or "").partition(".")[0] in SKIPPED


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Also of functions inside."""
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _codes(value)


@functools.cache
def _code_asks(code: types.CodeType) -> bool:
    if "__class__" in code.co_consts:  # for getattr
        return True
    if not {"type", "__class__"} & set(code.co_names):
        return False
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL", "NOP")]
    for place, step in enumerate(steps):
        attribute = step.opname in ("LOAD_ATTR", "LOAD_METHOD")
        if step.argval == "__class__" and step.opname.startswith("LOAD_") and step.opname not in CELLS:
            if steps[place + 1].argval not in NAMES:
                return True
        elif step.argval == "type" and step.opname.startswith("LOAD_") and not attribute:
            calls = (later for later in range(place, len(steps)) if steps[later].opname.startswith("CALL"))
            then = steps[next(calls, place) + 1]
            if then.argval not in NAMES and not then.opname.startswith("FORMAT_"):  # in a message, by its name
                return True
    return False


CELLS = ("LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "LOAD_FAST")  # __class__ of super()


def _called(function: types.FunctionType) -> Iterator[Any]:
    """The functions that a function names: in what encloses it, in its file, in other files, in classes and objects."""
    known = function.__globals__
    for part in _codes(function.__code__):
        named = [known[name] for name in part.co_names if name in known]
        for value in [*named, *(held for cell in function.__closure__ or () for held in contents(cell))]:
            yield value
            holder = value if isinstance(value, types.ModuleType | type) else type(value)
            if not is_skipped(holder.__module__ if isinstance(holder, type) else holder.__name__):
                yield from (inspect.getattr_static(holder, name, None) for name in part.co_names)
