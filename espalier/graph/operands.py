"""What an operation was called with."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

PLAIN = frozenset({type(None), int, float, bool, str})


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an ATen operation by name, defaults included."""
    defaults = _defaults(func)
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


@functools.cache
def _defaults(func: Any) -> dict[str, Any]:
    return {a.name: a.default_value if a.has_default_value() else None for a in func._schema.arguments}


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """Those in the arguments or results of an operation, also in lists."""
    found: list[Tensor] = []
    for value in values:
        if type(value) in PLAIN:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list) and value and not isinstance(value[0], int):  # sizes are many
            found += tensors_among(value)
    return found
