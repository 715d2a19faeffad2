"""Numbers that modules keep beside their tensors: ``conv1.out_channels``, ``norm.normalized_shape[0]``, ``attn.scale``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from espalier.errors import EspalierError


def read_integer(model: nn.Module, path: str) -> int:
    """The integer at ``path``.

    Raises:
        EspalierError: if there is none.
    """
    value = _value(model, path)
    if not isinstance(value, int) or isinstance(value, bool):
        raise EspalierError(f"The model has no integer {path!r} to rewrite.")
    return value


def read_scale(model: nn.Module, path: str) -> float:
    """The float at ``path``.

    Raises:
        EspalierError: if there is none.
    """
    value = _value(model, path)
    if not isinstance(value, float):
        raise EspalierError(f"The model has no number {path!r} to rewrite.")
    return value


def write(model: nn.Module, path: str, value: float, modules: Mapping[str, nn.Module] | None = None) -> None:
    """Set the number at ``path``; a tuple or list around it is made anew.

    Args:
        model: where paths start.
        path: of the number.
        value: the new one.
        modules: ``model.named_modules()`` as a dictionary, to look paths up in.
    """
    module, name, place = _found(model, path, modules)
    if place is None:
        setattr(module, name, value)
        return
    items = list(getattr(module, name))
    items[place] = value
    setattr(module, name, type(getattr(module, name))(items))


def _value(model: nn.Module, path: str) -> Any:
    try:
        module, name, place = _found(model, path)
        value = getattr(module, name)
        return value if place is None else value[place]
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _found(model: nn.Module, path: str, modules: Mapping[str, nn.Module] | None = None) -> tuple[nn.Module, str, int | None]:
    owner, _, leaf = path.rpartition(".")
    name, bracket, place = leaf.partition("[")
    module = modules[owner] if modules is not None and owner in modules else model.get_submodule(owner)
    return module, name, int(place.rstrip("]")) if bracket else None
