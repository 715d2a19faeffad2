"""What the layers of ``torch.nn`` say about their own shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from espalier.attributes import read_integer
from espalier.structure import Shape


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
