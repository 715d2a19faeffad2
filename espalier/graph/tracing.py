"""``trace``: which channels of a model belong together."""

from __future__ import annotations

from typing import Any

from torch import nn

from espalier.errors import EspalierError
from espalier.graph.assemble import assemble
from espalier.graph.counted import counted
from espalier.graph.graph import ChannelGraph, Group
from espalier.graph.labels import Labels
from espalier.graph.passes import Passes, UnlikeInTraining, both_passes, first_line
from espalier.graph.replica import as_call, named, quiet, replica, stand_ins, tensors_in
from espalier.graph.rows import Rows
from espalier.graph.trial import Trial, freeze_what_breaks
from espalier.wrappers import unwrap


def trace(model: nn.Module, example_inputs: Any, *, check: bool = True) -> ChannelGraph:
    """Find the groups of channels of a model by running it, labelled, in evaluation and in training mode.

    The model is run as a copy without memory (on the meta device). Models whose code looks at values, if only in training mode,
    run as a copy with values. Model, inputs and random generators are left exactly as they were. Forward
    hooks run with the copy, since they are part of what it computes; those of the model's own objects act on their copies.

    Args:
        model: any module; inside torch.compile or DistributedDataParallel the inner one is traced.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the model's device or on meta.
        check: try a cut of all groups on a copy, and freeze what breaks.

    Returns:
        The graph; names in it are those of the unwrapped model.

    Raises:
        EspalierError: if the model does not run on these inputs, or cannot be copied.

    Example:
        >>> import torch, espalier as es
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> graph = es.trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.size) for group in graph.groups]
        [('0', 8)]
        >>> [member.name for member in graph.groups[0].members]
        ['0.weight', '0.bias', '1.weight', '1.bias', '3.weight', '1.running_mean', '1.running_var']
        >>> graph.frozen[-1].reason
        "reaches the model's output"
    """
    if not isinstance(model, nn.Module):
        raise EspalierError(f"trace takes a torch.nn.Module and example inputs, not {type(model).__name__}.")
    model = unwrap(model)
    args, kwargs = as_call(example_inputs)
    with quiet():  # all but the graph is gone when it ends: the garbage collector goes through what is left
        return _traced(model, args, kwargs, check)


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], check: bool) -> ChannelGraph:
    done = _label(model, args, kwargs)
    labels = done.labels
    for event in labels.attention:
        if event.source.serial in labels.multiplied:
            labels.axes.freeze(event.width, f"scales the attention, but the query is used elsewhere too ({event.module})")
    labels.constraints.settle()
    labels.constraints.layers = counted(labels.constraints.real, done.modules, labels.parameters)
    buffers = frozenset(name for name, _ in named(done.modules.items(), "_buffers"))
    graph = assemble(labels, done.tensors, buffers)
    if check and graph.groups:
        broken = freeze_what_breaks(Trial(model, done, graph))
        for group, reason in broken.items():
            labels.axes.freeze(_rows_of(labels, group), reason)
        graph = assemble(labels, done.tensors, buffers) if broken else graph
    graph.notes = done.notes
    return graph


def _rows_of(labels: Labels, group: Group) -> Rows:
    member = group.members[0]
    rows = labels.parameters[member.name][member.dim]
    return None if rows is None else rows[member.index.numpy() >= 0]


def _label(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Passes:
    """Labels of both passes: on meta if that works, else with values."""
    if not any(True for _ in tensors_in([args, kwargs])):
        raise EspalierError(
            "There is no tensor in example_inputs: give what the model's forward takes, such as torch.zeros(1, 3, 224, 224)."
        )
    if not any(tensor.numel() for tensor in tensors_in([args, kwargs])):
        raise EspalierError("The tensors in example_inputs are empty: give at least one item.")
    try:
        try:
            return both_passes(Passes(replica(model, meta=True), stand_ins((args, kwargs), meta=True), True))
        except UnlikeInTraining:
            return both_passes(Passes(replica(model, meta=True), stand_ins((args, kwargs), meta=True), True), twins=False)
    except EspalierError:
        raise
    except Exception as first:
        done = Passes(replica(model, meta=False), stand_ins((args, kwargs), meta=False), False)
        done.notes.append(f"Run with values, since without them: {first_line(first)}")
        try:
            return both_passes(done)
        except EspalierError:
            raise
        except Exception as error:
            raise EspalierError(
                f"The {type(model).__name__} does not run on these example inputs ({type(error).__name__}: "
                f"{first_line(error)}); give inputs that its forward takes."
            ) from first
