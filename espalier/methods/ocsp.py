"""One-cycle structured pruning.

Ghimire, Kil, Jeong, Park, Kim: "One-Cycle Structured Pruning via Stability-Driven Subnetwork Search", WACV 2026,
arXiv 2501.13439.

One training run in three phases under one learning-rate schedule. At every check (an epoch in the paper)

    S_g(c)  = mean over the layers i that channel c of group g runs through of  sum |w|^2 / sqrt(number of weights)
    K_g(t)  = channels that a global ranking of S keeps under the budget, at least 1 - max_ratio of each group
    J_t     = mean over groups of |K_g(t) & K_g(t-2)| / |K_g(t) | K_g(t-2)|,     J_avg = mean of the last three

1. Warm-up: plain training, until J_avg has levelled off (it rose by at most 1e-4 within two checks), or until ``start``.
2. Sparsity learning: after each step the weights of the channels outside K are shrunk, w <- w (1 - lambda lr); lambda grows.
3. When J_avg >= 0.999 (or at ``latest``) the channels outside K leave; training goes on, same schedule.

What acts in phase 2 is the exposure, the sum of lambda x lr over its steps. The constants of the paper's ResNet-56 (lambda =
1e-4, + 1e-4 per three epochs) give about 2.6 after 63 of 300 epochs, growing with the square of time. By default the exposure
follows that curve over the *share* of the training done, whatever its length and learning rates:

    E(p) = exposure ((p - p_start) / 0.21)^2,     w <- w (1 - dE) in each step

so lambda = dE / lr. ``exposure=None`` uses the paper's lambda, growing at every check, as it stands.

Departures: optimizer states survive the cut (the paper's code starts a new optimizer); a global ranking over closed-form MACs
instead of pruned copies, so the budget is met from below; the start rule of the ImageNet code everywhere (the CIFAR code has a
fixed epoch); the cut comes at the very check that fires (the code trains one more epoch), and only once sparsity learning has
begun; linear layers shrink too (in the code convolutions and norms only); widths in multiples that run fast (``round_to=1``
for the paper's); cost weighting off. Progressive cutting is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from espalier.cost import cost
from espalier.cost.budgets import is_number
from espalier.cost.evaluation import channel_costs
from espalier.criteria.slices import parameters, slice_sums, weights
from espalier.errors import EspalierError
from espalier.graph import Group
from espalier.indicators import Indicator, JaccardStability, check_indicator, has_levelled_off
from espalier.inputs import Call
from espalier.methods.frame.base import Gradients, Site
from espalier.methods.frame.cutting.pull import Pull
from espalier.methods.frame.cutting.shrinking import StructuredRun
from espalier.methods.frame.cutting.structured import Structured

SPAN = 0.21  # share of the training over which the paper's runs reach their exposure: 63 of 300 epochs
LARGEST = 0.5  # share of a weight that one step takes at most: twice that is all of it
COUNTED = 1e6  # unit of MACs in the paper's cost weighting


@dataclass(frozen=True, kw_only=True)
class OCSP(Structured):
    """One-cycle structured pruning (OCSPruner, WACV 2026). Give a budget, such as ``keep_macs=0.5``.

    Args:
        exposure: how strongly channels have been shrunk when 0.21 of the training has passed since the start of sparsity
            learning: a weight that only shrinks is down to exp(-exposure). 0 never shrinks (the paper's control); None goes by
            ``lambda_start``, ``lambda_step`` and the optimizer's learning rate.
        lambda_start: the paper's first lambda.
        lambda_step: and what each check adds to it.
        penalty: "shrink" acts on the weights after the step, as the paper's code does; "gradient" adds lambda w / ||w_channel||
            to the gradients, the derivative of the group norm that the paper writes; times 1 - momentum, since SGD's momentum
            repeats a steady pull. Adam averages gradients, so that its betas repeat nothing, but divides them by their usual
            size: the pull then has another strength than ``exposure`` says, and "shrink" is the better choice.
        start: share of the training at which sparsity learning starts; None: when the similarity has levelled off.
        latest: share of the training after which the cut is made in any case (110 of 300 epochs in the paper).
        indicator: when the selection counts as stable.
        progressive: let channels leave as soon as they have been selected throughout and have faded, in at most that many cuts
            before the last one; 0 makes one cut.
        faded: a channel has faded when what it contributes (its scale times its consumers) is down to this share: by the
            exposure so far where weights are shrunk, by the measured norm of the channel under the gradient penalty. By default
            that is when a channel has been selected throughout the first 3 % of the training after sparsity learning began.
            At 0.1 it takes 14 %, by when the selection as a whole has mostly settled, so that nothing leaves before the rest.
        cost_weighting: multiply scores by 1 - softmax of the MACs that a channel costs: "mean" divides these by their mean,
            "paper" by a million (MACs of one item, whatever the batch of the example inputs).

    The other arguments are those of ``Structured``; ``max_ratio`` is 0.75, as in the paper.

    Example:
        >>> import torch, espalier as es
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> pruner = es.Pruner(net, optimizer, es.OCSP(keep_macs=0.5), total_steps=100, example_inputs=torch.randn(4, 8))
        >>> for _ in range(100):
        ...     net(torch.randn(16, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finish().shrinkage.keep_macs, net[0]
        (0.5, Linear(in_features=8, out_features=32, bias=True))
    """

    max_ratio: float = 0.75
    exposure: float | None = 2.6
    lambda_start: float = 1e-4
    lambda_step: float = 1e-4
    penalty: Literal["shrink", "gradient"] = "shrink"
    start: float | None = None
    latest: float = 0.4
    indicator: Indicator = field(default_factory=JaccardStability)
    progressive: int = 0
    faded: float = 0.9
    cost_weighting: Literal["mean", "paper"] | None = None

    name: ClassVar[str] = "ocsp"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exposure", "lambda_start", "lambda_step"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0) and not (name == "exposure" and value is None):
                raise EspalierError(f"{name} is a number of at least 0{', or None' * (name == 'exposure')}; got {value!r}.")
        check_indicator(self.indicator)
        if not all(is_number(share) for share in (self.latest, self.start, self.faded) if share is not None):
            raise EspalierError(f"latest, start and faded are shares; got {self.latest!r}, {self.start!r}, {self.faded!r}.")
        if not 0 < self.latest <= 1 or not (self.start is None or 0 <= self.start < self.latest):
            raise EspalierError(f"start and latest are shares with 0 <= start < latest <= 1; got {self.start}, {self.latest}.")
        if self.penalty not in ("shrink", "gradient") or self.cost_weighting not in (None, "mean", "paper"):
            raise EspalierError("penalty is 'shrink' or 'gradient', cost_weighting None, 'mean' or 'paper'.")
        whole = isinstance(self.progressive, int) and not isinstance(self.progressive, bool)
        if not whole or self.progressive < 0 or not 0 < self.faded < 1:
            raise EspalierError("progressive is a number of cuts, at least 0, and faded a share between 0 and 1.")

    def begin(self, site: Site) -> OCSPRun:
        return OCSPRun(self, site, indicator=self.indicator, latest=self.latest)


class OCSPRun(StructuredRun):
    """Warm-up, sparsity learning, cut."""

    method: OCSP

    def start(self) -> None:
        self.began: int | None = None
        self.lambda_ = self.method.lambda_start
        self._grown = 0  # when lambda grew last
        self.exposed = 0.0  # so far
        self._exposed_then = 0.0  # at the last look
        self._rate = 0.0
        self.fading = torch.zeros(self.layout.total)  # exposure of each channel since it was last among those that stay
        self._whole = torch.zeros(self.layout.total)  # norm that it had then, where fading is measured
        super().start()

    # -- selection ---------------------------------------------------------------------------------------------------

    def scores(self) -> Tensor:
        scores = super().scores()
        if self.method.cost_weighting is None or len(self.layout.groups) == 1:  # nothing to weigh it against
            return scores
        costs = channel_costs(self.graph)
        macs = torch.tensor([costs[group].macs for group in self.layout.groups], dtype=torch.float64)
        macs /= max(1, Call.of(self.site.example_inputs).batch)
        shares = torch.softmax(macs / (macs.mean() if self.method.cost_weighting == "mean" else COUNTED), 0)
        return scores * (1 - shares).repeat_interleave(torch.tensor(self.layout.sizes)).to(scores)

    def selected(self) -> None:
        """Decide whether sparsity learning is on, and aim at the channels that are to go."""
        leaving = self._leaving()
        self.fading = torch.where(leaving, self._faded_by_now(leaving), 0.0)
        self._exposed_then = self.exposed
        self._rate = float(self.site.optimizers[0].param_groups[0]["lr"])
        if self.began is None and self._starts_now():
            self.began = self._grown = self._step
        elif self.began is not None and self._grown < self._step:  # once per check, also where a part has just left
            self.lambda_ += self.method.lambda_step
            self._grown = self._step
        self._aim(leaving)

    def _faded_by_now(self, leaving: Tensor) -> Tensor:
        """How far each channel is down, as a logarithm, (total,)."""
        if not self._measured:
            return self.fading + (self.exposed - self._exposed_then)
        norms = self._norms().cpu()
        under_way = leaving & (self._whole > 0) & (self.began is not None)
        self._whole = torch.where(under_way, self._whole, norms)
        return (self._whole.clamp(min=1e-12) / norms.clamp(min=1e-12)).log().clamp(min=0)

    @property
    def _measured(self) -> bool:
        """A pull of constant strength is no exponential decay, and gradients may hold against it."""
        return self.method.penalty == "gradient" and self.method.progressive > 0

    def _norms(self) -> Tensor:
        places = self.pull.places
        return places.gather(slice_sums(parameters(self.site.model), places.keys, 2.0)).sqrt()

    def _aim(self, leaving: Tensor) -> None:
        self._target = leaving.float().to(self._observed.device)
        if self.began is not None:
            self.pull.aim(self._target)

    def _starts_now(self) -> bool:
        if self.method.start is not None:
            return self._step >= self.method.start * self.site.clock.total
        return has_levelled_off([check.score for check in self.checks])

    def _leaving(self) -> Tensor:
        """Whether the last look would remove a channel, (total,) on the CPU."""
        stays = {group: torch.ones(group.size, dtype=torch.bool) for group in self.layout.groups}
        for group, kept in self.keep.items():
            stays[group] = torch.zeros(group.size, dtype=torch.bool).index_fill_(0, kept, True)
        return ~self.layout.join(stays)

    # -- shrinkage ---------------------------------------------------------------------------------------------------

    def every_step(self, gradients: Gradients) -> None:
        if self.method.penalty == "gradient" and self.began is not None and self._rate_now():
            amount = self._amount(self.site.clock.step + 1)
            self.pull.renew(self._target / self._norms().clamp(min=1e-12))
            group = self.site.optimizers[0].param_groups[0]
            lasting = 1 - group.get("momentum", 0)  # SGD's momentum adds a steady pull up to 1 / (1 - momentum) of it
            self.pull.penalise(gradients, lasting * amount / self._rate_now())

    def after_step(self) -> None:
        if self.began is None:
            return
        amount = self._amount(self._step)
        self.exposed += amount
        if self.method.penalty == "shrink":
            self.pull.shrink(min(amount, LARGEST))

    def _amount(self, step: int) -> float:
        """lambda x lr of a step."""
        assert self.began is not None
        if self.method.exposure is None:
            return self.lambda_ * self._rate_now()
        total = self.site.clock.total * SPAN
        now, before = (max(0, taken - self.began) / total for taken in (step, step - 1))
        return self.method.exposure * (now**2 - before**2)

    def _rate_now(self) -> float:
        """The learning rate; where it is a tensor, that of the last check, since reading it would wait for the device."""
        rate = self.site.optimizers[0].param_groups[0]["lr"]
        return self._rate if isinstance(rate, Tensor) else float(rate)

    # -- progressive cutting -----------------------------------------------------------------------------------------

    def verdict(self) -> str | None:
        why = super().verdict()
        if why == "stable" and not self._has_learned():
            why = "latest" if self._step >= self.latest else None
        if why is None and len(self.made) < self.method.progressive and self._enough_has_faded():
            return "faded"
        return why

    def leave(self, why: str) -> dict[Group, Tensor]:
        """Of the channels that are to go, those that have faded; widths stay multiples of what the last cut will have."""
        if why != "faded":
            return self.keep
        gone = self.layout.split(self.fading >= -math.log(self.method.faded) / 2)  # scale and consumers both shrink
        staying = {}
        for group, step in self.steps().items():
            order = self.layout.split(self.fading)[group].argsort(stable=True)  # the most faded last
            width = min(group.size, -(-(group.size - int(gone[group].sum())) // step) * step)
            staying[group] = order[:width].sort().values
        return staying

    def advice(self) -> str:
        if self.began is not None:
            return super().advice()
        return "Sparsity learning had not begun, so nothing was shrunk: check more often, or say when it starts with start."

    def _has_learned(self) -> bool:
        """Whether all that the newest score goes back to was selected under sparsity learning: the phases come in order."""
        return self.began is not None and sum(check.step > self.began for check in self.checks) >= self.method.indicator.span

    def _enough_has_faded(self) -> bool:
        """Whether a cut now would take its share of the MACs that are to go."""
        widths = {group: len(kept) for group, kept in self.leave("faded").items()}
        present, then = cost(self.graph).macs, cost(self.graph, widths).macs
        last = cost(self.graph, {group: len(kept) for group, kept in self.keep.items()}).macs
        return present - then >= (present - last) / (self.method.progressive - len(self.made) + 1) > 0

    def narrowed(self, keep: Mapping[Group, Tensor]) -> None:
        self.fading, self._whole = (self._kept(row, keep) for row in (self.fading, self._whole))

    def _kept(self, row: Tensor, keep: Mapping[Group, Tensor]) -> Tensor:
        parts = self.layout.split(row)
        return torch.cat([parts[group][keep[group]] if group in keep else parts[group] for group in self.layout.groups])

    def _lay_out(self) -> None:
        super()._lay_out()
        if len(getattr(self, "fading", ())) != self.layout.total:  # somebody else has cut the model
            self.fading, self._whole = torch.zeros(self.layout.total), torch.zeros(self.layout.total)
        self.pull = Pull(self.site.model, weights(self.site.model, self.layout).to(self._observed.device))

    # -- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        own = {
            "began": self.began,
            "lambda": float(self.lambda_),
            "grown": self._grown,
            "exposed": float(self.exposed),
            "exposed_then": float(self._exposed_then),
            "rate": self._rate,
            "fading": self._by_name(self.fading),
            "whole": self._by_name(self._whole) if self._measured else {},
        }
        return super().state_dict() | {"ocsp": own}

    def _by_name(self, row: Tensor) -> dict[str, Tensor]:
        return {group.name: part.clone() for group, part in self.layout.split(row).items() if self.searching}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        own = state["ocsp"]
        self.began, self.lambda_, self.exposed = own["began"], own["lambda"], own["exposed"]
        self._grown, self._exposed_then, self._rate = own["grown"], own["exposed_then"], own["rate"]
        if self.searching:
            self.fading = torch.cat([own["fading"][group.name].cpu() for group in self.layout.groups])
            if self._measured and own.get("whole"):
                self._whole = torch.cat([own["whole"][group.name].cpu() for group in self.layout.groups])
            self._aim(self._leaving())
