"""Shapes of results on the meta device, where torch works them out by long decompositions in Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor


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


SHORTCUTS: dict[str, Callable[..., Any]] = {
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
}


def fits(name: str, args: Any) -> bool:
    """Whether the arguments agree, as the operation itself would have checked: trial cuts rely on the refusal."""
    x = args[0]
    if name.startswith(("native_batch", "_native_batch")):
        return all(t is None or t.shape[0] == x.shape[1] for t in args[1:5] if t is None or isinstance(t, Tensor))
    if name == "native_layer_norm":
        shape = list(args[1])
        return list(x.shape[x.dim() - len(shape) :]) == shape and all(t is None or list(t.shape) == shape for t in args[2:4])
    n, c, hxw, group = args[3:7]
    return c % group == 0 and math.prod(x.shape) == n * c * hxw and all(t is None or t.shape[0] == c for t in args[1:3])
