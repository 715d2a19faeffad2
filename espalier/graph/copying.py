"""Deep copies of modules, several times as quick as ``copy.deepcopy``: a model is a tree of thousands of small dictionaries.

Modules that are copied as any object is, dictionaries, lists, tuples and values that never change are copied here. All else,
and every class that has a say in how it is copied, goes to ``copy.deepcopy`` with the same memo, so that whatever occurs twice
occurs twice in the copy too. Functions are not copied, nor what they know of the world; what they know of the model, as
methods, closures and defaults do, is that of the copy.
"""

from __future__ import annotations

import copy
import copyreg
import enum
import operator
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph.bound import Bound, knows_something

HOOKS = frozenset({
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_full_backward_hooks",
})  # fmt: skip
COMPILED = "_compiled_call_impl"
TORCHS = HOOKS | {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
EMPTY = frozenset({dict, OrderedDict, set})
UNCHANGEABLE = frozenset({
    int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType, torch.Size,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip


class NoHooks(OrderedDict[int, Any]):
    """Where many modules have no hooks, and none can be registered."""

    def __setitem__(self, key: int, value: Any) -> None:
        raise RuntimeError("This module takes no hooks while it is traced without values.")


def take_hooks(module: nn.Module) -> None:
    """Let hooks be registered with a module."""
    for name in HOOKS:
        if type(module.__dict__.get(name)) is NoHooks:
            module.__dict__[name] = OrderedDict()


class Copier:
    """Copies a module and all that it holds, but no hooks: a copy of one could drag a whole optimizer along.

    Args:
        model: what will be copied.
        memo: by ``id``, what stands in the copy for objects that are not to be copied.
        hookable: whether hooks can be registered with the copy; empty dictionaries for them are a third of all that is copied.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any], *, hookable: bool = True) -> None:
        self._model, self._memo = model, memo
        self._none = None if hookable else NoHooks()
        self._ordinary: dict[type, bool] = {}
        self._hooks_known = False
        self._functions: list[tuple[Any, Any]] = []  # where functions are kept that may know of the model

    def copy(self) -> nn.Module:
        """The copy of the model."""
        made: nn.Module = self.copied(self._model)
        Bound(self._memo).put(self._functions)
        return made

    def copied(self, value: Any) -> Any:
        """A copy, the same each time; ``value`` itself if it can never change."""
        kind = type(value)
        if kind in UNCHANGEABLE:
            return value
        memo = self._memo
        if id(value) in memo:
            return memo[id(value)]
        if kind is tuple:
            if UNCHANGEABLE.issuperset(map(type, value)):  # most
                return value
            items = [self.copied(item) for item in value]
            if all(map(operator.is_, items, value)):
                return value
            return memo.setdefault(id(value), tuple(items))
        if kind is dict or kind is OrderedDict:
            made = memo[id(value)] = kind()
            for key, item in value.items():
                own = key if type(key) is str else self.copied(key)
                made[own] = item if type(item) in UNCHANGEABLE else self.copied(item)
                if type(item) is types.FunctionType and knows_something(item):
                    self._functions.append((made, own))
            return made
        if kind is list:
            row = memo[id(value)] = list[Any]()
            row.extend(value if UNCHANGEABLE.issuperset(map(type, value)) else map(self.copied, value))
            functions = (at for at, item in enumerate(value) if type(item) is types.FunctionType and knows_something(item))
            self._functions += [(row, at) for at in functions]
            return row
        if isinstance(value, nn.Module) and self._is_ordinary(kind):
            return self._module(value, kind)
        if isinstance(value, enum.Enum):
            return value
        if isinstance(value, Tensor) and value.grad_fn is not None:  # kept from a run with gradients: torch copies no such ones
            return memo.setdefault(id(value), value.detach().clone())
        if kind is set and all(type(item) in UNCHANGEABLE for item in value):
            return memo.setdefault(id(value), set(value))
        return self._unusual(value)

    def _module(self, module: nn.Module, kind: type[nn.Module]) -> nn.Module:
        memo, held = self._memo, module.__dict__
        made = memo[id(module)] = kind.__new__(kind)
        attributes = made.__dict__
        attributes.update(held)
        for name, value in held.items():
            kind_of_value = type(value)
            if kind_of_value in UNCHANGEABLE:
                if kind_of_value is types.FunctionType and knows_something(value) and name != COMPILED:
                    self._functions.append((attributes, name))
                continue
            if name in TORCHS and kind_of_value in EMPTY and not value:  # most hooks; of the module alone
                attributes[name] = self._none if name in HOOKS and self._none is not None else kind_of_value()
            elif name in HOOKS:
                attributes[name] = self._hooks(value)
            else:
                attributes[name] = self.copied(value)
        attributes.pop(COMPILED, None)  # as nn.Module.__getstate__ says
        return made

    def _unusual(self, value: Any) -> Any:
        if not self._hooks_known:  # modules may be reached through anything
            self._hooks_known = True
            for module in self._model.modules():
                for name in HOOKS & module.__dict__.keys():
                    hooks = module.__dict__[name]
                    if hooks is not None and id(hooks) not in self._memo:
                        self._hooks(hooks)
        return copy.deepcopy(value, self._memo)

    def _hooks(self, hooks: Any) -> Any:
        made = self._memo[id(hooks)] = hooks.copy()
        if isinstance(made, dict):
            self._functions += [(made, key) for key in made]
        return made

    def _is_ordinary(self, kind: type[nn.Module]) -> bool:
        if kind not in self._ordinary:
            self._ordinary[kind] = _is_ordinary(kind)
        return self._ordinary[kind]


def _is_ordinary(kind: Any) -> bool:
    """Whether a copy is a new object with copies of the attributes. torch's own ``__setstate__`` mend old files only."""
    return (
        kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and not hasattr(kind, "__deepcopy__")
        and kind not in copyreg.dispatch_table
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
        and all("__setstate__" not in vars(base) or base.__module__.startswith("torch.nn.modules.") for base in kind.__mro__)
    )
