"""What the integers of torch's layers count: ``conv.out_channels`` is the length of a dimension of its weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from espalier.graph.integers import Attribute, Expression, Origin
from espalier.graph.labels import Dims
from espalier.graph.rows import Rows

DIMENSION = {
    "out_channels": 0, "out_features": 0, "num_features": 0, "num_channels": 0,
    "in_channels": 1, "in_features": 1, "embedding_dim": 1,
}  # fmt: skip


def counted(origins: Iterable[Origin], modules: Mapping[str, nn.Module], parameters: Mapping[str, Dims]) -> dict[str, Rows]:
    """Rows of the dimensions that the attributes in some numbers count, by their paths.

    Args:
        origins: of the numbers.
        modules: by path.
        parameters: their rows by name.
    """
    found: dict[str, Rows] = {}
    for attribute in _attributes(origins):
        owner, _, name = attribute.path.rpartition(".")
        layer, dims = modules.get(owner), parameters.get(f"{owner}.weight" if owner else "weight")
        if layer is None or dims is None or name not in DIMENSION or not type(layer).__module__.startswith("torch.nn."):
            continue
        rows = _rows(layer, dims, DIMENSION[name])
        if rows is not None and len(rows) == attribute.value:  # not so where there are groups
            found[attribute.path] = rows
    return found


def _attributes(origins: Iterable[Origin]) -> Iterator[Attribute]:
    for origin in origins:
        if isinstance(origin, Expression):
            yield from _attributes((origin.left, origin.right))
        elif isinstance(origin, Attribute):
            yield origin


def _rows(layer: nn.Module, dims: Dims, dim: int) -> Rows:
    turned = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    depthwise = getattr(layer, "groups", 1) > 1 and dims[1] is None
    place = 0 if len(dims) == 1 or depthwise else 1 - dim if turned else dim
    return dims[place]
