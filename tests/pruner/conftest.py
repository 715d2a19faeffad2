"""A small conv net, data, and the user's loop, as every test of the Pruner needs them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


class SmallNet(nn.Module):
    """conv-bn-relu-conv-bn-relu-pool-linear on 8 x 8 images."""

    def __init__(self, width: int = 8, act: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        self.act = act
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def make_net() -> Callable[..., SmallNet]:
    def make(seed: int = 0, *, channels_last: bool = False, width: int = 8) -> SmallNet:
        torch.manual_seed(seed)
        net = SmallNet(width)
        return net.to(memory_format=torch.channels_last) if channels_last else net

    return make


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step: a function of its number, so that a resumed loop sees the same."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 4, (size,), generator=generator)


def train_step(model, optimizer, step: int, *, accumulate: int = 1) -> None:
    for part in range(accumulate):
        x, y = batch(step * accumulate + part)
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(net, **kwargs):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, **kwargs)


def batch_loss(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


# What a Pruner may be given besides: methods at initialisation look at it, the others don't.
DATA = {"example_inputs": batch(0)[0], "batches": [batch(900), batch(901)], "loss_fn": batch_loss}


class Around(torch.optim.Optimizer):
    """An optimizer that leaves the step to the one it was given, as Lookahead and the like do."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        return self.inner.step(closure)


def masked_weights_are_zero(pruner):
    return all(not pruner.run.weights[n][mask == 0].any() for n, mask in pruner.run.masks.tensors.items())
