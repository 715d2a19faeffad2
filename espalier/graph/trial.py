"""Cuts tried on a stand-in: whatever the rules say, a group whose cut breaks the forward pass is not offered."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from espalier.attributes import write
from espalier.graph.composites import CompositesOnMeta
from espalier.graph.graph import ChannelGraph, Group, Mask, Place
from espalier.graph.leaves import leaves_at_once
from espalier.graph.replica import Inputs, named_tensors, replica, tensors_in
from espalier.graph.shortcuts import META, OnMeta

MOST_TRIALS = 60


def freeze_what_breaks(trial: Trial) -> dict[Group, str]:
    """Groups that cannot be cut after all, with the reason; found by halving if the cut of all groups fails."""
    groups, broken = trial.graph.groups, dict[Group, str]()
    _halve(trial, list(range(len(groups))), broken)
    left = [number for number, group in enumerate(groups) if group not in broken]
    if broken and left and (error := trial.error(left)) is not None:  # together they break, each alone does not
        _halve(trial, left, broken, tried=error)
    return broken


class Trial:
    """Cuts of stand-ins.

    Args:
        model: the user's.
        inputs: positional and keyword arguments, on meta if the stand-ins are.
        graph: its groups are cut.
        shapes: of the model's outputs; a cut must not change them.
        stand_in: one, in evaluation mode, that may be used up.
        meta: whether stand-ins are on meta.
        leaves: whether layers of ``torch.nn`` in them need not be run (``leaves.py``).
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        graph: ChannelGraph,
        shapes: list[torch.Size],
        stand_in: nn.Module,
        *,
        meta: bool,
        leaves: bool,
    ) -> None:
        self.model, self.inputs, self.graph, self.shapes = model, inputs, graph, shapes
        self.meta, self.leaves = meta, leaves
        self.count = 0
        self._stand_in: nn.Module | None = stand_in

    def error(self, numbers: Sequence[int]) -> str | None:
        """What goes wrong when these groups are cut, each by a different share."""
        kept: list[Mask | None] = [None] * len(self.graph.groups)
        generator = np.random.default_rng(0)
        for number in numbers:
            size = self.graph.groups[number].size
            mask = np.ones(size, dtype=bool)
            mask[generator.permutation(size)[: max(1, min(size - 1, size // 3 + number % max(2, size // 4)))]] = False
            kept[number] = mask
        used = self._stand_in is not None
        try:
            shapes = self._shapes(kept)
        except Exception as error:
            if used:  # it may remember tensors of the old shapes
                return self.error(numbers)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"a trial cut broke the forward pass: {lines[0][:160]}"
        return None if shapes == self.shapes else "a trial cut changed the shape of the model's output"

    def _shapes(self, kept: list[Mask | None]) -> list[torch.Size]:
        self.count += 1
        stand_in = self._stand_in or replica(self.model, meta=self.meta).eval()
        self._stand_in = None
        apply(stand_in, self.graph, kept)
        with contextlib.ExitStack() as modes:
            for mode in (OnMeta, CompositesOnMeta) if self.meta else ():
                modes.enter_context(mode())
            if self.leaves:
                modes.enter_context(leaves_at_once(stand_in.modules()))
            return [tensor.shape for tensor in tensors_in(stand_in(*self.inputs[0], **self.inputs[1]))]


def _halve(trial: Trial, numbers: list[int], broken: dict[Group, str], tried: str | None = None) -> None:
    error = tried or trial.error(numbers)
    if error is None:
        return
    if len(numbers) == 1 or trial.count > MOST_TRIALS:
        broken.update({trial.graph.groups[number]: error for number in numbers})
        return
    middle, before = len(numbers) // 2, len(broken)
    _halve(trial, numbers[:middle], broken)
    _halve(trial, numbers[middle:], broken)
    if len(broken) == before:  # only both halves together break: give one up
        broken.update({trial.graph.groups[number]: error for number in numbers[middle:]})


def apply(model: nn.Module, graph: ChannelGraph, kept: Sequence[Mask | None]) -> None:
    """Cut a stand-in without ceremony."""
    modules = dict(model.named_modules())
    known = dict(named_tensors(model, modules.items()))
    changed = {id(known[name]): _cut(known[name], alive) for name, alive in _by_tensor(graph.left(kept)).items()}
    for module in modules.values():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in changed:  # not changed in place: it may be the user's own
                module._parameters[leaf] = nn.Parameter(changed[id(parameter)], parameter.requires_grad)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in changed:
                module._buffers[leaf] = changed[id(buffer)]
    for path, value in graph.integers(kept).items():
        write(model, path, value, modules)


def _by_tensor(left: Mapping[Place, Mask]) -> dict[str, dict[int, Mask]]:
    found: dict[str, dict[int, Mask]] = {}
    for (name, dim), alive in left.items():
        found.setdefault(name, {})[dim] = alive
    return found


def _cut(tensor: Tensor, left: Mapping[int, Mask]) -> Tensor:
    """What is left of a tensor, by dimension."""
    if tensor.is_meta:
        shape = list(tensor.shape)
        for dim, alive in left.items():
            shape[dim] = int(np.count_nonzero(alive))
        return torch.empty(shape, dtype=tensor.dtype, device=META)
    tensor = tensor.detach()
    for dim, alive in left.items():
        tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(alive)).to(tensor.device))
    return tensor
