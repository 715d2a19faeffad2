"""Groups that a cut does not treat as zeroed channels would be say so: ``Group.exact``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph.counted import counted
from espalier.graph.integers import Attribute, Expression
from tests.graph.small import Calls


class Standardised(nn.Module):
    """A convolution whose weights are standardised over their inputs, as in NFNets."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        flat = self.two.weight.reshape(1, self.two.out_channels, -1)
        weight = nn.functional.batch_norm(flat, None, None, training=True).reshape_as(self.two.weight)
        return self.head(nn.functional.conv2d(self.one(x), weight, self.two.bias))


def test_groups_that_standardised_weights_are_averaged_over_are_not_exact():
    graph = es.trace(Standardised(), torch.zeros(1, 3, 8, 8))
    assert {group.name: group.exact for group in graph.groups} == {"one": False, "two": True}


# -- means written by hand ---------------------------------------------------------------------------------------------

BY_HAND = {
    "shape": lambda self, x: x.sum(1, keepdim=True) / x.shape[1],
    "size": lambda self, x: x.sum(1, keepdim=True).div(x.size(1)),
    "in place": lambda self, x: x.sum(1, keepdim=True).div_(x.shape[-1]),
    "function": lambda self, x: torch.div(x.sum(1, keepdim=True), x.shape[1]),
    "inverse": lambda self, x: x.sum(1, keepdim=True) * (1 / x.shape[1]),
    "weighted": lambda self, x: x.shape[1] * x.sum(1, keepdim=True),
    "entries": lambda self, x: x.sum(1, keepdim=True) / x[0].numel(),
    "all entries": lambda self, x: x.sum(1, keepdim=True) / x.nelement() * x.shape[0],
    "tensor": lambda self, x: x.sum(1, keepdim=True) / torch.tensor(x.shape[1]),
    "tensor of several": lambda self, x: x.sum(1, keepdim=True) / torch.tensor([x.shape[1]]),
    "full": lambda self, x: x.sum(1, keepdim=True) / torch.full((1,), x.shape[1]),
    "full like another": lambda self, x: x.sum(1, keepdim=True) / torch.full_like(x.sum(1, keepdim=True), x.shape[1]),
    "layer": lambda self, x: x.sum(1, keepdim=True) / self.one.out_features,
    "root of a layer": lambda self, x: x.sum(1, keepdim=True) * self.one.out_features**-0.5,
    "attribute": lambda self, x: x.view(-1, self.width).sum(1, keepdim=True) / self.width,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_length_in_arithmetic_is_seen(kind: str):
    """Zeroing channels leaves the divisor, removing them does not."""
    net = Calls(lambda self, x: self.two(BY_HAND[kind](self, self.one(x))), one=nn.Linear(4, 8), two=nn.Linear(1, 3))
    net.width = 8
    (group,) = es.trace(net, torch.zeros(2, 4)).groups
    assert not group.exact


LAYERS = {
    "convolution": (nn.Conv2d(3, 8, 1), "out_channels", True),
    "its inputs": (nn.Conv2d(8, 4, 1), "in_channels", True),
    "depthwise": (nn.Conv2d(8, 8, 1, groups=8), "in_channels", True),
    "transposed": (nn.ConvTranspose2d(8, 4, 1), "in_channels", True),
    "outputs of a transposed one": (nn.ConvTranspose2d(3, 8, 1), "out_channels", True),
    "norm": (nn.BatchNorm2d(8), "num_features", True),
    "group norm": (nn.GroupNorm(2, 8), "num_channels", True),
    "kernel": (nn.Conv2d(3, 8, 1), "groups", False),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_layer_counts_is_known(kind: str):
    layer, name, counts = LAYERS[kind]
    channels = 3 if kind in ("convolution", "outputs of a transposed one", "kernel") else 8
    net = nn.Sequential(nn.Conv2d(2, channels, 1), layer)
    dims = {f"1.{key}": [np.arange(size)[:, None] if size > 1 else None for size in tensor.shape]
            for key, tensor in layer.named_parameters()}  # fmt: skip
    origin = Expression("*", Attribute(f"1.{name}", getattr(layer, name)), Attribute("2.other", 2))
    found = counted([origin], dict(net.named_modules()), dims)
    assert [(path, len(rows)) for path, rows in found.items()] == ([(f"1.{name}", 8)] if counts else [])


def test_a_length_in_arithmetic_of_indices_changes_no_number():
    def forward(self: Calls, x: Tensor) -> Tensor:
        x = self.one(x)
        first = torch.arange(1, device=x.device) * x.shape[1]
        return self.two(x) + first.to(x.dtype) * 0

    (group,) = es.trace(Calls(forward, one=nn.Linear(4, 8), two=nn.Linear(8, 3)), torch.zeros(2, 4)).groups
    assert group.exact
