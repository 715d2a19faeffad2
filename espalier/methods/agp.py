"""Automated gradual pruning (AGP).

Zhu, Gupta: "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017, arXiv 1710.01878:

    s = s_f + (s_i - s_f) (1 - pos)^3,   pos from 0 to 1 between ``start`` and ``end``.

Gale et al. 2019 (arXiv 1902.09574) call the same with a window inside the run GMP. Departure: masked weights are really
zero here (the original keeps their stored values and may bring them back).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import Cubic


@dataclass(frozen=True)
class AGP(Scheduled):
    """A cubic rise to ``sparsity`` between the shares ``start`` and ``end`` of the training.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> schedule = AGP(0.95).schedule()
        >>> [round(100 * schedule(epoch / 10), 2) for epoch in (3, 4, 5, 10)]
        [31.36, 54.92, 71.81, 95.0]
    """

    sparsity: float
    start: float = 0.2
    end: float = 1.0
    initial_sparsity: float = 0.0

    name: ClassVar[str] = "agp"

    def schedule(self) -> Cubic:
        return Cubic(self.sparsity, self.initial_sparsity, start=self.start, end=self.end)
