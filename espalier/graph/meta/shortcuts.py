"""The meta device: constants that the code builds elsewhere are brought there, and long decompositions are cut short."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from espalier.graph.meta.operations import SHORTCUTS, empty
from espalier.graph.modes import TorchDispatchMode

HARMLESS = {"alpha", "approximate", "value", "rounding_mode"}  # keywords that change values only
CLONE, IN_ONE_PIECE = torch.ops.aten.clone.default, {"memory_format": torch.contiguous_format}
ANYWHERE = {int, float, bool, str, type(None), torch.dtype}  # arguments that are on no device


@functools.cache
def _shortcut(func: Any) -> Callable[..., Any] | None:
    return SHORTCUTS.get(func.overloadpacket.__name__)


def run_on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on meta tensors, and on constants that the code built on the processor."""
    args = [value if type(value) in ANYWHERE else _meta(value) for value in args]
    quick = _shortcut(func)
    if quick is not None and HARMLESS.issuperset(kwargs):
        found = quick(*args)
        if found is not None:
            return found
    if func is CLONE and kwargs == IN_ONE_PIECE:
        return empty(args[0].shape, args[0])
    return func(*args, **{key: _meta(value) for key, value in kwargs.items()})


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, tuple | list):
        return [_meta(item) for item in value] if value and not isinstance(value[0], int) else value
    return torch.device("meta") if isinstance(value, torch.device) else value


class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs everything on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_on_meta(func, args, kwargs or {})
