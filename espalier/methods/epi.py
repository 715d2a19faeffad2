"""Early Pruning Indicator.

Shen, Molchanov, Yin, Alvarez: "When to Prune? A Policy towards Early Structural Pruning", CVPR 2022, arXiv 2110.12007.

Training starts dense, with one learning-rate schedule. At every check (an epoch in the paper) a global ranking of all channels
says how many each layer l would keep, n_l; sub-networks at different checks are compared by these counts,

    Psi(N1, N2) = 1 - (1/L) sum_l |n_(1,l) - n_(2,l)| / (n_(1,l) + n_(2,l)),        EPI_t = (1/r) sum_{j=1..r} Psi(N_t, N_{t-j})

and the lowest-ranked channels leave in one cut at the first check with EPI_t > tau and EPI_t >= EPI_{t-j}, j = 1..5. Then
training goes on. r = 5; tau = 0.983 for magnitude and 0.944 for gradient (Taylor) scores.

Choices where the paper's text leaves room (no code was published): channels that must go together count as one layer, with
summed importance; what cannot be pruned is left out of L; magnitude is the L2 norm of the filter, unnormalised; the Taylor
score is taken from the norms' scale and shift where there are norms, averaged between checks; the structure before training
counts as the first; if the indicator never fires, the cut comes at a third of the training (epoch 30 of 90, the paper's fixed
choice). Departures: optimizer states survive the cut; widths in multiples that run fast (``round_to=1`` for the paper's); a
sixteenth of each layer always stays (``min_channels=1`` for the paper's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.cost.budgets import is_number
from espalier.criteria.channels import ChannelCriterion, channel_criterion
from espalier.errors import EspalierError
from espalier.indicators import CountStability, Indicator, check_indicator
from espalier.methods.frame.base import Site
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured

MAGNITUDE_TAU, GRADIENT_TAU = 0.983, 0.944


@dataclass(frozen=True, kw_only=True)
class EPI(Structured):
    """Early Pruning Indicator (CVPR 2022). Give ``prune_channels`` (the paper's p) or another budget.

    Args:
        tau: threshold of the indicator; None: the paper's for the criterion, 0.983 without and 0.944 with gradients.
        r: how many earlier structures the newest is compared with.
        latest: share of the training after which the cut is made in any case.
        indicator: another rule instead, such as ``JaccardStability()``; then ``tau`` and ``r`` must not be given.

    The other arguments are those of ``Structured``; ``criterion`` is "taylor" or "magnitude" in the paper.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> method = es.EPI(prune_channels=0.5, criterion="magnitude")
        >>> pruner = es.Pruner(net, optimizer, method, total_steps=100, example_inputs=torch.randn(4, 8))
        >>> for _ in range(100):
        ...     net(torch.randn(16, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finish().shrinkage.cuts[0].reason, net[0].out_features
        ('stable', 32)
    """

    criterion: ChannelCriterion | str = "taylor"
    tau: float | None = None
    r: int | None = None
    latest: float = 1 / 3
    indicator: Indicator | None = None

    name: ClassVar[str] = "epi"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.latest) or not 0 < self.latest <= 1:
            raise EspalierError(f"latest is a share above 0 and at most 1; got {self.latest!r}.")
        if self.indicator is not None and (self.tau is not None or self.r is not None):
            raise EspalierError("tau and r belong to the paper's indicator: leave them out, or leave indicator out.")
        check_indicator(self.rule())

    def rule(self) -> Indicator:
        """The indicator with everything filled in."""
        if self.indicator is not None:
            return self.indicator
        usual = GRADIENT_TAU if channel_criterion(self.criterion).uses_gradients else MAGNITUDE_TAU
        return CountStability(r=5 if self.r is None else self.r, threshold=usual if self.tau is None else self.tau)

    def begin(self, site: Site) -> StructuredRun:
        return StructuredRun(self, site, indicator=self.rule(), latest=self.latest)
