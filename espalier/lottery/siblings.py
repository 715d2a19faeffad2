"""Instability analysis: do two trainings from the same start, with the data in another order, end in one valley?

Along the line between the weights of the two siblings the error is looked at; how far it rises above the mean of both ends is
the instability (linear mode connectivity: about 0). Batch norm's running statistics are interpolated with the weights, as
in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError


@dataclass(frozen=True)
class Point:
    """Loss and accuracy (a share) at ``at``, which is 0 at the first sibling and 1 at the second."""

    at: float
    loss: float
    accuracy: float


@torch.no_grad()
def interpolate(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], tuple[float, float]],
    *,
    points: int = 11,
) -> list[Point]:
    """Evaluate a model at equal distances along the line between two states.

    Args:
        model: takes the states; it has its own again afterwards.
        first: state dict of one sibling.
        second: of the other, with the same names and shapes.
        evaluate: model -> (loss, accuracy as a share).
        points: at least 2, both ends among them.

    Raises:
        EspalierError: the states do not fit together, or not the model.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> ends = {"weight": torch.tensor([[-1.0]])}, {"weight": torch.tensor([[3.0]])}
        >>> [p.loss for p in interpolate(net, *ends, lambda net: (net.weight.square().item(), 0.0), points=3)]
        [1.0, 1.0, 9.0]
    """
    if points < 2:
        raise EspalierError(f"A line has two ends: points is at least 2; got {points}.")
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
        raise EspalierError("The siblings have different weights: both must be of one model and one ticket.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    try:
        for number in range(points):
            at = number / (points - 1)
            _load(model, {name: _between(first[name], second[name], at) for name in first})
            found.append(Point(at, *evaluate(model)))
    finally:
        model.load_state_dict(before)
    return found


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise EspalierError(
            f"The siblings' weights are not those of the model: give one that was built alike ({said})."
        ) from None


def _between(first: Tensor, second: Tensor, at: float) -> Tensor:
    """Both ends exactly; counters are the first's."""
    if at == 0 or not first.is_floating_point():
        return first
    return second if at == 1 else torch.lerp(first, second.to(first.device), at)


def instability(points: Sequence[Point]) -> float:
    """The highest error along the line minus the mean error of its ends, as a share; about 0 when there is no barrier.

    >>> instability([Point(0.0, 0.1, 0.9), Point(0.5, 0.9, 0.6), Point(1.0, 0.1, 0.8)])
    0.25
    """
    errors = [1 - point.accuracy for point in points]
    return round(max(errors) - (errors[0] + errors[-1]) / 2, 12)
