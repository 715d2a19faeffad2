"""The frame of SLR and ADMM on masks: weights that train beside pruned twins, pulled together until hard pruning costs little.

The projection of ``iteration`` keeps the units with the largest L2 norm and zeroes the others, which is the nearest point of
the allowed set. At ``hard_prune_at`` the top units of W itself are kept (not the support of Z), and what is left of the
training goes on under that mask, as after one-shot pruning.

Gradients are clipped, if at all, before the penalty is added to them; with LBFGS a line search does not see the penalty. Of
several optimizers the first that has made its step brings the round about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier.criteria import Criterion
from espalier.distributed import is_leader
from espalier.errors import EspalierError
from espalier.masks.trial import tried
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.masking.ratios import WithRatios
from espalier.methods.frame.masking.scheduled import ScheduledRun
from espalier.methods.frame.splitting.coupling import Coupling
from espalier.methods.frame.splitting.iteration import Iterated
from espalier.records.rounds import Round
from espalier.schedules import Step


@dataclass(frozen=True)
class Splitting(Iterated, WithRatios):
    """Base of the methods that pull weights to zero by multipliers.

    Args:
        sparsity: share of the selected weights that is zero at the end, or a share for every name pattern:
            ``{"layer1.*": 0.5, "layer2.*": 0.9}`` (the last that matches counts; it selects the weights, too).
        rho, check_every, start, hard_prune_at, norm: as for ``Iterated``.
        scope, pattern, include, exclude: as for ``Scheduled``.
    """

    sparsity: float | Mapping[str, float]
    _: KW_ONLY
    criterion: Criterion | str = field(default="squared", init=False, repr=False)  # the Euclidean projection: no choice here
    every: int = field(default=1, init=False, repr=False)
    tolerance: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_iteration()
        if not self.highest:
            raise EspalierError(f"{self.name} needs a sparsity above 0.")

    def schedule(self) -> Step:
        return Step(self.highest, start=min(self.hard_prune_at, 1 - 1e-9))  # a schedule has to start before the end

    def begin(self, site: Site) -> SplitRun:
        return SplitRun(self, site)


class SplitRun(ScheduledRun):
    """An iteration until hard pruning, a mask from there.

    Attributes:
        iteration: Z, U and the rounds.
    """

    method: Splitting

    def __init__(self, method: Splitting, site: Site) -> None:
        super().__init__(method, site)
        self.iteration = method.iteration(site, self.weights, self.projection)

    @property
    def coupling(self) -> Coupling:
        """Z and U, while there are any."""
        return self.iteration.coupling

    @torch.no_grad()
    def before_update(self, gradients: Gradients) -> None:
        if not self.masks.tensors:
            self.iteration.before_update(gradients)
        super().before_update(gradients)

    @torch.no_grad()
    def after_update(self) -> None:
        self.iteration.after_update()
        super().after_update()

    def observe(self, loss: Tensor) -> None:
        self.iteration.observe(loss)

    def _prune_to(self, sparsity: float) -> None:
        super()._prune_to(sparsity)
        self.coupling.release()

    # -- projecting ------------------------------------------------------------------------------------------------

    def projection(self) -> dict[str, Tensor]:
        """Proj(W + U) of every weight: the best units under the sparsity, zeros elsewhere. Rank 0 chooses the units."""
        point = self.coupling.point if self.coupling.tied else self.coupling.copy
        found = {}
        for name, mask in self._best(point):
            z = found[name] = point(name)
            z.masked_fill_(mask == 0, 0.0)
        return found

    @property
    def looks_ahead(self) -> bool:
        return not self.masks.tensors

    @contextlib.contextmanager
    def projected(self) -> Iterator[None]:
        if self.masks.tensors:
            yield
            return
        with torch.no_grad():
            masks = dict(self._best(self.coupling.copy))
        with tried(self.weights, masks):
            yield

    def _best(self, point: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name and mask of every weight: the units of ``point`` that the projection keeps."""
        group, choices = self.site.process_group, {}
        if is_leader(group):
            choices = self._choose({name: self._score(name, point(name)) for name in self.weights}, self.schedule(1.0))
        for name, weight in self.weights.items():
            keep = choices[name] if group is None else self._agree(name, choices.get(name))
            mask = torch.empty_like(weight, requires_grad=False)
            self.method.pattern.expand(keep, mask)
            yield name, mask

    # -- reading and resuming --------------------------------------------------------------------------------------

    def rounds(self) -> tuple[Round, ...]:
        return tuple(self.iteration.rounds)

    def numbers(self) -> dict[str, float]:
        return self.iteration.numbers()

    def companions(self) -> Sequence[MutableMapping[str, Tensor]]:
        return [*super().companions(), self.coupling.multipliers, self.coupling.centres]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | self.iteration.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.iteration.load_state_dict(state)
