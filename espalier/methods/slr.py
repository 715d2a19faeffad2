"""Surrogate Lagrangian Relaxation (SLR).

Gurevin, Bragin, Ding, Zhou, Pepin, Li, Miao: "Enabling Retrain-free Deep Neural Network Pruning using Surrogate Lagrangian
Relaxation", IJCAI 2021, arXiv 2012.10079; extended in arXiv 2304.04120.

Weights W with a twin Z in the allowed set S (so many units per layer), W = Z relaxed by multipliers Lam:

    L(W, Z, Lam) = f(W) + <Lam, W - Z> + rho/2 ||W - Z||^2

Z^0 = Proj(W^0), Lam = 0, k = 1, s = s0. Training with the penalty gives W^k; then, every ``check_every`` steps, a round:

    1. if  L(W^k, Z^{k-1}, Lam) < L(W^{k-1}, Z^{k-1}, Lam)  (surrogate optimality 1; taken as true for k = 1):
           s   <- alpha_k s ||W^{k-1} - Z^{k-1}|| / ||W^k - Z^{k-1}||
           Lam <- Lam + s (W^k - Z^{k-1}),   k <- k + 1
    2. Z^k = Proj(W^k + Lam/rho); if  L(W^k, Z^k, Lam) < L(W^k, Z^{k-1}, Lam)  (surrogate optimality 2):
           s   <- alpha_k s ||W^k - Z^{k-1}|| / ||W^k - Z^k||
           Lam <- Lam + s (W^k - Z^k),   k <- k + 1

    alpha_k = 1 - 1 / (M k^p),   p = 1 - 1 / k^r

A norm of 0 leaves s as it is. At ``hard_prune_at`` the top units of W stay (of channels, those that the budget pays for); what
remains of the training is retraining.

What W^{k-1} is needed for are two numbers, f + rho/2 ||W - Z + Lam/rho||^2 and ||W - Z||, and Z and Lam do not change between
two rounds: they are taken at the end of each round, so that no copy of the weights is kept. -||Lam||^2 / (2 rho), the rest of
L, stands on both sides of each condition.

Departures from the authors' code, which keeps W^{k-1} as a reference to the live weights (so that condition 1 compares f alone,
and the first ratio is 1): W^{k-1} is what it says. f does not enter condition 2, where it cancels. If condition 2 fails, Z^k is
no better than Z^{k-1}, which then stays. f is the loss on fixed mini-batches, in the code the mean training loss of an epoch
(``conditions="mean"``). The norm is that of all layers together, in the code the sum of layer norms (``norm="layers"``). The
paper's formula can be read with ||W^{k-1} - Z^{k-1}|| above the second ratio (``numerator="previous"``). M = 1, which the paper
allows, would make alpha_1 and every later step 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from espalier.cost.budgets import is_number
from espalier.errors import EspalierError
from espalier.methods.frame.base import Site
from espalier.methods.frame.splitting.channels import SplitChannels
from espalier.methods.frame.splitting.iteration import Iterated, Iteration, Projection
from espalier.methods.frame.splitting.losses import FixedLoss, Loss, MeanLoss
from espalier.methods.frame.splitting.masks import Splitting
from espalier.records.rounds import Round

PATIENCE = 10  # rounds in a row in which the first condition may fail before a word is said


def alpha(k: int, M: float = 300.0, r: float = 0.1) -> float:
    """alpha_k, the factor of the step size in its k-th change.

    Example:
        >>> [round(alpha(k), 6) for k in (1, 10, 100)]
        [0.996667, 0.997924, 0.999391]
    """
    p = 1 - math.pow(k, -r)
    return 1 - math.pow(k, -p) / M


@dataclass(frozen=True, kw_only=True)
class Surrogate(Iterated):
    """Settings of the iteration.

    Args:
        s0: first step size of the multipliers; a tenth of rho or less, since the first rounds multiply it.
        M, r: of alpha_k; M above 1, r between 0 and 1.
        conditions: f is the loss on "batches" that stay the same, for which ``loss_fn`` is called with the model in evaluation
            mode (once when the Pruner is built, then in every round), or the "mean" of what ``pruner.observe(loss)`` is told.
        check_batches: how many of the Pruner's batches those are.
        numerator: of the second ratio: "accepted" is the gap of the last accepted pair, "previous" that of the last round.
        rho, check_every, start, hard_prune_at, norm: as for ``Iterated``.
    """

    s0: float = 0.01
    M: float = 300.0
    r: float = 0.1
    conditions: Literal["batches", "mean"] = "batches"
    check_batches: int = 4
    numerator: Literal["accepted", "previous"] = "accepted"

    def iteration(self, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> SLRIteration:
        return SLRIteration(self, site, weights, project)

    def check_iteration(self) -> None:
        super().check_iteration()
        if not is_number(self.s0) or not 0 < self.s0 < math.inf:
            raise EspalierError(f"s0 is a number above 0; got {self.s0!r}.")
        if not is_number(self.M) or not 1 < self.M < math.inf:
            raise EspalierError(
                f"M is a number above 1 (at 1 the first step is 0, and every later one with it); got {self.M!r}."
            )
        if not is_number(self.r) or not 0 < self.r < 1:
            raise EspalierError(f"r is a number between 0 and 1; got {self.r!r}.")
        if self.conditions not in ("batches", "mean"):
            raise EspalierError(f"conditions is 'batches' or 'mean'; got {self.conditions!r}.")
        if self.numerator not in ("accepted", "previous"):
            raise EspalierError(f"numerator is 'accepted' or 'previous'; got {self.numerator!r}.")
        count = self.check_batches
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise EspalierError(f"check_batches is a whole number of at least 1; got {count!r}.")


@dataclass(frozen=True)
class SLR(Surrogate, Splitting):
    """SLR pruning (IJCAI 2021), from a trained network or, with ``start``, after a dense warm-up.

    Needs ``batches`` and ``loss_fn``, unless ``conditions="mean"``. The arguments are those of ``Splitting`` and ``Surrogate``.
    From scratch, in one run: ``es.SLR(0.9, start=0.4, hard_prune_at=0.9)``.

    Example:
        >>> import torch, espalier as es
        >>> from torch.nn.functional import cross_entropy
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.randn(32, 1, 8, 8), torch.randint(2, (32,))
        >>> pruner = es.Pruner(
        ...     model, optimizer, es.SLR(sparsity=0.75, start=0.2, check_every=4), total_steps=20,
        ...     batches=[batch], loss_fn=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        ... )
        >>> for _ in range(20):
        ...     cross_entropy(model(batch[0]), batch[1]).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> report = pruner.finish()
        >>> report.sparsity, [made.step for made in report.rounds]
        (0.75, [8, 12, 16, 20])
    """

    name: ClassVar[str] = "slr"


@dataclass(frozen=True, kw_only=True)
class SLRChannels(Surrogate, SplitChannels):
    """SLR on channels that leave physically at ``hard_prune_at``. Give a budget, such as ``keep_macs=0.5``.

    Needs ``batches`` and ``loss_fn``, unless ``conditions="mean"``. The arguments are those of ``SplitChannels`` and
    ``Surrogate``. From scratch, in one run: ``es.SLRChannels(keep_macs=0.5, start=0.4, hard_prune_at=0.9)``.

    Example:
        >>> import espalier as es
        >>> es.SLRChannels(keep_macs=0.5, start=0.4).cuts
        True
    """

    name: ClassVar[str] = "slr-channels"


class SLRIteration(Iteration):
    """The iteration of the paper.

    Attributes:
        k: number of the next change of the multipliers.
        s: step size.
        alpha: the last factor.
        accepted_gap: ||W - Z|| of the last accepted pair.
        previous_gap: ||W^{k-1} - Z^{k-1}||.
        value: L(W^{k-1}, Z^{k-1}, Lam), less what stands on both sides.
        failures: rounds in a row in which condition 1 has failed.
    """

    method: Surrogate
    _NUMBERS = ("k", "s", "alpha", "accepted_gap", "previous_gap", "value", "failures")

    def __init__(self, method: Surrogate, site: Site, weights: Mapping[str, nn.Parameter], project: Projection) -> None:
        super().__init__(method, site, weights, project)
        self.loss: Loss
        self.loss = MeanLoss(site) if method.conditions == "mean" else FixedLoss(site, method.check_batches, method.name)
        self.k, self.s, self.alpha = 1, float(method.s0), 1.0
        self.accepted_gap = self.previous_gap = self.value = 0.0
        self.failures = 0
        self._warned_of_loss = self._warned_of_failures = False
        if method.s0 >= method.rho:
            warnings.warn(
                f"s0={method.s0:g} is not below rho={method.rho:g}: the first rounds multiply the step size, and multipliers "
                f"that move by more than rho overshoot: the weights end far from what pruning leaves. Take a tenth of rho.",
                stacklevel=2,
            )

    def begin(self) -> None:
        if self.first == 0 and isinstance(self.loss, FixedLoss):
            self.warn_if_untrained(self.loss)
        (gaps,) = self.read(self.coupling.gaps())
        self.accepted_gap = self.previous_gap = self.total(gaps)

    def update(self) -> Round | None:
        pair = self.coupling
        (loss,), (penalty,), gaps = self.read(self.loss.read(), pair.penalty(), pair.gaps())  # of W^k, Z^{k-1}, Lam
        if not math.isfinite(loss + penalty):
            self._warn_of_numbers(loss, penalty)
            return None

        first = self.k == 1 or loss + penalty < self.value
        if first:
            gap = self.total(gaps)
            self._change_step_size(self.accepted_gap, gap)
            pair.move(self.s)
            self.accepted_gap = gap
            self.k += 1

        z = self.projection()
        (old,), (new,) = self.read(pair.penalty(), pair.distance_to(z))
        second = new < old
        if second:
            pair.put(z)
            (gaps,) = self.read(pair.gaps())
            gap = self.total(gaps)
            self._change_step_size(self.accepted_gap if self.method.numerator == "accepted" else self.previous_gap, gap)
            pair.move(self.s)
            self.accepted_gap = gap
            self.k += 1

        ((penalty,),) = self.read(pair.penalty())
        self.value, self.previous_gap = loss + penalty, self.total(gaps)
        self._count_failures(first)
        return self.record(gaps, step_size=self.s, alpha=self.alpha, held=(first, second), loss=loss)

    def _change_step_size(self, before: float, after: float) -> None:
        if before and after:
            self.alpha = alpha(self.k, self.method.M, self.method.r)
            self.s *= self.alpha * before / after

    def _count_failures(self, held: bool) -> None:
        self.failures = 0 if held else self.failures + 1
        if self.failures == PATIENCE and not self._warned_of_failures:
            self._warned_of_failures = True
            warnings.warn(
                f"The first optimality condition of slr has failed in {PATIENCE} rounds in a row: loss and penalty do not fall "
                f"between rounds, so the multipliers move only half as often. Training goes on; a lower learning rate or a "
                f"larger check_every may help.",
                stacklevel=2,
            )

    def _warn_of_numbers(self, loss: float, penalty: float) -> None:
        if not self._warned_of_loss:
            self._warned_of_loss = True
            warnings.warn(
                f"The loss is {loss} and the penalty {penalty} after step {self.site.clock.step}: the multipliers stay as they "
                f"are. If it stays so, training has diverged; go back to an earlier checkpoint with a lower learning rate.",
                stacklevel=2,
            )

    def observe(self, loss: Tensor) -> None:
        if self.site.clock.step >= self.first:  # f begins with Z: the losses of a dense warm-up are no part of it
            self.loss.observe(loss)

    def state_dict(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        return super().state_dict() | {"slr": numbers, "loss": self.loss.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self._NUMBERS:
            setattr(self, name, state["slr"][name])
        self.loss.load_state_dict(state["loss"])
