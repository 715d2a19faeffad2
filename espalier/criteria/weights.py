"""Scores of single weights: the higher, the more the weight matters. A pattern sums them over its units.

A criterion that learns from gradients keeps one running tensor per parameter (its *memory*), fed at every optimizer step
with the unscaled gradient. Until the first gradient it ranks by magnitude.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.errors import EspalierError


@dataclass(frozen=True)
class Criterion(ABC):
    """Base of all criteria; ``uses_gradients`` says whether ``observe`` must be fed."""

    uses_gradients = False

    def of(self, name: str) -> Criterion:
        """The criterion for the weight of this name; most are the same for all."""
        return self

    @abstractmethod
    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        """Score of every weight, same shape as ``weight``, float32 or float64."""

    def observe(self, memories: list[Tensor], contributions: list[Tensor]) -> None:
        """Fold this step's weight x gradient products into the memories, in place."""


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w| (the choice of One-Cycle Pruning, AGP and most others).

    Example:
        >>> Magnitude().score(torch.tensor([-2.0, 0.5]), None)
        tensor([2.0000, 0.5000])
    """

    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        return _wide(weight).abs()


@dataclass(frozen=True)
class Squared(Criterion):
    """w^2: for single weights the order of |w|, for larger units that of their L2 norms. Keeping the best is the Euclidean
    projection onto weights with so many units.

    Example:
        >>> Squared().score(torch.tensor([-2.0, 0.5]), None)
        tensor([4.0000, 0.2500])
    """

    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        return _wide(weight).square()


@dataclass(frozen=True)
class WeightGradient(Criterion):
    """|w dL/dw|, first-order Taylor (Molchanov et al. 2019; SNIP), averaged over steps with momentum ``decay``."""

    decay: float = 0.9
    uses_gradients = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise EspalierError(f"decay must lie in [0, 1); got {self.decay:g}.")

    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        return _wide(weight if memory is None else memory).abs()

    def observe(self, memories: list[Tensor], contributions: list[Tensor]) -> None:
        torch._foreach_lerp_(memories, contributions, 1 - self.decay)


@dataclass(frozen=True)
class Movement(Criterion):
    """-sum over training of w dL/dw: weights that move away from zero score high (Sanh et al. 2020)."""

    uses_gradients = True

    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        return _wide(weight).abs() if memory is None else _wide(memory)

    def observe(self, memories: list[Tensor], contributions: list[Tensor]) -> None:
        torch._foreach_sub_(memories, contributions)


@dataclass(frozen=True)
class Random(Criterion):
    """A fixed random order, the control: equal for equal ``seed``, name and shape, on every device and rank."""

    seed: int = 0

    def of(self, name: str) -> Random:
        """With a seed of its own for every weight: layers of one shape have masks that know nothing of each other."""
        return replace(self, seed=zlib.crc32(f"{self.seed} {name}".encode()))

    def score(self, weight: Tensor, memory: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(weight.shape, generator=generator)
        return torch.empty_like(weight, dtype=torch.float32).copy_(order, non_blocking=True)  # with the strides of the weight


def _wide(tensor: Tensor) -> Tensor:
    """Half precision would make ties of different weights, so rank in float32 at least."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "squared": Squared,
    "weight-gradient": WeightGradient,
    "movement": Movement,
    "random": Random,
}
