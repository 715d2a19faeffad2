"""Models of which training mode is more than a flag that their modules read."""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph import twins
from tests.graph.noted import groups_of
from tests.graph.oracles import sizes

X = torch.zeros(2, 4)


def cut_and_train(model: nn.Module, x: Tensor = X) -> es.ChannelGraph:
    """Half of all groups are cut; the model runs in both modes then."""
    graph = es.trace(model, x)
    es.cut(model, {group: range(1, group.size, 2) for group in graph.groups})
    model.eval()(x)
    model.train()(x)
    return graph


class Between(nn.Module):
    """Something between two layers, with another one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.side, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x), x))

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


def is_tied(model: nn.Module) -> bool:
    """Whether the layer beside is known to make the same channels."""
    return any({("first.weight", 0), ("side.weight", 0)} <= group for group in groups_of(model))


# -- values that only training reads -------------------------------------------------------------------------------


class Dropping(Between):
    """A layer is dropped now and then, and training returns what evaluation keeps to itself."""

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        if not (self.training and torch.rand(1).item() < 0.5):
            h = h + self.side(x)
        return h

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return (out, self.side(x)) if self.training else out


class Queue(Between):
    """A queue of keys with a pointer, filled in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(8, 16))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        if self.training:
            place = int(self.place)
            self.queue[:, place : place + len(h)] = h.t().detach()
            return h + (h @ self.queue).mean()
        return h


class Masking(Between):
    def between(self, h: Tensor, x: Tensor) -> Tensor:
        return h[x.sum(1) > -1] + self.side(x) if self.training else h


class Listing(Between):
    def between(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.side(x) if self.training and x.sum(1).tolist()[0] < 1 else h


class Printing(Between):
    def between(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.side(x) if self.training and f"{x.sum():.3f}" else h


@pytest.mark.parametrize("kind", [Dropping, Queue, Masking, Listing, Printing])
def test_values_that_only_training_reads_are_there(kind: type[nn.Module]):
    graph = cut_and_train(kind())
    assert "Run with values" in graph.notes[0]
    assert len(graph.notes) == 1


def test_what_only_training_returns_keeps_its_channels():
    assert sizes(es.trace(Dropping(), X)) == []


class Momentum(Between):
    """Training moves a layer after another, and reads a pointer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        if self.training and int(self.place) == 0:
            with torch.no_grad():
                if self.how == "in place":
                    self.side.weight.mul_(0.9).add_(self.first.weight, alpha=0.1)
                else:
                    self.side.weight.data = self.side.weight.data * 0.9 + self.first.weight.data * 0.1
        return h + self.side(x)


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_parameters_that_a_model_changes_are_those_of_its_copy(how: str):
    model = Momentum(how)
    before, place = model.side.weight.detach().clone(), model.side.weight.data_ptr()
    assert sizes(es.trace(model, torch.randn(2, 4))) == [8]
    assert torch.equal(model.side.weight, before)
    assert model.side.weight.data_ptr() == place


def test_inputs_that_training_refuses_are_traced_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("one item is not enough")
            return self.model(x)

    graph = es.trace(Refusing(), X)
    assert graph.notes == [
        "In training mode the model does not run on these inputs (one item is not enough): traced in evaluation mode."
    ]
    assert sizes(graph) == [8]


# -- who is told of the mode ---------------------------------------------------------------------------------------


class Told(Between):
    """An object that is no module is told the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.helper, self.settings = types.SimpleNamespace(training=False), {"head": {"aux": False}}

    def train(self, mode: bool = True) -> Told:
        super().train(mode)
        self.helper.training = mode
        self.settings["head"]["aux"] = mode
        return self


class ToldHelper(Told):
    def between(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.side(x) if self.helper.training else h


class ToldSettings(Told):
    def between(self, h: Tensor, x: Tensor) -> Tensor:
        return h + self.side(x) if self.settings["head"]["aux"] else h


@pytest.mark.parametrize("kind", [ToldHelper, ToldSettings])
def test_who_is_told_of_the_mode_need_not_be_a_module(kind: type[nn.Module]):
    assert is_tied(kind())
    cut_and_train(kind())


class Block(nn.Module):
    """Its inputs are added in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Identity()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[0](x)
        return x + self.layers[2](self.layers[1](h + x if self.training else h))


class Stages(nn.Module):
    """The first of its blocks never train."""

    def __init__(self, frozen: int) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(4, 8), nn.Sequential(*[Block() for _ in range(6)]), nn.Linear(8, 3)
        self.frozen = frozen

    def train(self, mode: bool = True) -> Stages:
        super().train(mode)
        for block in self.blocks[: self.frozen]:
            block.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(torch.relu(self.first(x))))


@pytest.mark.parametrize("frozen", [0, 1, 2, 6])
def test_like_blocks_of_which_some_never_train(frozen: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(twins, "WORTH", 30)  # the model is small
    tied = [
        any({("first.weight", 0), (f"blocks.{number}.layers.0.0.weight", 0)} <= group for group in groups_of(Stages(frozen)))
        for number in range(6)
    ]
    assert tied == [number >= frozen for number in range(6)]
    cut_and_train(Stages(frozen))


# -- flags for the time of a call ----------------------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.adds = nn.Linear(8, 8), False

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x if self.adds else self.layer(x)


class Toggling(Between):
    """Tells a module what to do for the time of a call."""

    def __init__(self, when: bool) -> None:
        super().__init__()
        self.branch, self.when = Branch(), when

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        self.branch.adds = self.training == self.when
        try:
            return self.branch(h)
        finally:
            self.branch.adds = False


class Configured(Between):
    """The flag is in an object that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()
        self.branch.config = types.SimpleNamespace(adds=False)
        self.branch.forward = types.MethodType(Configured.branched, self.branch)  # type: ignore[method-assign]

    @staticmethod
    def branched(branch: Any, x: Tensor) -> Tensor:
        return branch.layer(x) + x if branch.config.adds else branch.layer(x)

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        self.branch.config.adds = self.training
        try:
            return self.branch(h)
        finally:
            self.branch.config.adds = False


def test_a_flag_of_an_object_may_be_set_for_the_time_of_a_call():
    groups = groups_of(Configured())
    assert any({("first.weight", 0), ("branch.layer.weight", 0)} <= group for group in groups)
    cut_and_train(Configured())


class Recalling(Between):
    """Uses what an earlier run has left in an object."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def between(self, h: Tensor, x: Tensor) -> Tensor:
        last = self.kept.pop() if isinstance(self.kept, deque) and self.kept else getattr(self.kept, "x", None)
        if isinstance(self.kept, deque):
            self.kept.append(self.side(x))
        else:
            self.kept.x = self.side(x)
        return h if last is None else h + last


@pytest.mark.parametrize("make", [deque, types.SimpleNamespace])
def test_what_a_run_leaves_for_the_next_is_seen(make: type):
    assert not any(("first.weight", 0) in group for group in groups_of(Recalling(make())))  # the sum is frozen


@pytest.mark.parametrize("when", [True, False])
def test_a_flag_may_be_set_for_the_time_of_a_call(when: bool):
    groups = groups_of(Toggling(when))
    assert any({("first.weight", 0), ("branch.layer.weight", 0)} <= group for group in groups)
    cut_and_train(Toggling(when))
