"""Early-Bird tickets.

You, Li, Xu, Fu, Wang, Chen, Baraniuk, Wang, Lin: "Drawing Early-Bird Tickets: Towards More Efficient Training of Deep
Networks", ICLR 2020, arXiv 1909.11957.

At every check (an epoch in the paper) a mask keeps the channels whose |gamma| lies above a global percentile. The ticket is
drawn when the newest of the last five masks differs from each of the others in at most 10 % of the channels. Meanwhile the
scales are trained with the L1 penalty of network slimming (strength 1e-4).

Departures: the small network goes on with the weights it has, in the same run (the paper also trains it anew); optimizer states
survive the cut; after ``latest`` the cut comes in any case; widths in multiples that run fast (``round_to=1`` for the paper's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.cost.budgets import is_number
from espalier.criteria.channels import ChannelCriterion
from espalier.errors import EspalierError
from espalier.indicators import MaskDistance
from espalier.methods.frame.base import Site
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.slimming import ScaleDecayRun


@dataclass(frozen=True, kw_only=True)
class EarlyBird(Structured):
    """Early-Bird tickets (ICLR 2020). Give ``prune_channels`` (0.3, 0.5 or 0.7 in the paper) or another budget.

    Args:
        distance: largest share of channels in which masks may differ.
        window: how many masks are compared.
        strength: of the L1 penalty on the scales.
        latest: share of the training after which the cut is made in any case.

    The other arguments are those of ``Structured``.

    Example:
        >>> import espalier as es
        >>> es.EarlyBird(prune_channels=0.5).distance
        0.1
    """

    criterion: ChannelCriterion | str = "bn-scale"
    distance: float = 0.1
    window: int = 5
    strength: float = 1e-4
    latest: float = 0.4

    name: ClassVar[str] = "early-bird"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.latest) and 0 < self.latest <= 1 and is_number(self.strength) and self.strength >= 0):
            raise EspalierError("latest is a share above 0 and at most 1, strength a number of at least 0.")
        self.rule()

    def rule(self) -> MaskDistance:
        """The indicator."""
        return MaskDistance(window=self.window, distance=self.distance)

    def begin(self, site: Site) -> ScaleDecayRun:
        return ScaleDecayRun(self, site, indicator=self.rule(), latest=self.latest, strength=self.strength, planned=False)
