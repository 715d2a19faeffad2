"""What the weight of a convolution or matrix product reads: which of its inputs vary, and the values of those that don't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.compacting.varying import Varying

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Target = tuple[str, float]  # bias or running mean, and the sign with which a constant goes there


@dataclass(eq=False)
class Reading:
    """One use of a weight, or several that agree. Indices i run along the contracted dimension of the weight; groups g are
    those of a convolution, which read different inputs with the same index.

    Attributes:
        weight: name of the parameter.
        dim: its contracted dimension.
        live: (g, i), whether any weight that reads this input is not zero.
        varying: (g, i), whether the input depends on the model's inputs.
        uneven: (g, i), whether it does not, but differs from place to place.
        value: (g, i), of inputs that neither vary nor differ; else 0.
        pads: whether zeros are padded, so that a constant input is none at the borders.
        target: where a constant can go; None if nowhere.
    """

    weight: str
    dim: int
    live: Flags
    varying: Flags
    uneven: Flags
    value: Numbers
    pads: bool
    target: Target | None
    followed: bool = False

    @property
    def targets(self) -> list[Target]:
        """The same as a list."""
        return [] if self.target is None else [self.target]


def of_convolution(weight: str, bias: str | None, given: Mapping[str, Any], varying: Varying) -> Reading:
    """What a convolution reads; x (B, I, ...)."""
    x, kernel, transposed = given["input"], given["weight"], given["transposed"]
    groups = 1 if transposed else given["groups"]
    others = [0, *range(2, x.dim())]
    live = kernel != 0
    if transposed:
        live = live.flatten(1).any(1)[None]
    else:
        live = live.reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1).any(3).any(1)
    pads = any(given["padding"]) or transposed
    target = None if pads or bias is None else (bias, 1.0)
    return Reading(weight, 0 if transposed else 1, _numpy(live), *_inputs(x, varying.of(x), others, groups), bool(pads), target)


def of_product(matrix: tuple[str, bool], bias: str | None, x: Tensor, weight: Tensor, left: bool, varying: Varying) -> Reading:
    """What a matrix reads: x (..., i) of x @ matrix, or x (..., i, n) of matrix @ x if it stands left."""
    name, turned = matrix
    inner, outer = (-1, -2) if left else (-2, -1)
    live = (weight != 0).any(outer)
    live = live.reshape(-1, live.shape[-1]).any(0)[None]
    axis = x.dim() - 2 if left else x.dim() - 1
    others = [dim for dim in range(x.dim()) if dim != axis]
    dim = (2 + inner) ^ int(turned)
    target = None if bias is None or left else (bias, 1.0)
    return Reading(name, dim, _numpy(live), *_inputs(x, varying.of(x), others, 1), left, target)


def _inputs(x: Tensor, mask: Tensor, others: Sequence[int], groups: int) -> tuple[Flags, Flags, Numbers]:
    """Varying, uneven and value of every channel, (groups, channels / groups)."""
    varying = mask.amax(tuple(others)) > 0
    varying = varying.cpu()
    low, high = x.amin(tuple(others)).cpu().double(), x.amax(tuple(others)).cpu().double()
    precision = torch.finfo(x.dtype).eps
    size = torch.maximum(low.abs(), high.abs())
    tiny = precision**1.5 * float(size.max())  # what no sum with the other channels would notice
    even = (high - low <= 8 * precision * size) | (size <= tiny)
    value = torch.where(even & ~varying & (size > tiny), (high + low) / 2, torch.zeros_like(low))
    return tuple(_numpy(part.reshape(groups, -1)) for part in (varying, ~even & ~varying, value))  # type: ignore[return-value]


def united(readings: Sequence[Reading]) -> Reading:
    """Several uses of one weight as one, which is careful where they disagree."""
    first = readings[0]
    if len(readings) == 1:
        return first
    values = np.stack([reading.value for reading in readings])
    varying = np.any([reading.varying for reading in readings], axis=0)
    differ = np.ptp(values, axis=0) > 1e-7 * np.abs(values).max(0)
    every = {target for reading in readings for target in reading.targets}
    everywhere = all(reading.targets for reading in readings)
    found = Several(
        first.weight,
        first.dim,
        first.live,
        varying,
        (np.any([reading.uneven for reading in readings], axis=0) | differ) & ~varying,
        np.where(differ | varying, 0.0, values[0]),
        any(reading.pads for reading in readings),
        None,
    )
    found.every = sorted(every) if everywhere else []
    return found


class Several(Reading):
    """Uses of a weight in several places, each perhaps with a batch norm of its own behind."""

    every: list[Target]

    @property
    def targets(self) -> list[Target]:
        """Where a constant must go, all of them; empty if one place has none."""
        return self.every


def contribution(tensor: Tensor, reading: Reading, index: int) -> Tensor:
    """What the constant input of one index adds to every output, (O,)."""
    taps = tensor.detach().select(reading.dim, index).cpu().double()
    taps = taps.flatten(1).sum(1) if taps.dim() > 1 else taps
    return taps * _per_output(reading.value[:, index], len(taps))


@torch.no_grad()
def merge(tensor: Tensor, reading: Reading, index: int, into: int) -> None:
    """Let one constant input do the work of another, which is a multiple of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(reading.value[:, index] / reading.value[:, into], posinf=0.0, neginf=0.0)
    taps, target = tensor.select(reading.dim, index).cpu().double(), tensor.select(reading.dim, into)
    factor = _per_output(ratio, taps.shape[0]).view(-1, *[1] * (taps.dim() - 1))
    target.copy_(target.cpu().double() + taps * factor)


def _per_output(values: Numbers, outputs: int) -> Tensor:
    return torch.from_numpy(np.repeat(values, outputs // len(values)))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()
