"""One structured cut at a fixed moment: the baselines "at initialisation" and "oracle" (a grid search over the moment).

Pruning at initialisation is ``at=0``: before the first step. With ``scope="group"`` every layer loses the same share. With
moments along the training it is the grid search that EPI's paper compares its choice with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.errors import EspalierError
from espalier.methods.frame.base import Site
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured


@dataclass(frozen=True, kw_only=True)
class PruneAt(Structured):
    """Cut when the share ``at`` of the training is done.

    The other arguments are those of ``Structured``.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> method = es.PruneAt(at=0, prune_channels=0.5, criterion="random", scope="group")
        >>> pruner = es.Pruner(net, optimizer, method, total_steps=100, example_inputs=torch.randn(4, 8))
        >>> net[0]
        Linear(in_features=8, out_features=32, bias=True)
    """

    at: float

    name: ClassVar[str] = "prune-at"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.at, bool) or not isinstance(self.at, int | float) or not 0 <= self.at <= 1:
            raise EspalierError(f"at is a share of the training between 0 and 1; got {self.at!r}.")

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.at,)

    def begin(self, site: Site) -> PruneAtRun:
        return PruneAtRun(self, site, indicator=None, latest=self.at)


class PruneAtRun(StructuredRun):
    """Nothing happens but the cut."""

    def start(self) -> None:
        self.look()
        if self.latest == 0:
            self.remove("start")

    def verdict(self) -> str | None:
        return "planned" if self._step >= self.latest else None
