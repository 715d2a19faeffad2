"""No pruning at all: the reference row of every table, through the same hooks as the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Constant


@dataclass(frozen=True)
class Dense(Scheduled):
    """Train as ever; sparsity stays 0 over the weights that the other methods would prune.

    Example:
        >>> Dense().schedule()(0.5)
        0.0
    """

    name: ClassVar[str] = "dense"

    def schedule(self) -> Constant:
        return Constant(0.0)
