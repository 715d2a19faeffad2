"""Inputs and random generators are left as they were, whatever a model does with them."""

from __future__ import annotations

import random
import threading
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier as es
from tests.graph.oracles import sizes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)


class Batch(Net):
    """Its input is an object, which it fills."""

    def forward(self, batch: Any, extra: Tensor) -> Tensor:
        batch.x = self.first(batch.x)
        return self.last(batch.x) + extra.sum()


def test_an_object_given_to_a_model_keeps_its_tensors():
    x = torch.randn(2, 4)
    batch = types.SimpleNamespace(x=x)
    assert sizes(es.trace(Batch(), (batch, torch.zeros(1)))) == [8]
    assert batch.x is x


class Emptying(Net):
    """Takes its input out of a dictionary, puts a result into it, and changes tensors in place."""

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        x = given.pop("x")
        x.mul_(2)
        if x.shape[0] > 100 and x.sum().item() > 1e9:
            return x
        given["hidden"] = self.first(x)
        return self.last(given["hidden"]) * (2 if self.training else 1)


class Reading(Emptying):
    def forward(self, given: dict[str, Tensor]) -> Tensor:
        assert given["x"].sum().item() < 1e9
        return super().forward(given)


@pytest.mark.parametrize("kind", [Emptying, Reading])
def test_a_dictionary_given_to_a_model_keeps_what_is_in_it(kind: type[nn.Module]):
    x = torch.ones(2, 4)
    given = {"x": x}
    graph = es.trace(kind(), (given,))
    assert sizes(graph) == [8]
    assert not any("does not run" in note for note in graph.notes)
    assert list(given) == ["x"]
    assert given["x"] is x
    assert torch.equal(x, torch.ones(2, 4))


class Named(dict[str, Any]):
    """A dictionary that is not made of pairs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@pytest.mark.parametrize("make", [dict, lambda: defaultdict(list), lambda: Named("batch")])
def test_what_cannot_be_copied_is_given_as_it_is(make: Callable[[], dict[str, Any]]):
    lock = threading.Lock()
    given = make()
    given.update(x=torch.zeros(2, 4), lock=lock)

    class Locking(Net):
        def forward(self, given: dict[str, Any]) -> Tensor:
            with given["lock"]:
                return self.last(self.first(given["x"]))

    assert sizes(es.trace(Locking(), (given,))) == [8]
    assert not lock.locked()


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[], float]]] = {
    "random": (random.getstate, random.random),
    "numpy": (lambda: str(np.random.get_state(legacy=False)), np.random.rand),
    "torch": (lambda: torch.get_rng_state().tolist(), lambda: float(torch.rand(()))),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_random_generators_are_where_they_were(kind: str):
    state, draw = GENERATORS[kind]

    class Drawing(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x * 2 if self.training and draw() < 0.5 else x)

    model = Drawing()
    before = state()
    es.trace(model, torch.zeros(2, 4))
    assert state() == before
    draw()
    assert state() != before


class Adding(nn.Module):
    """Adds all of a list, in training with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, every: list[Tensor]) -> Tensor:
        return nn.functional.dropout(self.layer(torch.stack(every).sum(0)), 0.1, self.training)


class Growing(Net):
    """A list of all results so far is given to each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Adding() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        every = [self.first(x)]
        for layer in self.layers:
            every.append(layer(every))
        return self.last(every[-1])


def test_a_list_that_grows_after_a_call_was_short_in_it():
    graph = es.trace(Growing(), torch.zeros(2, 4))
    assert [(group.name, len(group.members)) for group in graph.groups] == [("first", 9), ("layers.2.layer", 3)]
