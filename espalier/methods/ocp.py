"""One-Cycle Pruning.

Hubens, Mancas, Gosselin, Preda, Zaharia: "One-Cycle Pruning: Pruning ConvNets with tight training budget", ICIP 2022,
arXiv 2107.02086.

The network is pruned from the first step to the last of its one training run. After the share t of all steps,

    s(t) = s_i + (s_f - s_i) (1 + exp(-alpha + beta)) / (1 + exp(-alpha t + beta))

of the weights of every convolution is zero: in each layer those with the smallest |w|. Masked weights get no gradient;
the mask is recomputed from the current weights, so regrowth is possible in principle.

Choices of the paper's code that are the defaults here: alpha = 14, beta = 5, every convolution (the first one too), no
linear layer, local ranking, magnitude. Departures: momentum and Adam moments of masked weights are zeroed with them (the
2021 code left them), the mask is recomputed when the schedule has moved by 0.1 points instead of at every step
(``tolerance=0`` restores that), and the last step has exactly s_f (there t stopped one step short of 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from espalier.methods.frame.masking.scheduled import Scheduled
from espalier.schedules import OneCycle


@dataclass(frozen=True)
class OCP(Scheduled):
    """One-Cycle Pruning (ICIP 2022).

    Args:
        sparsity: s_f, the share of the selected weights that is zero at the end, in [0, 1).
        alpha: slope of the schedule.
        beta: its offset; the steepest point is t = beta / alpha. The authors' library also used 6.
        initial_sparsity: s_i.

    The other arguments are those of ``Scheduled``.

    Example:
        >>> import torch, espalier as es
        >>> model = torch.nn.Conv2d(3, 8, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = es.Pruner(model, optimizer, es.OCP(sparsity=0.75), total_steps=10)
        >>> for _ in range(10):
        ...     model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finish().sparsity
        0.75
    """

    sparsity: float
    alpha: float = 14.0
    beta: float = 5.0
    initial_sparsity: float = 0.0

    name: ClassVar[str] = "ocp"

    def schedule(self) -> OneCycle:
        return OneCycle(self.sparsity, self.initial_sparsity, alpha=self.alpha, beta=self.beta)
