"""Operations that put tensors together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from espalier.graph.labels import Dims, Labels, Source
from espalier.graph.rows import stack
from espalier.graph.rules.registry import Arguments, rule


@rule("cat", "concat")
def cat(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """One dimension is the concatenation of all, the others are one."""
    tensors = [tensor for tensor in given["tensors"] if tensor.numel() or tensor.dim() == out.dim()]
    dim = given["dim"] % out.dim()
    dims = _united(labels, op, tensors, skip=dim)
    dims.insert(dim, stack([(labels.of(tensor)[dim], tensor.shape[dim]) for tensor in tensors]))
    labels.put(out, dims)
    labels.put_source(out, _common_source(labels, tensors))


@rule("stack")
def stack_(labels: Labels, op: str, given: Arguments, out: Tensor) -> None:
    """All dimensions are one; the new one has as many indices as the code lists."""
    tensors, dim = given["tensors"], given["dim"] % out.dim()
    dims = _united(labels, op, tensors, skip=None)
    dims.insert(dim, None)
    labels.put(out, dims)
    labels.put_source(out, _common_source(labels, tensors))


def _united(labels: Labels, op: str, tensors: list[Tensor], skip: int | None) -> Dims:
    kept = [[rows for dim, rows in enumerate(labels.of(tensor)) if dim != skip] for tensor in tensors]
    dims = list(kept[0])
    for others in kept[1:]:
        for place, rows in enumerate(others):
            labels.unify(dims[place], rows, op)
            dims[place] = rows if dims[place] is None else dims[place]
    return dims


def _common_source(labels: Labels, tensors: list[Tensor]) -> Source | None:
    sources = [labels.source_of(tensor) for tensor in tensors]
    first = sources[0]
    if first is None or any(source is None or source.serial != first.serial for source in sources):
        return None
    parts = [source.part for source in sources if source is not None]
    masks = [part for part in parts if part is not None]
    return replace(first, part=np.logical_or.reduce(masks) if len(masks) == len(parts) else None)
