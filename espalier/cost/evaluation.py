"""The compiled cost of a graph, made once for each state that the graph is in."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from espalier.cost.costs import Cost, Layers
from espalier.cost.form import Floats, Form, Grouping
from espalier.errors import EspalierError

if TYPE_CHECKING:
    from espalier.graph import ChannelGraph, Group


class Compiled:
    """Three forms of one graph, and which layer each of their rows belongs to."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.version = graph.version
        self.sizes: Floats = np.array([group.size for group in graph.groups], dtype=np.float64)
        self.place = {group: place for place, group in enumerate(graph.groups)}
        owners = [name.rpartition(".")[0] for name in graph.weights]
        macs, activations = [work.module for work in graph.work], [work.module for work in graph.activations]
        layers = {layer: place for place, layer in enumerate(dict.fromkeys((*activations, *macs, *owners)))}
        self.layers = layers
        count = len(self.sizes)
        self.macs = Form([work.extents for work in graph.work], count)
        self.params = Form(graph.weights.values(), count)
        self.activations = Form([work.extents for work in graph.activations], count)
        self._forms = (
            (self.macs, Grouping(macs, layers)),
            (self.params, Grouping(owners, layers)),
            (self.activations, Grouping(activations, layers)),
        )

    def shares(self, widths: Floats) -> Floats:
        """Share of its channels that each group keeps, (..., groups) -> (..., groups)."""
        return widths / self.sizes

    def cost(self, widths: Floats, element_size: int) -> Cost:
        """Everything at one choice of widths, (groups,)."""
        shares = self.shares(widths)
        columns = [grouping.add(form.rows(shares)) for form, grouping in self._forms]
        macs, params, activations = (int(column.sum()) for column in columns)
        return Cost(macs, params, activations, activations * element_size, Layers(self.layers, *columns))


_compiled: WeakKeyDictionary[ChannelGraph, Compiled] = WeakKeyDictionary()


def compiled(graph: ChannelGraph) -> Compiled:
    """The compiled cost of a graph; built anew after a cut."""
    if not isinstance(getattr(graph, "version", None), int):
        raise EspalierError(f"A graph is needed here, as es.trace(model, inputs) returns it; got {type(graph).__name__}.")
    found = _compiled.get(graph)
    if found is None or found.version != graph.version:
        found = _compiled[graph] = Compiled(graph)
    return found


def cost(graph: ChannelGraph, widths: Mapping[Group, int] | None = None) -> Cost:
    """MACs, parameters and activations of a network at any widths, without touching it.

    Args:
        graph: what ``es.trace`` found.
        widths: channels that each group keeps; groups that are not named keep all.

    Returns:
        Totals and layers, for one pass with the traced inputs: trace a batch of one for costs per image.

    Raises:
        EspalierError: a width is below 1 or above the group's size, or a group belongs to another graph.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> graph = es.trace(net, torch.zeros(1, 8))
        >>> es.cost(graph).macs, es.cost(graph, {graph.groups[0]: 4}).macs
        (160, 40)
    """
    found = compiled(graph)
    chosen = found.sizes.copy()
    for group, width in (widths or {}).items():
        place = position(found, group)
        chosen[place] = _checked(group, width)
    return found.cost(chosen, graph.element_size)


class ChannelCost(NamedTuple):
    """What one channel of a group costs, on average: all that goes with the others but one, shared among them."""

    macs: float
    params: float


def channel_costs(graph: ChannelGraph) -> dict[Group, ChannelCost]:
    """What a channel of each group carries: (whole cost - cost with one channel left) / (channels - 1).

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> list(channel_costs(es.trace(net, torch.zeros(1, 8))).values())
        [ChannelCost(macs=10.0, params=11.0)]
    """
    found = compiled(graph)
    count = len(found.sizes)
    alone = np.repeat(found.sizes[None], count, axis=0)
    np.fill_diagonal(alone, 1.0)
    others = np.maximum(found.sizes - 1, 1)
    whole = np.ones(count)
    macs, params = ((form.total(whole) - form.total(found.shares(alone))) / others for form in (found.macs, found.params))
    return dict(zip(graph.groups, map(ChannelCost, macs.tolist(), params.tolist()), strict=True))


def position(found: Compiled, group: Group) -> int:
    """Where a group stands in ``graph.groups``.

    Raises:
        EspalierError: it is frozen, or of another graph.
    """
    place = found.place.get(group) if isinstance(group, Hashable) else None
    if place is None:
        name = getattr(group, "name", group)
        why = getattr(group, "reason", None)
        what = f"is frozen ({why})" if why else "is not among the groups of this graph"
        raise EspalierError(f"The group {name!r} {what}: take groups from graph.groups.")
    return place


def _checked(group: Group, width: int) -> int:
    try:
        whole = operator.index(width)
    except TypeError:
        raise EspalierError(
            f"The width of group {group.name!r} must be a whole number of channels (len() of the channels that stay), "
            f"not {reprlib.repr(width)}."
        ) from None
    if not 1 <= whole <= group.size:
        raise EspalierError(
            f"Group {group.name!r} has {group.size} channels: it can keep 1 to {group.size} of them, not {whole}."
        )
    return whole
