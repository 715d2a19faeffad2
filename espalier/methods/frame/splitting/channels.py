"""The frame of SLR and ADMM on channels: weights that train beside twins with fewer channels, until a cut that costs little.

W is every trained parameter that a channel which may leave has a part in. The projection of ``iteration`` scores a channel by
the sum of squares of W + U over all that leaves with it, lets the search under the budget say which channels stay, and zeroes
the others wherever they live. Where no weight lies between two channels and all groups lose the same share, that is the nearest
point of the allowed set; else such weights count for both channels, and under a budget of MACs or parameters the search's
ranking stands in for a knapsack problem.

At ``hard_prune_at`` the channels of W itself are chosen so and leave, as with every method that cuts (``shrinking``).
``Pruner.projected`` shows W with zeros: what a cut would leave, but for layer and group norms, which average over the zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier.criteria.channels import ChannelCriterion
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.masks.trial import tried
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured
from espalier.methods.frame.splitting.coupling import Coupling
from espalier.methods.frame.splitting.iteration import Iterated
from espalier.records.rounds import Round


@dataclass(frozen=True, kw_only=True)
class SplitChannels(Iterated, Structured):
    """Base of the methods that pull channels to zero by multipliers, and then cut them. Give at least one budget.

    Args:
        rho, check_every, start, hard_prune_at, norm: as for ``Iterated``.
        keep_macs, keep_params, max_macs, max_params, max_latency, prune_channels: the budget, as for ``Structured``.
        scope, normalise, max_ratio, min_channels, round_to, include, exclude, recalibrate: as for ``Structured``.
    """

    criterion: ChannelCriterion | str = field(default="squared", init=False, repr=False)  # the distance: no choice here

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_iteration()

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.hard_prune_at,)

    def begin(self, site: Site) -> SplitChannelsRun:
        return SplitChannelsRun(self, site)


class SplitChannelsRun(StructuredRun):
    """An iteration until the cut, a small network from there.

    Attributes:
        iteration: Z, U and the rounds.
    """

    method: SplitChannels

    def __init__(self, method: SplitChannels, site: Site) -> None:
        super().__init__(method, site, indicator=None, latest=method.hard_prune_at)
        self.every = self.latest  # a look before training and one for the cut: the rounds look for themselves
        trained = {name: weight for name, weight in self.weights.items() if weight.requires_grad}
        if not trained:
            raise EspalierError(f"{method.name} pulls weights while they train, and those of the groups are all frozen.")
        self.iteration = method.iteration(site, trained, self.projection)

    @property
    def coupling(self) -> Coupling:
        """Z and U, while there are any."""
        return self.iteration.coupling

    def every_step(self, gradients: Gradients) -> None:
        self.iteration.before_update(gradients)

    def after_step(self) -> None:
        self.iteration.after_update()

    def observe(self, loss: Tensor) -> None:
        self.iteration.observe(loss)

    def verdict(self) -> str | None:
        return "planned" if self._step >= self.latest else None

    def remove(self, why: str) -> None:
        self.coupling.release()
        super().remove(why)

    # -- projecting ------------------------------------------------------------------------------------------------

    def projection(self) -> dict[str, Tensor]:
        """Proj(W + U) of every weight: zeros in the channels that the budget doesn't pay for. Rank 0 chooses them."""
        point = self.coupling.point if self.coupling.tied else self.coupling.copy
        found = {name: point(name) for name in self.coupling.weights}
        for name, mask in self._masks(self._detached() | found).items():
            if name in found:
                found[name].masked_fill_(~mask, 0.0)
        return found

    @property
    def looks_ahead(self) -> bool:
        return self.searching

    @contextlib.contextmanager
    def projected(self) -> Iterator[None]:
        if not self.searching:
            yield
            return
        with torch.no_grad():
            masks = self._masks(self._detached())
        with tried(self.weights, masks):
            yield

    def _detached(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.weights.items()}

    def _masks(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """False where one of the channels lives that would leave if W were these tensors; of shapes that spread to theirs."""
        leaves: dict[Group, Tensor] = {group: torch.zeros(group.size) for group in self.layout.groups}
        for group, kept in self.agreed(lambda: self.criterion.score(tensors, self._places, None)).items():
            leaves[group] = torch.ones(group.size).index_fill_(0, kept, 0.0)
        masks: dict[str, Tensor] = {}
        for (name, dim), gone in self._places.spread(self.layout.join(leaves).to(self._observed.device)).items():
            shape = [1] * tensors[name].dim()
            shape[dim] = -1
            stays = (gone == 0).view(shape)
            masks[name] = masks[name] & stays if name in masks else stays
        return masks

    # -- reading and resuming --------------------------------------------------------------------------------------

    def rounds(self) -> tuple[Round, ...]:
        return tuple(self.iteration.rounds)

    def numbers(self) -> dict[str, float]:
        return self.iteration.numbers()

    def companions(self) -> Sequence[MutableMapping[str, Tensor]]:
        return [self.coupling.multipliers, self.coupling.centres]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"iteration": self.iteration.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.iteration.load_state_dict(state["iteration"])
