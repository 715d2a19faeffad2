"""One-shot pruning: train dense, prune once to the final sparsity, go on training.

The baseline of the One-Cycle paper, where 40 % of the budget was found to be the best moment. With ``at=0`` it prunes at
initialisation: the controls of SNIP, GraSP and SynFlow are ``OneShot(s, at=0, scope="global")``, by magnitude, and the same
with ``criterion="random"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.masking.ratios import WithRatios
from espalier.schedules import Step


@dataclass(frozen=True)
class OneShot(WithRatios):
    """One jump to ``sparsity`` when the share ``at`` of the training is done.

    Args:
        sparsity: share of the selected weights that is zero then, or a share for every name pattern:
            ``{"layer1.*": 0.5, "layer2.*": 0.9}`` (the last that matches counts; it selects the weights, too).
        at: share of the training.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> OneShot(0.9, at=0.4).schedule()(0.39), OneShot(0.9, at=0.4).schedule()(0.4)
        (0.0, 0.9)
    """

    sparsity: float | Mapping[str, float]
    at: float = 0.4

    name: ClassVar[str] = "one-shot"

    def schedule(self) -> Step:
        return Step(self.highest, start=self.at)
