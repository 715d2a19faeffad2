"""Train, prune, fine-tune: the three stages that one-cycle methods want to save, with the group norm of DepGraph.

Fang, Ma, Song, Mi, Wang: "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv 2301.12900.

Until ``learn_from`` the network trains as ever. Then it learns sparsity: every weight of channel c is pulled by

    dL/dw += strength * 2^(alpha (I_max - I_c) / (I_max - I_min)) * w,        I_c = L2 norm of all weights of the channel

with alpha = 4, I_max and I_min over the channels of its group: the less a channel matters, the harder. At ``at`` the channels
with the lowest scores (sum of squares averaged over the group's layers, divided by the group's mean) leave, and fine-tuning
follows.

Departures: the stages share one budget of steps, so that it is compared at equal cost; they share one learning-rate schedule
too, unless yours starts over where ``stages`` says (``restart_lr: true`` in a recipe); I_c is renewed at every check, not at
every step; one cut in place of up to 400 small ones; optimizer states survive it; widths in multiples that run fast
(``round_to=1`` for the paper's). strength is 5e-4 in the reproduction scripts, 1e-4 in the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from espalier.cost.budgets import is_number
from espalier.cost.search import Normalise
from espalier.criteria.channels import ChannelCriterion
from espalier.criteria.slices import parameters, slice_sums, weights
from espalier.errors import EspalierError
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.pull import Pull
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured


@dataclass(frozen=True, kw_only=True)
class TrainPruneFinetune(Structured):
    """Train, prune, fine-tune (with DepGraph's group norm, CVPR 2023). Give a budget, such as ``keep_macs=0.5``.

    Args:
        learn_from: share of the training at which sparsity learning starts.
        at: share at which the channels leave.
        strength: of the pull.
        alpha: how much harder the least important channel is pulled: 2^alpha times.

    The other arguments are those of ``Structured``.

    Example:
        >>> import espalier as es
        >>> es.TrainPruneFinetune(keep_macs=0.5).normalise
        'mean'
    """

    criterion: ChannelCriterion | str = "depgraph"
    normalise: Normalise = "mean"
    learn_from: float = 1 / 3
    at: float = 2 / 3
    strength: float = 5e-4
    alpha: float = 4.0

    name: ClassVar[str] = "train-prune-finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.learn_from) and is_number(self.at)) or not 0 <= self.learn_from <= self.at <= 1 or not self.at:
            raise EspalierError(f"learn_from and at are shares, learn_from the lower one; got {self.learn_from}, {self.at}.")
        for name in ("strength", "alpha"):
            value = getattr(self, name)
            if not is_number(value) or not value >= 0:
                raise EspalierError(f"{name} is a number of at least 0; got {value!r}.")

    @property
    def stages(self) -> tuple[float, ...]:
        return self.learn_from, self.at

    def begin(self, site: Site) -> TrainPruneFinetuneRun:
        return TrainPruneFinetuneRun(self, site, indicator=None, latest=self.at)


class TrainPruneFinetuneRun(StructuredRun):
    """Dense, sparsity learning, cut, fine-tuning."""

    method: TrainPruneFinetune

    def start(self) -> None:
        self.learning = False
        super().start()

    def selected(self) -> None:
        self.learning = self._step >= self.method.learn_from * self.site.clock.total
        if self.learning and self.method.strength:
            places = self.pull.places
            self.strengths = self._strengths(places.gather(slice_sums(parameters(self.site.model), places.keys, 2.0)).sqrt())
            self.pull.aim(self.strengths)

    def every_step(self, gradients: Gradients) -> None:
        if self.learning:
            self.pull.penalise(gradients, self.method.strength)

    def verdict(self) -> str | None:
        return "planned" if self._step >= self.latest else None

    def _strengths(self, norms: Tensor) -> Tensor:
        parts = []
        for part in self.layout.split(norms).values():
            low, high = part.min(), part.max()
            parts.append(torch.exp2(self.method.alpha * (high - part) / (high - low).clamp(min=1e-12)))
        return torch.cat(parts)

    def _lay_out(self) -> None:
        super()._lay_out()
        self.pull = Pull(self.site.model, weights(self.site.model, self.layout).to(self._observed.device))
        self.strengths = torch.zeros(self.layout.total, device=self._observed.device)

    def state_dict(self) -> dict[str, Any]:
        strengths = self.strengths.clone() if self.searching else torch.zeros(0)
        return super().state_dict() | {"learning": self.learning, "strengths": strengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.learning = state["learning"]
        if self.searching and self.learning:
            self.strengths = state["strengths"].to(self._observed.device)
            self.pull.aim(self.strengths)
