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
from espalier.graph.meta.operations import META
from espalier.graph.meta.shortcuts import OnMeta
from espalier.graph.passes import Passes
from espalier.graph.replica import named_modules, named_tensors, replica, tensors_in

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
        done: the passes; their stand-in, in evaluation mode, is used up.
        graph: its groups are cut.
    """

    def __init__(self, model: nn.Module, done: Passes, graph: ChannelGraph) -> None:
        self.model, self.done, self.graph = model, done, graph
        self.count = 0

    def error(self, numbers: Sequence[int]) -> str | None:
        """What goes wrong when these groups are cut, each by a different share."""
        kept: list[Mask | None] = [None] * len(self.graph.groups)
        generator = np.random.default_rng(0)
        for number in numbers:
            size = self.graph.groups[number].size
            mask = np.ones(size, dtype=bool)
            mask[generator.permutation(size)[: max(1, min(size - 1, size // 3 + number % max(2, size // 4)))]] = False
            kept[number] = mask
        try:
            shapes = self._shapes(kept)
        except Exception as error:
            if self.count == 1:  # it may remember tensors of the old shapes
                return self.error(numbers)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return f"a trial cut broke the forward pass: {lines[0][:160]}"
        return None if shapes == self.done.shapes else "a trial cut changed the shape of the model's output"

    def _shapes(self, kept: list[Mask | None]) -> list[torch.Size]:
        self.count += 1
        done, modules, tensors = self.done, self.done.modules, self.done.tensors
        if self.count > 1:
            modules = dict(named_modules(replica(self.model, meta=done.meta).eval()))
            tensors = dict(named_tensors(modules[""], modules.items()))
        apply(modules, tensors, self.graph, kept)
        with contextlib.ExitStack() as modes:
            for mode in (OnMeta, CompositesOnMeta) if done.meta else ():
                modes.enter_context(mode())
            if done.watched and done.meta:
                modes.enter_context(leaves_at_once(modules.values()))
            return [tensor.shape for tensor in tensors_in(done.run(modules[""]))]


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


def apply(
    modules: dict[str, nn.Module], tensors: Mapping[str, Tensor], graph: ChannelGraph, kept: Sequence[Mask | None]
) -> None:
    """Cut a stand-in without ceremony.

    Args:
        modules: of the stand-in, by path.
        tensors: its parameters and buffers by name.
        graph: of the model.
        kept: by group.
    """
    changed = {id(tensors[name]): _cut(tensors[name], alive) for name, alive in _by_tensor(graph.left(kept)).items()}
    for module in modules.values():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in changed:  # not changed in place: it may be the user's own
                module._parameters[leaf] = nn.Parameter(changed[id(parameter)], parameter.requires_grad)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in changed:
                module._buffers[leaf] = changed[id(buffer)]
    for path, value in graph.integers(kept).items():
        write(modules[""], path, value, modules)


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
