"""Layers of torch.nn and of other libraries that are labelled without being run, unless somebody wants to see them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import espalier as es
from espalier.graph.leaves import LEAVES, OF_OTHERS, leaf_of
from espalier.tasks.vision import timm, torchvision
from tests.graph.oracles import sizes

LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 1), dilation=2, bias=False), torch.randn(2, 4, 9, 9)),
    "conv2d, padding named": (lambda: nn.Conv2d(4, 6, 3, padding="same"), torch.randn(2, 4, 9, 9)),
    "conv2d, padding repeated": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), torch.randn(2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), torch.randn(2, 4, 5, 5, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)),
    "batch norm without weights": (lambda: nn.BatchNorm2d(4, affine=False), torch.randn(2, 4, 3, 3)),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), torch.randn(2, 4, 3, 3)),
    "batch norm in 3d": (lambda: nn.BatchNorm3d(4), torch.randn(2, 4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(4, 6, bias=False), torch.randn(2, 3, 4)),
    "linear of one vector": (lambda: nn.Linear(4, 6), torch.randn(4)),
    "layer norm": (lambda: nn.LayerNorm(4), torch.randn(2, 3, 4)),
    "layer norm over two": (lambda: nn.LayerNorm((3, 4), elementwise_affine=False), torch.randn(2, 3, 4)),
    "relu": (lambda: nn.ReLU(inplace=True), torch.randn(2, 4)),
    "relu6": (nn.ReLU6, torch.randn(2, 4)),
    "gelu": (nn.GELU, torch.randn(2, 4)),
    "gelu, approximately": (lambda: nn.GELU("tanh"), torch.randn(2, 4)),
    "sigmoid": (nn.Sigmoid, torch.randn(2, 4)),
    "dropout": (lambda: nn.Dropout(0.5), torch.randn(2, 4)),
    "identity": (nn.Identity, torch.randn(2, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_leaf_would_call_is_what_the_layer_computes(kind: str):
    make, x = LAYERS[kind]
    layer = make().eval()
    leaf = leaf_of(type(layer))
    assert leaf is not None
    found = leaf.function(layer, x.clone())
    assert (found is None) == (kind in {"conv2d, padding repeated", "gelu, approximately"})
    if found is not None:
        function, arguments = found
        if kind != "batch norm without statistics":  # torch takes those of the batch then: not labelled at once
            assert torch.equal(arguments[0] if function is None else function(*arguments), layer(x.clone()))


def test_every_leaf_is_tried():
    tried = {type(make()) for make, _ in LAYERS.values()}
    alike = {nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Tanh, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d}
    assert tried | alike == set(LEAVES)


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def ran() -> Iterator[list[str]]:
    kinds: list[str] = []
    handle = register_module_forward_hook(lambda module, args, out: kinds.append(type(module).__name__))
    yield kinds
    handle.remove()


def test_hooks_that_every_module_calls_are_called(ran: list[str]):
    assert sizes(es.trace(Net(), torch.zeros(2, 4), check=False)) == [8]
    assert ran == ["Linear", "ReLU", "Linear", "Net"]


def test_a_hook_of_one_layer_is_called():
    net, seen = Net(), []
    net[1].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert sizes(es.trace(net, torch.zeros(2, 4))) == [8]
    assert len(seen) == 2  # labelled, and in the trial cut
    assert seen[0] == (2, 8)


def test_a_hook_that_is_there_while_the_model_runs_is_called():
    class Looking(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen: list[Tensor] = []
            handle = self[0].register_forward_hook(lambda module, args, out: seen.append(out))
            self[0](x)
            handle.remove()
            return self[2](seen[0])

    graph = es.trace(Looking(), torch.zeros(2, 4))
    assert sizes(graph) == [8]
    assert "Run with values" in graph.notes[0]


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_a_method_of_one_layer_is_called(name: str):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    method = getattr(net[1], name)
    setattr(net[1], name, lambda x, *others: method(x + x.flip(1), *others))
    assert sizes(es.trace(net, torch.zeros(1, 3, 4, 4))) == [4, 8]


def test_a_method_of_a_class_may_be_replaced_at_any_time(monkeypatch: pytest.MonkeyPatch):
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))

    assert sizes(es.trace(net(), torch.zeros(2, 4))) == [8]
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x + x.flip(1)))
    assert sizes(es.trace(net(), torch.zeros(2, 4))) == [4]


class Normed(nn.Module):
    """The weight of a layer is made before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        weight = self.layer.weight
        del self.layer.weight
        self.weight = nn.Parameter(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight = self.weight / self.weight.norm()
        return self.last(self.layer(x))


def test_a_weight_may_be_made_before_each_call():
    assert sizes(es.trace(Normed(), torch.zeros(1, 3, 4, 4))) == [8]


def test_scripted_layers_inside_are_run():
    net = nn.Sequential(nn.Linear(4, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 3))
    assert sizes(es.trace(net, torch.zeros(2, 4))) == [8, 8]


def test_a_forward_set_on_one_layer_is_run():
    net = Net()
    net[1].forward = lambda x: x * torch.arange(8)  # type: ignore[method-assign]
    assert sizes(es.trace(net, torch.zeros(2, 4))) == []


# -- of timm and torchvision ---------------------------------------------------------------------------------------


def norm_act(**settings: object) -> nn.Module:
    made = timm().layers.BatchNormAct2d(8, **settings).eval()
    nn.init.normal_(made.running_mean)
    return made


OF_LIBRARIES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "norm and activation": (norm_act, torch.randn(2, 8, 3, 3)),
    "norm without activation": (lambda: norm_act(apply_act=False), torch.randn(2, 8, 3, 3)),
    "norm and another activation": (lambda: norm_act(act_layer=nn.Mish, inplace=False), torch.randn(2, 8, 3, 3)),
    "layer norm": (lambda: timm().layers.LayerNorm(8), torch.randn(2, 3, 8)),
    "dropped paths": (lambda: timm().layers.DropPath(0.3), torch.randn(2, 3, 8)),
    "stochastic depth": (lambda: torchvision().ops.StochasticDepth(0.3, "row"), torch.randn(2, 3, 8)),
}


@pytest.mark.parametrize("kind", OF_LIBRARIES)
def test_what_a_leaf_of_a_library_would_call_is_what_it_computes(kind: str):
    make, x = OF_LIBRARIES[kind]
    layer = make().eval()
    leaf = leaf_of(type(layer))
    assert leaf is not None, "its forward reads other names than it did"
    found = leaf.function(layer, x.clone())
    assert found is not None
    function, arguments = found
    out = arguments[0] if function is None else function(*arguments)
    for name in leaf.then:
        out = getattr(layer, name)(out)
    assert torch.equal(out, layer(x.clone()))


def test_a_class_whose_forward_has_been_written_anew_is_run():
    names = {"__module__": "timm.layers.norm_act", "__qualname__": "BatchNormAct2d"}
    assert f"{names['__module__']}.{names['__qualname__']}" in OF_OTHERS
    anew = type("BatchNormAct2d", (nn.BatchNorm2d,), {**names, "forward": lambda self, x: self.act(x) * self.scale})
    assert leaf_of(anew) is None


class NormActs(nn.Module):
    """A norm with the activation inside, which may refuse."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), norm_act(), nn.Conv2d(8, 4, 3)
        self.norm.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        try:
            x = self.norm(x)
        except ValueError:
            x = x[:, :4].repeat(1, 2, 1, 1)
        return self.last(x)


def test_an_activation_inside_is_called_with_its_hooks():
    net, seen = NormActs(nn.ReLU()), []
    net.norm.act.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    graph = es.trace(net, torch.zeros(1, 3, 8, 8))
    assert [member.name for member in graph.groups[0].members] == [
        "first.weight", "first.bias", "norm.weight", "norm.bias", "last.weight", "norm.running_mean", "norm.running_var",
    ]  # fmt: skip
    assert seen[0] == (1, 8, 6, 6)


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def test_an_activation_that_fails_fails_where_it_would():
    graph = es.trace(NormActs(Refuses()), torch.zeros(1, 3, 8, 8))
    assert sizes(graph) == []


class ReadsTheMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(8.0)[:, None, None] if self.training else x


def test_an_activation_that_does_otherwise_in_training_is_seen():
    assert sizes(es.trace(NormActs(nn.ReLU()), torch.zeros(1, 3, 8, 8))) == [8]
    graph = es.trace(NormActs(ReadsTheMode()), torch.zeros(1, 3, 8, 8), check=False)
    assert sizes(graph) == []
