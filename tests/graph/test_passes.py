"""What is run in training mode: only what can differ there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espalier as es
from tests.graph.oracles import sizes

ran: list[tuple[str, bool]] = []  # module and mode, of every forward below


class Noted(nn.Module):
    """A linear layer whose code is not torch's, and that takes note of its runs."""

    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.name, self.layer = name, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        ran.append((self.name, self.__dict__["training"]))  # not a read that the trace could see
        return self.layer(x)


class Scaled(Noted):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * torch.rand(x.shape[0], 1, device=x.device) if self.training else x


class Widening(Noted):
    """Twice as many results in training."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return torch.cat([x, x], 0) if self.training else x


class Remembering(Noted):
    """Uses what an earlier run has left."""

    def forward(self, x: Tensor) -> Tensor:
        x, self.last = super().forward(x), getattr(self, "last", None)
        return x if self.last is None else x + self.last


class Asking(Noted):
    """Looks whether its layer trains."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * 2 if self.layer.training else x


class Freezing(Noted):
    """Does more than to set a flag when it is told to train."""

    def train(self, mode: bool = True) -> Freezing:
        super().train(False)
        return self


def runs(middle: nn.Module) -> tuple[list[tuple[str, bool]], es.ChannelGraph]:
    ran.clear()
    graph = es.trace(nn.Sequential(Noted("first", 4, 8), middle, Noted("last", 6, 3)), torch.zeros(2, 4), check=False)
    assert sizes(graph) == [6, 8]
    assert graph.notes == []
    return ran, graph


ONCE = [("first", False), ("middle", False), ("last", False)]
TWICE = [*ONCE, ("first", True), ("middle", True), ("last", True)]


def test_a_model_that_never_asks_is_run_once():
    assert runs(Noted("middle", 8, 6))[0] == ONCE


def test_the_layers_of_torch_ask_for_themselves_only():
    middle = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), Noted("middle", 8, 6))
    assert runs(middle)[0] == ONCE


def test_what_asks_is_run_again_alone():
    assert runs(Scaled("middle", 8, 6))[0] == [*ONCE, ("middle", True)]
    assert runs(Asking("middle", 8, 6))[0] == [*ONCE, ("middle", True)]


def test_the_outermost_of_nested_ones_is_run_again():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rate = Scaled("middle", 8, 6), 0.1

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.inner(x), self.rate, self.training)

    assert runs(Outer())[0] == [*ONCE, ("middle", True)]


def test_other_results_in_training_run_the_whole_model_again():
    assert runs(Widening("middle", 8, 6))[0] == [*ONCE, ("middle", True), *TWICE[3:]]


def test_a_model_that_remembers_is_run_again():
    assert runs(Remembering("middle", 8, 6))[0] == TWICE


def test_a_model_that_does_more_when_it_trains_is_run_again():
    assert runs(Freezing("middle", 8, 6))[0] == [*ONCE, ("first", True), ("middle", False), ("last", True)]


def test_hooks_of_the_user_may_ask():
    def double(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * 2 if module.training else out

    layer = nn.Linear(8, 6)
    layer.register_forward_hook(double)
    assert runs(nn.Sequential(nn.Identity(), layer))[0] == [ONCE[0], ONCE[2]]
    middle = Noted("middle", 8, 6)
    middle.layer.register_forward_hook(double)
    assert runs(middle)[0] == ONCE  # the layer inside is run again, by itself


def test_classes_are_as_before():
    kinds: list[type] = []

    class Kind(Noted):
        def forward(self, x: Tensor) -> Tensor:
            kinds.append(type(self))
            return super().forward(x) if self.training else self.layer(x)

    es.trace(nn.Sequential(Kind("middle", 4, 8), nn.Linear(8, 3)), torch.zeros(2, 4))
    seen, again, trial = kinds
    assert seen is not Kind  # while reads were watched
    assert (seen.__name__, seen.__bases__) == ("Kind", (Kind,))
    assert again is trial is Kind


def test_axes_of_training_are_found_by_the_call_that_asks():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate if self.training else x

    model = nn.Sequential(nn.Linear(4, 8), Gate(), nn.Linear(8, 3))
    graph = es.trace(model, torch.zeros(2, 4))
    assert ("1.gate", 0) in {(member.name, member.dim) for member in graph.groups[0].members}
    es.cut(model, {graph.groups[0]: [0, 3, 4]})
    assert model.train()(torch.zeros(2, 4)).shape == (2, 3)


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
