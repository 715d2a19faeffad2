"""Deep copies of modules, several times as quick as ``copy.deepcopy``: a model is a tree of thousands of small dictionaries.

Modules that are copied as any object is, dictionaries, lists, tuples and values that never change are copied here. All else,
and every class that has a say in how it is copied, goes to ``copy.deepcopy`` with the same memo, so that whatever occurs twice
occurs twice in the copy too.
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

HOOKS = frozenset({
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_full_backward_hooks",
})  # fmt: skip
TORCHS = HOOKS | {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
EMPTY = frozenset({dict, OrderedDict, set})
UNCHANGEABLE = frozenset({
    int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType, torch.Size,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip


class Copier:
    """Copies a module and all that it holds, but hooks by reference: a copy of one could drag a whole optimizer along.

    Args:
        model: what will be copied.
        memo: by ``id``, what stands in the copy for objects that are not to be copied.
    """

    def __init__(self, model: nn.Module, memo: dict[int, Any]) -> None:
        self._model, self._memo = model, memo
        self._ordinary: dict[type, bool] = {}
        self._hooks_known = False

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
                made[key if type(key) is str else self.copied(key)] = item if type(item) in UNCHANGEABLE else self.copied(item)
            return made
        if kind is list:
            row = memo[id(value)] = list[Any]()
            row.extend(value if UNCHANGEABLE.issuperset(map(type, value)) else map(self.copied, value))
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
                continue
            if name in TORCHS and kind_of_value in EMPTY and not value:  # most hooks; of the module alone
                attributes[name] = kind_of_value()
            elif name in HOOKS:
                attributes[name] = memo[id(value)] = value.copy()
            else:
                attributes[name] = self.copied(value)
        attributes.pop("_compiled_call_impl", None)  # as nn.Module.__getstate__ says
        return made

    def _unusual(self, value: Any) -> Any:
        if not self._hooks_known:  # modules may be reached through anything
            self._hooks_known = True
            for module in self._model.modules():
                for name in HOOKS & module.__dict__.keys():
                    hooks = module.__dict__[name]
                    if hooks is not None:
                        self._memo.setdefault(id(hooks), hooks.copy())
        return copy.deepcopy(value, self._memo)

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
