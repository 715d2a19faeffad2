"""Operations that work entry by entry, with broadcasting; and those that give every entry its own place again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from espalier.graph.labels import Dims, Labels, Source
from espalier.graph.rules.registry import Arguments, rule

SCALING = {"mul", "div", "neg", "clone", "_to_copy", "native_dropout", "dropout", "contiguous"}


@rule(
    "elementwise", "native_dropout", "clone", "_to_copy", "copy", "lift_fresh", "alias", "detach", "fill", "zero",
    "bernoulli", "uniform", "normal", "exponential", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "hardswish", "hardtanh", "hardsigmoid", "relu6", "silu", "gelu", "prelu", "_prelu_kernel", "rrelu",
    "celu", "selu", "threshold", "where", "masked_fill", "nan_to_num", "_conj", "resolve_conj", "resolve_neg",
    "dropout", "feature_dropout", "rrelu_with_noise",
)  # fmt: skip
def elementwise(labels: Labels, op: str, given: Arguments, out: Any) -> None:
    """Dimensions are aligned from the right; those of equal length are one, those of length 1 are spread."""
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    if len(tensors) == 1 and isinstance(out, Tensor) and out.shape == tensors[0].shape:
        labels.put_like(out, tensors[0])
        labels.put_source(out, labels.source_of(tensors[0]) if op.removesuffix("_") in SCALING else None)
        return
    results = out if isinstance(out, tuple | list) else (out,)
    shape = results[0].shape
    dims: Dims = [None] * len(shape)
    for tensor in tensors:
        offset = len(shape) - tensor.dim()
        for dim, rows in enumerate(labels.of(tensor)):
            place = dim + offset
            if place < 0 or tensor.shape[dim] == 1 or tensor.shape[dim] != shape[place]:
                continue
            if _first(tensors, tensor, place, shape):
                dims[place] = rows
            else:
                labels.unify(dims[place], rows, op)
                dims[place] = rows if dims[place] is None else dims[place]
    for result in results:
        if isinstance(result, Tensor) and result.shape == shape:
            labels.put(result, dims)
            labels.put_source(result, _source(labels, op.removesuffix("_"), tensors))


def _first(tensors: list[Tensor], tensor: Tensor, place: int, shape: Any) -> bool:
    """Whether ``tensor`` is the first that spans a dimension of the result: nothing to unify it with yet."""
    for earlier in tensors:
        if earlier is tensor:
            return True
        dim = place - (len(shape) - earlier.dim())
        if dim >= 0 and earlier.shape[dim] == shape[place] != 1:
            return False
    return True


def _source(labels: Labels, op: str, tensors: list[Tensor]) -> Source | None:
    """The layer that still scales the result."""
    found = {place: source for place, tensor in enumerate(tensors) if (source := labels.source_of(tensor)) is not None}
    named = [name for tensor in tensors if (name := labels.name_of(tensor)) is not None]
    if not found:  # a learned factor of something that is normalised
        return labels.new_source(named, [0]) if op == "mul" and len(tensors) == 2 and len(named) == 1 else None
    first, source = next(iter(found.items()))
    if op in SCALING and len(found) == 1:
        others = [tensor for place, tensor in enumerate(tensors) if place != first]
        if (op == "div" and first > 0) or labels.newest(*others) >= source.serial:  # x / x.norm() does not grow with x
            return None
        return source
    if op == "add" and len(found) == len(tensors):
        return source if all(other.serial == source.serial and other.part is source.part for other in found.values()) else None
    if op == "add" and len(found) == len(named) == 1 and len(tensors) == 2:  # a bias added apart
        return replace(source, names=(*source.names, *named), dims=(*source.dims, 0))
    return None
