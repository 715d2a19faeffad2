"""The meta device: constants that the code builds elsewhere are brought there, and long decompositions are cut short."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from espalier.graph.modes import TorchDispatchMode


def _batch_norm(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    return x.new_empty(x.shape), x.new_empty(channels), x.new_empty(channels)


def _layer_norm(x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = len(normalized_shape)
    statistic = (*x.shape[: x.dim() - count], *[1] * count)
    return x.new_empty(x.shape), x.new_empty(statistic), x.new_empty(statistic)


def _group_norm(
    x: Tensor, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((n, group)), x.new_empty((n, group))


def _like_the_largest(*args: Any, **_: Any) -> Tensor:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return torch.empty_like(max(tensors, key=Tensor.numel))


def _itself(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


ELEMENTWISE = frozenset(
    {"add", "sub", "mul", "div", "gelu", "relu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "clone"}
    | {"_softmax", "_safe_softmax"}
)
NORMS: dict[str, Callable[..., Any]] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
}


def shortcut(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """A quick way to the shapes of an operation's results, if there is one for these arguments."""
    if name in ELEMENTWISE:
        return _like_the_largest if _is_simple(args, kwargs) else None
    if name.endswith("_") and name[:-1] in ELEMENTWISE:
        return _itself if _is_simple(args, kwargs) and _spans(args) else None
    return NORMS[name] if name in NORMS and not kwargs and _fits(name, args) else None


def _is_simple(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """One dtype, and one operand has the shape of the result: the others are equal, or spread along what it has."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if not tensors or any(isinstance(value, Tensor) or key in ("out", "memory_format") for key, value in kwargs.items()):
        return False
    whole = max(tensors, key=Tensor.numel)
    return all(tensor.dtype == whole.dtype and _spreads(tensor.shape, whole.shape) for tensor in tensors)


def _spans(args: Sequence[Any]) -> bool:
    """Whether an operation in place has room for its result."""
    return all(tensor.numel() <= args[0].numel() for tensor in args if isinstance(tensor, Tensor))


def _spreads(small: Sequence[int], large: Sequence[int]) -> bool:
    if len(small) > len(large):
        return False
    return all(one in (1, other) for one, other in zip(reversed(small), reversed(large), strict=False))


def _fits(name: str, args: Any) -> bool:
    """Whether the arguments agree, as the operation itself would have checked: trial cuts rely on the refusal."""
    x = args[0]
    if name.startswith(("native_batch", "_native_batch")):
        return all(t is None or t.shape[0] == x.shape[1] for t in args[1:5] if t is None or isinstance(t, Tensor))
    if name == "native_layer_norm":
        shape = list(args[1])
        return list(x.shape[x.dim() - len(shape) :]) == shape and all(t is None or list(t.shape) == shape for t in args[2:4])
    n, c, hxw, group = args[3:7]
    return c % group == 0 and math.prod(x.shape) == n * c * hxw and all(t is None or t.shape[0] == c for t in args[1:3])


def run_on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on meta tensors, and on constants that the code built on the processor."""
    args, kwargs = [_meta(value) for value in args], {key: _meta(value) for key, value in kwargs.items()}
    quick = shortcut(func.overloadpacket.__name__, args, kwargs)
    return func(*args, **kwargs) if quick is None else quick(*args)


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if isinstance(value, tuple | list):
        return [_meta(item) for item in value]
    return torch.device("meta") if isinstance(value, torch.device) else value


class OnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs everything on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_on_meta(func, args, kwargs or {})
