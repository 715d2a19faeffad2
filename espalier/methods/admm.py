"""Weight pruning by the alternating direction method of multipliers (ADMM).

Zhang, Ye, Zhang, Tang, Wen, Fardad, Wang: "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", ECCV 2018, arXiv 1804.03294.

Weights W with a twin Z that is pruned, W = Z demanded by scaled multipliers U. Z_0 = Proj(W_0), U_0 = 0; then, every
``check_every`` steps,

    W <- argmin f(W) + rho/2 ||W - Z + U||^2       (the training steps since the last round)
    Z <- Proj(W + U)
    U <- U + W - Z

At ``hard_prune_at`` W is pruned, and what is left of the training goes on under the mask. rho = 0.1 and a round per epoch (3 on
ImageNet, 10 for Mixer and Swin) are the settings with which the SLR authors compare; the paper raises rho in stages, which is
left out here as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from espalier.methods.frame.base import Site
from espalier.methods.frame.splitting.channels import SplitChannels
from espalier.methods.frame.splitting.iteration import Iterated, Iteration, Projection
from espalier.methods.frame.splitting.losses import FixedLoss
from espalier.methods.frame.splitting.masks import Splitting
from espalier.records.rounds import Round


@dataclass(frozen=True)
class ADMM(Splitting):
    """ADMM pruning (ECCV 2018), from a trained network or, with ``start``, after a dense warm-up.

    The arguments are those of ``Splitting``.

    Example:
        >>> import torch, espalier as es
        >>> model = torch.nn.Conv2d(3, 8, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = es.Pruner(model, optimizer, es.ADMM(sparsity=0.75, check_every=2), total_steps=10)
        >>> for _ in range(10):
        ...     model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> report = pruner.finish()
        >>> report.sparsity, [made.step for made in report.rounds]
        (0.75, [2, 4, 6, 8, 10])
    """

    name: ClassVar[str] = "admm"

    def iteration(self, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> ADMMIteration:
        return ADMMIteration(self, site, weights, project)


@dataclass(frozen=True, kw_only=True)
class ADMMChannels(SplitChannels):
    """ADMM on channels that leave physically at ``hard_prune_at``. Give a budget, such as ``keep_macs=0.5``.

    The arguments are those of ``SplitChannels``. After a dense warm-up: ``es.ADMMChannels(keep_macs=0.5, start=0.4)``.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> method = es.ADMMChannels(prune_channels=0.5, check_every=2)
        >>> pruner = es.Pruner(net, optimizer, method, total_steps=10, example_inputs=torch.randn(4, 8))
        >>> for _ in range(10):
        ...     net(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> len(pruner.finish().rounds), net[0]
        (5, Linear(in_features=8, out_features=32, bias=True))
    """

    name: ClassVar[str] = "admm-channels"

    def iteration(self, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> ADMMIteration:
        return ADMMIteration(self, site, weights, project)


class ADMMIteration(Iteration):
    """The iteration of the paper."""

    def __init__(self, method: Iterated, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> None:
        super().__init__(method, site, weights, project)
        self._loss: FixedLoss | None = None
        if self.first == 0 and site.batches is not None and site.loss_fn is not None:
            # The batch is taken here: at the first step the loader may be in mid-epoch, and start over if it is asked.
            self._loss = FixedLoss(site, 1, method.name)

    def begin(self) -> None:
        if self._loss is not None:
            self.warn_if_untrained(self._loss)
            self._loss = None

    def update(self) -> Round:
        pair, rho = self.coupling, self.method.rho
        pair.put(self.projection())  # Z <- Proj(W + U)
        (gaps,) = self.read(pair.gaps())
        pair.move(rho)  # U <- U + W - Z, a step of rho for Lam
        return self.record(gaps, step_size=rho)
