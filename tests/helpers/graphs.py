"""Graphs written by hand: groups, work and weights as a trace would find them, for tests of what is built on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from espalier.graph.extent import Extent, Work


@dataclass(eq=False)
class FakeMember:
    name: str
    dim: int
    index: Tensor


@dataclass(eq=False)
class FakeGroup:
    name: str
    size: int
    members: tuple[FakeMember, ...] = ()
    reason: str | None = None


@dataclass(eq=False)
class FakeGraph:
    groups: tuple[FakeGroup, ...]
    work: tuple[Work, ...] = ()
    weights: dict[str, tuple[Extent, ...]] = field(default_factory=dict)
    activations: tuple[Work, ...] = ()
    frozen: tuple[FakeGroup, ...] = ()
    version: int = 0
    element_size: int = 4


def chain(widths: Sequence[int], classes: int = 10, pixels: int = 16) -> FakeGraph:
    """Convolutions 3 x 3 one after the other on ``pixels`` places, then a linear layer; each convolution is a group."""
    groups = tuple(FakeGroup(f"conv{k}", width) for k, width in enumerate(widths))
    extents = [Extent.fixed(3), *(Extent(((group.size, (k,)),)) for k, group in enumerate(groups))]
    work, weights, activations = [], {}, []
    for k in range(len(widths)):
        kernel = (extents[k + 1], extents[k], Extent.fixed(3), Extent.fixed(3))
        work.append(Work(f"conv{k}", "convolution", (*kernel, Extent.fixed(pixels))))
        weights[f"conv{k}.weight"] = kernel
        activations.append(Work(f"conv{k}", "convolution", (extents[k + 1], Extent.fixed(pixels))))
    head = (Extent.fixed(classes), extents[-1])
    work.append(Work("fc", "addmm", head))
    weights |= {"fc.weight": head, "fc.bias": (Extent.fixed(classes),)}
    activations.append(Work("fc", "addmm", (Extent.fixed(classes),)))
    return FakeGraph(groups, tuple(work), weights, tuple(activations))
