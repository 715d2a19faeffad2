"""Numbers that modules keep beside their tensors: ``conv1.out_channels``, ``norm.normalized_shape[0]``, ``attn.scale``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from espalier.errors import EspalierError
from espalier.structure import Shape


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


def write(model: nn.Module, path: str, value: float) -> None:
    """Set the number at ``path``; a tuple or list around it is made anew."""
    module, name, place = _found(model, path)
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


def _found(model: nn.Module, path: str) -> tuple[nn.Module, str, int | None]:
    owner, _, leaf = path.rpartition(".")
    name, bracket, place = leaf.partition("[")
    return model.get_submodule(owner), name, int(place.rstrip("]")) if bracket else None


def integers_of_layers(model: nn.Module, shapes: Mapping[str, Shape], known: Mapping[str, int]) -> dict[str, int]:
    """What the layers of ``torch.nn`` say about their own shapes when their parameters get new ones.

    Args:
        model: with its present shapes.
        shapes: new shapes of the parameters that change.
        known: integers that are being rewritten for other reasons, such as the groups of a convolution.
    """
    found: dict[str, int] = {}
    for owner in {name.rpartition(".")[0] for name in shapes}:
        module, prefix = model.get_submodule(owner), f"{owner}." if owner else ""
        new = {leaf: shapes.get(f"{prefix}{leaf}", tuple(p.shape)) for leaf, p in module._parameters.items() if p is not None}
        new |= {leaf: shapes.get(f"{prefix}{leaf}", tuple(b.shape)) for leaf, b in module._buffers.items() if b is not None}
        values = _described(
            module, new, {leaf: known[prefix + leaf] for leaf in ("groups", "num_heads") if prefix + leaf in known}
        )
        found |= {f"{prefix}{leaf}": value for leaf, value in values.items()}
    return {path: value for path, value in found.items() if read_integer(model, path) != value} | dict(known)


def _described(module: nn.Module, shapes: Mapping[str, Shape], known: Mapping[str, int]) -> dict[str, int]:
    weight = shapes.get("weight", ())
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        groups = known.get("groups", module.groups)
        one, two = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        return {one: weight[0], two: weight[1] * groups}
    if isinstance(module, nn.Linear) and weight:
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        channels = weight or shapes.get("running_mean", ())
        return {"num_features": channels[0]} if channels else {}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.LayerNorm) and weight:
        return {f"normalized_shape[{place}]": size for place, size in enumerate(weight)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight[0]}
    if isinstance(module, nn.MultiheadAttention) and (width := _attention_width(shapes)):
        heads = known.get("num_heads", module.num_heads)
        same = {leaf: width for leaf in ("kdim", "vdim") if getattr(module, leaf) == module.embed_dim}
        return {"embed_dim": width, "head_dim": width // heads, **same}
    return {}


def _attention_width(shapes: Mapping[str, Shape]) -> int:
    packed, apart = shapes.get("in_proj_weight"), shapes.get("q_proj_weight")
    return packed[0] // 3 if packed else apart[0] if apart else 0
