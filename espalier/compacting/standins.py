"""Copies of the model and its followers, on which channels are folded and zeroed before the model itself is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.compacting.deciding import Verdict
from espalier.compacting.readings import Reading, contribution, merge, united
from espalier.compacting.watching import Watch, watch
from espalier.graph.graph import ChannelGraph, Dim, Mask
from espalier.graph.replica import named_tensors, replica
from espalier.graph.trial import apply


class StandIn:
    """A copy of a model in evaluation mode, with tensors of its own.

    Attributes:
        tensors: parameters and buffers by name.
        changed: names of those that took constants up.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = own_copy(model)
        self.tensors: dict[str, Tensor] = dict(named_tensors(self.model))
        self.changed: set[str] = set()

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Reading], Watch]:
        """What every weight reads, uses of the same weight together; and the watch that saw it."""
        seen = watch(self.model, args, kwargs)
        uses: dict[tuple[str, int], list[Reading]] = {}
        for reading in seen.readings:
            uses.setdefault((reading.weight, reading.dim), []).append(reading)
        return [united(readings) for readings in uses.values()], seen

    @torch.no_grad()
    def fold(self, number: int, verdict: Verdict, done: set[tuple[str, int]]) -> None:
        """Put the constants of removed channels where they go on working."""
        for part in verdict.parts:
            if part.model != number:
                continue
            reading, needs = part.reading, np.any(part.needs, axis=0)
            for channel in np.flatnonzero(verdict.remove).tolist():
                rows = part.rows_of(channel)
                into = part.rows_of(verdict.into[channel]) if channel in verdict.into else rows
                for index, other in zip(rows.tolist(), into.tolist(), strict=True):
                    if needs[index] and (reading.weight, index) not in done:
                        done.add((reading.weight, index))  # an index may be of two groups
                        self._fold(reading, index, other)

    def _fold(self, reading: Reading, index: int, into: int) -> None:
        weight = self.tensors[reading.weight]
        if not reading.targets:
            merge(weight, reading, index, into)
            self.changed.add(reading.weight)
            return
        added = contribution(weight, reading, index)
        for name, sign in reading.targets:
            target = self.tensors[name]
            target.copy_(target.cpu().double() + sign * added)
            self.changed.add(name)

    @torch.no_grad()
    def zero(self, graph: ChannelGraph, kept: Sequence[Mask | None]) -> None:
        """Zero whatever goes with the removed channels."""
        for name, dims in graph.tensors.items():
            for dim, label in enumerate(dims):
                if isinstance(label, Dim) and not (alive := label.alive(kept)).all():
                    tensor = self.tensors[name]
                    tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~alive)).to(tensor.device), 0)

    def cut(self, graph: ChannelGraph, kept: Sequence[Mask | None]) -> nn.Module:
        """A copy without the removed channels."""
        small = replica(self.model, meta=False).eval()
        modules = dict(small.named_modules())
        apply(modules, dict(named_tensors(small, modules.items())), graph, kept)
        return small


def own_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares no tensor."""
    copied = replica(model, meta=False).eval()
    made: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                clone = made.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
                module._parameters[leaf] = clone
    return copied
