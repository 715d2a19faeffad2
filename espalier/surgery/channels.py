"""``cut``: remove channels from a model in training, with everything that hangs on them."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.errors import EspalierError
from espalier.graph.graph import ChannelGraph, Dim, Group, Mask, Place, Rescale
from espalier.structure import Shape, Structure
from espalier.surgery import reshaping
from espalier.surgery.cutting import cut as cut_places
from espalier.surgery.cutting import structure_of
from espalier.surgery.layers import integers_of_layers
from espalier.wrappers import unwrap


def cut(
    model: nn.Module,
    keep: Mapping[Group, Any],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    followers: Sequence[nn.Module] = (),
) -> Structure:
    """Keep the named channels of each group and remove the others, in place, between two steps of training.

    Parameters stay the same objects, so optimizers and schedulers go on; their states are cut along, and so are gradients,
    followers and the masks of a live ``Pruner`` (its optimizers and followers need not be named again). A cut is all or
    nothing. The graph is brought up to date, so that a further cut can follow.

    From now on the model's state dicts carry the structure. A model with a ``Pruner``, or one cut before, takes it up in its
    own ``load_state_dict``; for a freshly built one there is ``es.load_state_dict``.

    Where attention is scaled by 1 / sqrt of a head's width and that width is cut, the query's weights take the change over, so
    that a model whose removed channels were zero computes what it did.

    Args:
        model: the traced model, wrapped or not.
        keep: group of ``trace(model, ...)`` -> channels that stay: sorted numbers, or ``group.size`` booleans. Groups that are
            not named stay whole.
        optimizer: whose states are cut along: one, several, or none.
        followers: models with the same parameter names (EMA) that are cut alike.

    Returns:
        The structure of the model relative to how it was built, for ``es.save`` and your own records.

    Raises:
        EspalierError: for groups that are frozen or of another model, channels that are not there, an optimizer that holds
            no parameter of the model, one that holds states of cut parameters but was not named, and optimizer states that
            cannot be cut. Nothing has changed then.

    Example:
        >>> import espalier as es
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> graph = es.trace(net, torch.zeros(1, 4))
        >>> structure = es.cut(net, {graph.groups[0]: [0, 3, 5]}, optimizer=optimizer)
        >>> net[0].weight.shape, net[2].weight.shape, net[0].out_features, graph.groups[0].size
        (torch.Size([3, 4]), torch.Size([2, 3]), 3, 3)
    """
    inner = unwrap(model)
    optimizers, models = _checked_optimizers(optimizer, inner), _checked_followers(followers, inner)
    if not isinstance(keep, Mapping):
        raise EspalierError(f"cut takes a mapping from groups to channels, {{graph.groups[0]: [0, 2]}}, not {_type(keep)}.")
    if not keep:
        return structure_of(inner)
    graph = _graph_of(keep)
    kept = graph.masks(keep)
    _check_fresh(inner, graph)
    places = graph.plan(kept)
    bound = reshaping.bound_to(inner)
    optimizers = _united(optimizers, bound.living_optimizers())
    models = _united(models, bound.living_followers())
    passenger = None if bound.passenger is None else bound.passenger()
    _refuse_forgotten(optimizers, inner, places)
    factors = _factors(graph, kept)
    integers = integers_of_layers(inner, _new_shapes(inner, places), graph.integers(kept))
    _refuse_square_projections(inner, integers)
    structure = cut_places(
        inner,
        places,
        integers=integers,
        scales=_scales(inner, factors),
        optimizers=optimizers,
        followers=models,
        companions=[] if passenger is None else passenger.companions(),
    )
    graph.narrow(kept)
    for module in (inner, *models):
        reshaping.install(module)
        _rescale(module, factors)
    if passenger is not None:
        passenger.reshaped()
    return structure


def _refuse_square_projections(model: nn.Module, integers: Mapping[str, int]) -> None:
    """torch takes an LSTM for one without projection if that has as many outputs as there are hidden units."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            prefix = f"{path}." if path else ""
            hidden = integers.get(f"{prefix}hidden_size", layer.hidden_size)
            outputs = integers.get(f"{prefix}proj_size", layer.proj_size)
            if outputs == hidden:
                raise EspalierError(
                    f"The LSTM {path or 'itself'} would have {hidden} hidden units and as many outputs, which torch takes for "
                    f"one without a projection: keep one more, or one fewer."
                )


def _graph_of(keep: Mapping[Group, Any]) -> ChannelGraph:
    group = next(iter(keep))
    if not isinstance(group, Group):
        raise EspalierError(f"cut takes groups of a graph: {{graph.groups[0]: channels}}, not {_type(group)} as keys.")
    return group.graph


def _checked_optimizers(given: Any, model: nn.Module) -> list[Optimizer]:
    found = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    own = {id(parameter) for parameter in model.parameters()}
    for optimizer in found:
        if not isinstance(optimizer, Optimizer):
            raise EspalierError(f"optimizer is a torch.optim.Optimizer or a list of them, not {_type(optimizer)}.")
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise EspalierError(
                f"The {_type(optimizer)} holds none of the model's parameters, so its states would not be cut along: give the "
                f"optimizer that trains this very model, and none for a copy."
            )
    return found


def _refuse_forgotten(named: Sequence[Optimizer], model: nn.Module, places: Mapping[Place, Sequence[int]]) -> None:
    """An optimizer with states of the old shapes would fail at its next step, or worse: look for one among living objects."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    changed = [parameters[name] for name in {name for name, _ in places} if name in parameters]
    for attempt in range(2):
        found = [o for o in _living_optimizers() if not any(o is other for other in named)]
        forgotten = [o for o in found if any(parameter in o.state for parameter in changed)]
        if not forgotten:
            return
        if attempt == 0:
            del found, forgotten
            gc.collect()  # one that its owner has thrown away
    raise EspalierError(
        f"The {_type(forgotten[0])} holds states of parameters that are about to be cut: name it, "
        f"cut(..., optimizer=optimizer), so that they are cut along."
    )


def _living_optimizers() -> list[Optimizer]:
    """All that there are. Objects are hundreds of thousands, so none is touched twice, and none from a loop in Python."""
    every = gc.get_objects()
    kinds = list(map(type, every))
    numbers = list(map(id, kinds))
    classes = dict(zip(numbers, kinds, strict=True))
    chosen = {number for number, kind in classes.items() if issubclass(kind, Optimizer)}
    return list(itertools.compress(every, map(chosen.__contains__, numbers)))


def _checked_followers(given: Any, model: nn.Module) -> list[nn.Module]:
    if isinstance(given, nn.Module) or not isinstance(given, Iterable):
        raise EspalierError(f"followers is a list of models: write followers=[ema]; got {_type(given)}.")
    found = [unwrap(follower) for follower in given]
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in own for follower in found for parameter in follower.parameters()):
        raise EspalierError("A follower shares parameters with the model, which are cut already: give copies, such as an EMA.")
    return found


def _type(thing: object) -> str:
    return type(thing).__name__


def _check_fresh(model: nn.Module, graph: ChannelGraph) -> None:
    named: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, dims in graph.tensors.items():
        shape = tuple(len(dim) if isinstance(dim, Dim) else dim for dim in dims)
        if name not in named:
            raise EspalierError(f"The graph belongs to another model: this one has no {name}.")
        if tuple(named[name].shape) != shape:
            raise EspalierError(
                f"The graph does not fit the model any more: {name} has shape {list(named[name].shape)}, the graph says "
                f"{list(shape)}. Trace the model again."
            )


def _new_shapes(model: nn.Module, places: Mapping[Place, Sequence[int]]) -> dict[str, Shape]:
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named |= dict(model.named_buffers(remove_duplicate=False))
    twins: dict[int, list[str]] = {}
    for name, tensor in named.items():
        twins.setdefault(id(tensor), []).append(name)
    shapes: dict[str, list[int]] = {}
    for (name, dim), indices in places.items():
        for twin in twins[id(named[name])]:
            shapes.setdefault(twin, list(named[name].shape))[dim] = len(indices)
    return {name: tuple(shape) for name, shape in shapes.items()}


def _united(given: Sequence[Any], bound: Sequence[Any]) -> list[Any]:
    return [*given, *(thing for thing in bound if not any(thing is other for other in given))]


# -- the scale of attention ----------------------------------------------------------------------------------------


def _factors(graph: ChannelGraph, kept: Sequence[Mask | None]) -> list[tuple[Rescale, float]]:
    """By how much the query must grow for each attention whose heads become narrower."""
    found = []
    for rescale in graph.rescales:
        now, then = len(rescale.width), int(rescale.width.alive(kept).sum())
        if then != now:
            places = zip(rescale.names, rescale.dims, rescale.rows, strict=True)
            rows = [mask[_alive(graph, name, dim, kept)] for name, dim, mask in places]
            found.append((replace(rescale, rows=rows), (then / now) ** 0.5))
    return found


def _alive(graph: ChannelGraph, name: str, dim: int, kept: Sequence[Mask | None]) -> Any:
    label = graph.tensors[name][dim]
    return label.alive(kept) if isinstance(label, Dim) else slice(None)


def _scales(model: nn.Module, factors: Sequence[tuple[Rescale, float]]) -> dict[str, float]:
    """New values of the scales that modules keep for their unfused path: 1 / sqrt of the new width."""
    found: dict[str, float] = {}
    for rescale, factor in factors:
        path = f"{rescale.module}.scale" if rescale.module else "scale"
        value = getattr(model.get_submodule(rescale.module), "scale", None)
        width = len(rescale.width)
        if isinstance(value, float) and abs(value - width**-0.5) < 1e-6 * value:
            found[path] = value / factor
    return found


@torch.no_grad()
def _rescale(model: nn.Module, factors: Sequence[tuple[Rescale, float]]) -> None:
    for rescale, factor in factors:
        for name, dim, rows in zip(rescale.names, rescale.dims, rescale.rows, strict=True):
            tensor = model.get_parameter(name).movedim(dim, 0)
            if rows.all():
                tensor.mul_(factor)
            else:
                tensor[torch.from_numpy(rows).to(tensor.device)] *= factor
