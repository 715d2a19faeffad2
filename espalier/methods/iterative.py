"""Iterative magnitude pruning: a few cycles of "remove, train on".

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, arXiv
1506.02626; as a schedule inside one run as in the One-Cycle paper: s = s_i + (s_f - s_i) ceil(n pos) / n, where pos runs
from 0 to 1 between ``start`` and ``end``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Staircase


@dataclass(frozen=True)
class Iterative(Scheduled):
    """``steps`` equal jumps to ``sparsity`` between the shares ``start`` and ``end`` of the training.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> schedule = Iterative(0.95).schedule()
        >>> [round(100 * schedule(epoch / 10), 2) for epoch in (2, 3, 5, 10)]
        [0.0, 31.67, 63.33, 95.0]
    """

    sparsity: float
    start: float = 0.2
    end: float = 1.0
    steps: int = 3

    name: ClassVar[str] = "iterative"

    def schedule(self) -> Staircase:
        return Staircase(self.sparsity, start=self.start, end=self.end, steps=self.steps)
