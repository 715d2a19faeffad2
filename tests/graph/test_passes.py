"""What is run in training mode: only what can differ there."""

from __future__ import annotations

import operator
import types

import torch
from torch import Tensor, nn

import espalier as es
from tests.graph.noted import Noted, groups_of, ran
from tests.graph.oracles import sizes


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
    assert runs(Freezing("middle", 8, 6))[0] == [*ONCE, ("first", True), ("middle", False), ("last", True)]


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
