"""Small modules and readings of a graph that several tests share."""

from __future__ import annotations

from typing import Any

from torch import nn

from espalier.graph import ChannelGraph


def reasons(graph: ChannelGraph) -> str:
    return "\n".join(str(group.reason) for group in graph.frozen)


def members(graph: ChannelGraph, number: int = 0) -> set[tuple[str, int]]:
    return {(member.name, member.dim) for member in graph.groups[number].members}


def two_layers(width: int = 8, inputs: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))


class Calls(nn.Module):
    """A module made of a function of itself and the inputs."""

    def __init__(self, function: Any, **modules: Any) -> None:
        super().__init__()
        self.function = [function]
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function[0](self, *args, **kwargs)
