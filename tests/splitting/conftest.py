"""A problem whose answers are known: a strongly convex f of one weight matrix, minimised under zeros in fixed places."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from tests.pruner.conftest import SmallNet


@dataclass
class Quadratic:
    """f(w) = 1/2 (w - best)' H (w - best) for w of 3 x 4, whose six largest entries are far above the others."""

    hessian: Tensor
    best: Tensor

    @classmethod
    def make(cls, seed: int = 0) -> "Quadratic":
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(12, 12, generator=generator) / 12**0.5
        size = torch.tensor([4.0, 0.5] * 6)
        signs = torch.randint(0, 2, (12,), generator=generator) * 2 - 1
        best = size * signs * (1 + 0.2 * torch.rand(12, generator=generator))
        return cls(root @ root.T + torch.eye(12), best)

    @property
    def support(self) -> Tensor:
        return self.best.abs() > 1

    def loss(self, weight: Tensor) -> Tensor:
        off = weight.flatten() - self.best
        return off @ self.hessian @ off / 2

    def gradient(self, weight: Tensor) -> Tensor:
        return self.hessian @ (weight.flatten() - self.best)

    def constrained(self) -> Tensor:
        """The best w with zeros outside of the support."""
        inside, outside = self.support, ~self.support
        shift = torch.linalg.solve(self.hessian[inside][:, inside], self.hessian[inside][:, outside] @ self.best[outside])
        found = torch.zeros(12)
        found[inside] = self.best[inside] + shift
        return found


class Trained:
    """A Pruner on the quadratic, from its unconstrained optimum, with plain gradient descent."""

    def __init__(self, method: es.Method, steps: int, problem: Quadratic | None = None, lr: float = 0.2, **kwargs) -> None:
        self.problem = problem or Quadratic.make()
        self.net = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.net.weight.copy_(self.problem.best.view(3, 4))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=lr)
        data = {"batches": [torch.zeros(1)], "loss_fn": lambda net, _: self.problem.loss(net.weight)}
        self.pruner = es.Pruner(self.net, self.optimizer, method, total_steps=steps, **(data | kwargs))

    @property
    def run(self):
        return self.pruner.run

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.problem.loss(self.net.weight).backward()
        self.optimizer.step()

    def train(self, steps: int) -> "Trained":
        for _ in range(steps):
            self.step()
        return self


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def make_net():
    def make(seed: int = 0, *, channels_last: bool = False, width: int = 8) -> SmallNet:
        torch.manual_seed(seed)
        net = SmallNet(width)
        return net.to(memory_format=torch.channels_last) if channels_last else net

    return make
