"""Layers of torch.nn are labelled without being run, unless somebody wants to see them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import espalier as es
from espalier.graph.leaves import LEAVES, leaf_of
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
    found = leaf(layer, x.clone())
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


def test_a_forward_set_on_one_layer_is_run():
    net = Net()
    net[1].forward = lambda x: x * torch.arange(8)  # type: ignore[method-assign]
    assert sizes(es.trace(net, torch.zeros(2, 4))) == []
