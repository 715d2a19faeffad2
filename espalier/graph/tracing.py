"""``trace``: which channels of a model belong together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.graph.assemble import assemble
from espalier.graph.graph import ChannelGraph
from espalier.graph.labels import Labels
from espalier.graph.replica import as_call, named_tensors, quiet, replica, tensors_in
from espalier.graph.tracer import run
from espalier.graph.trial import freeze_what_breaks
from espalier.wrappers import unwrap


def trace(model: nn.Module, example_inputs: Any, *, check: bool = True) -> ChannelGraph:
    """Find the groups of channels of a model by running it, labelled, in evaluation and in training mode.

    The model is run as a copy without memory (on the meta device) and is left exactly as it was. Models whose code looks at
    values run as a copy that shares their parameters.

    Args:
        model: any module; inside torch.compile or DistributedDataParallel the inner one is traced.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the model's device or on meta.
        check: try a cut of all groups on a copy, and freeze what breaks.

    Returns:
        The graph; names in it are those of the unwrapped model.

    Raises:
        EspalierError: if the model does not run on these inputs, or cannot be copied.

    Example:
        >>> import espalier as es
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> graph = es.trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.size) for group in graph.groups]
        [('0', 8)]
        >>> [(member.name, member.dim) for member in graph.groups[0].members]
        [('0.weight', 0), ('0.bias', 0), ('1.weight', 0), ('1.bias', 0), ('1.running_mean', 0), ('1.running_var', 0), ('3.weight', 1)]
        >>> graph.frozen[-1].reason
        "reaches the model's output"
    """
    if not isinstance(model, nn.Module):
        raise EspalierError(f"trace takes a torch.nn.Module and example inputs, not {type(model).__name__}.")
    model = unwrap(model)
    args, kwargs = as_call(example_inputs)
    _check_inputs(model, args, kwargs)
    with quiet():
        labels, notes, meta = _label(model, args, kwargs)
        labels.constraints.settle()
        graph = assemble(labels, dict(named_tensors(model)), frozenset(name for name, _ in model.named_buffers()))
        graph.notes = notes
        if check and graph.groups:
            broken = freeze_what_breaks(model, args, kwargs, graph, meta=meta)
            if broken:
                for group, reason in broken.items():
                    labels.axes.freeze(_rows_of(labels, group), reason)
                graph = assemble(labels, graph_tensors(model), graph.buffers)
                graph.notes = notes
    return graph


def graph_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(named_tensors(model))


def _rows_of(labels: Labels, group: Any) -> Any:
    import numpy as np

    for member in group.members:
        rows = labels.parameters[member.name][member.dim]
        if rows is not None:
            return rows[np.asarray(member.index) >= 0]
    return None


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = list(tensors_in([args, kwargs]))
    if not given:
        raise EspalierError(
            "There is no tensor in example_inputs: give what the model's forward takes, such as torch.zeros(1, 3, 224, 224)."
        )


def _label(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Labels, list[str], bool]:
    """Labels of both passes: on meta if that works, else with values."""
    first: Exception | None = None
    for meta in (True, False):
        labels, notes = Labels(), [] if first is None else [f"Run with values, since without them: {_first_line(first)}"]
        stand_in = replica(model, meta=meta)
        inputs = _on_meta((args, kwargs)) if meta else (args, kwargs)
        try:
            _pass(stand_in.eval(), inputs, labels, meta=meta)
        except EspalierError:
            raise
        except Exception as error:
            if not meta:
                raise EspalierError(
                    f"The {type(model).__name__} does not run on these example inputs ({type(error).__name__}: "
                    f"{_first_line(error)}); give inputs that its forward takes."
                ) from (first or error)
            first = error
            continue
        try:
            _pass(stand_in.train(), inputs, labels, meta=meta, again=True)
        except Exception as error:
            notes.append(
                f"In training mode the model does not run on these inputs ({_first_line(error)}): traced in evaluation mode."
            )
        return labels, notes, meta
    raise AssertionError


def _pass(model: nn.Module, inputs: Any, labels: Labels, *, meta: bool, again: bool = False) -> None:
    work, activations = len(labels.work), len(labels.activations)
    labels.adopt(named_tensors(model))
    try:
        out = run(model, inputs, labels, meta=meta)
        for tensor in tensors_in(out):
            for rows in labels.of(tensor):
                labels.axes.freeze(rows, "reaches the model's output")
    finally:
        if again:  # costs are those of inference
            del labels.work[work:], labels.activations[activations:]


def _on_meta(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), value)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
