"""Growing regularisation.

Wang, Qin, Zhang, Fu: "Neural Pruning via Growing Regularization", ICLR 2021, arXiv 2012.09243 (GReg-2).

A quadratic penalty, dL/dw += lambda w, whose strength grows with time. First it presses on all channels alike: those in flat
directions of the loss give way, so that magnitudes come apart. At the share ``pick_at`` the channels of least magnitude are
picked, once and for all; from there lambda grows on them alone, until they leave at ``at``, by then close to zero.

Departures: within one training run, from random weights, where the paper starts from a trained network; lambda grows linearly
in the share of the training done, up to ``pick_ceiling`` and then to ``ceiling``, in place of fixed increments per iteration;
every weight of a channel is pressed on, where it is made and where it is read (the paper: its filter), so that one between two
such channels gets twice lambda; optimizer states survive the cut; widths in multiples that run fast (``round_to=1`` for the
paper's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from espalier.cost.budgets import is_number
from espalier.criteria.channels import ChannelCriterion
from espalier.criteria.slices import weights
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.pull import Pull
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured


@dataclass(frozen=True, kw_only=True)
class GReg(Structured):
    """GReg-2 (ICLR 2021). Give a budget, such as ``keep_macs=0.5``.

    Args:
        pick_at: share of the training after which the channels are picked.
        at: share after which they leave.
        pick_ceiling: lambda on all channels at ``pick_at``.
        ceiling: lambda on the picked ones at ``at``.

    The other arguments are those of ``Structured``.

    Example:
        >>> import espalier as es
        >>> es.GReg(keep_macs=0.5).ceiling
        1.0
    """

    criterion: ChannelCriterion | str = "magnitude"
    pick_at: float = 0.2
    at: float = 0.4
    pick_ceiling: float = 0.01
    ceiling: float = 1.0

    name: ClassVar[str] = "greg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.pick_at) and is_number(self.at)) or not 0 <= self.pick_at < self.at <= 1:
            raise EspalierError(f"pick_at and at are shares with 0 <= pick_at < at <= 1; got {self.pick_at}, {self.at}.")
        numbers = is_number(self.pick_ceiling) and is_number(self.ceiling)
        if not numbers or not 0 <= self.pick_ceiling <= self.ceiling:
            raise EspalierError("pick_ceiling and ceiling are strengths of at least 0, ceiling the higher one.")

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.at,)

    def begin(self, site: Site) -> GRegRun:
        return GRegRun(self, site, indicator=None, latest=self.at)


class GRegRun(StructuredRun):
    """Press on all, pick, press on the picked, cut."""

    method: GReg

    def start(self) -> None:
        self.picked = False
        super().start()

    def look(self) -> None:
        """Looks after the pick would change nothing."""
        if not self.picked or any(group not in self.keep for group in self.groups):  # or somebody else has cut the model
            super().look()
            self.picked = self.picked or 0 < self._step >= self.method.pick_at * self.site.clock.total
            self._aim()

    def every_step(self, gradients: Gradients) -> None:
        method, progress = self.method, self.site.clock.progress
        if self.picked:
            part = (progress - method.pick_at) / (method.at - method.pick_at)
            self.pull.penalise(gradients, method.pick_ceiling + (method.ceiling - method.pick_ceiling) * max(0.0, part))
        elif method.pick_at:
            self.pull.penalise(gradients, method.pick_ceiling * progress / method.pick_at)

    def verdict(self) -> str | None:
        return "planned" if self._step >= self.latest else None

    def _aim(self) -> None:
        strengths: dict[Group, Tensor] = {group: torch.ones(group.size) for group in self.layout.groups}
        if self.picked:
            strengths = {group: torch.zeros(group.size) for group in self.layout.groups}
            for group, kept in self.keep.items():
                strengths[group] = torch.ones(group.size).index_fill_(0, kept, 0.0)
        self.pull.aim(self.layout.join(strengths).to(self._observed.device))

    def _lay_out(self) -> None:
        super()._lay_out()
        self.pull = Pull(self.site.model, weights(self.site.model, self.layout).to(self._observed.device))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"picked": self.picked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.picked = state["picked"]
        if self.searching:
            self._aim()
