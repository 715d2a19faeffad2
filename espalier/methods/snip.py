"""SNIP, iterative SNIP and FORCE: connections that the loss feels, before training.

Lee, Ajanthan, Torr: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv 1810.02340;
Verdenius, Stol, Forré: "Pruning via Iterative Ranking of Sensitivity Statistics", 2020, arXiv 2006.00896 (iterative SNIP);
de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: "Progressive Skeletonization: Trimming More Fat from a Network at Initialization",
ICLR 2021, arXiv 2006.09081 (FORCE).

With a gate c_j = 1 on every weight w_j,

    s_j = |dL/dc_j| = |w_j dL/dw_j|,

gradients summed over the batches before the absolute value is taken; the weights with the highest s_j of the network stay. (The
paper divides by the sum of all, which ranks alike.) In n rounds the density falls as density^(k/n), and round k takes dL/dw_j
in the network that round k - 1 left, with w_j as it was at the start: what is out has a gradient all the same, and may return
in FORCE; in iterative SNIP it is out.

Departures: the library's selection (convolutions, unless told otherwise) in place of all layers, and at least one unit of every
layer stays. Channels in place of weights: ``es.Force``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from espalier.errors import EspalierError
from espalier.methods.frame.base import Site
from espalier.methods.frame.masking.atinit import AtInit, AtInitRun, Weights, first_batches, gradients_of, loss_of, need_data


@dataclass(frozen=True)
class SNIP(AtInit):
    """SNIP (ICLR 2019), in several rounds iterative SNIP or FORCE (ICLR 2021). Needs ``batches`` and ``loss_fn``.

    Args:
        sparsity: share of the selected weights that is zero from the first step on, in [0, 1).
        rounds: n; 1 is plain SNIP. FORCE's paper takes 60.
        batches_per_round: batches to sum gradients over, from the first that ``batches`` gives; the papers take one.
        returns: whether weights may come back in later rounds (FORCE), or not (iterative SNIP).

    The other arguments are those of ``AtInit``: scope ("global"), pattern, include, exclude.

    Raises:
        EspalierError: no batches or no loss, a sparsity that would empty a layer, scores that are not finite.

    Example:
        >>> import torch, espalier as es
        >>> from torch.nn.functional import cross_entropy
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> batch = torch.randn(32, 8), torch.randint(2, (32,))
        >>> pruner = es.Pruner(
        ...     net, optimizer, es.SNIP(0.9, include=["Linear"]), total_steps=100,
        ...     batches=[batch], loss_fn=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        ... )
        >>> pruner.sparsity
        0.9
    """

    rounds: int = 1
    batches_per_round: int = 1
    returns: bool = False

    name: ClassVar[str] = "snip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_counts("rounds", "batches_per_round")
        if self.returns and self.rounds == 1:
            raise EspalierError("Weights can only return in a later round: give SNIP(..., rounds=60, returns=True), say.")

    @property
    def steps(self) -> int:
        return self.rounds

    @property
    def lets_return(self) -> bool:
        return self.returns

    def begin(self, site: Site) -> AtInitRun:
        need_data(self, site)
        return super().begin(site)

    def scores(self, site: Site, weights: Weights, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in whole.items()}
        for batch in first_batches(site, self.batches_per_round):
            for name, gradient in gradients_of(loss_of(site, batch), weights).items():
                total[name] += gradient
        return {name: (value.float() * total[name]).abs() for name, value in whole.items()}
