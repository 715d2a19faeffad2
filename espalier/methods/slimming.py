"""Network slimming.

Liu, Li, Shen, Huang, Yan, Zhang: "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
arXiv 1708.06519.

    loss + lambda * sum |gamma|,    that is    dL/dgamma += lambda sign(gamma)

over the scales gamma of the norms, until the share ``at`` of the training is done. Then the channels with the smallest |gamma|
leave, by one ranking over all layers, and training goes on as fine-tuning. lambda = 1e-4 in the paper (CIFAR).

Departures: sparse training and fine-tuning share one run, so that it is compared with the other methods at equal budget; give a
learning-rate schedule that starts over where ``stages`` says for the paper's two (``restart_lr: true`` in a recipe). Optimizer
states survive the cut; widths in multiples that run fast (``round_to=1`` for the paper's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from espalier.cost.budgets import is_number
from espalier.criteria.channels import ChannelCriterion
from espalier.criteria.slices import norm_scales
from espalier.errors import EspalierError
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(Structured):
    """Network slimming (ICCV 2017). Give ``prune_channels`` (as in the paper) or another budget.

    Args:
        at: share of the training after which the channels leave.
        strength: lambda.

    The other arguments are those of ``Structured``.

    Example:
        >>> import espalier as es
        >>> es.NetworkSlimming(prune_channels=0.7).criterion
        'bn-scale'
    """

    criterion: ChannelCriterion | str = "bn-scale"
    at: float = 0.5
    strength: float = 1e-4

    name: ClassVar[str] = "network-slimming"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.at) and 0 < self.at <= 1 and is_number(self.strength) and self.strength >= 0):
            raise EspalierError("at is a share above 0 and at most 1, strength a number of at least 0.")

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.at,)

    def begin(self, site: Site) -> ScaleDecayRun:
        return ScaleDecayRun(self, site, indicator=None, latest=self.at, strength=self.strength, planned=True)


class ScaleDecayRun(StructuredRun):
    """Dense training with an L1 penalty on the scales of norms; Early-Bird tickets share it."""

    def __init__(self, method: Structured, site: Site, *, strength: float, planned: bool, **when: object) -> None:
        self._strength, self._planned = strength, planned
        super().__init__(method, site, **when)  # type: ignore[arg-type]

    def every_step(self, gradients: Gradients) -> None:
        chosen = [p for p in self._scales if p.grad is not None and gradients.are_for(p)]
        if not chosen or not self._strength:
            return
        signs = torch._foreach_sign(list(chosen))
        if gradients.scale is not None:
            torch._foreach_mul_(signs, gradients.scale.to(signs[0].device))
        torch._foreach_add_([p.grad for p in chosen if p.grad is not None], signs, alpha=self._strength)

    def verdict(self) -> str | None:
        why = super().verdict()
        return "planned" if why == "latest" and self._planned else why

    def _lay_out(self) -> None:
        super()._lay_out()
        named = dict(self.site.model.named_parameters())
        self._scales = [named[name] for name, _ in norm_scales(self.site.model, self.layout).keys]
