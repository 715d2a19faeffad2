"""One-shot pruning: train dense, prune once to the final sparsity, go on training.

The baseline of the One-Cycle paper, where 40 % of the budget was found to be the best moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.scheduled import Scheduled
from espalier.schedules import Step


@dataclass(frozen=True)
class OneShot(Scheduled):
    """One jump to ``sparsity`` when the share ``at`` of the training is done.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> OneShot(0.9, at=0.4).schedule()(0.39), OneShot(0.9, at=0.4).schedule()(0.4)
        (0.0, 0.9)
    """

    sparsity: float
    at: float = 0.4

    name: ClassVar[str] = "one-shot"

    def schedule(self) -> Step:
        return Step(self.sparsity, start=self.at)
