"""Optimizers of a recipe, and learning rate curves as pure functions of the optimizer step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from espalier.errors import EspalierError
from espalier.recipes.spec import LRScheduleSpec, OptimizerSpec


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Make the optimizer; vectors and scalars (norms, biases) get no weight decay unless `decay_all`."""
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise EspalierError("The model has no trainable parameters.")
    matrices = [p for p in params if spec.decay_all or p.ndim >= 2]
    vectors = [p for p in params if not spec.decay_all and p.ndim < 2]
    groups = [
        {"params": group, "weight_decay": decay} for group, decay in ((matrices, spec.weight_decay), (vectors, 0.0)) if group
    ]
    if spec.name == "sgd":
        if spec.nesterov and spec.momentum == 0:
            raise EspalierError("The recipe's optimizer.nesterov needs a momentum above 0.")
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
    if spec.name == "adam":
        return torch.optim.Adam(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    return torch.optim.RMSprop(groups, lr=spec.lr, momentum=spec.momentum, eps=spec.eps)


@dataclass(frozen=True)
class LRCurve:
    """Learning rate and momentum at every optimizer step, in closed form, so that a resumed run needs no state.

    One-cycle has the shape of `torch.optim.lr_scheduler.OneCycleLR` (cosine up, cosine down), with fastai's meaning
    of `final_div`: the last rate is `lr / final_div`, counted from the highest rate.

    At each of the steps in `restarts` the schedule starts over, up to `lr * restart_scale`, and ends before the next of them.

    Example:
        >>> curve = LRCurve(LRScheduleSpec(name="one-cycle"), lr=1.0, total_steps=100)
        >>> round(curve.lr_at(0), 7), curve.lr_at(24), round(curve.lr_at(99), 7)
        (0.04, 1.0, 1e-05)
        >>> twice = LRCurve(LRScheduleSpec(name="cosine", restart_scale=0.1), lr=1.0, total_steps=100, restarts=(60,))
        >>> [round(twice.lr_at(step), 3) for step in (0, 30, 59, 60, 80, 99)]
        [1.0, 0.5, 0.001, 0.1, 0.05, 0.0]
    """

    spec: LRScheduleSpec
    lr: float
    total_steps: int
    restarts: tuple[int, ...] = ()

    @property
    def _warmup(self) -> float:
        default = 0.25 if self.spec.name == "one-cycle" else 0.0
        return default if self.spec.warmup is None else self.spec.warmup

    def lr_at(self, step: int) -> float:
        """Rate of optimizer step `step`, which counts from 0."""
        if self.restarts:
            curve, own = self._stage(step)
            return curve.lr_at(own)
        spec = self.spec
        if spec.name == "one-cycle":
            return self._cycle(step, self.lr / spec.div, self.lr, self.lr / spec.final_div)
        warm = self._warmup * self.total_steps
        if step < warm:
            return self.lr * (step + 1) / (math.ceil(warm) + 1)
        if spec.name == "cosine":
            share = (step - warm) / max(1.0, self.total_steps - warm)
            return self.lr * 0.5 * (1 + math.cos(math.pi * share))
        if spec.name == "multi-step":
            share = step / self.total_steps
            return self.lr * float(spec.gamma ** bisect_right(sorted(spec.milestones), share))
        return self.lr

    def momentum_at(self, step: int) -> float | None:
        """Momentum (or beta1) of a step, high where the rate is low; None where momentum stays as it is."""
        if self.spec.name != "one-cycle" or not self.spec.momentum_cycle:
            return None
        if self.restarts:
            curve, own = self._stage(step)
            return curve.momentum_at(own)
        low, high = self.spec.momentum_range
        return self._cycle(step, high, low, high)

    def _stage(self, step: int) -> tuple[LRCurve, int]:
        """The schedule between two restarts as one of its own, and where `step` stands in it."""
        number = bisect_right(self.restarts, step)
        first, end = (0, *self.restarts)[number], (*self.restarts, self.total_steps)[number]
        scale = self.spec.restart_scale if number and self.spec.restart_scale is not None else 1.0
        return replace(self, lr=self.lr * scale, total_steps=end - first, restarts=()), step - first

    def _cycle(self, step: int, start: float, middle: float, end: float) -> float:
        """Cosine from start to middle, then to end, with OneCycleLR's phase borders."""
        peak = max(self._warmup * self.total_steps - 1, 0.0)
        last = self.total_steps - 1
        if step <= peak and peak > 0:
            return _cosine(start, middle, step / peak)
        return _cosine(middle, end, (step - peak) / (last - peak) if last > peak else 1.0)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set rate and momentum of every group for `step`; returns the rate."""
        lr, momentum = self.lr_at(step), self.momentum_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif momentum is not None and group.get("momentum", 0):
                group["momentum"] = momentum
        return lr


def restart_steps(shares: Iterable[float], total_steps: int) -> tuple[int, ...]:
    """The steps at which a schedule starts over: the first after a cut that is planned at the same share of the training.

    Example:
        >>> restart_steps((0.25, 2 / 3), 30), restart_steps((0.001, 0.999), 3)
        ((8, 20), (1,))
    """
    steps = {math.ceil(share * total_steps - 1e-9) for share in shares}
    return tuple(sorted(step for step in steps if 0 < step < total_steps))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))
