"""What like blocks tell of one another in training mode, and what they do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espalier as es
from tests.graph.noted import Noted, groups_of, ran


class Mixing(Noted):
    """Asks, and does the same in both modes but for dropout."""

    def __init__(self, name: str, width: int, rate: float = 0.0) -> None:
        super().__init__(name, width, width)
        self.rate, self.fused = rate, True

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(super().forward(x), self.rate, self.training)
        return x.view(x.shape[0], -1)


def again(*blocks: nn.Module) -> list[bool]:
    """Which blocks were run in training mode."""
    ran.clear()
    es.trace(nn.Sequential(nn.Linear(4, 8), *blocks, nn.Linear(8, 3)), torch.zeros(2, 4), check=False)
    assert [training for _, training in ran[: len(blocks)]] == [False] * len(blocks)
    return [training for _, training in ran[len(blocks) :]]


def test_one_of_several_like_blocks_is_run_again():
    assert again(Mixing("a", 8), Mixing("a", 8), Mixing("a", 8)) == [True]


def test_blocks_of_other_description_are_run_again_too():
    other = Mixing("a", 8)
    other.fused = False
    assert again(Mixing("a", 8), other, Mixing("a", 8)) == [True, True]
    odd = Mixing("a", 8)
    odd.odd = object()  # could be anything
    assert again(odd, odd) == [True, True]


def test_blocks_that_do_something_else_in_training_are_all_run_again():
    class Gated(Mixing):
        def __init__(self) -> None:
            super().__init__("a", 8)
            self.gate = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x * self.gate if self.training else x

    assert again(Gated(), Gated()) == [True, True]


class Adding(nn.Module):
    """What it adds in evaluation mode depends on what it is given, and on which of its layers are one."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        last = self.layers[0] if self.training else self.layers[-1]
        return last(x) + (other if self.training else x)


class Two(nn.Module):
    """Two blocks and a layer beside them; the second block is given what the first is, or what the layer makes."""

    def __init__(self, first: nn.Module, second: nn.Module, *, beside: bool) -> None:
        super().__init__()
        self.stem, self.side, self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8), first, second
        self.beside, self.head = beside, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.first(h, h)
        return self.head(self.second(h, self.side(x) if self.beside else h))


def test_a_block_given_one_tensor_twice_tells_nothing_of_one_given_two():
    groups = groups_of(Two(Adding(nn.Linear(8, 8)), Adding(nn.Linear(8, 8)), beside=True))
    assert any({("stem.weight", 0), ("side.weight", 0)} <= group for group in groups)


def test_a_block_with_one_layer_twice_tells_nothing_of_one_with_two():
    layer = nn.Linear(8, 8)
    groups = groups_of(Two(Adding(layer, layer), Adding(nn.Linear(8, 8), nn.Linear(8, 8)), beside=False))
    assert any({("second.layers.0.weight", 0), ("second.layers.1.weight", 0)} <= group for group in groups)
