"""Code that asks for the exact class of an object is not run with modules of other classes."""

from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph.classes import asks_for_classes


def is_identity(layer: nn.Module) -> bool:
    return type(layer) is nn.Identity


class Turner:
    def turned(self, layer: nn.Module, x: Tensor) -> Tensor:
        return x.flip(1) if type(layer) is nn.Identity else x


class Turning(nn.Module):
    """Reverses its channels, if its layer has exactly one class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table, self.turner = nn.Identity(), {nn.Identity: True}, Turner()

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.turns() else x

    def turns(self) -> bool:
        return type(self.layer) is nn.Identity


class ByAttribute(Turning):
    def turns(self) -> bool:
        return self.layer.__class__ is nn.Identity


class ByTable(Turning):
    def turns(self) -> bool:
        return self.table.get(type(self.layer), False)


class ByHelper(Turning):
    def turns(self) -> bool:
        return is_identity(self.layer)


class ByObject(Turning):
    def forward(self, x: Tensor) -> Tensor:
        return self.turner.turned(self.layer, x)


class ByProperty(Turning):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.turned else x

    @property
    def turned(self) -> bool:
        return any(kind is nn.Identity for kind in map(type, self.children()))


@pytest.mark.parametrize("kind", [Turning, ByAttribute, ByTable, ByHelper, ByObject, ByProperty])
def test_code_that_asks_for_exact_classes_goes_the_way_it_always_goes(kind: type[nn.Module]):
    model = nn.Sequential(nn.Linear(4, 8), kind(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 4)
    graph = es.trace(model, x)
    with torch.no_grad():
        model[0].weight[[0, 3]], model[0].bias[[0, 3]] = 0, 0
        expected = model(x)
    es.cut(model, {graph.groups[0]: [channel for channel in range(8) if channel not in (0, 3)]})
    torch.testing.assert_close(model(x), expected)


def test_code_of_one_module_only_may_ask_for_classes():
    def turned(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.flip(1) if type(module) is nn.Identity else out

    layer = nn.Identity()
    assert not asks_for_classes([("", layer)])
    layer.register_forward_hook(turned)
    assert asks_for_classes([("", layer)])
    own = nn.Identity()
    own.forward = types.MethodType(turned, own)
    assert asks_for_classes([("", own)])


def test_code_that_asks_for_names_or_is_not_run_may_be_watched():
    class Naming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            assert type(self) is Naming

        def forward(self, x: Tensor) -> Tensor:
            return x.flip(1) if type(self).__name__ == "Naming" and self.__class__.__module__ else x

    assert not asks_for_classes([("", Naming())])
    Naming.forward = Turning.forward
    Naming.turns = Turning.turns
    assert asks_for_classes([("", Naming())])  # methods may be replaced at any time


def test_a_class_named_in_a_message_may_be_watched():
    class Checking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 2:
                raise ValueError(f"takes vectors, not {type(x)}")
            return x

    assert not asks_for_classes([("", Checking())])
