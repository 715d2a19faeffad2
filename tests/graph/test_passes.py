"""What is run in training mode: only what can differ there."""

from __future__ import annotations

import operator
import types

import pytest
import torch
from torch import Tensor, nn

import espalier as es
from espalier.graph.classes import asks_for_classes
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
    """Never trains."""

    def train(self, mode: bool = True) -> Freezing:
        super().train(False)
        return self


class Merging(Noted):
    """Does more than to set a flag when it is told to train."""

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        self.merged = not mode
        return self


class Caching(Noted):
    """Keeps in evaluation mode what it has computed, and forgets it when it trains."""

    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        super().__init__(name, inputs, outputs)
        self.scale, self.kept = nn.Parameter(torch.ones(outputs)), dict[str, Tensor]()

    def train(self, mode: bool = True) -> Caching:
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x) * (self.scale + 1)
        if "scale" not in self.kept:
            self.kept["scale"] = self.scale + 1
        return super().forward(x) * self.kept["scale"]


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


def test_of_nested_ones_each_is_run_again_once():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rate = Scaled("middle", 8, 6), 0.1

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.inner(x), self.rate, self.training)

    assert runs(Outer())[0] == [*ONCE, ("middle", True)]


def test_other_results_in_training_run_again_what_is_given_them():
    assert runs(Widening("middle", 8, 6))[0] == [*ONCE, ("middle", True), ("last", True)]


def test_a_model_that_remembers_is_run_again():
    assert runs(Remembering("middle", 8, 6))[0] == TWICE


def test_a_model_that_does_more_when_it_trains_is_run_again():
    assert runs(Merging("middle", 8, 6))[0] == TWICE
    assert runs(Freezing("middle", 8, 6))[0] == ONCE


def test_a_cache_is_not_more_if_the_one_who_keeps_it_asks():
    assert runs(Caching("middle", 8, 6))[0] == [*ONCE, ("middle", True)]
    assert runs(nn.Sequential(Caching("middle", 8, 6), nn.Identity()))[0] == [*ONCE, ("middle", True)]


def test_a_cache_filled_with_gradients_is_no_hindrance():
    model = nn.Sequential(nn.Linear(4, 8), Caching("middle", 8, 6), nn.Linear(6, 3)).eval()
    model(torch.zeros(2, 4))
    graph = es.trace(model, torch.zeros(2, 4))
    assert sizes(graph) == [6, 8]
    es.cut(model, {group: [0, 2] for group in graph.groups})
    assert model(torch.zeros(2, 4)).shape == (2, 3)  # the cache is not that of the old width
    assert not any(module.training for module in model.modules())


def test_a_cache_that_nobody_asks_about_runs_the_model_again():
    class Blind(Caching):
        def forward(self, x: Tensor) -> Tensor:
            self.kept.setdefault("scale", self.scale + 1)
            return Noted.forward(self, x) * self.kept["scale"]

    assert runs(Blind("middle", 8, 6))[0] == TWICE


def test_hooks_of_the_user_may_ask():
    def double(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * 2 if module.training else out

    layer = nn.Linear(8, 6)
    layer.register_forward_hook(double)
    assert runs(nn.Sequential(nn.Identity(), layer))[0] == [ONCE[0], ONCE[2]]
    middle = Noted("middle", 8, 6)
    middle.layer.register_forward_hook(double)
    assert runs(middle)[0] == ONCE  # the layer inside is run again, by itself


KIND = operator.attrgetter("__class__")  # not a way to ask that reading the code shows


def test_classes_are_as_before():
    kinds: list[type] = []

    class Kind(Noted):
        def forward(self, x: Tensor) -> Tensor:
            kinds.append(KIND(self))
            return super().forward(x) if self.training else self.layer(x)

    es.trace(nn.Sequential(Kind("middle", 4, 8), nn.Linear(8, 3)), torch.zeros(2, 4))
    seen, again, trial = kinds
    assert seen is again is not Kind  # while reads were watched
    assert (seen.__name__, seen.__bases__) == ("Kind", (Kind,))
    assert trial is Kind


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


def groups_of(model: nn.Module) -> list[set[tuple[str, int]]]:
    return [{(member.name, member.dim) for member in group.members} for group in es.trace(model, torch.zeros(2, 4)).groups]


def test_a_block_given_one_tensor_twice_tells_nothing_of_one_given_two():
    groups = groups_of(Two(Adding(nn.Linear(8, 8)), Adding(nn.Linear(8, 8)), beside=True))
    assert any({("stem.weight", 0), ("side.weight", 0)} <= group for group in groups)


def test_a_block_with_one_layer_twice_tells_nothing_of_one_with_two():
    layer = nn.Linear(8, 8)
    groups = groups_of(Two(Adding(layer, layer), Adding(nn.Linear(8, 8), nn.Linear(8, 8)), beside=False))
    assert any({("second.layers.0.weight", 0), ("second.layers.1.weight", 0)} <= group for group in groups)


class Gate(nn.Module):
    """A vector to multiply with, in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate if self.training else x


def gated(model: nn.Module, name: str) -> bool:
    return any((name, 0) in group for group in groups_of(model))


def test_a_forward_of_one_module_only_may_ask():
    def forward(self: nn.Sequential, x: Tensor) -> Tensor:
        return Gate.forward(self, self[0](x))

    middle = nn.Sequential(nn.Linear(8, 8))
    middle.gate = nn.Parameter(torch.ones(8))
    middle.forward = types.MethodType(forward, middle)
    assert gated(nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 3)), "1.gate")


def test_a_parametrized_module_of_the_user_may_ask():
    middle = Gate(8)
    nn.utils.parametrize.register_parametrization(middle, "gate", nn.Identity())
    model = nn.Sequential(nn.Linear(4, 8), middle, nn.Linear(8, 3))
    assert gated(model, "1.parametrizations.gate.original")


class Raising(nn.Module):
    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        if self.always or not self.training:
            raise RuntimeError
        return x


class Trying(Gate):
    """Goes on where its fast way fails."""

    def __init__(self, fast: nn.Module) -> None:
        super().__init__(8)
        self.fast, self.slow = fast, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.fast(x)
        except RuntimeError:
            x = self.slow(x)
        return super().forward(x)


def test_a_model_that_catches_errors_may_ask():
    fast = nn.Sequential(nn.Identity(), nn.Linear(5, 5))  # torch's own, and wrong
    assert gated(nn.Sequential(nn.Linear(4, 8), Trying(fast), nn.Linear(8, 3)), "1.gate")
    assert gated(nn.Sequential(nn.Linear(4, 8), Trying(Raising(always=True)), nn.Linear(8, 3)), "1.gate")


def test_a_module_that_fails_in_one_mode_makes_who_catches_it_differ():
    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast, self.gate = nn.Sequential(Raising(always=False)), nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.fast(x) * self.gate
            except RuntimeError:
                return x

    assert gated(nn.Sequential(nn.Linear(4, 8), Catching(), nn.Linear(8, 3)), "1.gate")


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


class Dropping(nn.Module):
    """Whole channels are dropped, by a module that asks for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Conv2d(3, 8, 3), nn.Dropout2d(0.2), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        return self.last(x * 2 if self.training else x)


def test_the_noise_of_dropout_keeps_no_channels():
    assert sizes(es.trace(Dropping(), torch.zeros(1, 3, 8, 8))) == [8]


class Anchored(Noted):
    """Makes a list of numbers anew at every run, as detectors do with their anchors."""

    def __init__(self, name: str, inputs: int, outputs: int, *, own: bool) -> None:
        super().__init__(name, inputs, outputs)
        self.kept, self.own = [torch.zeros(2, 6, device="meta")], own

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.kept = [x] if self.own else [torch.zeros(2, 6, device="meta")]
        return x


def test_a_list_made_anew_is_nothing_kept_unless_it_has_axes():
    assert runs(Anchored("middle", 8, 6, own=False))[0] == ONCE
    assert runs(Anchored("middle", 8, 6, own=True))[0] == TWICE


def test_a_class_named_in_a_message_may_be_watched():
    class Checking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 2:
                raise ValueError(f"takes vectors, not {type(x)}")
            return x

    assert not asks_for_classes([("", Checking())])


def test_results_in_a_dictionary_are_replayed_as_they_were():
    class Many(Noted):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"out": super().forward(x)}

    class Taking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many, self.gate = Many("middle", 8, 6), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            out = self.many(x)
            x = out.pop("out")
            return x * self.gate if self.training else x

    assert runs(Taking())[0] == ONCE
