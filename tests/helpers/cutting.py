"""A method for tests only: cut hand-listed channels of ``SmallNet`` at given steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from espalier.methods import Method, Run
from espalier.surgery import cut


def members(kept: list[int]) -> dict[tuple[str, int], list[int]]:
    """Every slice of ``SmallNet`` that carries a channel of conv1."""
    return {
        ("conv1.weight", 0): kept,
        ("bn1.weight", 0): kept,
        ("bn1.bias", 0): kept,
        ("bn1.running_mean", 0): kept,
        ("bn1.running_var", 0): kept,
        ("conv2.weight", 1): kept,
    }


def integers(width: int) -> dict[str, int]:
    return {"conv1.out_channels": width, "bn1.num_features": width, "conv2.in_channels": width}


def cut_channels(net: nn.Module, kept: list[int], **kwargs: Any):
    return cut(net, members(kept), integers=integers(len(kept)), **kwargs)


@dataclass(frozen=True)
class CutAt(Method):
    """After step ``at`` keep the ``width`` channels of conv1 of largest norm; after ``again`` the ``narrower`` ones."""

    at: int
    width: int
    again: int | None = None
    narrower: int = 0

    name: ClassVar[str] = "cut-at"
    cuts: ClassVar[bool] = True

    def weights(self, model):
        return {"conv1.weight": model.conv1.weight}

    def begin(self, site):
        return CutRun(self, site)


class CutRun(Run):
    def __init__(self, method, site):
        super().__init__(site)
        self.method, self.weights = method, method.weights(site.model)

    def before_update(self, gradients):
        pass

    def after_update(self):
        plan = {self.method.at: self.method.width, self.method.again: self.method.narrower}
        width = plan.get(self.site.clock.step)
        if width:
            norms = self.weights["conv1.weight"].detach().flatten(1).norm(dim=1)
            kept = norms.topk(width).indices.sort().values.tolist()
            cut_channels(self.site.model, kept, optimizers=self.site.optimizers, followers=self.site.followers)

    def finish(self):
        pass

    sparsity = 0.0
    target = 0.0

    def layers(self):
        return []

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
