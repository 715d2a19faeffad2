"""The labelled passes of a trace: in evaluation mode, and what differs in training mode."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.graph.calls import Call, can_be_watched, training_watched
from espalier.graph.integers import plain
from espalier.graph.labels import Labels, Source
from espalier.graph.replica import Inputs, named_tensors, tensors_in
from espalier.graph.rows import Rows
from espalier.graph.tracer import labelled


@dataclass
class Passes:
    """A stand-in and what its passes told."""

    model: nn.Module
    inputs: Inputs
    meta: bool
    labels: Labels = field(default_factory=Labels)
    notes: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)


def both_passes(done: Passes) -> Passes:
    """Label in evaluation and in training mode."""
    labels, model = done.labels, done.model
    model.eval()
    watch = done.meta and can_be_watched(model)
    labels.adopt(named_tensors(model))
    with labelled(model, labels, meta=done.meta) as calls:
        before = _held(model)
        with training_watched(model, calls) if watch else contextlib.nullcontext():
            out = model(*done.inputs[0], **done.inputs[1])
        watch = watch and _same_objects(before, _held(model))  # what a model keeps may change its next run
        done.shapes = _frozen(labels, out)
        costs = len(labels.work), len(labels.activations)
        model.train()
        settled = watch and all(_same_in_training(labels, call) for call in calls.asking)
    if not settled:
        try:
            _train(done)
        except Exception as error:
            done.notes.append(
                f"In training mode the model does not run on these inputs ({first_line(error)}): traced in evaluation mode."
            )
    del labels.work[costs[0] :], labels.activations[costs[1] :]  # costs are those of inference
    done.notes += labels.faults
    return done


def _train(done: Passes) -> None:
    done.labels.adopt(named_tensors(done.model))
    with labelled(done.model, done.labels, meta=done.meta):
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


def _same_in_training(labels: Labels, call: Call) -> bool:
    """Repeat a call in training mode. True if the rest of the model cannot tell its results apart: same shapes, same axes,
    nothing kept. Otherwise all has to be run in training mode."""
    before = _held(call.module)
    try:
        out = call.module(*call.args, **call.kwargs)
    except Exception:  # the pass of the whole model will say
        return False
    return _same_objects(before, _held(call.module)) and _alike(labels, call.out, out)


def _held(model: nn.Module) -> list[Any]:
    """What the modules hold."""
    held: list[Any] = []
    for module in model.modules():
        values = module.__dict__.values()
        held += values
        for value in values:
            if value and type(value) in (dict, OrderedDict, list):
                held += value if type(value) is list else value.values()
    return held


def _same_objects(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _alike(labels: Labels, one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        rows = zip(labels.of(one), labels.of(other), strict=True)
        return (
            one.shape == other.shape
            and all(_same_rows(labels, mine, theirs) for mine, theirs in rows)
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


def _same_rows(labels: Labels, one: Rows, other: Rows) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return np.array_equal(labels.axes.resolve(one), labels.axes.resolve(other))


def _same_source(one: Source | None, other: Source | None) -> bool:
    if one is None or other is None:
        return one is other
    parts = one.part is other.part or (one.part is not None and other.part is not None and np.array_equal(one.part, other.part))
    return parts and one.names == other.names and one.dims == other.dims and len(one.given) == len(other.given)
