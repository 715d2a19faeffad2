"""What is zeroed as one: single weights, N:M groups, kernels, filters, input channels, columns, blocks or shapes in a kernel.

A pattern divides a weight into *units* of equal size. It turns scores of weights into scores of units (their sum), and a
choice of units back into a mask of weights. With squared weights as scores the units with the highest ones are those that
the Euclidean projection keeps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from espalier.errors import EspalierError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pattern(ABC):
    """Base of all patterns."""

    def check(self, name: str, shape: Shape) -> None:
        """Raise unless the pattern fits a weight of this shape."""

    @abstractmethod
    def unit_size(self, shape: Shape) -> int:
        """Weights in one unit."""

    def units(self, shape: Shape) -> int:
        """Number of units in a weight of this shape."""
        return math.prod(shape) // self.unit_size(shape)

    @abstractmethod
    def reduce(self, scores: Tensor) -> Tensor:
        """Scores of weights -> scores of units, one dimension. May be a view."""

    @abstractmethod
    def expand(self, keep: Tensor, mask: Tensor) -> None:
        """Write the choice of units ``keep`` (bool, one dimension, order of ``reduce``) into ``mask`` in place."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity besides 0 that the pattern can have, or None if any share of units will do."""
        return None


@dataclass(frozen=True)
class Weight(Pattern):
    """Single weights, as in One-Cycle Pruning.

    Example:
        >>> Weight().units((16, 8, 3, 3))
        1152
    """

    def unit_size(self, shape: Shape) -> int:
        return 1

    def reduce(self, scores: Tensor) -> Tensor:
        return in_memory_order(scores).reshape(-1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        ordered = in_memory_order(mask)
        ordered.copy_(keep.view(ordered.shape))


@dataclass(frozen=True)
class NM(Pattern):
    """At most ``n`` live weights in every ``m`` consecutive input channels (2:4 runs on sparse tensor cores).

    Example:
        >>> NM(2, 4).fixed_sparsity
        0.5
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise EspalierError(f"An N:M pattern needs 0 < n < m; got {self.n}:{self.m}.")

    def check(self, name: str, shape: Shape) -> None:
        if shape[1] % self.m:
            raise EspalierError(
                f"{name} has {shape[1]} input channels, which is not a multiple of {self.m}, so a {self.n}:{self.m} "
                f"pattern does not fit: exclude it."
            )

    @property
    def fixed_sparsity(self) -> float | None:
        return 1 - self.n / self.m

    def unit_size(self, shape: Shape) -> int:
        return 1

    def reduce(self, scores: Tensor) -> Tensor:
        """Rank inside each group of m: the n best get a score above every other weight of the model."""
        last = scores.movedim(1, -1)
        grouped = last.reshape(*last.shape[:-1], -1, self.m)
        best = grouped.topk(self.n, dim=-1).indices
        return torch.zeros_like(grouped).scatter_(-1, best, 1.0).reshape(-1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        target = mask.movedim(1, -1)
        target.copy_(keep.view(target.shape))


@dataclass(frozen=True)
class Kernel(Pattern):
    """Whole k x k kernels: one unit for each pair of input and output channel of a convolution.

    Example:
        >>> Kernel().units((16, 8, 3, 3)), Kernel().unit_size((16, 8, 3, 3))
        (128, 9)
    """

    def check(self, name: str, shape: Shape) -> None:
        if len(shape) < 3:
            raise EspalierError(f"{name} has no kernels (its shape is {list(shape)}): the kernel pattern needs a convolution.")

    def unit_size(self, shape: Shape) -> int:
        return math.prod(shape[2:])

    def reduce(self, scores: Tensor) -> Tensor:
        return scores.flatten(2).sum(2).reshape(-1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        mask.copy_(keep.view(*mask.shape[:2], *[1] * (mask.dim() - 2)).expand(mask.shape))


@dataclass(frozen=True)
class Filter(Pattern):
    """Whole filters (rows of a linear layer), as zeros; nothing changes shape.

    Example:
        >>> Filter().units((16, 8, 3, 3))
        16
    """

    def unit_size(self, shape: Shape) -> int:
        return math.prod(shape[1:])

    def reduce(self, scores: Tensor) -> Tensor:
        return scores.flatten(1).sum(1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        mask.copy_(keep.view(-1, *[1] * (mask.dim() - 1)).expand(mask.shape))


@dataclass(frozen=True)
class InputChannel(Pattern):
    """All weights that read one input channel, as zeros; nothing changes shape.

    Example:
        >>> InputChannel().units((16, 8, 3, 3)), InputChannel().unit_size((16, 8, 3, 3))
        (8, 144)
    """

    def unit_size(self, shape: Shape) -> int:
        return math.prod(shape) // shape[1]

    def reduce(self, scores: Tensor) -> Tensor:
        return scores.flatten(2).sum((0, 2)) if scores.dim() > 2 else scores.sum(0)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        mask.copy_(keep.view(1, -1, *[1] * (mask.dim() - 2)).expand(mask.shape))


@dataclass(frozen=True)
class Column(Pattern):
    """Columns of the weight seen as a matrix (output channels x everything else): one input at one place of the kernel.

    Example:
        >>> Column().units((16, 8, 3, 3)), Column().unit_size((16, 8, 3, 3))
        (72, 16)
    """

    def unit_size(self, shape: Shape) -> int:
        return shape[0]

    def reduce(self, scores: Tensor) -> Tensor:
        return scores.flatten(1).sum(0)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        mask.copy_(keep.view(1, *mask.shape[1:]).expand(mask.shape))


@dataclass(frozen=True)
class KernelShape(Pattern):
    """Five live weights in every 3 x 3 kernel, in the best of 13 shapes: "pattern" pruning, of which code generators make use.

    The shapes are ours: all pentominoes that hold the centre, reach every side of the kernel and have a symmetry of their
    own (+ once; T, W and Z in four positions each). The set stays the same when the kernel is turned or mirrored.

    Example:
        >>> KernelShape().fixed_sparsity == 4 / 9, len(kernel_shapes())
        (True, 13)
    """

    def check(self, name: str, shape: Shape) -> None:
        if tuple(shape[2:]) != (3, 3):
            raise EspalierError(f"{name} has no 3 x 3 kernels (its shape is {list(shape)}): exclude it from this pattern.")

    @property
    def fixed_sparsity(self) -> float | None:
        return 4 / 9

    def unit_size(self, shape: Shape) -> int:
        return 1

    def reduce(self, scores: Tensor) -> Tensor:
        """Rank inside each kernel: the weights of its best shape score 1, the others 0.

        Of shapes with weights that score -inf those with the fewest of them come first.
        """
        shapes = torch.tensor(kernel_shapes(), dtype=scores.dtype).to(scores.device, non_blocking=True)
        kernels = scores.reshape(-1, 9)
        barred = kernels.isneginf().to(scores.dtype) @ shapes.T  # weights of each shape that are to stay out
        sums = kernels.nan_to_num(nan=math.nan, neginf=0.0) @ shapes.T  # infinity x 0 would be NaN
        best = sums.masked_fill_(barred > barred.amin(1, keepdim=True), -torch.inf).argmax(1)
        return shapes[best].reshape(-1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        mask.copy_(keep.view(mask.shape))


@dataclass(frozen=True)
class Block(Pattern):
    """``rows`` x ``columns`` blocks of the weight seen as a matrix (output channels x everything else).

    Example:
        >>> Block(4, 4).units((16, 64))
        64
    """

    rows: int = 4
    columns: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise EspalierError(f"A block needs at least one row and one column; got {self.rows} x {self.columns}.")

    def check(self, name: str, shape: Shape) -> None:
        if shape[0] % self.rows or math.prod(shape[1:]) % self.columns:
            raise EspalierError(
                f"{name} is a {shape[0]} x {math.prod(shape[1:])} matrix, which {self.rows} x {self.columns} blocks do not "
                f"tile: exclude it or choose another block."
            )

    def unit_size(self, shape: Shape) -> int:
        return self.rows * self.columns

    def reduce(self, scores: Tensor) -> Tensor:
        return scores.reshape(scores.shape[0] // self.rows, self.rows, -1, self.columns).sum((1, 3)).reshape(-1)

    def expand(self, keep: Tensor, mask: Tensor) -> None:
        grid = keep.view(mask.shape[0] // self.rows, 1, -1, 1)
        blocks = grid.expand(-1, self.rows, -1, self.columns)
        mask.copy_(blocks.reshape(mask.shape))


@cache
def kernel_shapes() -> tuple[tuple[int, ...], ...]:
    """The shapes of ``KernelShape``, each as nine ones and zeros, row by row."""
    chosen = []
    for others in combinations([cell for cell in range(9) if cell != 4], 4):
        cells = frozenset({4, *others})
        turned = [cells]
        for _ in range(3):
            turned.append(frozenset(3 * (c % 3) + 2 - c // 3 for c in turned[-1]))
        mirrored = [frozenset(3 * (c // 3) + 2 - c % 3 for c in shape) for shape in turned]
        spans = {c // 3 for c in cells} == {c % 3 for c in cells} == {0, 1, 2}
        if spans and _connected(cells) and (turned + mirrored).count(cells) > 1:
            chosen.append(tuple(int(c in cells) for c in range(9)))
    return tuple(chosen)


def _connected(cells: frozenset[int]) -> bool:
    """Whether one can walk from the centre to every cell without leaving them, side by side."""
    reached, edge = {4}, [4]
    while edge:
        row, column = divmod(edge.pop(), 3)
        for other in cells - reached:
            if abs(other // 3 - row) + abs(other % 3 - column) == 1:
                reached.add(other)
                edge.append(other)
    return reached == cells


def in_memory_order(tensor: Tensor) -> Tensor:
    """The same storage with dimensions sorted by stride, so that flattening copies nothing (channels-last)."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))
    return tensor.permute(order)


PATTERNS: dict[str, type[Pattern]] = {
    "weight": Weight,
    "n:m": NM,
    "kernel": Kernel,
    "kernel-shape": KernelShape,
    "filter": Filter,
    "input-channel": InputChannel,
    "column": Column,
    "block": Block,
}
