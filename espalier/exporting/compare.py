"""How far the outputs of an exported file are from the model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError
from espalier.exporting.runtimes import Run
from espalier.inputs import Call, tensors_in

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative; of the least precise output
USUAL = 1e-4


@dataclass(frozen=True)
class Difference:
    """The largest difference of any output value, absolute and as a share of that output's largest value."""

    absolute: float = 0.0
    relative: float = 0.0

    def worst(self, other: Difference) -> Difference:
        """The larger of the two, each for itself."""
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


@torch.no_grad()
def difference(model: nn.Module, run: Run, call: Call) -> tuple[Difference, float]:
    """The difference on one batch, and the tolerance that the precision of the outputs calls for.

    Raises:
        EspalierError: the file has other outputs than the model.
    """
    expected = outputs_of(call(model))
    found = run(call)
    if [tuple(tensor.shape) for tensor in found] != [tuple(tensor.shape) for tensor in expected]:
        raise EspalierError(
            f"The exported file gives outputs of the shapes {_shapes(found)} where the model gives {_shapes(expected)}."
        )
    worst, tolerance = Difference(), USUAL
    for mine, theirs in zip(expected, found, strict=True):
        worst = worst.worst(_between(mine, theirs))
        tolerance = max(tolerance, TOLERANCES.get(mine.dtype, USUAL))
    return worst, tolerance


def outputs_of(value: Any) -> list[Tensor]:
    """The tensors among a model's outputs.

    Raises:
        EspalierError: there is something else in them, or no tensor at all.
    """
    tensors = tensors_in(dict(value) if isinstance(value, Mapping) else value)
    if not tensors:
        raise EspalierError("The model has no outputs that are tensors.")
    return tensors


def another(call: Call, batch: int) -> Call:
    """Inputs of another batch size and other values: floats with the same mean and spread, others drawn from the same ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor
        if tensor.is_floating_point():
            flat = tensor.detach().float()
            spread = float(flat.std(correction=0)) or 1.0
            numbers = torch.randn(tensor.shape, generator=generator) * spread + float(flat.mean())
            return numbers.to(tensor)
        chosen = torch.randint(tensor.numel(), tensor.shape, generator=generator)
        return tensor.flatten()[chosen.to(tensor.device)]

    resized = call.resized(batch)
    return Call(resized.args, resized.kwargs).map(lambda tensor: draw(tensor) if resized.is_batched(tensor) else tensor)


def _between(mine: Tensor, theirs: Tensor) -> Difference:
    """Values that are not finite count as equal if they are the same, and as infinitely far otherwise."""
    a, b = mine.detach().cpu().double(), theirs.detach().cpu().double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
    absolute = float(gap.max()) if gap.numel() else 0.0
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    if absolute == 0.0:
        return Difference()
    return Difference(absolute, absolute / largest if largest else math.inf)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)
