"""What there is to prune in a model, as values: groups and what their channels carry, what is frozen, what cuts would save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from espalier.cost import Cost, channel_costs, cost
from espalier.wrappers import unwrap

if TYPE_CHECKING:
    from espalier.graph import ChannelGraph, Group

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ROLES = ("out of", "through", "into")


@dataclass(frozen=True)
class MemberRow:
    """One tensor dimension that a group runs along.

    Attributes:
        entries: how many of the dimension's indices belong to the group.
        role: "out of" a layer, "into" one, or "through" what is neither.
    """

    name: str
    dim: int
    shape: tuple[int, ...]
    entries: int
    role: str

    @property
    def layer(self) -> str:
        """The module that owns the tensor; the tensor itself where that is the model."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True)
class GroupRow:
    """A group. `macs` and `params` are what one channel carries; 0 and with a `reason` where it is frozen."""

    name: str
    size: int
    macs: float
    params: float
    reason: str | None
    members: tuple[MemberRow, ...]


@dataclass(frozen=True)
class Forecast:
    """The cost when every group keeps a share of its channels."""

    keep: float
    macs: int
    params: int
    activations: int


@dataclass(frozen=True)
class LayerRow:
    """A layer with channels, as the drawing shows it. `group` is its place among the groups; None where it is frozen."""

    name: str
    op: str
    width: int
    group: int | None
    reason: str


@dataclass(frozen=True)
class Inspection:
    """All that `espalier inspect` shows.

    Attributes:
        cost: of the model as it is.
        frozen_params: parameters in tensors that no group runs along.
        frozen_why: the same by reason, most first.
        layers: in the order in which they run.
    """

    model: str
    input: tuple[int, ...]
    cost: Cost
    groups: tuple[GroupRow, ...]
    frozen: tuple[GroupRow, ...]
    frozen_params: int
    frozen_why: Mapping[str, int]
    forecast: tuple[Forecast, ...]
    layers: tuple[LayerRow, ...]

    @property
    def frozen_share(self) -> float:
        """Share of the parameters that no cut makes fewer."""
        return self.frozen_params / max(1, self.cost.params)

    def content(self) -> dict[str, Any]:
        """As JSON can hold it."""
        cost, rows = self.cost, ("groups", "frozen", "forecast", "layers")
        return {
            "model": self.model,
            "input": list(self.input),
            **{name: getattr(cost, name) for name in ("macs", "params", "activations", "activation_bytes")},
            "frozen_params": self.frozen_params,
            "frozen_share": self.frozen_share,
            "frozen_why": dict(self.frozen_why),
            **{name: [asdict(row) for row in getattr(self, name)] for name in rows},
            "costs": {name: layer._asdict() for name, layer in cost.layers.items()},
        }


def look_into(model: nn.Module, graph: ChannelGraph, name: str, shape: Sequence[int], ratios: Sequence[float]) -> Inspection:
    """Gather what there is to say about a traced model.

    Args:
        model: the traced model.
        graph: what the trace found.
        name: what to call the model.
        shape: of its inputs.
        ratios: shares of channels kept to forecast.
    """
    model = unwrap(model)
    carried = channel_costs(graph)
    groups = tuple(_row(model, group, *carried[group]) for group in graph.groups)
    frozen = tuple(_row(model, group, 0.0, 0.0) for group in graph.frozen)
    why = _frozen_why(model, groups, frozen)
    return Inspection(
        name,
        tuple(shape),
        cost(graph),
        groups,
        frozen,
        sum(why.values()),
        why,
        tuple(_forecast(graph, ratio) for ratio in ratios),
        tuple(_layers(model, graph, groups, frozen)),
    )


def _row(model: nn.Module, group: Group, macs: float, params: float) -> GroupRow:
    members = []
    for member in group.members:
        layer, _, leaf = member.name.rpartition(".")
        owner = model.get_submodule(layer)
        tensor = getattr(owner, leaf)
        entries = int((member.index >= 0).sum())
        members.append(MemberRow(member.name, member.dim, tuple(tensor.shape), entries, _role(owner, tensor.dim(), member.dim)))
    return GroupRow(group.name, group.size, macs, params, group.reason, tuple(members))


def _role(owner: nn.Module, dims: int, dim: int) -> str:
    layer = isinstance(owner, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
    if not layer or dims < 2:
        return "through"
    return "out of" if (dim == 0) != isinstance(owner, TRANSPOSED) else "into"


def _forecast(graph: ChannelGraph, keep: float) -> Forecast:
    found = cost(graph, {group: max(1, round(group.size * keep)) for group in graph.groups})
    return Forecast(keep, found.macs, found.params, found.activations)


def _frozen_why(model: nn.Module, groups: Sequence[GroupRow], frozen: Sequence[GroupRow]) -> dict[str, int]:
    """Parameters of tensors without a group that can be cut, by the first reason known, most first."""
    alive = {member.name for group in groups for member in group.members}
    reasons: dict[str, str] = {}
    for group in frozen:
        for member in group.members:
            reasons.setdefault(member.name, group.reason or "frozen")
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name not in alive:
            why = reasons.get(name, "it has no channels")
            counts[why] = counts.get(why, 0) + parameter.numel()
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _layers(model: nn.Module, graph: ChannelGraph, groups: Sequence[GroupRow], frozen: Sequence[GroupRow]) -> list[LayerRow]:
    """Every layer that gives channels: the one whose weights say so, in the order of the work done."""
    makers: dict[str, tuple[MemberRow, int | None, str]] = {}
    for rows, alive in ((groups, True), (frozen, False)):
        for place, group in enumerate(rows):
            for member in group.members:
                if member.role == "out of" and member.name.endswith("weight"):
                    makers.setdefault(member.layer, (member, place if alive else None, group.reason or group.name))
    order = dict.fromkeys(work.module for work in graph.work)
    found = []
    for layer in (*(name for name in order if name in makers), *(name for name in makers if name not in order)):
        member, number, words = makers[layer]
        op = type(model.get_submodule(layer)).__name__ if layer else "Parameter"
        found.append(LayerRow(layer, op, member.shape[member.dim], number, words))
    return found
