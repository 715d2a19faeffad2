"""The labelled passes of a trace: in evaluation mode, and what differs in training mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from espalier.graph import training
from espalier.graph.calls import (
    Calls,
    can_be_watched,
    modules_followed,
    only_sets_flags,
    set_mode,
    sets_flags,
    training_watched,
)
from espalier.graph.classes import asks_for_classes
from espalier.graph.held import Held
from espalier.graph.labels import Labels
from espalier.graph.modes import without_functions
from espalier.graph.replica import Inputs, fresh, named_modules, named_tensors, tensors_in
from espalier.graph.tracer import labelled
from espalier.graph.twins import Twins


@dataclass
class Passes:
    """A stand-in and what its passes told."""

    model: nn.Module
    inputs: Inputs
    meta: bool
    watched: bool = False  # whether its modules could get other classes for a while
    labels: Labels = field(default_factory=Labels)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)  # parameters, then buffers
    notes: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)

    def run(self, model: nn.Module) -> Any:
        """What a stand-in returns."""
        args, kwargs = fresh(self.inputs)
        return model(*args, **kwargs)


class UnlikeInTraining(Exception):
    """One of like blocks does something else in training mode. So would the others, which have not been run."""


def both_passes(done: Passes, *, twins: bool = True) -> Passes:
    """Label in evaluation and in training mode; like blocks once, if ``twins``.

    Raises:
        UnlikeInTraining: if that will not do; another stand-in is needed.
        Exception: what the model raises in evaluation mode, or for want of values in training mode.
    """
    labels, model = done.labels, done.model
    modules = named_modules(model)
    flags = only_sets_flags(modules)
    if done.meta and not flags:  # caches are emptied: what an earlier run has left is of no parameter any more
        set_mode(model, modules, training=True, flags=flags)
    set_mode(model, modules, training=False, flags=flags)
    calls = Calls.of(modules, labels)
    watch = done.watched = can_be_watched(modules) and not asks_for_classes(modules)
    done.modules, done.tensors = dict(modules), dict(named_tensors(done.model, modules))
    labels.adopt(done.tensors.items())
    calls.twins = Twins(calls, modules) if watch and twins and done.meta else None
    with labelled(modules, labels, meta=done.meta) as functions:
        before = calls.held = Held(calls.without_leaves(done.modules.values()))
        calls.at_once = functions.at_once if watch else None
        with (training_watched if watch else modules_followed)(modules, calls):
            out = done.run(model)
            calls.twins = None  # they know the calls
            done.shapes = _frozen(labels, out)
            if not done.shapes:
                done.notes.append("The model returns no tensors, so that no channels are kept for its output.")
            costs = len(labels.work), len(labels.activations)
            kept = not (flags and before.is_same())
            set_mode(model, modules, training=True, flags=flags)
            if not flags and calls.differ_in_mode():
                raise UnlikeInTraining
            settled = (
                watch
                and (not kept or _caches_only(before, calls))
                and training.settled(calls, lambda out: _frozen(labels, out))
            )
    if not settled:
        if any(call.others for call in calls.ended):
            raise UnlikeInTraining
        try:
            _train(done)
        except Exception as error:
            if done.meta and _wants_values(error):
                raise
            done.notes.append(
                f"In training mode the model does not run on these inputs ({first_line(error)}): traced in evaluation mode."
            )
    set_mode(model, modules, training=False, flags=flags)
    del labels.work[costs[0] :], labels.activations[costs[1] :]  # costs are those of inference
    labels.events.clear()  # numbers in them know the labels: only the garbage collector could free that circle
    done.notes += labels.faults
    return done


def _caches_only(before: Held, calls: Calls) -> bool:
    """Whether all that a run leaves behind for the next are caches of modules that ask for the mode: those are repeated with
    what they find. Modules that do something of their own when the mode is set must be among them: who knows what it is."""
    with without_functions():  # shapes are compared
        changed = before.changed(calls.labels)
    if changed is None:
        return False
    asking = {id(call.module) for call in calls.ended if call.asked}
    caching = {id(module) for module in changed}
    told = {id(module) for module in before.modules() if not sets_flags(type(module))}
    return caching <= asking and told <= caching


def _train(done: Passes) -> None:
    done.model.train()
    modules = named_modules(done.model)
    done.labels.adopt(named_tensors(done.model, modules))
    with labelled(modules, done.labels, meta=done.meta), modules_followed(modules, Calls.of(modules, done.labels)):
        _frozen(done.labels, done.run(done.model))


def _wants_values(error: Exception) -> bool:
    """Whether code has failed since there are no values on the meta device."""
    return isinstance(error, NotImplementedError) or any(words in str(error) for words in OF_META)


OF_META = ("meta", "Meta", "single element", "unallocated storage", "unsupported format string")


def _frozen(labels: Labels, out: Any) -> list[torch.Size]:
    """Outputs keep their shapes."""
    tensors = list(tensors_in(out))
    for tensor in tensors:
        for rows in labels.of(tensor):
            labels.axes.freeze(rows, "reaches the model's output")
    return [tensor.shape for tensor in tensors]


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return str(error).strip().split("\n")[0][:200]
