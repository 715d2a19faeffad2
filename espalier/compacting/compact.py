"""``compact``: remove the channels that carry nothing, and fold those that carry a constant."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier.compacting.planning import Plan
from espalier.compacting.readings import Flags
from espalier.compacting.results import Compaction
from espalier.compacting.standins import StandIn
from espalier.cost import cost
from espalier.errors import EspalierError
from espalier.graph.graph import ChannelGraph
from espalier.graph.replica import as_call, named_tensors, quiet, tensors_in
from espalier.graph.tracing import trace
from espalier.surgery import reshaping
from espalier.surgery.channels import cut
from espalier.wrappers import unwrap

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}  # of the largest output
USUAL = 1e-5
DRAWS = 2  # batches of random numbers beside the example inputs

Call = tuple[tuple[Any, ...], dict[str, Any]]


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    followers: Sequence[nn.Module] = (),
) -> Compaction:
    """Remove the channels that masks or zero weights have left dead or constant; in evaluation mode the outputs stay.

    A channel goes if, whatever the inputs, every layer that reads it reads it with zero weights, or reads zero, or reads one
    constant. A constant is folded into the bias of the layer that reads it, or into the running mean of the batch norm right
    behind that layer. Where neither is there, or where the layer pads with zeros (so that the constant ends at the border),
    one of the constant channels stays and does the work of all. A residual stream loses a channel only if it is dead in every
    layer that writes to it. Channels under a layer norm, softmax or mean over channels stay.

    That a channel is constant is proved from the weights, not seen on data: a ReLU that happens to be off on the example inputs
    does not count. Everything is tried on a copy, whose outputs are compared on the example inputs and on random ones of the
    same shapes; what would change them by more than 1e-5 (of the largest output, in float32) stays. The model is cut in place,
    as by ``es.cut``: parameters stay the same objects, and ``es.save`` records the structure.

    In training mode batch norm computes its statistics anew, so a model that is trained on may take slightly other steps.

    Args:
        model: the model, wrapped or not; on its own device, not on meta.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Constants are constant for inputs of
            these shapes.
        optimizer: whose states are cut along: one, several, or none.
        followers: models with the same parameter names (EMA). A channel goes only if it is dead or constant in them too; their
            constants are folded into their own biases, and their outputs stay as well.

    Returns:
        What was removed, what that saves, and which dead channels stay, with reasons. ``print`` it.

    Raises:
        EspalierError: if a Pruner is still at work on the model, the model does not run on the inputs or holds no values
            (meta), a follower has other tensors, or an optimizer state cannot be cut. Nothing has changed then.

    Example:
        >>> import espalier as es
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     net[0].weight[[1, 2, 5]] = 0
        >>> print(es.compact(net, torch.zeros(1, 4)))
        3 channels removed from 1 group: params 58 -> 37, MACs 48 -> 30
          0: 3
        >>> net[0].weight.shape, net[2].weight.shape
        (torch.Size([5, 4]), torch.Size([2, 5]))
    """
    inner = unwrap(model)
    call = as_call(example_inputs)
    _check_values(inner, call)
    _check_unbound(inner)
    models = [inner, *map(unwrap, followers)]
    _check_alike(models)
    graph = trace(inner, example_inputs)
    plan = _verified(graph, models, call)
    before = cost(graph)
    removed = {group: gone for group, gone in zip(graph.groups, plan.gone, strict=True) if gone.any()}
    numbers = {group.name: tuple(np.flatnonzero(gone).tolist()) for group, gone in removed.items()}
    if removed:
        small = [standin.cut(graph, plan.kept) for standin in plan.standins]
        cut(inner, {group: ~gone for group, gone in removed.items()}, optimizer=optimizer, followers=models[1:])
        for target, source, standin in zip(models, small, plan.standins, strict=True):
            _take_over(target, source, standin.changed)
    after = cost(graph)
    return Compaction(numbers, plan.why_kept(), before.params, after.params, before.macs, after.macs)


@torch.no_grad()
def _take_over(model: nn.Module, source: nn.Module, names: set[str]) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    values = dict(source.named_parameters()) | dict(source.named_buffers())
    for name in names:
        tensors[name].copy_(values[name])


# -- trying --------------------------------------------------------------------------------------------------------


def _verified(graph: ChannelGraph, models: Sequence[nn.Module], call: Call) -> Plan:
    """A plan that leaves all outputs as they are: without the groups that would change them."""
    calls = _calls(models[0], call)
    with quiet():
        wanted = [[_outputs(StandIn(model).model, each) for each in calls] for model in models]

    def attempt(groups: Sequence[int]) -> tuple[Plan, str | None]:
        plan = Plan(graph, [StandIn(model) for model in models], call)
        plan.make(groups)
        if not any(gone.any() for gone in plan.gone):
            return plan, None
        for standin, outputs in zip(plan.standins, wanted, strict=True):
            small = standin.cut(graph, plan.kept)
            with quiet():
                for each, expected in zip(calls, outputs, strict=True):
                    if (problem := _compared(small, each, expected)) is not None:
                        return plan, problem
        return plan, None

    every = range(len(graph.groups))
    plan, problem = attempt(every)
    if problem is None:
        return plan
    good: list[int] = []
    guilty: dict[int, tuple[Flags, str]] = {}
    for number in [number for number in every if plan.gone[number].any()]:
        gone = plan.gone[number]
        _, problem = attempt([*good, number])
        if problem is None:
            good.append(number)
        else:
            guilty[number] = (gone, problem)
    final, problem = attempt([number for number in every if number not in guilty])
    if problem is not None:
        final, _ = attempt(good)
    final.reasons |= {
        graph.groups[number]: dict.fromkeys(np.flatnonzero(gone).tolist(), why) for number, (gone, why) in guilty.items()
    }
    return final


def _compared(model: nn.Module, call: Call, expected: Sequence[Tensor]) -> str | None:
    """What is wrong with a cut model, or None."""
    try:
        found = _outputs(model, call)
    except Exception as error:
        return f"without them the model fails: {str(error).strip().splitlines()[0][:160] if str(error).strip() else error!r}"
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "without them the model's output has another shape"
    for mine, theirs in zip(expected, found, strict=True):
        a, b = mine.cpu().double(), theirs.cpu().double()
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
        size = a[a.isfinite()].abs().amax() if a.isfinite().any() else torch.zeros(())
        if mine.numel() and float(gap.max()) > TOLERANCES.get(mine.dtype, USUAL) * float(size):
            share = float(gap.max() / size)
            return f"without them an output changes by {share:.1e} of its largest value"
    return None


def _calls(model: nn.Module, call: Call) -> list[Call]:
    """The example inputs, and drawn ones if the model takes them."""
    found, standin = [call], StandIn(model).model
    for seed in range(DRAWS):
        drawn = _drawn(call, seed)
        try:
            with quiet():
                _outputs(standin, drawn)
            found.append(drawn)
        except Exception:  # numbers that mean nothing to it
            continue
    return found


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    torch.manual_seed(0)  # inside quiet(), which puts the generators back
    return [tensor.detach().clone() for tensor in tensors_in(model(*call[0], **call[1]))]


def _drawn(call: Call, seed: int) -> Call:
    """Other inputs of the same shapes: floats of the same mean and at least unit spread, others drawn from the same ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.numel() or tensor.is_complex():
            return tensor
        if tensor.is_floating_point():
            flat = tensor.detach().float()
            spread = float(flat.std(correction=0)) or 1.0
            return (torch.randn(tensor.shape, generator=generator) * spread + float(flat.mean())).to(tensor)
        places = torch.randint(tensor.numel(), tensor.shape, generator=generator)
        return tensor.flatten()[places.to(tensor.device)]

    return _mapped(draw, call[0]), _mapped(draw, call[1])


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(change, item) for item in value)
    return value


def _check_values(model: nn.Module, call: Call) -> None:
    every = itertools.chain(model.parameters(), model.buffers(), tensors_in(call))
    if any(tensor.is_meta for tensor in every):
        raise EspalierError("compact looks at values: give a model and example inputs that are not on the meta device.")


def _check_unbound(model: nn.Module) -> None:
    passenger = reshaping.bound_to(model).passenger
    if passenger is not None and passenger() is not None:
        raise EspalierError(
            "A Pruner is still at work on this model, and would zero further weights to hold its share of those that are left: "
            "call its finish() before compact."
        )


def _check_alike(models: Sequence[nn.Module]) -> None:
    shapes = [{name: tensor.shape for name, tensor in named_tensors(model)} for model in models]
    for model, theirs in zip(models, shapes, strict=True):
        if theirs != shapes[0]:
            raise EspalierError(
                f"The follower {type(model).__name__} has other tensors than the model: build it from the model."
            )
