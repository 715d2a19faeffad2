"""The labelled passes of a trace: in evaluation mode, and what differs in training mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.graph.calls import Call, Calls, Modules, can_be_watched, modules_followed, set_mode, training_watched
from espalier.graph.classes import asks_for_classes
from espalier.graph.held import Held
from espalier.graph.integers import plain
from espalier.graph.labels import Event, Labels, Source
from espalier.graph.repeats import description, same_events
from espalier.graph.replica import Inputs, named_tensors, tensors_in
from espalier.graph.tracer import labelled
from espalier.graph.twins import Twins


@dataclass
class Passes:
    """A stand-in and what its passes told."""

    model: nn.Module
    inputs: Inputs
    meta: bool
    labels: Labels = field(default_factory=Labels)
    notes: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)


class UnlikeInTraining(Exception):
    """One of like blocks does something else in training mode. So would the others, which have not been run."""


def both_passes(done: Passes, *, twins: bool = True) -> Passes:
    """Label in evaluation and in training mode; like blocks once, if ``twins``.

    Raises:
        UnlikeInTraining: if that will not do; another stand-in is needed.
    """
    labels, model = done.labels, done.model
    modules = list(model.named_modules())
    set_mode(model, modules, training=False)
    calls = Calls.of(modules, labels)
    watch = done.meta and can_be_watched(modules) and not asks_for_classes(modules)
    labels.adopt(named_tensors(done.model, modules))
    calls.twins = Twins(calls, modules) if watch and twins else None
    with labelled(modules, labels, meta=done.meta):
        before = Held(module for _, module in modules)
        with (training_watched if watch else modules_followed)(modules, calls):
            out = model(*done.inputs[0], **done.inputs[1])
        calls.twins = None  # they know the calls
        watch = watch and before.is_same()  # what a model keeps may change its next run
        done.shapes = _frozen(labels, out)
        costs = len(labels.work), len(labels.activations)
        settled = watch and _all_same_in_training(model, modules, calls)
    if watch and not settled and any(call.others for call in calls.asking):
        raise UnlikeInTraining
    if not settled:
        try:
            _train(done)
        except Exception as error:
            done.notes.append(
                f"In training mode the model does not run on these inputs ({first_line(error)}): traced in evaluation mode."
            )
        model.eval()
    del labels.work[costs[0] :], labels.activations[costs[1] :]  # costs are those of inference
    labels.events.clear()  # numbers in them know the labels: only the garbage collector could free that circle
    done.notes += labels.faults
    return done


def _train(done: Passes) -> None:
    done.model.train()
    modules = list(done.model.named_modules())
    done.labels.adopt(named_tensors(done.model, modules))
    with labelled(modules, done.labels, meta=done.meta), modules_followed(modules, Calls.of(modules, done.labels)):
        _frozen(done.labels, done.model(*done.inputs[0], **done.inputs[1]))


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


# -- one call again ------------------------------------------------------------------------------------------------


def _all_same_in_training(model: nn.Module, modules: Modules, calls: Calls) -> bool:
    if not calls.asking:
        return True
    paths = {id(module): path for path, module in modules}
    harmless = set[Any]()  # descriptions of calls that do exactly the same in both modes
    set_mode(model, modules, training=True)
    try:
        for call in calls.asking:
            described = description(call)
            if described is not None and described in harmless:
                continue
            inside = [(paths.get(id(module), ""), module) for module in call.module.modules()]
            with modules_followed(inside, calls):
                events = _same_in_training(calls.labels, call)
            if events is None:
                return False
            if not same_events(calls.labels, call.events, events):
                if call.others:  # what it does there, they would do as well
                    return False
            elif described is not None:
                harmless.add(described)
        return True
    finally:
        set_mode(model, modules, training=False)


def _same_in_training(labels: Labels, call: Call) -> list[Event] | None:
    """Repeat a call in training mode. What it did if the rest of the model cannot tell its results apart: same shapes, same
    axes, nothing kept. None otherwise: all has to be run in training mode."""
    before, start = Held(call.module.modules()), len(labels.events)
    try:
        out = call.module(*call.args, **call.kwargs)
    except Exception:  # the pass of the whole model will say
        return None
    events = labels.events[start:]
    return events if before.is_same() and _alike(labels, call.out, out) else None


def _alike(labels: Labels, one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        rows = zip(labels.of(one), labels.of(other), strict=True)
        return (
            one.shape == other.shape
            and all(labels.same(mine, theirs) for mine, theirs in rows)
            and labels.weight_name(one) == labels.weight_name(other)
            and _same_source(labels.source_of(one), labels.source_of(other))
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(labels, one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(lambda a, b: _alike(labels, a, b), one, other))
    return one is other or (isinstance(one, int | float | str) and bool(plain(one) == plain(other)))


def _same_source(one: Source | None, other: Source | None) -> bool:
    if one is None or other is None:
        return one is other
    parts = one.part is other.part or (one.part is not None and other.part is not None and np.array_equal(one.part, other.part))
    return parts and one.names == other.names and one.dims == other.dims and len(one.given) == len(other.given)
