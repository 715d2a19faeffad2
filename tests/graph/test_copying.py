"""Copies of modules are those of ``copy.deepcopy``."""

from __future__ import annotations

import copy
import functools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier import EspalierError
from espalier.graph.copying import Copier


class Loose(nn.Module):
    """Holds what modules hold beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.again = self.layer
        self.layers, self.names = [self.layer, nn.ReLU()], {"a": [1, (2, 3)], "b": {4, 5}}
        self.shared = self.names["a"]
        self.make = functools.partial(nn.Linear, 3)
        self.method = self.layer.forward
        self.register_buffer("count", torch.arange(3))
        self.plain = torch.ones(2)
        self.me = [self]


class Own(nn.Module):
    """Has a say in how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        made = memo[id(self)] = Own()
        made.copied = True
        return made


class Stateful(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "noted": 1}


def test_what_is_one_object_stays_one_object():
    model = Loose()
    copied = Copier(model, {}).copied(model)
    assert type(copied) is Loose
    assert copied is not model
    assert copied.me[0] is copied
    assert copied.layer is copied.again is copied.layers[0] is copied.method.__self__ is not model.layer
    assert copied.shared is copied.names["a"] is not model.shared
    assert copied.names == model.names
    assert copied.names["b"] is not model.names["b"]
    assert copied.plain is not model.plain
    assert torch.equal(copied.count, model.count)
    assert list(copied.__dict__) == list(copy.deepcopy(model).__dict__)
    assert list(copied.state_dict()) == list(model.state_dict())


def test_what_is_in_the_memo_is_not_copied():
    layer = nn.Linear(2, 2)
    stands = nn.Parameter(torch.empty(2, 2, device="meta"))
    copied = Copier(layer, {id(layer.weight): stands}).copied(layer)
    assert copied.weight is stands
    assert copied.bias is not layer.bias


def test_hooks_stay_the_same_but_not_their_dictionaries():
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None: ...

    model = Loose()
    model.layer.register_forward_pre_hook(hook)
    copied = Copier(model, {}).copied(model)
    assert list(copied.layer._forward_pre_hooks.values()) == [hook]
    assert copied.layer._forward_pre_hooks is not model.layer._forward_pre_hooks


class Keeping(nn.Module):
    """Hooks of all kinds keep what a layer returns: in the module, and in a list that is not its own."""

    def __init__(self, kind: str, seen: list[Any]) -> None:
        super().__init__()
        self.first, self.last, self.side, self.kept = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3), {}
        keep, kept = self.keep, self.kept

        def closed(module: nn.Module, args: Any, out: Tensor) -> None:
            keep("x", module, args, out)

        def known(module: nn.Module, args: Any, out: Tensor, into: dict[str, Tensor] = kept) -> None:
            into["x"] = out

        def named(module: nn.Module, args: Any, out: Tensor, *, into: dict[str, Tensor] = kept) -> None:
            into["x"] = out

        hooks = {
            "method": self.keep_it, "partial": functools.partial(self.keep, "x"), "closure": closed, "default": known,
            "keyword": named,
        }  # fmt: skip
        self.first.register_forward_hook(hooks[kind])
        self.first.register_forward_hook(lambda module, args, out: seen.append(out))

    def keep(self, name: str, module: nn.Module, args: Any, out: Tensor) -> None:
        self.kept[name] = out

    def keep_it(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.keep("x", module, args, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) + self.side(self.kept["x"])


@pytest.mark.parametrize("kind", ["method", "partial", "closure", "default", "keyword"])
def test_hooks_of_the_model_are_hooks_of_its_copy(kind: str):
    seen: list[Any] = []
    model = Keeping(kind, seen)
    hooks = list(model.first._forward_hooks.values())
    graph = es.trace(model, torch.zeros(2, 4))
    assert [(member.name, member.dim) for member in graph.groups[0].members if member.name.endswith("weight")] == [
        ("first.weight", 0), ("last.weight", 1), ("side.weight", 1),
    ]  # fmt: skip
    assert not model.kept
    assert seen  # a list of somebody else's
    assert list(model.first._forward_hooks.values()) == hooks
    es.cut(model, {graph.groups[0]: [0, 5]})
    assert model(torch.zeros(2, 4)).shape == (2, 3)


class Sharing(nn.Module):
    """One hook keeps in a variable what another adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.side = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        kept: Tensor | None = None

        def save(module: nn.Module, args: Any, out: Tensor) -> None:
            nonlocal kept
            kept = out

        def use(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out + self.side(kept)

        self.first.register_forward_hook(save)
        self.last.register_forward_hook(use)
        self.read = lambda: kept

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("ran", [False, True])
def test_functions_that_share_a_variable_share_one_in_the_copy(ran: bool):
    model = Sharing()
    if ran:
        model(torch.zeros(2, 4))
    kept = model.read()
    graph = es.trace(model, torch.zeros(2, 4))
    assert ("side.weight", 1) in [(member.name, member.dim) for member in graph.groups[0].members]
    assert model.read() is kept
    es.cut(model, {graph.groups[0]: [0, 5]})
    assert model(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize("kind", [list, dict])
def test_functions_in_a_list_or_dictionary_know_the_copy(kind: type):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    norm = model[1]
    model.steps = [lambda x: norm(x)] if kind is list else {0: lambda x: norm(x)}
    model.forward = lambda x: model[2](model.steps[0](model[0](x)))  # type: ignore[method-assign]
    assert [group.size for group in es.trace(model, torch.randn(2, 4)).groups] == [8]
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_is_to_be_compiled_is_traced(whole: bool):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    (model if whole else model[0]).compile()
    assert [group.size for group in es.trace(model, torch.zeros(2, 4)).groups] == [8]


def test_a_function_that_knows_itself_and_the_model_is_that_of_the_copy():
    model = Loose()

    def down(count: int) -> nn.Module:
        return model if count == 0 else down(count - 1)

    model.down = down
    copied = Copier(model, {}).copy()
    assert copied.down(3) is copied
    assert model.down is down
    assert down(3) is model


def test_a_forward_that_wraps_another_runs_the_layer_of_the_copy():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    wrapped = model[1].forward
    model[1].forward = lambda x: wrapped(x) * (1 if x.sum().item() > 1e9 else 2)  # type: ignore[method-assign]
    assert [group.size for group in es.trace(model, torch.randn(2, 4)).groups] == [8]
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize(("made", "name"), [(Own(), "copied"), (Stateful(2, 2), "noted")])
def test_classes_that_have_a_say_have_it(made: nn.Module, name: str):
    model = nn.Sequential(nn.ReLU(), made)
    assert getattr(Copier(model, {}).copied(model)[1], name)


def test_what_was_computed_with_gradients_is_copied_without():
    model = Loose()
    model.kept = model.layer(torch.ones(1, 2))
    model.cache = {"a": (model.kept, [model.kept])}
    copied = Copier(model, {}).copied(model)
    assert copied.cache["a"][0] is copied.cache["a"][1][0] is copied.kept is not model.kept
    assert torch.equal(copied.kept, model.kept)
    assert copied.kept.grad_fn is None


def test_what_cannot_be_copied_is_named():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(EspalierError, match="cannot be copied for tracing"):
        es.trace(model, torch.zeros(1, 2))
